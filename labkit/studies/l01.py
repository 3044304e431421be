"""Lesson 01: what guidance brings and costs on PortraitSD: faithfulness to what prompts name, variety of one prompt.

All seeds share the prompts and differ in the noise; a smaller live run asks the first of these prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
from torch import Tensor

from labkit.diffusion import image_generators, sample
from labkit.models import load_pipeline, load_reader
from labkit.models.reader import AttributeReader
from labkit.portraits import ATTRIBUTES, PortraitSpec, random_caption, sample_specs
from labkit.portraits.captions import Caption
from labkit.studies.estimate import gain
from labkit.studies.study import Study

SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
Order = tuple[PortraitSpec, Caption]  # what is wanted, and the words that ask for a part of it


def arm_of(scale: float) -> str:
    """The arm of a guidance scale: "guidance3"."""
    return f"guidance{scale:g}"


@lru_cache(maxsize=2)
def networks(device: str = "cpu") -> SimpleNamespace:
    """PortraitSD and the AttributeReader."""
    return SimpleNamespace(pipe=load_pipeline("cpu", device), reader=load_reader(device))


def orders(n: int) -> list[Order]:
    """The first n orders whose captions name at least one attribute; a larger n begins with the same ones."""
    rng, drawn = np.random.default_rng(101), sample_specs(2 * n + 16, seed=102)
    named = [(spec, words) for spec in drawn if (words := random_caption(spec, rng)).named]
    return named[:n]


def faithfulness(reader: AttributeReader, pictures: Tensor, wanted: Sequence[Order]) -> np.ndarray:
    """Mean probability of the named attributes' values, one number in [0, 1] per picture [N, 3, H, W]. Graded, for a
    share of attributes read right is 1 on two thirds of the pictures and cannot tell those apart."""
    p = {name: found.cpu().numpy() for name, found in reader.probabilities(pictures).items()}
    return np.array(
        [
            np.mean([p[name][i, ATTRIBUTES[name].index(getattr(spec, name))] for name in words.named])
            for i, (spec, words) in enumerate(wanted)
        ]
    )


def at_scale(
    scale: float, seed: int, *, prompts: int, copies: int, steps: int, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Faithfulness and variety at one guidance scale, a number per prompt each.

    faithful: mean over the pictures of a prompt. variety: root of the variance over the pictures of a prompt, averaged
    over all values of all pixels (which lie in -1 to 1), so that it does not depend on the number of copies. The same
    seed has the same noise at every scale.
    """
    nets = networks(device)
    wanted = [order for order in orders(prompts) for _ in range(copies)]
    generators = image_generators(len(wanted), seed)
    how = {"steps": steps, "guidance_scale": scale, "batch_size": 32}
    pictures = sample(nets.pipe, [words.text for _, words in wanted], generators=generators, **how).cpu()
    variance = pictures.reshape(prompts, copies, *pictures.shape[1:]).var(1).mean((1, 2, 3))
    faithful = faithfulness(nets.reader, pictures, wanted).reshape(prompts, copies).mean(1)
    return {"faithful": faithful, "variety": variance.sqrt().numpy()}


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """What `at_scale` gives at the scale of the arm."""
    scale = next(scale for scale in SCALES if arm_of(scale) == arm)
    return at_scale(scale, seed, prompts=sizes.prompts, copies=sizes.copies, steps=sizes.steps)


ESTIMATES = {
    "guidance_helps": gain("faithful", arm_of(3), arm_of(1)),
    "guidance_costs": gain("variety", arm_of(3), arm_of(1)),
    "three_is_enough": gain("faithful", arm_of(8), arm_of(3)),
    "steps_help": gain("faithful", "guidance8_steps20", "guidance3_steps20"),
}

STUDY = Study(
    lesson="01",
    unit=unit,
    arms=(*(arm_of(scale) for scale in SCALES), "guidance3_steps20", "guidance8_steps20"),
    seeds=(),
    more={
        **{arm_of(scale): (0, 1, 2) for scale in SCALES},
        # second round, why 8 loses: declared after a look at seed 0 with 32 prompts
        **{f"guidance{scale}_steps20": (3, 4, 5) for scale in (3, 8)},
    },
    later={f"guidance{scale}_steps20": "labkit.studies.l01_steps" for scale in (3, 8)},
    sizes={"prompts": 128, "copies": 2, "steps": 8},
    estimates=ESTIMATES,
    weights=("portrait-sd", "attribute-reader"),
    tolerance=0.005,
    cheap="guidance1",
    covers=("guidance3",),
)
