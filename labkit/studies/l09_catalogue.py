"""The shipped catalogue of lesson 09: pictures of one order each, before and after two changes of the model.

PortraitSD was replaced by portrait-sd-base, and portrait-sd-base was tuned by lesson 06's adapter.

Drawing takes minutes, decoding the latents seconds. `python -m labkit.studies.l09_catalogue` draws them anew into
`catalogue/` of the data folder and writes their checksum.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from labkit.diffusion import decode_latents, image_generators, sample_latents
from labkit.dpo import dpo
from labkit.files import write_atomically
from labkit.models import load_pipeline
from labkit.models.checksums import write_checksums
from labkit.models.paths import data_dir
from labkit.portraits import HELD_OUT_COMBINATIONS, PortraitSpec, caption, sample_specs
from labkit.studies import l06, l06_world
from labkit.studies.study import StudyError

FOLDER, FILE, TUNED_FILE = "catalogue", "latents.safetensors", "tuned.safetensors"
ORDERS, LATER, STEPS, SEED, ADAPTER_STEPS = 384, 128, 8, 90_000, 40
MODELS = {"old": "portrait-sd", "new": "portrait-sd-base", "base": "portrait-sd-base", "tuned": "portrait-sd-base"}


@dataclass(frozen=True)
class Catalogue:
    """Orders and the latents of their pictures.

    Attributes:
        specs, prompts: one per order. old: latents [ORDERS, C, h, w] by PortraitSD. new: of the first LATER orders by
            portrait-sd-base.
        half_prompts: orders that name half of the attributes. base: [ORDERS, ...] by portrait-sd-base. tuned: of the
            first LATER of them, from the same noise, with the adapter of lesson 06's first stage. Both are for the
            study alone, and None where their file is not there.
    """

    specs: tuple[PortraitSpec, ...]
    prompts: tuple[str, ...]
    half_prompts: tuple[str, ...]
    old: Tensor
    new: Tensor
    base: Tensor | None = None
    tuned: Tensor | None = None

    def pictures(self, which: str, n: int | None = None) -> Tensor:
        """The first n pictures (default: all) of "old", "new", "base" or "tuned" [n, 3, 64, 64] in [-1, 1]."""
        latents = getattr(self, which)
        if latents is None:
            raise StudyError(f"{TUNED_FILE} is not there: draw it with python -m labkit.studies.l09_catalogue")
        pipe = load_pipeline("cpu", variant=MODELS[which])
        with torch.no_grad():
            return decode_latents(pipe, latents[:n], batch_size=64).clamp(-1, 1)


def mixed_up(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which picture lies with which order: neighbours are exchanged with this probability, [n]."""
    source = np.arange(n)
    for first in range(0, n - 1, 2):
        if rng.random() < share:
            source[[first, first + 1]] = source[[first + 1, first]]
    return source


def orders() -> tuple[tuple[PortraitSpec, ...], tuple[str, ...], tuple[str, ...]]:
    """Specs and captions of the catalogue, captions that name half of the attributes."""
    specs = sample_specs(ORDERS, seed=SEED, exclude=HELD_OUT_COMBINATIONS)
    return tuple(specs), tuple(caption(spec).text for spec in specs), tuple(l06.half_named(ORDERS, SEED)[1])


def drawn(variant: str, prompts: Sequence[str], first: int) -> Tensor:
    """Latents of one picture per prompt, from noise number `first` on."""
    generators = image_generators(len(prompts), SEED, first=first)
    pipe = load_pipeline("cpu", variant=variant)
    return sample_latents(
        pipe, list(prompts), generators=generators, steps=STEPS, guidance_scale=3.0, batch_size=64
    ).latents.cpu()


def lesson_06() -> l06.Adapters:
    """Lesson 06's first stage on the pairs that it ships, with the settings of its study."""
    settings = SimpleNamespace(**l06.STUDY.sizes)
    pairs = l06_world.load().pairs().easy.training()
    return l06.align([("easy", pairs, [dpo(settings.kappa)], ADAPTER_STEPS)], 0, settings)


def tuned(prompts: Sequence[str], first: int) -> Tensor:
    """Latents by portrait-sd-base with the adapter of `lesson_06`."""
    generators = image_generators(len(prompts), SEED, first=first)
    with l06.adapters(lesson_06()):
        return sample_latents(
            l06.models().pipe, list(prompts), generators=generators, steps=STEPS, guidance_scale=3.0, batch_size=64
        ).latents.cpu()


def save(folder: Path, catalogue: Catalogue) -> None:
    """Write the files in half precision, with the orders in their headers."""
    about = {"prompts": json.dumps([catalogue.prompts, catalogue.half_prompts]), "steps": str(STEPS), "seed": str(SEED)}
    for file, names in ((FILE, ("old", "new")), (TUNED_FILE, ("base", "tuned"))):
        if getattr(catalogue, names[0]) is not None:
            tensors = {name: getattr(catalogue, name).half().contiguous() for name in names}
            write_atomically(folder / file, lambda p, tensors=tensors: save_file(tensors, str(p), metadata=about))


def load(folder: Path | None = None) -> Catalogue:
    """Read the shipped catalogue.

    Raises:
        StudyError: a file is missing or damaged, or its orders are not those of this version of labkit.
    """
    folder = data_dir() / FOLDER if folder is None else folder
    specs, prompts, half_prompts = orders()
    tensors: dict[str, Tensor] = {}
    for path in (folder / FILE, folder / TUNED_FILE):
        if path.name == TUNED_FILE and not path.exists():
            continue
        try:
            with safe_open(str(path), "pt") as file:
                told = json.loads(file.metadata()["prompts"])
                tensors |= {name: file.get_tensor(name).float() for name in file.keys()}
        except Exception as error:
            raise StudyError(f"{path} cannot be read ({type(error).__name__}): restore the data folder") from error
        if told != [list(prompts), list(half_prompts)]:
            raise StudyError(f"{path.name} holds other orders: draw it with python -m labkit.studies.l09_catalogue")
    return Catalogue(specs, prompts, half_prompts, **tensors)


def main() -> None:
    """Draw the catalogue into the data folder and write its checksum."""
    torch.set_num_threads(1)
    specs, prompts, half = orders()
    latents = {
        "old": drawn(MODELS["old"], prompts, 0),
        "new": drawn(MODELS["new"], prompts[:LATER], ORDERS),
        "base": drawn(MODELS["base"], half, 2 * ORDERS),
        "tuned": tuned(half[:LATER], 2 * ORDERS),
    }
    save(data_dir() / FOLDER, Catalogue(specs, prompts, half, **latents))
    write_checksums(folders=[FOLDER])


if __name__ == "__main__":
    main()
