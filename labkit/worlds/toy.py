"""The toy of lesson 05: a ring of eight modes, a small network that samples it, and a judge who likes the right side.

Everything can be drawn, and a setting takes seconds. `labkit.dpo.toy` trains the network on pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from labkit.diffusion import add_noise, ddim_step, sd_alphas_cumprod

MODES, SPREAD, STEPS = 8, 0.05, 100  # modes on the unit circle, their standard deviation, noise levels
ALPHAS = sd_alphas_cumprod(STEPS, beta_start=0.002, beta_end=0.15)


def ring(n: int, generator: torch.Generator) -> Tensor:
    """n points [n, 2] around eight equally likely places of the unit circle."""
    angle = torch.randint(MODES, (n,), generator=generator) * (2 * math.pi / MODES)
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    return centres + SPREAD * torch.randn(n, 2, generator=generator)


def reward(points: Tensor) -> Tensor:
    """The judge: how far right a point lies. [n, 2] -> [n]."""
    return points[:, 0]


def off_ring(points: Tensor) -> Tensor:
    """Which points are no data at all: further than five standard deviations from the circle. [n, 2] -> bool [n]."""
    return (points.norm(dim=1) - 1).abs() > 5 * SPREAD


class Denoiser(nn.Module):
    """Predicted noise [B, 2] of points [B, 2] at timesteps [B]."""

    def __init__(self, generator: torch.Generator, width: int = 96):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2 + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip
        for parameter in self.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 0
            parameter.data.normal_(std=fan_in**-0.5, generator=generator) if fan_in else parameter.data.zero_()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] / STEPS * math.pi * torch.arange(1, 9)  # [B, 8]
        return self.body(torch.cat([x, angle.sin(), angle.cos()], 1))


def pretrain(seed: int, steps: int, batch: int = 512) -> Denoiser:
    """A model of the ring."""
    generator = torch.Generator().manual_seed(seed)
    model = Denoiser(generator)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps) + 1e-5
        x0 = ring(batch, generator)
        t = torch.randint(STEPS, (batch,), generator=generator)
        noise = torch.randn(batch, 2, generator=generator)
        loss = (model(add_noise(x0, noise, t, ALPHAS), t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


@torch.no_grad()
def sample_points(model: Denoiser, n: int, generator: torch.Generator, stride: int = 4) -> Tensor:
    """n points [n, 2] by DDIM; equal generators give comparable points of two models."""
    x = torch.randn(n, 2, generator=generator)
    times = list(range(STEPS - 1, -1, -stride))
    for now, following in zip(times, [*times[1:], -1], strict=True):
        eps = model(x, torch.full((n,), now))
        x, _ = ddim_step(eps, now, following, x, ALPHAS, final_alpha_cumprod=1.0)
    return x


def make_pairs(model: Denoiser, n: int, pool: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Best and worst of `pool` samples, n times: winners [n, 2], losers [n, 2]."""
    points = sample_points(model, n * pool, generator).reshape(n, pool, 2)
    scores = reward(points.flatten(0, 1)).reshape(n, pool)
    rows = torch.arange(n)
    return points[rows, scores.argmax(1)], points[rows, scores.argmin(1)]
