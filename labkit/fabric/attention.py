"""Eq. 2 of FABRIC in two other forms, and what is done to tokens before it. The equation itself is `equations`.

`attend_merged` is two attentions merged by their log-sum-exp, for the mass on references, its cap, and references that
are not copied for every row. `attention_table` is the table a itself, for pictures. With m the mass of a query,

    o = (1 - m) o_self + m o_ref,       logit m = LSE(s_ref + log w) - LSE(s_self)

so log w shifts the log-odds of looking at the references. Shapes: q [B, heads, N, d]; k, v [B, heads, N, d] own;
k_ref, v_ref [1, heads, M, d] shared by all rows; w [M] above 0 (leave out tokens of weight 0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_merged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    w: Tensor,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Two attentions merged by their log-sum-exp: output [B, heads, N, d] and mass on the references [B, heads, N].

    The references' K and V are used once for all rows (the queries of the batch are laid end to end), never copied.
    cap limits the mass, which softens every query that would look at almost nothing else.
    """
    own, lse_own = attention_with_lse(q, k, v, scale=scale)
    return merge_references(own, lse_own, q, k_ref, v_ref, w, scale=scale, cap=cap)


def merge_references(
    own: Tensor,
    lse_own: Tensor,
    q: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    w: Tensor,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The second half of `attend_merged`, when attention on the own tokens and its log-sum-exp are known."""
    rows, heads, tokens, d = q.shape
    folded = q.transpose(0, 1).reshape(1, heads, rows * tokens, d)  # all rows share the references
    ref, lse_ref = attention_with_lse(folded, k_ref, v_ref, w.log(), scale=scale)
    ref = ref.reshape(heads, rows, tokens, d).transpose(0, 1)  # [B, heads, N, d]
    lse_ref = lse_ref.reshape(heads, rows, tokens).transpose(0, 1)
    mass = torch.sigmoid(lse_ref - lse_own)  # [B, heads, N]
    if cap is not None:
        mass = mass.clamp(max=cap)
    m = mass[..., None]
    return (own + m * (ref.to(m.dtype) - own)).to(q.dtype), mass  # rounded once


def attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention [B, heads, N, d] and the log-sum-exp of its logits [B, heads, N]. bias: [keys], added to the logits.

    The CPU's fused kernel returns both. Elsewhere, and for gradients, the bias-free attention is PyTorch's own and the
    log-sum-exp is computed in blocks of queries, so that no [N, keys] table of a whole batch is ever stored.
    """
    mask = None if bias is None else bias.to(q.dtype)[None, None, None]  # [1, 1, 1, keys]
    if q.device.type == "cpu" and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)):
        full = None if mask is None else mask.expand(q.shape[0], q.shape[1], q.shape[2], -1)  # no copy: strides of 0
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=full, scale=scale
        )
        return out, lse
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    blocks = []
    for block in q.split(256, dim=2):
        logits = (block.float() @ k.float().transpose(-1, -2)) * factor  # [B, heads, 256, keys]
        blocks.append(torch.logsumexp(logits if mask is None else logits + mask.float(), dim=-1))
    return out, torch.cat(blocks, dim=2)


def attention_table(
    q: Tensor, k: Tensor, k_ref: Tensor, w: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The table a of eq. 2, to look at: attention on own tokens [B, heads, N, N], on references [B, heads, N, M]."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    own = q @ k.transpose(-1, -2) * factor
    ref = q @ k_ref.transpose(-1, -2) * factor + w.log()
    table = torch.cat([own, ref], dim=-1).softmax(-1)
    return table[..., : k.shape[2]], table[..., k.shape[2] :]


def pool_tokens(x: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """Average tokens [R, heads, H W, d] over squares of pool x pool: [R, heads, H W / pool^2, d].

    Give the pooled tokens the weight pool^2 w: their logits then carry about the mass of the tokens they stand for.
    Unchanged if the grid cannot be divided.
    """
    height, width = grid
    if pool == 1 or height % pool or width % pool:
        return x
    rows, heads, _, d = x.shape
    image = x.permute(0, 1, 3, 2).reshape(rows, heads * d, height, width)
    return F.avg_pool2d(image, pool).reshape(rows, heads, d, -1).permute(0, 1, 3, 2)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square over the tokens of [B, heads, N, d], each [B, heads, 1, d], at least in float32."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x.mean(2, keepdim=True), x.square().mean(2, keepdim=True)


def adain(x: Tensor, mean: Tensor, mean_square: Tensor, eps: float = 1e-5) -> Tensor:
    """x [B, heads, N, d] with the mean and variance over tokens of another picture ([1, heads, 1, d], from `moments`).

    StyleAligned (arXiv 2312.02133) does so to queries and keys before it shares the attention.
    """
    own, own_square = moments(x)
    scale = ((mean_square - mean**2).clamp(min=0) + eps).sqrt() / ((own_square - own**2).clamp(min=0) + eps).sqrt()
    return ((x - own) * scale + mean).to(x.dtype)
