"""Fine-tuning with importance sampling: the usual denoising loss on weighted draws of the training data (method iii).

A diffusion model never sees fakes, so only the draws of training images change: a ratio w above the threshold moves the
fixed point to p_data w, not w^2. The paper compares a weighted fine-tune with the *pretrained* model; what any further
training does would then be credited to the weights, so run the same steps with equal weights too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from labkit.density.sampler import WeightedSampler
from labkit.diffusion import (
    PromptConditions,
    adapter_state,
    add_noise,
    check_gradients,
    image_generators,
    load_adapter_state,
    lora,
    to_epsilon,
    unet_output,
)
from labkit.optim import update

ADAPTER = "density"


@dataclass
class FineTuned:
    """The outcome of one run. Use it inside `with run.applied(pipe): ...`; the pipeline is as before afterwards.

    Attributes:
        losses: one per step. drawn: [N] how often each training image was drawn.
    """

    losses: list[float] = field(repr=False)
    drawn: Tensor = field(repr=False)
    unet: nn.Module | None = field(default=None, repr=False)  # mode "full"
    adapter: dict[str, Tensor] | None = field(default=None, repr=False)  # mode "lora"
    rank: int = 8

    @contextmanager
    def applied(self, pipe) -> Iterator[None]:
        """Inside, `pipe` has the fine-tuned U-Net."""
        if self.adapter is not None:
            with lora(pipe.unet, ADAPTER, seed=0, rank=self.rank):
                load_adapter_state(pipe.unet, ADAPTER, self.adapter)
                yield
            return
        original, pipe.unet = pipe.unet, self.unet
        try:
            yield
        finally:
            pipe.unet = original


def fine_tune(
    pipe,
    latents: Tensor,
    conditions: PromptConditions,
    *,
    weights: Tensor,
    steps: int,
    seed: int,
    mode: str = "lora",
    rank: int = 8,
    batch: int = 32,
    learning_rate: float = 1e-3,
    dropout: float = 0.1,
    snr_gamma: float | None = 5.0,
    progress: Callable[[int, float], None] | None = None,
) -> FineTuned:
    """Train the U-Net on draws of the training set with probabilities `weights`; the pipeline itself is left alone.

    Args:
        latents: scaled latents [N, C, h, w] of the training images. conditions: their N text conditions.
        weights: [N] from `training_weights`; equal weights are the control.
        seed: of the draws, the noise, the timesteps and the adapter. Runs that differ in `weights` alone share noise
            and timesteps.
        mode: "lora" (an adapter on the attention) or "full" (a copy of the U-Net, all weights).
        dropout: share of draws trained with the empty prompt, for guidance.
        snr_gamma: min-SNR weight on the noise error (arXiv 2303.09556), as PortraitSD was trained; None: no weight, as
            Stable Diffusion was.
        progress: called after each step with (step, loss).

    Raises:
        ValueError: numbers of latents, conditions and weights that differ, steps or batch below 1, unknown mode.
    """
    n = len(latents)
    if not len(conditions) == len(weights) == n:
        raise ValueError(f"got {n} latents, {len(conditions)} conditions, {len(weights)} weights: expected one each")
    if steps < 1 or batch < 1:
        raise ValueError(f"steps = {steps} and batch = {batch} must be at least 1")
    if mode not in ("lora", "full"):
        raise ValueError(f"mode is {mode!r}, expected 'lora' or 'full'")
    sampler = WeightedSampler(weights, seed=seed)
    draws, noises = image_generators(2, seed)
    scheduler = pipe.scheduler
    alphas = scheduler.alphas_cumprod.float()  # [T]
    snr = alphas / (1 - alphas)
    weight = torch.ones_like(snr) if snr_gamma is None else snr.clamp(max=snr_gamma) / snr
    losses, drawn = [], torch.zeros(n, dtype=torch.long)
    with _trainable(pipe, mode, rank, seed) as (unet, parameters):
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        for step in range(steps):
            index = sampler.draw(batch, draws)  # [B]
            drawn += torch.bincount(index, minlength=n)
            x0 = latents[index].to(unet.device).float()
            t = torch.randint(len(alphas), (batch,), generator=noises)
            noise = torch.randn(x0.shape, generator=noises).to(x0.device)
            empty = torch.rand(batch, generator=noises) < dropout
            x_t = add_noise(x0, noise, t, scheduler.alphas_cumprod)
            output = unet_output(unet, x_t, t, _dropped(conditions.select(index.tolist()), empty), guidance_scale=1.0)
            epsilon = to_epsilon(output, x_t, t, scheduler.alphas_cumprod, scheduler.config.prediction_type)
            error = (epsilon - noise).square().mean(dim=(1, 2, 3))  # [B]
            loss = (weight[t].to(error.device) * error).mean()
            loss.backward()
            if step == 0:
                check_gradients(parameters)
            update(optimizer, clip=1.0)
            losses.append(float(loss.detach()))
            if progress is not None:
                progress(step + 1, losses[-1])
        adapter = adapter_state(unet, ADAPTER) if mode == "lora" else None
    return FineTuned(losses, drawn, unet if adapter is None else None, adapter, rank)


@contextmanager
def _trainable(pipe, mode: str, rank: int, seed: int) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """The U-Net to train and its trainable parameters."""
    if mode == "lora":
        with lora(pipe.unet, ADAPTER, seed=seed, rank=rank) as parameters:
            yield pipe.unet, parameters
    else:
        unet = copy.deepcopy(pipe.unet).requires_grad_(True)
        yield unet, list(unet.parameters())
        unet.requires_grad_(False)


def _dropped(conditions: PromptConditions, empty: Tensor) -> PromptConditions:
    """The conditions with the empty prompt in the rows of `empty` [B]."""

    def swap(cond: Tensor | None, uncond: Tensor | None) -> Tensor | None:
        if cond is None:
            return None
        return torch.where(empty.to(cond.device).view(-1, *[1] * (cond.ndim - 1)), uncond, cond)

    return PromptConditions(
        cond=swap(conditions.cond, conditions.uncond),
        uncond=conditions.uncond,
        pooled=swap(conditions.pooled, conditions.pooled_uncond),
        pooled_uncond=conditions.pooled_uncond,
        time_ids=conditions.time_ids,
    )
