"""Tiny random diffusers models for tests: the real classes and the real module names, milliseconds per call."""

from __future__ import annotations

import torch

from labkit.models.sd_layout import SD_SCHEDULE, clip_tokenizer

CONTEXT = 16
TEXT_WIDTH = 32


def seeded(build, seed: int):
    """Build a model under a seed of its own, every zero-initialised matrix made non-zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for parameter in model.parameters():
            if parameter.ndim > 1 and not bool(parameter.detach().any()):
                torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def tiny_unet(seed: int = 0, sample_size: int = 8):
    """Self- and cross-attention at 8x8, plain blocks at 4x4; 4 latent channels."""
    from diffusers import UNet2DConditionModel

    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 32),
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        seed,
    )


def tiny_vae(seed: int = 1):
    """f = 8 (four levels), 4 latent channels, scaling factor 0.5 (unlike any real one, so that forgetting it shows)."""
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,
            sample_size=64,
        ),
        seed,
    )


def tiny_text_encoder(seed: int = 2):
    """Two CLIP layers of width 32, context 16, the 514-token vocabulary of `clip_tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=514,
        max_position_embeddings=CONTEXT,
        projection_dim=TEXT_WIDTH,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=1,
    )
    return seeded(lambda: CLIPTextModel(config), seed)


def tiny_scheduler(**options):
    """SD's DDIM scheduler; options override its configuration."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**({**SD_SCHEDULE, "set_alpha_to_one": False, "clip_sample": False} | options))


def tiny_pipeline(seed: int = 0, **scheduler_options):
    """A complete StableDiffusionPipeline: 64x64 images, 8x8x4 latents, about 0.2 million parameters."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        unet=tiny_unet(seed),
        vae=tiny_vae(seed + 1),
        text_encoder=tiny_text_encoder(seed + 2),
        tokenizer=clip_tokenizer(514, CONTEXT),
        scheduler=tiny_scheduler(**scheduler_options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl_pipeline(seed: int = 0):
    """A complete StableDiffusionXLPipeline of the same sizes: pooled text and six size numbers beside the text."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    first = tiny_text_encoder(seed + 2)
    second = seeded(lambda: CLIPTextModelWithProjection(first.config), seed + 3)
    config = {name: value for name, value in tiny_unet(seed).config.items() if not name.startswith("_")} | {
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 8,
    }
    pipe = StableDiffusionXLPipeline(
        unet=seeded(lambda: UNet2DConditionModel(**config), seed),
        vae=tiny_vae(seed + 1),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=clip_tokenizer(514, CONTEXT),
        tokenizer_2=clip_tokenizer(514, CONTEXT),
        scheduler=tiny_scheduler(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd3_pipeline(seed: int = 0, shift: float = 3.0):
    """A complete StableDiffusion3Pipeline without T5, as many run it: 64x64 images, 8x8x4 latents, SD3.5's second
    attention in the first block, a VAE with a shift."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    config = tiny_text_encoder().config
    first, second = (seeded(lambda: CLIPTextModelWithProjection(config), seed + i) for i in (2, 3))
    vae = tiny_vae(seed + 1)
    vae.register_to_config(shift_factor=0.1)
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "pos_embed_max_size": 12}
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "caption_projection_dim": 32}
    text = {"joint_attention_dim": 2 * TEXT_WIDTH, "pooled_projection_dim": 2 * TEXT_WIDTH}
    own = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    pipe = StableDiffusion3Pipeline(
        transformer=seeded(lambda: SD3Transformer2DModel(**sizes, **heads, **text, **own), seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae,
        text_encoder=first,
        tokenizer=clip_tokenizer(514, CONTEXT),
        text_encoder_2=second,
        tokenizer_2=clip_tokenizer(514, CONTEXT),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
