"""From whatever a lesson holds (PIL image, array, tensor) to uint8 pixels and PNG bytes. Knows nothing of torch."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from typing import Any

import numpy as np


def as_pixels(image: Any, *, what: str = "image") -> np.ndarray:
    """One image as uint8 RGB pixels, shape [H, W, 3].

    Args:
        image: a PIL image; a uint8 array [H, W], [H, W, 3] or [H, W, 4] (alpha is laid over white); or a float tensor
            or array [3, H, W] or [1, H, W] with values in [-1, 1], the range of diffusion models. Floats outside the
            range are clipped, and rounded to the nearest of 256 levels.
        what: how an error names the image.

    Raises:
        TypeError: not an image at all.
        ValueError: wrong shape, or a float image with NaN or infinite values.
    """
    if hasattr(image, "convert") and hasattr(image, "size"):  # PIL, of any mode, as a viewer shows it
        from labkit.images import read_levels

        return read_levels(image, what=what)
    if hasattr(image, "detach"):  # torch tensor
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{what} is a {type(image).__name__}; expected a PIL image, a uint8 array or a float tensor")
    if np.issubdtype(image.dtype, np.floating):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"{what} is a float of shape {tuple(image.shape)}; expected [3, H, W] in [-1, 1]")
        if not np.isfinite(image).all():
            raise ValueError(f"{what} contains NaN or infinite values; check the step that made it")
        pixels = np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)  # [C, H, W]
        return np.repeat(pixels.transpose(1, 2, 0), 3 // pixels.shape[0], axis=2)
    if image.dtype == np.uint8 and image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 4:
        return _over_white(image)
    raise ValueError(
        f"{what} is an array of shape {tuple(image.shape)} and type {image.dtype}; "
        "expected uint8 [H, W, 3] or float [3, H, W] in [-1, 1]"
    )


def as_pixel_list(images: Any) -> list[np.ndarray]:
    """Several images as a list of uint8 arrays [H, W, 3].

    Takes a batch tensor [N, 3, H, W] as well as any iterable of the single images that `as_pixels` takes.

    Raises:
        TypeError: not iterable, or a single image.
        ValueError: as `as_pixels`; the message names the index.
    """
    if hasattr(images, "convert") or getattr(images, "ndim", 4) < 4:
        raise TypeError("got a single image; expected a list of images or a batch [N, 3, H, W]: write [image]")
    if not isinstance(images, Iterable):
        raise TypeError(f"images is a {type(images).__name__}; expected a list of images or a batch [N, 3, H, W]")
    return [as_pixels(image, what=f"image {index}") for index, image in enumerate(images)]


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 pixels [H, W, 3] as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """PNG bytes as a `data:` address for the `src` of an HTML image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def image_html(png: bytes, *, width: int, alt: str, kind: str = "labkit-figure") -> str:
    """An HTML image with a description, `width` pixels wide where there is room; needs no file and no network."""
    return (
        f'<img class="{kind}" src="{data_uri(png)}" alt="{html.escape(alt, quote=True)}" '
        f'style="max-width:100%;width:{width}px;height:auto">'
    )


def image_bundle(png: bytes, *, width: int, alt: str) -> dict[str, str]:
    """The data of a notebook output. The picture is in the HTML only: JupyterLab shows a bare PNG without its `alt`."""
    return {"text/html": image_html(png, width=width, alt=alt), "text/plain": alt}


def _over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[:, :, 3:].astype(np.float32) / 255
    return np.rint(rgba[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
