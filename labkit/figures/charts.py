"""Charts with intervals: curves and bars. Axes always have labels; lines carry their names at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from labkit.course.i18n import t
from labkit.figures.base import CourseFigure, figure_style, new_figure, title_above, wrap_text
from labkit.figures.style import INK, MARKERS, MUTED, PALETTE, PAPER, ROLES


@dataclass(frozen=True)
class Series:
    """Values with optional interval, each of shape [n]."""

    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def curve_with_interval(
    x: Any,
    series: Any,
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    reference: Mapping[str, float] | None = None,
    colors: Mapping[str, str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    ylim: tuple[float, float] | None = None,
    size: tuple[float, float] = (7.0, 3.8),
    alt: str | None = None,
    lang: str | None = None,
) -> CourseFigure:
    """Lines over `x`, each with its interval as a pale band and its name at its end.

    Args:
        x: n numbers, increasing.
        series: label -> values, or bare values for a single unnamed line. Values are n numbers; or an array [runs, n],
            drawn as the mean with a band from the lowest to the highest run; or a tuple (y, low, high), n numbers each.
        xlabel, ylabel: what is drawn, with unit.
        reference: label -> value of a dashed horizontal line (a baseline, chance level, a noise floor).
        colors: label -> role ("before", "after", "good", ...) or colour, for series whose colour has a meaning.
        alt: description for screen readers; by default made from the data.

    Raises:
        ValueError: lengths that differ, more than six series, an interval that does not contain its value.
    """
    x = _numbers(x, "x")
    named = {label: _series(values, len(x), label) for label, values in _named(series).items()}
    _limit(named)
    with figure_style():
        figure = new_figure(*size, layout="constrained")
        axes = figure.add_subplot()
        for index, (label, one) in enumerate(named.items()):
            color = _color(label, index, colors)
            if one.low is not None:
                axes.fill_between(x, one.low, one.high, color=color, alpha=0.18, linewidth=0)
            marker = MARKERS[index] if len(x) <= 25 else None
            axes.plot(x, one.y, color=color, marker=marker, markeredgecolor="white", markeredgewidth=0.8)
        for value in (reference or {}).values():
            axes.axhline(value, color=ROLES["reference"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if log_x:
            axes.set_xscale("log")
            if len(x) <= 10:  # the numbers themselves instead of powers of ten
                axes.set_xticks(x, [f"{value:g}" for value in x])
                axes.set_xticks([], minor=True)
        elif (x == np.round(x)).all():  # steps, counts: no tick between two of them
            axes.xaxis.get_major_locator().set_params(integer=True)
        if log_y:
            axes.set_yscale("log")
        if ylim:
            axes.set_ylim(*ylim)
        if title:
            title_above(axes, title)
        ends = [(label, one.y[-1], _color(label, i, colors)) for i, (label, one) in enumerate(named.items()) if label]
        ends += [(label, value, MUTED) for label, value in (reference or {}).items()]
        _label_ends(axes, ends, size[1] * 72 * 0.72)
    figure.alt = alt or _describe_curves(x, named, reference, xlabel, ylabel, title, lang)
    return figure


def bar_with_interval(
    labels: Sequence[str],
    series: Any,
    *,
    xlabel: str,
    title: str | None = None,
    reference: Mapping[str, float] | None = None,
    colors: Mapping[str, str] | None = None,
    xlim: tuple[float, float] | None = None,
    value_format: str = "{:.2f}",
    width: float = 7.0,
    alt: str | None = None,
    lang: str | None = None,
) -> CourseFigure:
    """Horizontal bars with error bars and their values in print; several series give groups.

    Args:
        labels: n names, drawn from top to bottom.
        series: as in `curve_with_interval`, with n values in the place of points: bare values, label -> values, arrays
            [runs, n] (mean, interval from lowest to highest run), or tuples (value, low, high).
        xlabel: what the bars measure, with unit.
        reference: label -> value of a dashed vertical line.
        value_format: how the values are printed, e.g. "{:.0%}".

    Raises:
        ValueError: as `curve_with_interval`.
    """
    named = {name: _series(values, len(labels), name) for name, values in _named(series).items()}
    _limit(named)
    thick = 0.78 / len(named)
    height = 0.75 + len(labels) * max(0.34, 0.23 * len(named)) + (0.3 if title else 0) + (0.25 if reference else 0)
    height += 0.3 if len(named) > 1 else 0
    with figure_style():
        figure = new_figure(width, height, layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(labels))
        for index, (name, one) in enumerate(named.items()):
            y = places + (index - (len(named) - 1) / 2) * thick
            axes.barh(y, one.y, thick * 0.88, color=_color(name, index, colors), label=name or None)
            tips = one.y.copy()
            if one.low is not None:
                spread = np.stack([one.y - one.low, one.high - one.y])  # [2, n]
                axes.errorbar(one.y, y, xerr=spread, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
                tips = np.where(one.y >= 0, one.high, one.low)
            for tip, at, value in zip(tips, y, one.y, strict=True):
                side, align = (5, "left") if value >= 0 else (-5, "right")
                axes.annotate(
                    value_format.format(value).replace("-", "\N{MINUS SIGN}"),
                    (tip, at),
                    (side, 0),
                    textcoords="offset points",
                    va="center",
                    ha=align,
                    fontsize=8.5,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
                    zorder=4,
                )
        for label, value in (reference or {}).items():
            axes.axvline(value, color=ROLES["reference"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
            axes.annotate(
                label,
                (value, 1),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=MUTED,
            )
        axes.set_yticks(places, ["\n".join(wrap_text(label, width * 0.3, 9.5, max_lines=2)) for label in labels])
        axes.set(xlabel=xlabel, ylim=(len(labels) - 0.45, -0.55))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.spines["left"].set_visible(bool(min(one.y.min() for one in named.values()) >= 0))
        if xlim:
            axes.set_xlim(*xlim)
        else:
            negative = any((one.y < 0).any() for one in named.values())
            axes.margins(x=0.17 if negative else 0.1)  # room for a number left of a bar
        if title:
            title_above(axes, title, pad=22 if reference else 10)
        if len(named) > 1:
            figure.legend(loc="outside lower right", ncols=len(named), handlelength=1.2, columnspacing=1.4)
    figure.alt = alt or _describe_bars(labels, named, reference, xlabel, title, value_format, lang)
    return figure


def _named(series: Any) -> dict[str, Any]:
    return dict(series) if isinstance(series, Mapping) else {"": series}


def _limit(named: Mapping[str, Series]) -> None:
    if not 1 <= len(named) <= len(PALETTE):
        raise ValueError(f"{len(named)} series; expected 1 to {len(PALETTE)}: split the chart into several")


def _numbers(values: Any, what: str) -> np.ndarray:
    array = np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{what} has shape {array.shape}; expected a list of numbers")
    return array


def _series(values: Any, length: int, label: str) -> Series:
    what = f"series {label!r}" if label else "the series"
    if isinstance(values, tuple) and len(values) == 3 and np.ndim(values[0]) == 1:
        y, low, high = (_numbers(one, f"{what}, part {part}") for part, one in enumerate(values))
        slack = 1e-9 * (abs(low) + abs(high))  # a mean of equal numbers may round off
        if ((low > y + slack) | (y > high + slack)).any():
            raise ValueError(f"{what}: a value lies outside its interval; expected a tuple (y, low, high)")
        one = Series(y.clip(low, high), low, high)
    else:
        array = np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
        if array.ndim == 2 and len(array):
            low, high = array.min(axis=0), array.max(axis=0)
            one = Series(array.mean(axis=0).clip(low, high), low, high)
        else:
            one = Series(_numbers(array, what))
    lengths = {len(part) for part in (one.y, one.low, one.high) if part is not None}
    if lengths != {length}:
        raise ValueError(f"{what} has {sorted(lengths)} values; expected {length}")
    return one


AROUND = ((6, 4), (6, -12), (-6, 4), (-6, -12), (0, 9), (0, -17), (14, 14), (-14, 14), (14, -22), (-14, -22))


def label_points(axes: Any, labels: Mapping[str, tuple[float, float]]) -> None:
    """Names beside points (name -> x, y), each at the first place around its point that touches nothing.

    Nothing is another name, another point or the frame of the axes. Where every place touches something, the first is
    taken. Call it last: a later change of limits or layout moves the points under their names.
    """
    figure = axes.figure
    figure.canvas.draw()  # the layout decides how many pixels a unit has
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    points = axes.transData.transform(np.array(list(labels.values()), dtype=float).reshape(-1, 2))
    taken: list[Any] = []
    for k, (name, (x, y)) in enumerate(labels.items()):
        tried = []
        for right, up in AROUND:
            text = axes.annotate(
                name, (x, y), (right, up), textcoords="offset points", fontsize=8,
                ha="left" if right > 0 else "right" if right < 0 else "center",
            )  # fmt: skip
            box = text.get_window_extent(renderer).padded(2)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            others = [p for i, p in enumerate(points) if i != k]
            near = any(box.x0 - 5 <= px <= box.x1 + 5 and box.y0 - 5 <= py <= box.y1 + 5 for px, py in others)
            tried.append((text, box))
            if inside and not near and not any(box.overlaps(other) for other in taken):
                break
        else:
            tried.append(tried[0])
        for text, _ in tried:
            if text is not tried[-1][0]:
                text.remove()
        taken.append(tried[-1][1])


def _color(label: str, index: int, colors: Mapping[str, str] | None) -> str:
    chosen = (colors or {}).get(label, PALETTE[index])
    return ROLES.get(chosen, chosen)


def _label_ends(axes: Any, ends: Sequence[tuple[str, float, str]], height: float) -> None:
    """Names of lines at their right ends, moved apart vertically where they would touch; `height` in points."""
    low, high = (axes.yaxis.get_transform().transform(value) for value in axes.get_ylim())
    at = [height * (axes.yaxis.get_transform().transform(value) - low) / (high - low) for _, value, _ in ends]
    texts = ["\n".join(wrap_text(label, 1.6, 9.5, max_lines=2)) for label, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: at[i])
    heights = [1.0 + 12.0 * (1 + texts[i].count("\n")) for i in order]
    moved = dict(zip(order, _spread([at[i] for i in order], heights), strict=True))
    for i, (_, value, color) in enumerate(ends):
        axes.annotate(
            texts[i],
            (1, value),
            (7, moved[i] - at[i]),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9.5,
            annotation_clip=False,
        )


def _spread(sorted_positions: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres of boxes of these heights that do not overlap, as near to the given ones (least squares) as their order
    allows: positions less what lies below them may not fall, so falling neighbours are pooled."""
    below = np.cumsum([0.0, *((a + b) / 2 for a, b in pairwise(heights))])[: len(heights)]
    groups: list[list[float]] = []  # [sum, members]
    for position, offset in zip(sorted_positions, below, strict=True):
        groups.append([position - offset, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            (total, n), (more, m) = groups[-2:]
            groups[-2:] = [[total + more, n + m]]
    pooled = [total / n for total, n in groups for _ in range(int(n))]
    return [float(value + offset) for value, offset in zip(pooled, below, strict=True)]


def _describe_curves(
    x: np.ndarray,
    named: Mapping[str, Series],
    reference: Mapping[str, float] | None,
    xlabel: str,
    ylabel: str,
    title: str | None,
    lang: str | None,
) -> str:
    lines = []
    for label, one in named.items():
        ends = {"first": one.y[0], "last": one.y[-1], "low": one.y.min(), "high": one.y.max()}
        lines.append(t("fig.alt.line", lang=lang, name=label or ylabel, **ends))
    lines += [f"{label} {value:.3g}" for label, value in (reference or {}).items()]
    heading = f"{title}: " if title else ""
    axis = {"xlabel": xlabel, "ylabel": ylabel, "x_first": x[0], "x_last": x[-1]}
    return t("fig.alt.curve", lang=lang, title=heading, lines="; ".join(lines), **axis)


def _describe_bars(
    labels: Sequence[str],
    named: Mapping[str, Series],
    reference: Mapping[str, float] | None,
    xlabel: str,
    title: str | None,
    value_format: str,
    lang: str | None,
) -> str:
    parts = []
    for name, one in named.items():
        bars = ", ".join(f"{label} {value_format.format(value)}" for label, value in zip(labels, one.y, strict=True))
        parts.append(f"{name}: {bars}" if name else bars)
    parts += [f"{label} {value_format.format(value)}" for label, value in (reference or {}).items()]
    return t("fig.alt.bar", lang=lang, title=f"{title}: " if title else "", xlabel=xlabel, bars="; ".join(parts))
