"""Preference pairs in memory, and the fingerprints that say which model they were made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from labkit.checkpoint import digest
from labkit.diffusion import PromptConditions, active_adapters, base_fingerprint, denoiser_of, encode_prompts
from labkit.diffusion.adapters import adapter_layers, adapter_parameters, names_on
from labkit.dpo.process import process_of
from labkit.dpo.shards import Shards


@dataclass(frozen=True)
class PreferencePairs:
    """n pairs of latents, as the U-Net sees them (`encode_images`, `sample_latents`).

    prompts: n texts. winner, loser: float [n, C, h, w], tensors, NumPy arrays, or `Shards` that stay on disk. margin:
    [n] score gaps > 0, or None where not known. hashes: any of the keys of `fingerprints`, of the pipeline that made
    the latents; a key that is absent is not checked. time_ids: SDXL's size condition of each pair in pixels, [n, 6]:
    original height and width, top and left of the crop, target height and width; None: uncut pictures of the size of
    the latents.

    Raises ValueError for anything that cannot be trained on: no pairs (a set of ties alone), captions that are missing,
    shapes that differ, NaN, a winner equal to its loser, margins that are not positive.
    """

    prompts: tuple[str, ...]
    winner: Tensor | Shards
    loser: Tensor | Shards
    margin: Tensor | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    time_ids: Tensor | None = None

    def __post_init__(self) -> None:
        prompts = list(self.prompts)
        missing = [i for i, prompt in enumerate(prompts) if prompt is None or prompt != prompt]  # NaN: an empty cell
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(prompts)} captions are missing (first: pair {missing[0]}): write them, or "
                'give "" for a picture without a prompt'
            )
        object.__setattr__(self, "prompts", tuple(str(p) for p in prompts))
        for name in ("winner", "loser", "margin", "time_ids"):
            if isinstance(getattr(self, name), np.ndarray):
                object.__setattr__(self, name, torch.from_numpy(np.ascontiguousarray(getattr(self, name))).float())
        n = len(self.prompts)
        if n == 0:
            raise ValueError("got no pairs: ties never train, so a set of ties alone is empty; score more images")
        for name, latents in (("winner", self.winner), ("loser", self.loser)):
            if latents is None or latents.ndim != 4 or len(latents) != n:
                got = "nothing" if latents is None else f"shape {tuple(latents.shape)}"
                raise ValueError(f"{name} latents: got {got}, expected [{n}, C, h, w], one per prompt")
            bad = [
                start + i
                for start, part in _in_parts(latents)
                for i in (~torch.isfinite(part).flatten(1).all(1)).nonzero().flatten().tolist()
            ]
            if bad:
                raise ValueError(f"{name} latents of {len(bad)} pairs are not finite (first: pair {bad[0]}): drop them")
        if self.winner.shape != self.loser.shape:
            raise ValueError(
                f"winner {tuple(self.winner.shape)} and loser {tuple(self.loser.shape)} latents differ in shape"
            )
        same = [
            start + i
            for start, part in _in_parts(self.winner)
            for i in (part == self.loser[start : start + len(part)]).flatten(1).all(1).nonzero().flatten().tolist()
        ]
        if same:
            raise ValueError(f"winner and loser are the same image in {len(same)} pairs (first: pair {same[0]}): drop")
        if self.time_ids is not None and self.time_ids.shape != (n, 6):
            raise ValueError(f"time_ids have shape {tuple(self.time_ids.shape)}, expected ({n}, 6)")
        if self.margin is not None:
            if self.margin.shape != (n,):
                raise ValueError(f"margin has shape {tuple(self.margin.shape)}, expected ({n},)")
            if bool(torch.isnan(self.margin).any()):
                raise ValueError("margins hold NaN: a scorer failed on these images, drop their pairs")
            if not bool((self.margin > 0).all()):
                bad = int((self.margin <= 0).sum())
                raise ValueError(
                    f"{bad} of {n} margins are not positive: ties never train, and a negative gap is a swap"
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, index: Sequence[int]) -> PreferencePairs:
        """Some of the pairs, by their numbers."""
        index = [int(i) for i in index]
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in index),
            winner=self.winner[index],
            loser=self.loser[index],
            margin=None if self.margin is None else self.margin[index],
            time_ids=None if self.time_ids is None else self.time_ids[index],
        )

    def content(self) -> str:
        """SHA-256 of everything that training reads: prompts, latents, margins, size conditions."""
        tensors = {"winner": self.winner, "loser": self.loser, "margin": self.margin, "time_ids": self.time_ids}
        known = digest({name: value for name, value in tensors.items() if value is not None})
        return hashlib.sha256(json.dumps([list(self.prompts), known]).encode()).hexdigest()


def _in_parts(latents: Tensor | Shards, rows: int = 256) -> Iterator[tuple[int, Tensor]]:
    """(first row, some rows): what lies on disk is never read as a whole."""
    return ((start, latents[start : start + rows]) for start in range(0, len(latents), rows))


def fingerprints(pipe) -> dict[str, str]:
    """SHA-256 of what decides whether latents and cached errors still hold: base of the U-Net (or of the transformer in
    its place), VAE, text encoders, scheduler.

    The scheduler enters with its noise levels and prediction type; adapters do not enter.
    """
    found = {
        "base": base_fingerprint(denoiser_of(pipe)),
        "vae": base_fingerprint(pipe.vae),
        "text": base_fingerprint(pipe.text_encoder),
        "scheduler": process_of(pipe).fingerprint(),
    }
    for name in ("2", "3"):
        if getattr(pipe, f"text_encoder_{name}", None) is not None:
            found[f"text_{name}"] = base_fingerprint(getattr(pipe, f"text_encoder_{name}"))
    return found


def active_content(model: torch.nn.Module) -> str:
    """SHA-256 of the adapters that are active on a model, with their scales; "" if there are none."""
    layers, found = adapter_layers(model), {}
    for name in active_adapters(model):
        found |= {key: p.detach() for key, p in adapter_parameters(model, name).items()}
        for path, layer in layers.items():
            if name in names_on(layer):
                on = name in layer.active_adapters and not layer.disable_adapters
                found[f"{path}.{name}.scale"] = torch.tensor(layer.scaling[name] if on else 0.0, dtype=torch.float64)
    return digest(found) if found else ""


def check_hashes(pairs: PreferencePairs, actual: Mapping[str, str], ignore: Sequence[str] = ()) -> None:
    """Raise ValueError if the pairs were made with another VAE, text encoder, ...; `ignore` names exceptions."""
    for key in sorted((set(pairs.hashes) & set(actual)) - set(ignore)):
        if pairs.hashes[key] != actual[key]:
            raise ValueError(
                f"these pairs were made with another {key} ({pairs.hashes[key][:12]}, the pipeline has "
                f"{actual[key][:12]}): build them again, or load the pipeline they were made with"
            )


def encode_unique(pipe, prompts: Sequence[str], chunk: int = 64) -> tuple[PromptConditions, list[int]]:
    """Conditions of the distinct prompts, encoded once without gradient, and each prompt's row in them."""
    unique = list(dict.fromkeys(prompts))
    with torch.no_grad():
        parts = [encode_prompts(pipe, unique[i : i + chunk]) for i in range(0, len(unique), chunk)]
    names = ("cond", "uncond", "pooled", "pooled_uncond", "time_ids")
    joined = {n: None if getattr(parts[0], n) is None else torch.cat([getattr(p, n) for p in parts]) for n in names}
    position = {prompt: i for i, prompt in enumerate(unique)}
    return PromptConditions(**joined), [position[p] for p in prompts]
