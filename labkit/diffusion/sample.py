"""The sampler: from prompts and one generator per image to latents and images.

Image i alone equals image i in a batch: every draw of image i comes from generators[i], and nothing crosses rows. The
noise is the same bit for bit. The network's kernels may round differently for another batch size (relative 1e-6 in the
final latents, measured on a CPU in float32), so compare with a small tolerance, or pass batch_size=1: its bits do not
depend on what else is sampled.

A transformer in Stable Diffusion 3's layout is sampled like a U-Net, with its scheduler of flow matching.

With a plain DDIM scheduler steps are `ddim_step`s and have log-probabilities if eta > 0; any other diffusers scheduler
is stepped by its own code. Latents stay in float32 between steps even if the U-Net runs in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from labkit.diffusion.devices import execution_device
from labkit.diffusion.guidance import PromptConditions, denoiser_of, encode_prompts, unet_output
from labkit.diffusion.images import check_size, decode_latents, spans, vae_scale_factor
from labkit.diffusion.noise import check_generators, draw_noise
from labkit.diffusion.steps import make_plan


@dataclass(frozen=True)
class SamplerStep:
    """What a callback sees after a step. The rows are images first .. first + len(latents) - 1 of the call."""

    index: int  # 0 .. steps - 1
    steps: int
    timestep: int  # the step went from here ...
    latents: Tensor  # ... to these, [B, C, h, w]
    prediction: Tensor  # guided noise (other schedulers: the network's guided output), [B, C, h, w]
    x0: Tensor | None  # the clean latent that the prediction implies; None for schedulers other than plain DDIM
    log_prob: Tensor | None  # [B]; None unless DDIM with eta > 0
    first: int


@dataclass(frozen=True)
class SampledLatents:
    """Result of `sample_latents` for B images and T steps."""

    latents: Tensor  # [B, C, h, w] float32
    timesteps: tuple[tuple[int, int], ...]  # T pairs (t, t_prev); t_prev < 0 is the clean end
    log_probs: Tensor | None  # [B, T] float32; None unless DDIM with eta > 0
    trajectory: Tensor | None  # [B, T + 1, C, h, w] from start to end, if keep_trajectory


Callback = Callable[[SamplerStep], "Tensor | None"]
Conditions = PromptConditions | Callable[[int], PromptConditions]


def image_size(pipe, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Height and width in pixels, by default the pipeline's native size; ValueError if the VAE cannot take them."""
    config = denoiser_of(pipe).config
    native = config.sample_size * vae_scale_factor(pipe)
    height, width = height or native, width or native
    check_size(height, width, pipe)
    patch = vae_scale_factor(pipe) * (config.get("patch_size", None) or 1)  # pixels of one token of a transformer
    if height % patch or width % patch:
        raise ValueError(f"image size {height}x{width} does not fit the transformer: expected multiples of {patch}")
    return height, width


def initial_latents(
    pipe, generators: Sequence[torch.Generator], *, height: int | None = None, width: int | None = None
) -> Tensor:
    """Standard normal latents [B, C, h, w], float32, on the U-Net's device; row i from generators[i]."""
    height, width = image_size(pipe, height, width)
    f = vae_scale_factor(pipe)
    denoiser = denoiser_of(pipe)
    shape = (len(generators), denoiser.config.in_channels, height // f, width // f)
    return draw_noise(shape, generators, execution_device(denoiser))


def sample_latents(
    pipe,
    prompts: str | Sequence[str] | None,
    *,
    generators: Sequence[torch.Generator],
    steps: int = 20,
    guidance_scale: float = 3.0,
    eta: float = 0.0,
    negative_prompts: str | Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    latents: Tensor | None = None,
    start: Tensor | None = None,
    strength: float = 1.0,
    timesteps: Sequence[int] | None = None,
    guidance_window: tuple[float, float] = (0.0, 1.0),
    negative_model: Mapping[str, float] | nn.Module | None = None,
    conditions: Conditions | None = None,
    callback: Callback | None = None,
    batch_size: int | None = None,
    grad_steps: int = 0,
    checkpoint: bool = False,
    keep_trajectory: bool = False,
) -> SampledLatents:
    """Sample B = len(generators) latents with the pipeline's U-Net (or SD3 transformer) and scheduler; the pipeline is
    not changed.

    prompts           one per image, or one string for all; None if `conditions` are given.
    generators        one torch.Generator per image: the initial noise first, then each step's noise if eta > 0.
    guidance_scale    classifier-free guidance; 1 is off (half the work), 0 is unconditional.
    guidance_window   (a, b): guide step i only if a <= i / steps < b; the other steps are conditional (scale 1).
    negative_model    the unconditional branch runs with exactly these adapters (name -> scale), or is another U-Net:
                      the negative model of Diffusion-NPO (arXiv 2505.11245), trained on swapped labels, which guidance
                      points away from.
    eta               0 deterministic DDIM .. 1 DDPM; log-probabilities are returned if eta > 0.
    latents           initial noise [B, C, h, w] instead of drawing it (standard normal for every scheduler).
    start, strength   start from clean latents (img2img, SDEdit): leave out the first (1 - strength) of the steps and
                      noise `start` to the first timestep that remains. strength=0 returns `start`.
    timesteps         own descending timesteps instead of `steps` (plain DDIM only); the last steps to the clean end.
    conditions        precomputed text conditions of all B images, or a function from the timestep to them.
    callback          called after each step with a `SamplerStep`; may return replacement latents.
    batch_size        work in chunks of this many images; the noise does not depend on it.
    grad_steps        record gradients in this many last steps (0: none; `steps`: all), for example with respect to
                      `latents` or adapter weights; checkpoint=True recomputes the U-Net in backward to save memory.

    Raises ValueError for sizes that the VAE cannot take, numbers of prompts or generators that do not match, steps or
    strength out of range, and eta > 0 or own timesteps with a scheduler that has no such thing.
    """
    n = len(generators)
    check_generators(generators, n)
    prompts, negative_prompts = _per_image(prompts, n, "prompts"), _per_image(negative_prompts, n, "negative prompts")
    if prompts is None and conditions is None:
        raise ValueError("got neither prompts nor conditions: give one of them")
    if latents is not None and start is not None:
        raise ValueError("got both latents (initial noise) and start (clean latents): give one of them")
    given = latents if latents is not None else start
    size = image_size(pipe, height, width) if given is None else [s * vae_scale_factor(pipe) for s in given.shape[2:]]
    if given is not None and len(given) != n:
        raise ValueError(f"got {len(given)} starting latents for {n} generators: expected one per image")

    unet, results = denoiser_of(pipe), []
    device = execution_device(unet)
    for lo, hi in spans(n, batch_size):
        rows = slice(lo, hi)
        # a fresh plan per chunk: multistep schedulers remember earlier steps
        plan = make_plan(
            pipe.scheduler, steps, timesteps=timesteps, strength=strength if start is not None else 1.0, eta=eta,
            device=device,
        )  # fmt: skip
        recorded = len(plan.pairs) - grad_steps if torch.is_grad_enabled() and grad_steps > 0 else len(plan.pairs)
        with torch.set_grad_enabled(recorded < len(plan.pairs)):
            if conditions is None:
                negative = None if negative_prompts is None else negative_prompts[rows]
                encoded = encode_prompts(pipe, prompts[rows], negative, height=size[0], width=size[1])
            if latents is not None:
                x = plan.initial(latents[rows].to(device, torch.float32))
            elif start is not None:
                clean = start[rows].to(device, torch.float32)
                x = plan.noised(clean, draw_noise(clean.shape, generators[rows], device))
            else:
                x = plan.initial(initial_latents(pipe, generators[rows], height=size[0], width=size[1]))

        trajectory, log_probs = [x], []
        for i, (t, _) in enumerate(plan.pairs):
            with torch.set_grad_enabled(i >= recorded):
                if conditions is not None:
                    encoded = (conditions(t) if callable(conditions) else conditions).select(rows)
                guided = guidance_window[0] <= i / len(plan.pairs) < guidance_window[1]
                options = {"guidance_scale": guidance_scale if guided else 1.0, "negative_model": negative_model}
                x_in, t_in = plan.scaled(i, x)
                if checkpoint and i >= recorded:
                    output = checkpointed(unet_output, unet, x_in, t_in, encoded, use_reentrant=False, **options)
                else:
                    output = unet_output(unet, x_in, t_in, encoded, **options)
                x, prediction, x0, log_prob = plan.step(i, output, x, generators[rows])
                if callback is not None:
                    replaced = callback(SamplerStep(i, len(plan.pairs), t, x, prediction, x0, log_prob, lo))
                    x = x if replaced is None else replaced
            log_probs.append(log_prob)
            trajectory.append(x)
        has_log_probs = bool(log_probs) and log_probs[0] is not None
        results.append(
            SampledLatents(
                latents=x,
                timesteps=tuple(plan.pairs),
                log_probs=torch.stack(log_probs, 1) if has_log_probs else None,  # [B, T]
                trajectory=torch.stack(trajectory, 1) if keep_trajectory else None,  # [B, T + 1, C, h, w]
            )
        )
    return _joined(results)


def _per_image(texts: str | Sequence[str] | None, n: int, name: str) -> list[str] | None:
    """One text per image: repeat a single string, check the length of a list."""
    if texts is None:
        return None
    texts = [texts] * n if isinstance(texts, str) else [str(text) for text in texts]
    if len(texts) != n:
        raise ValueError(f"got {len(texts)} {name} for {n} generators: expected one per image")
    return texts


def _joined(parts: list[SampledLatents]) -> SampledLatents:
    """Chunks of one call as one result."""

    def joined(values: list[Tensor | None]) -> Tensor | None:
        return None if values[0] is None else torch.cat(values)

    return SampledLatents(
        latents=torch.cat([part.latents for part in parts]),
        timesteps=parts[0].timesteps,
        log_probs=joined([part.log_probs for part in parts]),
        trajectory=joined([part.trajectory for part in parts]),
    )


def sample(pipe, prompts: str | Sequence[str] | None, *, generators: Sequence[torch.Generator], **options) -> Tensor:
    """Sample images: float32 [B, 3, H, W] in [-1, 1] (clamped), without gradients. Options as in `sample_latents`.

    The same initial latents, steps and guidance give what `pipe(...)` gives (to rounding).
    """
    with torch.no_grad():
        result = sample_latents(pipe, prompts, generators=generators, **options)
        return decode_latents(pipe, result.latents, batch_size=options.get("batch_size")).clamp(-1, 1)
