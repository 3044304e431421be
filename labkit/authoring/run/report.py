"""What a run leaves behind: a table to print, report.html with thumbnails, summary.json, junit.xml."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from labkit.authoring.run.job import KERNEL_DIED, NO_KERNEL, PASSED
from labkit.authoring.run.plan import Row
from labkit.authoring.run.pool import CRASHED, INTERRUPTED
from labkit.course import claims
from labkit.course.i18n import get_language, t
from labkit.course.ledger import ledger, ledger_rows
from labkit.course.manifest import Project
from labkit.course.render import POLICY, table
from labkit.files import write_atomically

_THUMBNAIL = (360, 240)  # pixels
_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans JP", Meiryo, IPAGothic, sans-serif;
       color: #222; margin: 0 auto; max-width: 74rem; padding: 1.6rem 1.2rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.about { color: #555; margin: .3rem 0 1.4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #dfe2e6; border-radius: 8px; overflow: hidden; color: inherit; text-decoration: none;
        display: flex; flex-direction: column; background: #fff; }
.card:hover { border-color: #0072B2; } .card .picture { height: 9.5rem; display: flex; align-items: center;
        justify-content: center; background: #f7f8fa; padding: .5rem; color: #8a8f96; font-size: .85rem; }
.card img { max-width: 100%; max-height: 100%; }
.card .text { padding: .55rem .8rem .7rem; border-top: 1px solid #eceef0; }
.card b { display: block; line-height: 1.35; } .small { color: #555; font-size: .86rem; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; } td, th { border-bottom: 1px solid #e3e5e8;
        padding: .42rem .6rem; text-align: left; vertical-align: top; } th { background: #f4f5f7; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pass { color: #00795a; } .fail { color: #b3261e; } .none { color: #6b6b6b; }
.error { white-space: pre-wrap; font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; background: #fdf3f2;
        padding: .5rem .7rem; border-radius: 5px; max-height: 22rem; overflow: auto; }
"""


def write_reports(rows: Sequence[Row], output: Path, about: Mapping[str, Any], project: Project | None = None) -> str:
    """Write report.html, summary.json and junit.xml into `output`; returns the summary as text for the terminal."""
    passed = sum(row.passed for row in rows)
    summary = {
        "passed": passed == len(rows) and not about.get("interrupted"),
        "counts": {"rows": len(rows), "passed": passed, "cached": sum(row.cached for row in rows)},
        "about": dict(about),
        "rows": [row.as_json() for row in rows],
    }
    write_atomically(output / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1))
    write_atomically(output / "junit.xml", junit(rows, about))
    write_atomically(output / "report.html", report_page(rows, output, about, project))
    _, text = table(_headers(), [_cells(row) for row in rows])
    lines = [text, "", _verdict(rows, about), *_silences(rows), t("run.report_at", path=output / "report.html")]
    return "\n".join(lines)


def junit(rows: Iterable[Row], about: Mapping[str, Any]) -> bytes:
    """The run as JUnit XML: one test case per notebook; kernel trouble is an error, what did not run is skipped."""
    rows = list(rows)
    suite = ElementTree.Element(
        "testsuite",
        name="labkit run",
        tests=str(len(rows)),
        failures=str(sum(_junit_kind(row) == "failure" for row in rows)),
        errors=str(sum(_junit_kind(row) == "error" for row in rows)),
        skipped=str(sum(_junit_kind(row) == "skipped" for row in rows)),
        time=f"{about.get('seconds', 0):.1f}",
        timestamp=str(about.get("started", ""))[:19],
    )
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=row.lane, name=row.stem, time=f"{_seconds(row):.1f}")
        properties = ElementTree.SubElement(case, "properties")
        facts = {"cached": str(row.cached).lower(), "peak_rss_bytes": row.outcome.peak_rss}
        for name, value in {**facts, "peak_gpu_bytes": row.outcome.peak_gpu}.items():
            ElementTree.SubElement(properties, "property", name=name, value=str(value))
        kind = _junit_kind(row)
        if kind:
            details = ElementTree.SubElement(case, kind, message=_xml_text(row.outcome.error), type=row.outcome.status)
            details.text = _xml_text(row.outcome.traceback or row.outcome.error)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)


def report_page(rows: Sequence[Row], output: Path, about: Mapping[str, Any], project: Project | None = None) -> str:
    """The HTML report: verdict, a card with a picture for each notebook, the table, failures, and the claims."""
    lang = get_language()
    ok = all(row.passed for row in rows) and not about.get("interrupted")
    versions = " · ".join(f"{name} {value}" for name, value in about.items() if name not in _NOT_VERSIONS)
    parts = [
        f'<h1 class="{"pass" if ok else "fail"}">{"✓" if ok else "✗"} {html.escape(_verdict(rows, about))}</h1>',
        f'<p class="about">{html.escape(str(about.get("started", "")))} · {html.escape(versions)}</p>',
        f'<div class="cards">{"".join(_card(row, output) for row in rows)}</div>',
        f"<h2>{html.escape(t('run.summary'))}</h2>",
        _table(rows),
        *(f"<p>{html.escape(line)}</p>" for line in _silences(rows)),
    ]
    failed = [row for row in rows if not row.passed and row.outcome.status != INTERRUPTED]
    if failed:
        parts.append(f"<h2>{html.escape(t('run.failures'))}</h2>")
    for row in failed:
        words = row.outcome.traceback or "\n".join(row.gate) or row.outcome.error
        parts.append(f'<p><b>{html.escape(row.name)}</b></p><div class="error">{html.escape(words)}</div>')
    parts += _claims(rows, output, project)
    parts += _other_lanes(rows, output)
    return (
        f'<!doctype html>\n<html lang="{lang}"><head><meta charset="utf-8">{POLICY}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(t('run.title'))}</title><style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def thumbnail(notebook: Path) -> str | None:
    """The first picture among a notebook's outputs as a small `data:` address; None when it has none."""
    from PIL import Image

    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        outputs = [one.get("data", {}) for cell in cells for one in cell.get("outputs", [])]
        data = next(filter(None, map(_picture, outputs)))
        picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    except (OSError, ValueError, KeyError, StopIteration):
        return None
    picture.thumbnail(_THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _picture(data: dict) -> str:
    """The base64 text of an output's picture: a course figure carries it in its HTML, a plot by pyplot as a PNG."""
    found = re.search(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', "".join(data.get("text/html", "")))
    return found[1] if found else "".join(data.get("image/png") or data.get("image/jpeg") or "")


_NOT_VERSIONS = {"started", "seconds", "interrupted"}


def _headers() -> list[str]:
    names = ("lesson", "lane", "result", "seconds", "memory", "gpu", "slowest", "warnings", "claims")
    return [t(f"run.column.{name}") for name in names]


def _cells(row: Row) -> list[str]:
    slowest = row.outcome.cells[0] if row.outcome.cells else None
    return [
        row.stem,
        row.lane,
        _status(row),
        f"{_seconds(row):.1f}",
        _megabytes(row.outcome.peak_rss),
        _megabytes(row.outcome.peak_gpu),
        f"{slowest['id']} {slowest['seconds']:.1f} s" if slowest else "",
        str(row.outcome.warnings or ""),
        _claim_counts(row),
    ]


def _table(rows: Sequence[Row]) -> str:
    numeric = {3, 4, 5, 7}
    head = "".join(f'<th{_n(i in numeric)} scope="col">{html.escape(name)}</th>' for i, name in enumerate(_headers()))
    body = []
    for row in rows:
        cells = _cells(row)
        slow = "<br>".join(
            f'<code title="{html.escape(one["line"])}">{html.escape(one["id"])}</code> {one["seconds"]:.1f} s'
            for one in row.outcome.cells
            if one["seconds"] >= 0.05
        )
        marks = {0: f'<a href="{quote(row.name)}.html">{html.escape(row.stem)}</a>', 6: slow}
        marks[2] = f'<b class="{_kind(row)}">{html.escape(cells[2])}</b>'
        body.append(
            "<tr>"
            + "".join(f"<td{_n(i in numeric)}>{marks.get(i, html.escape(c))}</td>" for i, c in enumerate(cells))
            + "</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _card(row: Row, output: Path) -> str:
    picture = thumbnail(output / f"{row.name}.ipynb")
    alt = html.escape(t("run.thumbnail", title=row.title[get_language()]), quote=True)
    shown = f'<img src="{picture}" alt="{alt}">' if picture else html.escape(t("run.no_picture"))
    facts = f"{row.lane} · {_seconds(row):.1f} s · {_megabytes(row.outcome.peak_rss) or '– MB'}"
    title = html.escape(f"{row.number} {row.title[row.lang]}")
    body = (
        f'<div class="picture">{shown}</div><div class="text"><b>{title}</b>'
        f'<span class="{_kind(row)}">{html.escape(_status(row))}</span>'
        f'<div class="small">{html.escape(facts)}</div></div>'
    )
    if not (output / f"{row.name}.html").exists():
        return f'<div class="card">{body}</div>'
    return f'<a class="card" href="{quote(row.name)}.html">{body}</a>'


def _claims(rows: Sequence[Row], output: Path, project: Project | None) -> list[str]:
    """The ledger of every lane that recorded claims."""
    parts = []
    for lane in dict.fromkeys(row.lane for row in rows if row.claims):
        ran = {row.number: row for row in rows if row.lane == lane}
        first = next(iter(ran.values()))
        records = claims.load_records(output / lane / "results")
        entries = ledger_rows(records, tier=first.tier, lang=first.lang, project=project)
        entries = [one for one in entries if one["record"] and one["record"].lesson in ran]
        if entries:
            parts.append(f"<h2>{html.escape(t('run.claims_of', lane=lane))}</h2>{ledger(entries)[0]}")
    return parts


def _other_lanes(rows: Sequence[Row], output: Path) -> list[str]:
    """Links to what earlier runs left in the same folder."""
    here = {row.name for row in rows}
    found = sorted(path.relative_to(output).with_suffix("").as_posix() for path in output.glob("*-*-*/*.html"))
    links = [f'<li><a href="{quote(name)}.html">{html.escape(name)}</a></li>' for name in found if name not in here]
    return [f"<h2>{html.escape(t('run.earlier'))}</h2><ul>{''.join(links)}</ul>"] if links else []


def _verdict(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    passed, cached = sum(row.passed for row in rows), sum(row.cached for row in rows)
    key = "run.interrupted" if about.get("interrupted") else "run.verdict"
    return t(key, passed=passed, total=len(rows), cached=cached, seconds=about.get("seconds", 0.0))


def _silences(rows: Sequence[Row]) -> list[str]:
    """A line for every cell during which a learner waits for more than a minute and is not told how long."""
    return [
        t("run.silent", name=row.name, cell=cell["id"], seconds=cell["seconds"])
        for row in rows
        for cell in row.outcome.silent
    ]


def _status(row: Row) -> str:
    return t("run.cached") if row.cached else t(f"run.status.{row.outcome.status}")


def _claim_counts(row: Row) -> str:
    counts = [f"{count} {t(f'claim.{verdict}')}" for verdict, count in row.claims.items()]
    return ", ".join(counts)


def _junit_kind(row: Row) -> str | None:
    if row.outcome.status == PASSED:
        return None
    if row.outcome.status == INTERRUPTED:
        return "skipped"
    return "error" if row.outcome.status in (CRASHED, NO_KERNEL, KERNEL_DIED) else "failure"


def _kind(row: Row) -> str:
    return "pass" if row.passed else "none" if row.outcome.status == INTERRUPTED else "fail"


def _seconds(row: Row) -> float:
    return row.outcome.seconds


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MB" if size else ""


def _n(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _xml_text(text: str) -> str:
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]", "", text)
