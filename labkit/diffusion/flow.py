"""Rectified flow: the straight path from a clean latent to noise, what a model predicts on it, and its noise levels.

Source: Stable Diffusion 3 (arXiv 2403.03206, eq. 13 and section 3.1). With t = 0 clean and t = 1 noise,

    x_t = (1 - t) x_0 + t eps,       v = dx_t / dt = eps - x_0,       hence      eps = x_t + (1 - t) v

diffusers calls t sigma. Its schedulers of flow matching number the training timesteps, as DDPM does: level i of T is
sigma = (i + 1) / T, bent by the scheduler's `shift`, and the model is told sigma T.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flow_latents(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t eps, the straight path of rectified flow.

    Args:
        latents: x_0, [B, ...].
        noise: eps, standard normal, of the same shape.
        t: time, [B], 0 (clean) .. 1 (noise): the sigma of diffusers' flow-matching schedulers, timestep / 1000.

    Returns:
        x_t, [B, ...].
    """
    t = _like(t, latents)
    return (1 - t) * latents + t * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """v = eps - x_0, what a flow model has to predict, whatever t. Shapes as in `flow_latents`."""
    return noise - latents


def noise_of_velocity(velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The prediction of the noise that a prediction of the velocity is: eps = x_t + (1 - t) v. [B, ...]."""
    return x_t + (1 - _like(t, x_t)) * velocity


def is_flow(scheduler) -> bool:
    """Whether a scheduler is one of flow matching whose sigma goes from 1 (noise) to 0."""
    config = scheduler.config
    matches = "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas")
    return bool(matches) and not config.get("invert_sigmas")


def flow_levels(scheduler) -> Tensor:
    """sigma of the T training timesteps, ascending, float32 [T]: level 0 is nearly clean, level T - 1 is noise.

    What the scheduler would say when it is new: `set_timesteps` of a sampler leaves no trace. A shift that depends on
    the picture's size (`use_dynamic_shifting`) is not in it.

    Raises:
        ValueError: the scheduler is none of flow matching.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if not is_flow(scheduler):
        raise ValueError(f"{name} is no schedule of flow matching whose sigma goes from 1 to 0: load the model's own")
    steps = config.num_train_timesteps
    sigma = torch.arange(1, steps + 1, dtype=torch.float32) / steps
    shift = getattr(scheduler, "shift", None) or config.get("flow_shift") or 1.0
    shift = 1.0 if config.get("use_dynamic_shifting") else float(shift)
    return shift * sigma / (1 + (shift - 1) * sigma)


def _like(t: Tensor, x: Tensor) -> Tensor:
    """t [B] as [B, 1, ...], to be multiplied with x [B, ...]."""
    return t.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))
