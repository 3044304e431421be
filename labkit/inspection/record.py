"""The sign-off record: who accepted what on which evidence, in JSON, with a hash of every field and a seal over all.

The hashes show *which* field was edited by hand. Someone who knows this file could compute all of them anew; the seal
is therefore to be kept in a second place (an e-mail, the next record's `previous`, a printed page) and handed to
`record_problems`. A hash is not a signature.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.files import write_atomically
from labkit.inspection.aql import Plan
from labkit.inspection.digest import digest, digest_file
from labkit.inspection.equations import clopper_pearson, lot_upper_bound, upper_bound
from labkit.inspection.gate import Gate, Screening, broken_limits
from labkit.inspection.lot import InspectionError, draw_sample
from labkit.inspection.rollout import Rollout, to_dict
from labkit.inspection.texts import texts
from labkit.inspection.verdicts import Defect, Tally, Verdict, same_person, tally

FORMAT = 1
CONFIDENCE = 0.95


def sign_off(
    gate: Gate,
    screening: Screening,
    *,
    seed: int | str,
    verdicts: Sequence[Verdict],
    maker: str,
    checker: str,
    signed: datetime,
    parts: Mapping[str, str] | None = None,
    rollout: Rollout | None = None,
    previous: str = "",
) -> dict:
    """The sealed record of one decision: the sample is drawn again from the seed, the verdicts are counted again.

    Args:
        seed: of the sample. verdicts: on each of its pictures.
        maker: who made the pictures. checker: who accepts or refuses the lot; another person.
        signed: when, with time zone. parts: hashes of model, adapter, prompts, ..., by name, beside the process's.
        rollout: the stage under which the lot was inspected. previous: seal of the record before this one.

    Raises:
        InspectionError: maker and checker are one person or nameless, or the verdicts are not those of the sample.
        ValueError: a time without zone.
    """
    if not maker.strip() or not checker.strip():
        raise InspectionError("maker and checker must be named: a record without persons is nobody's decision")
    if same_person(maker) == same_person(checker):
        raise InspectionError(f"maker and checker are both {maker!r}: someone else must sign")
    if same_person(maker) in {same_person(verdict.inspector) for verdict in verdicts}:
        raise InspectionError(f"{maker!r} made the pictures and inspected them: someone else must look")
    if signed.tzinfo is None:
        raise ValueError(f"signed = {signed} has no time zone: use datetime.now().astimezone()")
    if rollout is not None and rollout.process != gate.process:
        raise InspectionError("the rollout belongs to another process: see meet_process")
    sample = gate.sample(screening, seed)
    decision = gate.decide(screening, sample, verdicts)
    hashes = {item.name: item.sha256 for item in screening.lot.items}
    content = {
        "format": FORMAT,
        "lot": {
            "name": screening.lot.name,
            "pictures": len(screening.lot) + len(screening.lot.unreadable),
            "sha256": screening.lot.sha256,
            "unreadable": dict(screening.lot.unreadable),
        },
        "process": {"sha256": gate.process, **(parts or {})},
        "filters": {"sha256": digest(gate.filters()), **gate.filters()},
        "screening": {
            "counts": screening.counts(),
            "faults": screening.by_rule(),
            "log": [asdict(rejection) for rejection in screening.rejections],
            "refused": {name: screening.scores[name] for name in screening.refused},
            "left_to_people": {
                name: {"score": screening.scores[name], "passes": screening.decided.get(name)}
                for name in screening.abstained
            },
            "passed": {name: hashes[name] for name in screening.passed},
        },
        "stage": to_dict(rollout) if rollout is not None else None,
        "plan": asdict(gate.plan),
        "defects": [asdict(defect) for defect in gate.defects],
        "sample": {"seed": seed, "names": sample},
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "inspection": asdict(decision.tally),
        "estimate": estimate(decision.tally, len(screening.passed)),
        "decision": {"accepted": decision.accepted, "reasons": list(decision.reasons)},
        "maker": maker,
        "checker": checker,
        "signed": signed.isoformat(timespec="seconds"),
        "software": software(),
        "previous": previous,
    }
    return seal_record(content)


def estimate(counts: Tally, lot: int) -> dict[str, float]:
    """What the sample says about the lot of pictures that passed the filters: critical and major defects together.

    Args:
        counts: of the sample. lot: pictures that passed.
    """
    bad = counts.critical + counts.major
    low, high = clopper_pearson(bad, counts.n, level=CONFIDENCE)
    return {
        "defective": bad,
        "n": counts.n,
        "rate": bad / counts.n,
        "low": low,
        "high": high,
        "upper_bound": upper_bound(bad, counts.n, confidence=CONFIDENCE),
        "bad_pictures_at_most": lot_upper_bound(bad, counts.n, lot=lot, confidence=CONFIDENCE),
        "confidence": CONFIDENCE,
    }


def software() -> dict[str, str]:
    """Versions of what took part in the decision."""
    return {
        "labkit": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy", "pillow")},
    }


def seal_record(content: Mapping[str, Any]) -> dict:
    """{"content", "hashes", "seal"}: every field with its own hash, and one over all of them."""
    content = json.loads(json.dumps(content, ensure_ascii=False, allow_nan=False))  # what a reader of the file will see
    hashes = {name: digest(value) for name, value in _leaves(content)}
    return {"content": content, "hashes": hashes, "seal": digest(hashes)}


def record_problems(record: Mapping[str, Any], *, seal: str = "", lang: str = "en") -> list[str]:
    """What is wrong with a record, one line each with the field's name, in English or Japanese; empty if nothing is.

    Checked are the hashes, the seal (against `seal` kept elsewhere, if given), and what must follow from the content:
    the sample from its seed, the decision from the counts, two different persons.
    """
    say = texts(lang)
    kinds = {"content": dict, "hashes": dict, "seal": str}
    if not all(isinstance(record.get(part), kind) for part, kind in kinds.items()):
        return [say["problem_none"]]
    now = {name: digest(value) for name, value in _leaves(record["content"])}
    then = record["hashes"]
    changed = [name for name in now if name in then and now[name] != then[name]]
    problems = [say["problem_changed"].format(name=name) for name in changed]
    problems += [say["problem_added"].format(name=name) for name in now if name not in then]
    problems += [say["problem_removed"].format(name=name) for name in then if name not in now]
    if record["seal"] != digest(then):
        problems.append(say["problem_hashes"])
    if seal and record["seal"] != seal:
        problems.append(say["problem_seal"].format(got=record["seal"][:12], want=seal[:12]))
    try:
        problems += _inconsistencies(record["content"], say)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems.append(say["problem_content"].format(error=f"{type(error).__name__}: {error}"))
    return problems


def _inconsistencies(content: Mapping[str, Any], say: Mapping[str, str]) -> list[str]:
    problems, plan = [], Plan(**content["plan"])
    maker = same_person(content["maker"])
    if maker == same_person(content["checker"]):
        problems.append(say["problem_persons"])
    if maker in {same_person(verdict["inspector"]) for verdict in content["verdicts"]}:
        problems.append(say["problem_maker"])
    sample = content["sample"]
    if sample["names"] != draw_sample(list(content["screening"]["passed"]), plan.n, sample["seed"]):
        problems.append(say["problem_follows"].format(name="sample.names", source="sample.seed"))
    defects, verdicts = [Defect(**d) for d in content["defects"]], [Verdict(**v) for v in content["verdicts"]]
    told = content["inspection"]
    counted = tally(
        sample["names"], verdicts, defects=defects, policy=told["policy"], repeats=told.get("repeats", "refuse")
    )
    if digest(asdict(counted)) != digest(content["inspection"]):
        problems.append(say["problem_follows"].format(name="inspection", source="verdicts"))
    if digest(estimate(counted, len(content["screening"]["passed"]))) != digest(content["estimate"]):
        problems.append(say["problem_follows"].format(name="estimate", source="verdicts"))
    counts = {name: content["inspection"][name] for name in ("critical", "major", "minor")}
    if content["decision"]["accepted"] != (not broken_limits(plan, **counts)):
        problems.append(say["problem_decision"])
    return problems


def folder_problems(record: Mapping[str, Any], folder: Path | str) -> list[str]:
    """Which of the pictures that passed are missing from a folder or are no longer the same.

    Raises:
        InspectionError: the record does not say which pictures passed.
    """
    try:
        passed = record["content"]["screening"]["passed"].items()
    except (KeyError, TypeError, AttributeError):
        raise InspectionError("the record has no content.screening.passed: nothing to compare with") from None
    problems = []
    for name, sha256 in passed:
        path = Path(folder) / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif digest_file(path) != sha256:
            problems.append(f"{name} was changed after inspection")
    return problems


def write_sign_off(path: Path | str, record: Mapping[str, Any]) -> Path:
    """The record as indented JSON."""
    return write_atomically(path, json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def read_sign_off(path: Path | str) -> dict:
    """The record of a file, unverified.

    Raises:
        InspectionError: no such file, or no JSON object.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InspectionError(f"{path} is no record: {error}") from None
    if not isinstance(record, dict):
        raise InspectionError(f"{path} is no record: expected a JSON object")
    return record


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("plan.n", 80), ...: everything below nested objects; a list is one leaf, so is an empty object."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
