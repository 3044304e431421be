"""Which pairs a step sees, and the timestep and noise of each: functions of (seed, draw, pair) alone.

Nothing here depends on batch size, order of work or number of processes, so runs can be cut, resumed and compared. Both
images of a pair get the same timestep and the same noise: most of what their errors share then cancels in D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Draws:
    """For B pairs: t [B] int64, noise [B, C, h, w] float32, uniform [B] in [0, 1) for dropping prompts."""

    t: Tensor
    noise: Tensor
    uniform: Tensor


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n pairs in an epoch: int64 [n]."""
    state = int(np.random.SeedSequence([seed, 1, epoch]).generate_state(1, np.uint64)[0])
    return torch.randperm(n, generator=torch.Generator().manual_seed(state))


def rows_of_step(step: int, size: int, n: int, seed: int) -> list[tuple[int, int]]:
    """(pair, epoch) of the `size` pairs of a step. Epochs follow one another without a short last batch."""
    positions = range(step * size, (step + 1) * size)
    orders = {epoch: epoch_order(n, seed, epoch).tolist() for epoch in {p // n for p in positions}}
    return [(orders[p // n][p % n], p // n) for p in positions]


def draw_pairs(
    rows: Sequence[tuple[int, int]],
    shape: Sequence[int],
    *,
    seed: int,
    t_window: tuple[int, int] = (0, 1000),
    density: str = "uniform",
) -> Draws:
    """Timesteps and noise for (pair, draw) rows; shape = (C, h, w), t in t_window (first, last + 1).

    density: "uniform", or "logit_normal": the place in the window has a standard normal logit (the timesteps of Stable
    Diffusion 3, arXiv 2403.03206, section 3.1).

    The timesteps of one pair over successive draws advance by the golden ratio of the window: any few of them are
    spread evenly, which lowers the variance of the gradient at no cost.
    """
    low, high = t_window
    timesteps, noise, uniform = [], [], []
    for pair, draw in rows:
        first = np.random.default_rng(np.random.SeedSequence([seed, 2, pair])).random()
        place = (first + draw * GOLDEN) % 1.0
        if density == "logit_normal":
            place = 1 / (1 + math.exp(-NormalDist().inv_cdf(min(max(place, 1e-9), 1 - 1e-9))))
        timesteps.append(low + int((high - low) * place))
        states = np.random.SeedSequence([seed, 3, pair, draw]).generate_state(2, np.uint64)
        noise.append(torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(states[0]))))
        uniform.append(float(states[1] >> np.uint64(11)) / 2**53)
    return Draws(torch.tensor(timesteps), torch.stack(noise), torch.tensor(uniform, dtype=torch.float64))
