"""One DDIM step as a Gaussian: mean, standard deviation, sample, log-probability and KL.

Source: DDIM, arXiv 2010.02502, eq. 12 and 16; DDPO, arXiv 2305.13301, treats each step as an action with this density.

    x0_hat  = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
    sigma^2 = eta^2 (1 - abar_prev) / (1 - abar_t) (1 - abar_t / abar_prev)                              (eq. 16)
    mean    = sqrt(abar_prev) x0_hat + sqrt(1 - abar_prev - sigma^2) eps                                 (eq. 12)
    log p(x_prev | x_t) = -|x_prev - mean|^2 / (2 sigma^2) - D log sigma - D/2 log(2 pi),     D elements per image

The log-probability is the SUM over the elements of an image, in float32. Most public code averages instead, so their
clip ranges and betas must be rescaled by D (clip 1e-4 per element-mean at D = 16384 is 1.6 here).

eta = 0 is deterministic and has no density: `log_prob` is then None. The KL of two such steps is undefined as well.

The last step. With SD's settings (`set_alpha_to_one=False`, `steps_offset=1`) the last step goes from t = 1 to
abar_prev = abar_0 and keeps sigma = 0.0207 eta. Other settings (`set_alpha_to_one=True`; trailing or zero-offset
timesteps, where t = 0) have sigma = 0 there and a log-probability of infinity. The sample stays what diffusers
computes, and the log-probability is taken with sigma = SIGMA_AT_ZERO eta instead: finite, largest at the mean, on the
scale of SD's own last step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.diffusion.noise import draw_noise
from labkit.diffusion.schedule import Timestep, alpha_bar, work_dtype

SIGMA_AT_ZERO = 0.02  # stands in for a zero standard deviation, times eta; SD's own last step has 0.0207


def alpha_bar_prev(t_prev: Timestep, alphas_cumprod: Tensor, like: Tensor, final: float | None = None) -> Tensor:
    """alpha_bar at the step's target; a negative t_prev means "the clean end" and gives `final`.

    final=None is abar_0 (diffusers' set_alpha_to_one=False, as in Stable Diffusion), final=1.0 set_alpha_to_one=True.
    Shape as in `schedule.alpha_bar`.
    """
    clamped = t_prev.clamp(min=0) if isinstance(t_prev, Tensor) else max(int(t_prev), 0)
    abar = alpha_bar(clamped, alphas_cumprod, like)
    if final is None:
        return abar  # abar_0 where t_prev is negative
    if not isinstance(t_prev, Tensor) or t_prev.ndim == 0:
        return abar if int(t_prev) >= 0 else torch.full_like(abar, final)
    return torch.where((t_prev < 0).to(like.device).view_as(abar), torch.full_like(abar, final), abar)


def ddim_mean_sigma(
    eps: Tensor,
    t: Timestep,
    t_prev: Timestep,
    x_t: Tensor,
    alphas_cumprod: Tensor,
    *,
    eta: float = 0.0,
    final_alpha_cumprod: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean [B, ...] and standard deviation ([] or [B, 1, ...]) of x_prev given x_t, in float32 (float64 if x_t is).

    eps, x_t: [B, ...]; t, t_prev: int or LongTensor [B]; t_prev < 0 is the clean end; eta from 0 (DDIM) to 1 (DDPM).
    Raises ValueError for shapes that differ, eta outside [0, 1], t_prev > t with eta > 0 (inversion is deterministic).
    """
    if eps.shape != x_t.shape:
        raise ValueError(f"eps has shape {tuple(eps.shape)}, expected that of x_t: {tuple(x_t.shape)}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}, expected a number between 0 (DDIM) and 1 (DDPM)")
    dtype = work_dtype(x_t)
    x_t, eps = x_t.to(dtype), eps.to(dtype)
    abar_t = alpha_bar(t, alphas_cumprod, x_t)
    abar_p = alpha_bar_prev(t_prev, alphas_cumprod, x_t, final_alpha_cumprod)
    variance = (1 - abar_p) / (1 - abar_t) * (1 - abar_t / abar_p)
    if eta > 0 and abar_t.device.type == "cpu" and bool((variance < 0).any()):
        raise ValueError(f"t_prev = {t_prev} is noisier than t = {t}: a step upwards is deterministic, use eta=0")
    sigma = eta * variance.clamp(min=0.0) ** 0.5  # eq. 16
    x0 = (x_t - (1 - abar_t) ** 0.5 * eps) / abar_t**0.5
    direction = (1 - abar_p - sigma**2).clamp(min=0.0) ** 0.5 * eps
    return abar_p**0.5 * x0 + direction, sigma  # eq. 12


def gaussian_log_prob(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(x; mean, sigma^2) summed over a row's elements, float32 (float64 if mean is). x, mean: [B, ...] -> [B].

    Precision: at D = 16384 the value is of order 1e4 and float32 resolves it to 1e-3; for importance ratios close to
    one use `log_prob_ratio`, which never forms the large numbers.
    """
    dtype = work_dtype(mean)
    sigma = sigma.to(mean.device, dtype)
    z2 = (((x.to(dtype) - mean.to(dtype)) / sigma) ** 2).flatten(1).sum(1)  # [B]
    elements = mean[0].numel() if len(mean) else 0
    log_sigma = sigma.log().flatten()  # [] -> [1], or [B]
    return -0.5 * z2 - elements * (log_sigma + 0.5 * math.log(2 * math.pi))


def log_prob_ratio(x: Tensor, mean: Tensor, mean_old: Tensor, sigma: Tensor) -> Tensor:
    """log p(x | mean) - log p(x | mean_old) for one sigma, without cancellation. x, mean, mean_old: [B, ...] -> [B].

    |x - old|^2 - |x - new|^2 = (new - old) . (2x - new - old).
    """
    dtype = work_dtype(mean)
    x, mean, mean_old = x.to(dtype), mean.to(dtype), mean_old.to(dtype)
    sigma = sigma.to(mean.device, dtype)
    return ((mean - mean_old) * ((x - mean) + (x - mean_old)) / (2 * sigma**2)).flatten(1).sum(1)


def step_kl(mean: Tensor, mean_ref: Tensor, sigma: Tensor) -> Tensor:
    """KL of two steps of one sigma: |mean - mean_ref|^2 / (2 sigma^2), summed per image. [B, ...] -> [B], in nats."""
    dtype = work_dtype(mean)
    sigma = sigma.to(mean.device, dtype)
    return (((mean.to(dtype) - mean_ref.to(dtype)) / sigma) ** 2).flatten(1).sum(1) / 2


def density_sigma(sigma: Tensor, eta: float) -> Tensor:
    """The standard deviation to take a log-probability with: sigma, or SIGMA_AT_ZERO * eta where sigma is zero."""
    return torch.where(sigma > 0, sigma, torch.full_like(sigma, SIGMA_AT_ZERO * eta))


def ddim_step(
    eps: Tensor,
    t: Timestep,
    t_prev: Timestep,
    x_t: Tensor,
    alphas_cumprod: Tensor,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
    x_prev: Tensor | None = None,
    final_alpha_cumprod: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One DDIM step from x_t at t to x_prev at t_prev. Returns (x_prev [B, ...] in x_t's dtype, log_prob [B] float32).

    eps: predicted noise [B, ...] (after guidance). With eta > 0 give exactly one of
      noise       standard normal [B, ...],
      generators  one torch.Generator per image, or
      x_prev      a sample drawn earlier, to evaluate its log-probability under the present eps (policy gradients).
    With eta = 0 the step is deterministic: noise and generators are not used, x_prev is an error, log_prob is None.

    The log-probability is that of the returned (rounded, detached) x_prev, so evaluating a stored sample again gives
    the same number; gradients reach eps through the mean. See the module docstring for the last step.
    """
    given = [
        name for name, value in (("noise", noise), ("generators", generators), ("x_prev", x_prev)) if value is not None
    ]
    mean, sigma = ddim_mean_sigma(eps, t, t_prev, x_t, alphas_cumprod, eta=eta, final_alpha_cumprod=final_alpha_cumprod)
    if eta == 0:
        if x_prev is not None:
            raise ValueError("x_prev was given with eta=0: a deterministic step has no log-probability, use eta > 0")
        return mean.to(x_t.dtype), None
    if len(given) != 1:
        raise ValueError(f"eta > 0 needs exactly one of noise, generators, x_prev; got {given or 'none'}")
    if x_prev is None:
        if noise is None:
            noise = draw_noise(x_t.shape, generators, x_t.device)
        x_prev = (mean + sigma * noise.to(x_t.device, mean.dtype)).to(x_t.dtype)
    elif x_prev.shape != x_t.shape:
        raise ValueError(f"x_prev has shape {tuple(x_prev.shape)}, expected that of x_t: {tuple(x_t.shape)}")
    return x_prev, gaussian_log_prob(x_prev.detach(), mean, density_sigma(sigma, eta))
