"""Lesson 05: arms of the first round once more, trained in float32, as the controls beside them were.

The first round was recorded on a CPU that trains in bfloat16, the controls on one that trains in float32.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from labkit.diffusion import float32_only
from labkit.studies import l05


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the first round that ends in "_float32"."""
    l05.trained.cache_clear()  # what was trained outside may be in bfloat16
    try:
        with float32_only():
            return l05.unit(arm.removesuffix("_float32"), seed, sizes)
    finally:
        l05.trained.cache_clear()
