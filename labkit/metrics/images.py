"""One image pipeline for reals and fakes, named, so that a result can say how its images were prepared.

Every picture goes through the same steps: rounding to uint8 (what a saved file would hold), resize, normalisation.
Resizing with another library's filter moves FID by up to 7 (Parmar et al. 2022, "On Aliased Resizing"), truncating
instead of rounding darkens every image by half a level: so the pipeline is part of the statistics' fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from labkit.images import (
    FITS,
    ImageError,
    centre_box,
    check_declared,
    common_range,
    fit_levels,
    read_levels,
    value_range_of,
)

RESIZES = ("bicubic-antialias", "bilinear-antialias", "bilinear", "bilinear-tf1")


def to_levels(images: Tensor, *, value_range: tuple[float, float] | None = None) -> Tensor:
    """Float images in `value_range` -> uint8 of the same shape, rounded to the nearest level; uint8 passes through.

    Values a little outside (decoders overshoot) are clamped. value_range=None takes the one range that the values can
    mean, see `labkit.images`.

    Raises:
        ImageError (a ValueError): NaN, values more than half the range's width outside it (then the range is wrong),
            or values within [0, 1] without a declared range.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ImageError(f"images must be uint8, or float with value_range low < high, got {images.dtype}")
    images = images.detach().float()
    smallest, largest = (float(v) for v in images.aminmax())
    if value_range is None:
        low, high = value_range_of(smallest, largest)
    else:
        low, high = check_declared(smallest, largest, value_range)
    return ((images - low) * (255 / (high - low))).clamp(0, 255).round().to(torch.uint8)


def uint8_images(images: object, *, value_range: tuple[float, float] | None = None) -> list[Tensor]:
    """One picture, a list or a batch of them, of any kind that `labkit.images` reads, as uint8 tensors [3, H, W].

    A tensor batch [N, 3, H, W] stays on its device. Float pictures of one call have one range.
    """
    if _is_one(images):
        images = [images]
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ImageError(
                f"an image batch must be [N, 3, H, W], got {tuple(images.shape)}: permute or convert to RGB"
            )
        return list(to_levels(images, value_range=value_range).expand(-1, 3, -1, -1))
    if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str | bytes) or len(images) == 0:
        raise ImageError(f"images must be a non-empty batch of pictures, got {type(images).__name__}")
    if value_range is None:
        value_range = common_range(images)
    return [_one(image, value_range, f"image {i}") for i, image in enumerate(images)]


@dataclass(frozen=True)
class ImagePipeline:
    """uint8 rounding -> resize to size x size -> (x / 255 - mean) / std, float32.

    Attributes:
        name: goes into results. size: side of the network's input.
        resize: "bicubic-antialias" (as Pillow and clean-fid), "bilinear-antialias" (torchmetrics since 1.8), "bilinear"
            (torch without antialias, as pytorch-fid) or "bilinear-tf1" (the original FID graph, as torch-fidelity).
            Images that already have the size are not touched.
        mean, std: per channel, on the [0, 1] scale.
        fit: "squash" (both sides at once, as every published FID), "crop" (the largest centred square, then resized)
            or "clip" (shorter side to size by Pillow's bicubic filter, then a crop at the centre: the digits of
            transformers' CLIPImageProcessor). It matters for pictures that are not square.
    """

    name: str
    size: int
    resize: str = "bicubic-antialias"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit: str = "squash"

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"unknown fit {self.fit!r}: use one of {', '.join(FITS)}")
        if self.resize not in RESIZES:
            raise ValueError(f"unknown resize {self.resize!r}: use one of {', '.join(RESIZES)}")

    def describe(self) -> str:
        """One line with every setting: the fingerprint's `pipeline`."""
        mean, std = (",".join(f"{v:.6g}" for v in values) for values in (self.mean, self.std))
        crop = {"squash": "", "crop": "centre crop, ", "clip": "shorter side, centre crop, "}[self.fit]
        return f"{self.name}: uint8 rounded, {crop}{self.resize} {self.size}x{self.size}, mean {mean}, std {std}"

    def __call__(self, images: object, *, value_range: tuple[float, float] | None = None) -> Tensor:
        """Pictures of any accepted kind -> network input [N, 3, size, size] float32.

        value_range: of float pictures; None takes the one that they can have, and refuses values within [0, 1].
        """
        pictures = [self._cropped(picture) for picture in uint8_images(images, value_range=value_range)]
        mean, std = (torch.tensor(v, device=pictures[0].device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        if len({picture.shape for picture in pictures}) == 1:
            levels = resize_levels(torch.stack(pictures).float(), self.size, self.resize)
        else:
            levels = torch.cat([resize_levels(picture[None].float(), self.size, self.resize) for picture in pictures])
        return (levels / 255 - mean) / std  # [N, 3, size, size]

    def _cropped(self, picture: Tensor) -> Tensor:
        """uint8 [3, H, W] -> what is resized: all of it, its central square, or the finished crop of CLIP."""
        if self.fit == "squash" or picture.shape[1:] == (self.size, self.size):
            return picture
        if self.fit == "clip":
            levels = fit_levels(picture.permute(1, 2, 0).cpu().numpy(), self.size, "clip")
            return torch.from_numpy(levels.copy()).permute(2, 0, 1).to(picture.device)
        top, left, h, w = centre_box(*picture.shape[1:], 1, 1)
        return picture[:, top : top + h, left : left + w]


# (x - 128) / 128, the scaling inside the FID graph, is mean = std = 128 / 255 here.
_FID = (128 / 255,) * 3
PIPELINES = {
    pipeline.name: pipeline
    for pipeline in (
        ImagePipeline("clean-299", 299, "bicubic-antialias", _FID, _FID),
        ImagePipeline("legacy-299", 299, "bilinear-tf1", _FID, _FID),
        ImagePipeline("pytorch-fid-299", 299, "bilinear"),
        ImagePipeline("portrait-64", 64),
    )
}


def resize_levels(levels: Tensor, size: int, resize: str) -> Tensor:
    """Resize float images [N, 3, H, W] on the 0..255 scale to [N, 3, size, size]; overshoot is clipped to 0..255."""
    if levels.shape[-2:] == (size, size):
        return levels
    if resize == "bilinear-tf1":
        return _tf1(_tf1(levels, size, dim=3), size, dim=2)
    mode, antialias = resize.split("-")[0], resize.endswith("antialias")
    out = F.interpolate(levels, (size, size), mode=mode, align_corners=False, antialias=antialias)
    return out.clamp(0, 255)


def _tf1(x: Tensor, size: int, *, dim: int) -> Tensor:
    """TensorFlow 1's bilinear resize along one axis: source position i * (in / out), no half-pixel centres."""
    length = x.shape[dim]
    position = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
    start = position.floor().long().clamp(max=length - 1)
    stop = (start + 1).clamp(max=length - 1)
    weight = (position - start).view([-1 if axis == dim else 1 for axis in range(4)])
    first = x.index_select(dim, start)
    return first + (x.index_select(dim, stop) - first) * weight


def range_of(images: object) -> tuple[float, float] | None:
    """The one range that all float pictures of a call can have (None without floats), see `labkit.images`."""
    whole = isinstance(images, Image.Image | Tensor | np.ndarray)
    return common_range([images] if whole else images)


def _is_one(images: object) -> bool:
    return isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim == 3)


def _one(image: object, value_range: tuple[float, float] | None, what: str) -> Tensor:
    if (
        isinstance(image, Tensor)
        and image.ndim == 3
        and image.shape[0] == 3
        and (image.is_floating_point() or image.dtype == torch.uint8)
    ):
        return to_levels(image, value_range=value_range)  # stays on its device
    return torch.from_numpy(np.array(read_levels(image, value_range=value_range, what=what))).permute(2, 0, 1)


def batches(images: object, size: int) -> Iterator[object]:
    """Cut a batch of images (tensor, array or list) into pieces of at most `size`."""
    if _is_one(images):
        images = [images]
    for start in range(0, len(images), size):
        yield images[start : start + size]


def sharpness_of(images: Tensor) -> Tensor:
    """Standard deviation of the Laplacian of the luminance (in [0, 1]), per image [B]; the ATHEC measure of HG-DPO
    (arXiv 2405.20216).

    Rewards noise and broken edges as much as detail: "sharper" is not "better".
    """
    luminance = (images.float() / 2 + 0.5).mean(1, keepdim=True)  # [B, 1, H, W]
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=images.device)
    return F.conv2d(luminance, kernel.view(1, 1, 3, 3)).flatten(1).std(1)
