"""SDRecon of HG-DPO (arXiv 2405.20216, section 3): noise a real picture to timestep t and let the model denoise it.

Small t returns the picture, large t the model's own idea of the prompt; in between lie pictures whose pose is real and
whose texture the model can make: winners within its reach. It is SDEdit (arXiv 2108.01073) on the training data.
Even t = 1000 keeps sqrt(alpha_bar) = 7 % of the picture's signal on SD's schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from labkit.diffusion import PromptConditions, image_generators, sample_latents

NORMAL_LEVELS = (400, 500, 600, 700)  # t_4 .. t_7 of the paper's t_1 .. t_10 = 100 .. 1000
HARD_LEVEL = 100


def recon_timesteps(t: int, steps: int, total: int = 1000) -> list[int]:
    """Descending timesteps from t (at most total - 1) to nearly 0, spaced as `steps` steps would space the whole range.

    t = 0 gives []. Raises ValueError for t outside 0 .. total or fewer than 1 step.
    """
    if not 0 <= t <= total:
        raise ValueError(f"t is {t}, expected 0 (the picture) .. {total} (noise)")
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1 for the whole range")
    if t == 0:
        return []
    start, count = min(t, total - 1), max(1, round(steps * t / total))
    return [round(start * (count - i) / count) for i in range(count)]


@torch.no_grad()
def sd_recon(
    pipe,
    real: Tensor,
    prompts: Sequence[str] | None,
    t: int,
    *,
    generators: Sequence[torch.Generator],
    steps: int = 20,
    guidance_scale: float = 3.0,
    conditions: PromptConditions | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """SDRecon, the intermediate domain of HG-DPO (2405.20216): reconstructions [n, C, h, w] of the latents `real`
    [n, C, h, w] from noise level t; t = 0 returns a copy.

    prompts: the pictures' captions (or `conditions` encoded before); generators: one per picture, for its noise.
    Needs a plain DDIM scheduler. The pipeline is used as it is: for the paper's data, with the base model.
    """
    total = pipe.scheduler.config.num_train_timesteps
    timesteps = recon_timesteps(t, steps, total)
    if not timesteps:
        return real.clone()
    return sample_latents(
        pipe,
        prompts,
        generators=generators,
        start=real,
        timesteps=timesteps,
        guidance_scale=guidance_scale,
        conditions=conditions,
        batch_size=batch_size,
    ).latents


def recon_levels(
    pipe,
    real: Tensor,
    prompts: Sequence[str],
    levels: Sequence[int] = (HARD_LEVEL, *NORMAL_LEVELS),
    *,
    seed: int,
    **options,
) -> dict[int, Tensor]:
    """Level -> reconstructions [n, C, h, w]; a picture has the same noise at all levels. Options as in `sd_recon`.

    The default levels are those that the stages use: 230 U-Net rows a picture at 50 steps with guidance, not 550.
    """
    return {
        t: sd_recon(pipe, real, prompts, t, generators=image_generators(len(real), seed), **options) for t in levels
    }


def best_level(scores: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """For each picture the level of its highest scored reconstruction, and that score: {t: [n]} -> int64 [n], [n].

    Among equal scores the smallest t is taken. Raises ValueError for scores that are not finite.
    """
    if not scores:
        raise ValueError("got no levels: score at least one reconstruction of every picture")
    levels = sorted(scores)
    table = torch.stack([scores[t] for t in levels], 1)  # [n, levels]
    if not bool(torch.isfinite(table).all()):
        raise ValueError("scores of reconstructions are NaN or infinite: drop those pictures")
    top = table.max(1, keepdim=True).values
    first = torch.where(table == top, torch.arange(len(levels)), len(levels)).min(1).values
    return torch.tensor(levels)[first], top.squeeze(1)
