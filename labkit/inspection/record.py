"""The sign-off record: who accepted what on which evidence, in JSON, with a hash of every field and a seal over all.

The hashes show *which* field was edited by hand. Someone who knows this file could compute all of them anew; the seal
is therefore to be kept in a second place (an e-mail, the next record's `previous`, a printed page) and handed to
`record_problems`. A hash is not a signature.
"""

from __future__ import annotations

import json
import platform
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.files import write_atomically
from labkit.inspection.aql import Plan
from labkit.inspection.digest import digest
from labkit.inspection.equations import clopper_pearson, lot_upper_bound, upper_bound
from labkit.inspection.gate import Gate, Screening, broken_limits
from labkit.inspection.lot import InspectionError, draw_sample, read_lot
from labkit.inspection.rollout import EVERY_PICTURE, STOPPED, Rollout, to_dict
from labkit.inspection.sealed import certificate_problems, same
from labkit.inspection.texts import texts
from labkit.inspection.verdicts import POLICIES, Defect, Tally, Verdict, band_decisions, same_person, tally

FORMAT = 2
CONFIDENCE = 0.95
FIELDS = (
    *("format", "lot", "process", "filters", "screening", "stage", "plan", "defects", "sample", "verdicts"),
    *("inspection", "estimate", "decision", "maker", "checker", "signed", "software", "previous"),
)


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
    band: Sequence[Verdict] = (),
    previous: str = "",
) -> dict:
    """The sealed record of one decision: the sample is drawn again from the seed, the verdicts are counted again.

    Args:
        seed: of the sample. verdicts: on each of its pictures.
        maker: who made the pictures. checker: who accepts or refuses the lot; another person.
        signed: when, with time zone. parts: hashes of model, adapter, prompts, ..., by name, beside the process's.
        rollout: the stage under which the lot was inspected. band: the verdicts behind `screening.decided`.
        previous: seal of the record before this one.

    Raises:
        InspectionError: maker and checker are one person or nameless, or the verdicts are not those of the sample.
        ValueError: a time without zone.
    """
    check_people(maker, checker)
    if same_person(maker) in {same_person(verdict.inspector) for verdict in (*verdicts, *band)}:
        raise InspectionError(f"{maker!r} made the pictures and inspected them: someone else must look")
    if signed.tzinfo is None:
        raise ValueError(f"signed = {signed} has no time zone: use datetime.now().astimezone()")
    if rollout is not None and rollout.process != gate.process:
        raise InspectionError("the rollout belongs to another process: see meet_process")
    if rollout is not None:
        check_stage(rollout, gate.plan.n, len(screening.passed))
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
            "copies": screening.lot.copies,
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
            "band": [asdict(verdict) for verdict in band],
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


def check_people(maker: str, checker: str) -> None:
    """Two persons with names.

    Raises:
        InspectionError: nameless, or one person in two spellings.
    """
    if not same_person(maker) or not same_person(checker):
        raise InspectionError("maker and checker must be named: a record without persons is nobody's decision")
    if same_person(maker) == same_person(checker):
        raise InspectionError(f"maker {maker!r} and checker {checker!r} are one person: someone else must sign")


def check_stage(rollout: Rollout, n: int, passed: int) -> None:
    """The sample is one that the stage allows.

    Raises:
        InspectionError: inspection has stopped, or a sample where every picture must be looked at.
    """
    if rollout.stage == STOPPED:
        raise InspectionError("inspection has stopped: correct the process first")
    if rollout.stage in EVERY_PICTURE and n < passed:
        raise InspectionError(
            f"at the stage {rollout.stage!r} every picture is inspected, the plan says {n} of {passed}: see stage_plan"
        )


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
    content = _plain(content)
    hashes = {name: digest(value) for name, value in _leaves(content)}
    return {"content": content, "hashes": hashes, "seal": digest(hashes)}


def record_problems(record: Mapping[str, Any], *, seal: str = "", lang: str = "en") -> list[str]:
    """What is wrong with a record, one line each with the field's name, in English or Japanese; empty if nothing is.

    Checked are the hashes, the seal (against `seal` kept elsewhere, if given), and what must follow from the content:
    the sample from its seed, counts from verdicts and filters, the decision from the counts, two different persons.
    """
    say = texts(lang)
    kinds = {"content": dict, "hashes": dict, "seal": str}
    if not all(isinstance(record.get(part), kind) for part, kind in kinds.items()):
        return [say["problem_none"]]
    content, then = record["content"], record["hashes"]
    if content.get("format") in range(1, FORMAT) and then.get("format") == digest(content["format"]):
        return [say["problem_format"].format(got=content["format"], want=FORMAT)]
    now = {name: _digest(value) for name, value in _leaves(content)}
    changed = [name for name in now if name in then and now[name] != then[name]]
    problems = [say["problem_changed"].format(name=name) for name in changed]
    problems += [say["problem_added"].format(name=name) for name in now if name not in then]
    problems += [say["problem_removed"].format(name=name) for name in then if name not in now]
    problems += [say["problem_added"].format(name=name) for name in record if name not in kinds]
    if record["seal"] != _digest(then):
        problems.append(say["problem_hashes"])
    if seal and record["seal"] != seal:
        problems.append(say["problem_seal"].format(got=record["seal"][:12], want=seal[:12]))
    try:
        problems += _inconsistencies(record["content"], say)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        problems.append(say["problem_content"].format(error=f"{type(error).__name__}: {error}"))
    return list(dict.fromkeys(problems))


def _inconsistencies(content: Mapping[str, Any], say: Mapping[str, str]) -> list[str]:
    """What a record sealed anew cannot hide: fields that do not follow from the others, and persons with two parts."""
    problems = [say["problem_added"].format(name=name) for name in content if name not in FIELDS]
    if lacking := [name for name in FIELDS if name not in content]:
        return problems + [say["problem_removed"].format(name=name) for name in lacking]
    plan = Plan(**content["plan"])
    maker, screened = same_person(content["maker"]), content["screening"]
    if maker == same_person(content["checker"]):
        problems.append(say["problem_persons"])
    if maker in {same_person(verdict["inspector"]) for verdict in (*content["verdicts"], *screened["band"])}:
        problems.append(say["problem_maker"])
    sample, told = content["sample"], content["inspection"]
    defects, verdicts = [Defect(**d) for d in content["defects"]], [Verdict(**v) for v in content["verdicts"]]
    counted = tally(sample["names"], verdicts, defects=defects, policy=told["policy"], repeats=told["repeats"])
    reasons = broken_limits(plan, **{name: told[name] for name in ("critical", "major", "minor")})
    follows = {
        ("sample.names", "sample.seed"): (
            sample["names"],
            draw_sample(list(screened["passed"]), plan.n, sample["seed"]),
        ),
        ("inspection", "verdicts"): (told, _plain(asdict(counted))),
        ("estimate", "verdicts"): (content["estimate"], estimate(counted, len(screened["passed"]))),
        ("decision.reasons", "inspection"): (content["decision"]["reasons"], reasons),
        **_of_the_filters(content, defects),
    }
    problems += [
        say["problem_follows"].format(name=name, source=source)
        for (name, source), (stands, must) in follows.items()
        if not same(stands, must)
    ]
    if content["decision"]["accepted"] is not (not reasons):
        problems.append(say["problem_decision"])
    return problems


def _of_the_filters(content: Mapping[str, Any], defects: Sequence[Defect]) -> dict[tuple[str, str], tuple[Any, Any]]:
    """(field, what it follows from) -> (what stands there, what must)."""
    lot, screened, filters = content["lot"], content["screening"], content["filters"]
    people = {name: told["passes"] for name, told in screened["left_to_people"].items()}
    fallen, passed = {line["item"] for line in screened["log"]}, set(screened["passed"])
    kept = sum(passes is True for passes in people.values())
    counts = {
        "pictures": len(fallen) + len(screened["refused"]) + len(people) + len(passed) - kept,
        "unreadable": len(lot["unreadable"]),
        "broke a rule": len(fallen - set(lot["unreadable"])),
        "refused by the score": len(screened["refused"]),
        "left to people": len(people),
        "passed by people": kept,
        "passed": len(passed),
    }
    follows = {
        ("screening.counts", "screening"): (screened["counts"], counts),
        ("screening.faults", "screening.log"): (screened["faults"], Counter(line["rule"] for line in screened["log"])),
        ("lot.pictures", "screening"): (lot["pictures"], counts["pictures"]),
        ("filters.sha256", "filters"): (filters["sha256"], digest({k: v for k, v in filters.items() if k != "sha256"})),
        ("screening.passed", "screening.left_to_people"): (
            {name: name in passed for name in people},
            {name: passes is True for name, passes in people.items()},
        ),
    }
    if content["stage"] is not None:
        follows["stage.process", "process.sha256"] = content["stage"]["process"], content["process"]["sha256"]
        least = len(passed) if content["stage"]["stage"] in (*EVERY_PICTURE, STOPPED) else 1
        follows["plan.n", "stage.stage"] = content["plan"]["n"] >= least, True
    if screened["band"]:
        band = [Verdict(**told) for told in screened["band"]]
        ways = [band_decisions(list(people), band, defects=defects, policy=policy) for policy in POLICIES]
        decided = {name: passes for name, passes in people.items() if passes is not None}
        follows["screening.left_to_people", "screening.band"] = decided, decided if decided in ways else ways[0]
    if filters["threshold"] is not None:
        wrong = certificate_problems(filters["threshold"])
        follows["filters.threshold", "filters.threshold.tests"] = wrong, []
        tau, band = filters["threshold"]["threshold"], filters["threshold"]["abstain"]
        floor = [told["score"] for told in screened["left_to_people"].values()]
        fits = all(score < tau - band for score in screened["refused"].values()) and all(
            tau - band <= score < tau for score in floor
        )
        follows["screening.refused", "filters.threshold"] = fits, True
    return follows


def folder_problems(record: Mapping[str, Any], folder: Path | str) -> list[str]:
    """Which of the pictures that passed are missing from a folder or are no longer the same, and which pictures lie
    there that nobody inspected.

    Raises:
        InspectionError: the record does not say which pictures passed, or there is no such folder.
    """
    try:
        content = record["content"]
        screened, passed = content["screening"], content["screening"]["passed"].items()
        known = {*screened["passed"], *screened["refused"], *screened["left_to_people"], *content["lot"]["unreadable"]}
        known |= {line["item"] for line in screened["log"]}
    except (KeyError, TypeError, AttributeError):
        raise InspectionError("the record has no content.screening.passed: nothing to compare with") from None
    found = read_lot(folder)
    now = {unicodedata.normalize("NFC", item.name): item.sha256 for item in found.items}  # as other systems spell it
    problems = []
    for name, sha256 in passed:
        plain = unicodedata.normalize("NFC", name)
        if plain not in now and name not in found.unreadable:
            problems.append(f"{name} is missing")
        elif now.get(plain) != sha256:
            problems.append(f"{name} was changed after inspection")
    known = {unicodedata.normalize("NFC", name) for name in known}
    new = {unicodedata.normalize("NFC", name) for name in (*now, *found.unreadable)} - known
    return problems + [f"{name} is not in the record: nobody inspected it" for name in sorted(new)]


def write_sign_off(path: Path | str, record: Mapping[str, Any]) -> Path:
    """The record as indented JSON."""
    return write_atomically(path, json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def read_sign_off(path: Path | str) -> dict:
    """The record of a file, unverified.

    Raises:
        InspectionError: no such file, no JSON object, or a field that stands there twice; names it.
    """
    if Path(path).suffix.lower() in (".html", ".htm"):
        raise InspectionError(f"{path} is the page of a record: give the .json beside it, the page is compared with it")
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise InspectionError(f"{path} is no record: {error}") from None
    if not isinstance(record, dict):
        raise InspectionError(f"{path} is no record: expected a JSON object")
    return record


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand there once: readers of the text and programs must see the same."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands there twice")
        found[key] = value
    return found


def _digest(value: Any) -> str:
    """Hash of a value, "" for one that no record can hold (NaN, infinity)."""
    try:
        return digest(value)
    except ValueError:
        return ""


def _plain(value: Any) -> Any:
    """The value as a reader of the file will see it."""
    return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("plan.n", 80), ...: everything below nested objects; a list is one leaf, so is an empty object. A key with a dot
    is quoted, so that no two places have one name."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            name = json.dumps(key, ensure_ascii=False) if "." in key or '"' in key else key
            yield from _leaves(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix or "content", value
