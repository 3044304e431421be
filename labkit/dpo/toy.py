"""Diffusion-DPO in two dimensions: the terms of `labkit.dpo.terms` train the small network of `labkit.worlds.toy`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.diffusion import add_noise
from labkit.dpo.equations import epsilon_error
from labkit.dpo.record import Window
from labkit.dpo.terms import PairStep, Term
from labkit.worlds.toy import ALPHAS, STEPS, Denoiser, off_ring, reward, sample_points


@dataclass(frozen=True)
class ToyResult:
    """One trained toy: its log (records as of the trainer), samples [n, 2], mean reward, share off the ring."""

    model: Denoiser
    log: list[dict[str, float]]
    points: Tensor
    reward: float
    off_ring: float


def train_toy(
    base: Denoiser,
    winner: Tensor,
    loser: Tensor,
    terms: Sequence[Term] | Callable[[PairStep], Tensor],
    *,
    seed: int,
    steps: int = 600,
    batch: int = 256,
    lr: float = 1e-4,
    samples: int = 2000,
) -> ToyResult:
    """Train a copy of `base` on pairs [n, 2]; terms: as for the trainer, or one function PairStep -> [B]."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(base).requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    functions = [terms] if callable(terms) else list(terms)
    kappa = next((f.kappa for f in functions if getattr(f, "kappa", None)), 1.0)
    log, window, every = [], Window(), max(1, steps // 30)
    for step in range(steps):
        rows = torch.randint(len(winner), (batch,), generator=generator)
        t = torch.randint(STEPS, (batch,), generator=generator)
        noise = torch.randn(batch, 2, generator=generator)
        both, times = torch.cat([winner[rows], loser[rows]]), torch.cat([t, t])  # one forward pass for w and l
        x_t = add_noise(both, torch.cat([noise, noise]), times, ALPHAS)  # [2B, 2]
        with torch.no_grad():
            ref_w, ref_l = base(x_t, times).chunk(2)
        w, lo = model(x_t, times).chunk(2)
        pairs = PairStep(
            winner_pred=w, loser_pred=lo, noise=noise, t=t, alphas_cumprod=ALPHAS,
            ref_winner_error=epsilon_error(ref_w, noise), ref_loser_error=epsilon_error(ref_l, noise),
            ref_winner_pred=ref_w, ref_loser_pred=ref_l,
        )  # fmt: skip
        loss = torch.stack([f(pairs) for f in functions]).sum(0)  # [B]
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        with torch.no_grad():
            numbers = {"winner_error": pairs.winner_error, "loser_error": pairs.loser_error, "loss": loss}
            known = {"ref_winner_error": pairs.ref_winner_error, "ref_loser_error": pairs.ref_loser_error}
            window.add(seconds=0.0, **{k: v.detach() for k, v in (numbers | known).items()})
        if (step + 1) % every == 0:
            log.append({"step": step + 1} | window.record(kappa))
            window = Window()
    points = sample_points(model, samples, torch.Generator().manual_seed(seed + 1))
    return ToyResult(model, log, points, float(reward(points).mean()), float(off_ring(points).float().mean()))
