"""FABRIC in joint attention: transformers whose image and text tokens attend to each other (MMDiT, arXiv 2403.03206).

A U-Net keeps self-attention (image to image) and cross-attention (image to text) apart, and FABRIC touches the first
alone. Joint attention is one softmax over both. Were references simply appended to its keys, they would also take
attention from the text, and the prompt would fade as references are added. So they compete with image tokens alone.
For the query of an image token, with Z_A the sum of exp(s) over the tokens of A (of w exp(s) over the references'),

    o      = m_text o_text + (1 - m_text) [(1 - m_ref) o_image + m_ref o_ref]
    m_text = Z_text / (Z_text + Z_image)      the text's share, as without references
    m_ref  = Z_ref / (Z_image + Z_ref)        FABRIC, eq. 2 (arXiv 2307.10159), on the image's part

and the logit of m_ref is LSE(s_ref + log w) - LSE(s_image). Without text this is FABRIC's weighted attention; and a
reference equal to the picture itself (o_ref = o_image) changes nothing, whatever its weight. Queries of text tokens see
what they saw before. The rule and the fixed share are this package's: the paper has U-Nets only.

In flow matching a reference at noise level sigma (1 is noise) is x = (1 - sigma) x_0 + sigma eps, in place of eq. 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.fabric.attention import attention_with_lse, merge_references
from labkit.fabric.processor import FabricProcessor, Layer, Observation, SignStates
from labkit.fabric.settings import FabricError
from labkit.fabric.unet import is_compiled

TEXT_FIRST = "FluxAttnProcessor"  # the order of tokens: FLUX has [text, image], SD3 [image, text]
JOINT_PROCESSORS = ("JointAttnProcessor2_0", TEXT_FIRST)


def flow_reference(latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """A feedback image noised to the current step of rectified flow: (1 - sigma) x_0 + sigma eps.

    Takes the place of eq. 1 of FABRIC (arXiv 2307.10159); the path is eq. 13 of Stable Diffusion 3 (arXiv 2403.03206).

    Args:
        latent: x_0, the clean latent, [..., C, h, w].
        noise: eps, standard normal, of the same shape.
        sigma: noise level, 0 (clean) .. 1 (noise).

    Returns:
        The noised latent, [..., C, h, w].
    """
    return (1 - sigma) * latent + sigma * noise.to(latent.device, latent.dtype)


def attend_joint(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    w: Tensor,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """What image tokens see when references compete with image tokens alone (formula above).

    Args:
        q, k, v: of the image tokens, [B, heads, N, d].
        k_text, v_text: of the text tokens, [B, heads, T, d]; T may be 0.
        k_ref, v_ref: of the references, [1, heads, M, d], shared by all rows.
        w: weights of the reference tokens, [M], above 0.
        scale: factor of the logits, 1 / sqrt(d) if None.
        cap: largest m_ref, None for no limit.

    Returns:
        o [B, heads, N, d] and m_ref, the share of the references in the image's part of the attention, [B, heads, N].
    """
    own, lse_own = attention_with_lse(q, k, v, scale=scale)
    seen, mass = merge_references(own, lse_own, q, k_ref, v_ref, w, scale=scale, cap=cap)
    if k_text.shape[2] == 0:
        return seen, mass
    text, lse_text = attention_with_lse(q, k_text, v_text, scale=scale)
    share = torch.sigmoid(lse_text - lse_own)[..., None]  # [B, heads, N, 1]
    return (seen + share * (text.to(share.dtype) - seen)).to(q.dtype), mass


def joint_attentions(model) -> list[tuple[Layer, nn.Module]]:
    """Every attention in which image tokens see each other, in the order in which they run, with its depth.

    SD3: `attn` of every block and SD3.5's `attn2`, which sees the image alone; FLUX: double blocks, then single ones.
    There is no bottleneck: depth is 0 for the first and the last block and 1 in the middle of the stack.
    """
    names = ("transformer_blocks", "single_transformer_blocks")
    blocks = [(f"{name}.{i}", block) for name in names for i, block in enumerate(getattr(model, name, ()))]
    found = []
    for i, (path, block) in enumerate(blocks):
        depth = 1 - abs(2 * i / (len(blocks) - 1) - 1) if len(blocks) > 1 else 0.0
        attentions = {name: getattr(block, name, None) for name in ("attn", "attn2")}
        found += [(Layer(f"{path}.{name}", depth), one) for name, one in attentions.items() if one is not None]
    return found


def transformer_of(pipe):
    """The pipeline's transformer.

    Raises:
        FabricError: it is compiled, keeps features from step to step, or splits its tokens over devices.
    """
    model = pipe.transformer
    if is_compiled(model):
        raise FabricError(
            "the transformer is compiled, and what was compiled does not ask attention processors: open the session on "
            "the plain one (pipe.transformer = pipe.transformer._orig_mod after torch.compile, else load it again)"
        )
    if getattr(model, "is_cache_enabled", False):
        raise FabricError(
            "the transformer reuses features of earlier calls, those of references among them: disable_cache() first"
        )
    if any(getattr(attn.processor, "_parallel_config", None) is not None for _, attn in joint_attentions(model)):
        raise FabricError("the transformer splits its tokens over devices: FABRIC needs all of them in one place")
    return model


class JointProcessor(FabricProcessor):
    """Drop-in for `JointAttnProcessor2_0` (SD3) and `FluxAttnProcessor`: image tokens read those of references."""

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        context = self.context
        by_sign = self._by_sign() if context.mode == "inject" else {}
        if context.mode == "idle" or (context.mode == "inject" and not by_sign):
            more = {} if image_rotary_emb is None else {"image_rotary_emb": image_rotary_emb}
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, **more)
        if attention_mask is not None:
            raise FabricError(
                f"{self.layer.name} is called with a mask over tokens: FABRIC needs joint attention without"
            )
        text_first = type(self.original).__name__ == TEXT_FIRST

        def heads(x: Tensor, norm) -> Tensor:  # [B, tokens, C] -> [B, heads, tokens, d]
            x = x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return x if norm is None else norm(x)

        image = (attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None)
        parts = [[heads(project(hidden_states), norm) for project, norm in image]]
        if encoder_hidden_states is not None:
            added = (attn.add_q_proj, attn.norm_added_q), (attn.add_k_proj, attn.norm_added_k), (attn.add_v_proj, None)
            parts.append([heads(project(encoder_hidden_states), norm) for project, norm in added])
        if text_first:
            parts.reverse()
        q, k, v = (torch.cat(one, dim=2) for one in zip(*parts, strict=True))  # [B, heads, T + N, d]
        if image_rotary_emb is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            q, k = apply_rotary_emb(q, image_rotary_emb), apply_rotary_emb(k, image_rotary_emb)
        # tokens of the text; FLUX's single blocks get one sequence, SD3.5's second attention has no text
        together = context.text_tokens if text_first else 0
        text = together if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        sizes = [text, q.shape[2] - text] if text_first else [q.shape[2] - text, text]
        if context.mode == "record":
            of_image = [x.split(sizes, dim=2)[int(text_first)] for x in (q, k, v)]
            context.record(self.layer, *of_image)
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = self._show(q, k, v, sizes, text_first, by_sign)
        out = out.transpose(1, 2).flatten(2).to(q.dtype)  # [B, T + N, C]
        if encoder_hidden_states is None:
            return out if text_first else attn.to_out[1](attn.to_out[0](out))  # single blocks project it themselves
        words, picture = out.split(sizes, dim=1)[:: 1 if text_first else -1]
        picture = attn.to_out[1](attn.to_out[0](picture.contiguous()))
        return picture, words if attn.context_pre_only else attn.to_add_out(words.contiguous())

    def _show(
        self, q: Tensor, k: Tensor, v: Tensor, sizes: list[int], text_first: bool, by_sign: dict[str, SignStates]
    ) -> Tensor:
        context, out = self.context, torch.empty_like(q)
        plain = sorted(set(range(len(q))) - {row for sign in by_sign for row in context.rows[sign]})
        if plain:
            i = torch.tensor(plain, device=q.device)
            out[i] = F.scaled_dot_product_attention(q[i], k[i], v[i])
        for sign, states in by_sign.items():
            i, order = torch.tensor(context.rows[sign], device=q.device), 1 if text_first else -1
            (q_text, own_q), (k_text, own_k), (v_text, own_v) = (
                x[i].split(sizes, dim=2)[::order] for x in (q, k, v)
            )  # [rows, heads, T, d], [rows, heads, N, d]
            if context.observer is not None:
                seen = Observation(self.layer, context.t, sign, context.rows[sign], own_q, own_k, states, None)
                context.observer(seen)
            reference = (states.k, states.v, states.weights)
            picture, mass = attend_joint(own_q, own_k, own_v, k_text, v_text, *reference, cap=context.cap)
            if context.backend == "lse":
                context.on_mass(self.layer, sign, mass)
            words = F.scaled_dot_product_attention(q_text, k[i], v[i])
            out[i] = torch.cat([words, picture][::order], dim=2)
            context.injected.add((sign, self.layer.name))
        return out
