"""The equations of "Controlling the Fidelity and Diversity of Deep Generative Models via Pseudo Density"
(Li, Liu, Zhang, Le, Susstrunk, Salzmann; arXiv 2407.08659, TMLR 2024), one function each. Read this file first.

    definition      `mean_distance` d_k, `pseudo_density` rho, `quantile_threshold` tau
    method (i)      `push_step`: per-sample perturbation (Algorithm 1)
    method (ii)     `above`, `acceptance_probability`, `forecast`: importance sampling at inference
    method (iii)    `training_weights`, `ratio_of`, `fixed_point`: fine-tuning with importance sampling (Algorithm 3)
    beyond it       `expected_distance`: what d_k is where the true density is known

Symbols: F(x) features, k neighbours, n exponent, N reals, tau threshold, w weight of the side above tau, pi share above
tau, delta change of the noise z, alpha step, eps half width of the box. The paper's `w` is called `ratio` where it
stands for w_real / w_fake. Definitions follow the authors' algorithms and released code, which leave fewer questions
open than the text; places are named by algorithm or method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.metrics import nearest_neighbours

FLOOR = 1e-3

# ---- the measure ----------------------------------------------------------------------------------------------------


def mean_distance(features: object, k: int, *, queries: object | None = None) -> Tensor:
    """d_k(x) = 1/k sum_{j=1..k} | F(x) - F(nn_j(x)) |_2, the mean distance to the k nearest neighbours among
    the reals (2407.08659, definition of pseudo density; released code: k = 10 or 20).

    Args:
        features: F of the reals [N, d].
        k: neighbours that are averaged.
        queries: F of other samples [Q, d]; None: the reals themselves, each left out of its own neighbours.

    Returns:
        d_k [N] (or [Q]), float64, in feature units. A query that is a copy of a real has a first distance of 0.

    Raises:
        ValueError: features that are not [N, d] or not finite, or k out of range (k < N, with queries k <= N).
    """
    return nearest_neighbours(features, k, queries=queries)[0].mean(dim=1)


def pseudo_density(distance: Tensor, reals: Tensor, *, exponent: float = 1.0, floor: float = FLOOR) -> Tensor:
    """The pseudo density rho(x) = (1 / d_k(x))^n / mean over the reals of the same (2407.08659, its definition).

    The reals have mean 1: rho is "times the average density". The released code has n = 1; a larger exponent stretches
    the scale and leaves ranks and quantiles alone.

    Args:
        distance: d_k [Q] of the samples, see `mean_distance`.
        reals: d_k [N] of the reals, each without itself.
        exponent: n > 0.
        floor: no d_k is taken below `floor` times its mean over the reals (an addition): more than k copies of one
            picture would have infinite density.

    Returns:
        rho [Q] > 0 in the dtype of `distance`, with gradients if `distance` has them.
    """
    lowest = floor * float(reals.mean()) or 1.0  # all reals equal: every d_k is floored to 1

    def raw(d: Tensor) -> Tensor:
        return d.clamp(min=lowest) ** -exponent

    return raw(distance) / float(raw(reals).mean())


def quantile_threshold(rho: Tensor, quantile: float) -> float:
    """tau, the `quantile` (0..1) of the reals' rho [N] (2407.08659, method (ii)).

    Distances concentrate in many dimensions, so thresholds are quantiles, never absolute numbers.

    Raises:
        ValueError: a quantile outside 0..1.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile = {quantile} must be between 0 and 1: 0.8 has a fifth of the reals above it")
    return float(torch.quantile(rho.cpu(), quantile))


def expected_distance(k: int, d: int, intensity: float) -> float:
    """E d_k in a homogeneous Poisson process of `intensity` points per unit volume in d dimensions (own derivation).

    The j-th distance has mean Gamma(j + 1/d) / Gamma(j) (intensity V_d)^(-1/d), V_d the unit ball; the average over
    j <= k telescopes to Gamma(k + 1 + 1/d) / ((1 + 1/d) Gamma(k + 1)). So log rho falls with log density / d.
    """
    ball = math.pi ** (d / 2) / math.gamma(d / 2 + 1)
    bracket = math.exp(math.lgamma(k + 1 + 1 / d) - math.lgamma(k + 1)) / (1 + 1 / d)
    return bracket * (intensity * ball) ** (-1 / d)


# ---- method (i): perturbation of one sample -------------------------------------------------------------------------


def push_step(delta: Tensor, gradient: Tensor, alpha: float, eps: float, *, raw: bool = False) -> Tensor:
    """One ascent step on the objective rho(F(G(z + delta))) in the box max |delta| <= eps (2407.08659, Algorithm 1).

    Args:
        delta: the change so far [B, ...], 0 at the start.
        gradient: of the objective with respect to delta [B, ...]; its negative descends, to rarer samples.
        alpha: step length. eps: half width of the box.
        raw: step along alpha x gradient, as the paper's figure writes it; False: along alpha x sign(gradient), as the
            released code does, so that eps / alpha steps reach the wall whatever the scale of rho.

    Returns:
        The next delta [B, ...].
    """
    return (delta + alpha * (gradient if raw else gradient.sign())).clamp(-eps, eps)


# ---- method (ii): accept or reject ----------------------------------------------------------------------------------


def check_ratio(ratio: float) -> float:
    """`ratio` as a float; 0 (nothing above) and inf (nothing below) are allowed."""
    if not ratio >= 0:
        raise ValueError(f"ratio = {ratio} must be >= 0: above 1 for typical samples, below 1 for rare ones")
    return float(ratio)


def above(scores: Tensor, threshold: float) -> Tensor:
    """Bool [N]: rho > tau (2407.08659, method (ii)). A tie is not above, for reals and fakes alike; the released code
    treats the two apart.

    Raises:
        ValueError: scores that are not finite, or a threshold that is NaN.
    """
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(
            f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} scores are not finite: check features"
        )
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN: take it from PseudoDensity.threshold(quantile)")
    return scores > threshold


def acceptance_probability(scores: Tensor, *, threshold: float, ratio: float) -> Tensor:
    """Importance sampling as rejection sampling by a two-level rule (2407.08659, (ii)): the acceptance probability of a
    sample of score rho.

        w >= 1: 1 above tau, 1/w below          w < 1: w above tau, 1 below

    The odds above : below of whatever it is applied to become w times those odds.

    Args:
        scores: rho [N]. threshold: tau. ratio: w in [0, inf].

    Returns:
        Probabilities [N] float64.

    Raises:
        ValueError: a negative ratio, or scores that are not finite.
    """
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
    """What the two-level rule does and costs, in closed form (derived from 2407.08659's rule, method (ii)).

        a = pi + (1 - pi) / w  for w >= 1,  (1 - pi) + w pi  for w < 1;   1 / a generated samples per accepted one
        share above tau afterwards = w pi / (w pi + 1 - pi)

    Args:
        share_above: pi, the share (0..1) of *generated* samples above tau, as a pilot batch shows it. ratio: w.

    Raises:
        ValueError: a share outside 0..1 or a negative ratio.
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


# ---- method (iii): weighted training --------------------------------------------------------------------------------


def training_weights(scores: Tensor, *, threshold: float, ratio: float) -> Tensor:
    """Importance weights (importance sampling weights) of training: how probably each sample is drawn, w above tau to 1
    below (2407.08659, method (iii) and the first step of Algorithm 3; draws are with replacement).

    Args:
        scores: rho [N] of the training set. threshold: tau. ratio: w in [0, inf].

    Returns:
        Probabilities [N] float64, sum 1.

    Raises:
        ValueError: the ratio leaves nothing to draw, is negative, or scores are not finite.
    """
    weights = acceptance_probability(scores, threshold=threshold, ratio=ratio)  # w : 1, the larger one scaled to 1
    if not float(weights.sum()) > 0:
        raise ValueError(
            f"ratio = {ratio} leaves no sample to draw: {int(above(scores, threshold).sum())} of {len(scores)} "
            "lie above tau"
        )
    return weights / weights.sum()


def ratio_of(*, w_real: float, w_fake: float = 1.0) -> float:
    """The effective ratio w_real / w_fake above : below of a GAN whose discriminator sees reals and fakes with these
    weights above tau (2407.08659, Algorithm 3, which sets w_fake = 1 / w_real: the ratio is w^2).

    Diffusion training has no fakes: the ratio is w.
    """
    if not (w_real > 0 and w_fake > 0):
        raise ValueError(f"w_real = {w_real} and w_fake = {w_fake} must be positive: 1 leaves a side as it is")
    return w_real / w_fake


def fixed_point(p: Tensor, *, w_real: Tensor | float = 1.0, w_fake: Tensor | float = 1.0) -> Tensor:
    """Where weighted training leads: p_fake ~ p_real w_real / w_fake (own derivation; no theorem of the paper).

    Args:
        p: histogram of the reals [bins]. w_real, w_fake: weights [bins] that the discriminator sees.

    Returns:
        Histogram [bins] float64, sum 1.
    """
    out = p.double() * w_real / w_fake
    return out / out.sum()
