"""Lesson 06: arms of the first round once more, trained in float32.

Their partners in the controls (captions with errors) were recorded on a CPU that trains in float32, these arms on one
that trains in bfloat16. A control differs from its partner in one thing, so the partners are recorded again.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from labkit.diffusion import float32_only
from labkit.studies import l06


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the first round that ends in "_float32"."""
    l06.trained.cache_clear()  # what was trained outside may be in bfloat16
    try:
        with float32_only():
            return l06.unit(arm.removesuffix("_float32"), seed, sizes)
    finally:
        l06.trained.cache_clear()
