"""Win rates of one model against another, with the prompt as the unit of everything.

Images of one prompt resemble each other, so comparisons are first averaged inside their prompt; intervals, tests and
sample sizes then count prompts. Wilson (1927) interval without ties, cluster bootstrap with them, exact sign test.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from labkit.metrics.checks import plain_list, whole_number

NORMAL = NormalDist()


@dataclass(frozen=True)
class WinRateResult:
    """A win rate over prompts; `float(result)` is the value.

    Attributes:
        value: mean over prompts of the prompt's average outcome (win 1, tie 0.5, loss 0), which is
            (wins + ties / 2) / n without repeats inside prompts.
        low, high: confidence interval. level: its level. method: "wilson", "percentile" or "bca".
        wins, losses, ties: prompts whose average outcome is above, below, at 0.5.
        p_value: exact two-sided sign test on the prompts that are not tied.
        prompts, comparisons: how many of each.
    """

    value: float
    low: float
    high: float
    level: float
    method: str
    wins: int
    losses: int
    ties: int
    p_value: float
    prompts: int
    comparisons: int

    def __float__(self) -> float:
        return self.value


def outcomes(*, candidate: object, baseline: object, tie_margin: float = 0.0) -> np.ndarray:
    """Outcomes [n] of paired scores [n]: 1 where the candidate is better, 0 where worse, 0.5 within `tie_margin`."""
    candidate, baseline = _vector("candidate", candidate), _vector("baseline", baseline)
    if len(candidate) != len(baseline):
        raise ValueError(f"{len(candidate)} candidate scores but {len(baseline)} baseline scores: pass pairs")
    if not tie_margin >= 0:
        raise ValueError(f"tie_margin must be >= 0, got {tie_margin!r}")
    difference = candidate - baseline
    return np.where(np.abs(difference) <= tie_margin, 0.5, (difference > 0).astype(float))


def win_rate(
    outcome: object,
    *,
    prompts: Sequence[Hashable] | None = None,
    level: float = 0.95,
    method: str = "auto",
    resamples: int = 10_000,
    generator: np.random.Generator | None = None,
) -> WinRateResult:
    """Win rate of a candidate with interval and test.

    Args:
        outcome: [n] win 1, tie 0.5, loss 0 (see `outcomes`), one entry per comparison.
        prompts: [n] the prompt of each comparison; None: every comparison is a prompt of its own.
        method: "wilson" (needs every prompt to be a plain win or loss), "percentile" or "bca" (cluster bootstrap over
            prompts), or "auto": Wilson where it applies, else BCa.
        generator: NumPy generator of the bootstrap; needed when one is used.

    Raises:
        ValueError: outcomes other than 0, 0.5, 1, a wrong number of prompts, or Wilson with ties or split prompts.
    """
    outcome = _vector("outcome", outcome)
    if not np.isin(outcome, (0.0, 0.5, 1.0)).all():
        raise ValueError("outcome must hold 1 (win), 0.5 (tie) and 0 (loss) only: make it with outcomes(...)")
    per_prompt = average_by_prompt(outcome, prompts)
    n = len(per_prompt)
    wins, losses = int((per_prompt > 0.5).sum()), int((per_prompt < 0.5).sum())
    plain = bool(np.isin(per_prompt, (0.0, 1.0)).all())
    if method == "auto":
        method = "wilson" if plain else "bca"
    if method == "wilson":
        if not plain:
            raise ValueError('Wilson needs a plain win or loss for every prompt: use method="bca" with a generator')
        low, high = wilson_interval(wins, n, level=level)
    else:
        low, high = cluster_bootstrap(per_prompt, level=level, method=method, resamples=resamples, generator=generator)
    return WinRateResult(
        value=float(per_prompt.mean()),
        low=low,
        high=high,
        level=level,
        method=method,
        wins=wins,
        losses=losses,
        ties=n - wins - losses,
        p_value=sign_test(wins, losses),
        prompts=n,
        comparisons=len(outcome),
    )


def average_by_prompt(values: object, prompts: Sequence[Hashable] | None) -> np.ndarray:
    """Mean of `values` [n] inside each prompt, in order of first appearance."""
    values = _vector("values", values)
    if prompts is None:
        return values
    prompts = plain_list(prompts)
    if len(prompts) != len(values):
        raise ValueError(f"{len(prompts)} prompts for {len(values)} values: pass one prompt per value")
    index: dict[Hashable, int] = {}
    groups = np.array([index.setdefault(prompt, len(index)) for prompt in prompts])
    return np.bincount(groups, weights=values) / np.bincount(groups)


def wilson_interval(wins: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (60 of 100: 0.502 to 0.691)."""
    wins, n = whole_number("wins", wins), whole_number("n", n)
    if not 0 <= wins <= n or n < 1:
        raise ValueError(f"need 0 <= wins <= n and n >= 1, got wins = {wins}, n = {n}")
    z = NORMAL.inv_cdf(0.5 + _level(level) / 2)
    p, shrink = wins / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / shrink
    return (0.0 if wins == 0 else max(0.0, centre - half)), (1.0 if wins == n else min(1.0, centre + half))


def cluster_bootstrap(
    per_prompt: object,
    *,
    generator: np.random.Generator | None,
    level: float = 0.95,
    method: str = "bca",
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Bootstrap interval of the mean of per-prompt values [n]: whole prompts are resampled.

    Args:
        method: "percentile", or "bca" (bias-corrected and accelerated, Efron 1987).

    Raises:
        ValueError: unknown method, fewer than 2 prompts, or no generator.
    """
    values, resamples = _vector("per_prompt", per_prompt), whole_number("resamples", resamples)
    if method not in ("percentile", "bca"):
        raise ValueError(f'unknown method {method!r}: use "wilson", "percentile" or "bca"')
    if generator is None:
        raise ValueError("the bootstrap draws at random but no generator was given: pass np.random.default_rng(seed)")
    if len(values) < 2 or resamples < 100:
        raise ValueError(f"need >= 2 prompts and >= 100 resamples, got {len(values)} and {resamples}")
    n = len(values)
    if np.ptp(values) == 0:  # nothing varies, nothing to resample
        return float(values[0]), float(values[0])
    step = max(1, 2_000_000 // n)
    means = np.concatenate(
        [
            values[generator.integers(0, n, size=(min(step, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, step)
        ]
    )
    tails = np.array([0.5 - _level(level) / 2, 0.5 + level / 2])
    if method == "bca":
        observed = values.mean()
        below = ((means < observed).sum() + 0.5 * (means == observed).sum()) / resamples
        bias = NORMAL.inv_cdf(float(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
        gap = values - observed  # the jackknife skewness of a mean
        acceleration = (gap**3).sum() / (6 * (gap**2).sum() ** 1.5)
        z = bias + np.array([NORMAL.inv_cdf(float(t)) for t in tails])
        tails = np.array([NORMAL.cdf(float(v)) for v in bias + z / (1 - acceleration * z)])
    low, high = np.quantile(means, tails)
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided sign test of wins against losses, ties left out (60 : 40 gives p = 0.057)."""
    wins, losses = whole_number("wins", wins), whole_number("losses", losses)
    if wins < 0 or losses < 0:
        raise ValueError(f"counts must be >= 0, got {wins} and {losses}")
    n, tail = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    term, total = 1, 1  # binomial coefficients as exact integers
    for i in range(tail):
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2**n)


def sample_size(rate: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Prompts needed to tell a true win rate from 0.5 (two-sided test at alpha): 0.6 needs 194, 0.52 needs 4904."""
    if not 0 < rate < 1 or rate == 0.5:
        raise ValueError(f"rate must be in (0, 1) and not 0.5, got {rate!r}: no sample tells 0.5 from 0.5")
    z_alpha, z_beta = NORMAL.inv_cdf(1 - alpha / 2), NORMAL.inv_cdf(power)
    root = (0.5 * z_alpha + math.sqrt(rate * (1 - rate)) * z_beta) / (rate - 0.5)
    return math.ceil(root**2)


def holm(p_values: object) -> np.ndarray:
    """Holm's step-down adjusted p-values [m] for m claims made together."""
    p = _vector("p_values", p_values)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p-values must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    out = np.empty_like(adjusted)
    out[order] = adjusted
    return out


def _vector(name: str, values: object) -> np.ndarray:
    array = np.asarray(plain_list(values), dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must be a non-empty 1-D sequence of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite values: drop those comparisons")
    return array


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}: 0.95 is usual")
    return level


def krippendorff_alpha(labels: Sequence[Sequence[Hashable | None]]) -> float:
    """Krippendorff's alpha for nominal labels: 1 is perfect agreement, 0 is chance.

    labels: one list per rater, equally long, None where a rater gave no label. Unlike Cohen's kappa it takes any number
    of raters and gaps. Items with fewer than two labels do not count; one label throughout is 1 by convention.
    Raises ValueError for fewer than two raters, lists of unequal length, and no item that two raters labelled.
    """
    labels = [plain_list(rater) for rater in labels]
    if len(labels) < 2 or len({len(rater) for rater in labels}) != 1:
        raise ValueError(
            f"got {len(labels)} raters with {[len(r) for r in labels]} labels: expected equally long lists"
        )
    items = [[label for label in item if label is not None] for item in zip(*labels, strict=True)]
    items = [item for item in items if len(item) > 1]
    if not items:
        raise ValueError("no item has labels by two raters: agreement is not defined")
    totals: dict[Hashable, int] = {}
    observed = 0.0  # pairs of different labels inside an item; an item of m labels counts m
    for item in items:
        for label in item:
            totals[label] = totals.get(label, 0) + 1
            observed += sum(label != other for other in item) / (len(item) - 1)
    n = sum(totals.values())
    expected = sum(count * (n - count) for count in totals.values()) / (n - 1)
    return 1.0 if expected == 0 else 1 - observed / expected
