"""Frechet distance between Gaussian fits (FID when the features are Inception pool3), and how far to trust it.

    FD2 = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)            (Dowson & Landau 1982; Heusel et al. 2017)

The last trace is the nuclear norm of A B^T for *any* factors S_1 = A^T A, S_2 = B^T B. Centred features divided by
sqrt(n - ddof) are such factors, which gives the exact answer for small n from an n x n matrix; Cholesky factors (full
rank) and symmetric roots restricted to the numerical rank are others. No general matrix square root, no ridge, no
SciPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.metrics.checks import as_features, work_device
from labkit.metrics.gaussian import GaussianStats, require_same_fingerprint, rows_root
from labkit.metrics.noise_floor import law_spectrum, noise_floor

SOLVERS = ("auto", "gram", "eigvalsh", "svd")
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class FrechetResult:
    """A Frechet distance and what is needed to judge it; `float(result)` is the value.

    Attributes:
        value: squared distance FD2 (what papers call FID), in squared feature units.
        mean_term: |mu_1 - mu_2|^2.
        covariance_term: tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2), the squared Bures distance of the covariances.
        n_real, n_fake: sample counts (None: unknown).
        dimension: number of features.
        rank: numerical rank of the product of the two covariances.
        solver: "gram", "eigvalsh" or "svd".
        ddof: covariances divide by n - ddof.
        noise_floor: what two samples of one law, between the two at hand, would read on average at these sizes instead
            of 0 (`noise_floor`; None: unknown sizes, or not asked for). Within 10% for n > 3 d; a third too low for
            n < d / 2, where most of the law's directions are unseen: use `frechet_null` there.
        warnings: sentences to print next to the value.
    """

    value: float
    mean_term: float
    covariance_term: float
    n_real: int | None
    n_fake: int | None
    dimension: int
    rank: int
    solver: str
    ddof: int
    noise_floor: float | None
    warnings: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.value


def frechet_distance(
    *, real: object, fake: object, ddof: int = 1, solver: str = "auto", floor: bool = True
) -> FrechetResult:
    """Squared Frechet distance (FID, arXiv 1706.08500) between two sets of features, or of their saved statistics:
    |mu_r - mu_f|^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)).

    Args:
        real, fake: features [N, d] (float32 or float64) or `GaussianStats`; the two kinds can be mixed.
        ddof: covariances divide by n - ddof; statistics must have been built with the same.
        solver: "auto"; or "gram" (singular values of the n_real x n_fake cross-Gram matrix; needs features on both
            sides), "eigvalsh" (Cholesky root and a symmetric eigenproblem; needs full rank), "svd" (roots restricted to
            the numerical rank and singular values; always works).
        floor: False leaves out the noise floor and its warning, which take most of the time when samples are few; for
            loops over many sets of one size.

    Returns:
        FrechetResult. The value is never negative.

    Raises:
        ValueError: bad features, different widths, different fingerprints, other ddof, or a solver that cannot be used.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: use one of {', '.join(SOLVERS)}")
    real, fake = (_side(name, side, ddof) for name, side in (("real", real), ("fake", fake)))
    warnings = _check_pair(real, fake)
    d = real.shape[1] if isinstance(real, Tensor) else real.dimension
    both_features = isinstance(real, Tensor) and isinstance(fake, Tensor)
    if solver == "gram" and not both_features:
        raise ValueError('solver "gram" needs features on both sides, got statistics: pass features or solver="auto"')
    if solver == "gram" or (solver == "auto" and both_features and len(real) * len(fake) <= d * d):
        sigma, solver = torch.linalg.svdvals(rows_root(real, ddof) @ rows_root(fake, ddof).T), "gram"
    else:
        real, fake = (
            GaussianStats.from_features(side, ddof=ddof) if isinstance(side, Tensor) and len(side) > d else side
            for side in (real, fake)
        )
        sigma, solver = _singular_values(real, fake, ddof, solver)
    (mean_r, trace_r), (mean_f, trace_f) = (_mean_and_trace(side, ddof) for side in (real, fake))
    sigma = sigma.clamp(min=0)
    mean_term = float((mean_r - mean_f).square().sum())
    covariance_term = trace_r + trace_f - 2 * float(sigma.sum())
    if -1e-7 * (trace_r + trace_f) <= covariance_term < 0:  # a squared distance: below zero is rounding
        covariance_term = 0.0
    value = mean_term + covariance_term
    n_real, n_fake = (len(s) if isinstance(s, Tensor) else s.n for s in (real, fake))
    expected = None
    if n_real is not None and n_fake is not None:
        if floor:
            expected = noise_floor(law_spectrum(real, fake, sigma, n_real, n_fake, d), n_real=n_real, n_fake=n_fake)
            if expected > value / 4:
                warnings.append(
                    f"the noise floor {expected:.4g} is more than a quarter of the value {value:.4g}: add samples"
                )
        if min(n_real, n_fake) <= d:
            warnings.append(f"{min(n_real, n_fake)} samples for {d} features: the covariance is singular, use KID too")
    rank = int((sigma > len(sigma) * EPS * sigma.max()).sum()) if len(sigma) else 0
    return FrechetResult(
        value, mean_term, covariance_term, n_real, n_fake, d, rank, solver, ddof, expected, tuple(warnings)
    )


def _side(name: str, side: object, ddof: int) -> Tensor | GaussianStats:
    if not isinstance(side, GaussianStats):
        if ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 or 1, got {ddof!r}: 1 divides by n - 1, 0 by n")
        return as_features(name, side)
    if side.ddof != ddof:
        raise ValueError(f"{name} has ddof = {side.ddof} but ddof = {ddof} was asked for: rebuild it or pass ddof=")
    side._require_rows(2)
    return side


def _check_pair(real: Tensor | GaussianStats, fake: Tensor | GaussianStats) -> list[str]:
    """Widths and fingerprints; returns the warnings."""
    widths = [side.shape[1] if isinstance(side, Tensor) else side.dimension for side in (real, fake)]
    if widths[0] != widths[1]:
        raise ValueError(f"real has {widths[0]} features but fake has {widths[1]}: use the same extractor for both")
    stats = [side for side in (real, fake) if isinstance(side, GaussianStats)]
    if len(stats) == 2:
        require_same_fingerprint(real, fake, ("real", "fake"))
    known = sum(side.fingerprint is not None for side in stats)
    return ["only one side says how its features were made (fingerprint)"] if known == 1 else []


def _mean_and_trace(side: Tensor | GaussianStats, ddof: int) -> tuple[Tensor, float]:
    if isinstance(side, GaussianStats):
        return side.mean.cpu(), side.total_variance
    rows = side.to(work_device(side)).double()
    mean = rows.mean(dim=0)
    return mean.cpu(), float((rows - mean).square().sum()) / (len(rows) - ddof)


def _singular_values(
    real: Tensor | GaussianStats, fake: Tensor | GaussianStats, ddof: int, solver: str
) -> tuple[Tensor, str]:
    """Singular values of A B^T, so that their sum is tr (S_1 S_2)^(1/2), and the solver that found them."""
    enough = all(
        isinstance(side, GaussianStats) and (side.n is None or side.n > side.dimension) for side in (real, fake)
    )
    if solver == "eigvalsh" and not (enough and all(_cholesky(side) is not None for side in (real, fake))):
        raise ValueError('solver "eigvalsh" needs covariances of full rank: use solver="auto" or more samples')
    if solver != "svd" and enough and _cholesky(real) is not None:
        lower = _cholesky(real)
        sandwich = _lower_of_triangular_sandwich(lower, fake.covariance.to(lower.device))
        squared = torch.linalg.eigvalsh(sandwich).clamp(min=0)
        # Each eigenvalue errs by about EPS * max, at random; the effect on the sum of the square roots is small unless
        # some are near 0, which also tells when the fake side is not of full rank.
        error = 4 * EPS * squared.max() * (1 / (4 * squared.clamp(min=EPS * squared.max()))).sum().sqrt()
        if solver == "eigvalsh" or float(error) <= 1e-10 * (real.total_variance + fake.total_variance):
            return squared.sqrt(), "eigvalsh"
    roots = [rows_root(side, ddof) if isinstance(side, Tensor) else _stats_root(side) for side in (real, fake)]
    return torch.linalg.svdvals(roots[0] @ roots[1].to(roots[0].device).T), "svd"


def _cholesky(stats: GaussianStats) -> Tensor | None:
    """Lower Cholesky factor [d, d] of a covariance of safely full rank, else None. Cached on the statistics."""
    if "cholesky" not in stats.cache:
        factor = None
        if stats.n is None or stats.n > stats.dimension:
            covariance = stats.covariance
            factor, info = torch.linalg.cholesky_ex(covariance)
            pivots = factor.diagonal().square()  # what is left of each feature's variance after the previous ones
            if int(info) != 0 or bool((pivots < 1e-10 * covariance.diagonal()).any()):
                factor = None
        stats.cache["cholesky"] = factor
    return stats.cache["cholesky"]


def _stats_root(stats: GaussianStats) -> Tensor:
    """A factor A [r, d] of the covariance, A^T A = S: Cholesky at full rank, else the symmetric root restricted to the
    eigenvectors above rounding. Cached on the statistics."""
    if _cholesky(stats) is not None:
        return _cholesky(stats).T
    if "root" not in stats.cache:
        values, vectors = torch.linalg.eigh(stats.covariance)  # ascending
        keep = values > len(values) * EPS * values[-1].clamp(min=0)
        if stats.n is not None and stats.n <= len(values):
            keep[: len(values) - (stats.n - 1)] = False  # n samples span at most n - 1 directions: the rest is rounding
        stats.cache["root"] = (vectors[:, keep] * values[keep].sqrt()).T
    return stats.cache["root"]


def _lower_of_triangular_sandwich(lower: Tensor, symmetric: Tensor, blocks: int = 4) -> Tensor:
    """L^T S L [d, d] with the zero blocks of L skipped and only the lower triangle filled (eigvalsh reads no more):
    0.94 instead of 2 matrix products."""
    d = len(lower)
    edges = [round(i * d / blocks) for i in range(blocks + 1)]
    out = torch.zeros_like(symmetric)
    for c0, c1 in zip(edges, edges[1:], strict=False):
        product = symmetric[:, c0:] @ lower[c0:, c0:c1]  # [d, c1 - c0]
        for r0, r1 in zip(edges, edges[1:], strict=False):
            if r0 >= c0:
                out[r0:r1, c0:c1] = lower[r0:, r0:r1].T @ product[r0:]
    return out
