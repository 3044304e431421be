"""The report of a measurement: lines for a terminal, and one HTML page without scripts or links."""

from __future__ import annotations

import base64
import html
import io
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from labkit.files import write_atomically
from labkit.images import fit_levels
from labkit.measuring.measure import Measurement, Reading
from labkit.measuring.sources import Source

LANGUAGES = ("ja", "en")
BETTER = {"fid": "lower", "kid": "lower", "cmmd": "lower", "vendi": "higher"}  # the rest: nearer to the floor
SHARES = {"precision", "recall", "coverage"}

META = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
STYLE = """
body { font: 15px/1.6 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Yu Gothic", sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #bbb; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .3rem .6rem;
  border-bottom: 1px solid #ddd; } td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; } .wide table { min-width: 44rem; } small { color: #666; }
.warn { border-left: .4rem solid #e90; background: #fff8ec; padding: .4rem 1rem; }
.different { border-left: .4rem solid #c33; } figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
figcaption { font-size: .8rem; max-width: 13rem; } img { width: 6rem; image-rendering: auto; }
"""


@cache
def texts(lang: str) -> dict[str, str]:
    """Key -> text in one language.

    Raises:
        ValueError: another language than "ja" and "en".
    """
    if lang not in LANGUAGES:
        raise ValueError(f"unknown language {lang!r}: use one of {', '.join(LANGUAGES)}")
    entries = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text(encoding="utf-8"))
    return {key: entry[lang] for key, entry in entries.items()}


def warnings_of(result: Measurement, lang: str) -> list[str]:
    """The sentences to read before the numbers."""
    t = texts(lang)
    return [t[f"warn_{key}"].format(**numbers) for key, numbers in result.warnings]


def conclusion(reading: Reading, lang: str) -> str:
    """What a reading allows to say, with the p-value where there is one."""
    t = texts(lang)
    p = "" if reading.p_value is None else t["conclusion_p"].format(p=f"{reading.p_value:.3g}")
    return t[f"conclusion_{reading.conclusion}"] + p


def measurement_lines(result: Measurement, lang: str = "en") -> list[str]:
    """The report as lines of plain text."""
    t = texts(lang)
    lines = [t["lead"].format(real=result.real, fake=result.fake, extractor=result.extractor)]
    lines += [f"! {line}" for line in warnings_of(result, lang)]
    for r in result.readings:
        value, spread, floor, count = _numbers(r, t)
        lines.append(f"{r.name:15} {value:>9} +- {spread:<9} {t['floor']}: {floor}; N {count}. {conclusion(r, lang)}")
    if result.copies is not None:
        told = t["copies_share"].format(near=result.copies.near, exact=result.copies.exact)
        lines.append(told + t["between"] + t["copies_yes" if result.copies.suspicious else "copies_no"])
        if result.copies.suspicious:
            lines += [f"       {_pair(result, *pair, t)}" for pair in result.copies.pairs]
    return lines


def measurement_html(result: Measurement, path: str | Path | None = None, *, lang: str = "ja") -> str:
    """The report as one HTML page; `path` writes it there too.

    Raises:
        ValueError: an unknown language.
    """
    t = texts(lang)
    lead = t["lead"].format(real=result.real, fake=result.fake, extractor=result.extractor)
    parts = [f"<h1>{t['title']}</h1><p>{_e(lead)}</p>"]
    if told := warnings_of(result, lang):
        parts.append(f"<h2>{t['warnings']}</h2>" + "".join(f'<p class="warn">{_e(line)}</p>' for line in told))
    left_out = [f"{name}: {why}" for side in result.sides or () for name, why in side.unreadable.items()]
    if left_out:
        parts.append("<ul>" + "".join(f"<li>{_e(line)}</li>" for line in left_out) + "</ul>")
    head = "".join(f"<th>{t[key]}</th>" for key in ("metric", "value", "spread", "floor", "count", "conclusion"))
    rows = "".join(_row(reading, t, lang) for reading in result.readings)
    parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>')
    if result.copies is not None:
        parts.append(_copies(result, t))
    title = f"<title>{_e(t['title'])}: {_e(result.fake)}</title>"
    page = f'<!doctype html><html lang="{lang}"><head>{META}{title}<style>{STYLE}</style></head>'
    page += f"<body>{''.join(parts)}</body></html>\n"
    if path is not None:
        write_atomically(path, page)
    return page


def _numbers(r: Reading, t: dict[str, str]) -> tuple[str, str, str, str]:
    def number(x: float | None) -> str:
        if x is None:
            return t["unknown_number"]
        return f"{x:.3f}" if r.name in SHARES or r.name == "rare share" else f"{x:.4g}"

    counts = " / ".join(t["unknown_number"] if n is None else str(n) for n in (r.n_real, r.n_fake))
    return number(r.value), number(r.spread), number(r.floor), counts


def _row(r: Reading, t: dict[str, str], lang: str) -> str:
    cells = "".join(f'<td class="n">{_e(text)}</td>' for text in _numbers(r, t))
    name = f"{_e(t['name_' + r.name])}<br><small>{t[BETTER.get(r.name, 'nearer')]}</small>"
    kind = "different" if r.conclusion == "different" else ""
    return f'<tr><td class="{kind}">{name}</td>{cells}<td>{_e(conclusion(r, lang))}</td></tr>'


def _copies(result: Measurement, t: dict[str, str]) -> str:
    copies = result.copies
    told = t["copies_share"].format(near=copies.near, exact=copies.exact)
    verdict = t["copies_yes" if copies.suspicious else "copies_no"]
    figures = []
    for i, j, distance in copies.pairs:
        pictures = [_thumbnail(side, index) for side, index in zip(result.sides[::-1], (i, j), strict=True)]
        caption = _pair(result, i, j, distance, t)
        figures.append(f"<figure>{''.join(pictures)}<figcaption>{_e(caption)}</figcaption></figure>")
    kind = ' class="warn"' if copies.suspicious else ""
    return f"<h2>{t['copies']}</h2><p{kind}>{_e(told + t['between'] + verdict)}</p>{''.join(figures)}"


def _pair(result: Measurement, i: int, j: int, distance: float, t: dict[str, str]) -> str:
    """What is said of fake i and its nearest real j."""
    names = [_name(side, index) for side, index in zip(result.sides[::-1], (i, j), strict=True)]
    return t["copies_pair"].format(i=names[0], j=names[1], d=distance)


def _name(side: Source, index: int) -> str:
    return side.folder.names[index] if side.folder is not None else f"#{index}"


def _thumbnail(side: Source, index: int) -> str:
    if side.folder is None:
        return ""
    levels: np.ndarray = side.folder[index]
    scale = 96 / max(levels.shape[:2])
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in levels.shape[:2])
        levels = fit_levels(levels, (height, width))
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{_e(side.folder.names[index])}">'


def _e(text: object) -> str:
    return html.escape(str(text))
