"""Raising the alarm: how far a photograph is from that of a good part, by four measures, and what thresholds do.

A threshold is set on photographs of good parts so that a chosen share of them raises a false alarm; what it does to
other photographs is then counted. Accuracy alone would hide both errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from labkit.metrics import wilson_interval
from labkit.pairwise.equations import unit


def pixel_distance(photos: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute pixel difference [N] to one reference photograph [3, H, W]."""
    return (photos - reference).abs().mean((1, 2, 3))


def patch_distance(photos: Tensor, reference: Tensor, side: int = 8) -> Tensor:
    """The largest mean absolute difference [N] over patches of side x side pixels: sensitive to small defects."""
    gray = (photos - reference).abs().mean(1, keepdim=True)
    return F.avg_pool2d(gray, side, stride=side // 2).flatten(1).amax(1)


def embedding_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Length |u - u_ref| [N] of the raw difference of unit embeddings [N, d] and [d]."""
    return (unit(images) - unit(reference)).norm(dim=-1)


def sentence_alarm(images: Tensor, reference: Tensor, defects: Tensor) -> Tensor:
    """The best fit [N] of any defect sentence [K, d] ("the first has a scratch, the second has no scratch") to the raw
    difference u - u_ref: a change that no sentence describes counts for little, however large it is."""
    return ((unit(images) - unit(reference)) @ defects.T).amax(-1)


def alarm_threshold(good: Tensor, false_alarms: float) -> float:
    """The score that the given share of good parts [N] exceeds.

    Raises:
        ValueError: a share outside (0, 1), or fewer good parts than it takes to see it.
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms is {false_alarms}, expected a share between 0 and 1")
    if len(good) * false_alarms < 1:
        raise ValueError(
            f"{len(good)} good parts cannot show a rate of {false_alarms}: use at least {round(1 / false_alarms)}"
        )
    return float(torch.quantile(good.double(), 1 - false_alarms))


@dataclass(frozen=True)
class AlarmReport:
    """What an alarm does on photographs that did not set its threshold.

    Attributes:
        threshold: score above which it sounds (`promised_threshold`). false_alarms, missed: shares with 95% intervals
            (low, high); None where there was nothing to count. set_on, good, bad: numbers of photographs.
        needed: good photographs that it takes to promise the rate. enough: set_on >= needed; then the true rate of
            false alarms is at most `rate` with 95% confidence.
    """

    threshold: float
    rate: float
    false_alarms: tuple[float, float, float] | None
    missed: tuple[float, float, float] | None
    set_on: int
    good: int
    bad: int
    needed: int

    @property
    def enough(self) -> bool:
        return self.set_on >= self.needed


def good_photos_needed(rate: float, confidence: float = 0.95) -> int:
    """The smallest n with (1 - rate)^n <= 1 - confidence: 2% takes 149, 1% takes 299, 5% takes 59 (Wilks 1941).

    Raises:
        ValueError: a rate or a confidence outside (0, 1).
    """
    if not 0 < rate < 1 or not 0 < confidence < 1:
        raise ValueError(f"rate {rate} and confidence {confidence}: expected numbers between 0 and 1")
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def promised_threshold(good: Tensor, rate: float, confidence: float = 0.95) -> float:
    """The smallest of the good parts' scores [N] that keeps a promise: with this confidence, at most a share `rate` of
    all good parts lies above it (Wilks 1941). The largest score where N is too small for any promise.

    How many of N lie above the true quantile is binomial. The (j + 1)-th largest score lies above that quantile if at
    least j + 1 do; j is the largest number for which this is sure enough. (The plain quantile of the N scores,
    `alarm_threshold`, has the rate on average: it breaks the promise about every second time.)
    """
    above = np.arange(len(good))
    allowed = above[stats.binom.cdf(above, len(good), rate) <= 1 - confidence]
    return float(good.sort(descending=True).values[int(allowed.max(initial=0))])


def alarm_report(*, calibration: Tensor, good: Tensor, bad: Tensor, rate: float) -> AlarmReport:
    """Set a threshold on one set of good photographs and count on others.

    Args:
        calibration: scores [C] of good photographs that set the threshold. good [G], bad [B]: scores of other
            photographs; either may be empty. All good ones must come from one source, in random order.
        rate: share of good ones that may raise an alarm.

    Raises:
        ValueError: no calibration scores, or a rate outside (0, 1).
    """
    needed = good_photos_needed(rate)
    if not len(calibration):
        raise ValueError("there are no good photographs to set the threshold on: pass some")
    threshold = promised_threshold(calibration, rate)

    def share(alarms: int, n: int) -> tuple[float, float, float] | None:
        return (alarms / n, *wilson_interval(alarms, n)) if n else None

    return AlarmReport(
        threshold=threshold,
        rate=rate,
        false_alarms=share(int((good > threshold).sum()), len(good)),
        missed=share(int((bad <= threshold).sum()), len(bad)),
        set_on=len(calibration),
        good=len(good),
        bad=len(bad),
        needed=needed,
    )


def alarm_rates(scores: Tensor, defective: Sequence[bool], threshold: float) -> dict[str, float]:
    """{"false_alarms": share of good parts above the threshold, "missed": share of defective parts not above it}.

    Raises:
        ValueError: no good or no defective part among them.
    """
    bad = torch.as_tensor(list(defective), dtype=torch.bool)
    if bad.all() or not bad.any():
        raise ValueError(f"{int(bad.sum())} of {len(bad)} parts are defective: both kinds are needed")
    alarm = scores.cpu() > threshold
    return {
        "false_alarms": float(alarm[~bad].double().mean()),
        "missed": float((~alarm[bad]).double().mean()),
    }
