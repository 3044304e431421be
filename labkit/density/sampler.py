"""Weighted draws of training samples, with replacement, for `fine_tune` and for any torch `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class WeightedSampler(Sampler[int]):
    """Training indices drawn with replacement with the given probabilities, for a torch `DataLoader`.

    Args:
        weights: [N] >= 0, not all 0 (see `training_weights`). n: draws per epoch (None: N).
        seed: epoch e of one seed is always the same; iterating again is the next epoch.
    """

    def __init__(self, weights: Tensor, *, seed: int, n: int | None = None) -> None:
        if weights.ndim != 1 or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ValueError(f"weights must be [N], finite and >= 0, got shape {tuple(weights.shape)}")
        if not float(weights.sum()) > 0:
            raise ValueError("all weights are 0: there is nothing to draw")
        self.cumulative = weights.double().cumsum(0) / weights.double().sum()  # [N]
        self.n, self.seed, self.epoch = len(weights) if n is None else n, seed, 0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n indices [n] by inverting the cumulative sum: O(log N) each, and no limit on N."""
        u = torch.rand(n, generator=generator, dtype=torch.float64) * self.cumulative[-1]
        return torch.searchsorted(self.cumulative, u, right=True).clamp(max=len(self.cumulative) - 1)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        yield from self.draw(self.n, generator).tolist()

    def __len__(self) -> int:
        return self.n
