"""Shows things to the learner: HTML in a notebook, plain text elsewhere (terminal, pytest, logs).

Text comes from the catalogue and may use `code` in backticks and **bold**; TeX between $ signs is left for the
notebook's typesetter. Colours repeat what a word and a sign already say, so nothing depends on seeing them (palette:
Okabe & Ito 2008).
"""

from __future__ import annotations

import html
import importlib.util
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from labkit.course.i18n import get_language, set_language
from labkit.files import can_print

# kind -> (sign, colour of the bar at the left edge)
KINDS = {
    "pass": ("✓", "#009E73"),
    "fail": ("✗", "#D55E00"),
    "todo": ("…", "#56B4E9"),
    "info": ("▸", "#0072B2"),
    "warn": ("!", "#E69F00"),
}

# First thing in the head of every page that we write: no scripts, nothing from the network, whatever got into the body.
POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
)


def widgets_possible() -> bool:
    """True in a notebook kernel that has ipywidgets."""
    return in_notebook() and importlib.util.find_spec("ipywidgets") is not None


def in_notebook() -> bool:
    """True inside a Jupyter or Colab kernel, which can display HTML."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and shell.has_trait("kernel") and shell.kernel is not None


_interactive = True


def set_interactive(value: bool) -> None:
    """Whether widgets are drawn from now on (`start(..., interactive=False)`: batch runs and exports)."""
    global _interactive
    _interactive = bool(value)


def is_interactive() -> bool:
    """True unless the lesson that was started last draws no widgets."""
    return _interactive


def show(html_text: str, plain_text: str) -> None:
    """Display one thing: both forms in a notebook (exports choose), the plain one elsewhere."""
    if in_notebook():
        from IPython.display import display

        display({"text/html": html_text, "text/plain": plain_text}, raw=True)
    else:
        print(plain_text)


@contextmanager
def language(lang: str | None) -> Iterator[None]:
    """Speak `lang` inside the block (None: no change)."""
    before = get_language()
    set_language(lang or before)
    try:
        yield
    finally:
        set_language(before)


def terminal_language(lang: str) -> str:
    """The language in which a command can print: `lang`, or English, with a line on stderr, where the encoding of the
    output has no Japanese (cp1252, ASCII) and would show a question mark for every character."""
    if lang != "ja" or can_print("あ"):
        return lang
    print(
        f"labkit: the encoding {sys.stdout.encoding} has no Japanese; set PYTHONUTF8=1 to read Japanese here",
        file=sys.stderr,
    )
    return "en"


def pick(value: Any, lang: str | None = None) -> str:
    """The text of a {en, ja} mapping in `lang` (default: the current language); other values as they are."""
    return str(value[lang or get_language()]) if isinstance(value, dict) else "" if value is None else str(value)


def inline(text: str) -> str:
    """Escaped HTML with `code`, **bold** and line breaks."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*\n]+)\*\*", r"<b>\1</b>", escaped).replace("\n", "<br>")


def plain(text: str) -> str:
    """Text for terminals: without the asterisks of **bold**."""
    return re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text)


def box(kind: str, title: str, *paragraphs: str, code: str | None = None) -> tuple[str, str]:
    """(html, text) of a message: sign and title, paragraphs, and optionally a block of source code."""
    sign, colour = KINDS[kind]
    paragraphs = tuple(p for p in paragraphs if p)
    body = "".join(f'<div style="margin-top:.3em">{inline(p)}</div>' for p in paragraphs)
    if code:
        body += f'<pre style="margin:.5em 0 0;overflow-x:auto">{html.escape(code)}</pre>'
    html_text = (
        f'<div lang="{get_language()}" style="border-left:4px solid {colour};padding:.4em .8em;margin:.3em 0">'
        f"<b>{sign} {inline(title)}</b>{body}</div>"
    )
    indented = ["  " + line for p in paragraphs for line in plain(p).splitlines()]
    if code:
        indented += ["", *("    " + line for line in code.splitlines())]
    return html_text, "\n".join([f"{sign} {title}", *indented])


def show_box(kind: str, title: str, *paragraphs: str, code: str | None = None) -> None:
    """`box`, displayed."""
    show(*box(kind, title, *paragraphs, code=code))


def fold(summary: str, body: str) -> str:
    """HTML that shows `summary` and, once it is opened, `body` (HTML)."""
    return f'<details lang="{get_language()}"><summary>{inline(summary)}</summary>{body}</details>'


def beside(columns: Sequence[tuple[str, str]]) -> str:
    """HTML of blocks of source code next to each other, or below each other where there is no room: (title, code)."""
    code_style = "margin:.3em 0 0;white-space:pre-wrap;overflow-wrap:anywhere"
    block = f'<div style="flex:1 1 22em;min-width:0"><b>{{}}</b><pre style="{code_style}">{{}}</pre></div>'
    blocks = "".join(block.format(inline(title), html.escape(code)) for title, code in columns)
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em;margin:.5em 0">{blocks}</div>'


def width(text: str) -> int:
    """Columns that `text` takes in a terminal; Japanese characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, str]:
    """(html, text) of a table; cells are catalogue text. In the text form columns line up, also in Japanese."""
    head = "".join(f'<th scope="col" style="text-align:left">{inline(h)}</th>' for h in headers)
    cell = '<td style="text-align:left;vertical-align:top">'
    body = "".join("<tr>" + "".join(f"{cell}{inline(c)}</td>" for c in row) + "</tr>" for row in rows)
    html_text = f'<table lang="{get_language()}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    flat = [[plain(str(c)).replace("\n", " ") for c in row] for row in (headers, *rows)]
    widths = [max(width(row[i]) for row in flat) for i in range(len(headers))]
    lines = ["  ".join(c + " " * (w - width(c)) for c, w in zip(row, widths, strict=True)).rstrip() for row in flat]
    return html_text, "\n".join([lines[0], "-" * width(lines[0]), *lines[1:]])


def page(title: str, body: str) -> str:
    """A complete HTML file around `body` that needs nothing from the network."""
    style = (
        "body{font-family:system-ui,'Hiragino Sans','Noto Sans CJK JP',Meiryo,sans-serif;margin:2em;max-width:80em}"
        "table{border-collapse:collapse}td,th{border:1px solid #999;padding:.3em .6em}"
    )
    return (
        f'<!doctype html>\n<html lang="{get_language()}">\n<head><meta charset="utf-8">{POLICY}'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
