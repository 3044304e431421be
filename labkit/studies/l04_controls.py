"""Lesson 04, second round: a dislike as in the paper, the model's own worst picture; and windows in twenty steps.

Why do like and dislike together end farther away than the like alone, and why does the first half of the steps do less
than all of them? Targets, weight and noise are those of `labkit.studies.l04`.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
from torch import Tensor

from labkit.diffusion import image_generators, sample
from labkit.fabric import FabricWarning, fabric
from labkit.studies import l04

STEPS = 20
ENDING = f"_steps{STEPS}"


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the first round with more steps, or one whose dislike is the worst of a batch ("..._worst")."""
    if arm.endswith(ENDING):
        return l04.unit(arm.removesuffix(ENDING), seed, SimpleNamespace(**{**vars(sizes), "steps": STEPS}))
    with_like = arm == "both_worst"
    pictures = [against_worst(target, seed, sizes, with_like=with_like) for target in range(sizes.targets)]
    return l04.measures(pictures, seed, sizes)


def worst(target: int, seed: int, sizes: SimpleNamespace) -> Tensor:
    """Of a batch without feedback, from noise of its own, the picture farthest from the target [1, 3, 64, 64]."""
    generators = image_generators(sizes.images, 50_000 + seed, first=target * sizes.images)
    batch = sample(
        l04.models().pipe, l04.PROMPT, generators=generators, steps=sizes.steps, guidance_scale=sizes.guidance
    ).cpu().clamp(-1, 1)  # fmt: skip
    farthest = int(l04.nearness(target, seed, sizes)(batch).argmin())
    return batch[farthest : farthest + 1]


def against_worst(target: int, seed: int, sizes: SimpleNamespace, *, with_like: bool) -> Tensor:
    """As `l04.draw`, with `worst` for a dislike instead of a random person: [copies, 3, 64, 64]."""
    crowd = l04.people(sizes.targets, seed)
    generators = image_generators(sizes.copies, 1000 + seed, first=target * sizes.copies)
    shown = {
        "liked": [crowd.liked_pictures[target]] if with_like else [],
        "disliked": list(worst(target, seed, sizes)),
    }
    pipe = l04.models().pipe
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FabricWarning)
        with fabric(pipe, value_range=(-1, 1), max_weight=sizes.weight, end=1.0, **shown):
            images = sample(pipe, l04.PROMPT, generators=generators, steps=sizes.steps, guidance_scale=sizes.guidance)
    return images.cpu().clamp(-1, 1)
