"""The claim ledger: what a paper claims, declared before the run; what a run measured; the verdict, which is computed.

A lesson's claims.yaml is a list of declarations:

    - id: dpo_beats_base                     # lab.claim("dpo_beats_base", ...)
      paper: Diffusion-DPO                   # or {en: "...", ja: "..."}
      place: {en: Table 1, ja: 表 1}
      statement: {en: "...", ja: "..."}      # in own words
      expected: {direction: increase}        # the measured value lies above 0, or above `threshold: 0.5`
      smallest: 0.02                         # optional: the smallest effect that matters, in the unit of the value
      seen: 1                                # optional: seeds of the record that were known when that was chosen
      setting: {en: "...", ja: "..."}        # optional: the paper's setting, where ours differs in what may matter
      too_far: {en: "...", ja: "..."}        # optional: why our setting is too far from the paper's to decide
      explored: true                         # optional: declared or changed after a part of the record was seen
      verdict: reproduced                    # optional: what the recorded study says; `labkit study check` holds it
      testable: [cpu, gpu]                   # optional (default: all tiers): elsewhere it is "not testable here"
      gated: [cpu]                           # optional: on these tiers `labkit run` fails unless the gate below holds
      band: {cpu: [0.2, 0.6]}                # optional: the gate is "value in this band" instead of "reproduced"

`expected` names a region of the real line:

    {direction: increase, threshold: 0}      value > threshold (default 0)
    {direction: decrease, threshold: 0}      value < threshold (default 0)
    {direction: equal, value: 1, tolerance: 0.1}    value - tolerance <= v <= value + tolerance
    {direction: band, lo: 0.2, hi: 0.6}      lo <= v <= hi

A claim is decided by the recorded study of its lesson where there is one (`labkit.course.evidence`): reproduced,
contradicted, equivalent (no effect as large as `smallest`), undecided, or too far from the paper's setting. A live run
then says whether its own number fits the recorded ones.

Rule of the verdict of a run alone. **reproduced**: the whole interval lies in the region (without one: the value does).
**not reproduced**: anything else, also a NaN; a record whose interval crosses the border is marked `undecided`, because
more seeds may decide it. **not testable here**: the tier is not in `testable`, or there is no value (give a reason).
`band` does not touch the verdict: a claim that this small model does not reproduce can be gated to stay where it is.

An article map (article.yaml, shown by lab.article_map()) is a list of rows; `goes_beyond` marks what the paper does
not say; claim, goes_beyond and note are optional:

    - article: {en: ..., ja: ...}
      paper: {en: ..., ja: ...}
      claim: dpo_beats_base
      goes_beyond: true
      note: {en: ..., ja: ...}

Records are JSON lines in RESULTS/claims/lNN.TIER.LANG.jsonl; RESULTS is LABKIT_RESULTS or build/results. Every record
carries a hash of its declaration, so a declaration that was changed after the run shows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.course.claim_file import Claim, declared
from labkit.course.i18n import t
from labkit.course.lesson_files import CourseError
from labkit.course.manifest import Project
from labkit.course.render import pick

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE, NOT_RUN = "reproduced", "not_reproduced", "not_testable", "not_run"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE)


@dataclass(frozen=True)
class Record:
    """One measurement of one claim; `at` is ISO 8601 in UTC and comes from the caller."""

    claim: str
    lesson: str
    tier: str
    lang: str
    verdict: str
    measured: str
    value: float | None
    interval: tuple[float, float] | None
    seeds: list[int]
    reason: str
    undecided: bool
    declaration: str
    labkit: str
    at: str

    def _ipython_display_(self) -> None:
        """Nothing: `lab.claim` has already shown the verdict."""


def judge(claim: Claim, tier: str, value: float | None, interval: tuple[float, float] | None) -> tuple[str, bool]:
    """(verdict, undecided) by the rule in the module docstring."""
    if tier not in claim.testable or value is None:
        return NOT_TESTABLE, False
    low, high = interval or (value, value)
    if math.isfinite(value) and claim.region.holds(low, high):
        return REPRODUCED, False
    inside = claim.region.holds(low, low), claim.region.holds(high, high), claim.region.holds(value, value)
    return NOT_REPRODUCED, interval is not None and math.isfinite(value) and any(inside)


def make_record(
    claim: Claim,
    *,
    tier: str,
    lang: str,
    at: str,
    measured: Any = None,
    value: Any = None,
    interval: Sequence[Any] | None = None,
    seeds: Iterable[int] = (),
    reason: str = "",
) -> Record:
    """Judge a measurement. measured: what it is, in words; value: number or None; interval: (lo, hi) around it."""
    value = _as_float(claim, "value", value)
    if interval is not None:
        if value is None or len(interval) != 2:
            raise CourseError(f"claim {claim.id}: an interval needs a value and two ends, found {interval!r:.60}")
        low, high = (_as_float(claim, "interval", end) for end in interval)
        if low is None or high is None or low > high:
            raise CourseError(f"claim {claim.id}: interval {interval!r:.60} is no pair lo <= hi")
        interval = (low, high)
    verdict, undecided = judge(claim, tier, value, interval)
    if verdict == NOT_TESTABLE and not reason:
        small = tier not in claim.testable
        reason = t("claim.tier_too_small", tiers=", ".join(claim.testable), tier=tier) if small else t("claim.no_value")
    return Record(
        claim=claim.id,
        lesson=claim.lesson,
        tier=tier,
        lang=lang,
        verdict=verdict,
        measured=pick(measured),
        value=value,
        interval=interval,
        seeds=[int(seed) for seed in seeds],
        reason=reason,
        undecided=undecided,
        declaration=claim.digest,
        labkit=__version__,
        at=at,
    )


def value_text(record: Record) -> str:
    """'0.42 [0.31, 0.55]', '' where nothing was measured."""
    if record.value is None:
        return ""
    interval = f" [{record.interval[0]:.4g}, {record.interval[1]:.4g}]" if record.interval else ""
    return f"{record.value:.4g}{interval}"


# ---- records on disk ---------------------------------------------------------------------------------------------


def results_folder(folder: Path | str | None = None) -> Path:
    """`folder`, else LABKIT_RESULTS, else build/results."""
    return Path(folder or os.environ.get("LABKIT_RESULTS") or Path("build") / "results")


def save(record: Record, results: Path | str | None = None) -> Path:
    """Append the record to its lesson's file (one file per lesson, tier and language); returns the file."""
    path = results_folder(results) / "claims" / f"l{record.lesson}.{record.tier}.{record.lang}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(as_json(record), ensure_ascii=False) + "\n")
    return path


def load_records(results: Path | str | None = None) -> list[Record]:
    """All records, oldest first; lines that are damaged (a run that was killed while writing) are left out."""
    records = []
    for path in sorted((results_folder(results) / "claims").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                data = json.loads(line)
                data["value"] = None if data["value"] is None else float(data["value"])
                data["interval"] = tuple(map(float, data["interval"])) if data["interval"] else None
                records.append(Record(**data))
            except (ValueError, TypeError, KeyError):
                continue
    return sorted(records, key=lambda record: record.at)


def latest(
    records: Iterable[Record], *, tier: str | None = None, lang: str | None = None
) -> dict[tuple[str, str], Record]:
    """The newest record per (claim, tier), of one tier or language if asked."""
    kept = [r for r in records if tier in (None, r.tier) and lang in (None, r.lang)]
    return {(record.claim, record.tier): record for record in kept}


def gate(
    results: Path | str | None, lesson: int | str, tier: str, *, lang: str | None = None, project: Project | None = None
) -> list[str]:
    """Why a run of `lesson` on `tier` must fail, one line per claim gated there; [] if it need not.

    A gated claim fails when it has no record, when its declaration changed since, when its value left the band declared
    for the tier, and, where no band is declared, when its verdict is not "reproduced".
    """
    records = latest(load_records(results), tier=tier, lang=lang)
    failures = []
    for claim in declared(lesson, project).values():
        if tier not in claim.gated:
            continue
        record = records.get((claim.id, tier))
        if record is None:
            failures.append(
                f"{claim.id}: gated on {tier}, but the run recorded nothing; does the lesson call lab.claim?"
            )
        elif record.declaration != claim.digest:
            failures.append(f"{claim.id}: the declaration changed after it was measured; run the lesson again")
        elif tier in claim.band:
            lo, hi = claim.band[tier]
            if record.value is None or not lo <= record.value <= hi:
                failures.append(f"{claim.id}: {record.value} left its band [{lo:g}, {hi:g}] on {tier}")
        elif record.verdict != REPRODUCED:
            failures.append(f"{claim.id}: {record.verdict} on {tier}: {value_text(record) or record.reason}")
    return failures


# ---- helpers -----------------------------------------------------------------------------------------------------


def as_json(record: Record) -> dict[str, Any]:
    """The record as JSON takes it: NaN and infinity, which JSON lacks, become strings that float() reads back."""
    data = asdict(record)

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    data["value"] = plain(data["value"])
    data["interval"] = [plain(end) for end in data["interval"]] if data["interval"] else None
    return data


def _as_float(claim: Claim, what: str, value: Any) -> float | None:
    """float(value): numbers, numpy scalars and one-element tensors."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise CourseError(f"claim {claim.id}: {what} must be one number, found {type(value).__name__}") from None
