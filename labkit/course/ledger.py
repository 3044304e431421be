"""Shows claims: one verdict, the ledger over all lessons (`labkit claims`: table, HTML, JSON), and article maps."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labkit.course.claims import (
    NOT_RUN,
    REPRODUCED,
    Claim,
    Record,
    as_json,
    declared,
    latest,
    load_records,
    value_text,
)
from labkit.course.evidence import Evidence, agreement_line, evidence, evidence_lines
from labkit.course.i18n import LANGUAGES, t
from labkit.course.lesson_files import LessonFiles
from labkit.course.manifest import TIERS, Project, lesson_numbers
from labkit.course.render import box, language, page, pick, table, terminal_language

SIGNS = {
    "reproduced": "✓",
    "not_reproduced": "✗",
    "contradicted": "✗",
    "equivalent": "=",
    "undecided": "?",
    "too_far": "–",
    "not_testable": "–",
    NOT_RUN: "…",
}


def verdict_text(verdict: str) -> str:
    """'✓ reproduced' in the current language."""
    return f"{SIGNS[verdict]} {t(f'claim.{verdict}')}"


def record_box(claim: Claim, record: Record, known: Evidence | None = None) -> tuple[str, str]:
    """(html, text) shown to the learner when a claim is measured; `known`: the recorded study, which decides."""
    verdict = record.verdict if known is None else known.verdict
    kind = "pass" if verdict == REPRODUCED else "fail" if verdict in ("contradicted", "not_reproduced") else "info"
    lines = [
        t("claim.source", paper=pick(claim.paper), place=pick(claim.place), statement=pick(claim.statement)),
        t("claim.expected", region=claim.region.text()),
    ]
    if claim.setting:
        lines.append(t("claim.setting", setting=pick(claim.setting)))
    declared_lines = len(lines)
    if record.value is not None:
        interval = (
            ""
            if record.interval is None
            else t("claim.interval", lo=f"{record.interval[0]:.4g}", hi=f"{record.interval[1]:.4g}")
        )
        lines.append(
            t(
                "claim.measured",
                measured=record.measured or t("claim.value"),
                value=f"{record.value:.4g}",
                interval=interval,
                context=t("claim.seeds" if record.seeds else "claim.tier", n=len(record.seeds), tier=record.tier),
            )
        )
    if record.value is not None and not math.isfinite(record.value):
        lines.append(t("claim.not_finite"))
    if known is not None:
        if agreement := agreement_line(known, record.value, record.interval):
            lines.append(agreement)
        lines[declared_lines:declared_lines] = evidence_lines(claim, known)
    elif record.undecided:
        lines.append(t("claim.undecided_run"))
    if record.reason:
        lines.append(t("claim.reason", reason=record.reason))
    return box(kind, t("claim.title", id=claim.id, verdict=t(f"claim.{verdict}")), *lines)


def ledger_rows(
    records: Iterable[Record], *, tier: str | None = None, lang: str | None = None, project: Project | None = None
) -> list[dict[str, Any]]:
    """One row per declared claim and tier it was measured on, and one per claim nobody has measured yet."""
    newest = latest(records, tier=tier, lang=lang)
    rows = []
    for number in lesson_numbers(project):
        for claim in declared(number, project).values():
            mine = sorted((r for r in newest.values() if r.claim == claim.id), key=lambda r: TIERS.index(r.tier))
            known = evidence(claim)
            for record in mine or [None]:
                verdict = known.verdict if known else record.verdict if record else NOT_RUN
                rows.append({"claim": claim, "record": record, "evidence": known, "verdict": verdict})
    return rows


def ledger(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """(html, text) of the ledger with a summary line, in the current language."""
    columns = ("claim", "paper", "statement", "expected", "study", "value", "seeds", "tier", "verdict")
    cells = []
    for row in rows:
        claim, record = row["claim"], row["record"]
        verdict = verdict_text(row["verdict"])
        if record is not None and record.declaration != claim.digest:
            verdict += f" ({t('claim.changed')})"
        cells.append(
            (
                claim.id,
                f"{pick(claim.paper)}, {pick(claim.place)}",
                pick(claim.statement),
                claim.region.text(),
                row["evidence"].text() if row.get("evidence") else "",
                value_text(record) if record else "",
                str(len(record.seeds)) if record else "",
                record.tier if record else "",
                verdict,
            )
        )
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in SIGNS}
    html_text, text = table([t(f"claim.column.{name}") for name in columns], cells)
    summary = ", ".join(f"{t(f'claim.{verdict}')}: {count}" for verdict, count in counts.items() if count)
    return f"{html_text}<p>{summary}</p>", f"{text}\n\n{summary}"


def article_table(
    files: LessonFiles, claims: Mapping[str, Claim], records: Iterable[Record], tier: str
) -> tuple[str, str]:
    """(html, text): what the Japanese article says, what the paper says, and what was measured on this tier."""
    newest = latest(records, tier=tier)
    cells = []
    for row in files.article_rows:
        article = pick(row["article"])
        if row["goes_beyond"]:
            article += "\n" + t("article.goes_beyond")
        record = newest.get((row["claim"], tier))
        known = evidence(claims[row["claim"]]) if row["claim"] in claims else None
        if row["claim"] is None:
            measured = t("article.nothing")
        elif known is not None:
            measured = f"{verdict_text(known.verdict)}\n{known.text()}"
            if record is not None:
                measured += "\n" + t("article.yours", value=value_text(record) or record.reason)
        elif record is None:
            measured = t("article.not_yet", id=row["claim"])
        else:
            measured = f"{verdict_text(record.verdict)}\n{value_text(record)}".rstrip()
        note = pick(row["note"])
        cells.append((article, pick(row["paper"]) + (f"\n{note}" if note else ""), measured))
    return table([t("article.article"), t("article.paper"), t("article.measured")], cells)


def add_parser(subparsers: Any) -> None:
    """Register `labkit claims`."""
    parser = subparsers.add_parser("claims", help="show which claims of the papers were reproduced")
    parser.add_argument(
        "--results", type=Path, help="folder with the results (default: LABKIT_RESULTS or build/results)"
    )
    parser.add_argument("--tier", choices=TIERS, help="only measurements on this tier")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the ledger as an HTML page")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the ledger over all lessons (or write it as HTML): 0; 2 with one line where a lesson's file is wrong."""
    try:
        return _run(args)
    except ValueError as error:
        print(f"labkit claims: {error}", file=sys.stderr)
    except OSError as error:
        print(f"labkit claims: {error.filename}: {error.strerror}; give --html another place", file=sys.stderr)
    return 2


def _run(args: argparse.Namespace) -> int:
    project = Project(args.root) if args.root else None
    with language(args.lang if args.json or args.html else terminal_language(args.lang)):
        rows = ledger_rows(load_records(args.results), tier=args.tier, project=project)
        html_text, text = ledger(rows)
        if args.html:
            args.html.parent.mkdir(parents=True, exist_ok=True)
            args.html.write_text(page(t("claim.ledger_title"), html_text), encoding="utf-8")
        if args.json:
            print(json.dumps([_json_row(row) for row in rows], indent=1))  # ASCII: read the same whatever the encoding
        elif args.html:
            print(args.html)
        else:
            print(text)
    return 0


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    claim, record = row["claim"], row["record"]
    source = {"id": claim.id, "paper": claim.paper, "place": claim.place, "statement": claim.statement}
    known = row.get("evidence")
    study = {"value": known.estimate.value, "interval": [known.estimate.low, known.estimate.high]} if known else None
    return {**source, "verdict": row["verdict"], "study": study, "record": as_json(record) if record else None}
