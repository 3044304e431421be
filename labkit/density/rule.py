"""The two-level rule that all three methods share, its exact consequences, and its use on training data.

A sample is *above* if rho > tau. A tie is not above, for reals and fakes alike (the released code treats them apart).
The rule turns the odds above : below of whatever it is applied to into `ratio` times those odds, in two ways:

    accept/reject   ratio >= 1: everything above, below with probability 1 / ratio
                    ratio <  1: everything below, above with probability ratio
    weighted draws  weight `ratio` above, 1 below

`ratio = w_real / w_fake`. A GAN whose discriminator sees reals weighted by w_real and fakes by w_fake has its fixed
point at p_fake ~ p_real w_real / w_fake (arXiv 2407.08659's Algorithm 3 sets w_fake = 1 / w_real: the ratio is w^2).
Diffusion training has no fakes: the ratio is w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler


def ratio_of(*, w_real: float, w_fake: float = 1.0) -> float:
    """The effective ratio above : below of a GAN trained with these weights above the threshold."""
    if not (w_real > 0 and w_fake > 0):
        raise ValueError(f"w_real = {w_real} and w_fake = {w_fake} must be positive: 1 leaves a side as it is")
    return w_real / w_fake


def check_ratio(ratio: float) -> float:
    """`ratio` as a float; 0 (nothing above) and inf (nothing below) are allowed."""
    if not ratio >= 0:
        raise ValueError(f"ratio = {ratio} must be >= 0: above 1 for typical samples, below 1 for rare ones")
    return float(ratio)


def above(scores: Tensor, threshold: float) -> Tensor:
    """Bool [N]: rho > threshold. Raises ValueError for scores that are not finite."""
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(
            f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} scores are not finite: check features"
        )
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN: take it from PseudoDensity.threshold(quantile)")
    return scores > threshold


def acceptance_probability(scores: Tensor, *, threshold: float, ratio: float) -> Tensor:
    """Probability [N] float64 with which the rule accepts samples of these scores [N]."""
    ratio = check_ratio(ratio)
    high, low = (1.0, 1 / ratio) if ratio >= 1 else (ratio, 1.0)
    return torch.where(above(scores, threshold), high, low).double()


@dataclass(frozen=True)
class Forecast:
    """What accept/reject will do, from the share of generated samples that lie above the threshold.

    Attributes:
        share_above: pi, before. acceptance: a. share_above_after: among the accepted.
        calls_per_sample: 1 / a, generated samples per accepted one; inf if nothing can be accepted.
    """

    ratio: float
    share_above: float
    acceptance: float
    share_above_after: float
    calls_per_sample: float

    def calls(self, n: int, *, sd: float = 0.0) -> float:
        """Generated samples until n are accepted: the mean, plus `sd` standard deviations (negative binomial)."""
        if self.acceptance == 0:
            return math.inf
        return n / self.acceptance + sd * math.sqrt(n * (1 - self.acceptance)) / self.acceptance


def forecast(share_above: float, *, ratio: float) -> Forecast:
    """The closed forms of the two-level rule; `share_above` comes from a pilot batch of the generator.

    a = pi + (1 - pi) / w for w >= 1 and (1 - pi) + w pi below; afterwards w pi / (w pi + 1 - pi) lie above.
    """
    ratio = check_ratio(ratio)
    if not 0 <= share_above <= 1:
        raise ValueError(
            f"share_above = {share_above} must be between 0 and 1: the share of generated samples above tau"
        )
    pi = float(share_above)
    high, low = (pi, (1 - pi) / ratio) if ratio >= 1 else (ratio * pi, 1 - pi)
    rate = high + low
    return Forecast(ratio, pi, rate, high / rate if rate else math.nan, 1 / rate if rate else math.inf)


def training_weights(scores: Tensor, *, threshold: float, ratio: float) -> Tensor:
    """Probabilities [N] float64, sum 1, with which training samples of these scores are drawn.

    Raises ValueError if the ratio leaves nothing to draw.
    """
    ratio = check_ratio(ratio)
    is_above = above(scores, threshold)
    high, low = (1.0, 1 / ratio) if ratio >= 1 else (ratio, 1.0)
    weights = torch.where(is_above, high, low).double()
    if not float(weights.sum()) > 0:
        raise ValueError(
            f"ratio = {ratio} leaves no sample to draw: {int(is_above.sum())} of {len(scores)} lie above tau"
        )
    return weights / weights.sum()


def reweighted(p: Tensor, *, w_real: Tensor | float = 1.0, w_fake: Tensor | float = 1.0) -> Tensor:
    """The fixed point p_fake ~ p w_real / w_fake of a histogram p [bins], normalised to sum 1."""
    out = p.double() * torch.as_tensor(w_real, dtype=torch.float64) / torch.as_tensor(w_fake, dtype=torch.float64)
    return out / out.sum()


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
