"""Exercises of lesson 04."""

import numpy as np
import torch

from labkit.course.checks import exercise
from labkit.fabric import weighted_attention


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


@exercise("l04.weighted_attention", reference=weighted_attention)
def check_weighted_attention(c, fn):
    c.callable(fn)
    q, k, v = (c.randn(2, 5, 4) for _ in range(3))
    k_ref, v_ref = c.randn(1, 6, 4), c.randn(1, 6, 4)
    got = c.call(fn, q, k, v, k_ref, v_ref, 0.5)
    c.tensor(got, shape=(2, 5, 4), dtype=torch.float32)
    rows = []
    for b in range(2):
        own = (q[b] @ k[b].T / 2).exp()  # [5, 5]
        ref = 0.5 * (q[b] @ k_ref[0].T / 2).exp()  # [5, 6]
        rows.append((own @ v[b] + ref @ v_ref[0]) / (own.sum(1) + ref.sum(1))[:, None])
    expected = torch.stack(rows)
    keys, values = (torch.cat([a, r.expand(2, -1, -1)], 1) for a, r in ((k, k_ref), (v, v_ref)))
    table = (q @ keys.transpose(1, 2) / 2).softmax(-1)
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


def attention_layer(c, channels=8, heads=2):
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
    attn, states, stored = attention_layer(c), c.randn(2, 5, 8), c.randn(1, 7, 8)
    got = c.call(fn, attn, states, stored, 0.5)
    c.mistake("l04.queries_too", when=getattr(got, "shape", None) == (2, 12, 8))
    c.tensor(got, shape=(2, 5, 8), dtype=torch.float32)
    joint = torch.cat([states, stored.expand(2, -1, -1)], 1)
    parts = []
    for head in range(2):
        cut = slice(4 * head, 4 * head + 4)
        q, k, v = attn.to_q(states)[..., cut], attn.to_k(joint)[..., cut], attn.to_v(joint)[..., cut]
        weights = (q @ k.transpose(1, 2) / 2).exp()
        weights[..., 5:] *= 0.5
        parts.append(weights @ v / weights.sum(-1, keepdim=True))
    merged = torch.cat(parts, -1)
    c.mistake("l04.no_output_layer", got=got, looks_like=merged)
    q, k, v = attn.to_q(states), attn.to_k(joint), attn.to_v(joint)
    bias = torch.cat([torch.zeros(5), torch.full((7,), 0.5).log()])
    one_head = (q @ k.transpose(1, 2) / 8**0.5 + bias).softmax(-1) @ v
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
