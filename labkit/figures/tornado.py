"""A tornado chart: what one number becomes at the two ends of each assumption, the widest bar on top."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labkit.course.i18n import t
from labkit.figures.base import CourseFigure, figure_style, new_figure, title_above, wrap_text
from labkit.figures.style import INK, PALETTE, PAPER, ROLES


def tornado_chart(
    labels: Sequence[str],
    at_low: Sequence[float],
    at_high: Sequence[float],
    *,
    base: float,
    xlabel: str,
    ends: tuple[str, str],
    title: str | None = None,
    value_format: str = "{:.1f}",
    width: float = 7.0,
    alt: str | None = None,
    lang: str | None = None,
) -> CourseFigure:
    """Bars from the best guess to the value at the low and at the high end of each assumption.

    Args:
        labels: n assumptions, drawn from top to bottom.
        at_low, at_high: [n] the number with the assumption at the low, at the high end of its range.
        base: the number at the best guess, a vertical line.
        xlabel: what the number is, with unit.
        ends: names of the low and of the high end, for the legend.

    Raises:
        ValueError: no labels, or lists of unequal length.
    """
    low, high = np.asarray(at_low, dtype=float), np.asarray(at_high, dtype=float)
    if not len(labels) or low.shape != (len(labels),) or high.shape != (len(labels),):
        raise ValueError(f"{len(labels)} labels, {low.shape} and {high.shape} values; expected one of each per label")
    with figure_style():
        figure = new_figure(width, 1.35 + 0.36 * len(labels) + (0.3 if title else 0), layout="constrained")
        axes, places = figure.add_subplot(), np.arange(len(labels))
        for values, name, color in ((low, ends[0], PALETTE[5]), (high, ends[1], PALETTE[4])):
            axes.barh(places, values - base, 0.7, left=base, color=color, label=name)
            for place, value in zip(places, values, strict=True):
                axes.annotate(
                    value_format.format(value).replace("-", "\N{MINUS SIGN}"),
                    (value, place), (4 if value >= base else -4, 0), textcoords="offset points", va="center",
                    ha="left" if value >= base else "right", fontsize=8.5, color=INK,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.4, "alpha": 0.8},
                )  # fmt: skip
        axes.axvline(base, color=ROLES["reference"], linewidth=1.2)
        axes.set_yticks(places, ["\n".join(wrap_text(label, width * 0.34, 9.5, max_lines=2)) for label in labels])
        axes.set(xlabel=xlabel, ylim=(len(labels) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.margins(x=0.14)
        if title:
            title_above(axes, title)
        figure.legend(loc="outside lower right", ncols=2, handlelength=1.2, columnspacing=1.4)
    rows = [
        f"{label} {value_format.format(a)} / {value_format.format(b)}"
        for label, a, b in zip(labels, low, high, strict=True)
    ]
    heading = f"{title}: " if title else ""
    figure.alt = alt or t("fig.alt.bar", lang=lang, title=heading, xlabel=xlabel, bars="; ".join(rows))
    return figure
