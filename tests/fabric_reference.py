"""The slow, obvious FABRIC: explicit probabilities, multiplied and renormalised, one row and reference at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def obvious_attention(q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, weights: Tensor) -> Tensor:
    """q, k, v: [B, heads, N, d]; k_ref, v_ref: [1, heads, M, d]; weights: [M] >= 0. Returns [B, heads, N, d]."""
    out = torch.empty_like(q)
    factor = torch.cat([torch.ones(k.shape[2], dtype=q.dtype), weights.to(q.dtype)])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys = torch.cat([k[b, h], k_ref[0, h]])
            values = torch.cat([v[b, h], v_ref[0, h]])
            probabilities = (q[b, h] @ keys.T / q.shape[-1] ** 0.5).softmax(-1)  # [N, N + M]
            probabilities = probabilities * factor
            out[b, h] = probabilities / probabilities.sum(-1, keepdim=True) @ values
    return out


class ObviousProcessor:
    """Records its input, or attends to stored inputs of references: projections and probabilities anew for each row."""

    def __init__(self):
        self.mode, self.stored, self.banks = "idle", [], {}  # banks: row -> (list of states [N, C], weight)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        rows = []
        for i, x in enumerate(hidden_states):
            states, weight = self.banks.get(i, ([], 1.0)) if self.mode == "read" else ([], 1.0)
            if self.mode == "store":
                self.stored.append(x)
            every = torch.cat([x, *states])

            def heads(y):
                return y.view(1, -1, attn.heads, y.shape[-1] // attn.heads).transpose(1, 2)

            q, k, v = heads(attn.to_q(x)), heads(attn.to_k(every)), heads(attn.to_v(every))
            n = len(x)
            weights = torch.full((len(every) - n,), weight)
            out = obvious_attention(q, k[:, :, :n], v[:, :, :n], k[:, :, n:], v[:, :, n:], weights)
            rows.append(out.transpose(1, 2).reshape(n, -1))
        return attn.to_out[0](torch.stack(rows))


def obvious_unet(unet, x, t, text, liked: list, disliked: list, weight_liked, weight_disliked, labels, empty) -> Tensor:
    """One U-Net call with noised references [C, h, w]; text [B, tokens, d], empty [1, tokens, d]."""
    from labkit.fabric import self_attentions

    attentions = self_attentions(unet)
    before = [attn.processor for _, attn in attentions]
    mine = [ObviousProcessor() for _ in attentions]
    try:
        for (_, attn), processor in zip(attentions, mine, strict=True):
            attn.set_processor(processor)
        banks = {}
        for sign, references in (("cond", liked), ("uncond", disliked)):
            for processor in mine:
                processor.mode, processor.stored = "store", []
            for reference in references:
                unet(reference[None], t, encoder_hidden_states=empty)
            banks[sign] = [processor.stored for processor in mine]
        weights = {"cond": weight_liked, "uncond": weight_disliked}
        for number, processor in enumerate(mine):
            processor.mode = "read"
            processor.banks = {
                i: (banks[label][number], weights[label]) for i, label in enumerate(labels) if banks[label][number]
            }
        return unet(x, t, encoder_hidden_states=text)[0]
    finally:
        for (_, attn), processor in zip(attentions, before, strict=True):
            attn.set_processor(processor)
