"""The recorded study with the learner's own numbers on top: a forest plot, two measures against each other, paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from labkit.course.i18n import t
from labkit.figures.base import CourseFigure, figure_style, new_figure, title_above, wrap_text
from labkit.figures.style import INK, LINES, MARKERS, MUTED, PALETTE, ROLES


@dataclass(frozen=True)
class Look:
    """How one label is drawn: colour, marker, and line style (a name or a pattern of matplotlib's)."""

    colour: str
    marker: str = "o"
    line: Any = "-"

    @property
    def size(self) -> int:
        """Of a marker with a number inside: triangles need more room."""
        return 17 if self.marker in "^v" else 13


def family_looks(families: Sequence[Sequence[str]]) -> dict[str, Look]:
    """Label -> look: a colour for every family of labels, a marker and a line style for every member.

    An empty label keeps its place for a member that is not drawn.

    Raises:
        ValueError: more families than colours, more members than markers, or a label in two places.
    """
    labels = [label for family in families for label in family if label]
    if len(families) > len(PALETTE) or max(map(len, families), default=0) > len(MARKERS):
        raise ValueError(f"expected at most {len(PALETTE)} families of at most {len(MARKERS)} members")
    if len(set(labels)) < len(labels):
        raise ValueError("a label stands in two places: its look would be that of the last one")
    return {
        label: Look(PALETTE[i], MARKERS[j], LINES[j])
        for i, family in enumerate(families)
        for j, label in enumerate(family)
        if label
    }


def _looks(labels: Sequence[str], given: Mapping[str, Look] | None) -> dict[str, Look]:
    """The look of every label: the one given, gray if others have one, else colours in turn."""
    if given is not None:
        return {label: given.get(label, Look(MUTED)) for label in labels}
    return {label: Look(PALETTE[i % len(PALETTE)]) for i, label in enumerate(labels)}


class RecordedMean(Protocol):
    """What `labkit.studies.estimate` returns: a mean, its interval, and the means of the single seeds."""

    value: float
    low: float
    high: float
    per_seed: Sequence[float]


def recorded_means(
    recorded: Mapping[str, RecordedMean],
    *,
    xlabel: str,
    yours: Mapping[str, float] | None = None,
    title: str | None = None,
    reference: Mapping[str, float] | None = None,
    value_format: str | None = None,
    width: float = 7.0,
    alt: str | None = None,
    lang: str | None = None,
) -> CourseFigure:
    """One row per label: the recorded mean with its 95 % interval, its seeds as pale dots, the learner's run as a star.

    Args:
        recorded: label -> estimate, drawn from top to bottom.
        xlabel: what is measured, with unit.
        yours: label -> the number of the live run, for some of the labels.
        reference: label -> value of a dashed vertical line.
        value_format: how numbers are written; by default with a sign where there is a reference line at 0 (changes).

    Raises:
        ValueError: nothing recorded, or a number of the learner's without a row.
    """
    yours = {label: float(value) for label, value in (yours or {}).items()}
    if not recorded or set(yours) - set(recorded):
        unknown = ", ".join(sorted(set(yours) - set(recorded))) or "none"
        raise ValueError(f"expected recorded rows and live numbers for some of them; without a row: {unknown}")
    value_format = value_format or ("{:+.3f}" if 0.0 in (reference or {}).values() else "{:.3f}")
    height = 0.95 + 0.36 * len(recorded) + (0.3 if title else 0) + (0.25 if reference else 0)
    with figure_style():
        figure = new_figure(width, height, layout="constrained")
        axes = figure.add_subplot()
        for row, (label, one) in enumerate(recorded.items()):
            name = {"label": t("fig.recorded_mean", lang=lang)} if not row else {}
            spread = [[one.value - one.low], [one.high - one.value]]
            axes.plot(one.per_seed, [row + 0.22] * len(one.per_seed), "o", color=MUTED, markersize=3.2, alpha=0.55)
            axes.errorbar([one.value], [row], xerr=spread, fmt="o", color=PALETTE[0], elinewidth=2, capsize=3, **name)
            axes.annotate(
                value_format.format(one.value).replace("-", "\N{MINUS SIGN}"),
                (one.value, row), (0, 6), textcoords="offset points", ha="center", fontsize=8.5, color=INK,
            )  # fmt: skip
            if label in yours:
                name = {"label": t("fig.your_run", lang=lang)} if label == next(iter(yours)) else {}
                axes.plot([yours[label]], [row], "*", color=PALETTE[1], markersize=13, markeredgecolor="white", **name)
        for label, value in (reference or {}).items():
            axes.axvline(value, color=ROLES["reference"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                label, (value, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="center", va="bottom", fontsize=8.5, color=MUTED,
            )  # fmt: skip
        names = ["\n".join(wrap_text(label, width * 0.34, 9.5, max_lines=2)) for label in recorded]
        axes.set_yticks(np.arange(len(recorded)), names)
        axes.set(xlabel=xlabel, ylim=(len(recorded) - 0.4, -0.7))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.margins(x=0.08)
        if title:
            title_above(axes, title, pad=22 if reference else 10)
        figure.legend(loc="outside lower right", ncols=2, handlelength=1.2, columnspacing=1.4)
    figure.alt = alt or _describe(recorded, yours, xlabel, title, value_format, lang)
    return figure


def recorded_plane(
    recorded: Mapping[str, tuple[RecordedMean, RecordedMean]],
    *,
    xlabel: str,
    ylabel: str,
    yours: Mapping[str, tuple[float, float]] | None = None,
    looks: Mapping[str, Look] | None = None,
    title: str | None = None,
    size: tuple[float, float] = (8.2, 4.6),
    alt: str | None = None,
    lang: str | None = None,
) -> CourseFigure:
    """One numbered point per label with the 95 % intervals of both measures, the learner's runs as stars in the same
    colour, and a key beside the chart.

    Args:
        recorded: label -> estimates of the measure on the x axis and of the one on the y axis; may be empty.
        yours: label -> (x, y) of the live run; labels may be new.
        looks: of labels, see `family_looks` (default: colours in turn); labels without one are gray.

    Raises:
        ValueError: neither recorded nor live numbers.
    """
    yours = {label: (float(x), float(y)) for label, (x, y) in (yours or {}).items()}
    if not recorded and not yours:
        raise ValueError("nothing to draw: expected recorded estimates or numbers of a live run")
    look_of = _looks([*recorded, *(label for label in yours if label not in recorded)], looks)
    with figure_style():
        figure = new_figure(*size, layout="constrained")
        axes = figure.add_subplot()
        rows = []  # of the key beside the chart: names on the points would lie on each other
        for number, (label, (x, y)) in enumerate(recorded.items(), 1):
            look = look_of[label]
            spread = {"xerr": [[x.value - x.low], [x.high - x.value]], "yerr": [[y.value - y.low], [y.high - y.value]]}
            axes.errorbar([x.value], [y.value], **spread, fmt="none", color=look.colour, elinewidth=1, alpha=0.6)
            named = {"label": f"{number}  {label}", "linestyle": "none", "markersize": look.size}
            rows += axes.plot([x.value], [y.value], marker=look.marker, color=look.colour, **named)
            place = {"ha": "center", "va": "center_baseline", "fontsize": 8.5, "weight": "bold", "zorder": 5}
            axes.annotate(str(number), (x.value, y.value), color="white", **place)
        for label, (x, y) in yours.items():
            named = f"{t('fig.your_run', lang=lang)}: {label}"
            star = {
                "color": look_of[label].colour,
                "markersize": 14,
                "markeredgecolor": INK,
                "markeredgewidth": 0.7,
                "zorder": 6,
            }
            rows += axes.plot([x], [y], "*", label=named, linestyle="none", **star)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(0.08)
        if title:
            title_above(axes, title, pad=10)
        figure.legend(handles=rows, loc="outside right center", fontsize=8.5, markerscale=0.6, handletextpad=0.3)
        means = {label: (x.value, y.value) for label, (x, y) in recorded.items()}
    points = [f"{label} ({x:.3g}, {y:.3g})" for label, (x, y) in means.items()]
    points += [f"{label}, {t('fig.your_run', lang=lang)} ({x:.3g}, {y:.3g})" for label, (x, y) in yours.items()]
    heading = f"{title}: " if title else ""
    axes_named = {"xlabel": xlabel, "ylabel": ylabel, "lang": lang}
    figure.alt = alt or t("fig.alt.plane", title=heading, points="; ".join(points), **axes_named)
    return figure


def recorded_paths(
    paths: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    looks: Mapping[str, Look] | None = None,
    title: str | None = None,
    log_x: bool = False,
    size: tuple[float, float] = (8.2, 4.2),
    alt: str | None = None,
    lang: str | None = None,
) -> CourseFigure:
    """One line per label through the stages of a run, numbered at its end, and a key beside the chart.

    Args:
        paths: label -> (x, y), as many numbers each, stage after stage; a single stage is a point.
        looks: of labels, see `family_looks` (default: colours in turn); labels without one are gray.
        log_x: logarithmic x axis; numbers must then be positive.

    Raises:
        ValueError: nothing to draw, or x and y of different length.
    """
    drawn = {label: (np.atleast_1d(x).astype(float), np.atleast_1d(y).astype(float)) for label, (x, y) in paths.items()}
    if not drawn:
        raise ValueError("nothing to draw: expected at least one path")
    if uneven := [label for label, (x, y) in drawn.items() if len(x) != len(y) or not len(x)]:
        raise ValueError(f"{uneven[0]}: x and y must have as many numbers, at least one")
    with figure_style():
        figure = new_figure(*size, layout="constrained")
        axes, rows, look_of = figure.add_subplot(), [], _looks(list(drawn), looks)
        for number, (label, (x, y)) in enumerate(drawn.items(), 1):
            look = look_of[label]
            line = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
            axes.plot(x, y, **line, markersize=3.5, linewidth=1.4)
            axes.plot(x[-1:], y[-1:], **line, markersize=look.size)
            rows += axes.plot([], [], **line, markersize=13, linewidth=1.4, label=f"{number}  {label}")
            place = {"ha": "center", "va": "center_baseline", "fontsize": 8.5, "weight": "bold", "zorder": 5}
            axes.annotate(str(number), (x[-1], y[-1]), color="white", **place)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if log_x:
            axes.set_xscale("log")
        axes.margins(0.08)
        if title:
            title_above(axes, title, pad=10)
        figure.legend(handles=rows, loc="outside right center", fontsize=8.5, markerscale=0.6, handlelength=2.8)
    ends = "; ".join(f"{label} ({x[-1]:.3g}, {y[-1]:.3g})" for label, (x, y) in drawn.items())
    heading = f"{title}: " if title else ""
    figure.alt = alt or t("fig.alt.plane", lang=lang, title=heading, xlabel=xlabel, ylabel=ylabel, points=ends)
    return figure


def _describe(recorded: Any, yours: Any, xlabel: str, title: str | None, value_format: str, lang: str | None) -> str:
    rows = []
    for label, one in recorded.items():
        interval = f"[{value_format.format(one.low)}, {value_format.format(one.high)}]"
        own = f", {t('fig.your_run', lang=lang)} {value_format.format(yours[label])}" if label in yours else ""
        rows.append(f"{label} {value_format.format(one.value)} {interval}{own}")
    return t("fig.alt.bar", lang=lang, title=f"{title}: " if title else "", xlabel=xlabel, bars="; ".join(rows))
