"""The reference pass: from images and one U-Net call to the keys and values that the generation reads."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from labkit.diffusion import encode_prompts, has_text_encoder, vae_scale_factor
from labkit.fabric.attention import moments, pool_tokens
from labkit.fabric.cache import LayerStates, ReferenceCache, digest_of
from labkit.fabric.equations import noised_reference
from labkit.fabric.processor import Context, Layer, SignStates
from labkit.fabric.references import Reference, encode_reference, reference_noise
from labkit.fabric.schedule import depth_ramp
from labkit.fabric.settings import FabricError, Settings

RESIDUALS = ("down_block_additional_residuals", "down_intrablock_additional_residuals")  # tuples; ControlNet, T2I


@dataclass
class Job:
    """One reference that has to go through the U-Net: its row of the batch, and what it leaves in every layer."""

    key: Hashable
    x: Tensor  # noised latent [C, h, w]
    clean: Tensor
    text: Tensor  # [1, tokens, d]
    pooled: Tensor | None
    time_ids: Tensor | None
    states: LayerStates = field(default_factory=dict)


class ReferencePass:
    """Encodes, noises and runs references. `running` is true during its own U-Net calls, `rows` counts their rows.

    `unfused` is the number of references for which "fused" was asked in vain, 0 as long as there were none.
    """

    def __init__(
        self, pipe, settings: Settings, context: Context, cache: ReferenceCache, *, seed: int, chunk: int | None
    ):
        self.pipe, self.settings, self.context, self.cache = pipe, settings, context, cache
        self.unet, self.alphas_cumprod = self._model(pipe), None
        self.seed, self.chunk = seed, chunk
        self.running, self.rows, self.unfused = False, 0, 0
        self._jobs: list[Job] = []
        if settings.reference_prompt is not None:
            self._check_texts()
        self._latents: dict[tuple[str, int, int], tuple[Tensor, str]] = {}
        self._texts: dict[tuple[int, int], tuple] = {}
        context.record = self._record

    def clear(self) -> None:
        """Free what was encoded."""
        self._latents.clear()
        self._texts.clear()
        self._jobs = []

    def states(
        self, references: Mapping[str, Sequence[Reference]], call: dict, t: float, rows: Mapping[str, tuple[int, ...]]
    ) -> tuple[dict[str, list[LayerStates]], list[Job]]:
        """What every reference of every sign leaves in every layer, and the jobs still to do.

        It comes from the cache or from a pass of their own; if the settings say "fused", the jobs that are left are to
        be rows of the generation's call (`appended`), and their states fill up while that runs.
        """
        sample, size = call["sample"], self.size_of(call)
        noise_t = t if self.settings.noise == "step" else None
        base = (self.cache.revision(self.unet), t, noise_t, self.seed, sample.dtype, str(sample.device), *given(call))
        known: dict[Hashable, LayerStates] = {}  # a reference that is given twice runs once
        jobs: list[Job] = []
        found: dict[str, list[LayerStates]] = {}
        for sign, own in references.items():
            *text, text_key = self._text(call, rows[sign], size)
            found[sign] = []
            for reference in own:
                latent, digest = self._latent(reference, size)
                key = (*base, text_key, reference.key, digest)
                if key not in known:
                    states = self.cache.get(key)
                    if states is None:
                        noise = reference_noise(reference.key, self.seed, noise_t, latent.shape)
                        x = self._noised(latent, noise, t)  # [C, h, w]
                        jobs.append(Job(key, x, latent, *text))
                        states = jobs[-1].states
                    known[key] = states
                found[sign].append(known[key])
        chunk = self.chunk or len(sample)
        if self.settings.fused and jobs:
            if len(jobs) <= chunk and can_append(call, jobs):
                return found, jobs
            self.unfused = len(jobs)
        for start in range(0, len(jobs), chunk):
            self._run(jobs[start : start + chunk], call)
        return found, []

    def _model(self, pipe):
        return pipe.unet

    def _check_texts(self) -> None:
        check_texts(self.pipe)

    def size_of(self, call: dict) -> torch.Size:
        """Height and width of the latents of a call."""
        return call["sample"].shape[2:]

    def _noised(self, latent: Tensor, noise: Tensor, t: float) -> Tensor:
        return noised_reference(latent, noise, t, self.alphas_cumprod)

    def _record(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep one layer of the jobs that are running: entries of their own, so that dropping one frees its memory."""
        q, k, v = q.detach(), k.detach(), v.detach()  # fused, they may be part of a graph
        for row, job in enumerate(self._jobs):
            one = slice(row, row + 1)
            job.states[layer.name] = (k[one].clone(), v[one].clone(), *moments(q[one]))

    @torch.no_grad()
    def _run(self, jobs: list[Job], call: dict) -> None:
        """One forward of references: no ControlNet residuals, no image prompt of the generation, no inpainting mask."""
        arguments, context = self._arguments(jobs, call), self.context
        context.mode, self.running, self._jobs = "record", True, jobs
        try:
            self.unet(return_dict=False, **arguments)
        finally:
            self.running, context.mode, self._jobs = False, "idle", []
        self.rows += len(jobs)
        self.keep(jobs)

    def _arguments(self, jobs: list[Job], call: dict) -> dict:
        """What a call of references alone is given."""
        t = call["timestep"]
        lora = {k: v for k, v in (call.get("cross_attention_kwargs") or {}).items() if k == "scale"}
        return self._rows(jobs, call) | {
            "timestep": t.flatten()[0] if isinstance(t, Tensor) else t,
            "cross_attention_kwargs": lora or None,
        }

    def _rows(self, jobs: list[Job], call: dict) -> dict:
        """The arguments of a U-Net call whose rows are references."""
        sample, n = call["sample"], len(jobs)
        x, clean = torch.stack([job.x for job in jobs]), torch.stack([job.clean for job in jobs])  # [R, C, h, w]
        channels = self.unet.config.in_channels
        if channels == 2 * x.shape[1] + 1:  # inpainting: nothing is masked, the masked image is the reference itself
            x = torch.cat([x, torch.zeros_like(x[:, :1]), clean], dim=1)
        elif channels != x.shape[1]:
            raise FabricError(
                f"the U-Net takes {channels} channels, the VAE gives {x.shape[1]}: expected equal or 2n + 1"
            )
        added = dict(call.get("added_cond_kwargs") or {})
        if jobs[0].pooled is not None:
            added |= {"text_embeds": torch.cat([job.pooled for job in jobs])}
            added |= {"time_ids": torch.cat([job.time_ids for job in jobs])}
        if "image_embeds" in added:  # IP-Adapter: the zeros that its unconditional rows get
            added["image_embeds"] = [
                torch.zeros_like(e[:1]).repeat(n, *[1] * (e.ndim - 1)) for e in added["image_embeds"]
            ]
        condition = call.get("timestep_cond")
        return {
            "sample": x.to(sample.device, sample.dtype),
            "encoder_hidden_states": torch.cat([job.text for job in jobs]).to(sample.device, sample.dtype),
            "timestep_cond": None if condition is None else condition[:1].repeat(n, 1),
            "added_cond_kwargs": added or None,
        }

    def appended(self, jobs: list[Job], call: dict) -> dict:
        """The generation's call with the references as its last rows; `keep` them once it has run."""
        more, n, t = self._rows(jobs, call), len(jobs), call["timestep"]
        self._jobs, self.rows = jobs, self.rows + n
        changed = {name: _joined(call.get(name), more[name]) for name in more}
        if isinstance(t, Tensor) and t.numel() > 1:
            changed["timestep"] = torch.cat([t, t[:1].repeat(n)])
        for name in RESIDUALS:
            if call.get(name) is not None:
                changed[name] = tuple(_padded(x, n) for x in call[name])
        if call.get("mid_block_additional_residual") is not None:
            changed["mid_block_additional_residual"] = _padded(call["mid_block_additional_residual"], n)
        return call | changed

    def keep(self, jobs: list[Job]) -> None:
        """Put what has been computed into the cache."""
        self._jobs = []
        for job in jobs:
            self.cache.put(job.key, job.states)

    def _latent(self, reference: Reference, size: torch.Size) -> tuple[Tensor, str]:
        key = (reference.key, *size)
        if key not in self._latents:
            height, width = (vae_scale_factor(self.pipe) * side for side in size)
            self._latents[key] = self.cache.latent(
                self.pipe.vae, key, lambda: encode_reference(self.pipe, reference, height, width)
            )
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

    def layer_weight(self, layer: Layer, weight: float) -> float:
        """The weight of a reference in one layer: 0 outside the depths that read references."""
        inside = self.settings.depths[0] <= layer.depth <= self.settings.depths[1]
        return weight * depth_ramp(layer.depth, self.settings.bottleneck_scale) if inside else 0.0

    def assemble(
        self, states: Mapping[str, Sequence[LayerStates]], sign: str, layer: Layer, weight: float, size: torch.Size
    ) -> SignStates | None:
        """K, V and weights of one layer for one sign, references end to end; None where they have no weight."""
        s, own, w = self.settings, states[sign], self.layer_weight(layer, weight)
        padded = max(map(len, states.values())) - len(own) if s.zero_padding else 0
        w = w / (len(own) + padded) if s.count_normalized else w
        if w == 0:
            return None
        if any(layer.name not in entry for one in states.values() for entry in one):
            raise FabricError(f"{layer.name} did not run when the references did: something leaves out layers")
        keys, values, weights, style = [], [], [], []
        like = next(entry for one in states.values() for entry in one)[layer.name]
        zeros = {layer.name: tuple(torch.zeros_like(x) for x in like)}
        for entry in [*own, *[zeros] * padded]:
            k, v, *q_moments = entry[layer.name]
            if s.adain and entry is not zeros:
                style.append((*q_moments, *moments(k)))
            before = k.shape[2]
            if s.pool > 1:
                side = round(math.sqrt(size[0] * size[1] / before))  # 1, 2, 4, ...: how much coarser than the latent
                grid = -(-size[0] // side), -(-size[1] // side)
                k, v = pool_tokens(k, grid, s.pool), pool_tokens(v, grid, s.pool)
            keys.append(k)
            values.append(v)
            weights.append(torch.full((k.shape[2],), w * (before / k.shape[2])))
        # moments over all references together are their mean, since all have the same number of tokens
        style = tuple(torch.stack(one).mean(0) for one in zip(*style, strict=True)) or None
        w = torch.cat(weights).to(keys[0].device)
        return SignStates(torch.cat(keys, dim=2), torch.cat(values, dim=2), w, tuple(map(len, weights)), style)


def given(call: Mapping) -> tuple:
    """What else of a call decides its references: the scale of LoRA, which is set inside the call only, and the
    guidance that distilled models are told."""
    scales = [(call.get(name) or {}).get("scale") for name in ("cross_attention_kwargs", "joint_attention_kwargs")]
    condition = call.get("timestep_cond")
    return *scales, digest_of(None if condition is None else condition[:1])


def check_texts(pipe) -> None:
    """Raise FabricError if the pipeline cannot encode the reference prompt."""
    if not has_text_encoder(pipe):
        raise FabricError(
            f"{type(pipe).__name__} has no text encoder for the reference prompt: load one, or give "
            "reference_prompt=None (the text of the generated rows)"
        )
    if bool(getattr(pipe.config, "requires_aesthetics_score", False)):
        raise FabricError(
            "SDXL's refiner has another size condition than the reference prompt gets: use the base model, or give "
            "reference_prompt=None (the text and the conditions of the generated rows)"
        )


def can_append(call: dict, jobs: Sequence[Job]) -> bool:
    """Whether the jobs can be rows of a call: its texts must be as long as theirs, and masks over tokens or image
    regions would have to grow in unknown ways."""
    if call["encoder_hidden_states"].shape[1:] != jobs[0].text.shape[1:]:
        return False
    known = set(call.get("cross_attention_kwargs") or {}) <= {"scale"}
    return known and call.get("attention_mask") is None and call.get("encoder_attention_mask") is None


def _joined(a, b):
    """b below a: tensors [rows, ...], lists and dicts of such, or None."""
    if isinstance(a, dict):
        return {name: _joined(a[name], b[name]) for name in a}
    if isinstance(a, (list, tuple)):
        return [_joined(x, y) for x, y in zip(a, b, strict=True)]
    return a if a is None else torch.cat([a, b.to(a.device, a.dtype)])


def _padded(x: Tensor, n: int) -> Tensor:
    return torch.cat([x, x.new_zeros(n, *x.shape[1:])])
