"""Between latents, image tensors and pictures.

An image tensor is float [N, 3, H, W] in [-1, 1]; a latent is what the U-Net sees, that is the VAE's latent z scaled by
the VAE's own configuration:

    latent = (z - shift_factor) * scaling_factor              Stable Diffusion: shift_factor absent = 0
    latent = (z - latents_mean) / latents_std * scaling_factor   if the VAE's config has per-channel statistics

(`StableDiffusionPipeline.__call__` honours scaling_factor alone; a VAE whose config has more needs another pipeline.)
Rounding to uint8 is to the nearest level: truncation would darken every picture by half a level on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from labkit.diffusion.devices import execution_device


def vae_of(pipe_or_vae):
    """The VAE of a pipeline, or the VAE itself."""
    return getattr(pipe_or_vae, "vae", pipe_or_vae)


def vae_scale_factor(pipe_or_vae) -> int:
    """Image pixels per latent pixel along one side: 2 per VAE level after the first (8 for Stable Diffusion)."""
    return 2 ** (len(vae_of(pipe_or_vae).config.block_out_channels) - 1)


def check_size(height: int, width: int, pipe_or_vae) -> None:
    """Raise ValueError unless the VAE can take images of this size."""
    f = vae_scale_factor(pipe_or_vae)
    if height < f or width < f or height % f or width % f:
        good = tuple(max(f, round(side / f) * f) for side in (height, width))
        raise ValueError(
            f"image size {height}x{width} does not fit the VAE: height and width must be multiples of {f}, "
            f"for example {good[0]}x{good[1]}"
        )


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a float tensor [N, 3, H, W] in [-1, 1], got {got}: see from_pil")


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.as_tensor(list(values), device=like.device, dtype=like.dtype).view(1, -1, 1, 1)  # [1, C, 1, 1]


def scale_latents(z: Tensor, vae) -> Tensor:
    """VAE latents z [N, C, h, w] -> latents for the U-Net."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return (z - _per_channel(mean, z)) / _per_channel(std, z) * config.scaling_factor
    return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


def unscale_latents(latents: Tensor, vae) -> Tensor:
    """Latents of the U-Net [N, C, h, w] -> VAE latents z; the inverse of `scale_latents`."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return latents * _per_channel(std, latents) / config.scaling_factor + _per_channel(mean, latents)
    return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)


def encode_images(
    pipe_or_vae,
    images: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Image tensor [N, 3, H, W] in [-1, 1] -> latents [N, C, H/f, W/f], float32, on the VAE's device.

    generators=None takes the mode of the VAE's posterior (deterministic); one generator per image draws a sample.
    Gradients flow if the images or the VAE require them.
    """
    from labkit.diffusion.noise import check_generators, draw_noise

    vae = vae_of(pipe_or_vae)
    _check_images(images)
    check_size(*images.shape[2:], vae)
    if generators is not None:
        check_generators(generators, len(images))
    latents, device = [], execution_device(vae)
    for start, stop in spans(len(images), batch_size):
        encoded = vae.encode(images[start:stop].to(device, vae.dtype))
        if not hasattr(encoded, "latent_dist"):  # AutoencoderTiny has no posterior: one latent per image
            if generators is not None:
                raise ValueError(f"{type(vae).__name__} has no posterior to sample from: leave out generators")
            latents.append(scale_latents(encoded.latents.float(), vae))
            continue
        posterior = encoded.latent_dist
        z = posterior.mode().float()
        if generators is not None:
            z = z + posterior.std.float() * draw_noise(z.shape, generators[start:stop], z.device)
        latents.append(scale_latents(z, vae))
    return torch.cat(latents)


def decode_latents(pipe_or_vae, latents: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Latents [N, C, h, w] -> image tensor [N, 3, h*f, w*f], float32, about [-1, 1] (not clamped: gradients)."""
    vae = vae_of(pipe_or_vae)
    channels = vae.config.latent_channels
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(f"latents have shape {tuple(latents.shape)}, expected [N, {channels}, h, w] for this VAE")
    images, device = [], execution_device(vae)
    for start, stop in spans(len(latents), batch_size):
        z = unscale_latents(latents[start:stop].float(), vae)
        images.append(vae.decode(z.to(device, vae.dtype), return_dict=False)[0].float())
    return torch.cat(images)


def spans(n: int, batch_size: int | None) -> list[tuple[int, int]]:
    """Cut n rows into (start, stop) chunks of at most batch_size; None is one chunk."""
    if n < 1:
        raise ValueError("got no images: expected at least one")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected a positive number or None")
    size = batch_size or n
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def to_uint8(images: Tensor) -> np.ndarray:
    """Float tensor [N, 3, H, W] or [3, H, W] in [-1, 1] -> uint8 array [N, H, W, 3] or [H, W, 3], rounded to nearest.

    Values outside [-1, 1] are clamped; NaN raises ValueError.
    """
    if images.ndim == 3:
        return to_uint8(images[None])[0]
    _check_images(images)
    pixels = (images.detach().float() / 2 + 0.5).clamp(0, 1) * 255
    if bool(torch.isnan(pixels).any()):
        raise ValueError("images contain NaN: half precision may have overflowed, decode with a float32 VAE")
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # [N, H, W, 3]


def to_pil(images: Tensor) -> list[Image.Image]:
    """Float tensor [N, 3, H, W] in [-1, 1] -> N RGB pictures."""
    return [Image.fromarray(array) for array in to_uint8(images)]


def from_uint8(array: np.ndarray) -> Tensor:
    """uint8 array [N, H, W, 3] or [H, W, 3] -> float32 [N, 3, H, W] or [3, H, W] in [-1, 1]; inverse of `to_uint8`."""
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise ValueError(f"expected a uint8 array [N, H, W, 3] or [H, W, 3], got {array.dtype} {array.shape}")
    tensor = torch.from_numpy(np.ascontiguousarray(array)).float() / 127.5 - 1.0
    return tensor.movedim(-1, -3).contiguous()


def from_pil(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size -> float32 tensor [N, 3, H, W] in [-1, 1]. Other modes are converted to RGB."""
    arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
    if len({array.shape for array in arrays}) != 1:
        sizes = sorted({array.shape[:2] for array in arrays})
        raise ValueError(f"pictures must have one common size, got {sizes}: resize them first")
    return from_uint8(np.stack(arrays))
