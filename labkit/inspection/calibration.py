"""Certify a threshold from files: a folder of calibration pictures, the judge's scores, what people said about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from labkit.files import write_atomically
from labkit.inspection.equations import zero_failure_n
from labkit.inspection.judge import Judge
from labkit.inspection.lot import InspectionError, Lot
from labkit.inspection.threshold import Certificate, ThresholdTest, certify_threshold
from labkit.inspection.verdicts import DEFECTS, Defect, Verdict, band_decisions

QUANTILES = tuple(q / 20 for q in range(1, 19))  # shares of the calibration pictures that the thresholds refuse


def threshold_steps(scores: Sequence[float], *, alpha: float, delta: float = 0.05) -> list[float]:
    """Thresholds from strict to loose at quantiles of the scores, without those that too few pictures pass to prove
    anything. They depend on scores alone, so the guarantee of the fixed sequence stays.

    Args:
        scores: [N] of the calibration pictures. alpha, delta: see `Certificate`.
    """
    scores = np.asarray(scores, dtype=float)
    steps, need = np.unique(np.quantile(scores, QUANTILES))[::-1], zero_failure_n(alpha, 1 - delta)
    enough = [float(step) for step in steps if (scores >= step).sum() >= need]
    return enough or [float(steps[-1])]


def certify_lot(
    lot: Lot,
    judge: Judge,
    verdicts: Sequence[Verdict],
    *,
    alpha: float,
    delta: float = 0.05,
    process: str = "",
    defects: Sequence[Defect] = DEFECTS,
    policy: str = "any",
) -> Certificate:
    """The loosest threshold that the calibration pictures certify, at the quantiles of their scores.

    The thresholds depend on scores alone, never on verdicts; a picture is defective if it has a critical or major
    defect.

    Args:
        lot: all calibration pictures, a random draw from the process. verdicts: at least one for each of them.
        alpha, delta, process: see `Certificate`.

    Raises:
        InspectionError: pictures without a verdict, or verdicts on others.
        CalibrationError: nothing can be certified.
    """
    names = [item.name for item in lot.items]
    good = band_decisions(names, verdicts, defects=defects, policy=policy)
    if missing := [name for name in names if name not in good]:
        raise InspectionError(f"{len(missing)} of {len(names)} calibration pictures have no verdict: {missing[0]!r}")
    scores = np.asarray(judge(lot.items), dtype=float)
    return certify_threshold(
        scores,
        [not good[name] for name in names],
        thresholds=threshold_steps(scores, alpha=alpha, delta=delta),
        alpha=alpha,
        delta=delta,
        process=process,
        judge=judge.name,
        calibration=[item.sha256 for item in lot.items],
    )


def write_certificate(path: Path | str, certificate: Certificate) -> Path:
    """The certificate as indented JSON."""
    return write_atomically(path, json.dumps(asdict(certificate), ensure_ascii=False, indent=2) + "\n")


def certificate_of(told: dict) -> Certificate:
    """The certificate that `asdict` wrote down.

    Raises:
        InspectionError: fields that a certificate does not have, or lacks.
    """
    try:
        steps = tuple(ThresholdTest(**step) for step in told["tests"])
        return Certificate(**{**told, "tests": steps, "calibration": tuple(told["calibration"])})
    except (KeyError, TypeError) as error:
        known = ", ".join(field.name for field in fields(Certificate))
        raise InspectionError(f"this is no certificate ({error}): expected {known}") from None


def read_certificate(path: Path | str) -> Certificate:
    """The certificate of a file.

    Raises:
        InspectionError: no such file, or no certificate.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InspectionError(f"{path} is no certificate: {error}") from None
    if not isinstance(told, dict):
        raise InspectionError(f"{path} is no certificate: expected a JSON object")
    return certificate_of(told)
