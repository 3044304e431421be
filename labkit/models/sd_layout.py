"""Folders laid out exactly like Stable Diffusion 1.5 and SDXL, with random weights: tests load them for gigabytes.

The module tree is the published one (same blocks, layers, tokenizer format and scheduler, no safety checker), only
narrower; `width="full"` builds the published widths (SD 1.5: 860M-parameter U-Net, 1.1 billion in all). The images are
noise: these folders show that code runs on the real layout, not that it works.

Sources: the config.json files of stable-diffusion-v1-5 and stable-diffusion-xl-base-1.0.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch

from labkit.models.load import quiet

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
FULL_VOCABULARY = 49408
NATIVE_CONTEXT = 77


def clip_vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary in CLIP's order: 256 bytes, the same 256 at a word's end, merges, the two special tokens.

    The merges are pairs of printable characters (arbitrary but fixed: the weights are random anyway).
    Returns (token -> id, merges). Raises ValueError below 514.
    """
    if size < 514:
        raise ValueError(f"vocabulary size is {size}, expected at least 514 (2 x 256 bytes and 2 special tokens)")
    alphabet = list(_byte_characters().values())
    letters = "etaoinshrdlcumwfgypbvkjxqz0123456789-',."
    rest = [c for c in alphabet if c not in letters]
    order = [*letters, *rest]
    pairs = itertools.chain.from_iterable(((a, b), (a, b + "</w>")) for a, b in itertools.product(order, order))
    merges = list(itertools.islice(pairs, size - 514))
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges), BOS, EOS]
    return {token: i for i, token in enumerate(tokens)}, merges


def _byte_characters() -> dict[int, str]:
    """GPT-2's and CLIP's table from bytes to printable characters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def clip_tokenizer(vocabulary: int = 600, context: int = NATIVE_CONTEXT):
    """A `CLIPTokenizer` with `clip_vocabulary` and SD 1.5's special tokens (unknown = padding = end of text)."""
    from transformers import CLIPTokenizer

    vocab, merges = clip_vocabulary(vocabulary)
    special = {"unk_token": EOS, "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context, **special)


def sd15_configs(width: str = "reduced") -> dict[str, dict[str, Any]]:
    """Configurations of unet, vae and text_encoder. "reduced": channels / 10, text width 48, 8x8 latents (64x64)."""
    full = _is_full(width)
    channels = (320, 640, 1280, 1280) if full else (32, 64, 128, 128)
    text = 768 if full else 48
    return {
        "unet": {
            "sample_size": 64 if full else 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "block_out_channels": channels,
            "layers_per_block": 2,
            "cross_attention_dim": text,
            "attention_head_dim": 8,  # historical name: the number of heads
        },
        "vae": _vae_config(full, scaling_factor=0.18215),
        "text_encoder": _text_config(full, hidden=text, heads=12, layers=12),
    }


def sdxl_configs(width: str = "reduced") -> dict[str, dict[str, Any]]:
    """Configurations of unet, vae, text_encoder, text_encoder_2, with SDXL's added size and pooled-text conditions."""
    full = _is_full(width)
    channels = (320, 640, 1280) if full else (32, 64, 128)
    text, text_2 = (768, 1280) if full else (48, 80)
    time_dim = 256 if full else 16
    second = _text_config(full, hidden=text_2, heads=20, layers=32)
    return {
        "unet": {
            "sample_size": 128 if full else 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": channels,
            "layers_per_block": 2,
            "cross_attention_dim": text + text_2,
            "attention_head_dim": (5, 10, 20) if full else (2, 4, 8),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": time_dim,
            "projection_class_embeddings_input_dim": text_2 + 6 * time_dim,  # pooled text and six sizes
        },
        "vae": _vae_config(full, scaling_factor=0.13025) | {"force_upcast": True},
        "text_encoder": _text_config(full, hidden=text, heads=12, layers=12),
        "text_encoder_2": second | {"hidden_act": "gelu", "projection_dim": text_2},
    }


def _is_full(width: str) -> bool:
    if width not in ("reduced", "full"):
        raise ValueError(f"width is {width!r}, expected 'reduced' or 'full'")
    return width == "full"


def _vae_config(full: bool, scaling_factor: float) -> dict[str, Any]:
    return {
        "block_out_channels": (128, 256, 512, 512) if full else (32, 32, 64, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512 if full else 64,
        "scaling_factor": scaling_factor,
    }


def _text_config(full: bool, *, hidden: int, heads: int, layers: int) -> dict[str, Any]:
    vocabulary = FULL_VOCABULARY if full else 600
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads if full else 4,
        "vocab_size": vocabulary,
        "max_position_embeddings": NATIVE_CONTEXT,
        "projection_dim": hidden,
        "hidden_act": "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary
        - 1,  # the published 2 is a historical mistake that takes an old path in transformers
        "pad_token_id": 1,
    }


SD_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


def build_sd15(*, width: str = "reduced", seed: int = 0, dtype: torch.dtype = torch.float32):
    """A `StableDiffusionPipeline` with SD 1.5's module tree, PNDM scheduler and random weights."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = sd15_configs(width)
    return StableDiffusionPipeline(
        unet=_random(lambda: UNet2DConditionModel(**configs["unet"]), seed, dtype),
        vae=_random(lambda: AutoencoderKL(**configs["vae"]), seed + 1, dtype),
        text_encoder=_random(lambda: CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])), seed + 2, dtype),
        tokenizer=clip_tokenizer(configs["text_encoder"]["vocab_size"]),
        scheduler=PNDMScheduler(**SD_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_sdxl(*, width: str = "reduced", seed: int = 0, dtype: torch.dtype = torch.float32):
    """A `StableDiffusionXLPipeline` with SDXL's module tree, Euler scheduler and random weights."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    configs = sdxl_configs(width)
    text_2 = CLIPTextConfig(**configs["text_encoder_2"])
    return StableDiffusionXLPipeline(
        unet=_random(lambda: UNet2DConditionModel(**configs["unet"]), seed, dtype),
        vae=_random(lambda: AutoencoderKL(**configs["vae"]), seed + 1, dtype),
        text_encoder=_random(lambda: CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])), seed + 2, dtype),
        text_encoder_2=_random(lambda: CLIPTextModelWithProjection(text_2), seed + 3, dtype),
        tokenizer=clip_tokenizer(configs["text_encoder"]["vocab_size"]),
        tokenizer_2=clip_tokenizer(configs["text_encoder_2"]["vocab_size"]),
        scheduler=EulerDiscreteScheduler(**SD_SCHEDULE, timestep_spacing="leading"),
        add_watermarker=False,
    )


def write_layout(folder: str | Path, kind: str = "sd15", **options) -> Path:
    """Write a pipeline folder (safetensors) of kind "sd15" or "sdxl"; options as in `build_sd15`. Returns the folder.

    Raises ValueError for another kind and for a folder that is not empty.
    """
    builders = {"sd15": build_sd15, "sdxl": build_sdxl}
    if kind not in builders:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(builders)}")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose a new folder")
    with quiet():
        builders[kind](**options).save_pretrained(str(folder), safe_serialization=True)
    return folder


def _random(build, seed: int, dtype: torch.dtype):
    """Build a model from its own initialiser under a seed of its own; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for parameter in model.parameters():  # zero-initialised layers would hide mistakes: give them small weights
            if parameter.ndim > 1 and not bool(parameter.detach().any()):
                torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(parameter.shape[1]))
        if dtype != torch.float32:
            model.to(dtype)
    return model.eval().requires_grad_(False)
