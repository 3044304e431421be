"""The losses of Diffusion-DPO and its relatives as pure functions of per-image errors.

An error [B] is the mean over a latent's elements of (eps_hat - eps)^2, in float32 (`epsilon_error`). A pair has four:
of winner and loser, each under the policy and under the frozen reference (ref_).

    D = (e_w - e_ref,w) - (e_l - e_ref,l),   s = -kappa D,   loss = -log sigmoid(s)    (arXiv 2311.12908, eq. 14)

All losses are per pair [B], so that batches may be cut, weighted and averaged by the caller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LN2 = math.log(2.0)


def epsilon_error(prediction: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error per image, reduced in float32 whatever comes in. prediction, noise: [B, ...] -> [B].

    In bfloat16 the rounding of the mean alone is a logit of about 0.8 at kappa 2500.
    """
    return (prediction.float() - noise.float()).square().flatten(1).mean(1)


def epsilon_error_of_v(v_error: Tensor, alpha_bar: Tensor) -> Tensor:
    """The epsilon error of a v error [B]: times alpha_bar_t [B]. Plain v errors re-weight t by 1 / alpha_bar_t."""
    return v_error * alpha_bar.to(v_error)


def pair_difference(*, winner: Tensor, loser: Tensor, ref_winner: Tensor, ref_loser: Tensor) -> Tensor:
    """D [B], negative where the policy prefers the winner more than the reference does. All arguments: errors [B]."""
    return (winner - ref_winner) - (loser - ref_loser)


def pair_logits(*, winner: Tensor, loser: Tensor, ref_winner: Tensor, ref_loser: Tensor, kappa: float) -> Tensor:
    """s = -kappa D [B]: the log-odds that the implicit reward model gives to the winner."""
    return -kappa * pair_difference(winner=winner, loser=loser, ref_winner=ref_winner, ref_loser=ref_loser)


def sigmoid_loss(s: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - q) log sigmoid(s) - q log sigmoid(-s) [B]; q is the share of labels believed to be wrong (0: plain DPO).

    Subtract m * margin from s beforehand to ask for more where the scores differ more.
    """
    if not 0.0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 .. 0.5 (a share of wrong labels)")
    loss = -(1 - label_smoothing) * logsigmoid(s)
    return loss - label_smoothing * logsigmoid(-s) if label_smoothing else loss


def hinge_loss(s: Tensor) -> Tensor:
    """max(0, 1 - s) [B] (SLiC): pairs beyond the margin teach nothing."""
    return (1 - s).clamp(min=0)


def ipo_loss(difference: Tensor, *, tau: float) -> Tensor:
    """(-D - 1 / (2 tau))^2 [B] (IPO, 2310.12036): asks for a fixed gap instead of an ever larger one.

    tau is per unit of mean error, like kappa: 2500 asks for D = -2e-4.
    """
    return (-difference - 1 / (2 * tau)).square()


def sdpo_scale(*, winner_residual: Tensor, loser_residual: Tensor, mu: float) -> Tensor:
    """lambda [B] in [0, 1], by which Diffusion-SDPO (2511.03317) scales the loser's gradient; detached.

    g = prediction - target. Where g_w . g_l > 0 pushing the loser away pushes the winner too, and
    lambda = clip((1 - mu) |g_w|^2 / (g_w . g_l), 0, 1) keeps the winner's error from rising to first order (if both
    images' Jacobians are alike). Elsewhere 1. One value per pair (the released code takes one per batch).
    """
    if not 0.0 <= mu <= 1.0:
        raise ValueError(f"mu is {mu}, expected 0 .. 1 (1 drops the loser where the gradients align)")
    g_w, g_l = winner_residual.detach().float().flatten(1), loser_residual.detach().float().flatten(1)
    overlap = (g_w * g_l).sum(1)
    scale = (1 - mu) * g_w.square().sum(1) / overlap.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(overlap > 0, scale.clamp(0.0, 1.0), torch.ones_like(scale))


def scale_gradient(value: Tensor, scale: Tensor) -> Tensor:
    """`value` unchanged, its gradient times `scale` (same shape, detached)."""
    return scale * value + (1 - scale) * value.detach()


def mapo_loss(*, winner: Tensor, loser: Tensor, weight: float = 0.1, scale: float = 1000.0) -> Tensor:
    """MaPO (2406.06424) [B]: e_w - weight log sigmoid(scale (f(e_w) - f(e_l))), f(e) = (e/2) / (exp(e/2) - 1).

    No reference at all. Near e = 0, scale * f has slope -scale / 4: about DPO at kappa 250 plus SFT.
    """

    def f(e: Tensor) -> Tensor:
        half = 0.5 * e
        return half / torch.expm1(half.clamp(min=1e-12))

    return winner - weight * logsigmoid(scale * (f(winner) - f(loser)))


def kto_loss(
    *, liked: Tensor, ref_liked: Tensor, disliked: Tensor, ref_disliked: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Diffusion-KTO (2404.04465): losses of liked [A] and disliked [B] images, which need not be pairs.

    1 - sigmoid(+-beta (g - k)) with g = e_ref - e and k = the batch's mean g, detached (+ for liked images).
    """
    g_liked, g_disliked = ref_liked - liked, ref_disliked - disliked
    k = torch.cat([g_liked, g_disliked]).detach().mean()
    return 1 - torch.sigmoid(beta * (g_liked - k)), 1 - torch.sigmoid(-beta * (g_disliked - k))


def step_coefficient(t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """c_t [B] = beta_t / (sqrt(alpha_t) sqrt(1 - alpha_bar_t)): how far a DDPM step moves per unit of noise."""
    abar = alphas_cumprod.cpu().double()  # on the CPU: some accelerators have no float64
    before = torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])  # alpha_bar_{t-1}, 1 at t = 0
    alpha = abar / before
    coefficient = (1 - alpha) / (alpha.sqrt() * (1 - abar).sqrt())  # [T]
    return coefficient[t.cpu()].float().to(t.device)


def statistics_loss(prediction: Tensor, ref_prediction: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """HG-DPO's statistics matching (2405.20216, section 3.1) in closed form [B], without any further forward pass.

    The paper takes one DDPM step with the policy and one with the base model and compares the channel means of the
    results. With shared sampling noise these differ by c_t mean_c(eps - eps_ref), so the loss is
    c_t^2 |mean_c(eps - eps_ref)|^2, summed over channels. prediction, ref_prediction: epsilon [B, C, h, w]; t: [B].
    """
    shift = (prediction.float() - ref_prediction.detach().float()).flatten(2).mean(2)  # [B, C]
    return step_coefficient(t, alphas_cumprod).square() * shift.square().sum(1)


def implicit_accuracy(s: Tensor) -> Tensor:
    """Share of pairs with s > 0, ties a half (0.5 before training). Health of training, not quality of images."""
    return (s > 0).float().mean() + 0.5 * (s == 0).float().mean()
