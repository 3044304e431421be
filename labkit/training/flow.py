"""PortraitFlow's transformer: the velocity of rectified flow on PortraitSD's latents, in SD3's layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkit.diffusion import native_bfloat16
from labkit.diffusion.flow import flow_latents, velocity_target
from labkit.models.flow import TOKENS
from labkit.training.loop import LoopConfig, run

# The logit of the noise level is normal in training, as for Stable Diffusion 3 (arXiv 2403.03206, section 3.1). Small
# latents need more noise to forget what they show: this mean puts the middle of the draws at sigma 0.62.
LOGIT_MEAN, LOGIT_STD = 0.5, 1.0


def new_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion 3's scheduler; its shift is for large pictures, here there is none."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def new_transformer() -> SD3Transformer2DModel:
    """One token for every 2 x 2 latent cells. The blocks start as the identity and the output as zero (adaLN-Zero of
    DiT, arXiv 2212.09748)."""
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=128,
        caption_projection_dim=160,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith(("norm1.linear", "norm1_context.linear")) or name in ("norm_out.linear", "proj_out"):
                nn.init.zeros_(module.weight)
    return model


class FlowConditions:
    """Text states [N * variants, TOKENS, 128] and their ends [N * variants, 128] of training captions, in fp16; what
    they are for the empty prompt, [TOKENS, 128] and [128]."""

    def __init__(self, states: Tensor, ends: Sequence[int] | Tensor, variants: int, empty: Tensor, empty_end: int):
        rows = torch.arange(len(states))
        self.states, self.pooled = states[:, :TOKENS], states[rows, torch.as_tensor(ends)]
        self.variants, self.empty, self.empty_pooled = variants, empty[:TOKENS].float(), empty[empty_end].float()

    def __call__(self, captions: Tensor, generator: torch.Generator, dropout: float) -> tuple[Tensor, Tensor]:
        """States [B, TOKENS, 128] and pooled text [B, 128] of captions [B] (caption `i * variants + v` belongs to
        image i); the empty prompt with probability `dropout` (for guidance)."""
        states, pooled = self.states[captions].float(), self.pooled[captions].float()
        dropped = torch.rand(len(captions), generator=generator) < dropout
        states[dropped], pooled[dropped] = self.empty, self.empty_pooled
        return states, pooled


def noise_levels(batch: int, generator: torch.Generator) -> Tensor:
    """sigma [batch] in (0, 1): logit-normal, one from each of `batch` equally likely intervals."""
    u = (torch.arange(batch) + torch.rand(1, generator=generator)) / batch  # [B], in (0, 1)
    normal = math.sqrt(2) * torch.erfinv(2 * u.clamp(1e-4, 1 - 1e-4) - 1)
    return torch.sigmoid(LOGIT_MEAN + LOGIT_STD * normal)


def train_flow(
    model: SD3Transformer2DModel,
    latents: Tensor,
    conditions: FlowConditions,
    folder: Path,
    *,
    config: LoopConfig,
    batch: int,
    dropout: float = 0.1,
    cell_weight: Tensor | None = None,
) -> nn.Module:
    """Velocity prediction: the mean squared error of v = eps - x_0 at logit-normal noise levels.

    Attention over 48 tokens is written out: the fused kernel's backward pass takes longer than all else together.

    Args:
        latents: scaled latents [N, 8, 8, 8].
        cell_weight: weights [8, 8] with mean 1 on the squared error of each latent cell (None: all 1).
    """
    half = native_bfloat16()

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(latents), (batch,), generator=generator)
        captions = index * conditions.variants + torch.randint(conditions.variants, index.shape, generator=generator)
        x0, sigma = latents[index].float(), noise_levels(batch, generator)
        epsilon = torch.randn(x0.shape, generator=generator)
        states, pooled = conditions(captions, generator, dropout)
        with torch.autocast("cpu", torch.bfloat16, enabled=half), sdpa_kernel(SDPBackend.MATH):
            prediction = model(
                hidden_states=flow_latents(x0, epsilon, sigma),
                timestep=1000 * sigma,
                encoder_hidden_states=states,
                pooled_projections=pooled,
            ).sample
        square = (prediction.float() - velocity_target(x0, epsilon)).square()  # [B, 8, 8, 8]
        mse = square.mean()
        value = mse if cell_weight is None else (square * cell_weight).mean()
        return value, {"mse": mse.item(), "weighted": value.item()}

    data = {"latents": latents, "texts": conditions.states, "pooled": conditions.pooled, "empty": conditions.empty}
    ema = run("flow", model, loss, config, folder, data=data)
    model.load_state_dict(ema)
    return model.eval()
