"""What alignment did to everything it was not asked about.

The prompt names some attributes and leaves the others open. Preference training should not move those, but a judge's
taste, or the data's, leaks: everybody smiles, skin lightens, glasses vanish, faces look alike. Images before and after
are read by the AttributeReader (never by the judge that trained) and compared prompt by prompt: the same prompts and
seeds on both sides, intervals by resampling prompts, one p-value per attribute by exchanging sides, Holm-corrected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labkit.metrics import cluster_bootstrap, holm
from labkit.portraits.attributes import ATTRIBUTES
from labkit.portraits.parse import open_attributes


@dataclass(frozen=True)
class Shift:
    """Share of a value among images whose prompt leaves its attribute open; change = after - before."""

    attribute: str
    value: str
    before: float
    after: float
    change: float
    low: float
    high: float


@dataclass(frozen=True)
class AttributeShift:
    """How far a marginal moved: half the sum of absolute changes, in [0, 1], with a permutation p-value (Holm)."""

    attribute: str
    distance: float
    p_value: float
    images: int
    prompts: int


@dataclass(frozen=True)
class SideEffects:
    """The report. diversity: mean distance of two images of one prompt in the reader's features (not normalised)."""

    shifts: tuple[Shift, ...]
    attributes: tuple[AttributeShift, ...]
    diversity_before: float
    diversity_after: float
    diversity_change: float
    diversity_low: float
    diversity_high: float
    level: float

    def largest(self, n: int = 5) -> tuple[Shift, ...]:
        """The n largest changes of a single value."""
        return tuple(sorted(self.shifts, key=lambda s: -abs(s.change))[:n])


def side_effects(
    reader,
    *,
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str],
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> SideEffects:
    """Compare images [n, 3, 64, 64] of two models, row by row made from the same prompt and seed.

    prompts: n texts; rows with equal text are one prompt. Attributes that no prompt leaves open are left out.
    Raises ValueError for numbers that differ, fewer than 2 prompts, or prompts that leave nothing open.
    """
    if not len(before) == len(after) == len(prompts):
        raise ValueError(f"{len(before)} before, {len(after)} after, {len(prompts)} prompts: expected equal numbers")
    prompts = [str(p) for p in prompts]
    group = np.array([list(dict.fromkeys(prompts)).index(p) for p in prompts])  # [n] prompt number
    if group.max(initial=0) < 1:
        raise ValueError("need at least 2 different prompts: intervals resample prompts")
    free = [open_attributes(p) for p in prompts]
    readings = reader.read(before), reader.read(after)
    shifts, moved, p_values = [], [], []
    for attribute, values in ATTRIBUTES.items():
        rows = np.array([attribute in f for f in free])
        if not rows.any():
            continue
        shares = [_shares(r[attribute].cpu().numpy()[rows], group[rows], len(values)) for r in readings]  # [P, V] each
        difference = shares[1] - shares[0]
        low, high = _interval(difference, generator, level, resamples)
        means = [s.mean(0) for s in shares]
        for v, value in enumerate(values):
            if means[0][v] or means[1][v]:
                change = float(means[1][v] - means[0][v])
                entry = Shift(attribute, value, float(means[0][v]), float(means[1][v]), change, low[v], high[v])
                shifts.append(entry)
        distance = np.abs(difference.mean(0)).sum() / 2
        p_values.append(_permutation_p(difference, generator, resamples))
        moved.append((attribute, float(distance), int(rows.sum()), len(difference)))
    if not moved:
        raise ValueError("these prompts name every attribute: use prompts that leave something open")
    corrected = holm(p_values)
    attributes = tuple(
        AttributeShift(a, distance, float(p), images, n)
        for (a, distance, images, n), p in zip(moved, corrected, strict=True)
    )
    spread = [_spread(reader.features(images).cpu(), group) for images in (before, after)]
    change = spread[1] - spread[0]
    low, high = (math.nan, math.nan)
    if len(change) > 1:
        low, high = cluster_bootstrap(
            change, generator=generator, level=level, method="percentile", resamples=resamples
        )
    diversity = [float(s.mean()) if len(s) else math.nan for s in (*spread, change)]
    return SideEffects(tuple(shifts), attributes, *diversity, low, high, level)


def _shares(read: np.ndarray, group: np.ndarray, values: int) -> np.ndarray:
    """Share of each value inside each prompt: [P, V]."""
    _, index = np.unique(group, return_inverse=True)
    counts = np.zeros((index.max() + 1, values))
    np.add.at(counts, (index, read), 1)
    return counts / counts.sum(1, keepdims=True)


def _interval(difference: np.ndarray, generator, level: float, resamples: int) -> tuple[list[float], list[float]]:
    """Percentile interval of the mean over prompts for each column of [P, V]."""
    weights = generator.multinomial(len(difference), np.full(len(difference), 1 / len(difference)), resamples)  # [R, P]
    means = weights @ difference / len(difference)  # [R, V]
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return low.tolist(), high.tolist()


def _permutation_p(difference: np.ndarray, generator, resamples: int) -> float:
    """P-value of the marginal's distance when before and after are exchanged at random, prompt by prompt."""
    observed = np.abs(difference.mean(0)).sum()
    signs = generator.integers(0, 2, (resamples, len(difference))) * 2 - 1
    drawn = np.abs(signs @ difference / len(difference)).sum(1)
    return float((1 + (drawn >= observed * (1 - 1e-12)).sum()) / (1 + resamples))


def _spread(features: Tensor, group: np.ndarray) -> np.ndarray:
    """Mean distance of two images inside each prompt that has at least two: [P']."""
    out = []
    for g in range(group.max() + 1):
        rows = features[torch.from_numpy(group == g)]
        if len(rows) > 1:
            out.append(float(torch.pdist(rows).mean()))
    return np.array(out)
