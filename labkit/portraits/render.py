"""Drawing a `PortraitSpec`: DiceBear art -> SVG -> resvg -> crop -> pixels. Deterministic, offline, a few
milliseconds an image.

The art is DiceBear's (see `data/ATTRIBUTION.md`); this module chooses its options. Each style is cropped so that
the head fills the
frame: at 64 pixels an uncropped mouth is six pixels wide and thin glasses vanish in the VAE.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files

import numpy as np
import resvg_py
import torch
from PIL import Image

from labkit.portraits.spec import PortraitSpec


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Inside, `import module` raises `ImportError`, unless it was imported before."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None
    try:
        yield
    finally:
        del sys.modules[module]


# dicebear checks styles with jsonschema, which on import compiles 38 grammars of internationalised addresses (as long
# as importing torch takes) where it finds rfc3987_syntax, as it does beside Jupyter. Styles have no such addresses.
with hidden("rfc3987_syntax"):
    from dicebear import Avatar, Style

HAIR = {
    "black": "241c22",
    "brown": "7b4a2d",
    "blonde": "e3b85b",
    "red": "cf3d1c",
    "pink": "f387b2",
    "white": "efebe7",
    "blue": "3f6fd8",
}
SKIN = {"light": "ffdbb4", "tan": "e2a36f", "brown": "a8693f", "dark": "5d3a29"}
CLOTHES = {
    "red": "d93a3a",
    "orange": "f28a2e",
    "yellow": "f6d13d",
    "green": "3da85a",
    "blue": "3b82e0",
    "purple": "7d55c4",
    "black": "262b33",
    "white": "f7f7f7",
}
BACKGROUND = {
    "gray": "c9ced6",
    "mint": "b5efcd",
    "sky": "aee0f7",
    "lavender": "c3b1e6",
    "pink": "ffccd9",
    "lemon": "fff1b8",
}
BALD_BEARD = "241c22"  # a bald head has no hair colour to borrow

# left, top, right, bottom as fractions of the drawing: the head fills the frame
CROP = {
    "avataaars": (0.10, 0.05, 0.90, 0.85),
    "personas": (0.08, 0.07, 0.92, 0.91),
    "toon-head": (0.08, 0.11, 0.92, 0.95),
    "micah": (0.03, 0.02, 0.97, 0.96),
    "open-peeps": (0.04, 0.03, 0.97, 0.96),
}
_DRAWING_SIZE = 256  # pixels of the full drawing before the crop


def _one(component: str, variant: str | None) -> dict:
    """Options that force a component to one variant, or to be absent."""
    if variant is None:
        return {f"{component}Probability": 0}
    return {f"{component}Variant": [variant], f"{component}Probability": 100}


def _avataaars(spec: PortraitSpec, beard_color: str) -> dict:
    top = {"short": "shortFlat", "curly": "curly", "bob": "bob", "long": "straight02", "bun": "bun", "bald": None}[
        spec.hair_style
    ]
    eyes, brows, mouth = {
        "happy": ("happy", "defaultNatural", "smile"),
        "calm": ("default", "defaultNatural", "serious"),
        "sad": ("default", "sadConcerned", "sad"),
        "surprised": ("surprised", "raisedExcited", "disbelief"),
    }[spec.mood]
    options = (
        _one("top", top)
        | _one("eyes", eyes)
        | _one("eyebrows", brows)
        | _one("mouth", mouth)
        | _one("clothes", "shirtCrewNeck")
    )
    options |= _one(
        "accessories", {"none": None, "glasses": "prescription02", "sunglasses": "sunglasses"}[spec.glasses]
    )
    options |= _one("facialHair", {"none": None, "beard": "beardMedium", "moustache": "moustacheMagnum"}[spec.beard])
    return options | {
        "accessoriesColor": ["20242c"],
        "facialHairColor": [beard_color],
        "clothesColor": [CLOTHES[spec.clothes]],
    }


def _personas(spec: PortraitSpec, beard_color: str) -> dict:
    hair = {"short": "shortCombover", "curly": "curly", "bob": "bobCut", "long": "extraLong", "bald": "bald"}[
        spec.hair_style
    ]
    mouth = {"happy": "bigSmile", "calm": "smirk", "sad": "frown", "surprised": "surprise"}[spec.mood]
    bare = {"happy": "happy", "calm": "open", "sad": "sleep", "surprised": "open"}[spec.mood]
    eyes = {"none": bare, "glasses": "glasses", "sunglasses": "sunglasses"}[spec.glasses]
    options = (
        _one("hair", hair)
        | _one("mouth", mouth)
        | _one("eyes", eyes)
        | _one("clothes", "squared")
        | _one("nose", "mediumRound")
    )
    options |= _one("facialHair", {"none": None, "beard": "goatee", "moustache": "walrus"}[spec.beard])
    return options | {"facialHairColor": [beard_color], "clothingColor": [CLOTHES[spec.clothes]]}


def _toon_head(spec: PortraitSpec, beard_color: str) -> dict:
    hair, rear = {
        "short": ("sideComed", None),
        "bob": ("sideComed", "neckHigh"),
        "long": ("sideComed", "longStraight"),
        "bun": ("bun", None),
        "spiky": ("spiky", None),
    }[spec.hair_style]
    eyes, brows, mouth = {
        "happy": ("happy", "happy", "laugh"),
        "calm": ("happy", "neutral", "smile"),
        "sad": ("humble", "sad", "sad"),
        "surprised": ("wide", "raised", "agape"),
    }[spec.mood]
    options = (
        _one("hair", hair)
        | _one("rearHair", rear)
        | _one("eyes", eyes)
        | _one("eyebrows", brows)
        | _one("mouth", mouth)
    )
    options |= _one("beard", {"none": None, "beard": "fullBeard", "moustache": "moustacheTwirl"}[spec.beard]) | _one(
        "clothes", "tShirt"
    )
    return options | {"clothesColor": [CLOTHES[spec.clothes]]}


def _micah(spec: PortraitSpec, beard_color: str) -> dict:
    hair = {"short": "fonze", "bob": "pixie", "long": "full", "bald": "mrClean"}[spec.hair_style]
    mouth = {"happy": "laughing", "calm": "smile", "sad": "frown", "surprised": "surprised"}[spec.mood]
    brows = {"happy": "up", "calm": "up", "sad": "down", "surprised": "up"}[spec.mood]
    options = (
        _one("hair", hair)
        | _one("mouth", mouth)
        | _one("eyebrows", brows)
        | _one("eyes", "eyes")
        | _one("earrings", None)
    )
    options |= _one("nose", "curve") | _one("ears", "attached") | _one("clothes", "crew")
    options |= _one("glasses", {"none": None, "glasses": "round"}[spec.glasses])
    options |= _one("facialHair", {"none": None, "beard": "beard"}[spec.beard])
    colors = {"baseColor": [SKIN[spec.skin]], "shirtColor": [CLOTHES[spec.clothes]], "glassesColor": ["20242c"]}
    return options | colors | {"facialHairColor": [beard_color]}


def _open_peeps(spec: PortraitSpec, beard_color: str) -> dict:
    head = {"short": "grayShort", "bob": "bangs", "bun": "grayBun", "bald": "noHair1"}[spec.hair_style]
    face = {"happy": "smileBig", "calm": "calm", "sad": "solemn", "surprised": "fear"}[spec.mood]
    options = _one("head", head) | _one("expression", face) | _one("mask", None)
    options |= _one("accessories", {"none": None, "glasses": "glasses3", "sunglasses": "sunglasses2"}[spec.glasses])
    options |= _one("facialHair", {"none": None, "beard": "full4", "moustache": "moustache9"}[spec.beard])
    hair = HAIR.get(spec.hair_color, beard_color)
    return options | {"headContrastColor": [hair], "clothingColor": [CLOTHES[spec.clothes]]}


_OPTIONS = {
    "avataaars": _avataaars,
    "personas": _personas,
    "toon-head": _toon_head,
    "micah": _micah,
    "open-peeps": _open_peeps,
}


@cache
def _style(name: str) -> Style:
    return Style(json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8")))


def svg(spec: PortraitSpec) -> str:
    """The uncropped drawing as SVG text."""
    beard_color = HAIR.get(spec.hair_color, BALD_BEARD)
    options = _OPTIONS[spec.style](spec, beard_color) | {
        "seed": "portrait",  # every visible choice is forced by an option, so one seed serves all
        "size": _DRAWING_SIZE,
        "backgroundColor": [BACKGROUND[spec.background]],
        "hairColor": [HAIR.get(spec.hair_color, beard_color)],
        "skinColor": [SKIN[spec.skin]],
    }
    drawing = Avatar(_style(spec.style), options).to_string()
    if spec.style == "personas":  # its white veil turns dark skin grey and hides a white smile on light skin: thin it
        drawing = re.sub(r'opacity="\.\d+" style="mix-blend-mode:overlay"', 'opacity=".12"', drawing)
    return drawing


def check_size(size: int) -> None:
    """Raise a `ValueError` unless `size` is a positive multiple of 8."""
    if size <= 0 or size % 8:
        raise ValueError(
            f"size {size} is not a positive multiple of 8: the VAE divides the side by 8, so use 64, 128, ..."
        )


def render(spec: PortraitSpec, size: int = 64) -> Image.Image:
    """The portrait as an RGB image of `size` x `size` pixels.

    Raises:
        ValueError: `size` is not a positive multiple of 8 (the VAE takes no others).
    """
    check_size(size)
    zoom = max(160, 2 * size)  # always draw larger than the result, then shrink
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg(spec), width=zoom, height=zoom))
    drawing = Image.open(io.BytesIO(png)).convert("RGB")
    box = tuple(fraction * zoom for fraction in CROP[spec.style])
    return drawing.resize((size, size), Image.Resampling.LANCZOS, box=box)


def render_array(spec: PortraitSpec, size: int = 64) -> np.ndarray:
    """The portrait as uint8 [size, size, 3]."""
    return np.asarray(render(spec, size))


def render_tensor(specs: Sequence[PortraitSpec], size: int = 64) -> torch.Tensor:
    """Portraits as float32 [N, 3, size, size] in [-1, 1]."""
    stack = np.stack([render_array(spec, size) for spec in specs])  # [N, H, W, 3]
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


def grainy(images: torch.Tensor, amount: float, *, generator: torch.Generator) -> torch.Tensor:
    """Pictures with grain, as photographs have it and drawings lack it: independent Gaussian noise on every pixel.

    Args:
        images: float [N, 3, H, W] in [-1, 1].
        amount: standard deviation of the grain in the same unit; 0 returns a copy.
        generator: a CPU generator.

    Returns:
        Images of the same shape, clamped to [-1, 1].

    Raises:
        ValueError: a negative amount.
    """
    if amount < 0:
        raise ValueError(f"amount {amount}: expected a standard deviation >= 0")
    return (images + amount * torch.randn(images.shape, generator=generator).to(images)).clamp(-1, 1)
