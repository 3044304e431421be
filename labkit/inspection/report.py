"""The sign-off record as a page for people, in Japanese or English: one HTML file without scripts or links."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.inspection.record import record_problems
from labkit.inspection.texts import LANGUAGES, texts
from labkit.inspection.wording import said

STYLE = """
body { font: 15px/1.6 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Yu Gothic", sans-serif; max-width: 46rem;
  margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #bbb; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .25rem .6rem;
  border-bottom: 1px solid #ddd; overflow-wrap: anywhere; } th { font-weight: 600; width: 40%; }
.verdict { font-size: 1.3rem; font-weight: 700; padding: .6rem 1rem; border-left: .5rem solid; }
.accepted { border-color: #2a7; background: #eefaf3; } .refused { border-color: #c33; background: #fdf0f0; }
.broken { border: 2px solid #c33; padding: .5rem 1rem; } code { font-size: .85rem; overflow-wrap: anywhere; }
"""


def record_html(record: Mapping[str, Any], lang: str = "ja") -> str:
    """The page. A record that does not verify is shown with what is wrong in a red box at the top.

    Args:
        record: from `sign_off` or `read_sign_off`. lang: "ja" or "en".

    Raises:
        ValueError: an unknown language, or a record that lacks what must be shown.
    """
    t, problems = texts(lang), record_problems(record, lang=lang)
    try:
        parts = _parts(record["content"], record["seal"], problems, t, lang)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the record cannot be shown ({error!r}): {'; '.join(problems)}") from None
    head = f'<!doctype html><html lang="{lang}"><head><meta charset="utf-8"><title>{t["title"]}</title>'
    return f"{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"


def _parts(c: Mapping[str, Any], seal: str, problems: Sequence[str], t: Mapping[str, str], lang: str) -> list[str]:
    """The page's sections from a record's content c, in the texts t."""
    accepted, passed = c["decision"]["accepted"], len(c["screening"]["passed"])  # what the sample stands for
    severities = {name: t[name] for name in ("critical", "major", "minor")}
    estimate, plan, seen = c["estimate"], c["plan"], c["inspection"]
    return [
        f"<h1>{t['title']}: {_e(c['lot']['name'])}</h1>",
        _broken(problems, t),
        f'<p class="verdict {"accepted" if accepted else "refused"}">{t["accepted" if accepted else "refused"]}</p>',
        _list(
            [f"{severities[reason.split(':')[0]]}{reason[reason.index(':') :]}" for reason in c["decision"]["reasons"]]
        ),
        _table(
            "",
            [
                (t["maker"], c["maker"]),
                (t["checker"], c["checker"]),
                (t["signed"], c["signed"]),
                (t["seal"], seal),
                (t["previous"], c["previous"] or t["none"]),
            ],
        ),
        _table(
            t["result"],
            [
                (t["sample"], f"{seen['n']} / {passed}"),
                *((severities[name], f"{seen[name]} ({t['limit']} {_limit(plan, name)})") for name in severities),
                (t["rate"], f"{estimate['rate']:.2%} (95%: {estimate['low']:.2%} – {estimate['high']:.2%})"),
                (t["upper_bound"], f"{estimate['upper_bound']:.2%}"),
                (t["bad_at_most"], t["of_lot"].format(bad=estimate["bad_pictures_at_most"], lot=passed)),
            ],
        ),
        _table(
            t["inspection"],
            [
                (t["plan"], f"n = {plan['n']}, c = {plan['c']} ({said(plan['source'], lang)})"),
                (t["seed"], c["sample"]["seed"]),
                (t["stage"], t[f"stage_{c['stage']['stage']}"] if c["stage"] else t["none"]),
                (t["inspectors"], _strictness(seen, t)),
                (t["policy"], t[f"policy_{seen['policy']}"]),
                *_deciders(c["screening"]["band"], t),
                (t["disagreements"], ", ".join(seen["disagreements"]) or t["none"]),
                (t["agreement"], t["none"] if seen["agreement"] is None else f"{seen['agreement']:.2f}"),
                *_second_looks(seen, t),
                (t["minutes"], f"{seen['seconds'] / 60:.1f}"),
            ],
        ),
        _table(
            t["defects"],
            [
                (f"{defect[lang]} ({severities[defect['severity']]})", seen["defects"].get(defect["code"], 0))
                for defect in c["defects"]
            ],
        ),
        _table(t["screening"], [(t[f"count_{key}"], n) for key, n in c["screening"]["counts"].items()]),
        _table(t["faults"], [(said(rule, lang), n) for rule, n in c["screening"]["faults"].items()]),
        _table(t["unreadable"], [(name, said(why, lang)) for name, why in c["lot"]["unreadable"].items()]),
        _table(t["copies"], list(c["lot"]["copies"].items())),
        _table(
            t["rules"], [(said(rule["name"], lang), said(rule["expected"], lang)) for rule in c["filters"]["rules"]]
        ),
        _table(t["threshold"], _threshold(c["filters"]["threshold"], t)),
        _table(
            t["process"],
            [
                *((t.get(f"process_{name}", name), hashed) for name, hashed in c["process"].items()),
                (t["lot_hash"], c["lot"]["sha256"]),
            ],
        ),
        _table(t["software"], list(c["software"].items())),
        f"<p>{t['note']}</p>",
    ]


def _limit(plan: Mapping[str, Any], severity: str) -> int:
    if severity == "critical":
        return 0
    return plan["c"] if severity == "major" or plan["minor"] is None else plan["minor"]


def _strictness(seen: Mapping[str, Any], t: Mapping[str, str]) -> str:
    """Each inspector with the share of pictures that they called defective."""
    told = seen.get("by_inspector") or {}
    return ", ".join(
        t["inspector_found"].format(who=who, found=told[who][1], n=told[who][0]) if who in told else who
        for who in seen["inspectors"]
    )


def _deciders(band: Sequence[Mapping[str, Any]], t: Mapping[str, str]) -> list[tuple[str, str]]:
    """Who decided on the pictures that the preference filter left to people."""
    people = list(dict.fromkeys(told["inspector"] for told in band))
    return [(t["band_by"], ", ".join(people))] if people else []


def _second_looks(seen: Mapping[str, Any], t: Mapping[str, str]) -> list[tuple[str, str]]:
    if not seen.get("repeated"):
        return []
    return [(t["repeated"], t["repeated_same"].format(n=seen["repeated"], share=seen["self_agreement"]))]


def _threshold(told: Mapping[str, Any] | None, t: Mapping[str, str]) -> list[tuple[str, Any]]:
    if told is None:
        return []
    return [
        (t["tau"], f"{told['threshold']:g} ({told['judge']})"),
        (t["guarantee"], t["guarantee_text"].format(alpha=told["alpha"], sure=1 - told["delta"])),
        (t["yield"], f"{told['passes']:.1%}"),
        (t["abstain"], f"{told['abstain']:g}"),
    ]


def page_problems(record: Mapping[str, Any], page: Path | str, *, lang: str = "en") -> list[str]:
    """What a page says otherwise than its record, one line each with the row's title; empty if nothing.

    Args:
        record: verified before. page: an HTML file that `record_html` wrote. lang: of the lines, "ja" or "en".

    Raises:
        OSError: no such file.
    """
    t, name = texts(lang), Path(page).name
    text = Path(page).read_text(encoding="utf-8", errors="replace")
    shown = re.search(r'<html lang="(\w+)">', text)
    if shown is None or shown[1] not in LANGUAGES:
        return [t["problem_no_page"].format(page=name)]
    expected = record_html(record, shown[1])
    if text == expected:
        return []
    should, does = _Rows(expected).rows, _Rows(text).rows
    lacking, more = (
        list((Counter(should) - Counter(does)).elements()),
        list((Counter(does) - Counter(should)).elements()),
    )
    problems = []
    for label, value in lacking:
        instead = next((row for row in more if row[0] == label), None)
        if instead is not None:
            more.remove(instead)
        problems.append(
            t["problem_page_says"].format(page=name, label=label, got="" if instead is None else instead[1], want=value)
        )
    problems += [t["problem_page_more"].format(page=name, text=" ".join(filter(None, row))) for row in more]
    if not problems and record["content"]["software"]["labkit"] == __version__:  # else: only the look has changed
        problems.append(t["problem_page_look"].format(page=name))
    return problems


class _Rows(HTMLParser):
    """(title, value) of the rows of a page's tables, ("", text) of everything else that can be read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, str]] = []
        self._cells: dict[str, str] | None = None
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self._cells = {"th": "", "td": ""}
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._cells is not None:
            self.rows.append((self._cells["th"], self._cells["td"]))
            self._cells = None
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._cells is not None and self._open in self._cells:
            self._cells[self._open] += data
        elif data.strip() and self._open != "style":
            self.rows.append(("", data.strip()))


def _broken(problems: Sequence[str], t: Mapping[str, str]) -> str:
    return f'<div class="broken"><b>{t["broken"]}</b>{_list(problems)}</div>' if problems else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_e(line)}</li>' for line in lines)}</ul>" if lines else ""


def _table(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    """A titled table of two columns; nothing without rows."""
    if not rows:
        return ""
    body = "".join(f'<tr><th scope="row">{_e(name)}</th><td>{_e(value)}</td></tr>' for name, value in rows)
    return f"{f'<h2>{title}</h2>' if title else ''}<table>{body}</table>"


def _e(value: Any) -> str:
    return html.escape(str(value))
