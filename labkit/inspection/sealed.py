"""JSON files with a seal: a certificate or a job that was edited by hand is noticed, and what must follow is checked.

As with the record, a seal shows a careless edit, not a careful one: who knows this file can seal anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labkit.files import write_atomically
from labkit.inspection.calibration import certificate_of
from labkit.inspection.digest import digest
from labkit.inspection.equations import certification_p_value
from labkit.inspection.lot import InspectionError
from labkit.inspection.threshold import Certificate

CLOSE = 1e-9  # relative: another SciPy may differ in the last digits


def write_sealed(path: Path | str, values: Mapping[str, Any]) -> Path:
    """The values as indented JSON, with their hash under "seal"."""
    told = json.loads(json.dumps(values, ensure_ascii=False, allow_nan=False))
    return write_atomically(path, json.dumps({**told, "seal": digest(told)}, ensure_ascii=False, indent=2) + "\n")


def read_sealed(path: Path | str, cure: str) -> dict[str, Any]:
    """The values that `write_sealed` wrote, without the seal.

    Args:
        cure: what an error says is to be done.

    Raises:
        InspectionError: no such file, no JSON object, no seal, or one that does not fit.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InspectionError(f"{path} was not sealed by labkit ({error}): {cure}") from None
    seal = told.pop("seal", None) if isinstance(told, dict) else None
    if seal is None:
        raise InspectionError(f"{path} was not sealed by labkit (it has no seal): {cure}")
    try:
        fits = seal == digest(told)
    except ValueError:  # NaN
        fits = False
    if not fits:
        raise InspectionError(f"{path} was edited by hand, its seal does not fit: {cure}")
    return told


def seal_certificate(path: Path | str, certificate: Certificate) -> Path:
    """The certificate with a seal."""
    return write_sealed(path, asdict(certificate))


def open_certificate(path: Path | str) -> Certificate:
    """The certificate of a sealed file.

    Raises:
        InspectionError: none, an edited one, or one whose threshold does not follow from its tests.
    """
    cure = "certify again with labkit inspect certify"
    certificate = certificate_of(read_sealed(path, cure))
    problems = certificate_problems(asdict(certificate))
    if not problems and certificate.calibration:
        share = _last(certificate) / len(certificate.calibration)
        problems = [] if same(certificate.passes, share) else ["passes"]
    if problems:
        raise InspectionError(f"{path}: {problems[0]} does not follow from the tests: {cure}")
    return certificate


def certificate_problems(told: Mapping[str, Any]) -> list[str]:
    """Names of the fields of a certificate (as plain values) that do not follow from its counts: p-values, which tests
    are certified, their order, the threshold; empty if all do."""
    tests, alpha, delta = told["tests"], told["alpha"], told["delta"]
    problems, good = [], None
    for number, test in enumerate(tests):
        p_value = certification_p_value(test["defective"], test["passed"], alpha=alpha)
        if not same(test["p_value"], p_value) or test["certified"] is not (p_value <= delta):
            problems.append(f"tests[{number}]")
        if number and not (tests[number - 1]["certified"] and test["threshold"] < tests[number - 1]["threshold"]):
            problems.append(f"tests[{number}]")  # after the first failure nothing is tested
        good = test if test["certified"] else good
    if good is None or not same(told["threshold"], good["threshold"]):
        problems.append("threshold")
    return problems


def same(a: Any, b: Any) -> bool:
    """Equal plain values, where floats may differ in the last digits."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, bool) or isinstance(b, bool) or not (isinstance(a, int | float) and isinstance(b, int | float)):
        return type(a) is type(b) and a == b
    return abs(a - b) <= CLOSE * max(abs(a), abs(b))


def _last(certificate: Certificate) -> int:
    return [test.passed for test in certificate.tests if test.certified][-1]
