"""Exercises of lesson 04."""

import numpy as np
import torch
from torch import nn

from labkit.course.checks import exercise


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
    factor = np.array([1, 1, 1, 0.5, 0.5])
    c.mistake("l04.not_normalised", got=got, looks_like=plain * factor)
    shifted = np.exp(np.concatenate([own, refs + 0.5]))
    c.mistake("l04.weight_not_log", got=got, looks_like=shifted / shifted.sum())
    c.mistake("l04.own_weighted", got=got, looks_like=plain)
    c.hand(c.call(fn, np.zeros(1), np.zeros(1), 3.0), np.array([0.25, 0.75]))
    c.close(got, plain * factor / (plain * factor).sum())


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


def shared_attention(q, k, v, k_ref, v_ref, w):
    """softmax(s + log w on the reference columns) v; q, k, v [B, N, d], k_ref, v_ref [1, M, d]."""
    keys = torch.cat([k, k_ref.expand(len(q), -1, -1)], dim=1)  # [B, N + M, d]
    values = torch.cat([v, v_ref.expand(len(q), -1, -1)], dim=1)
    logits = q @ keys.transpose(1, 2) / q.shape[-1] ** 0.5  # [B, N, N + M]
    bias = torch.zeros(keys.shape[1], device=q.device)
    bias[k.shape[1] :] = torch.tensor(w).log()
    return (logits + bias).softmax(-1) @ values


@exercise("l04.shared_attention", reference=shared_attention)
def check_shared_attention(c, fn):
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


@check_shared_attention.wrong("l04.no_weight")
def _(q, k, v, k_ref, v_ref, w):
    keys, values = (torch.cat([a, r.expand(len(q), -1, -1)], 1) for a, r in ((k, k_ref), (v, v_ref)))
    return (q @ keys.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ values


@check_shared_attention.wrong("l04.not_normalised")
def _(q, k, v, k_ref, v_ref, w):
    keys, values = (torch.cat([a, r.expand(len(q), -1, -1)], 1) for a, r in ((k, k_ref), (v, v_ref)))
    table = (q @ keys.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return (table * torch.cat([torch.ones(k.shape[1]), torch.full((k_ref.shape[1],), w)])) @ values


@check_shared_attention.wrong("l04.no_scale")
def _(q, k, v, k_ref, v_ref, w):
    keys, values = (torch.cat([a, r.expand(len(q), -1, -1)], 1) for a, r in ((k, k_ref), (v, v_ref)))
    bias = torch.cat([torch.zeros(k.shape[1]), torch.full((k_ref.shape[1],), w).log()])
    return (q @ keys.transpose(1, 2) + bias).softmax(-1) @ values


class ToyAttention(nn.Module):
    """What a diffusers attention layer offers: projections, number of heads, output layer."""

    def __init__(self, c, channels=8, heads=2):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(0.0)])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(c.randn(*parameter.shape))
        self.eval().requires_grad_(False)

    def head_to_batch_dim(self, x):  # [B, N, C] -> [B heads, N, d]
        rows, tokens, channels = x.shape
        x = x.reshape(rows, tokens, self.heads, channels // self.heads).transpose(1, 2)
        return x.reshape(rows * self.heads, tokens, -1)

    def batch_to_head_dim(self, x):  # [B heads, N, d] -> [B, N, C]
        rows, tokens, width = x.shape
        x = x.reshape(rows // self.heads, self.heads, tokens, width).transpose(1, 2)
        return x.reshape(rows // self.heads, tokens, -1)


def read_references(attn, states, stored, w):
    """Self-attention whose queries also see `stored` tokens: states [B, N, C], stored [1, M, C] -> [B, N, C]."""
    both = torch.cat([states, stored.expand(len(states), -1, -1)], dim=1)  # [B, N + M, C]
    q = attn.head_to_batch_dim(attn.to_q(states))  # [B heads, N, d]
    k, v = attn.head_to_batch_dim(attn.to_k(both)), attn.head_to_batch_dim(attn.to_v(both))
    bias = torch.zeros(both.shape[1], device=both.device)
    bias[states.shape[1] :] = torch.tensor(w).log()
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    return attn.to_out[0](attn.batch_to_head_dim(weights @ v))


@exercise("l04.read_references", reference=read_references)
def check_read_references(c, fn):
    c.callable(fn)
    attn, states, stored = ToyAttention(c), c.randn(2, 5, 8), c.randn(1, 7, 8)
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
