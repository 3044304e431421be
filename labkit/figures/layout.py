"""Where everything of a grid of images goes, in inches from top to bottom, so that nothing overlaps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from labkit.figures.base import CourseFigure, figure_style, new_figure, text_width, wrap_text
from labkit.figures.style import INK, MUTED, ROLES

MAX_WIDTH = 9.0  # inches; fits a notebook's cell on a laptop
GAP = 0.09  # inches between images
_LINE = 1.32  # line height, in font sizes
_LINES = 8  # a prompt of the course in full


def draw_grid(
    pixels: list[np.ndarray],
    columns: int,
    captions: Sequence[str] | None,
    score_texts: Sequence[str],
    title: str | None,
    row_labels: Sequence[str] | None,
    column_labels: Sequence[str] | None,
    frames: Mapping[int, str],
    size: float | None,
    smooth: bool,
    right: float = 0.06,
) -> CourseFigure:
    """Lay the grid out in inches, top to bottom: title, column labels, then image + score + caption per row."""
    rows = math.ceil(len(pixels) / columns)
    margin = 0.06
    left = margin
    label_lines: list[list[str]] = []
    if row_labels:
        label_lines = [wrap_text(text, 1.4, 9.5, max_lines=_LINES) for text in row_labels]
        left += max(text_width(line, 9.5) for lines in label_lines for line in lines) + 0.12
    size = size or (1.7 if columns <= 4 else 1.4 if columns <= 6 else 1.15)
    size = min(size, (MAX_WIDTH - left - right - GAP * (columns - 1)) / columns)
    ratio = max(image.shape[0] / image.shape[1] for image in pixels)
    tall = size * ratio
    small = 8.5 if size >= 1.1 else 7.5
    line = small * _LINE / 72
    wrapped = [wrap_text(text, size + GAP * 0.6, small, max_lines=_LINES) for text in captions] if captions else []
    below = [  # height of the text under each row, inches
        (0.19 if any(score_texts[r * columns : (r + 1) * columns]) else 0)
        + line * max((len(wrapped[i]) for i in range(r * columns, min((r + 1) * columns, len(wrapped)))), default=0)
        for r in range(rows)
    ]
    for row, lines in enumerate(label_lines):  # a long label needs a taller row
        below[row] = max(below[row], len(lines) * 9.5 * _LINE / 72 - tall)
    width = left + right + columns * size + (columns - 1) * GAP
    if title:
        width = max(width, min(text_width(title, 12) + 2 * margin, 5.5))
    title_lines = wrap_text(title, width - 2 * margin, 12, max_lines=2) if title else []
    head = margin + 0.22 * len(title_lines) + (0.07 if title_lines else 0)
    head_labels = 0.2 if column_labels else 0
    height = head + head_labels + rows * tall + sum(below) + (rows - 1) * (GAP + (0.05 if any(below) else 0)) + 0.08

    figure = new_figure(width, height)

    def put(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **{"color": INK, **style})

    with figure_style():
        for index, text in enumerate(title_lines):
            put(margin, margin + 0.22 * index, text, fontsize=12, va="top")
        for column, text in enumerate(column_labels or ()):
            center = left + column * (size + GAP) + size / 2
            put(center, head + 0.13, text, fontsize=8.5, color=MUTED, ha="center", va="baseline")
        y = head + head_labels
        for row in range(rows):
            if row_labels:
                put(left - 0.1, y + tall / 2, "\n".join(label_lines[row]), fontsize=9.5, ha="right", va="center")
            for column in range(columns):
                index = row * columns + column
                if index >= len(pixels):
                    break
                x = left + column * (size + GAP)
                axes = figure.add_axes((x / width, 1 - (y + tall) / height, size / width, tall / height))
                _show(axes, pixels[index], frames.get(index), smooth)
                text_y = y + tall + 0.155
                if any(score_texts[row * columns : (row + 1) * columns]):
                    put(x + size / 2, text_y, score_texts[index], fontsize=9, weight="bold", ha="center")
                    text_y += 0.17
                for text in wrapped[index] if wrapped else ():
                    put(x + size / 2, text_y, text, fontsize=small, color=MUTED, ha="center", va="baseline")
                    text_y += line
            y += tall + below[row] + GAP + (0.05 if any(below) else 0)
    return figure


def _show(axes: Any, pixels: np.ndarray, frame: str | None, smooth: bool) -> None:
    axes.imshow(pixels, interpolation="lanczos" if smooth else "nearest", interpolation_stage="rgba")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set(color=ROLES.get(frame, frame) if frame else "#D9D9D9", linewidth=3 if frame else 0.6)


def default_columns(count: int) -> int:
    """Images per row that fill a notebook's width well."""
    if count <= 6 or count == 7:
        return count
    if count <= 12:
        return math.ceil(count / 2)
    return 8


def expect_length(name: str, values: Sequence[Any] | None, count: int) -> None:
    """Raise a ValueError unless there are `count` values (or none were given)."""
    if values is not None and len(values) != count:
        raise ValueError(f"{len(values)} {name}; expected {count}")
