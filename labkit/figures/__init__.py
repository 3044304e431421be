"""The course's figures: image grids, before/after strips, curves and bars with intervals, heat maps over images.

One small set used by every lesson. Each function returns a `CourseFigure`: the value of a cell shows it, `.alt` is its
description for screen readers (made from the data in the learner's language unless given), `.savefig` works as always.
Images may be PIL images, uint8 arrays [H, W, 3] or float tensors [3, H, W] in [-1, 1].

| module   | what it holds                                                                                  |
|----------|------------------------------------------------------------------------------------------------|
| grids    | images in rows: `image_grid`, `strips`, `before_after`, `heatmap_overlay`; layout places them  |
| charts   | numbers: `curve_with_interval`, `bar_with_interval`, `label_points`                            |
| recorded | a recorded study, your numbers on top: `recorded_means`, `recorded_plane`, `recorded_paths`    |
| clouds   | points in the plane: `density_map`, `kept_points`, `path_in_box`                               |
| tornado  | `tornado_chart`: which assumption decides                                                      |
| widgets  | `explore(function, controls)`: a picture, and controls below it; controls are plain data       |
| game     | the feedback game of the FABRIC lesson                                                         |
| desk     | the inspection desk of the verification lesson: one picture, one key, its time                 |
| base     | `CourseFigure`, and text that is measured and broken into lines                                |
| style    | colours, fonts, resolution                                                                     |
| images   | from whatever a lesson holds to pixels, PNG and HTML                                           |

Widgets are imported from `labkit.figures.widgets`, `labkit.figures.game` and `labkit.figures.desk`.
"""

from __future__ import annotations

from labkit.figures.base import CourseFigure, figure_style, new_figure
from labkit.figures.charts import bar_with_interval, curve_with_interval, label_points
from labkit.figures.clouds import density_map, kept_points, path_in_box
from labkit.figures.grids import before_after, heatmap_overlay, image_grid, strips
from labkit.figures.recorded import Look, family_looks, recorded_means, recorded_paths, recorded_plane
from labkit.figures.tornado import tornado_chart

__all__ = [
    "image_grid",
    "strips",
    "before_after",
    "heatmap_overlay",
    "curve_with_interval",
    "bar_with_interval",
    "recorded_means",
    "recorded_plane",
    "recorded_paths",
    "family_looks",
    "Look",
    "density_map",
    "kept_points",
    "path_in_box",
    "tornado_chart",
    "label_points",
    "new_figure",
    "figure_style",
    "CourseFigure",
]
