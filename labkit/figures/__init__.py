"""The course's figures: image grids, before/after strips, curves and bars with intervals, heat maps over images.

One small set used by every lesson. Each function returns a `CourseFigure`: the value of a cell shows it, `.alt` is its
description for screen readers (made from the data in the learner's language unless given), `.savefig` works as always.
Images may be PIL images, uint8 arrays [H, W, 3] or float tensors [3, H, W] in [-1, 1].
"""

from __future__ import annotations

from labkit.figures.base import CourseFigure, figure_style, new_figure
from labkit.figures.charts import bar_with_interval, curve_with_interval, label_points
from labkit.figures.grids import before_after, heatmap_overlay, image_grid, strips

__all__ = [
    "CourseFigure",
    "bar_with_interval",
    "before_after",
    "curve_with_interval",
    "figure_style",
    "heatmap_overlay",
    "image_grid",
    "label_points",
    "new_figure",
    "strips",
]
