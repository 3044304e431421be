"""Reference images: hashed, resized, encoded, noised. Everything random here comes from private generators."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from labkit.diffusion import encode_images
from labkit.fabric.settings import FabricError
from labkit.images import Range, centre_box, common_range, read_tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """One liked or disliked image, of any size.

    Args:
        image: what `labkit.images` reads: a PIL picture of any mode, a file, an array or a tensor [3, H, W]. Kept as a
            float32 tensor [3, H, W] in [-1, 1].
        value_range: (low, high) of float values, (-1, 1) for pictures of this package, (0, 1) for those of diffusers'
            `output_type="pt"`. None: what has one reading only.
        name: how an error names it.

    Raises:
        ImageError: no picture, or float values that could be read in two ways.
    """

    image: Image.Image | Tensor | np.ndarray | str | PathLike
    value_range: Range | None = field(default=None, repr=False)
    name: str = field(default="a reference image", repr=False)
    key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        image = read_tensor(self.image, value_range=self.value_range, what=self.name).cpu().clone()
        object.__setattr__(self, "image", image)
        digest = hashlib.sha256(f"{tuple(image.shape)}".encode())
        digest.update(image.numpy().tobytes())
        object.__setattr__(self, "key", digest.hexdigest())


def as_references(
    *, liked: Sequence[Any] | Tensor | None = None, disliked: Sequence[Any] | Tensor | None = None,
    value_range: Range | None = None,
) -> dict[str, tuple[Reference, ...]]:  # fmt: skip
    """References of both signs from references, pictures, files, arrays, tensors [3, H, W] or one tensor [n, 3, H, W].

    The range of float values is decided for all of them together, unless it is declared.

    Raises:
        FabricError: a single image instead of a list.
        ImageError: no picture, or float values that could be read in two ways.
    """
    signs = {}
    for sign, images in (("liked", liked), ("disliked", disliked)):
        single = isinstance(images, (Image.Image, Reference, str, bytes, PathLike))
        if single or (isinstance(images, (Tensor, np.ndarray)) and images.ndim < 4):
            raise FabricError("expected a list of references, got a single image: put it in a list")
        signs[sign] = () if images is None else tuple(images)
    if value_range is None:
        value_range = common_range(one for images in signs.values() for one in images)
    return {
        sign: tuple(
            one if isinstance(one, Reference) else Reference(one, value_range, f"{sign}[{i}]")
            for i, one in enumerate(images)
        )
        for sign, images in signs.items()
    }


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Likes and dislikes, immutable: `added` returns a new set."""

    liked: tuple[Reference, ...] = ()
    disliked: tuple[Reference, ...] = ()

    def added(
        self, *, liked=None, disliked=None, most: int | None = None, value_range: Range | None = None
    ) -> ReferenceSet:
        """A set with more references, as `fabric` takes them; `most` keeps only the latest of each sign."""
        more = as_references(liked=liked, disliked=disliked, value_range=value_range)
        both = {"liked": self.liked + more["liked"], "disliked": self.disliked + more["disliked"]}
        if most is not None:
            both = {name: references[max(len(references) - most, 0) :] for name, references in both.items()}
        return replace(self, **both)

    def __len__(self) -> int:
        return len(self.liked) + len(self.disliked)


def fit(image: Tensor, height: int, width: int) -> Tensor:
    """Crop [C, H, W] at the centre to the canvas's aspect ratio and resize it to [C, height, width]."""
    h, w = image.shape[1:]
    if (h, w) == (height, width):
        return image
    top, left, crop_h, crop_w = centre_box(h, w, height, width)
    cropped = image[None, :, top : top + crop_h, left : left + crop_w]
    return F.interpolate(cropped, (height, width), mode="bicubic", antialias=True, align_corners=False)[0]


@torch.no_grad()
def encode_reference(pipe, reference: Reference, height: int, width: int) -> Tensor:
    """Clean latent [C, h, w], float32: the mode of the VAE's posterior, so nothing is drawn."""
    vae = pipe.vae
    image = fit(reference.image, height, width).clamp(-1, 1)[None]
    upcast = vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))  # SDXL overflows in fp16
    if not upcast:
        return encode_images(pipe, image)[0]
    vae.to(torch.float32)
    try:
        return encode_images(pipe, image)[0]
    finally:
        vae.to(torch.float16)


def reference_noise(key: str, seed: int, t: float | None, shape: Sequence[int]) -> Tensor:
    """Standard normal noise [C, h, w] of one reference, a function of (image, seed, timestep) alone; t=None: all steps.

    It depends neither on the batch nor on the order of work and leaves every other generator alone.
    """
    words = [int(key[i : i + 8], 16) for i in range(0, 32, 8)]
    entropy = [seed, *words, 0 if t is None else 1 + round(float(t) * 1024)]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(state))
