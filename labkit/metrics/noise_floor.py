"""What a Frechet distance reads when there is no difference: its bias from finite samples, to first order in 1/n.

Perturbing S_1 by the Wishart noise of n samples moves tr (S_1 S_2)^(1/2) by -(1/4n) [ sum_ij s_i s_j / (s_i + s_j) +
1/2 sum_i s_i ] on average, s being the singular values of A B^T (S_1 = A^T A, S_2 = B^T B). For equal laws s holds the
eigenvalues of S, and with the noise of the means the floor below follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.metrics.checks import whole_number
from labkit.metrics.gaussian import GaussianStats, rows_root


def noise_floor(spectrum: object, *, n_real: int, n_fake: int) -> float:
    """Expected FD2 between samples of n_real and n_fake rows drawn from one Gaussian law.

        (1/n_real + 1/n_fake) [ tr S + 1/2 ( sum_ij l_i l_j / (l_i + l_j) + 1/2 tr S ) ]

    to first order in 1/n (delta method on the Wishart law; within a few percent for n > d with the law's own spectrum).

    Args:
        spectrum: eigenvalues [d] of the law's covariance, or the covariance [d, d] itself.
    """
    n_real, n_fake = whole_number("n_real", n_real), whole_number("n_fake", n_fake)
    spectrum = torch.as_tensor(spectrum, dtype=torch.float64)
    if spectrum.ndim == 2:
        spectrum = torch.linalg.eigvalsh(spectrum)
    if spectrum.ndim != 1 or not torch.isfinite(spectrum).all() or n_real < 1 or n_fake < 1:
        raise ValueError(f"need finite eigenvalues [d] and positive counts, got {tuple(spectrum.shape)}")
    trace = float(spectrum.clamp(min=0).sum())
    return (1 / n_real + 1 / n_fake) * (trace + _curvature(spectrum))


def _curvature(spectrum: Tensor) -> float:
    """1/2 ( sum_ij l_i l_j / (l_i + l_j) + 1/2 sum_i l_i )."""
    spectrum = spectrum[spectrum > 0]
    pair_sum = 0.0
    for start in range(0, len(spectrum), 512):
        rows = spectrum[start : start + 512, None]
        pair_sum += float((rows * spectrum / (rows + spectrum)).sum())
    return 0.5 * (pair_sum + 0.5 * float(spectrum.sum()))


def law_spectrum(
    real: Tensor | GaussianStats, fake: Tensor | GaussianStats, sigma: Tensor, n_real: int, n_fake: int, d: int
) -> Tensor:
    """Eigenvalues of a covariance between the two, for the noise floor.

    With many samples the singular values of A B^T are at hand; they are those eigenvalues when the laws are equal,
    short of half the bias that they cause. Otherwise the spectrum of the pooled within-set covariance.
    """
    total, bias = float(sigma.sum()), (1 / n_real + 1 / n_fake) * _curvature(sigma)
    if min(n_real, n_fake) >= 3 * d and total > bias:
        return sigma * (total / (total - bias / 2))
    free = n_real + n_fake - 2
    if isinstance(real, Tensor) and isinstance(fake, Tensor):  # pooled rows W with W^T W = S
        parts = [rows_root(side, 0) * (len(side) / free) ** 0.5 for side in (real, fake)]
        # an estimate good to percents: float32 is half the time
        rows = torch.cat([parts[0], parts[1].to(parts[0].device)]).float()  # [n_real + n_fake, d]
        pooled = rows @ rows.T if len(rows) < d else rows.T @ rows
    else:
        parts = [
            rows_root(side, 0).T @ rows_root(side, 0) * len(side) if isinstance(side, Tensor) else side.m2
            for side in (real, fake)
        ]
        pooled = (parts[0] + parts[1].to(parts[0].device)) / free
    return torch.linalg.eigvalsh(pooled).double()
