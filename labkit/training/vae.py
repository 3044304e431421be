"""PortraitVAE: a diffusers `AutoencoderKL` from 64x64 pixels to 8x8 latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from labkit.training.loop import LoopConfig, run

LATENT_CHANNELS = 8


def new_vae() -> AutoencoderKL:
    """The untrained architecture: f = 8, 8 latent channels, no attention (the frame is small and aligned)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences of [B, C, H, W]."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def psnr(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> float:
    """Peak signal-to-noise ratio in dB of reconstructions from the latent mean, pooled over images [N, 3, H, W] in
    [-1, 1]."""
    error = sum(
        ((vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1) - x) / 2).square().sum().item()
        for x in images.split(batch)
    )
    return float(-10 * np.log10(error / images.numel()))


def train_vae(
    images: np.ndarray, validation: Tensor, folder: Path, *, steps: int, batch: int, lr: float
) -> AutoencoderKL:
    """Loss: L1 + 0.5 L1 of the edges + 1e-3 KL per element; EMA weights; latents normalised per channel afterwards.

    Args:
        images: uint8 [N, 64, 64, 3].
        validation: float [M, 3, 64, 64] in [-1, 1].
    """
    torch.manual_seed(0)  # the initial weights
    vae = new_vae()
    pixels = torch.from_numpy(images)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(pixels), (batch,), generator=generator)
        x = pixels[index].permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)  # [B, 3, 64, 64]
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mode() + posterior.std * torch.randn(posterior.mean.shape, generator=generator)).sample
        l1 = F.l1_loss(y, x)
        edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True)) / 2
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return l1 + 0.5 * edge + 1e-3 * kl, {"l1": l1.item(), "edge": edge.item(), "kl": kl.item()}

    config = LoopConfig(steps=steps, lr=lr, ema=0.998, weight_decay=0.0, decay=0.4)
    ema = run(
        "vae",
        vae,
        loss,
        config,
        folder,
        evaluate=lambda m: {"psnr": psnr(m, validation[:128])},
        evaluate_every=500,
        data={"images": pixels},
    )
    vae.load_state_dict(ema)
    return normalise_latents(
        vae.eval(), torch.from_numpy(images[:2048]).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    )


def train_decoder(
    vae: AutoencoderKL,
    images: np.ndarray,
    latents: Tensor,
    validation: Tensor,
    folder: Path,
    *,
    steps: int,
    batch: int,
    weights: Tensor | None = None,
    pixel_weight: Tensor | None = None,
) -> AutoencoderKL:
    """Go on with the decoder alone: the latents stay as they are, so everything trained on them stays valid.

    Args:
        images: uint8 [N, 64, 64, 3].
        latents: their scaled means [N, 8, 8, 8]; noise of standard deviation 0.1 is added, as a sampler's latents are
            never exact.
        weights: how often an image is to be drawn, as weights [N] (None: all the same).
        pixel_weight: weights [64, 64] with mean 1 on the error of each pixel (None: all 1).
    """
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))
    pixels = torch.from_numpy(images)
    share = torch.ones(len(pixels)) if weights is None else weights
    weight = torch.ones(pixels.shape[1:3]) if pixel_weight is None else pixel_weight

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.multinomial(share, batch, replacement=True, generator=generator)
        x = pixels[index].permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)  # [B, 3, 64, 64]
        z = latents[index].float()
        y = vae.decode(z + 0.1 * torch.randn(z.shape, generator=generator)).sample
        l1 = (weight * (y - x).abs()).mean()
        across, down = edges(y - x)
        edge = (weight[:, 1:] * across.abs()).mean() / 2 + (weight[1:] * down.abs()).mean() / 2
        return l1 + 0.5 * edge, {"l1": l1.item(), "edge": edge.item()}

    config = LoopConfig(steps=steps, lr=1e-3, ema=0.998, weight_decay=0.0, decay=0.5, seed=1)
    ema = run(
        "decoder",
        vae,
        loss,
        config,
        folder,
        evaluate=lambda m: {"psnr": psnr(m, validation)},
        evaluate_every=500,
        data={"images": torch.from_numpy(images), "latents": latents},
    )
    vae.load_state_dict(ema)
    return vae.eval()


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Tensor) -> AutoencoderKL:
    """Give every latent channel mean 0 and standard deviation 1 by folding the affine map into the two 1x1
    convolutions.

    `AutoencoderKL.scaling_factor` is one number for all channels; here it stays 1 and plain Stable Diffusion code
    is right.
    """
    z = torch.cat([vae.encode(x).latent_dist.mode() for x in images.split(128)])  # [N, C, 8, 8]
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    c = mean.numel()
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight * mean[None, :, None, None]).sum((1, 2, 3))
    post.weight *= std[None, :, None, None]
    quant.weight[:c] /= std[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - mean) / std
    quant.bias[c:] -= 2 * std.log()  # the log-variance of the posterior scales along
    return vae
