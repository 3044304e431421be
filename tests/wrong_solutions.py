"""Wrong answers to exercises that a check once accepted: right on its examples, wrong in general. All must be refused.

`WRONG_SOLUTIONS` maps the id of an exercise to functions. What the lessons diagnose by name stands beside the checks.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

import numpy as np
import torch

WRONG_SOLUTIONS: dict[str, list[Callable]] = {}


def fails(id: str) -> Callable[[Callable], Callable]:
    """Decorator: a wrong answer to this exercise."""

    def keep(answer: Callable) -> Callable:
        WRONG_SOLUTIONS.setdefault(id, []).append(answer)
        return answer

    return keep


# ---- lesson 02 ------------------------------------------------------------------------------------------------------


@fails("l02.frechet")
def real_part_before_the_root(mean_1, cov_1, mean_2, cov_2):
    root = torch.linalg.eigvals(cov_1 @ cov_2).real.sqrt().sum()
    return (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * root


@fails("l02.p_value")
def takes_the_null_as_sorted(observed, null):
    return (1 + len(null) - bisect.bisect_left(null, observed)) / (1 + len(null))


@fails("l02.p_value")
def counts_from_the_first_larger_one(observed, null):
    first = next((i for i, value in enumerate(null) if value >= observed), len(null))
    return (1 + len(null) - first) / (1 + len(null))


@fails("l02.p_value")
def of_the_absolute_value(observed, null):
    return (1 + sum(abs(value) >= abs(observed) for value in null)) / (1 + len(null))


def _percentiles(values, prompts, generator, resamples, low=0.025, high=0.975, last=0):
    count = torch.bincount(prompts)
    per_prompt = torch.bincount(prompts, weights=values) / count
    chosen = torch.randint(len(count) - last, (resamples, len(count)), generator=generator)
    means = per_prompt[chosen].mean(1)
    return float(means.quantile(low)), float(means.quantile(high)), float(per_prompt.mean())


@fails("l02.cluster_interval")
def ninety_per_cent(values, prompts, generator, resamples=2000):
    return _percentiles(values, prompts, generator, resamples, 0.05, 0.95)[:2]


@fails("l02.cluster_interval")
def ninety_eight_per_cent(values, prompts, generator, resamples=2000):
    return _percentiles(values, prompts, generator, resamples, 0.01, 0.99)[:2]


@fails("l02.cluster_interval")
def mirrored(values, prompts, generator, resamples=2000):
    low, high, mean = _percentiles(values, prompts, generator, resamples)
    return 2 * mean - high, 2 * mean - low


@fails("l02.cluster_interval")
def never_the_last_prompt(values, prompts, generator, resamples=2000):
    return _percentiles(values, prompts, generator, resamples, last=1)[:2]


@fails("l02.cluster_interval")
def twenty_resamples(values, prompts, generator, resamples=2000):
    return _percentiles(values, prompts, generator, 20)[:2]


@fails("l02.cluster_interval")
def normal_without_resampling(values, prompts, generator, resamples=2000):
    per_prompt = torch.bincount(prompts, weights=values) / torch.bincount(prompts)
    half = 1.96 * float(per_prompt.std()) / len(per_prompt) ** 0.5
    return float(per_prompt.mean()) - half, float(per_prompt.mean()) + half


@fails("l02.cluster_interval")
def takes_the_rows_as_sorted(values, prompts, generator, resamples=2000):
    per_prompt = torch.stack([part.mean() for part in values.split(torch.bincount(prompts).tolist())])
    means = per_prompt[torch.randint(len(per_prompt), (resamples, len(per_prompt)), generator=generator)].mean(1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


@fails("l02.prompts_needed")
def always_one_more(rate, z_alarm=1.96, z_miss=0.84):
    return int(((z_alarm * 0.5 + z_miss * (rate * (1 - rate)) ** 0.5) / (rate - 0.5)) ** 2) + 1


# ---- lesson 03 ------------------------------------------------------------------------------------------------------


def _density(features, k, masked):
    distances = torch.cdist(features, features)
    distances[masked(distances)] = torch.inf
    d_k = distances.topk(k, largest=False).values.mean(1)
    return (1 / d_k) / (1 / d_k).mean()


@fails("l03.pseudo_density")
def four_neighbours_whatever_is_asked(features, k):
    return _density(features, 4, lambda distances: torch.eye(len(distances)).bool())


@fails("l03.pseudo_density")
def duplicates_are_no_neighbours(features, k):
    return _density(features, k, lambda distances: distances == 0)


@fails("l03.push_step")
def zero_pushes_down(delta, gradient, alpha, eps):
    return (delta + torch.where(gradient > 0, alpha, -alpha)).clamp(-eps, eps)


@fails("l03.push_step")
def sign_by_division(delta, gradient, alpha, eps):
    return (delta + alpha * gradient / gradient.abs()).clamp(-eps, eps)


@fails("l03.best_iterate")
def loses_a_single_picture(path, scores):
    index = scores.argmax(0).reshape(1, -1, *[1] * (path.dim() - 2)).expand(1, *path.shape[1:])
    return path.gather(0, index).squeeze()


@fails("l03.best_iterate")
def maximum_begins_at_zero(path, scores):
    best, kept = torch.zeros_like(scores[0]), path[0].clone()
    for iterate, score in zip(path, scores, strict=True):
        better = score > best
        kept[better], best = iterate[better], torch.where(better, score, best)
    return kept


# ---- lesson 04 ------------------------------------------------------------------------------------------------------


@fails("l04.active_steps")
def ends_not_rounded(steps, start, end):
    return [i for i in range(steps) if start * steps <= i <= end * steps]


@fails("l04.weighted_attention")
def half_of_the_length(q, k, v, k_ref, v_ref, w):
    keys, values = (torch.cat([own, ref.expand(len(q), -1, -1)], 1) for own, ref in ((k, k_ref), (v, v_ref)))
    bias = torch.cat([torch.zeros(k.shape[1]), torch.full((k_ref.shape[1],), w).log()])
    return (q @ keys.transpose(1, 2) / (q.shape[-1] / 2) + bias).softmax(-1) @ values


@fails("l04.best_so_far")
def a_maximum_that_begins_at_zero(scores):
    best, found = 0.0, []
    for row in scores:
        best = max(best, *row)
        found.append(best)
    return np.array(found)


@fails("l04.evaluations")
def a_cache_is_always_guided(steps, active, references, *, guided=True, cached=False):
    return 2 * steps if cached else steps * (2 if guided else 1) + active * references


@fails("l04.weight_for")
def divides_by_the_mass(mass, n):
    return 1 / (n * (1 / mass - 1))


# ---- lesson 05 ------------------------------------------------------------------------------------------------------


@fails("l05.dpo_loss")
def gradient_is_nan_far_out(*, winner, loser, ref_winner, ref_loser, kappa):
    d = kappa * ((winner - ref_winner) - (loser - ref_loser))
    return torch.where(d > 30, d, torch.log1p(torch.exp(d)))


@fails("l05.dpo_loss")
def loser_learns_nothing(*, winner, loser, ref_winner, ref_loser, kappa):
    return torch.nn.functional.softplus(kappa * ((winner - ref_winner) - (loser.detach() - ref_loser)))


@fails("l05.choose_pairs")
def two_equal_best_are_no_pair(scores):
    top = scores.topk(2, 1).values
    return scores.argmax(1), scores.argmin(1), top[:, 0] > top[:, 1]


@fails("l05.safe_scale")
def winner_averaged_over_the_batch(g_w, g_l, mu):
    overlap = (g_w * g_l).sum(1)
    scale = ((1 - mu) * g_w.square().sum(1).mean() / overlap).clamp(0, 1)
    return torch.where(overlap > 0, scale, torch.ones_like(overlap))


# ---- lesson 06 ------------------------------------------------------------------------------------------------------


@fails("l06.cohen_kappa")
def marginals_pooled(first, second):
    """Scott's pi."""
    n, both = len(first), list(first) + list(second)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum((both.count(v) / (2 * n)) ** 2 for v in set(both))
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


@fails("l06.cohen_kappa")
def marginals_of_the_first_rater(first, second):
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum((first.count(v) / n) ** 2 for v in set(first))
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


@fails("l06.holm")
def put_back_by_the_order_itself(p_values):
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    return np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1)[order]


@fails("l06.normal_winners")
def the_second_level_wins(recon_scores, easy_scores):
    level = (recon_scores[:, 1] > recon_scores[:, 0]).long()
    return level, recon_scores.gather(1, level[:, None]).squeeze(1) > easy_scores


# ---- lesson 07 ------------------------------------------------------------------------------------------------------


@fails("l07.counterbalanced")
def a_tie_counts_in_both(true, mirror):
    return (true > mirror).float().mean().item(), (true >= mirror).all(1).float().mean().item()


@fails("l07.threshold")
def one_too_many(good, share):
    return good.sort(descending=True).values[round(share * len(good)) + 1].item()


# ---- lesson 08 ------------------------------------------------------------------------------------------------------


@fails("l08.fk_weights")
def cut_before_the_exponential(now, before, strength):
    weights = (strength * (now - before)).clamp(max=80).exp()
    return weights / weights.sum(1, keepdim=True)


@fails("l08.fk_weights")
def largest_of_all_rows(now, before, strength):
    rise = strength * (now - before)
    weights = (rise - rise.max()).exp()
    return weights / weights.sum(1, keepdim=True)


@fails("l08.group_advantage")
def rounding_becomes_an_advantage(rewards):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True, correction=0) + 1e-8)


@fails("l08.group_advantage")
def exactly_zero_only(rewards):
    deviation = rewards.std(1, keepdim=True, correction=0)
    return (rewards - rewards.mean(1, keepdim=True)) / torch.where(deviation == 0, 1.0, deviation)
