"""Has the process moved? Charts over lots or days (EWMA, CUSUM) and a test of two sets of scores (Kolmogorov-Smirnov).

EWMA: Roberts 1959; CUSUM: Page 1954. Both watch one number per lot: the share that passes the filter, the mean score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp


@dataclass(frozen=True)
class Chart:
    """A monitored series; `alarm` is the index of the first point outside its limits, None if there is none.

    Attributes:
        values: [T] the statistic. low, high: [T] limits. alarm: first index outside.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def alarm(self) -> int | None:
        outside = np.flatnonzero((self.values < self.low) | (self.values > self.high))
        return int(outside[0]) if len(outside) else None


def ewma_chart(x: Sequence[float], *, mean: float, sd: float, weight: float = 0.2, width: float = 2.96) -> Chart:
    """z_t = w x_t + (1 - w) z_{t-1}, z_0 = mean; limits mean -+ L sd sqrt( w / (2 - w) (1 - (1 - w)^{2t}) ).

    Args:
        x: [T] one number per lot. mean, sd: of x while all was well, sd of a single lot's number (a share p of n
            pictures has sqrt(p (1 - p) / n)). weight: w in (0, 1]; 1 is Shewhart's chart. width: L in standard
            deviations of z; 2.96 with w = 0.2 gives about one false alarm in 500 lots.

    Raises:
        ValueError: values that are not finite, sd <= 0, or a weight outside (0, 1].
    """
    x = _series(x, sd)
    if not 0 < weight <= 1:
        raise ValueError(f"weight = {weight} must be in (0, 1]: 0.2 is usual, 1 forgets everything but the last lot")
    z, values = float(mean), np.empty(len(x))
    for t, value in enumerate(x):
        z = weight * value + (1 - weight) * z
        values[t] = z
    t = np.arange(1, len(x) + 1)
    half = width * sd * np.sqrt(weight / (2 - weight) * (1 - (1 - weight) ** (2 * t)))
    return Chart(values, mean - half, mean + half)


def cusum_chart(x: Sequence[float], *, mean: float, sd: float, slack: float = 0.5, limit: float = 5.0) -> Chart:
    """The larger of the two one-sided sums, with the sign of its side, in units of sd.

        up_t = max(0, up_{t-1} + (x_t - mean) / sd - k),   down_t = max(0, down_{t-1} - (x_t - mean) / sd - k)

    Args:
        x, mean, sd: see `ewma_chart`. slack: k, half the shift that matters, in sd. limit: h; with k = 0.5, 5 gives
            about one false alarm in 465 lots.
    """
    x = _series(x, sd)
    up = down = 0.0
    values = np.empty(len(x))
    for t, value in enumerate((x - mean) / sd):
        up, down = max(0.0, up + value - slack), max(0.0, down - value - slack)
        values[t] = up if up >= down else -down
    return Chart(values, np.full(len(x), -limit), np.full(len(x), float(limit)))


def score_drift(calibration: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """(largest distance of the two distribution functions, p-value) of the two-sample Kolmogorov-Smirnov test.

    Args:
        calibration: [N] scores on which the threshold was certified. new: [M] scores of the pictures now.
    """
    result = ks_2samp(_series(calibration, 1), _series(new, 1))
    return float(result.statistic), float(result.pvalue)


def _series(x: Sequence[float], sd: float) -> np.ndarray:
    x = np.asarray(x, dtype=float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"expected a 1-D series of finite numbers, got shape {x.shape}: drop lots without a number")
    if not sd > 0:
        raise ValueError(f"sd = {sd} must be positive: take it from the lots of the calibration")
    return x
