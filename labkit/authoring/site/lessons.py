"""An executed notebook as a page: figures as files, solutions folded, widgets as the picture beside them."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.authoring.run.html import strip_widgets, svg_as_images
from labkit.authoring.run.sanitise import clean
from labkit.files import write_atomically

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
HIDDEN = ("parameters", "injected-parameters")
_PICTURE = re.compile(r"data:image/(?P<kind>png|jpeg|gif|webp);base64,(?P<data>[A-Za-z0-9+/=\s]+)")
_OTHER_LANGUAGE = re.compile(r"^(English|日本語): .*\n+", re.MULTILINE)  # in the header; the site has a switch
_TEX = re.compile(r"\$[^$]+\$")


def lesson_page(notebook: Any, figures: Path, say: Callable[..., str], *, note: str = "") -> Any:
    """A copy of an executed notebook, ready for myst-nb.

    Args:
        notebook: an nbformat 4 node.
        figures: folder that takes the pictures of the outputs, each under the hash of its content; the page refers to
            it as ../_static/figures.
        say: text of the site by key, in the page's language.
        note: Markdown put below the first cell.
    """
    import nbformat

    page = copy.deepcopy(notebook)
    fallbacks = [_had_widget(cell) for cell in page.cells]
    strip_widgets(page)
    svg_as_images(page)
    for cell, widget in zip(page.cells, fallbacks, strict=True):
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            _fold(cell, say)
            for output in cell.outputs:
                _as_files(output, figures)
            if widget:
                cell.outputs.append(_fallback_note(cell, say))
    page.metadata.pop("papermill", None)
    if page.cells and page.cells[0].cell_type == "markdown":
        page.cells[0].source = _OTHER_LANGUAGE.sub("", page.cells[0].source, count=1)
    if note and page.cells:
        page.cells.insert(1, nbformat.v4.new_markdown_cell(note, id="about-this-page"))
    return page


def _had_widget(cell: Any) -> bool:
    """Whether a cell shows a widget; a run that draws none leaves its picture alone."""
    tagged = "widget" in cell.metadata.get("tags", []) and bool(cell.get("outputs"))
    return tagged or any(WIDGET_VIEW in output.get("data", {}) for output in cell.get("outputs", []))


def _fold(cell: Any, say: Callable[..., str]) -> None:
    tags = set(cell.metadata.get("tags", []))
    if {"generated", "hide-input"} <= tags or tags & set(HIDDEN):  # the install cell, and what a run puts in
        tags.add("remove-cell")
    what = "solution" if "exercise" in tags else "code"
    if "exercise" in tags:
        tags.add("hide-input")
    cell.metadata["tags"] = sorted(tags)
    show = say("solution") if what == "solution" else say("code_show")
    hide = say("solution_hide") if what == "solution" else say("code_hide")
    cell.metadata["mystnb"] = {"code_prompt_show": show, "code_prompt_hide": hide}


def _as_files(output: Any, figures: Path) -> None:
    """Pictures inside an HTML output become files beside the page, which browsers load when they come into view."""
    data = output.get("data", {})
    if "text/html" not in data:
        return
    html = clean("".join(data["text/html"]))
    html = _PICTURE.sub(lambda found: _write(found, figures), html)
    html = html.replace("<img ", '<img loading="lazy" ')
    typeset = ' class="tex2jax_process"' if _TEX.search(re.sub(r"<(pre|code)\b.*?</\1>", "", html, flags=re.S)) else ""
    data["text/html"] = f"<div{typeset}>{html}</div>"


def _write(found: re.Match[str], figures: Path) -> str:
    content = base64.b64decode(found["data"])
    name = f"{hashlib.sha256(content).hexdigest()[:20]}.{found['kind']}"
    if not (figures / name).exists():
        figures.mkdir(parents=True, exist_ok=True)
        write_atomically(figures / name, content)
    return f"../_static/figures/{name}"


def _fallback_note(cell: Any, say: Callable[..., str]) -> Any:
    import html

    import nbformat

    pictured = any("<img" in "".join(output.get("data", {}).get("text/html", "")) for output in cell.outputs)
    text = say("widget") if pictured else say("widget_alone")
    shown = {"text/html": f'<p class="labkit-widget-note">{html.escape(text)}</p>', "text/plain": text}
    return nbformat.v4.new_output("display_data", data=shown)
