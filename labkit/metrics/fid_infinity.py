"""What sample size does to a Frechet distance: extrapolation to infinite samples, and the permutation null."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.metrics.checks import as_features, whole_number
from labkit.metrics.frechet import frechet_distance
from labkit.metrics.gaussian import GaussianStats


@dataclass(frozen=True)
class FidInfinityResult:
    """Intercept of a straight line through FD2 against 1/N (Chong & Forsyth 2020); `float(result)` is the value.

    Attributes:
        value: FD2 at 1/N = 0. slope: of the line. standard_error: of the intercept from the line's residuals; too
            small, because every point reuses the same pool.
        sizes: numbers of fakes tried. values: FD2 at each.
        warnings: sentences to print next to the value.
    """

    value: float
    slope: float
    standard_error: float
    sizes: tuple[int, ...]
    values: tuple[float, ...]
    warnings: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.value


def fid_infinity(
    *,
    real: object,
    fake: object,
    generator: torch.Generator,
    points: int = 15,
    smallest: int | None = None,
    ddof: int = 1,
) -> FidInfinityResult:
    """Frechet distance extrapolated to infinitely many fakes.

    Args:
        real: features [n_real, d] or GaussianStats. The bias from a small real set stays in the value.
        fake: features [n_fake, d], the pool that the subsets are drawn from (without replacement).
        generator: CPU generator that draws the subsets.
        points: sizes, evenly spaced from `smallest` to n_fake.
        smallest: smallest size (default n_fake // 10, at least 2; the paper starts at 5000).
        ddof: covariances divide by n - ddof.

    Raises:
        ValueError: bad features, or fewer than 2 different sizes.
    """
    fake = as_features("fake", fake)
    if not isinstance(real, GaussianStats):
        real = as_features("real", real)
        if len(real) * len(fake) > fake.shape[1] ** 2:
            real = GaussianStats.from_features(real, ddof=ddof)  # its root is then computed once
    n = len(fake)
    points = whole_number("points", points)
    smallest = max(2, n // 10) if smallest is None else whole_number("smallest", smallest)
    if not 2 <= smallest < n or points < 2:
        raise ValueError(
            f"cannot place {points} sizes from {smallest} to {n}: need points >= 2 and 2 <= smallest < {n}"
        )
    sizes = sorted({round(smallest + (n - smallest) * i / (points - 1)) for i in range(points)})
    values = []
    for size in sizes:
        subset = torch.randperm(n, generator=generator)[:size].to(fake.device)
        values.append(frechet_distance(real=real, fake=fake[subset], ddof=ddof, floor=False).value)
    n_real = real.n if isinstance(real, GaussianStats) else len(real)
    warnings = ()
    if n_real is not None and n_real <= n:
        warnings = (f"only {n_real} reals for {n} fakes: the bias of the real side stays in the value",)
    return extrapolate(sizes, values, warnings=warnings)


def extrapolate(sizes: list[int], values: list[float], *, warnings: tuple[str, ...] = ()) -> FidInfinityResult:
    """Least-squares line through values against 1 / sizes, read off at 0."""
    x = 1 / torch.as_tensor(sizes, dtype=torch.float64)
    y = torch.as_tensor(values, dtype=torch.float64)
    if x.ndim != 1 or x.shape != y.shape or len(set(sizes)) < 2:
        raise ValueError(f"need at least 2 different sizes and one value each, got {len(sizes)} and {len(values)}")
    dx = x - x.mean()
    slope = float((dx * (y - y.mean())).sum() / dx.square().sum())
    value = float(y.mean()) - slope * float(x.mean())
    residual = float((y - value - slope * x).square().sum()) / max(len(x) - 2, 1)
    error = (residual * (1 / len(x) + float(x.mean()) ** 2 / float(dx.square().sum()))) ** 0.5
    return FidInfinityResult(value, slope, error, tuple(sizes), tuple(map(float, values)), warnings)


def frechet_null(
    *, real: object, fake: object, rounds: int, generator: torch.Generator, ddof: int = 1
) -> tuple[Tensor, float]:
    """Permutation null of the Frechet distance: shuffle who is real and who is fake, measure again.

    The honest noise floor for few samples, and a test of "are these two laws different at all?".

    Args:
        real, fake: features [N, d]. rounds: shuffles. generator: CPU generator that draws them.

    Returns:
        values [rounds] under the null, and the p-value (1 + #{null >= observed}) / (1 + rounds).

    Raises:
        ValueError: bad features, or no rounds.
    """
    real, fake, rounds = as_features("real", real), as_features("fake", fake), whole_number("rounds", rounds)
    if rounds < 1:
        raise ValueError(f"rounds = {rounds} must be positive: p <= 0.05 needs 19 or more")
    observed = frechet_distance(real=real, fake=fake, ddof=ddof, floor=False).value
    pool = torch.cat([real, fake.to(real)])
    values = torch.empty(rounds, dtype=torch.float64)
    for i in range(rounds):
        order = torch.randperm(len(pool), generator=generator).to(pool.device)
        halves = pool[order[: len(real)]], pool[order[len(real) :]]
        values[i] = frechet_distance(real=halves[0], fake=halves[1], ddof=ddof, floor=False).value
    return values, float(1 + (values >= observed).sum()) / (1 + rounds)
