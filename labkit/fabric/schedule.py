"""When feedback acts, and how strongly: pure functions of the step, the timestep and the depth of a layer.

Every schedule is a window and a shape inside it:

    w = min_weight + (max_weight - min_weight) * shape(u)   inside,   min_weight   outside,       u in [0, 1]

The paper (arXiv 2307.10159, section 5.3), its code, its web UI and diffusers all use a boxcar, shape = 1; linear and
cosine decays are extensions. A window can be measured in steps (the paper's code) or in training time (its web UI):
with 20 evenly spaced steps the window (0, 0.8) covers 17 of them in the first clock and 16 in the second.
"""

from __future__ import annotations

import math


def boxcar(u: float) -> float:
    """Constant inside the window."""
    return 1.0


def linear(u: float) -> float:
    """From 1 at the start of the window to 0 at its end."""
    return 1.0 - u


def cosine(u: float) -> float:
    """Half a cosine from 1 to 0: slow at both ends of the window."""
    return 0.5 * (1.0 + math.cos(math.pi * u))


SHAPES = {"boxcar": boxcar, "linear": linear, "cosine": cosine}


def step_position(index: int, steps: int, start: float, end: float, *, end_included: bool = True) -> float | None:
    """Where step `index` (0 .. steps - 1) lies in the window, 0 .. 1; None outside.

    The bounds are round(steps * fraction), both inclusive: at 20 steps (0, 0.8) is 17 steps, (0.33, 0.66) is 7. Without
    `end_included` step int(steps * end) is the first one outside, as in the ComfyUI node: (0, 0.8) is 16 steps.
    """
    first, last = round(steps * start), round(steps * end) if end_included else int(steps * end + 1e-9) - 1
    if not first <= index <= last:
        return None
    return (index - first) / (last - first) if last > first else 0.0


def time_position(t: float, train_steps: int, start: float, end: float) -> float | None:
    """Where timestep t (train_steps - 1 is pure noise, 0 clean) lies in the window, 0 .. 1; None outside."""
    progress = 1.0 - t / (train_steps - 1)
    if not start - 1e-9 <= progress <= end + 1e-9:
        return None
    return min(max((progress - start) / (end - start), 0.0), 1.0) if end > start else 0.0


def scheduled_weight(position: float | None, *, max_weight: float, min_weight: float, shape: str) -> float:
    """The weight at a position in the window (None: outside). `shape` is a key of SHAPES."""
    return min_weight if position is None else min_weight + (max_weight - min_weight) * SHAPES[shape](position)


def depth_ramp(depth: float, bottleneck_scale: float) -> float:
    """Factor of a layer at depth 0 (outermost) .. 1 (middle of the U-Net): linear from 1 to bottleneck_scale.

    The paper's code has this ramp over depth, block by block, and none over time; it is flat by default.
    """
    return 1.0 + (bottleneck_scale - 1.0) * depth
