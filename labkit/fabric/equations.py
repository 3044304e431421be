"""The equations of FABRIC (von Rütte et al., arXiv 2307.10159): one function each. Read this file first.

    eq. 1     a reference at the noise level of the step that reads it    `noised_reference`
    eq. 2     weighted attention: self-attention that also sees           `weighted_attention`
              reference tokens, re-weighted
              the mass on references whose logits say nothing             `flat_mass`
    sec. 5    in-batch diversity                                          `pairwise_diversity`
    CFG       likes read by the conditional rows, dislikes by the         `labkit.fabric.session`, `unet_output` of
              unconditional ones                                          `labkit.diffusion.guidance`

Eq. 2, for a query i and keys j, those of the picture's own tokens (w_j = 1) and those of references (w_j = w):

    a_ij = w_j exp(s_ij) / sum_l w_l exp(s_il) = softmax_j(s_ij + log w_j),        s_ij = q_i . k_j / sqrt(d)

The printed formula lacks the normalisation of the row; all published code has it. `labkit.fabric.attention` computes
the same numbers in two other forms: one for the mass on references, one to look at the table a.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.fabric.settings import FabricError


def alpha_bar_at(t: float, alphas_cumprod: Tensor) -> float:
    """The symbol alpha_bar_t of eq. 1 at a possibly fractional timestep.

    Interpolated in log sigma, sigma^2 = (1 - alpha_bar) / alpha_bar, and clamped to the training schedule. With it,
    eq. 1 is `scale_model_input(add_noise(x, noise, t), t)` for every sampler whose timesteps are those of its sigmas.
    Beside an end without signal or without noise (alpha_bar = 0, as with a schedule of zero terminal SNR, or 1) log
    sigma is infinite; sqrt(alpha_bar) is interpolated there.

    Args:
        t: timestep, 0 (clean) .. len(alphas_cumprod) - 1 (noise).
        alphas_cumprod: the training schedule, [T].

    Returns:
        alpha_bar_t, 0 .. 1.
    """
    t = min(max(float(t), 0.0), len(alphas_cumprod) - 1.0)
    low = int(t)
    ends = alphas_cumprod[low : low + 2].double().cpu()  # [1] at the last timestep, else [2]
    part = t - low
    if part == 0:
        return float(ends[0])
    if not bool(((ends > 0) & (ends < 1)).all()):
        return float(torch.lerp(*ends.sqrt(), part)) ** 2
    value = torch.lerp(*(0.5 * torch.log((1 - ends) / ends)), part)  # log sigma
    return float(torch.sigmoid(-2 * value))  # 1 / (1 + sigma^2)


def noised_reference(latent: Tensor, noise: Tensor, t: float, alphas_cumprod: Tensor) -> Tensor:
    """FABRIC (arXiv 2307.10159), eq. 1: a feedback image (liked or disliked) noised to the current step.

    sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps: what the U-Net sees of a reference image, whatever the sampler.

    Args:
        latent: x, the clean latent, [..., C, h, w].
        noise: eps, standard normal, of the same shape.
        t: timestep of the step that reads the reference.
        alphas_cumprod: the training schedule, [T].

    Returns:
        The noised latent, [..., C, h, w].
    """
    abar = alpha_bar_at(t, alphas_cumprod)
    return abar**0.5 * latent + (1 - abar) ** 0.5 * noise.to(latent.device, latent.dtype)


def weighted_attention(
    q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, w: Tensor | float, scale: float | None = None
) -> Tensor:
    """FABRIC (arXiv 2307.10159), eq. 2, weighted attention: softmax(s + log w) v in one fused call.

    The bias is [1, N + M] and broadcasts over rows and queries.

    Args:
        q, k, v: queries, keys and values of the picture's own N tokens, [..., N, d].
        k_ref, v_ref: keys and values of M reference tokens, [..., M, d]; dimensions of length 1 are shared by all rows.
        w: weight of the reference tokens, one for all or [M]; at least 0, and 1 counts them like own tokens.
        scale: factor of the logits, 1 / sqrt(d) if None.

    Returns:
        What each query sees, [..., N, d].
    """
    shared = (*q.shape[:-2], -1, -1)
    keys = torch.cat([k, k_ref.expand(shared)], dim=-2)  # [..., N + M, d]
    values = torch.cat([v, v_ref.expand(shared)], dim=-2)
    log_w = torch.as_tensor(w, device=k.device).log().expand(k_ref.shape[-2])  # [M]
    bias = torch.cat([log_w.new_zeros(k.shape[-2]), log_w]).to(q.dtype)  # own tokens: log 1 = 0
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias[None], scale=scale)


def flat_mass(weights_sum: float) -> float:
    """Eq. 2 with equal logits: the share of attention on references, W / (1 + W).

    Args:
        weights_sum: W, the sum of the references' weights (n w for n references as large as the picture).

    Returns:
        The mass, 0 .. 1.
    """
    return weights_sum / (1.0 + weights_sum)


def pairwise_diversity(features: Tensor) -> float:
    """Section 5: d = 1 - mean cosine similarity over the n (n - 1) / 2 pairs of pictures; 0 for copies.

    Args:
        features: one row for each picture, [n, d], of any length (the paper takes CLIP's).

    Returns:
        d, 0 .. 2.

    Raises:
        FabricError: fewer than two pictures.
    """
    n = len(features)
    if n < 2:
        raise FabricError(f"diversity needs at least two images, got {n}")
    unit = F.normalize(features.float(), dim=-1)
    total = (unit @ unit.T).sum() - n
    return float(1 - total / (n * (n - 1)))
