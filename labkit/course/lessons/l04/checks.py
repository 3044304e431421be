"""Exercises of lesson 04."""

import numpy as np
import torch

from labkit.course.checks import exercise
from labkit.fabric import flat_mass, weighted_attention
from labkit.fabric.schedule import step_position


def reweight(own, refs, w):
    """a_j = w_j exp(s_j) / sum_l w_l exp(s_l), w_j = 1 for own tokens (arXiv 2307.10159, eq. 2, row normalised)."""
    logits = np.concatenate([own, refs + np.log(w)])
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@exercise("l04.reweight", reference=reweight)
def check_reweight(c, fn):
    c.callable(fn)
    own, refs = c.randn(3).double().numpy(), c.randn(2).double().numpy()
    got = c.call(fn, own, refs, 0.5)
    c.array(got, shape=(5,))
    joint = np.exp(np.concatenate([own, refs]))
    plain = joint / joint.sum()
    c.mistake("l04.not_normalised", got=got, looks_like=plain * np.array([1, 1, 1, 0.5, 0.5]))
    shifted = np.exp(np.concatenate([own, refs + 0.5]))
    c.mistake("l04.weight_not_log", got=got, looks_like=shifted / shifted.sum())
    c.mistake("l04.own_weighted", got=got, looks_like=plain)
    c.hand(c.call(fn, np.zeros(1), np.zeros(1), 3.0), np.array([0.25, 0.75]))
    one, k, k_ref, v = torch.ones(1, 1).double(), torch.tensor(own), torch.tensor(refs), torch.eye(5).double()
    row = weighted_attention(one, k[:, None], v[:3], k_ref[:, None], v[3:], torch.tensor(0.5).double(), scale=1.0)
    c.close(got, row[0].numpy())  # values that are unit vectors show the row itself


@check_reweight.wrong("l04.not_normalised")
def _(own, refs, w):
    joint = np.exp(np.concatenate([own, refs]))
    return joint / joint.sum() * np.concatenate([np.ones(len(own)), np.full(len(refs), w)])


@check_reweight.wrong("l04.weight_not_log")
def _(own, refs, w):
    joint = np.exp(np.concatenate([own, refs + w]))
    return joint / joint.sum()


@check_reweight.wrong("l04.own_weighted")
def _(own, refs, w):
    joint = w * np.exp(np.concatenate([own, refs]))
    return joint / joint.sum()


def weight_for(mass, n):
    """w = m / ((1 - m) n): `flat_mass` of labkit.fabric turned round."""
    return mass / ((1 - mass) * n)


@exercise("l04.weight_for", reference=weight_for)
def check_weight_for(c, fn):
    c.callable(fn)
    got = c.number(c.call(fn, 0.6, 4))
    c.mistake("l04.mass_of_weight", got=got, looks_like=flat_mass(0.6 * 4))
    c.mistake("l04.one_reference", got=got, looks_like=0.6 / 0.4)
    c.mistake("l04.mass_is_weight", got=got, looks_like=0.6 / 4)
    c.hand(float(c.call(fn, 0.5, 1)), 1.0)
    c.hand(float(c.call(fn, 0.75, 3)), 1.0)
    c.close(float(c.call(fn, 0.0, 3)), 0.0)
    for mass, n in ((0.1, 1), (0.44, 8), (0.9, 3)):
        c.close(flat_mass(n * float(c.call(fn, mass, n))), mass)


@check_weight_for.wrong("l04.mass_of_weight")
def _(mass, n):
    return mass * n / (1 + mass * n)


@check_weight_for.wrong("l04.one_reference")
def _(mass, n):
    return mass / (1 - mass)


@check_weight_for.wrong("l04.mass_is_weight")
def _(mass, n):
    return mass / n


def active_steps(steps, start, end):
    """Steps round(start T) .. round(end T), both included, as far as they exist."""
    return [i for i in range(steps) if step_position(i, steps, start, end) is not None]


@exercise("l04.active_steps", reference=active_steps)
def check_active_steps(c, fn):
    c.callable(fn)
    got = c.call(fn, 20, 0.33, 0.66)
    c.instance(got, (list, tuple))
    c.mistake("l04.end_left_out", when=list(got) == list(range(7, 13)))
    c.mistake("l04.cut_not_rounded", when=list(got) == list(range(6, 14)))
    c.mistake("l04.clock_turned", when=bool(got) and list(got) == sorted(got, reverse=True))
    c.equal(list(got), list(range(7, 14)))
    c.hand(list(c.call(fn, 20, 0.0, 0.8)), list(range(17)))
    c.mistake("l04.no_such_step", when=20 in c.call(fn, 20, 0.0, 1.0))
    for steps, start, end in (
        (20, 0.0, 1.0), (8, 0.0, 0.5), (8, 0.5, 1.0), (10, 0.8, 0.2), (20, 0.32, 0.68), (20, 0.0, 0.33)
    ):  # fmt: skip
        c.equal(list(c.call(fn, steps, start, end)), active_steps(steps, start, end))


@check_active_steps.wrong("l04.end_left_out")
def _(steps, start, end):
    return list(range(round(steps * start), round(steps * end)))


@check_active_steps.wrong("l04.cut_not_rounded")
def _(steps, start, end):
    return list(range(int(steps * start), min(int(steps * end) + 1, steps)))


@check_active_steps.wrong("l04.no_such_step")
def _(steps, start, end):
    return list(range(round(steps * start), round(steps * end) + 1))


@check_active_steps.wrong("l04.clock_turned")
def _(steps, start, end):
    return active_steps(steps, start, end)[::-1]


@exercise("l04.weighted_attention", reference=weighted_attention)
def check_weighted_attention(c, fn):
    c.callable(fn)
    q, k, v = (c.randn(2, 5, 9) for _ in range(3))  # 9: the root of the length is neither 2 nor half of it
    k_ref, v_ref = c.randn(1, 6, 9), c.randn(1, 6, 9)
    got = c.call(fn, q, k, v, k_ref, v_ref, 0.5)
    c.tensor(got, shape=(2, 5, 9), dtype=torch.float32)
    rows = []
    for b in range(2):
        own = (q[b] @ k[b].T / 3).exp()  # [5, 5]
        ref = 0.5 * (q[b] @ k_ref[0].T / 3).exp()  # [5, 6]
        rows.append((own @ v[b] + ref @ v_ref[0]) / (own.sum(1) + ref.sum(1))[:, None])
    expected = torch.stack(rows)
    keys, values = (torch.cat([a, r.expand(2, -1, -1)], 1) for a, r in ((k, k_ref), (v, v_ref)))
    table = (q @ keys.transpose(1, 2) / 3).softmax(-1)
    factor = torch.cat([torch.ones(5), torch.full((6,), 0.5)])
    c.mistake("l04.no_weight", got=got, looks_like=table @ values)
    c.mistake("l04.not_normalised", got=got, looks_like=(table * factor) @ values)
    bias = torch.cat([torch.zeros(5), torch.full((6,), 0.5).log()])
    c.mistake("l04.no_scale", got=got, looks_like=(q @ keys.transpose(1, 2) + bias).softmax(-1) @ values)
    c.close(got, expected)
    c.close(
        c.call(fn, q, k, v, k_ref, v_ref, 1e6),
        c.call(fn, q, k_ref.expand(2, -1, -1), v_ref.expand(2, -1, -1), k_ref, v_ref, 1.0),
    )


@check_weighted_attention.wrong("l04.no_weight")
def _(q, k, v, k_ref, v_ref, w):
    keys, values = (torch.cat([a, r.expand(len(q), -1, -1)], 1) for a, r in ((k, k_ref), (v, v_ref)))
    return (q @ keys.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ values


@check_weighted_attention.wrong("l04.not_normalised")
def _(q, k, v, k_ref, v_ref, w):
    keys, values = (torch.cat([a, r.expand(len(q), -1, -1)], 1) for a, r in ((k, k_ref), (v, v_ref)))
    table = (q @ keys.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return (table * torch.cat([torch.ones(k.shape[1]), torch.full((k_ref.shape[1],), w)])) @ values


@check_weighted_attention.wrong("l04.no_scale")
def _(q, k, v, k_ref, v_ref, w):
    keys, values = (torch.cat([a, r.expand(len(q), -1, -1)], 1) for a, r in ((k, k_ref), (v, v_ref)))
    bias = torch.cat([torch.zeros(k.shape[1]), torch.full((k_ref.shape[1],), w).log()])
    return (q @ keys.transpose(1, 2) + bias).softmax(-1) @ values


def attention_layer(c, channels=27, heads=3):
    """A self-attention layer as the U-Net has it, with drawn weights: all that diffusers offers is there."""
    from diffusers.models.attention_processor import Attention

    layer = Attention(channels, heads=heads, dim_head=channels // heads)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(c.randn(*parameter.shape))
    return layer.eval().requires_grad_(False)


def read_references(attn, states, stored, w):
    """Self-attention whose queries also see `stored` tokens: states [B, N, C], stored [1, M, C] -> [B, N, C]."""
    q, k, v = (attn.head_to_batch_dim(project(states)) for project in (attn.to_q, attn.to_k, attn.to_v))
    stored = stored.expand(len(states), -1, -1)
    k_ref, v_ref = (attn.head_to_batch_dim(project(stored)) for project in (attn.to_k, attn.to_v))  # [B heads, M, d]
    seen = weighted_attention(q, k, v, k_ref, v_ref, w, scale=attn.scale)  # [B heads, N, d]
    return attn.to_out[0](attn.batch_to_head_dim(seen))


@exercise("l04.read_references", reference=read_references, shows=(weighted_attention,))
def check_read_references(c, fn):
    c.callable(fn)
    attn, states, stored = attention_layer(c), c.randn(2, 5, 27) / 3, c.randn(1, 7, 27) / 3
    got = c.call(fn, attn, states, stored, 0.5)
    c.mistake("l04.queries_too", when=getattr(got, "shape", None) == (2, 12, 27))
    c.tensor(got, shape=(2, 5, 27), dtype=torch.float32)
    joint = torch.cat([states, stored.expand(2, -1, -1)], 1)
    parts = []
    for head in range(3):
        cut = slice(9 * head, 9 * head + 9)
        q, k, v = attn.to_q(states)[..., cut], attn.to_k(joint)[..., cut], attn.to_v(joint)[..., cut]
        weights = (q @ k.transpose(1, 2) / 3).exp()
        weights[..., 5:] *= 0.5
        parts.append(weights @ v / weights.sum(-1, keepdim=True))
    merged = torch.cat(parts, -1)
    c.mistake("l04.no_output_layer", got=got, looks_like=merged)
    q, k, v = attn.to_q(states), attn.to_k(joint), attn.to_v(joint)
    bias = torch.cat([torch.zeros(5), torch.full((7,), 0.5).log()])
    one_head = (q @ k.transpose(1, 2) / 27**0.5 + bias).softmax(-1) @ v
    c.mistake("l04.one_head", got=got, looks_like=attn.to_out[0](one_head))
    c.close(got, attn.to_out[0](merged))


@check_read_references.wrong("l04.queries_too")
def _(attn, states, stored, w):
    both = torch.cat([states, stored.expand(len(states), -1, -1)], dim=1)
    q, k, v = (attn.head_to_batch_dim(p(both)) for p in (attn.to_q, attn.to_k, attn.to_v))
    return attn.to_out[0](attn.batch_to_head_dim((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v))


@check_read_references.wrong("l04.no_output_layer")
def _(attn, states, stored, w):
    both = torch.cat([states, stored.expand(len(states), -1, -1)], dim=1)
    q = attn.head_to_batch_dim(attn.to_q(states))
    k, v = attn.head_to_batch_dim(attn.to_k(both)), attn.head_to_batch_dim(attn.to_v(both))
    bias = torch.cat([torch.zeros(states.shape[1]), torch.full((stored.shape[1],), w).log()])
    return attn.batch_to_head_dim((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v)


@check_read_references.wrong("l04.one_head")
def _(attn, states, stored, w):
    both = torch.cat([states, stored.expand(len(states), -1, -1)], dim=1)
    q, k, v = attn.to_q(states), attn.to_k(both), attn.to_v(both)
    bias = torch.cat([torch.zeros(states.shape[1]), torch.full((stored.shape[1],), w).log()])
    return attn.to_out[0]((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v)


def guided_shift(d_cond, d_uncond, g):
    """eps_u + g (eps_c - eps_u) after minus before: g d_c + (1 - g) d_u."""
    return g * d_cond + (1 - g) * d_uncond


@exercise("l04.guided_shift", reference=guided_shift)
def check_guided_shift(c, fn):
    c.callable(fn)
    d_cond, d_uncond = c.randn(2, 3), c.randn(2, 3)
    got = c.call(fn, d_cond, d_uncond, 3.0)
    c.tensor(got, shape=(2, 3))
    c.mistake("l04.own_half_lost", got=got, looks_like=3 * (d_cond - d_uncond))
    c.mistake("l04.dislikes_pull", got=got, looks_like=3 * d_cond + 2 * d_uncond)
    c.mistake("l04.halves_swapped", got=got, looks_like=3 * d_uncond - 2 * d_cond)
    eps_c, eps_u = c.randn(2, 3), c.randn(2, 3)
    for g in (0.0, 1.0, 3.0, 7.5):
        moved = (eps_u + d_uncond) + g * ((eps_c + d_cond) - (eps_u + d_uncond))
        c.close(c.call(fn, d_cond, d_uncond, g), moved - (eps_u + g * (eps_c - eps_u)), atol=1e-4)
    c.hand(float(c.call(fn, 0.0, 1.0, 3.0)), -2.0)


@check_guided_shift.wrong("l04.own_half_lost")
def _(d_cond, d_uncond, g):
    return g * (d_cond - d_uncond)


@check_guided_shift.wrong("l04.dislikes_pull")
def _(d_cond, d_uncond, g):
    return g * d_cond + (g - 1) * d_uncond


@check_guided_shift.wrong("l04.halves_swapped")
def _(d_cond, d_uncond, g):
    return g * d_uncond + (1 - g) * d_cond


def best_so_far(scores):
    """Running maximum over rounds of the best picture: [rounds, images] -> [rounds]."""
    return np.maximum.accumulate(np.asarray(scores).max(axis=1))


@exercise("l04.best_so_far", reference=best_so_far)
def check_best_so_far(c, fn):
    c.callable(fn)
    scores = np.array([[0.2, 0.5], [0.4, 0.1], [0.6, 0.3]])
    got = c.call(fn, scores)
    c.mistake("l04.each_round_alone", got=got, looks_like=scores.max(axis=1))
    c.mistake("l04.one_number", when=np.ndim(got) == 0 and not isinstance(got, str) and got is not None)
    c.mistake("l04.best_of_columns", when=np.shape(got) == (2,))
    c.array(got, shape=(3,))
    c.mistake("l04.mean_of_round", got=got, looks_like=np.maximum.accumulate(scores.mean(axis=1)))
    c.hand(got, np.array([0.5, 0.5, 0.6]))
    drawn = c.randn(5, 4).double().numpy()
    kept = c.call(fn, drawn)
    c.close(kept, np.array([drawn[: r + 1].max() for r in range(5)]))
    c.close(c.call(fn, np.array([[-0.9, -0.5], [-0.4, -0.7], [-0.8, -0.6]])), np.array([-0.5, -0.4, -0.4]))


@check_best_so_far.wrong("l04.each_round_alone")
def _(scores):
    return np.max(scores, axis=1)


@check_best_so_far.wrong("l04.one_number")
def _(scores):
    return float(np.max(scores))


@check_best_so_far.wrong("l04.best_of_columns")
def _(scores):
    return np.max(scores, axis=0)


@check_best_so_far.wrong("l04.mean_of_round")
def _(scores):
    return np.maximum.accumulate(np.mean(scores, axis=1))


def evaluations(steps, active, references, *, guided=True, cached=False):
    """U-Net evaluations of one picture: one or two rows a step, and a row per reference in each active step."""
    own = steps * (2 if guided else 1)
    return own if cached else own + active * references


@exercise("l04.evaluations", reference=evaluations)
def check_evaluations(c, fn):
    c.callable(fn)
    got = c.number(c.call(fn, 10, 6, 3))
    c.mistake("l04.every_step", got=got, looks_like=10 * 5)
    c.mistake("l04.references_guided", got=got, looks_like=2 * (10 + 6 * 3))
    c.hand(c.call(fn, 8, 8, 4), 48)
    c.close(got, 38)
    c.close(c.call(fn, 10, 6, 3, guided=False), 28)
    c.close(c.call(fn, 10, 6, 3, cached=True), 20, key="l04.kept_keys")
    c.close(c.call(fn, 10, 6, 3, guided=False, cached=True), 10)
    c.close(c.call(fn, 10, 0, 3), 20)


@check_evaluations.wrong("l04.every_step")
def _(steps, active, references, *, guided=True, cached=False):
    return steps * (2 if guided else 1) + (0 if cached else steps * references)


@check_evaluations.wrong("l04.references_guided")
def _(steps, active, references, *, guided=True, cached=False):
    return (2 if guided else 1) * (steps + (0 if cached else active * references))


@check_evaluations.wrong("l04.kept_keys")
def _(steps, active, references, *, guided=True, cached=False):
    return steps * (2 if guided else 1) + active * references
