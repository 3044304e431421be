"""Rectified flow in the shared layer: noise levels, and the sampler on a transformer in Stable Diffusion 3's layout."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tiny_models import seeded, tiny_sd3_pipeline, tiny_text_encoder, tiny_vae

from labkit.diffusion import denoiser_of, encode_prompts, image_generators, sample, sample_latents
from labkit.diffusion.flow import flow_levels, is_flow
from labkit.diffusion.guidance import row_labels, unet_output
from labkit.fabric import FabricError, FeedbackLoop
from labkit.models.sd_layout import clip_tokenizer

PROMPTS = ["prompt 1", "a house"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_sd3_pipeline()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_the_scheduler_s_training_timesteps_from_clean_to_noise(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    levels = flow_levels(scheduler)
    torch.testing.assert_close(levels, scheduler.sigmas.flip(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(1000 * levels, scheduler.timesteps.flip(0), rtol=0, atol=1e-4)
    assert levels[-1] == 1.0 and 0 < levels[0] < 0.004 and bool((levels.diff() > 0).all())
    assert levels[499] == pytest.approx(0.5 if shift == 1.0 else 0.75)  # 3 * 0.5 / (1 + 2 * 0.5)
    scheduler.set_timesteps(7)
    assert torch.equal(flow_levels(scheduler), levels)


def test_what_is_no_flow_is_refused_and_other_solvers_of_flows_are_known():
    other = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    assert is_flow(other) and flow_levels(other)[499] == pytest.approx(0.75)
    moving = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    assert flow_levels(moving)[499] == pytest.approx(0.5)  # its shift is known with the picture's size only
    for scheduler in (DDIMScheduler(), FlowMatchEulerDiscreteScheduler(invert_sigmas=True)):
        assert not is_flow(scheduler)
        with pytest.raises(ValueError, match="no schedule of flow matching"):
            flow_levels(scheduler)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_sampler_draws_what_the_pipeline_draws(pipe, guidance):
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"negative_prompt": ["a tree", "blue"]} if guidance > 1 else {}
    theirs = pipe(
        PROMPTS, latents=start, num_inference_steps=3, guidance_scale=guidance, output_type="latent", **options
    ).images
    ours = sample_latents(
        pipe, PROMPTS, generators=image_generators(2, 0), latents=start, steps=3, guidance_scale=guidance,
        negative_prompts=["a tree", "blue"],
    )  # fmt: skip
    torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=1e-5)
    assert [t for t, _ in ours.timesteps] == [1000, 751, 8]  # from 1 to 0.003 in even steps, bent by a shift of 3
    assert (theirs - start).abs().max() > 0.1 and ours.log_probs is None


def test_images_are_decoded_with_the_vae_s_shift_and_do_not_depend_on_their_neighbours(pipe):
    both = sample(pipe, PROMPTS, generators=image_generators(2, 5), steps=2)
    alone = sample(pipe, PROMPTS[1], generators=image_generators(1, 5, first=1), steps=2)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)
    generators = image_generators(2, 5)
    theirs = pipe(PROMPTS, generator=generators, num_inference_steps=2, guidance_scale=3.0, output_type="pt").images
    torch.testing.assert_close(both / 2 + 0.5, theirs, rtol=0, atol=1e-5)
    assert both.shape == (2, 3, 64, 64)


def test_a_partial_start_lies_on_the_straight_path(pipe):
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    result = sample_latents(
        pipe, ["a"], generators=image_generators(1, 0), steps=4, start=clean, strength=0.5, keep_trajectory=True
    )
    noise = torch.randn(4, 8, 8, generator=image_generators(1, 0)[0])
    third = 1 - 2 / 3 * (1 - 3 * 0.001 / 1.002)  # of four even steps down to the smallest sigma
    sigma = 3 * third / (1 + 2 * third)  # bent by the shift
    assert [t for t, _ in result.timesteps] == [int(1000 * sigma), 8]
    torch.testing.assert_close(result.trajectory[0, 0], (1 - sigma) * clean[0] + sigma * noise, rtol=0, atol=1e-3)
    same = sample_latents(pipe, ["a"], generators=image_generators(1, 0), steps=4, start=clean, strength=0.0)
    assert torch.equal(same.latents, clean)


def test_rows_are_labelled_and_both_texts_reach_the_transformer(pipe):
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: seen.append((row_labels(), k)), with_kwargs=True
    )
    conditions = encode_prompts(pipe, PROMPTS)
    unet_output(pipe.transformer, torch.zeros(2, 4, 8, 8), torch.tensor(700.0), conditions, guidance_scale=2.0)
    handle.remove()
    labels, call = seen[0]
    assert labels == ("uncond", "uncond", "cond", "cond") and call["timestep"].tolist() == [700.0] * 4
    assert torch.equal(call["encoder_hidden_states"][2:], conditions.cond)
    assert torch.equal(call["pooled_projections"][:2], conditions.pooled_uncond)
    assert conditions.time_ids is None and not torch.equal(conditions.pooled[0], conditions.pooled[1])


def test_wrong_sizes_shifts_and_layouts_are_refused_in_one_line(pipe):
    generators = image_generators(1, 0)

    def refused(match, pipe=pipe, **options):
        with pytest.raises(ValueError, match=match) as error:
            sample(pipe, ["a"], generators=generators, steps=2, **options)
        assert "\n" not in str(error.value)

    refused("multiples of 16", height=72, width=64)
    refused("needs a DDIMScheduler", eta=1.0)
    moving = tiny_sd3_pipeline()
    moving.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    refused("depend on the size of the picture", moving)
    flux = flux_pipeline()
    refused("FluxPipeline calls FluxTransformer2DModel, expected a U-Net or an SD3Transformer2DModel", flux)
    with pytest.raises(ValueError, match="calls NoneType"):
        denoiser_of(object())


def flux_pipeline():
    sizes = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": (4, 6, 6)}
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    pipe = FluxPipeline(
        transformer=seeded(lambda: FluxTransformer2DModel(**sizes, **heads), 5),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=clip_tokenizer(514, 16),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---- rounds of feedback --------------------------------------------------------------------------------------------


def test_rounds_of_feedback_are_the_pipeline_s_own_pictures_and_without_a_call_one_line_says_so(pipe):
    options = {"images": 2, "steps": 2, "guidance_scale": 3.0, "seed": 3, "end": 1.0}
    loop = FeedbackLoop(pipe, "a house", call={}, **options)
    first = loop.generate()
    plain = sample(pipe, "a house", generators=image_generators(2, 3), steps=2, guidance_scale=3.0)
    assert (first - plain).abs().max() <= 1 / 127.5 / 2 + 1e-5  # rounded to 8 bit
    loop.feedback(liked=[1], disliked=[0])
    second = loop.generate()
    again = FeedbackLoop(pipe, "a house", call={}, **options)
    again.generate()
    assert (second - again.generate()).abs().max() > 2 / 127.5  # the same noise without feedback
    for one in (pipe, flux_pipeline()):
        with pytest.raises(FabricError, match=r"has no U-Net.*give call=\{\}") as error:
            FeedbackLoop(one, "a house", **options)
        assert "\n" not in str(error.value)
