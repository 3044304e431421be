"""The forward process and the identities between what a network may predict.

Notation (DDPM, arXiv 2006.11239; DDIM, arXiv 2010.02502): alpha_bar_t is the cumulative product of 1 - beta_t, and

    x_t = a_t x0 + s_t eps,        a_t = sqrt(alpha_bar_t),  s_t = sqrt(1 - alpha_bar_t)          (DDPM eq. 4)
    v_t = a_t eps - s_t x0                                     (progressive distillation, arXiv 2202.00512, appendix D)

Every function takes `t` as one int for the whole batch or as a LongTensor [B], and computes in float32 (float64 if the
first tensor is float64) whatever half precision comes in; the result has the dtype of the first tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

Timestep = int | Tensor


def sd_alphas_cumprod(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """alpha_bar of Stable Diffusion's "scaled linear" schedule: linear in sqrt(beta). Returns float32 [steps]."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def work_dtype(x: Tensor) -> torch.dtype:
    """The dtype arithmetic is done in: float64 stays float64, everything else becomes float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def alpha_bar(t: Timestep, alphas_cumprod: Tensor, like: Tensor) -> Tensor:
    """alpha_bar_t, shaped so that it broadcasts over `like` [B, ...]: a scalar for an int, [B, 1, ...] for a tensor.

    Raises ValueError for a timestep outside 0 .. T-1 (a negative index would silently wrap around) and for a tensor
    that does not have one timestep per row.
    """
    dtype = work_dtype(like)
    if not isinstance(t, Tensor):
        check_timestep(t, alphas_cumprod)
        return alphas_cumprod[t].to(like.device, dtype)  # []
    if t.ndim == 0:
        return alpha_bar(int(t), alphas_cumprod, like)
    if t.shape != like.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}, expected one timestep per row: ({like.shape[0]},)")
    if t.device.type == "cpu":  # checking values on an accelerator would make it wait
        for value in (int(t.min()), int(t.max())) if len(t) else ():
            check_timestep(value, alphas_cumprod)
    values = alphas_cumprod.to(like.device, dtype)[t.to(like.device)]  # [B]
    return values.view(-1, *[1] * (like.ndim - 1))  # [B, 1, 1, 1] for images


def check_timestep(t: int, alphas_cumprod: Tensor) -> None:
    """Raise ValueError unless 0 <= t < T."""
    if not 0 <= t < len(alphas_cumprod):
        raise ValueError(f"timestep {t} is outside the schedule: expected 0 .. {len(alphas_cumprod) - 1}")


def add_noise(x0: Tensor, noise: Tensor, t: Timestep, alphas_cumprod: Tensor) -> Tensor:
    """x_t = a_t x0 + s_t noise (DDPM eq. 4). x0, noise: [B, ...] of one shape."""
    if x0.shape != noise.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected that of x0: {tuple(x0.shape)}")
    abar = alpha_bar(t, alphas_cumprod, x0)
    return (abar**0.5 * x0.to(abar.dtype) + (1 - abar) ** 0.5 * noise.to(abar.dtype)).to(x0.dtype)


def predict_x0(x_t: Tensor, eps: Tensor, t: Timestep, alphas_cumprod: Tensor) -> Tensor:
    """The clean sample that `eps` implies: (x_t - s_t eps) / a_t (DDIM eq. 9). x_t, eps: [B, ...]."""
    abar = alpha_bar(t, alphas_cumprod, x_t)
    return ((x_t.to(abar.dtype) - (1 - abar) ** 0.5 * eps.to(abar.dtype)) / abar**0.5).to(x_t.dtype)


def epsilon_from_x0(x0: Tensor, x_t: Tensor, t: Timestep, alphas_cumprod: Tensor) -> Tensor:
    """The noise that makes x_t out of x0: (x_t - a_t x0) / s_t. x0, x_t: [B, ...]."""
    abar = alpha_bar(t, alphas_cumprod, x_t)
    return ((x_t.to(abar.dtype) - abar**0.5 * x0.to(abar.dtype)) / (1 - abar) ** 0.5).to(x0.dtype)


def epsilon_from_v(v: Tensor, x_t: Tensor, t: Timestep, alphas_cumprod: Tensor) -> Tensor:
    """eps = a_t v + s_t x_t. v, x_t: [B, ...].

    For the same x_t the squared eps-error is alpha_bar_t times the squared v-error: weight v-errors by alpha_bar_t to
    get an epsilon loss out of a v-predicting network.
    """
    abar = alpha_bar(t, alphas_cumprod, x_t)
    return (abar**0.5 * v.to(abar.dtype) + (1 - abar) ** 0.5 * x_t.to(abar.dtype)).to(v.dtype)


def v_from_epsilon(eps: Tensor, x_t: Tensor, t: Timestep, alphas_cumprod: Tensor) -> Tensor:
    """v = (eps - s_t x_t) / a_t, the inverse of `epsilon_from_v`. eps, x_t: [B, ...]."""
    abar = alpha_bar(t, alphas_cumprod, x_t)
    return ((eps.to(abar.dtype) - (1 - abar) ** 0.5 * x_t.to(abar.dtype)) / abar**0.5).to(eps.dtype)


def v_target(x0: Tensor, noise: Tensor, t: Timestep, alphas_cumprod: Tensor) -> Tensor:
    """What a v-predicting network is trained on: a_t noise - s_t x0. x0, noise: [B, ...]."""
    abar = alpha_bar(t, alphas_cumprod, x0)
    return (abar**0.5 * noise.to(abar.dtype) - (1 - abar) ** 0.5 * x0.to(abar.dtype)).to(x0.dtype)


def to_epsilon(output: Tensor, x_t: Tensor, t: Timestep, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Turn a network's output into predicted noise; prediction_type as in diffusers: epsilon, v_prediction, sample."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return epsilon_from_v(output, x_t, t, alphas_cumprod)
    if prediction_type == "sample":
        return epsilon_from_x0(output, x_t, t, alphas_cumprod)
    raise ValueError(f"prediction_type is {prediction_type!r}, expected 'epsilon', 'v_prediction' or 'sample'")
