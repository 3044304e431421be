"""Lesson 06: the leap where the texture is loud.

In the first round real pictures have grain of .25, of which the VAE leaves so little that texture alone finds the
winner of a leap in two cases out of three. Does the leap hold its ground because of that? Here the grain is three times
as strong: texture alone finds 97 of 100 winners in the pairs of the shipped world (`labkit.dpo.told_apart`; chosen by
that number, before anything was trained on it). Trained in float32.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from labkit.diffusion import float32_only
from labkit.dpo.shortcut import told_apart
from labkit.studies import l06

GRAIN = 0.75


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the first round that ends in "_grainy", and the share of leap pairs that texture tells apart."""
    louder = SimpleNamespace(**{**vars(sizes), "grain": GRAIN})
    with float32_only():  # the sizes are this module's own, so nothing trained elsewhere is taken from a cache
        found = l06.unit(arm.removesuffix("_grainy"), seed, louder)
    return found | {"told_apart": np.array([told_apart(l06.world_of(seed, louder).leap.training())[0]])}
