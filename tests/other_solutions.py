"""Right answers to exercises that are written otherwise than the reference: the checks must accept every one.

`OTHER_SOLUTIONS` maps the id of an exercise to functions; what a lesson taught before, a library call, a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.stats import beta, binom, hypergeom

OTHER_SOLUTIONS: dict[str, list[Callable]] = {}


def solves(id: str) -> Callable[[Callable], Callable]:
    """Decorator: another right answer to this exercise."""

    def keep(answer: Callable) -> Callable:
        OTHER_SOLUTIONS.setdefault(id, []).append(answer)
        return answer

    return keep


# ---- lesson 04 ------------------------------------------------------------------------------------------------------


@solves("l04.reweight")
def multiplied_before_normalising(own, refs, w):
    weights = np.concatenate([np.exp(own), w * np.exp(refs)])
    return weights / weights.sum()


@solves("l04.reweight")
def multiplied_and_normalised_again(own, refs, w):
    joint = np.exp(np.r_[own, refs])
    row = joint / joint.sum() * np.r_[np.ones(len(own)), w * np.ones(len(refs))]
    return row / np.sum(row)


@solves("l04.reweight")
def with_a_loop(own, refs, w):
    weights = [math.exp(s) for s in own] + [w * math.exp(s) for s in refs]
    return np.array([one / sum(weights) for one in weights])


def appended(q, k, v, k_ref, v_ref):
    return (torch.cat([a, r.expand(len(q), -1, -1)], dim=1) for a, r in ((k, k_ref), (v, v_ref)))


def log_weights(k, k_ref, w):
    return torch.cat([torch.zeros(k.shape[1]), torch.full((k_ref.shape[1],), math.log(w))])


@solves("l04.weighted_attention")
def with_a_mask(q, k, v, k_ref, v_ref, w):
    keys, values = appended(q, k, v, k_ref, v_ref)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=log_weights(k, k_ref, w)[None])


@solves("l04.weighted_attention")
def with_a_scale_given(q, k, v, k_ref, v_ref, w):
    keys, values = appended(q, k, v, k_ref, v_ref)
    mask, scale = log_weights(k, k_ref, w).expand(len(q), q.shape[1], -1), q.shape[-1] ** -0.5
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)


@solves("l04.weighted_attention")
def renormalised_probabilities(q, k, v, k_ref, v_ref, w):
    keys, values = appended(q, k, v, k_ref, v_ref)
    table = torch.softmax(torch.einsum("bnd,bmd->bnm", q, keys) / math.sqrt(q.shape[2]), dim=2)
    table[:, :, k.shape[1] :] *= w
    return torch.bmm(table / table.sum(2, keepdim=True), values)


@solves("l04.weighted_attention")
def two_attentions_merged(q, k, v, k_ref, v_ref, w):
    scale = q.shape[-1] ** -0.5
    own, ref = q @ k.mT * scale, q @ k_ref.mT * scale + np.log(w)
    mass = torch.sigmoid(ref.logsumexp(-1) - own.logsumexp(-1))[..., None]
    return (1 - mass) * (own.softmax(-1) @ v) + mass * (ref.softmax(-1) @ v_ref)


@solves("l04.weighted_attention")
def row_by_row(q, k, v, k_ref, v_ref, w):
    rows = []
    for i in range(len(q)):
        keys, values = torch.vstack([k[i], k_ref[0]]), torch.vstack([v[i], v_ref[0]])
        weights = torch.exp(q[i] @ keys.T / keys.shape[1] ** 0.5 + log_weights(k, k_ref, w))
        rows.append(weights @ values / weights.sum(1, keepdim=True))
    return torch.stack(rows)


@solves("l04.weighted_attention")
def one_more_channel(q, k, v, k_ref, v_ref, w):
    keys, values = appended(q, k, v, k_ref, v_ref)
    channel = log_weights(k, k_ref, w)[None, :, None].expand(len(q), -1, -1)
    longer = torch.cat([q * q.shape[-1] ** -0.5, torch.ones_like(q[..., :1])], -1)
    return (longer @ torch.cat([keys, channel], -1).mT).softmax(-1) @ values


def heads_of(attn, states, stored):
    both = torch.cat([states, stored.expand(len(states), -1, -1)], dim=1)
    q = attn.head_to_batch_dim(attn.to_q(states))
    bias = log_weights(states, stored, 1.0)
    return q, attn.head_to_batch_dim(attn.to_k(both)), attn.head_to_batch_dim(attn.to_v(both)), both, bias


@solves("l04.read_references")
def with_the_layers_scale(attn, states, stored, w):
    q, k, v, _, bias = heads_of(attn, states, stored)
    bias[states.shape[1] :] = math.log(w)
    weights = (q @ k.transpose(1, 2) * attn.scale + bias).softmax(-1)
    return attn.to_out[0](attn.batch_to_head_dim(weights @ v))


@solves("l04.read_references")
def with_the_layers_scores(attn, states, stored, w):
    """As lesson 01 looks into a layer."""
    q, k, v, _, bias = heads_of(attn, states, stored)
    bias[states.shape[1] :] = math.log(w)
    weights = attn.get_attention_scores(q, k, bias[None, None].expand(len(q), q.shape[1], -1))
    return attn.to_out[0](attn.batch_to_head_dim(weights @ v))


@solves("l04.read_references")
def fused_on_the_heads(attn, states, stored, w):
    q, k, v, _, bias = heads_of(attn, states, stored)
    bias[states.shape[1] :] = math.log(w)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None], scale=attn.scale)
    return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(out)))


@solves("l04.read_references")
def four_dimensions(attn, states, stored, w):
    both = torch.cat([stored.repeat(len(states), 1, 1), states], dim=1)  # the references first
    bias = torch.cat([torch.full((stored.shape[1],), math.log(w)), torch.zeros(states.shape[1])])

    def split(x):
        return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    q, k, v = split(attn.to_q(states)), split(attn.to_k(both)), split(attn.to_v(both))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None, None])
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


@solves("l04.read_references")
def by_the_processor_of_diffusers(attn, states, stored, w):
    from diffusers.models.attention_processor import AttnProcessor

    *_, both, bias = heads_of(attn, states, stored)
    bias[states.shape[1] :] = math.log(w)
    mask = bias[None, None].expand(len(states) * attn.heads, states.shape[1], -1)
    return AttnProcessor()(attn, states, both, attention_mask=mask)


# ---- lesson 07 ------------------------------------------------------------------------------------------------------


@solves("l07.arrow")
def normalised_by_torch(first, second):
    return F.normalize(F.normalize(first, dim=-1) - F.normalize(second, dim=1), dim=-1)


@solves("l07.arrow")
def nan_replaced(first, second, eps=1e-6):
    raw = first / first.norm(dim=1)[:, None] - second / second.norm(dim=1)[:, None]
    return torch.nan_to_num(raw / torch.linalg.vector_norm(raw, dim=1, keepdim=True))


@solves("l07.arrow")
def eps_added(first, second, eps=1e-6):
    u, v = (x / (x.square().sum(-1, keepdim=True).sqrt() + eps) for x in (first, second))
    return (u - v) / ((u - v).norm(dim=-1, keepdim=True) + eps)


@solves("l07.arrow")
def where_there_is_a_direction(first, second, eps=1e-6):
    raw = F.normalize(first, dim=-1) - F.normalize(second, dim=-1)
    length = raw.norm(dim=-1, keepdim=True)
    return torch.where(length > eps, raw / length, torch.zeros_like(raw))


@solves("l07.counterbalanced")
def as_a_list(true, mirror):
    right = (true > mirror).double()
    return [float(right.mean()), float(right.prod(dim=1).mean())]


@solves("l07.counterbalanced")
def as_tensors(true, mirror):
    right = true > mirror
    return right.float().mean(), (right[:, 0] & right[:, 1]).float().mean()


@solves("l07.counterbalanced")
def in_numpy(true, mirror):
    right = np.asarray(true) > np.asarray(mirror)
    return right.mean(), right.all(axis=1).mean()


@solves("l07.counterbalanced")
def counted(true, mirror):
    rows = [[a > b for a, b in zip(x, y, strict=True)] for x, y in zip(true.tolist(), mirror.tolist(), strict=True)]
    return sum(map(sum, rows)) / (2 * len(rows)), sum(map(all, rows)) / len(rows)


@solves("l07.contrastive_loss")
def log_softmax_of_both_sides(text, arrows, tau):
    logits = text.matmul(arrows.t()).div(tau)
    return -0.5 * (logits.log_softmax(0).diag() + logits.log_softmax(1).diag()).mean()


@solves("l07.contrastive_loss")
def log_sum_exp(text, arrows, tau):
    logits = torch.einsum("id,jd->ij", text, arrows) / tau
    own = logits.diagonal()
    return (logits.logsumexp(1) - own).mean() / 2 + (logits.logsumexp(0) - own).mean() / 2


@solves("l07.contrastive_loss")
def one_hot_targets(text, arrows, tau):
    logits, targets = F.linear(text, arrows) / tau, torch.eye(len(text))
    return torch.stack([F.cross_entropy(logits, targets), F.cross_entropy(logits.mT, targets)]).mean()


@solves("l07.comparative_prompt")
def normalised_and_mixed(e_i, e_j, t_ij, alpha, beta=1.0):
    return F.normalize(torch.lerp(e_i - beta * t_ij, e_j, alpha), dim=0)


@solves("l07.comparative_prompt")
def divided_by_its_length(e_i, e_j, t_ij, alpha, beta=1):
    moved = (1 - alpha) * e_i - (1 - alpha) * beta * t_ij + alpha * e_j
    return moved / torch.sqrt((moved * moved).sum())


@solves("l07.threshold")
def sorted_and_interpolated(good, share):
    return float(np.quantile(np.asarray(good, dtype=np.float64), 1 - share))


@solves("l07.threshold")
def as_a_tensor(good, share):
    return torch.quantile(good.double(), 1 - share)


# ---- lesson 09 ------------------------------------------------------------------------------------------------------


@solves("l09.zero_failure_n")
def one_picture_more_until_it_is_enough(rate, confidence):
    n = 1
    while (1 - rate) ** n > 1 - confidence:
        n += 1
    return n


@solves("l09.zero_failure_n")
def in_numpy_logarithms(rate, confidence):
    return int(np.ceil(np.log1p(-confidence) / np.log1p(-rate)))


@solves("l09.lot_acceptance")
def by_scipy(lot, bad, n, c):
    return hypergeom.cdf(c, lot, bad, n)


@solves("l09.lot_acceptance")
def by_scipys_sum(lot, bad, n, c):
    return hypergeom.pmf(np.arange(c + 1), lot, bad, n).sum()


@solves("l09.upper_bound")
def by_the_beta_distribution(d, n, confidence):
    return 1.0 if d == n else beta.ppf(confidence, d + 1, n - d)


@solves("l09.upper_bound")
def by_a_root(d, n, confidence):
    return 1 if d == n else brentq(lambda p: binom.cdf(d, n, p) - (1 - confidence), 0, 1)


@solves("l09.true_rate")
def clipped(observed, sensitivity, specificity):
    return np.clip((observed - (1 - specificity)) / (sensitivity - (1 - specificity)), 0, 1)


@solves("l09.wealth")
def by_numpys_product(x, p0, bet):
    return np.cumprod(1 + bet * (np.asarray(x) - p0))


@solves("l09.wealth")
def by_torchs_product(x, p0, bet):
    return torch.cumprod(1 + bet * (torch.tensor(x, dtype=torch.float64) - p0), dim=0)


# ---- lessons 07 and 08 ----------------------------------------------------------------------------------------------


@solves("l07.threshold")
def the_largest_that_does_not_alarm(good, share):
    return good.sort(descending=True).values[round(share * len(good))].item()


@solves("l08.group_advantage")
def as_in_the_code_of_grpo(rewards):
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True, correction=0) + 1e-4)
