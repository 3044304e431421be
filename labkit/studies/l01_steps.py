"""Lesson 01, second round: guidance 3 and 8 with twenty steps instead of eight. Why is 8 less faithful than 3?"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from labkit.studies import l01

STEPS = 20
ENDING = f"_steps{STEPS}"


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the first round, with more steps."""
    return l01.unit(arm.removesuffix(ENDING), seed, SimpleNamespace(**{**vars(sizes), "steps": STEPS}))
