"""The hook itself: an attention processor on one self-attention layer, which records or reads references.

Idle, it hands the call to the processor it replaced. During the reference pass it keeps K and V. During a generation it
lets the rows of each sign also attend to that sign's references; rows without references compute plain attention. If
the references are the last rows of the generation's own batch (fused), it keeps theirs first. Where it has replaced a
processor of perturbed-attention guidance (PAG), the perturbed rows see themselves alone, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.fabric.attention import adain, attend_merged
from labkit.fabric.equations import weighted_attention
from labkit.fabric.settings import FabricError

Observer = Callable[["Observation"], None]
# PAG (arXiv 2403.17377): how many parts its rows have, of which the last has the identity as attention
PERTURBED = {"PAGIdentitySelfAttnProcessor2_0": 2, "PAGCFGIdentitySelfAttnProcessor2_0": 3}


@dataclass(frozen=True)
class Layer:
    """One self-attention: its path in the U-Net and its depth, 0 (outermost) .. 1 (middle)."""

    name: str
    depth: float


@dataclass(frozen=True)
class SignStates:
    """What the rows of one sign read in one layer: K, V [1, heads, M, d], weights [M], tokens per reference.

    style: the references' mean moments of Q and of K, two [1, heads, 1, d] each, if queries and keys shall take them.
    """

    k: Tensor
    v: Tensor
    weights: Tensor
    tokens: tuple[int, ...]
    style: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Observation:
    """What an observer sees: one layer, the rows of one sign. q, k: [B, heads, N, d]."""

    layer: Layer
    t: float
    sign: str
    rows: tuple[int, ...]
    q: Tensor
    k: Tensor
    reference: SignStates
    scale: float | None


@dataclass
class Context:
    """What all processors of a session share. `mode` is "idle", "record" or "inject".

    record is given (layer, q, k, v) of the reference rows: all rows when recording, the last `appended` when injecting.
    """

    mode: str = "idle"
    t: float = 0.0
    backend: str = "sdpa"
    cap: float | None = None
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)  # sign -> rows of the batch
    states: Callable[[str, Layer], SignStates | None] | None = None
    record: Callable[[Layer, Tensor, Tensor, Tensor], None] | None = None
    appended: int = 0
    text_tokens: int = 0  # of this call, for layers that get text and image as one sequence (`labkit.fabric.joint`)
    injected: set[tuple[str, str]] = field(default_factory=set)  # (sign, layer) that have read references
    observer: Observer | None = None
    on_mass: Callable[[Layer, str, Tensor], None] | None = None


class FabricProcessor:
    """Drop-in for `AttnProcessor2_0` and its kin on `attn1`."""

    def __init__(self, layer: Layer, original, context: Context):
        self.layer, self.original, self.context = layer, original, context

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        context = self.context
        fused = context.mode == "inject" and context.appended > 0  # what is read is known after the projections only
        by_sign = self._by_sign() if context.mode == "inject" and not fused else {}
        if context.mode == "idle" or (context.mode == "inject" and not fused and not by_sign):
            more = {} if temb is None else {"temb": temb}  # SlicedAttnProcessor has no such argument
            return self.original(
                attn, hidden_states, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask, **more
            )
        if encoder_hidden_states is not None or attention_mask is not None or hidden_states.ndim != 3:
            raise FabricError(
                f"{self.layer.name} is called with a mask or another text: FABRIC needs plain self-attention"
            )

        def heads(x: Tensor) -> Tensor:  # [B, N, C] -> [B, heads, N, d]
            return x.view(len(x), -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        q, k, v = (heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        scale = None if attn.scale_qk else attn.scale  # None is 1 / sqrt(d), as the processor that is replaced has it
        if fused:
            context.record(self.layer, *(x[-context.appended :] for x in (q, k, v)))
            by_sign = self._by_sign()
        if context.mode == "record":
            context.record(self.layer, q, k, v)
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            out = self._inject(q, k, v, by_sign, scale)
        out = out.transpose(1, 2).reshape(len(q), -1, attn.heads * q.shape[-1]).to(q.dtype)  # [B, N, C]
        out = attn.to_out[1](attn.to_out[0](out))
        out = out + hidden_states if attn.residual_connection else out
        return out / attn.rescale_output_factor

    def _by_sign(self) -> dict[str, SignStates]:
        states = {sign: self.context.states(sign, self.layer) for sign in self.context.rows}
        return {sign: one for sign, one in states.items() if one is not None}

    def _inject(self, q: Tensor, k: Tensor, v: Tensor, by_sign: dict[str, SignStates], scale: float | None) -> Tensor:
        context, out = self.context, torch.empty_like(q)
        perturbed = self._perturbed(len(q) - context.appended)
        out[perturbed] = v[perturbed]  # the identity as attention
        identical = set(range(len(q))[perturbed])
        rows = {sign: tuple(row for row in context.rows[sign] if row not in identical) for sign in by_sign}
        plain = sorted(set(range(len(q))) - identical - {row for own in rows.values() for row in own})
        if plain:
            i = torch.tensor(plain, device=q.device)
            out[i] = F.scaled_dot_product_attention(q[i], k[i], v[i], scale=scale)
        for sign, states in by_sign.items():
            i = torch.tensor(rows[sign], device=q.device)
            own_q, own_k, reference = q[i], k[i], (states.k, states.v, states.weights)
            if states.style is not None:
                own_q, own_k = adain(own_q, *states.style[:2]), adain(own_k, *states.style[2:])
            if context.observer is not None:
                seen = Observation(self.layer, context.t, sign, rows[sign], own_q, own_k, states, scale)
                context.observer(seen)
            if context.backend == "sdpa":
                out[i] = weighted_attention(own_q, own_k, v[i], *reference, scale=scale)
            else:
                out[i], mass = attend_merged(own_q, own_k, v[i], *reference, scale=scale, cap=context.cap)
                context.on_mass(self.layer, sign, mass)
            context.injected.add((sign, self.layer.name))
        return out

    def _perturbed(self, rows: int) -> slice:
        """The perturbed ones of the generation's rows."""
        parts = PERTURBED.get(type(self.original).__name__)
        return slice(0, 0) if parts is None else slice(rows - rows // parts, rows)
