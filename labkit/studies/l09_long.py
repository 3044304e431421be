"""Lesson 09, second round: two hundred pairs with four times the steps, so that each is seen as often as each of fifty.

Do they do less in the first round because each of them is repeated less?
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from labkit.studies import l09

LONG = 4


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the first round that ends in "_long"."""
    longer = SimpleNamespace(**{**vars(sizes), "train_steps": LONG * sizes.train_steps})
    return l09.unit(arm.removesuffix("_long"), seed, longer)
