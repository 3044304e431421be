"""The noising process that a pipeline was trained for, as the trainer needs it: diffusion, or rectified flow.

Both number noise levels 0 .. T - 1 and hand predictions of the noise to the terms, so that every equation of this
package holds for both.
"""

from __future__ import annotations

import hashlib
import json

from torch import Tensor

from labkit.diffusion import add_noise, to_epsilon
from labkit.diffusion.flow import flow_latents, flow_levels, is_flow, noise_of_velocity


class Diffusion:
    """Stable Diffusion and SDXL: DDPM's process, levels are timesteps; networks predict epsilon, v or x_0."""

    flow = False

    def __init__(self, scheduler):
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.prediction_type = scheduler.config.prediction_type

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, h, w] at levels t, LongTensor [B]."""
        return add_noise(clean, noise, t, self.alphas_cumprod.to(clean.device))

    def times(self, t: Tensor) -> Tensor:
        """What the network is told of levels t [B]."""
        return t

    def as_noise(self, output: Tensor, x_t: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """The network's output as predicted noise [B, C, h, w], whatever it predicts."""
        return to_epsilon(output, x_t, t, self.alphas_cumprod.to(x_t.device), self.prediction_type)

    def fingerprint(self) -> str:
        """SHA-256 of the noise levels and of what the network predicts."""
        found = hashlib.sha256(self.alphas_cumprod.double().cpu().numpy().tobytes())
        found.update(json.dumps(self.prediction_type).encode())
        return found.hexdigest()


class RectifiedFlow:
    """Stable Diffusion 3: the straight path, level i is the sigma of training timestep i; networks predict a velocity.

    weighting: "constant" makes the errors of the terms velocity errors, "noise" errors of the noise, which are
    (1 - sigma)^2 of them (`labkit.dpo.flow`).
    """

    flow = True

    def __init__(self, scheduler, weighting: str = "constant"):
        self.levels = flow_levels(scheduler)  # [T], ascending
        self.weighting = weighting
        signal, noise = (1 - self.levels) ** 2, self.levels**2
        self.alphas_cumprod = signal / (signal + noise)  # of the same latents scaled to variance 1

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, h, w] at levels t, LongTensor [B]."""
        return flow_latents(clean, noise, self.levels.to(t.device)[t])

    def times(self, t: Tensor) -> Tensor:
        """What the network is told of levels t [B]: T sigma."""
        return self.levels.to(t.device)[t] * len(self.levels)

    def as_noise(self, output: Tensor, x_t: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """A velocity as predicted noise [B, C, h, w], read as the weighting says."""
        if self.weighting == "constant":
            return output + clean
        return noise_of_velocity(output, x_t, self.levels.to(t.device)[t])

    def fingerprint(self) -> str:
        """SHA-256 of the noise levels."""
        return hashlib.sha256(b"flow" + self.levels.double().numpy().tobytes()).hexdigest()


def process_of(pipe, weighting: str = "constant") -> Diffusion | RectifiedFlow:
    """The process of a pipeline, by what it calls in every step.

    Raises ValueError for a transformer whose scheduler is none of flow matching.
    """
    if getattr(pipe, "unet", None) is not None:
        if is_flow(pipe.scheduler):
            name = type(pipe.scheduler).__name__
            raise ValueError(f"{name} is a schedule of flow matching, the U-Net was trained for another: load its own")
        return Diffusion(pipe.scheduler)
    return RectifiedFlow(pipe.scheduler, weighting)
