"""The trained contenders: one update each, and what it costs in NFE. The equations are those of `equations`."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.diffusion import PromptConditions, add_noise, predict_x0, sample_latents
from labkit.diffusion.noise import image_generators
from labkit.optim import gathered, rank, world_size
from labkit.survey.equations import (
    clip_for,
    group_advantage,
    nft_loss,
    nft_optimality,
    ppo_loss,
    raft_weights,
    rwr_weights,
    step_divergence,
    step_log_ratio,
    weighted_error,
)
from labkit.survey.ledger import Prices
from labkit.survey.policy import ArenaSettings, Policy, Record, precision, rewarded

# ---- own samples as data: RAFT, RWR ----------------------------------------------------------------------------------


def share(rows: int) -> tuple[int, int]:
    """Where this process's rows begin among those of all processes, and how many all have; every process must ask."""
    counts = gathered({"rows": torch.tensor([rows])})["rows"]
    return int(counts[: rank()].sum()), int(counts.sum())


def noised(
    policy: Policy, latents: Tensor, number: int, place: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """`draws` noisings of B clean latents: x_t, noise [B * draws, ...], t [B * draws], the row of each.

    place: `share` of the B rows; the draws belong to rows, whichever process has them.
    """
    draws, generator, (first, total) = policy.settings.draws, policy.generator(number, 1), place
    rows = [i for i in range(len(latents)) for _ in range(draws)]
    own = slice(first * draws, first * draws + len(rows))
    noise = torch.randn(total * draws, *latents.shape[1:], generator=generator)[own].to(policy.device)
    t = torch.randint(len(policy.alphas), (total * draws,), generator=generator)[own].to(policy.device)
    return add_noise(latents[rows], noise, t, policy.alphas), noise, t, rows


def weighted_update(policy: Policy, number: int, weigh) -> Record:
    """Denoise own samples, weighted by `weigh(rewards [P, N]) -> [P, N]`; weightless ones cost nothing more."""
    rollout = policy.rollout(number)
    weights = weigh(rollout.rewards).flatten().to(policy.device)  # [B]
    used = (weights > 0).nonzero().flatten()
    record = policy.observed(rollout) | {"used": len(used) / len(weights)}
    place = share(len(used))
    if not place[1]:
        return record | {"loss": 0.0}
    if len(used):
        x_t, noise, t, rows = noised(policy, rollout.latents[used], number, place)
        conditions = rollout.conditions.select([int(used[i]) for i in rows])
        prediction = policy.noise(x_t, t, conditions)
        # the mean over processes is then the mean over all rows, however they are spread
        loss = weighted_error(prediction, noise, weights[used][rows]).mean() * (len(used) * world_size() / place[1])
    else:  # all groups of this process tie, those of another do not: it must still take part
        loss = sum(0 * p.sum() for p in policy.parameters.values())
    return record | {"loss": float(loss.detach()), "gradient": policy.step(loss)}


def raft(policy: Policy, number: int) -> Record:
    """RAFT: fine-tune on the best of every group."""
    return weighted_update(policy, number, lambda rewards: raft_weights(rewards, policy.settings.keep))


def rwr(policy: Policy, number: int) -> Record:
    """RWR: fine-tune on all, weighted by exp(r / tau)."""

    def weigh(rewards: Tensor) -> Tensor:
        everyone = gathered({"rewards": rewards})["rewards"]  # [world * P, N]
        spread = float((everyone - everyone.mean(1, keepdim=True)).std()) or 1.0
        return rwr_weights(rewards, policy.settings.temperature * spread)

    return weighted_update(policy, number, weigh)


# ---- policy gradients: DDPO, GRPO ------------------------------------------------------------------------------------


def advantages(rewards: Tensor, *, grouped: bool) -> Tensor:
    """A [P, N]: within the prompt's group (GRPO), or over all pictures of the update, of all processes (DDPO)."""
    if grouped:
        return group_advantage(rewards)
    everyone = gathered({"rewards": rewards})["rewards"]  # [world * P, N]
    return group_advantage(everyone.reshape(1, -1)).view_as(everyone)[rank() * len(rewards) :][: len(rewards)]


def ddpo(policy: Policy, number: int) -> Record:
    """DDPO_IS: PPO's clipped objective on some steps of the trajectories; GRPO if `grouped`."""
    s, rollout = policy.settings, policy.rollout(number)
    advantage = advantages(rollout.rewards, grouped=s.grouped).flatten().to(policy.device)  # [B]
    elements = rollout.latents[0].numel()
    clip, final = clip_for(elements, s.clip), float(policy.pipe.scheduler.final_alpha_cumprod)
    chosen = torch.randperm(s.steps, generator=policy.generator(number, 2))[: s.trained_steps].tolist()
    ratios, clipped, kls, norms = [], [], [], []
    for _ in range(s.epochs):
        for i in sorted(chosen):
            t, t_prev = rollout.timesteps[i]
            x_t, x_prev = rollout.trajectory[:, i], rollout.trajectory[:, i + 1]
            eps = policy.noise(x_t, t, rollout.conditions)
            where = {"eta": s.eta, "final_alpha_cumprod": final}
            log_ratio = step_log_ratio(eps, rollout.predictions[:, i], x_prev, x_t, t, t_prev, policy.alphas, **where)
            loss = ppo_loss(log_ratio, advantage, clip=clip, elements=elements) / elements  # [B]
            if s.kl:
                with torch.no_grad():
                    ref = policy.noise(x_t, t, rollout.conditions, reference=True)
                kl = step_divergence(eps, ref, x_t, t, t_prev, policy.alphas, **where)
                loss, kls = loss + s.kl * kl / elements, [*kls, float(kl.detach().mean())]
            norms.append(policy.step(loss.mean()))
            rho = (log_ratio.detach() / elements).exp()
            ratios.append(float(rho.mean()))
            clipped.append(float(((rho - 1).abs() > clip).float().mean()))
    flat = rollout.rewards.std(1, correction=0) < 1e-4
    return policy.observed(rollout) | {
        "ratio": sum(ratios) / len(ratios), "clipped": sum(clipped) / len(clipped), "gradient": sum(norms) / len(norms),
        "flat_groups": float(flat.float().mean()), **({"kl": sum(kls) / len(kls)} if kls else {}),
    }  # fmt: skip


# ---- back-propagation through the sampler: DRaFT, AlignProp ----------------------------------------------------------


def draft(policy: Policy, number: int) -> Record:
    """DRaFT-K: climb the reward's own gradient through the last k steps; AlignProp draws k."""
    s, index = policy.settings, policy.chosen(number)
    k = int(torch.randint(1, s.k + 1, (1,), generator=policy.generator(number, 3))) if s.k_random else s.k
    first = (number * world_size() + rank()) * len(index)
    conditions: PromptConditions = policy.all_conditions.select(index)
    texts = [policy.prompts[i] for i in index]
    with precision(policy.pipe, s):
        made = sample_latents(
            policy.pipe, None, conditions=conditions, generators=image_generators(len(index), policy.seed, first=first),
            steps=s.steps, eta=s.eta, guidance_scale=s.guidance_scale, grad_steps=k,
        )  # fmt: skip
        images = policy.decode(made.latents)
        scores = rewarded(policy.reward, images, texts, policy.ledger)
    if not scores.requires_grad:
        raise ValueError("the reward gives no gradient: DRaFT needs one, the contenders that sample do not")
    norm = policy.step(-scores.mean())
    seen = {"proxy": float(scores.detach().mean()), "k": float(k), "gradient": norm}
    if policy.gold is not None:
        seen["gold"] = float(torch.as_tensor(policy.gold(images.detach(), texts)).float().mean())
    return seen


# ---- the forward process: DiffusionNFT -------------------------------------------------------------------------------


def nft(policy: Policy, number: int) -> Record:
    """DiffusionNFT: towards good own samples and away from bad ones, on noised clean images."""
    s, rollout = policy.settings, policy.rollout(number)
    rho = nft_optimality(group_advantage(rollout.rewards), limit=s.nft_limit).flatten().to(policy.device)  # [B]
    x_t, _, t, rows = noised(policy, rollout.latents, number, share(len(rollout.latents)))
    conditions = rollout.conditions.select(rows)
    with policy.older(), torch.no_grad():
        old = policy.noise(x_t, t, conditions)
    eps = policy.noise(x_t, t, conditions)
    clean = [predict_x0(x_t, e, t, policy.alphas) for e in (eps, old)]
    loss = nft_loss(*clean, rollout.latents[rows], rho[rows], s.nft_beta).mean()
    norm = policy.step(loss)
    present = policy.state()
    past = policy.old or present
    policy.old = {name: s.old_decay * past[name] + (1 - s.old_decay) * now for name, now in present.items()}
    return policy.observed(rollout) | {"loss": float(loss.detach()), "gradient": norm}


# ---- what an update costs --------------------------------------------------------------------------------------------


def update_price(name: str, s: ArenaSettings, p: Prices) -> float:
    """NFE of one update per process, decoding included: forwards count 1, forward and backward 3."""
    images, made = s.prompts * s.group, p.sampled(s.steps, rows=s.rows)
    if name == "raft":  # at most: tied groups are left out
        return images * made + 3 * s.rows * s.prompts * s.keep * s.draws
    if name == "rwr":
        return images * (made + 3 * s.rows * s.draws)
    if name in ("ddpo", "grpo"):
        passes = s.epochs * s.trained_steps * s.rows
        return images * (made + passes * (4 if s.kl else 3))
    if name in ("draft", "alignprop"):  # at most: AlignProp draws up to k
        return s.prompts * (made + 2 * s.rows * s.k + 2 * p.decode)
    if name == "nft":
        return images * (made + 4 * s.rows * s.draws)
    raise KeyError(name)
