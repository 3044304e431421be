"""Reference images: hashed, resized, encoded, noised. Everything random here comes from private generators."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from labkit.diffusion import encode_images, from_pil
from labkit.fabric.settings import FabricError


@dataclass(frozen=True, eq=False)
class Reference:
    """One liked or disliked image: a PIL picture of any size and mode, or a float tensor [3, H, W] in [-1, 1]."""

    image: Image.Image | Tensor
    key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        image = self.image
        if isinstance(image, Image.Image):
            image = from_pil([image])[0]
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise FabricError(f"a reference is a PIL picture or a float tensor [3, H, W] in [-1, 1], got {got}")
        if 0 in image.shape:
            raise FabricError(f"a reference image has no pixels: its size is {image.shape[1]} x {image.shape[2]}")
        if not bool(torch.isfinite(image).all()):
            raise FabricError("a reference image contains NaN or infinity: decode it again in float32")
        image = image.detach().float().cpu().clamp(-1, 1).contiguous().clone()
        object.__setattr__(self, "image", image)
        digest = hashlib.sha256(f"{tuple(image.shape)}".encode())
        digest.update(image.numpy().tobytes())
        object.__setattr__(self, "key", digest.hexdigest())


def as_references(images: Sequence[Reference | Image.Image | Tensor] | Tensor | None) -> tuple[Reference, ...]:
    """References from references, pictures, tensors [3, H, W] or one tensor [n, 3, H, W]."""
    if images is None:
        return ()
    if isinstance(images, (Image.Image, Reference)) or (isinstance(images, Tensor) and images.ndim == 3):
        raise FabricError("expected a list of references, got a single image: put it in a list")
    return tuple(image if isinstance(image, Reference) else Reference(image) for image in images)


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Likes and dislikes, immutable: `added` returns a new set."""

    liked: tuple[Reference, ...] = ()
    disliked: tuple[Reference, ...] = ()

    def added(self, *, liked=None, disliked=None, most: int | None = None) -> ReferenceSet:
        """A set with more references; `most` keeps only the latest of each sign."""
        both = {"liked": self.liked + as_references(liked), "disliked": self.disliked + as_references(disliked)}
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
    crop_h, crop_w = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
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
