"""The reference pass: from images and one U-Net call to the keys and values that the generation reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.diffusion import encode_prompts, vae_scale_factor

from .attention import pool_tokens
from .cache import LayerStates, ReferenceCache, digest_of
from .processor import Context, Layer, SignStates
from .references import Reference, encode_reference, noised_reference, reference_noise, token_mask
from .schedule import depth_ramp
from .settings import FabricError, Settings


class ReferencePass:
    """Encodes, noises and runs references. `running` is true during its own U-Net calls, `rows` counts their rows."""

    def __init__(
        self, pipe, settings: Settings, context: Context, cache: ReferenceCache, *, seed: int, chunk: int | None
    ):
        self.pipe, self.settings, self.context, self.cache = pipe, settings, context, cache
        self.unet, self.alphas_cumprod = pipe.unet, pipe.scheduler.alphas_cumprod
        self.seed, self.chunk = seed, chunk
        self.running, self.rows = False, 0
        self._latents: dict[tuple[str, int, int], tuple[Tensor, str]] = {}
        self._texts: dict[tuple[int, int], tuple] = {}

    def clear(self) -> None:
        """Free what was encoded."""
        self._latents.clear()
        self._texts.clear()
        self.context.recorded.clear()

    def states(
        self, references: Sequence[Reference], sign: str, call: dict, t: float, rows: tuple[int, ...]
    ) -> list[LayerStates | None]:
        """K and V of every layer for every reference, from the cache or by a pass of their own; None at weight 0."""
        sample = call["sample"]
        size = sample.shape[2:]
        text, pooled, time_ids, text_key = self._text(call, rows, size)
        noise_t = t if self.settings.noise == "step" else None
        base = (self.cache.revision(self.unet), t, noise_t, self.seed, text_key, sample.dtype, str(sample.device))
        found: list[LayerStates | None] = []
        missing: list[int] = []
        for i, reference in enumerate(references):
            states = None
            if reference.weight > 0:
                latent, digest = self._latent(reference, size)
                states = self.cache.get((*base, reference.key, digest))
                if states is None:
                    missing.append(i)
            found.append(states)
        chunk = self.chunk or len(sample)
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            latents = torch.stack([self._latent(references[i], size)[0] for i in part])
            noise = torch.stack(
                [reference_noise(references[i].key, self.seed, noise_t, latents.shape[1:]) for i in part]
            )
            x = noised_reference(latents, noise, t, self.alphas_cumprod)  # [R, C, h, w]
            recorded = self._run(x, latents, call, text, pooled, time_ids)
            for row, i in enumerate(part):
                states = {name: (k[row : row + 1], v[row : row + 1]) for name, (k, v) in recorded.items()}
                if len(part) > 1:  # entries of their own, so that dropping one frees its memory
                    states = {name: (k.clone(), v.clone()) for name, (k, v) in states.items()}
                self.cache.put((*base, references[i].key, self._latent(references[i], size)[1]), states)
                found[i] = states
        return found

    @torch.no_grad()
    def _run(self, x: Tensor, clean: Tensor, call: dict, text: Tensor, pooled, time_ids) -> dict:
        """One forward of references: no ControlNet residuals, no image prompt of the generation, no inpainting mask."""
        sample, unet, n = call["sample"], self.unet, len(x)
        channels = unet.config.in_channels
        if channels == 2 * x.shape[1] + 1:  # inpainting: nothing is masked, the masked image is the reference itself
            x = torch.cat([x, torch.zeros_like(x[:, :1]), clean.to(x)], dim=1)
        elif channels != x.shape[1]:
            raise FabricError(
                f"the U-Net takes {channels} channels, the VAE gives {x.shape[1]}: expected equal or 2n + 1"
            )
        added = dict(call.get("added_cond_kwargs") or {})
        if pooled is not None:
            added |= {"text_embeds": _repeat(pooled, n), "time_ids": _repeat(time_ids, n)}
        if "image_embeds" in added:  # IP-Adapter: the zeros that its unconditional rows get
            added["image_embeds"] = [
                torch.zeros_like(e[:1]).repeat(n, *[1] * (e.ndim - 1)) for e in added["image_embeds"]
            ]
        lora = {k: v for k, v in (call.get("cross_attention_kwargs") or {}).items() if k == "scale"}
        condition = call.get("timestep_cond")
        context = self.context
        context.mode, context.recorded, self.running = "record", {}, True
        try:
            unet(
                x.to(sample.device, sample.dtype),
                call["timestep"].flatten()[0] if isinstance(call["timestep"], Tensor) else call["timestep"],
                encoder_hidden_states=_repeat(text, n).to(sample.device, sample.dtype),
                timestep_cond=None if condition is None else _repeat(condition[:1], n),
                cross_attention_kwargs=lora or None,
                added_cond_kwargs=added or None,
                return_dict=False,
            )
        finally:
            self.running, context.mode = False, "idle"
        self.rows += n
        recorded, context.recorded = context.recorded, {}
        return recorded

    def _latent(self, reference: Reference, size: torch.Size) -> tuple[Tensor, str]:
        key = (reference.key, *size)
        if key not in self._latents:
            f = vae_scale_factor(self.pipe)
            latent = encode_reference(self.pipe, reference, size[0] * f, size[1] * f)
            self._latents[key] = latent, digest_of(latent)
        return self._latents[key]

    @torch.no_grad()
    def _text(self, call: dict, rows: tuple[int, ...], size: torch.Size) -> tuple:
        """(text [1, tokens, d], pooled, time_ids, digest) of the reference rows."""
        if self.settings.reference_prompt is None:
            text, added = call["encoder_hidden_states"][list(rows)], call.get("added_cond_kwargs") or {}
            if not bool((text == text[:1]).all()):
                raise FabricError(
                    "the rows have different texts: give reference_prompt='' or one text for all references"
                )
            values = [added[name][list(rows)][:1] if name in added else None for name in ("text_embeds", "time_ids")]
            return text[:1], *values, digest_of(text[:1], *values)
        if tuple(size) not in self._texts:
            f = vae_scale_factor(self.pipe)
            c = encode_prompts(self.pipe, [self.settings.reference_prompt], height=size[0] * f, width=size[1] * f)
            values = (c.cond, c.pooled, c.time_ids)
            self._texts[tuple(size)] = (*values, digest_of(*values))
        return self._texts[tuple(size)]

    def assemble(
        self, references: Sequence[Reference], states: list, layer: Layer, weight: float, size: torch.Size
    ) -> SignStates | None:
        """K, V and log weights of one layer for one sign, end to end; None if nothing has a weight."""
        s, f = self.settings, vae_scale_factor(self.pipe)
        keys, values, logs, tokens = [], [], [], []
        for reference, entry in zip(references, states, strict=True):
            if entry is None:
                continue
            k, v = entry[layer.name]
            side = round(math.sqrt(size[0] * size[1] / k.shape[2]))  # 1, 2, 4, ...: how much coarser than the latent
            grid = -(-size[0] // side), -(-size[1] // side)
            w = weight * reference.weight * depth_ramp(layer.depth, s.bottleneck_scale) * s.level_weights.get(side, 1.0)
            w = w / len(references) if s.count_normalized else w
            mask = token_mask(reference, size[0] * f, size[1] * f, grid)
            if mask is None and s.pool > 1:
                before = k.shape[2]
                k, v = pool_tokens(k, grid, s.pool), pool_tokens(v, grid, s.pool)
                w = w * before / k.shape[2]
            per_token = torch.full((k.shape[2],), w) if mask is None else w * mask
            keep = per_token > 0
            if not bool(keep.all()):
                index = keep.nonzero()[:, 0].to(k.device)
                k, v, per_token = k[:, :, index], v[:, :, index], per_token[keep]
            keys.append(k)
            values.append(v)
            logs.append(per_token.log())
            tokens.append(len(per_token))
        if not sum(tokens):
            return None
        log_w = torch.cat(logs).to(keys[0].device)
        return SignStates(torch.cat(keys, dim=2), torch.cat(values, dim=2), log_w, tuple(tokens))


def _repeat(x: Tensor, n: int) -> Tensor:
    return x[:1].repeat(n, *[1] * (x.ndim - 1))
