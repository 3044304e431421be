"""The preference filter: a learned score with a threshold that was certified, a band for people, and a price.

Certified means learn then test in a fixed sequence (Angelopoulos et al., arXiv 2110.01052): thresholds are ordered from
strict to loose *before* the labels are seen; each is tested in turn on calibration pictures; the last one before the
first failure is deployed. With probability 1 - delta over the calibration set, at most alpha of what passes is
defective, for pictures of the same process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labkit.errors import LabkitError
from labkit.inspection.equations import certification_p_value, check_share, zero_failure_n


class CalibrationError(LabkitError, ValueError):
    """No threshold can be certified, or one is used for a process it was not certified for."""


@dataclass(frozen=True)
class ThresholdTest:
    """One step: threshold, how many calibration pictures pass it, defectives among them, p-value, certified or not."""

    threshold: float
    passed: int
    defective: int
    p_value: float
    certified: bool


@dataclass(frozen=True)
class Certificate:
    """A threshold and what it was certified for.

    Attributes:
        threshold: tau. alpha: largest rate of defectives among what passes. delta: chance that this is wrong.
        passes: share of the calibration pictures that pass, the yield.
        process: hash of what made the calibration pictures. judge: name of the score.
        calibration: SHA-256s of the calibration pictures; an audit must not use them again.
        tests: every step of the sequence, the failing one included.
    """

    threshold: float
    alpha: float
    delta: float
    passes: float
    process: str
    judge: str
    calibration: tuple[str, ...]
    tests: tuple[ThresholdTest, ...]


def certify_threshold(
    scores: Sequence[float],
    defective: Sequence[bool],
    *,
    thresholds: Sequence[float],
    alpha: float,
    delta: float = 0.05,
    process: str = "",
    judge: str = "",
    calibration: Sequence[str] = (),
) -> Certificate:
    """The loosest threshold that the fixed sequence certifies.

    Args:
        scores: [N] of the calibration pictures, a random draw from the process. defective: [N] what people found.
        thresholds: strictly falling, chosen before the labels were seen (quantiles of other, unlabelled pictures).
            Start where enough pass: with no defective at all, `zero_failure_n(alpha, 1 - delta)` are needed.
        alpha, delta, process, judge, calibration: see `Certificate`.

    Raises:
        CalibrationError: the strictest threshold fails already; says whether pictures or quality are lacking.
        ValueError: lists of unequal length, scores that are not finite, or thresholds that do not fall.
    """
    scores, bad = np.asarray(scores, dtype=float), np.asarray(defective, dtype=bool)
    if scores.ndim != 1 or scores.shape != bad.shape or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"expected one finite score and one label per picture, got {scores.shape} and {bad.shape}")
    steps = np.asarray(thresholds, dtype=float)
    if not len(steps) or not (np.diff(steps) < 0).all():
        raise ValueError("thresholds must fall strictly, from strict to loose: the order is part of the guarantee")
    alpha, delta = check_share("alpha", alpha), check_share("delta", delta)
    if calibration and len(calibration) != len(scores):
        raise ValueError(f"{len(calibration)} hashes for {len(scores)} calibration pictures: give one each")
    tests: list[ThresholdTest] = []
    for threshold in steps:
        above = scores >= threshold
        n, k = int(above.sum()), int(bad[above].sum())
        p_value = certification_p_value(k, n, alpha=alpha)
        tests.append(ThresholdTest(float(threshold), n, k, p_value, p_value <= delta))
        if not tests[-1].certified:
            break
    good = [test for test in tests if test.certified]
    if not good:
        first, need = tests[0], zero_failure_n(alpha, 1 - delta)
        cure = f"with none defective {need} must pass: start looser or label more"
        if first.passed >= need:
            cure = "the score does not separate well enough, or alpha is too strict"
        raise CalibrationError(
            f"threshold {first.threshold:g} is not certified: {first.defective} of {first.passed} defective, "
            f"p = {first.p_value:.3g} > {delta:g}; {cure}"
        )
    last = good[-1]
    return Certificate(
        threshold=last.threshold,
        alpha=alpha,
        delta=delta,
        passes=last.passed / len(scores),
        process=process,
        judge=judge,
        calibration=tuple(calibration),
        tests=tuple(tests),
    )


@dataclass(frozen=True)
class PreferenceFilter:
    """Accept at and above the certified threshold, leave a band below it to people, refuse the rest.

    Attributes:
        certificate: see `certify_threshold`. abstain: width of the band below the threshold, in score.
    """

    certificate: Certificate
    abstain: float = 0.0

    def __post_init__(self) -> None:
        if not self.abstain >= 0:
            raise ValueError(f"abstain = {self.abstain} must be >= 0: the width of the band that people decide")

    def sort(self, scores: Sequence[float], *, process: str) -> list[str]:
        """ "pass", "abstain" or "refuse" for each score.

        Raises:
            CalibrationError: the pictures come from another process than the certificate: it says nothing about them.
        """
        if process != self.certificate.process:
            raise CalibrationError(
                f"the threshold was certified for process {self.certificate.process[:12]!r}, the pictures come from "
                f"{process[:12]!r}: calibrate again"
            )
        scores = np.asarray(scores, dtype=float)
        if not np.isfinite(scores).all():
            raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite: ask the judge again")
        tau = self.certificate.threshold
        return ["pass" if s >= tau else "abstain" if s >= tau - self.abstain else "refuse" for s in scores]
