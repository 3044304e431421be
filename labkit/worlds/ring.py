"""A world whose density is known: a ring of eight modes of unequal mass, and an imperfect generator of it.

The reals are eight Gaussians of sd 0.12 on a circle of radius 2. The generator knows the modes and their masses (sd
0.14) but smears a fifth of each mode over the bridge to the next: artefacts and rare truths alike have a low density.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASSES = (0.30, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.02)
RADIUS, REAL_SD, FAKE_SD, SMEARED = 2.0, 0.12, 0.14, 0.2


def ring_centres() -> Tensor:
    """Centres [8, 2] float64 of the modes, the biggest first."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


def ring_reals(n: int, generator: torch.Generator) -> Tensor:
    """n points [n, 2] float64 of the true law."""
    mode = torch.multinomial(torch.tensor(MASSES, dtype=torch.float64), n, replacement=True, generator=generator)
    return ring_centres()[mode] + REAL_SD * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def ring_density(points: Tensor) -> Tensor:
    """True probability density [Q] of points [Q, 2]."""
    square = (points.double()[:, None] - ring_centres()).square().sum(dim=2)  # [Q, 8]
    masses = torch.tensor(MASSES, dtype=torch.float64)
    return (masses * torch.exp(-square / (2 * REAL_SD**2))).sum(dim=1) / (2 * math.pi * REAL_SD**2)


def ring_generator(z: Tensor) -> Tensor:
    """The imperfect generator: standard normal z [B, 3] -> points [B, 2], differentiable almost everywhere.

    z[:, 2] picks the mode and, for a fifth of each mode's mass, the place on the bridge to the next; z[:, :2] is the
    noise around it.
    """
    edges = torch.tensor([0.0, *MASSES], dtype=z.dtype).cumsum(0)  # [9]
    u = torch.special.ndtr(z[:, 2]).clamp(0, 1 - 1e-9)
    mode = (torch.searchsorted(edges, u.detach(), right=True) - 1).clamp(0, 7)
    within = (u - edges[mode]) / (edges[mode + 1] - edges[mode])  # [B], 0..1
    along = ((within - (1 - SMEARED)) / SMEARED).clamp(min=0)[:, None]
    centres = ring_centres().to(z)
    return torch.lerp(centres[mode], centres[(mode + 1) % 8], along) + FAKE_SD * z[:, :2]
