"""Which timesteps a sampler visits and how one step is taken, for plain DDIM and for any other diffusers scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.diffusion.ddim import ddim_step
from labkit.diffusion.schedule import add_noise, check_timestep, predict_x0, to_epsilon


def is_plain_ddim(scheduler) -> bool:
    """True if `ddim_step` is this scheduler's step: a DDIMScheduler that neither clips, thresholds nor rescales."""
    config = scheduler.config
    return type(scheduler).__name__ == "DDIMScheduler" and not (
        config.clip_sample or config.thresholding or config.get("rescale_betas_zero_snr", False)
    )


def ddim_timesteps(scheduler, steps: int) -> list[tuple[int, int]]:
    """The (t, t_prev) pairs of `steps` DDIM steps as diffusers takes them; t_prev < 0 is the clean end."""
    total = scheduler.config.num_train_timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"steps is {steps}, expected 1 .. {total}")
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    pairs = [(int(t), int(t) - total // steps) for t in scheduler.timesteps]
    check_timestep(pairs[0][0], scheduler.alphas_cumprod)  # steps_offset=1 with 1000 steps would start at t = 1000
    return pairs


def _pairs(timesteps: Sequence[int]) -> list[tuple[int, int]]:
    """Each timestep with the next one in the list; the last goes to the clean end."""
    return list(zip(timesteps, [*timesteps[1:], -1][: len(timesteps)], strict=True))


class DDIMPlan:
    """Steps of a plain DDIM scheduler. pairs: the (t, t_prev) to visit."""

    def __init__(self, scheduler, steps: int, *, timesteps: Sequence[int] | None, strength: float, eta: float):
        self.config = scheduler.config
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.final_alpha_cumprod = float(scheduler.final_alpha_cumprod)
        self.eta = eta
        if timesteps is None:
            pairs = ddim_timesteps(scheduler, steps)
        else:
            timesteps = [int(t) for t in timesteps]
            for t in timesteps:
                check_timestep(t, self.alphas_cumprod)
            if any(a <= b for a, b in zip(timesteps, timesteps[1:], strict=False)):
                raise ValueError(f"timesteps must descend strictly, got {timesteps}")
            pairs = _pairs(timesteps)
        self.pairs = pairs[skipped(len(pairs), strength) :]

    def noised(self, start: Tensor, noise: Tensor) -> Tensor:
        """`start` [B, C, h, w] noised to the first timestep; unchanged if there is no step."""
        return add_noise(start, noise, self.pairs[0][0], self.alphas_cumprod) if self.pairs else start

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise scaled to the first timestep's standard deviation (1 for DDIM)."""
        return noise

    def scaled(self, i: int, x: Tensor) -> tuple[Tensor, int]:
        """The U-Net's input and timestep at step i."""
        return x, self.pairs[i][0]

    def step(
        self, i: int, output: Tensor, x: Tensor, generators
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """(x_prev, noise prediction, x0, log_prob) of step i from the network's guided output."""
        t, t_prev = self.pairs[i]
        eps = to_epsilon(output, x, t, self.alphas_cumprod, self.config.prediction_type)
        x_prev, log_prob = ddim_step(
            eps,
            t,
            t_prev,
            x,
            self.alphas_cumprod,
            eta=self.eta,
            generators=generators if self.eta > 0 else None,
            final_alpha_cumprod=self.final_alpha_cumprod,
        )
        return x_prev, eps, predict_x0(x, eps, t, self.alphas_cumprod), log_prob


class SchedulerPlan:
    """Steps of any other scheduler, by its own code on a private copy (it may keep a history: one plan per chunk)."""

    def __init__(self, scheduler, steps: int, *, timesteps: Sequence[int] | None, strength: float, eta: float, device):
        name = type(scheduler).__name__
        if eta > 0 or timesteps is not None:
            what = "eta > 0" if eta > 0 else "own timesteps"
            raise ValueError(f"{what} needs a DDIMScheduler with clip_sample=False and no thresholding, this is {name}")
        if scheduler.config.get("use_dynamic_shifting", False):
            raise ValueError(
                f"the timesteps of this {name} depend on the size of the picture: set use_dynamic_shifting=False and "
                "a shift in its config, or sample with the pipeline's own call"
            )
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.set_timesteps(steps, device=device)
        begin = skipped(steps, strength) * getattr(self.scheduler, "order", 1)
        if begin and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        self.timesteps = list(self.scheduler.timesteps[begin:])
        self.pairs = _pairs([int(t) for t in self.timesteps])
        self.takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters

    def noised(self, start: Tensor, noise: Tensor) -> Tensor:
        if not self.pairs:
            return start
        t = torch.stack(self.timesteps[:1])
        if hasattr(self.scheduler, "scale_noise"):  # flow matching
            return self.scheduler.scale_noise(start, t, noise)
        return self.scheduler.add_noise(start, noise, t)

    def initial(self, noise: Tensor) -> Tensor:
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)  # flow matching starts from noise as it is

    def scaled(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self.scheduler, "scale_model_input"):
            return x, self.timesteps[i]
        return self.scheduler.scale_model_input(x, self.timesteps[i]), self.timesteps[i]

    def step(
        self, i: int, output: Tensor, x: Tensor, generators
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        extra = {"generator": list(generators)} if self.takes_generator else {}
        x_prev = self.scheduler.step(output, self.timesteps[i], x, return_dict=False, **extra)[0]
        return x_prev, output, None, None


def skipped(steps: int, strength: float) -> int:
    """How many first steps a partial start leaves out: steps - floor(steps * strength), as in diffusers' img2img."""
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength is {strength}, expected 0 (keep the start) .. 1 (forget it)")
    return steps - min(int(steps * strength + 1e-9), steps)


def make_plan(scheduler, steps: int, *, timesteps=None, strength: float = 1.0, eta: float = 0.0, device="cpu"):
    """The plan for a scheduler. Raises ValueError for steps, strength, eta or timesteps that it cannot do."""
    if is_plain_ddim(scheduler):
        return DDIMPlan(scheduler, steps, timesteps=timesteps, strength=strength, eta=eta)
    return SchedulerPlan(scheduler, steps, timesteps=timesteps, strength=strength, eta=eta, device=device)
