"""Points in the plane: density and neighbourhood, kept and rejected, the path of a perturbed point.

Every label comes from the caller; `titles` are (left, right).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Circle

from labkit.figures.base import CourseFigure, figure_style, new_figure, wrap_text
from labkit.figures.style import INK, MARKERS, MUTED, PALETTE, ROLES

GREY = "#C9C9C9"


def _bare(axes, reach: float | None = None) -> None:
    """Equal scales, no ticks, no grid: the axes mean nothing by themselves."""
    limits = {} if reach is None else {"xlim": (-reach, reach), "ylim": (-reach, reach)}
    axes.set(aspect="equal", xticks=[], yticks=[], **limits)
    axes.grid(visible=False)


def density_map(
    points: np.ndarray,
    values: np.ndarray,
    *,
    truth: np.ndarray,
    reach: float,
    ball: tuple[int, float],
    titles: Sequence[str],
    label: str,
    alt: str,
) -> CourseFigure:
    """A known density beside points [n, 2] coloured by their values [n], with the ball of one of them.

    Args:
        truth: [m, m] over the square from -reach to reach, rows from bottom to top.
        ball: number of a point, radius around it. label: what the colours mean.
    """
    points, values = np.asarray(points), np.asarray(values)
    with figure_style():
        figure = new_figure(8.4, 3.9, layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(np.asarray(truth), origin="lower", extent=(-reach, reach, -reach, reach), cmap="magma")
        dots = right.scatter(*points.T, c=values, s=5, cmap="viridis", vmin=0, vmax=float(np.quantile(values, 0.99)))
        number, radius = ball
        right.add_patch(Circle(points[number].tolist(), radius, fill=False, edgecolor=ROLES["bad"], linewidth=2))
        figure.colorbar(dots, label=label)
        for axes, title in zip((left, right), titles, strict=True):
            axes.set_title(title)
            _bare(axes, reach)
    figure.alt = alt
    return figure


def kept_points(
    points: np.ndarray,
    kept: np.ndarray,
    *,
    stops: Sequence[tuple[float, float]],
    others: Mapping[str, Sequence[tuple[float, float]]],
    names: tuple[str, str],
    titles: Sequence[str],
    xlabel: str,
    ylabel: str,
    alt: str,
) -> CourseFigure:
    """Which points [n, 2] a setting keeps (bool [n]), beside a plane of two measures.

    Args:
        stops: (x, y) of all settings tried, the last one being shown. others: label -> (x, y) of other methods.
        names: of rejected and kept points.
    """
    points, kept, stops = np.asarray(points), np.asarray(kept), np.asarray(stops, dtype=float)
    with figure_style():
        figure = new_figure(8.6, 4.0, layout="constrained")
        left, right = figure.subplots(1, 2)
        left.scatter(*points[~kept].T, s=5, color=GREY, label=names[0])
        left.scatter(*points[kept].T, s=5, color=PALETTE[0], label=names[1])
        left.legend(loc="center", markerscale=3)
        _bare(left)
        right.plot(*stops.T, color=MUTED, marker="o", markersize=4, linestyle="none")
        right.plot(*stops[-1:].T, color=PALETTE[0], marker="o", markersize=9)
        for index, (name, found) in enumerate(others.items()):
            style = {"color": PALETTE[1 + index], "marker": MARKERS[1 + index], "linestyle": "none"}
            right.plot(*np.asarray(found, dtype=float).reshape(-1, 2).T, label=name, **style)
        right.set(xlabel=xlabel, ylabel=ylabel)
        if others:
            right.legend(loc="best")
        for axes, title in zip((left, right), titles, strict=True):
            axes.set_title("\n".join(wrap_text(title, 4.0, 12)))
    figure.alt = alt
    return figure


def path_in_box(
    deltas: np.ndarray,
    path: np.ndarray,
    *,
    eps: float,
    background: np.ndarray,
    best: int,
    title: str,
    titles: Sequence[str],
    xlabel: str,
    ylabel: str,
) -> CourseFigure:
    """A perturbation: its coordinates deltas [steps + 1, d] between the walls at +-eps, and the path [steps + 1, 2] of
    what is generated among the points of `background` [n, 2]; the iterate `best` is ringed."""
    path = np.asarray(path)
    with figure_style():
        figure = new_figure(8.4, 4.0, layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, line in enumerate(np.asarray(deltas).T):
            left.plot(line, color=PALETTE[i], marker=MARKERS[i], markersize=4, label=f"$\\delta_{i + 1}$")
        for wall in (-eps, eps):
            left.axhline(wall, color=ROLES["reference"], linestyle=(0, (4, 3)))
        left.set(xlabel=xlabel, ylabel=ylabel, ylim=(-1.5 * eps, 1.2 * eps), title=titles[0])
        left.legend(loc="lower center", ncols=3)
        right.scatter(*np.asarray(background).T, s=4, color=GREY)
        right.plot(*path.T, color=PALETTE[1], marker=".", linewidth=1.5)
        right.plot(*path[0], color=PALETTE[0], marker="o", markersize=8)
        right.plot(*path[best], marker="o", markersize=12, markerfacecolor="none", markeredgecolor=INK)
        right.set_title(titles[1])
        _bare(right)
        figure.suptitle("\n".join(wrap_text(title, 7.8, 12)), fontsize=12)
    figure.alt = title
    return figure
