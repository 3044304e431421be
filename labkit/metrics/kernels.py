"""Kernel two-sample distances: KID (polynomial kernel, unbiased) and CMMD (Gaussian kernel, biased), in blocks.

    MMD2 = E k(x, x') + E k(y, y') - 2 E k(x, y)                                       (Gretton et al. 2012)

KID: k(a, b) = (a.b / d + 1)^3 without the diagonal terms (Binkowski et al. 2018). CMMD: k(a, b) =
exp(-|a - b|^2 / 2 s^2) on unit-norm CLIP embeddings, s = 10, diagonal included, times 1000 (Jayasumana et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.metrics.checks import as_features, same_width, whole_number, work_device
from labkit.metrics.cubic import CubicKernel, suits

Kernel = Callable[[Tensor, Tensor], Tensor]
BLOCK = 2048
SMALL = 4096  # pictures of both sides together


@dataclass(frozen=True)
class KernelResult:
    """A kernel distance; `float(result)` is the value.

    Attributes:
        value: estimate of MMD2. The unbiased estimate can be negative.
        standard_error: delete-one jackknife (all pairs; about sqrt(2) too large when the laws are equal), or None.
        subset_std: standard deviation over subsets, None for all pairs. Subsets overlap: it is not a standard error.
        estimator: "all_pairs" or "subsets". n_real, n_fake: samples that were passed.
    """

    value: float
    standard_error: float | None
    subset_std: float | None
    estimator: str
    n_real: int
    n_fake: int

    def __float__(self) -> float:
        return self.value


def kernel_distance(
    *,
    real: object,
    fake: object,
    subsets: int = 0,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
) -> KernelResult:
    """The kernel distance, Kernel Inception Distance (KID, arXiv 1801.01401): unbiased MMD2 with the kernel
    (gamma a.b + coef)^degree.

    Features in float64, and all pairs of up to `SMALL` pictures, are multiplied and summed in float64. Larger sets and
    subsets of float32 and half precision are multiplied in float32 once their common mean is taken out, and what is
    large is summed in float64 (`labkit.metrics.cubic`), in about half the time: the value then is that of float64 to
    1e-8 of the kernel's mean (1e-7 for subsets of a few dozen).

    Args:
        real: features [n_real, d]; fake: features [n_fake, d].
        subsets: 0 uses all pairs once (deterministic, lowest variance, standard error). A positive number averages over
            that many random subsets of `subset_size` from each side, as in papers (100 x 1000).
        subset_size: samples of each side in a subset, drawn without replacement, separately for the two sides.
        generator: CPU generator that draws the subsets; needed when subsets > 0.
        gamma: default 1 / d.

    Raises:
        ValueError: bad features, different widths, a subset larger than a side, or subsets without a generator.
    """
    real, fake, device = _pair(real, fake)
    gamma = 1 / real.shape[1] if gamma is None else gamma
    n, m = len(real), len(fake)
    subsets, subset_size = whole_number("subsets", subsets), whole_number("subset_size", subset_size)
    large = (subsets > 0 or n + m > SMALL) and suits(real, fake, degree, gamma, coef)
    cubic = CubicKernel(real, fake, gamma, coef) if large else None
    kernel = _polynomial(degree, gamma, coef)
    if subsets == 0:
        if cubic is not None:
            sums = cubic.within(0), cubic.within(1), *cubic.across()
        else:
            sums = _row_sums(real, kernel), _row_sums(fake, kernel), *_cross_sums(real, fake, kernel)
        value, error = _with_jackknife(*sums)
        return KernelResult(value, error, None, "all_pairs", n, m)
    if generator is None:
        raise ValueError("subsets are drawn at random but no generator was given: pass generator=torch.Generator()")
    if not 2 <= subset_size <= min(n, m):
        raise ValueError(
            f"subset_size = {subset_size} but real has {n} and fake {m} samples: pass subset_size <= {min(n, m)}"
        )
    rows, columns = [], []
    for _ in range(subsets):
        rows.append(torch.randperm(n, generator=generator)[:subset_size].to(device))
        columns.append(torch.randperm(m, generator=generator)[:subset_size].to(device))
    if cubic is not None:
        values = cubic.subsets(rows, columns).cpu()
    else:
        picked = ((real[x], fake[y]) for x, y in zip(rows, columns, strict=True))
        sums = ((_row_sums(x, kernel), _row_sums(y, kernel), *_cross_sums(x, y, kernel)) for x, y in picked)
        values = torch.tensor([_unbiased(*four) for four in sums], dtype=torch.float64)
    std = float(values.std(correction=0))
    return KernelResult(float(values.mean()), None, std, "subsets", n, m)


@dataclass(frozen=True)
class CmmdResult:
    """CMMD; `float(result)` is the value.

    Attributes:
        value: scale x biased MMD2, in [0, 2 scale). For unit vectors at sigma = 10 and scale = 1000 at most 39.603.
        bias: what the biased estimate adds on average when the laws are equal. unbiased: the U-statistic, scaled.
        sigma: kernel width used. mean_part: scale / sigma^2 |mean x - mean y|^2, which nearly is the value when sigma
            is far above the distances: at sigma = 10 CMMD compares the means of the embeddings and little else.
    """

    value: float
    bias: float
    unbiased: float
    sigma: float
    mean_part: float
    n_real: int
    n_fake: int

    def __float__(self) -> float:
        return self.value


def cmmd(
    *, real: object, fake: object, sigma: float | str = 10.0, scale: float = 1000.0, normalise: bool = True
) -> CmmdResult:
    """CLIP maximum mean discrepancy of embeddings [N, d], the minimum-variance (biased) estimate of the published code.

    Args:
        real, fake: embeddings; CLIP ViT-L/14@336 in the paper.
        sigma: kernel width; "median" takes the median distance over (at most 1000 evenly spaced rows of) both sets.
        scale: factor on MMD2.
        normalise: divide every row by its norm first.

    Raises:
        ValueError: bad features, different widths, a zero row to normalise, or sigma <= 0.
    """
    real, fake, _ = _pair(real, fake)
    if normalise:
        real, fake = real.double(), fake.double()
        norms = [x.norm(dim=1, keepdim=True) for x in (real, fake)]
        if min(float(v.min()) for v in norms) == 0:
            raise ValueError("an embedding is all zeros and has no direction: drop it or pass normalise=False")
        real, fake = real / norms[0], fake / norms[1]
    if sigma == "median":
        pool = torch.cat([x[:: -(-len(x) // 500)].double() for x in (real, fake)])
        sigma = float(torch.pdist(pool).median())
    if isinstance(sigma, str) or not float(sigma) > 0:
        raise ValueError(f'sigma must be a positive number or "median" of sets that are not constant, got {sigma!r}')
    kernel = _gaussian_minus_one(float(sigma))
    n, m = len(real), len(fake)
    # The ones left out of the kernel cancel in MMD2, and with them the digits that 1 - tiny would cost.
    sum_xx = sum(float(k.sum()) * (1 if i == j else 2) for i, j, k in _self_blocks(real, kernel))
    sum_yy = sum(float(k.sum()) * (1 if i == j else 2) for i, j, k in _self_blocks(fake, kernel))
    sum_xy = sum(float(k.sum()) for _, _, k in _cross_blocks(real, fake, kernel))
    cross = 2 * sum_xy / (n * m)
    biased = sum_xx / n**2 + sum_yy / m**2 - cross
    within = sum_xx / (n * (n - 1)), sum_yy / (m * (m - 1))  # diagonal terms are 0
    bias = -within[0] / n - within[1] / m
    mean_part = float((real.double().mean(dim=0) - fake.double().mean(dim=0)).square().sum()) / sigma**2
    return CmmdResult(
        value=scale * max(biased, 0.0),
        bias=scale * bias,
        unbiased=scale * (within[0] + within[1] - cross),
        sigma=float(sigma),
        mean_part=scale * mean_part,
        n_real=n,
        n_fake=m,
    )


def _pair(real: object, fake: object) -> tuple[Tensor, Tensor, torch.device]:
    real, fake = as_features("real", real), as_features("fake", fake)
    same_width(real, fake)
    device = work_device(real, fake)
    return real.to(device), fake.to(device), device


def _polynomial(degree: int, gamma: float, coef: float) -> Kernel:
    return lambda x, y: (x @ y.T).mul_(gamma).add_(coef).pow_(degree)


def _gaussian_minus_one(sigma: float) -> Kernel:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * (x @ y.T)
        return torch.expm1(squared.clamp_(min=0).div_(-2 * sigma**2))

    return kernel


def _self_blocks(x: Tensor, kernel: Kernel) -> Iterator[tuple[int, int, Tensor]]:
    """Upper-triangle blocks (start of rows, start of columns, kernel values in float64)."""
    for i in range(0, len(x), BLOCK):
        for j in range(i, len(x), BLOCK):
            yield i, j, kernel(x[i : i + BLOCK].double(), x[j : j + BLOCK].double())


def _cross_blocks(x: Tensor, y: Tensor, kernel: Kernel) -> Iterator[tuple[int, int, Tensor]]:
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            yield i, j, kernel(x[i : i + BLOCK].double(), y[j : j + BLOCK].double())


def _row_sums(x: Tensor, kernel: Kernel) -> Tensor:
    """sum_{j != i} k(x_i, x_j) for each i, [N]."""
    sums = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i, j, block in _self_blocks(x, kernel):
        if i == j:
            block.fill_diagonal_(0)
        else:
            sums[j : j + BLOCK] += block.sum(dim=0)
        sums[i : i + BLOCK] += block.sum(dim=1)
    return sums


def _cross_sums(x: Tensor, y: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """(sum_j k(x_i, y_j) [n], sum_i k(x_i, y_j) [m])."""
    sums = [torch.zeros(len(side), dtype=torch.float64, device=side.device) for side in (x, y)]
    for i, j, block in _cross_blocks(x, y, kernel):
        sums[0][i : i + BLOCK] += block.sum(dim=1)
        sums[1][j : j + BLOCK] += block.sum(dim=0)
    return sums[0], sums[1]


def _unbiased(rows_x: Tensor, rows_y: Tensor, cross_x: Tensor, cross_y: Tensor) -> float:
    """The U-statistic from the sums of each row: within x [n], within y [m], across [n] and [m]."""
    n, m = len(rows_x), len(rows_y)
    return float(rows_x.sum() / (n * (n - 1)) + rows_y.sum() / (m * (m - 1)) - 2 * cross_x.sum() / (n * m))


def _with_jackknife(rows_x: Tensor, rows_y: Tensor, cross_x: Tensor, cross_y: Tensor) -> tuple[float, float | None]:
    """The U-statistic and its two-sample delete-one jackknife standard error (None for n < 3)."""
    n, m = len(rows_x), len(rows_y)
    value = _unbiased(rows_x, rows_y, cross_x, cross_y)
    if min(n, m) < 3:
        return value, None
    xx, yy, xy = rows_x.sum(), rows_y.sum(), cross_x.sum()
    mean_xx, mean_yy = xx / (n * (n - 1)), yy / (m * (m - 1))
    without_x = (xx - 2 * rows_x) / ((n - 1) * (n - 2)) + mean_yy - 2 * (xy - cross_x) / ((n - 1) * m)  # [n]
    without_y = mean_xx + (yy - 2 * rows_y) / ((m - 1) * (m - 2)) - 2 * (xy - cross_y) / (n * (m - 1))  # [m]
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return value, float(variance.sqrt())
