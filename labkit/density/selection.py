"""Importance sampling at inference: generate, score, accept or reject, until enough are accepted (method ii).

The decision about a candidate is made once, on the very image that is returned; the released fine-tuning code accepts a
latent and then draws another image from it. Candidate i gets its own noise and its own uniform number, so what is
accepted does not depend on how candidates are batched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from labkit.density.equations import Forecast, above, acceptance_probability, check_ratio, forecast
from labkit.errors import LabkitError

Generate = Callable[[int, int], Tensor]
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Selection:
    """Accepted samples and what they cost.

    Attributes:
        samples: [n, ...], row i being what `generate` made for candidate `indices[i]`. scores: [n] of those rows.
        indices: [n] candidate numbers, ascending.
        calls: candidates examined, up to and including the last accepted one. generated: the same plus the rest of the
            last batch, which was paid for and not looked at.
        share_above: of the examined candidates; share_above_after: of the accepted ones.
        all_scores: [calls] of every examined candidate.
    """

    samples: Tensor = field(repr=False)
    scores: Tensor = field(repr=False)
    indices: Tensor = field(repr=False)
    calls: int
    generated: int
    share_above: float
    share_above_after: float
    all_scores: Tensor = field(repr=False)
    forecast: Forecast

    @property
    def acceptance(self) -> float:
        """Accepted per examined candidate."""
        return len(self.samples) / self.calls if self.calls else math.nan

    @property
    def calls_per_sample(self) -> float:
        """Examined candidates per accepted one."""
        return self.calls / len(self.samples) if len(self.samples) else math.inf


class BudgetExhausted(LabkitError, RuntimeError):
    """The budget of generator calls ran out; `selection` holds what was accepted until then (perhaps nothing)."""

    def __init__(self, message: str, selection: Selection) -> None:
        super().__init__(message)
        self.selection = selection


def pilot(generate: Generate, score: Score, *, threshold: float, ratio: float, n: int, first: int = 0) -> Forecast:
    """Forecast from n candidates first .. first + n - 1. Their share above tau has a standard error of up to
    1 / (2 sqrt(n))."""
    return forecast(float(above(_scores(score, generate(first, n), n), threshold).double().mean()), ratio=ratio)


def importance_sample(
    generate: Generate,
    score: Score,
    *,
    n: int,
    threshold: float,
    ratio: float,
    budget: int,
    generator: torch.Generator,
    batch: int = 64,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Accept n samples by the two-level rule (`acceptance_probability`).

    Args:
        generate: (first, count) -> samples [count, ...] of candidates first .. first + count - 1, reproducibly.
        score: samples -> rho [count]; exact k-NN density by default in this course.
        threshold: tau. ratio: > 1 typical, < 1 rare, 1 accepts everything.
        budget: most candidates that may be generated.
        generator: for the accept decisions alone (one uniform number per candidate).
        batch: most candidates per call of `generate`; near the end the batch shrinks to what is expected to be missing.
        progress: called after each batch with (accepted, generated).

    Raises:
        BudgetExhausted: fewer than n were accepted within the budget; its `selection` has those.
        ValueError: n, budget or batch below 1, a ratio that is negative or NaN, or scores that are not finite.
    """
    ratio = check_ratio(ratio)
    if min(n, budget, batch) < 1:
        raise ValueError(f"n = {n}, budget = {budget} and batch = {batch} must be at least 1")
    samples, scores, indices, seen = [], [], [], []
    generated = accepted = 0
    while accepted < n and generated < budget:
        rate = max(accepted, 1) / max(generated, 1) if generated else 1.0  # at least one, so that it cannot be 0
        count = min(batch, budget - generated, max(1, math.ceil((n - accepted) / rate)))
        made = generate(first + generated, count)
        rho = _scores(score, made, count)
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        probability = acceptance_probability(rho, threshold=threshold, ratio=ratio)
        keep = (u < probability).nonzero()[:, 0][: n - accepted]  # [a]; u < 1: probability 1 always accepts, 0 never
        samples.append(made[keep.to(made.device)])
        scores.append(rho[keep])
        indices.append(keep + first + generated)
        accepted += len(keep)
        examined = int(keep[-1]) + 1 if accepted == n else count
        seen.append(rho[:examined])
        generated += count
        if progress is not None:
            progress(accepted, generated)
    all_scores = torch.cat(seen)
    before = float(above(all_scores, threshold).double().mean())
    kept = torch.cat(scores)
    selection = Selection(
        samples=torch.cat(samples),
        scores=kept,
        indices=torch.cat(indices),
        calls=len(all_scores),
        generated=generated,
        share_above=before,
        share_above_after=float(above(kept, threshold).double().mean()) if len(kept) else math.nan,
        all_scores=all_scores,
        forecast=forecast(before, ratio=ratio),
    )
    if accepted < n:
        raise BudgetExhausted(
            f"accepted {accepted} of {n} samples within the budget of {budget} calls ({before:.1%} lie above tau, "
            f"ratio {ratio:g}): raise the budget, or take a tau or ratio nearer to the middle",
            selection,
        )
    return selection


def _scores(score: Score, samples: Tensor, count: int) -> Tensor:
    """Checked scores [count] float64 on the CPU."""
    if len(samples) != count:
        raise ValueError(f"generate returned {len(samples)} samples for {count} candidates: return one each")
    rho = torch.as_tensor(score(samples)).detach().double().cpu()
    if rho.shape != (count,):
        raise ValueError(f"score returned shape {tuple(rho.shape)} for {count} samples: return one number each")
    return rho
