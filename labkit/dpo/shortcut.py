"""Whether the winners of pairs can be found without reading the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.dpo.data import PreferencePairs


def texture(latents: Tensor) -> Tensor:
    """What no prompt names, [n, 4 C] in float64, of latents [n, C, h, w]: mean, standard deviation and the mean step to
    the neighbour on the right and below, per channel."""
    right = (latents[..., 1:] - latents[..., :-1]).abs().mean((2, 3))
    below = (latents[..., 1:, :] - latents[..., :-1, :]).abs().mean((2, 3))
    return torch.cat([latents.mean((2, 3)), latents.std((2, 3)), right, below], 1).double()


def told_apart(pairs: PreferencePairs, ridge: float = 10.0) -> tuple[float, float]:
    """Share of n pairs whose winner a linear rule finds by `texture` alone, in [0, 1], and its 95 % margin by counting.

    Every pair is judged by a ridge regression that was fitted to all others; chance is one half.

    Raises:
        ValueError: fewer than three pairs.
    """
    gap = texture(pairs.winner) - texture(pairs.loser)
    n, d = gap.shape
    if n < 3:
        raise ValueError(f"{n} pairs, expected at least 3: every pair is judged by a rule from the others")
    gap = gap / gap.std(0).clamp_min(1e-12)
    moments, sums = gap.T @ gap + ridge * torch.eye(d).double(), gap.sum(0)
    rules = torch.stack([torch.linalg.solve(moments - torch.outer(x, x), sums - x) for x in gap])
    share = float(((rules * gap).sum(1) > 0).double().mean())
    return share, 1.96 * (share * (1 - share) / n) ** 0.5
