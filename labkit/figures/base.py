"""The figure class that every picture of the course returns, and text measuring for captions that fit."""

from __future__ import annotations

import io
import re
from functools import lru_cache
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from labkit.figures.images import image_bundle
from labkit.figures.style import FIGURE_DPI, SCREEN_DPI, font_families, style_settings

_NEVER_FIRST = (
    "、。，．・：；？！）」』】〉》ーっゃゅょぁぃぅぇぉッャュョァィゥェォ%％"  # at the start of a Japanese line
)


class CourseFigure(Figure):
    """A matplotlib figure that carries a text description and shows itself in a notebook.

    It is not registered with pyplot, so it appears exactly once (as the value of a cell or by `display`), and needs no
    closing. `alt` is the text that a screen reader reads and that stands for the picture in a static export.
    """

    alt: str = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)

    def draw(self, renderer: Any) -> None:
        """Draw with the course's settings whatever the settings of the session are."""
        with matplotlib.rc_context(style_settings()):
            super().draw(renderer)

    def png(self) -> bytes:
        """The figure as the bytes of a PNG file, at twice the screen's resolution."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=FIGURE_DPI)
        return buffer.getvalue()

    def _ipython_display_(self) -> None:
        # Not _repr_mimebundle_: to that, IPython's inline backend adds a PNG of its own for every matplotlib figure.
        from IPython.display import display

        display(image_bundle(self.png(), width=round(self.get_size_inches()[0] * SCREEN_DPI), alt=self.alt), raw=True)


def new_figure(width: float, height: float, *, layout: str | None = None) -> CourseFigure:
    """An empty figure of `width` x `height` inches in the course's look; `layout` as in matplotlib.

    For drawings outside the common set: `fig = new_figure(6, 3, layout="constrained")`, `ax = fig.add_subplot()`, then
    set `fig.alt`. Draw inside `with figure_style():` to keep the look.
    """
    with figure_style():
        return CourseFigure(figsize=(width, height), layout=layout)


def figure_style() -> Any:
    """Context manager: the course's matplotlib settings inside, the session's own outside."""
    return matplotlib.rc_context(style_settings())


@lru_cache(maxsize=1)
def _measuring_renderer() -> RendererAgg:
    return RendererAgg(8, 8, 72)  # 72 dpi: one pixel is one point


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of one line of `text` at `size` points in the course's fonts."""
    font = FontProperties(family=font_families(), size=size, weight=weight)
    width, _, _ = _measuring_renderer().get_text_width_height_descent(text, font, ismath=False)
    return width / 72


def wrap_text(text: str, width: float, size: float, *, max_lines: int = 3) -> list[str]:
    """Break `text` into at most `max_lines` lines that are at most `width` inches wide at `size` points.

    Latin text breaks at spaces, Japanese between phrases (as BudouX finds them). What does not fit ends in an
    ellipsis. Line breaks in `text` are kept.
    """
    lines: list[str] = []
    for paragraph in str(text).split("\n"):
        lines += _wrap_paragraph(paragraph.strip(), width, size)
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        last = lines[-1]
        while last and text_width(last.rstrip() + "…", size) > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "…"
    return lines


def title_above(axes: Any, title: str, *, pad: float | None = None, max_lines: int = 2) -> None:
    """Set the title of axes, broken so that it ends inside of the figure: it begins where the axes do, after whatever
    room the labels at their left have taken. The figure grows with a second line."""
    figure = axes.figure
    figure.draw_without_rendering()
    room = figure.get_figwidth() * (1 - axes.get_position().x0) - 0.1
    lines = wrap_text(title, room, 12, max_lines=max_lines)
    figure.set_figheight(figure.get_figheight() + 0.2 * (len(lines) - 1))
    axes.set_title("\n".join(lines), pad=pad)


def _wrap_paragraph(text: str, width: float, size: float) -> list[str]:
    lines, line = [], ""
    for piece in _breakable(text):
        if line and text_width((line + piece).rstrip(), size) > width:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
        while text_width(line.rstrip(), size) > width and len(line) > 1:  # one word wider than the line: cut it
            fits = (n for n in range(len(line) - 1, 1, -1) if text_width(line[:n], size) <= width)
            cut = next((n for n in fits if line[n] not in _NEVER_FIRST), 1)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line.rstrip()] if line.strip() else lines


def _breakable(text: str) -> list[str]:
    """Smallest pieces between which a line may break (words, Japanese phrases); their concatenation is `text`.

    A number stays on the line of the word before it: ラウンド 1.
    """
    words = re.findall(r"\S+(?:\s+[\d.]+(?!\S))?\s*|\s+", text)
    return [phrase for word in words for phrase in _japanese_phrases().parse(word)]


@lru_cache(maxsize=1)
def _japanese_phrases() -> Any:
    from budoux import load_default_japanese_parser  # read when a figure is drawn: 0.1 s

    return load_default_japanese_parser()
