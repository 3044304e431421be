"""PortraitSD's U-Net: noise prediction on 8x8x8 latents with cross-attention to PortraitCLIP's text states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from labkit.diffusion import native_bfloat16
from labkit.portraits import PortraitSpec, render_array
from labkit.portraits.attributes import allowed_values
from labkit.training.loop import LoopConfig, run

# Bounds of the weight on the error of x0. Min-SNR has 5 and no lower one; with these, the noise levels at which it is
# decided what a portrait will show (timesteps 300 to 900) have most of the loss.
SNR_BOUNDS = (0.05, 2.0)


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear schedule with its DDIM conventions."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def new_unet() -> UNet2DConditionModel:
    """Self- and cross-attention at 8x8 and 4x4, plain blocks at 2x2."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(96, 160, 160),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads, by diffusers' historical name
        norm_num_groups=16,
    )


class Conditions:
    """Text states of training captions: `variants` captions per image, drawn once, embedded in fp16, [N * variants,
    40, 128]."""

    def __init__(self, states: Tensor, variants: int, empty: Tensor):
        self.states, self.variants, self.empty = states, variants, empty

    def __call__(self, captions: Tensor, generator: torch.Generator, dropout: float) -> Tensor:
        """Text states [B, 40, 128] of captions [B] (caption `i * variants + v` belongs to image i); the empty prompt
        with probability `dropout` (for guidance)."""
        states = self.states[captions].float()
        dropped = torch.rand(len(captions), generator=generator) < dropout
        states[dropped] = self.empty
        return states


class CaptionGroups:
    """Batches in which the captions that leave enough open stand with `SIZE` images each, not with one.

    Such a caption fits many images. Its group is drawn among them in equal steps through the images sorted by the
    `spread` attributes, with a random start. How often a caption and an image meet stays as it was, but a group
    shows the shares of the data: half of it beardless, say, if that is how it is among the images that fit. So the
    average of a group says what is left open without the chance that a single image brings, and a network learns
    sooner not to guess a beard from the colour of a shirt.

    Args:
        values: attribute values of the images as integers [N, A].
        fixed: [N * variants, A], true where all images of the group must share the value: what the caption names.
        spread: columns by which the images of a group are spread, the most important first.
        weights: how often an image is to be drawn, as weights [N] (None: all the same).
    """

    SIZE, MOST = 4, 6  # images per group; captions that fix more values than this stand alone

    def __init__(self, values: Tensor, fixed: Tensor, spread: Sequence[int], weights: Tensor | None = None):
        self.values, self.fixed = values, fixed
        self.variants = len(fixed) // len(values)
        self.weights = torch.ones(len(values), dtype=torch.double) if weights is None else weights.double()
        key = torch.zeros(len(values), dtype=torch.double)
        for column in spread:
            key = key * (values[:, column].max() + 1) + values[:, column]
        self.key = key
        share = self.weights.repeat_interleave(self.variants)  # [N * variants]
        self.open = torch.where(fixed.sum(1) <= self.MOST, share, 0.0)
        self.alone = share - self.open if (share > self.open).any() else share

    def members(self, captions: Tensor, generator: torch.Generator) -> Tensor:
        """`SIZE` images [G, SIZE] for each caption [G]."""
        groups = []
        for c in captions.tolist():
            columns = torch.nonzero(self.fixed[c])[:, 0]
            own = self.values[c // self.variants, columns]
            fit = torch.nonzero((self.values[:, columns] == own).all(1))[:, 0]
            shuffled = fit[torch.randperm(len(fit), generator=generator)]
            fit = shuffled[self.key[shuffled].argsort(stable=True)]
            upper = self.weights[fit].cumsum(0)
            start = torch.rand(1, generator=generator, dtype=torch.double)
            places = torch.searchsorted(upper, (torch.arange(self.SIZE) + start) * upper[-1] / self.SIZE, right=True)
            groups.append(fit[places.clamp(max=len(fit) - 1)])
        return torch.stack(groups)

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images and captions, both [batch]; groups and single captions take turns."""
        blocks = batch // self.SIZE
        chance = torch.rand(1, generator=generator, dtype=torch.double).item()
        share = self.open.sum().item() / (self.weights.sum().item() * self.variants)
        groups = int(blocks * share + chance)  # on average the share of open captions
        captions = torch.multinomial(self.alone, batch, replacement=True, generator=generator)
        images = captions // self.variants
        if groups:
            leaders = torch.multinomial(self.open, groups, replacement=True, generator=generator)
            for k, rows in enumerate(self.members(leaders, generator)):
                first = k * blocks // groups * self.SIZE
                images[first : first + self.SIZE], captions[first : first + self.SIZE] = rows, leaders[k]
        return images, captions


def train_unet(
    unet: UNet2DConditionModel,
    latents: Tensor,
    conditions: Conditions,
    folder: Path,
    *,
    config: LoopConfig,
    batch: int,
    groups: CaptionGroups | None = None,
    dropout: float = 0.1,
    cell_weight: Tensor | None = None,
) -> nn.Module:
    """Noise prediction with weights clip(SNR, 0.05, 2) / SNR on the epsilon error: min-SNR (Hang et al. 2303.09556)
    with a smaller gamma and with a floor.

    Args:
        latents: scaled latents [N, 8, 8, 8].
        cell_weight: weights [8, 8] with mean 1 on the squared error of each latent cell (None: all 1). The best
        prediction of a cell does not depend on its weight; a model of limited size and time learns heavy cells first.
        groups: draws images and captions together (None: images uniformly, with one of their captions).
    """
    half = native_bfloat16()
    alphas = new_scheduler().alphas_cumprod  # [1000]
    snr = alphas / (1 - alphas)
    timestep_weight = snr.clamp(*SNR_BOUNDS) / snr

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if groups is not None:
            index, captions = groups(batch, generator)
        else:
            index = torch.randint(len(latents), (batch,), generator=generator)
            captions = index * conditions.variants + torch.randint(
                conditions.variants, index.shape, generator=generator
            )
        x0 = latents[index].float()
        t = (torch.arange(batch) * 1000 // batch + torch.randint(1000, (1,), generator=generator)) % 1000  # stratified
        epsilon = torch.randn(x0.shape, generator=generator)
        a = alphas[t][:, None, None, None]
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * epsilon
        states = conditions(captions, generator, dropout)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            prediction = unet(x_t, t, encoder_hidden_states=states).sample
        square = (prediction.float() - epsilon).square()  # [B, 8, 8, 8]
        mse = square.mean((1, 2, 3))  # [B]
        error = mse if cell_weight is None else (square * cell_weight).mean((1, 2, 3))
        value = (timestep_weight[t] * error).mean()
        return value, {"mse": mse.mean().item(), "weighted": value.item()}

    data = {"latents": latents, "texts": conditions.states, "empty": conditions.empty}
    ema = run("unet", unet, loss, config, folder, data=data)
    unet.load_state_dict(ema)
    return unet.eval()


@torch.no_grad()
def encode_texts(text_encoder: nn.Module, ids: Tensor, batch: int = 512) -> Tensor:
    """Last hidden states [N, 40, 128] as Stable Diffusion's pipeline computes them (no attention mask), in fp16."""
    return torch.cat([text_encoder(part).last_hidden_state.half() for part in ids.split(batch)])


@torch.no_grad()
def encode_images(vae: nn.Module, images: np.ndarray, batch: int = 128) -> Tensor:
    """Scaled latent means [N, 8, 8, 8] in fp16 of uint8 images [N, 64, 64, 3]."""
    parts = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
        parts.append((vae.encode(x).latent_dist.mode() * vae.config.scaling_factor).half())
    return torch.cat(parts).contiguous()


@torch.no_grad()
def evidence(
    encode: Callable[[np.ndarray], Tensor], specs: Sequence[PortraitSpec], attributes: Sequence[str], seed: int = 0
) -> Tensor:
    """Where `attributes` show: the mean squared change of each cell (or pixel) when one attribute of a portrait is
    redrawn, scaled to mean 1 per attribute, averaged over the attributes; [H, W].

    Args:
        encode: uint8 images [N, 64, 64, 3] -> latents, or pixels, [N, C, H, W].
    """
    maps = []
    for attribute in attributes:
        rng, pairs = np.random.default_rng(seed), []
        for spec in specs:
            others = [v for v in allowed_values(spec.style, attribute) if v != getattr(spec, attribute) and v != "bald"]
            if others and spec.hair_style != "bald":
                pairs.append((spec, spec.with_(**{attribute: others[int(rng.integers(len(others)))]})))
        before, after = (encode(np.stack([render_array(s) for s in side])).float() for side in zip(*pairs, strict=True))
        change = (after - before).square().mean((0, 1))  # [H, W]
        maps.append(change / change.mean())
    return torch.stack(maps).mean(0)
