"""What the gpu tier takes from the hub: which repositories at which commits, which of their files, and substitutes.

A commit of a repository is a hash of everything in it, so the same revision has the same files for ever; the hub says
the SHA-256 of each large one, `labkit.models.fetch` checks it. Substitutes are named, never taken silently: another
repository has other weights, so numbers differ from those of the model that the lessons mean.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A repository "owner/name" at a revision, 40 hex digits."""

    repository: str
    revision: str


@dataclass(frozen=True)
class Published:
    """A model as labkit looks for it.

    folder     its name under LABKIT_MODELS (`labkit.models.paths.local_model`)
    sources    the model itself, then its substitutes, in order
    patterns   files of it that are needed, as for `fnmatch`; weights are safetensors only
    size       bytes in all, about, for the forecast before the hub has been asked
    tiers      "gpu": lessons need it; "extra": by name only
    """

    folder: str
    sources: tuple[Source, ...]
    patterns: tuple[str, ...]
    size: int
    tiers: tuple[str, ...] = ("gpu",)


_TOKENIZER = ("*vocab.json", "*merges.txt", "*tokenizer.json", "*tokenizer_config.json", "*special_tokens_map.json")
_PIPELINE = ("model_index.json", "scheduler/*.json", *_TOKENIZER)
_HALF = tuple(
    f"{part}/{name}"
    for part in ("unet", "vae", "text_encoder", "text_encoder_2")
    for name in ("config.json", "diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors")
)

SD15 = Published(
    "stable-diffusion-v1-5",
    (
        Source("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
        Source("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),
    ),
    (*_PIPELINE, *_HALF),
    2_135_000_000,
)
CLIP = Published(
    "clip-vit-large-patch14",
    (
        Source("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"),
        Source("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "1627032197142fbe2a7cfec626f4ced3ae60d07a"),
    ),
    ("config.json", "preprocessor_config.json", "model.safetensors", *_TOKENIZER),
    1_712_000_000,
)
PICKSCORE = Published(
    "PickScore_v1",
    (Source("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800"),),
    ("config.json", "preprocessor_config.json", "model.safetensors", *_TOKENIZER),
    3_945_000_000,
)
SDXL = Published(
    "stable-diffusion-xl-base-1.0",
    (Source("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),),
    (*_PIPELINE, *_HALF),
    6_940_000_000,
    tiers=("extra",),
)
PUBLISHED = (SD15, CLIP, PICKSCORE, SDXL)
