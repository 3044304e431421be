"""The contenders that train nothing: best-of-N, guidance by the reward, FK steering, FABRIC with an oracle.

Their cost is paid for every delivered picture. Each delivers one latent per prompt, chosen or steered by the proxy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.diffusion import (
    NFELedger,
    SamplerStep,
    ddim_step,
    ddim_timesteps,
    decode_latents,
    encode_prompts,
    image_generators,
    initial_latents,
    predict_noise,
    predict_x0,
    sample_latents,
)
from labkit.fabric import Reference, fabric
from labkit.survey.equations import effective_size, fk_potential, fk_weights, guided_epsilon, resample
from labkit.survey.ledger import BudgetError, Prices
from labkit.survey.policy import ArenaSettings, Reward, precision, rewarded


def affordable(allowance: float, s: ArenaSettings, p: Prices, name: str, *, checks: int = 0) -> int:
    """How many candidates or particles a prompt may have for `allowance` NFE per delivered picture.

    Raises:
        BudgetError: fewer than two, which choose nothing.
    """
    each = p.sampled(s.steps, rows=s.rows) + checks * p.decode
    if allowance < 2 * each:
        raise BudgetError(f"{name}: {allowance:.0f} NFE per delivered picture are too few, two need {2 * each:.0f}")
    return int((allowance + 1e-6) // each)


@torch.no_grad()
def best_of_n_latents(
    pipe, prompts: Sequence[str], reward: Reward, n: int, *, seed: int, settings: ArenaSettings, ledger: NFELedger
) -> tuple[Tensor, dict[str, Tensor]]:
    """The best of n candidates of every prompt by the reward: [P, C, h, w]; and all "latents" and "scores" [P, n]."""
    rows = [p for p in prompts for _ in range(n)]
    with precision(pipe, settings):
        made = sample_latents(
            pipe, rows, generators=image_generators(len(rows), seed), steps=settings.steps, eta=settings.eta,
            guidance_scale=settings.guidance_scale, batch_size=64,
        ).latents  # fmt: skip
        images = decode_latents(pipe, made, batch_size=64).float().clamp(-1, 1)
        scores = torch.cat(
            [
                rewarded(reward, part, rows[64 * i : 64 * i + len(part)], ledger)
                for i, part in enumerate(images.split(64))
            ]
        ).view(len(prompts), n)
    latents = made.view(len(prompts), n, *made.shape[1:])
    best = latents[torch.arange(len(prompts)), scores.argmax(1)]
    return best, {"latents": latents, "scores": scores, "images": images.view(len(prompts), n, *images.shape[1:])}


@torch.enable_grad()
def guided_latents(
    pipe,
    prompts: Sequence[str],
    reward: Reward,
    *,
    seed: int,
    settings: ArenaSettings,
    ledger: NFELedger,
    batch: int = 32,
) -> Tensor:
    """Universal guidance: every step follows the gradient of r at the predicted clean picture. [P, C, h, w]

    Raises:
        ValueError: a reward without gradient.
    """
    s, alphas = settings, pipe.scheduler.alphas_cumprod.to(pipe.unet.device)
    pairs, final, parts = ddim_timesteps(pipe.scheduler, s.steps), float(pipe.scheduler.final_alpha_cumprod), []
    generators = image_generators(len(prompts), seed)
    for lo in range(0, len(prompts), batch):
        some, own = list(prompts[lo : lo + batch]), generators[lo : lo + batch]
        with torch.no_grad():
            conditions, x = encode_prompts(pipe, some), initial_latents(pipe, own)
        for t, t_prev in pairs:
            x.requires_grad_(True)
            with precision(pipe, s):
                eps = predict_noise(pipe, x, t, conditions, guidance_scale=s.guidance_scale).float()
                images = decode_latents(pipe, predict_x0(x, eps, t, alphas)).float().clamp(-1, 1)
                scores = rewarded(reward, images, some, ledger)
            if not scores.requires_grad:
                raise ValueError("the reward gives no gradient: guidance needs one, FK steering does not")
            gradient = torch.autograd.grad(scores.sum(), x)[0]
            with torch.no_grad():
                towards = guided_epsilon(eps, gradient, alphas[t], s.scale)
                x, _ = ddim_step(
                    towards, t, t_prev, x.detach(), alphas, eta=s.eta, final_alpha_cumprod=final,
                    generators=own if s.eta > 0 else None,
                )  # fmt: skip
        parts.append(x)
    return torch.cat(parts)


def guidance_price(s: ArenaSettings, p: Prices) -> float:
    """NFE of one guided picture: forward and backward through U-Net and decoder in every step."""
    return s.steps * (3 * s.rows + 3 * p.decode)


@torch.no_grad()
def fk_latents(
    pipe, prompts: Sequence[str], reward: Reward, k: int, *, seed: int, settings: ArenaSettings, ledger: NFELedger
) -> Tensor:
    """FK steering: k particles a prompt, resampled at `checks` steps when fewer than k / 2 of them count, the best
    delivered: [P, C, h, w]. Scores are those of the predicted clean pictures."""
    s, p = settings, len(prompts)
    at = {round((i + 1) * s.steps / (s.checks + 1)) - 1 for i in range(s.checks)}
    rows = [text for text in prompts for _ in range(k)]
    chooser = torch.Generator().manual_seed(seed)
    seen: list[Tensor] = []  # rewards [P, k] of the particles' own past, one per check
    left = torch.zeros(p, k)  # log weights that were not resampled away

    def scored(latents: Tensor) -> Tensor:
        images = decode_latents(pipe, latents, batch_size=64).float().clamp(-1, 1)
        return rewarded(reward, images, rows, ledger).cpu().view(p, k)

    def steer(step: SamplerStep) -> Tensor | None:
        nonlocal left
        if step.index not in at:
            return None
        seen.append(scored(step.x0))
        history = torch.stack(seen).flatten(1)  # [checks so far, P * k]
        potential = fk_potential(history, s.strength).view(p, k)
        weights = fk_weights(potential, left)
        index = torch.arange(k).repeat(p, 1)
        low = effective_size(weights) < k / 2
        for i in low.nonzero().flatten().tolist():
            index[i] = resample(weights[i], chooser)
        left = torch.where(low[:, None], torch.zeros(p, k), weights.clamp(min=1e-30).log())
        flat = (index + k * torch.arange(p)[:, None]).flatten()
        seen[:] = [r.flatten()[flat].view(p, k) for r in seen]
        return step.latents[flat.to(step.latents.device)]

    with precision(pipe, s):
        made = sample_latents(
            pipe, rows, generators=image_generators(len(rows), seed), steps=s.steps, eta=s.eta,
            guidance_scale=s.guidance_scale, callback=steer,
        ).latents  # fmt: skip
        best = scored(made).argmax(1)
    return made.view(p, k, *made.shape[1:])[torch.arange(p), best.to(made.device)]


@torch.no_grad()
def fabric_latents(
    pipe,
    prompts: Sequence[str],
    reward: Reward,
    *,
    seed: int,
    settings: ArenaSettings,
    ledger: NFELedger,
    likes: int = 1,
) -> Tensor:
    """FABRIC (arXiv 2307.10159) with the proxy as its only user: for each prompt the best of two candidates is liked,
    then one picture is delivered that attends to it: [P, C, h, w]."""
    s = settings
    chosen, every = best_of_n_latents(pipe, prompts, reward, 2, seed=seed, settings=s, ledger=ledger)
    parts = []
    for i, text in enumerate(prompts):
        liked = decode_latents(pipe, chosen[i : i + 1]).float().clamp(-1, 1)[0]
        with fabric(pipe, liked=[Reference(liked, (-1, 1))] * likes, seed=seed, steps=s.steps), precision(pipe, s):
            own = image_generators(1, seed + 1, first=i)
            made = sample_latents(
                pipe, [text], generators=own, steps=s.steps, eta=s.eta, guidance_scale=s.guidance_scale
            )
        parts.append(made.latents)
    return torch.cat(parts)


def fabric_price(s: ArenaSettings, p: Prices) -> float:
    """NFE of one picture, at most: two candidates, the liked one looked at again, a reference pass in every step."""
    return 2 * p.sampled(s.steps, rows=s.rows) + p.decode + s.steps * (s.rows + 1)
