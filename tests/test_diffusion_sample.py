"""The sampler: equals the pipeline, one stream per image, guidance, partial starts, gradients, other schedulers.

Batch size and rounding. The draws are compared bit for bit. Latents after the network are compared with a tolerance of
1e-4: a CPU kernel may sum in another order for another batch size. Measured with random models on a CPU in float32,
batches of 8 against single images: 1e-5 in latents of up to 15 after 4 steps, 3.4e-5 in latents of up to 62 after 20
steps (relative 6e-7), log-probabilities 1.2e-4 of 650. Equal calls, and calls with batch_size=1, agree bit for bit.
"""

import dataclasses

import pytest
import torch

from labkit.diffusion import (
    NFELedger,
    PromptConditions,
    active_adapters,
    add_lora,
    ddim_step,
    encode_images,
    encode_prompts,
    from_pil,
    image_generators,
    initial_latents,
    predict_noise,
    sample,
    sample_latents,
    to_pil,
    unet_output,
    use_adapters,
    v_from_epsilon,
)
from tests.tiny_models import tiny_pipeline, tiny_scheduler

PROMPTS = ["a red hat", "a tall man with glasses", "a red hat"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def latents_of(n: int = 3, seed: int = 0):
    return torch.stack([torch.randn((4, 8, 8), generator=g) for g in image_generators(n, seed)])


def tiny_conditions(n: int):
    return PromptConditions(cond=torch.zeros(n, 5, 32), uncond=torch.zeros(n, 5, 32))


class CountingUNet:
    """Counts rows per U-Net call while open."""

    def __init__(self, pipe):
        self.unet, self.rows = pipe.unet, []

    def __enter__(self):
        self.handle = self.unet.register_forward_hook(lambda module, args, output: self.rows.append(len(output[0])))
        return self.rows

    def __exit__(self, *exception):
        self.handle.remove()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize(
    "options", [{}, {"set_alpha_to_one": True}, {"timestep_spacing": "trailing"}], ids=["sd", "one", "trailing"]
)
def test_equals_the_pipelines_own_call(options, guidance_scale):
    pipe = tiny_pipeline(**options)
    start = latents_of()
    theirs = pipe(
        PROMPTS, latents=start, num_inference_steps=4, guidance_scale=guidance_scale, output_type="latent"
    ).images
    mine = sample_latents(
        pipe, PROMPTS, generators=image_generators(3, 0), latents=start, steps=4, guidance_scale=guidance_scale
    )
    torch.testing.assert_close(mine.latents, theirs, rtol=1e-5, atol=1e-5)
    images = pipe(PROMPTS, latents=start, num_inference_steps=4, guidance_scale=guidance_scale, output_type="pt").images
    again = sample(
        pipe, PROMPTS, generators=image_generators(3, 0), latents=start, steps=4, guidance_scale=guidance_scale
    )
    torch.testing.assert_close(again, images * 2 - 1, rtol=1e-5, atol=1e-5)


def test_equals_the_pipelines_own_call_with_one_generator_per_image_noise_in_every_step_and_negative_prompts(pipe):
    negative = ["blurred", "", "blurred"]
    theirs = pipe(
        PROMPTS,
        negative_prompt=negative,
        generator=image_generators(3, 4),
        num_inference_steps=4,
        guidance_scale=2.0,
        eta=0.8,
        output_type="latent",
    ).images
    mine = sample_latents(
        pipe,
        PROMPTS,
        generators=image_generators(3, 4),
        steps=4,
        guidance_scale=2.0,
        eta=0.8,
        negative_prompts=negative,
    )
    torch.testing.assert_close(mine.latents, theirs, rtol=1e-5, atol=1e-5)


def test_draws_of_an_image_do_not_depend_on_its_neighbours_bitwise(pipe):
    batch = initial_latents(pipe, image_generators(5, 9))
    for i in range(5):
        assert torch.equal(initial_latents(pipe, image_generators(1, 9, first=i))[0], batch[i])
    assert torch.equal(initial_latents(pipe, image_generators(5, 9)[::-1]), batch.flip(0))
    assert not torch.equal(initial_latents(pipe, image_generators(1, 10))[0], batch[1])  # seeds are no offsets


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_alone_equals_the_image_in_a_batch_and_in_chunks(pipe, eta):
    options = {"steps": 4, "guidance_scale": 3.0, "eta": eta}
    batch = sample_latents(pipe, PROMPTS, generators=image_generators(3, 1), **options)
    chunks = sample_latents(pipe, PROMPTS, generators=image_generators(3, 1), batch_size=2, **options)
    torch.testing.assert_close(chunks.latents, batch.latents, **CLOSE)
    for i in range(3):
        alone = sample_latents(pipe, PROMPTS[i], generators=image_generators(1, 1, first=i), **options)
        torch.testing.assert_close(alone.latents[0], batch.latents[i], **CLOSE)
        if eta:
            torch.testing.assert_close(alone.log_probs[0], batch.log_probs[i], rtol=1e-4, atol=1e-2)
    assert (batch.latents[0] - batch.latents[2]).abs().max() > 0.1  # same prompt, other generator: another image


def test_batch_size_one_gives_the_same_bits_whatever_else_is_sampled(pipe):
    options = {"steps": 3, "eta": 1.0, "batch_size": 1}
    together = sample_latents(pipe, PROMPTS, generators=image_generators(3, 1), **options)
    alone = sample_latents(pipe, PROMPTS[1:2], generators=image_generators(1, 1, first=1), **options)
    assert torch.equal(alone.latents[0], together.latents[1])
    assert torch.equal(alone.log_probs[0], together.log_probs[1])


def test_global_random_state_is_neither_used_nor_moved(pipe):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = sample(pipe, "a hat", generators=image_generators(1, 2), steps=2, eta=1.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(sample(pipe, "a hat", generators=image_generators(1, 2), steps=2, eta=1.0), first)


def test_log_probabilities_of_a_trajectory_are_found_again_from_its_states(pipe):
    result = sample_latents(
        pipe, PROMPTS, generators=image_generators(3, 1), steps=4, eta=1.0, guidance_scale=3.0, keep_trajectory=True
    )
    assert result.log_probs.shape == (3, 4) and result.trajectory.shape == (3, 5, 4, 8, 8)
    assert bool(torch.isfinite(result.log_probs).all())
    conditions = encode_prompts(pipe, PROMPTS)
    for i, (t, t_prev) in enumerate(result.timesteps):
        eps = predict_noise(pipe, result.trajectory[:, i], t, conditions, guidance_scale=3.0)
        abar = pipe.scheduler.alphas_cumprod
        _, log_prob = ddim_step(
            eps, t, t_prev, result.trajectory[:, i], abar, eta=1.0, x_prev=result.trajectory[:, i + 1]
        )
        torch.testing.assert_close(log_prob, result.log_probs[:, i], rtol=1e-6, atol=1e-3)


def test_guidance_scale_is_linear_in_the_two_predictions_and_decides_the_number_of_rows(pipe):
    x, conditions = latents_of(), encode_prompts(pipe, PROMPTS)
    predictions = {}
    for scale, rows in ((0.0, 6), (1.0, 3), (3.0, 6)):
        with CountingUNet(pipe) as counted:
            predictions[scale] = predict_noise(pipe, x, 401, conditions, guidance_scale=scale)
        assert counted == [rows]
    expected = predictions[0.0] + 3.0 * (predictions[1.0] - predictions[0.0])
    torch.testing.assert_close(predictions[3.0], expected, rtol=1e-4, atol=1e-5)
    empty = encode_prompts(pipe, [""] * 3)
    torch.testing.assert_close(predictions[0.0], predict_noise(pipe, x, 401, empty), rtol=1e-4, atol=1e-5)


def test_rows_may_have_different_timesteps_under_guidance(pipe):
    x, conditions = latents_of(), encode_prompts(pipe, PROMPTS)
    together = predict_noise(pipe, x, torch.tensor([951, 401, 1]), conditions, guidance_scale=2.0)
    for i, t in enumerate((951, 401, 1)):
        alone = predict_noise(pipe, x[i : i + 1], t, conditions.select([i]), guidance_scale=2.0)
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


def test_the_unconditional_branch_may_run_with_other_adapters():
    pipe, x, scale = tiny_pipeline(), latents_of(), 2.5
    conditions = encode_prompts(pipe, PROMPTS)

    def prediction(g, **options):
        return unet_output(pipe.unet, x, 400, conditions, guidance_scale=g, **options)

    bare, plain = prediction(0.0), prediction(1.0)
    for name in ("negative", "positive"):
        for p in add_lora(pipe.unet, name, seed=0, rank=2):
            p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    with use_adapters(pipe.unet, {"positive": 1.0}), torch.no_grad():
        both = prediction(scale)
        torch.testing.assert_close(prediction(scale, negative_model={"positive": 1.0}), both, **CLOSE)
        with use_adapters(pipe.unet, {"negative": 0.5}):
            uncond = prediction(0.0)
        cond = prediction(1.0)
        with NFELedger(pipe) as ledger:
            got = prediction(scale, negative_model={"negative": 0.5})
        assert ledger.counts.unet_rows == 2 * len(x)
        torch.testing.assert_close(got, uncond + scale * (cond - uncond), **CLOSE)
        assert not torch.allclose(got, both, atol=1e-3)
        torch.testing.assert_close(
            prediction(scale, negative_model=tiny_pipeline().unet), bare + scale * (cond - bare), **CLOSE
        )
        torch.testing.assert_close(prediction(scale, negative_model={}), bare + scale * (cond - bare), **CLOSE)
        assert active_adapters(pipe.unet) == ("positive",)
        images = [
            sample_latents(pipe, PROMPTS, generators=image_generators(3, 0), steps=3, **options).latents
            for options in ({}, {"negative_model": {"positive": 1.0}}, {"negative_model": {"negative": 0.5}})
        ]
    torch.testing.assert_close(images[1], images[0], **CLOSE)
    assert not torch.allclose(images[2], images[0], atol=1e-2)
    assert not torch.allclose(cond, plain, atol=1e-3)


def test_guidance_window_guides_exactly_the_steps_inside(pipe):
    for window, rows in (((0.0, 1.0), [6] * 5), ((0.0, 0.0), [3] * 5), ((0.2, 0.6), [3, 6, 6, 3, 3])):
        with CountingUNet(pipe) as counted:
            sample_latents(pipe, PROMPTS, generators=image_generators(3, 1), steps=5, guidance_window=window)
        assert counted == rows
    unguided = sample_latents(pipe, PROMPTS, generators=image_generators(3, 1), steps=3, guidance_scale=1.0).latents
    closed = sample_latents(pipe, PROMPTS, generators=image_generators(3, 1), steps=3, guidance_window=(0, 0)).latents
    assert torch.equal(unguided, closed)


def test_partial_start_equals_diffusers_img2img(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    pictures = to_pil(torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(3)) * 2 - 1)
    start = encode_images(pipe, from_pil(pictures))
    mine = sample_latents(
        pipe, PROMPTS[:2], generators=image_generators(2, 5), start=start, strength=0.5, steps=6, guidance_scale=2.0
    )
    img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    theirs = img2img(
        PROMPTS[:2],
        image=start,  # latents are passed through
        strength=0.5,
        num_inference_steps=6,
        guidance_scale=2.0,
        generator=image_generators(2, 5),
        output_type="latent",
    ).images
    assert len(mine.timesteps) == 3
    torch.testing.assert_close(mine.latents, theirs, rtol=1e-5, atol=1e-5)


def test_partial_start_keeps_everything_at_strength_zero_and_moves_away_with_strength(pipe):
    start = latents_of()
    distances = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        out = sample_latents(
            pipe, PROMPTS, generators=image_generators(3, 5), start=start, strength=strength, steps=10
        ).latents
        distances.append(float((out - start).norm()))
    assert distances[0] == 0.0
    assert distances == sorted(distances) and distances[1] > 0


def test_own_timesteps_start_and_step_where_they_say(pipe):
    start, noise = latents_of(), latents_of(seed=1)
    seen = []
    out = sample_latents(
        pipe,
        PROMPTS,
        generators=image_generators(3, 1),
        start=start,
        timesteps=[400, 200],
        guidance_scale=1.0,
        callback=lambda step: seen.append((step.index, step.steps, step.timestep)),
    )
    assert out.timesteps == ((400, 200), (200, -1)) and seen == [(0, 2, 400), (1, 2, 200)]
    abar, conditions = pipe.scheduler.alphas_cumprod, encode_prompts(pipe, PROMPTS)
    x = abar[400] ** 0.5 * start + (1 - abar[400]) ** 0.5 * noise
    for t, t_prev in out.timesteps:
        x, _ = ddim_step(predict_noise(pipe, x, t, conditions), t, t_prev, x, abar)
    torch.testing.assert_close(out.latents, x, rtol=1e-5, atol=1e-5)


def test_callback_sees_every_step_of_every_chunk_and_may_replace_latents(pipe):
    steps = []
    sample_latents(
        pipe, PROMPTS, generators=image_generators(3, 1), steps=2, eta=1.0, batch_size=2, callback=steps.append
    )
    assert [(s.first, s.index, len(s.latents)) for s in steps] == [(0, 0, 2), (0, 1, 2), (2, 0, 1), (2, 1, 1)]
    assert all(s.x0.shape == s.prediction.shape == s.latents.shape and len(s.log_prob) == len(s.latents) for s in steps)
    out = sample_latents(
        pipe,
        PROMPTS,
        generators=image_generators(3, 1),
        steps=2,
        callback=lambda s: torch.full_like(s.latents, s.index),
    )
    assert torch.equal(out.latents, torch.ones(3, 4, 8, 8))


def test_conditions_may_be_given_and_may_depend_on_the_timestep(pipe):
    red, blue = encode_prompts(pipe, PROMPTS), encode_prompts(pipe, ["a blue coat"] * 3)
    options = {"generators": image_generators(3, 1), "steps": 3}
    plain = sample_latents(pipe, PROMPTS, **options).latents
    options["generators"] = image_generators(3, 1)
    torch.testing.assert_close(sample_latents(pipe, None, conditions=red, **options).latents, plain, **CLOSE)
    asked = []

    def window(t: int):
        asked.append(t)
        return blue if t >= 300 else red

    mixed = sample_latents(pipe, None, generators=image_generators(3, 1), steps=3, conditions=window, batch_size=2)
    assert asked == [667, 334, 1] * 2
    assert (mixed.latents - plain).abs().max() > 1e-3


def test_prompts_are_encoded_once_each(pipe):
    calls = []
    handle = pipe.text_encoder.register_forward_hook(lambda module, args, output: calls.append(len(output[0])))
    conditions = encode_prompts(pipe, ["a hat", "a coat", "a hat", "a hat"])
    handle.remove()
    assert calls == [2, 2] and len(conditions) == 4  # two distinct prompts and their negatives
    assert torch.equal(conditions.cond[0], conditions.cond[3])
    assert torch.equal(encode_prompts(pipe, ["a coat"]).uncond, encode_prompts(pipe, [""]).cond)


def test_gradients_reach_the_initial_noise_and_checkpointing_gives_the_same(pipe):
    gradients = []
    for checkpoint in (False, True):
        start = latents_of(2).requires_grad_()
        out = sample_latents(
            pipe,
            PROMPTS[:2],
            generators=image_generators(2, 0),
            latents=start,
            steps=3,
            grad_steps=3,
            checkpoint=checkpoint,
        )
        out.latents.square().sum().backward()
        gradients.append(start.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    # against a finite difference along the gradient, float32 and all
    direction = gradients[0] / gradients[0].norm()
    values = [
        sample_latents(
            pipe, PROMPTS[:2], generators=image_generators(2, 0), latents=latents_of(2) + h * direction, steps=3
        )
        .latents.double()
        .square()
        .sum()
        for h in (-1e-2, 1e-2)
    ]
    assert float((values[1] - values[0]) / 2e-2) == pytest.approx(float(gradients[0].norm()), rel=1e-2)


def test_gradients_may_be_limited_to_the_last_steps(pipe):
    weight = pipe.unet.conv_out.weight.requires_grad_()
    try:
        full, last = [], []
        for steps_recorded, store in ((0, None), (1, last), (3, full)):
            out = sample_latents(
                pipe,
                PROMPTS,
                generators=image_generators(3, 0),
                steps=3,
                grad_steps=steps_recorded,
                keep_trajectory=True,
            )
            assert out.latents.requires_grad == (steps_recorded > 0)
            if store is not None:
                store.append(torch.autograd.grad(out.latents.sum(), weight)[0])
        assert not torch.allclose(full[0], last[0])
    finally:
        weight.requires_grad_(False)


def test_sample_returns_clamped_float32_images_without_a_graph(pipe):
    images = sample(pipe, "a hat", generators=image_generators(2, 3), steps=2, grad_steps=2)
    assert images.shape == (2, 3, 64, 64) and images.dtype == torch.float32 and not images.requires_grad
    assert float(images.min()) >= -1 and float(images.max()) <= 1
    assert sample(pipe, "a hat", generators=image_generators(1, 3), steps=1, height=32, width=48).shape == (
        1,
        3,
        32,
        48,
    )


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_other_schedulers_are_stepped_by_their_own_code(pipe, name, batch_size):
    import diffusers

    other = tiny_pipeline()
    other.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    config = dict(other.scheduler.config)
    start = latents_of()
    mine = sample_latents(
        other, PROMPTS, generators=image_generators(3, 0), latents=start, steps=6, batch_size=batch_size
    )
    assert dict(other.scheduler.config) == config and other.scheduler.num_inference_steps is None  # untouched
    theirs = other(PROMPTS, latents=start, num_inference_steps=6, guidance_scale=3.0, output_type="latent").images
    torch.testing.assert_close(mine.latents, theirs, **CLOSE)
    assert mine.log_probs is None


def test_ancestral_noise_comes_from_each_images_generator(pipe):
    from diffusers import EulerAncestralDiscreteScheduler

    other = tiny_pipeline()
    other.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    batch = sample_latents(other, PROMPTS, generators=image_generators(3, 0), steps=4).latents
    alone = sample_latents(other, PROMPTS[1:2], generators=image_generators(1, 0, first=1), steps=4).latents
    torch.testing.assert_close(alone[0], batch[1], rtol=1e-4, atol=1e-3)


def test_partial_start_works_with_another_scheduler(pipe):
    from diffusers import EulerDiscreteScheduler

    other = tiny_pipeline()
    other.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    start = latents_of()
    out = sample_latents(other, PROMPTS, generators=image_generators(3, 0), start=start, strength=0.2, steps=10)
    far = sample_latents(other, PROMPTS, generators=image_generators(3, 0), start=start, strength=0.9, steps=10)
    still = sample_latents(other, PROMPTS, generators=image_generators(3, 0), start=start, strength=0.0, steps=10)
    assert len(out.timesteps) == 2 and torch.equal(still.latents, start)
    assert (out.latents - start).norm() < (far.latents - start).norm()


def test_v_prediction_is_converted():
    pipe = tiny_pipeline(prediction_type="v_prediction")
    x, conditions = latents_of(), encode_prompts(pipe, PROMPTS)
    eps = predict_noise(pipe, x, 401, conditions)
    raw = pipe.unet(x, 401, encoder_hidden_states=conditions.cond).sample
    torch.testing.assert_close(v_from_epsilon(eps, x, 401, pipe.scheduler.alphas_cumprod), raw, rtol=1e-4, atol=1e-5)
    theirs = pipe(PROMPTS, latents=x, num_inference_steps=4, guidance_scale=3.0, output_type="latent").images
    mine = sample_latents(pipe, PROMPTS, generators=image_generators(3, 0), latents=x, steps=4)
    torch.testing.assert_close(mine.latents, theirs, rtol=1e-4, atol=1e-4)


def test_a_bfloat16_unet_keeps_float32_latents_and_the_same_noise():
    pipe = tiny_pipeline()
    exact = sample_latents(pipe, PROMPTS, generators=image_generators(3, 0), steps=4, eta=1.0, keep_trajectory=True)
    pipe.to(torch.bfloat16)
    rough = sample_latents(pipe, PROMPTS, generators=image_generators(3, 0), steps=4, eta=1.0, keep_trajectory=True)
    assert rough.latents.dtype == torch.float32 and rough.log_probs.dtype == torch.float32
    assert torch.equal(rough.trajectory[:, 0], exact.trajectory[:, 0])
    relative = (rough.latents - exact.latents).norm() / exact.latents.norm()
    assert 0 < float(relative) < 0.05


def test_select_keeps_the_fields_together(pipe):
    conditions = encode_prompts(pipe, PROMPTS)
    picked = conditions.select([2, 0])
    assert torch.equal(picked.cond, conditions.cond[[2, 0]]) and picked.pooled is None
    assert {f.name for f in dataclasses.fields(picked)} == {"cond", "uncond", "pooled", "pooled_uncond", "time_ids"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompts": PROMPTS[:2]}, ValueError, "got 2 prompts for 3 generators"),
        ({"negative_prompts": [""]}, ValueError, "got 1 negative prompts for 3 generators"),
        ({"generators": [torch.Generator()] * 3}, ValueError, "same generator was given for several"),
        ({"generators": [1, 2, 3]}, TypeError, "list of torch.Generator"),
        ({"height": 60}, ValueError, "multiples of 8, for example 64x64"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"start": torch.zeros(3, 4, 8, 8), "strength": 1.5}, ValueError, "strength is 1.5"),
        ({"conditions": tiny_conditions(2)}, ValueError, "conditions for 2 images but 3 latents"),
        ({"timesteps": [10, 20]}, ValueError, "must descend"),
        ({"timesteps": [1000, 20]}, ValueError, "timestep 1000"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, ValueError, "got 2 starting latents for 3 generators"),
        ({"latents": torch.zeros(3, 4, 8, 8), "start": torch.zeros(3, 4, 8, 8)}, ValueError, "give one of them"),
        ({"prompts": None}, ValueError, "neither prompts nor conditions"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"prompts": [], "generators": []}, ValueError, "got no images"),
    ],
)
def test_wrong_calls_are_refused(pipe, change, error, message):
    options = {"prompts": PROMPTS, "generators": image_generators(3, 0), "steps": 2} | change
    with pytest.raises(error, match=message):
        sample_latents(pipe, options.pop("prompts"), **options)


@pytest.mark.parametrize("change", [{"eta": 0.5}, {"timesteps": [400, 200]}])
def test_other_schedulers_refuse_what_only_ddim_can_do(change):
    from diffusers import EulerDiscreteScheduler

    pipe = tiny_pipeline()
    for scheduler in (EulerDiscreteScheduler.from_config(pipe.scheduler.config), tiny_scheduler(clip_sample=True)):
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match="needs a DDIMScheduler"):
            sample_latents(pipe, PROMPTS, generators=image_generators(3, 0), steps=2, **change)
