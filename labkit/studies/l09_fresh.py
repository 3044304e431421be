"""Lesson 09, second round: the change by lesson 06's adapter on new orders for every seed.

In the first round all seeds look at the same orders of the catalogue, which are too few to tell whether more passes.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from labkit.studies import l06, l06_world, l09, l09_catalogue

ORDERS = 256
adapter = lru_cache(maxsize=1)(l09_catalogue.lesson_06)


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """`l09.tuned` with other orders: the base, then the base with the adapter, from the same noise."""
    shelf, rng, m = l09_catalogue.load(), np.random.default_rng(seed), l09_catalogue.LATER
    part = m + rng.choice(len(shelf.half_prompts) - m, sizes.calibration, replace=False)
    calibration = shelf.pictures("base")[part], [shelf.half_prompts[i] for i in part]
    _, orders = l06.half_named(ORDERS, 80_000 + seed)
    old, new = ((l06_world.pictures(orders, seed, l09_catalogue.STEPS, states), orders) for states in ({}, adapter()))
    return l09.audited(calibration, old, new, sizes.tuned_alpha)
