"""Lesson 09: training on fifty pairs once more, in float32, as the longer training on two hundred beside it was."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from labkit.diffusion import float32_only
from labkit.studies import l09


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the first round that ends in "_float32"."""
    with float32_only():
        return l09.unit(arm.removesuffix("_float32"), seed, sizes)
