"""A small world of manufactured parts: what is a defect, what is within tolerance, and how it was photographed.

A painted plate with four screws, a hole and a label. Five attributes, each with a good and a defective value. Good
parts still vary within tolerances, and each photograph has its own brightness, position, distance and sensor noise.
The paper contains no inspection experiment: this world is the course's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

PARTS: dict[str, tuple[str, str]] = {
    "screws": ("four", "missing"),
    "surface": ("clean", "scratch"),
    "label": ("level", "tilted"),
    "hole": ("small", "large"),
    "paint": ("blue", "green"),
}
"""attribute -> (good value, defect)"""

PRODUCT_WORDING = {
    "screws": {"four": "all screws", "missing": "a missing screw"},
    "surface": {"clean": "no scratch", "scratch": "a scratch"},
    "label": {"level": "a level label", "tilted": "a tilted label"},
    "hole": {"small": "a small hole", "large": "a large hole"},
    "paint": {"blue": "blue paint", "green": "green paint"},
}
_PAINT = {"blue": (62, 108, 176), "green": (62, 150, 130)}
_TABLE = (176, 178, 182)
_CANVAS = 256


@dataclass(frozen=True, order=True)
class ProductSpec:
    """One part; the default is a good one."""

    screws: str = "four"
    surface: str = "clean"
    label: str = "level"
    hole: str = "small"
    paint: str = "blue"

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            if value not in PARTS[name]:
                raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(PARTS[name])}")

    def to_dict(self) -> dict[str, str]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def defects(self) -> tuple[str, ...]:
        """Attributes that have their defective value."""
        return tuple(name for name, value in self.to_dict().items() if value == PARTS[name][1])

    def with_(self, **changes: str) -> ProductSpec:
        return replace(self, **changes)


@dataclass(frozen=True)
class Photo:
    """How far photographs stray from the standard set-up; every photograph draws its own values from these ranges.

    brightness  up to +- this, on the scale of [-1, 1]
    shift       up to +- this many pixels of a 64-pixel picture, each way
    scale       relative size between 1 - scale and 1 + scale
    noise       standard deviation of the sensor noise
    fixed       use the full positive deviation instead of drawing (to look at one effect)
    """

    brightness: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    noise: float = 0.01
    fixed: bool = False


STANDARD = Photo()


def sample_products(n: int, *, generator: torch.Generator, defect_rate: float = 0.5) -> list[ProductSpec]:
    """`n` parts; every attribute is defective with probability `defect_rate`, independently."""
    if not 0 <= defect_rate <= 1:
        raise ValueError(f"defect_rate is {defect_rate}, expected a share from 0 to 1")
    draws = torch.rand(n, len(PARTS), generator=generator) < defect_rate
    return [
        ProductSpec(**{a: values[int(bad)] for (a, values), bad in zip(PARTS.items(), row, strict=True)})
        for row in draws
    ]


def render_products(specs: Sequence[ProductSpec], *, generator: torch.Generator, photo: Photo = STANDARD) -> Tensor:
    """Photographs float32 [N, 3, 64, 64] in [-1, 1]. Every part draws its tolerances and its photograph from the
    generator, 40 numbers each whatever the photo's settings: the same generator state shows the same parts under
    another set-up."""
    pictures = []
    for spec in specs:
        u = (2 * torch.rand(40, generator=generator) - 1).tolist()
        deviations = (1.0,) * 4 if photo.fixed else u[:4]
        picture = _photograph(_draw(spec, u[4:]), photo, deviations)
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1  # [3, 64, 64]
        noise = torch.randn(x.shape, generator=generator) * photo.noise
        pictures.append((x + photo.brightness * deviations[0] + noise).clamp(-1, 1))
    return torch.stack(pictures)


def _draw(spec: ProductSpec, u: Sequence[float]) -> Image.Image:
    """The part on its table at 256 x 256; u: numbers in [-1, 1] that place it within its tolerances."""
    image = Image.new("RGB", (_CANVAS, _CANVAS), _TABLE)
    pen = ImageDraw.Draw(image)
    paint = tuple(round(c + 3 * u[0]) for c in _PAINT[spec.paint])
    pen.rounded_rectangle((28, 28, 228, 228), 20, fill=paint, outline=(36, 44, 60), width=4)
    for k, (x, y) in enumerate([(56, 56), (200, 56), (56, 200), (200, 200)]):
        x, y = x + 1.5 * u[1 + k], y + 1.5 * u[5 + k]
        if spec.screws == "missing" and k == int((u[9] + 1) * 1.999):
            _disc(pen, x, y, 7, (24, 30, 42))
            continue
        _disc(pen, x, y, 15, (214, 216, 220))
        turn = math.pi * u[10 + k]
        dx, dy = 10 * math.cos(turn), 10 * math.sin(turn)
        pen.line((x - dx, y - dy, x + dx, y + dy), fill=(166, 168, 174), width=4)
    _disc(pen, 128 + u[14], 100 + u[15], (30 if spec.hole == "large" else 21) + 0.8 * u[16], (20, 24, 32))
    _label(image, angle=(16 if u[17] > 0 else -16) + 3 * u[18] if spec.label == "tilted" else 1.5 * u[18])
    if spec.surface == "scratch":
        x, y, turn = 128 + 55 * u[19], 90 + 40 * u[20], math.pi * u[21]
        dx, dy = 30 * math.cos(turn), 30 * math.sin(turn)
        pen.line((x - dx, y - dy, x + dx, y + dy), fill=(232, 236, 240), width=5)
    return image


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: tuple[int, ...]) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _label(image: Image.Image, angle: float) -> None:
    label = Image.new("RGBA", (88, 36), (244, 242, 232, 255))
    pen = ImageDraw.Draw(label)
    for y, width in ((9, 68), (18, 54), (27, 62)):
        pen.line((8, y, 8 + width, y), fill=(60, 60, 64, 255), width=3)
    turned = label.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    image.paste(turned, (128 - turned.width // 2, 172 - turned.height // 2), turned)


def _photograph(image: Image.Image, photo: Photo, deviations: Sequence[float]) -> Image.Image:
    """Position and distance of the camera, then the sensor's 64 x 64 pixels."""
    step = _CANVAS / 64
    zoom = 1 / (1 + photo.scale * deviations[3])
    centre = _CANVAS / 2
    dx, dy = photo.shift * deviations[1] * step, photo.shift * deviations[2] * step
    box = (zoom, 0, centre - zoom * (centre + dx), 0, zoom, centre - zoom * (centre + dy))
    size = (_CANVAS, _CANVAS)
    moved = image.transform(size, Image.Transform.AFFINE, box, Image.Resampling.BICUBIC, fillcolor=_TABLE)
    return moved.resize((64, 64), Image.Resampling.LANCZOS)
