"""The families of the survey (arXiv 2409.07253) as functions: one equation each, as contenders and checks use it.

Notation: x_t a noisy latent of D elements, eps the (guided) noise prediction, abar = alpha_bar_t; r a reward, A an
advantage; P prompts with N images each. Every log-probability is the SUM over the D elements of an image, in float32;
one DDIM step as a Gaussian is `labkit.diffusion.ddim_step` (DDIM, arXiv 2010.02502, eq. 12 and 16).

    search           best_of_n_weights, best_of_n, best_of_n_kl; fk_potential, fk_weights, effective_size, resample
    weights          raft_weights, rwr_weights, weighted_error
    policy gradient  step_log_ratio, step_divergence, group_advantage, clip_for, ppo_loss, reinforce_loss
    back-propagation truncated_chain
    guidance         guided_epsilon
    forward process  nft_optimality, nft_loss
    accounts         overoptimisation, break_even
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from labkit.diffusion.ddim import ddim_mean_sigma, density_sigma, log_prob_ratio, step_kl
from labkit.diffusion.schedule import Timestep

# ---- best of N -------------------------------------------------------------------------------------------------------


def best_of_n_weights(scores: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    """Probability of each of M images to be the best of n drawn from them without replacement: [M], sums to 1.

    The i-th smallest has C(i-1, n-1) / C(M, n); images of equal score share theirs. The unbiased estimator of WebGPT
    (arXiv 2112.09332, appendix I) as used by Gao et al. (arXiv 2210.10760): a curve over n from one pool.

    Raises:
        ValueError: n outside 1 .. M, scores that are not finite.
    """
    scores = np.asarray(scores, dtype=float)
    m = len(scores)
    if scores.ndim != 1 or not 1 <= n <= m:
        raise ValueError(f"n is {n} for scores of shape {scores.shape}: expected 1 .. number of images")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity: drop those images")
    order = np.argsort(scores, kind="stable")
    by_rank = np.array([math.comb(i, n - 1) for i in range(m)], dtype=float) / math.comb(m, n)
    weights = np.empty(m)
    weights[order] = by_rank
    _, group = np.unique(scores, return_inverse=True)
    return (np.bincount(group, weights) / np.bincount(group))[group]


def best_of_n(
    scores: Sequence[float] | np.ndarray, n: int, values: Sequence[float] | np.ndarray | None = None
) -> float:
    """Expected value of the best of n: of its score, or of what other judges say of it (values [M])."""
    return float(best_of_n_weights(scores, n) @ np.asarray(scores if values is None else values, dtype=float))


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the base for scores without ties: log n - (n - 1) / n, in nats (2112.09332, appendix I)."""
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    return math.log(n) - (n - 1) / n


# ---- particles: Feynman-Kac steering ---------------------------------------------------------------------------------


def fk_potential(rewards: Tensor, strength: float, kind: str = "difference") -> Tensor:
    """log G_t of FK steering (arXiv 2501.06848, section 3) of each particle, from its rewards so far.

    Args:
        rewards: [S, k]: at S checks, of k particles, the latest last. strength: lambda.
        kind: "difference" lambda (r_s - r_{s-1}), "max" lambda max of all, "sum" lambda sum of all.

    Returns:
        [k]. Differences telescope: all of them together are lambda r of the final image.
    """
    if rewards.ndim != 2 or not len(rewards):
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}, expected [checks, particles]")
    if kind == "difference":
        return strength * (rewards[-1] - rewards[-2] if len(rewards) > 1 else rewards[-1])
    if kind not in ("max", "sum"):
        raise ValueError(f"kind is {kind!r}, expected 'difference', 'max' or 'sum'")
    return strength * (rewards.max(0).values if kind == "max" else rewards.sum(0))


def fk_weights(log_potential: Tensor, log_previous: Tensor | None = None) -> Tensor:
    """Normalised weights of k particles [..., k]: proportional to G_t times what was not resampled away before."""
    return torch.softmax(log_potential if log_previous is None else log_potential + log_previous, -1)


def effective_size(weights: Tensor) -> Tensor:
    """Effective number of particles 1 / sum w^2 of weights [..., k] that sum to 1: k if equal, 1 if one has all."""
    return 1 / weights.square().sum(-1)


def resample(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic resampling: indices [k]; particle i is taken floor or ceil of k w_i times, k w_i on average."""
    k = len(weights)
    positions = (torch.arange(k) + torch.rand(1, generator=generator)) / k  # [k], one draw
    edges = weights.double().cumsum(0)
    return torch.searchsorted(edges / edges[-1], positions.double()).clamp(max=k - 1)


# ---- own samples as data, weighted by reward -------------------------------------------------------------------------


def raft_weights(rewards: Tensor, keep: int = 1) -> Tensor:
    """RAFT (arXiv 2304.06767, section 3): 1 for the `keep` best of every prompt [P, N], 0 for the others.

    A prompt whose images all tie says nothing and has weight 0.
    """
    check_groups(rewards)
    if not 1 <= keep < rewards.shape[1]:
        raise ValueError(f"keep is {keep}, expected 1 .. {rewards.shape[1] - 1} of {rewards.shape[1]} images")
    best = torch.zeros_like(rewards).scatter(1, rewards.topk(keep, 1).indices, 1.0)
    return best * (rewards.max(1, keepdim=True).values > rewards.min(1, keepdim=True).values)


def rwr_weights(rewards: Tensor, temperature: float) -> Tensor:
    """Reward-weighted regression: w proportional to exp(r / temperature) (w_RWR of arXiv 2305.13301, section 4.1).

    rewards [P, N] -> weights of mean 1 within every prompt, so that an easy prompt does not outweigh a hard one.
    """
    check_groups(rewards)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a positive number")
    return torch.softmax(rewards / temperature, 1) * rewards.shape[1]


def weighted_error(prediction: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """w |eps_theta - eps|^2 / D: the denoising loss (DDPM, arXiv 2006.11239, eq. 14) of own samples, weighted. [B]"""
    return weight * (prediction - noise).square().flatten(1).mean(1)


# ---- policy gradients ------------------------------------------------------------------------------------------------


def step_log_ratio(
    eps: Tensor, eps_old: Tensor, x_prev: Tensor, x_t: Tensor, t: Timestep, t_prev: Timestep, alphas_cumprod: Tensor,
    *, eta: float = 1.0, final_alpha_cumprod: float | None = None,
) -> Tensor:  # fmt: skip
    """log p_theta(x_prev | x_t) - log p_old(x_prev | x_t) of one DDIM step, summed over D: [B], 0 where both agree.

    The ratio of DDPO_IS (arXiv 2305.13301, section 4.3), without forming the two large numbers. eta > 0.
    """
    options = {"eta": eta, "final_alpha_cumprod": final_alpha_cumprod}
    mean, sigma = ddim_mean_sigma(eps, t, t_prev, x_t, alphas_cumprod, **options)
    old, _ = ddim_mean_sigma(eps_old, t, t_prev, x_t, alphas_cumprod, **options)
    return log_prob_ratio(x_prev, mean, old, density_sigma(sigma, eta))


def step_divergence(
    eps: Tensor, eps_ref: Tensor, x_t: Tensor, t: Timestep, t_prev: Timestep, alphas_cumprod: Tensor,
    *, eta: float = 1.0, final_alpha_cumprod: float | None = None,
) -> Tensor:  # fmt: skip
    """KL(p_theta || p_ref) of one DDIM step, |mean - mean_ref|^2 / (2 sigma^2): [B], nats (DPOK, arXiv 2305.16381).

    Summed over the steps of the policy's own trajectories it bounds the KL of the images from above.
    """
    options = {"eta": eta, "final_alpha_cumprod": final_alpha_cumprod}
    mean, sigma = ddim_mean_sigma(eps, t, t_prev, x_t, alphas_cumprod, **options)
    ref, _ = ddim_mean_sigma(eps_ref, t, t_prev, x_t, alphas_cumprod, **options)
    return step_kl(mean, ref, density_sigma(sigma, eta))


def group_advantage(rewards: Tensor, *, floor: float = 1e-4, limit: float = 5.0) -> Tensor:
    """A = (r - mean) / std within each prompt's group, cut to +-limit (GRPO, arXiv 2402.03300, section 4.1.2). [P, N]

    A group whose standard deviation (of the population) is not above `floor` gets 0: it says nothing.
    """
    check_groups(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    std = rewards.std(1, correction=0, keepdim=True)
    return torch.where(std > floor, centred / std.clamp(min=floor), 0.0).clamp(-limit, limit)


def clip_for(elements: int, published: float = 1e-4, published_elements: int = 16384) -> float:
    """PPO's clip range in the element-mean convention for another latent size: the same in units of the whole image.

    DDPO's code averages log p over D = 16,384 elements and clips at 1e-4; 512 elements need 3.2e-3 for the same rule.
    """
    return published * published_elements / elements


def ppo_loss(log_ratio: Tensor, advantage: Tensor, *, clip: float, elements: int = 1) -> Tensor:
    """-D min(rho A, clip(rho, 1 +- c) A) with rho = exp(log_ratio / D): [B] (PPO, arXiv 1707.06347, eq. 7).

    elements = D takes the ratio per element, as published code for images does; 1 is PPO's own. The factor D in front
    makes the gradient at rho = 1 that of -A log p in either case.
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip}, expected between 0 and 1: see clip_for(elements)")
    ratio = (log_ratio / elements).exp()
    return -elements * torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def reinforce_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-A log p: its gradient is the score-function estimator DDPO_SF (arXiv 2305.13301, section 4.3). [B]"""
    return -advantage * log_prob


# ---- through the sampler ---------------------------------------------------------------------------------------------


def truncated_chain(step: Callable[[Tensor, int], Tensor], x: Tensor, steps: int, k: int) -> Tensor:
    """Truncated back-propagation through the sampler: x <- step(x, i) for i = 0 .. steps - 1, with gradient in the last
    k steps alone: DRaFT-K (arXiv 2309.17400, section 4.1). k = steps is DRaFT; AlignProp (arXiv 2310.03739) draws k
    anew for every update."""
    if not 1 <= k <= steps:
        raise ValueError(f"k is {k}, expected 1 .. {steps}")
    for i in range(steps):
        with torch.set_grad_enabled(i >= steps - k):
            x = step(x, i)
    return x


def guided_epsilon(eps: Tensor, gradient: Tensor, abar: Tensor | float, scale: float) -> Tensor:
    """eps - scale sqrt(1 - abar) grad_{x_t} r: guidance towards a reward (arXiv 2105.05233, algorithm 2; with r of the
    predicted clean image, universal guidance, arXiv 2302.07121, eq. 6)."""
    return eps - scale * (1 - abar) ** 0.5 * gradient


# ---- the forward process ---------------------------------------------------------------------------------------------


def nft_optimality(advantage: Tensor, limit: float = 5.0) -> Tensor:
    """rho in [0, 1]: clip(A / limit) / 2 + 1/2, the probability that a sample is a good one (arXiv 2509.16117)."""
    return (advantage / limit).clamp(-1, 1) / 2 + 0.5


def nft_loss(x0_theta: Tensor, x0_old: Tensor, x0: Tensor, rho: Tensor, beta: float = 1.0) -> Tensor:
    """DiffusionNFT (arXiv 2509.16117) with predicted clean samples: [B].

        x+ = (1 - beta) x_old + beta x_theta,    x- = (1 + beta) x_old - beta x_theta
        L = rho / beta |x+ - x0|^2 / w+  +  (1 - rho) / beta |x- - x0|^2 / w-

    where w is the detached mean absolute error of the same prediction. At x_theta = x_old and rho = 1/2 the gradient
    is 0. The paper predicts velocities; the x0 form is that of its code.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}, expected a positive number")
    x0_old = x0_old.detach()

    def error(prediction: Tensor) -> Tensor:
        scale = (prediction - x0).detach().abs().flatten(1).mean(1).clamp(min=1e-5)  # [B]
        return (prediction - x0).square().flatten(1).mean(1) / scale

    good, bad = (1 - beta) * x0_old + beta * x0_theta, (1 + beta) * x0_old - beta * x0_theta
    return rho / beta * error(good) + (1 - rho) / beta * error(bad)


# ---- accounts --------------------------------------------------------------------------------------------------------


def overoptimisation(kl: np.ndarray, alpha: float, beta: float, *, search: bool) -> np.ndarray:
    """Gold reward gained at a distance d = sqrt(KL) (Gao et al., arXiv 2210.10760, eq. 1 and 2).

    d (alpha - beta d) for best-of-n (search), d (alpha - beta log d) for reinforcement learning; 0 at d = 0.
    """
    d = np.sqrt(np.asarray(kl, dtype=float))
    return d * (alpha - beta * (d if search else np.log(np.maximum(d, 1e-300))))


def break_even(training: float, per_image: float, per_search: float) -> float:
    """From how many delivered images on training has paid: training cost / (cost of a searched image - of a plain one).

    All in the same unit (NFE). Infinite where the search is not dearer.
    """
    return training / (per_search - per_image) if per_search > per_image else math.inf


def check_groups(rewards: Tensor) -> None:
    """Raise ValueError unless rewards are finite [P, N] with N >= 2."""
    if rewards.ndim != 2:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}, expected [prompts, images per prompt]")
    if rewards.shape[1] < 2:
        raise ValueError("groups of one image: its advantage is always 0, draw at least 2 images per prompt")
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError(f"{int((~torch.isfinite(rewards)).sum())} rewards are NaN or infinite: the reward failed")
