"""FABRIC's formula, its schedules and its noise: identities that need no network."""

import math

import pytest
import torch
from fabric_reference import obvious_attention

from labkit.fabric import (
    PRESETS,
    FabricError,
    Settings,
    attention_table,
    flat_mass,
    noised_reference,
    pairwise_diversity,
    reference_noise,
    weighted_attention,
)
from labkit.fabric.attention import adain, attend_merged, attention_with_lse, moments, pool_tokens
from labkit.fabric.equations import alpha_bar_at
from labkit.fabric.schedule import depth_ramp, scheduled_weight, step_position, time_position

WEIGHTS = (1e-4, 0.1, 0.8, 1.0, 10.0)


def case(seed=0, rows=3, heads=2, own=10, references=14, d=8, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def draw(b, n):
        return torch.randn(b, heads, n, d, generator=g, dtype=dtype)

    return draw(rows, own), draw(rows, own), draw(rows, own), draw(1, references), draw(1, references)


def weights(w, references=14, dtype=torch.float64):
    return torch.full((references,), w, dtype=dtype)


@pytest.mark.parametrize("w", WEIGHTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_log_bias_and_lse_merge_and_renormalised_probabilities_agree(w, dtype, tolerance):
    for seed, (rows, heads, own, references, d) in enumerate([(3, 2, 10, 14, 8), (1, 1, 1, 1, 4), (2, 4, 64, 192, 24)]):
        parts = case(seed, rows, heads, own, references, d, dtype)
        expected = obvious_attention(*parts, torch.full((references,), w, dtype=dtype))
        each = weights(w, references, dtype)
        assert (weighted_attention(*parts, each) - expected).abs().max() < tolerance
        assert (attend_merged(*parts, each)[0] - expected).abs().max() < tolerance


def test_eq_2_worked_out_by_hand():
    q, k, v = torch.tensor([[2.0]]), torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    k_ref, v_ref = torch.tensor([[0.5]]), torch.tensor([[10.0]])
    e = math.e  # logits 0 and 2 of the own tokens, 1 of the reference; w = 3
    expected = (1 * 1 + e**2 * 2 + 3 * e * 10) / (1 + e**2 + 3 * e)
    assert float(weighted_attention(q, k, v, k_ref, v_ref, 3.0)) == pytest.approx(expected)
    halved = (1 * 1 + e * 2 + 3 * e**0.5 * 10) / (1 + e + 3 * e**0.5)
    assert float(weighted_attention(q, k, v, k_ref, v_ref, 3.0, scale=0.5)) == pytest.approx(halved)


def test_one_weight_for_all_is_the_same_as_one_for_each_and_weight_zero_is_plain_attention():
    parts = case()
    each = torch.full((14,), 0.25, dtype=torch.float64)
    single = [x.float() for x in parts]
    assert torch.equal(weighted_attention(*single, each.float()), weighted_attention(*single, 0.25))
    plain = attention_with_lse(*parts[:3])[0]
    assert (weighted_attention(*parts, 0.0) - plain).abs().max() < 1e-12
    first = [x[:, 0] for x in parts]  # without heads: [B, N, d] and [1, M, d]
    assert (weighted_attention(*first, each) - weighted_attention(*parts, each)[:, 0]).abs().max() < 1e-12


def test_a_reference_token_of_its_own_weight_is_read_with_that_weight():
    q, k, v, k_ref, v_ref = case()
    w = torch.linspace(0.05, 3, 14, dtype=torch.float64)
    expected = obvious_attention(q, k, v, k_ref, v_ref, w)
    assert (weighted_attention(q, k, v, k_ref, v_ref, w) - expected).abs().max() < 1e-12
    assert (attend_merged(q, k, v, k_ref, v_ref, w)[0] - expected).abs().max() < 1e-12
    own, ref = attention_table(q, k, k_ref, w)
    assert (own @ v + ref @ v_ref - expected).abs().max() < 1e-12


def test_an_extra_channel_carries_the_weight_without_a_bias():
    q, k, v, k_ref, v_ref = case()
    scale = q.shape[-1] ** -0.5
    one = torch.ones_like(q[..., :1])
    keys = torch.cat([k, k_ref.expand(3, -1, -1, -1)], 2)
    channel = torch.zeros_like(keys[..., :1])
    channel[:, :, k.shape[2] :] = torch.tensor(0.3).log() / scale
    values = torch.cat([v, v_ref.expand(3, -1, -1, -1)], 2)
    out = torch.nn.functional.scaled_dot_product_attention(
        torch.cat([q, one], -1), torch.cat([keys, channel], -1), torch.nn.functional.pad(values, (0, 1)), scale=scale
    )
    assert (out[..., :-1] - weighted_attention(q, k, v, k_ref, v_ref, weights(0.3))).abs().max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(dtype):
    parts = case(dtype=torch.float32)
    exact = weighted_attention(*parts, weights(0.8, dtype=torch.float32))
    half, w = [x.to(dtype) for x in parts], weights(0.8, dtype=torch.float32)
    for out in (weighted_attention(*half, w), attend_merged(*half, w)[0]):
        assert out.dtype == dtype
        assert (out.float() - exact).abs().max() < 2e-2


def test_gradients_flow_through_both_forms_alike_and_into_everything():
    grads = []
    for attend in (weighted_attention, lambda *a: attend_merged(*a)[0]):
        parts = [x.requires_grad_() for x in (*case(dtype=torch.float32), weights(0.5, dtype=torch.float32))]
        attend(*parts).square().sum().backward()
        grads.append([x.grad for x in parts])
    for one, other in zip(*grads, strict=True):
        assert one.abs().max() > 1e-3
        assert (one - other).abs().max() < 1e-4


def test_effective_attention_is_a_distribution_and_the_output_its_mean():
    q, k, v, k_ref, v_ref = case()
    own, ref = attention_table(q, k, k_ref, weights(0.4))
    assert torch.cat([own, ref], -1).min() >= 0
    assert (own.sum(-1) + ref.sum(-1) - 1).abs().max() < 1e-12
    out, mass = attend_merged(*case(), weights(0.4))
    assert (ref.sum(-1) - mass).abs().max() < 1e-12
    assert (own @ v + ref @ v_ref - out).abs().max() < 1e-12  # so it lies in the convex hull of the values


def test_integer_weight_is_repetition():
    q, k, v, k_ref, v_ref = case()
    weighted = weighted_attention(q, k, v, k_ref, v_ref, weights(3.0))
    repeated = weighted_attention(q, k, v, k_ref.repeat(1, 1, 3, 1), v_ref.repeat(1, 1, 3, 1), weights(1.0, 42))
    assert (weighted - repeated).abs().max() < 1e-12


def test_order_of_references_does_not_matter():
    q, k, v, k_ref, v_ref = case()
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    w = torch.linspace(0.05, 3, 14, dtype=torch.float64)
    permuted = weighted_attention(q, k, v, k_ref[:, :, order], v_ref[:, :, order], w[order])
    assert (permuted - weighted_attention(q, k, v, k_ref, v_ref, w)).abs().max() < 1e-12


def test_mass_grows_with_the_weight_and_its_slope_is_m_times_one_minus_m():
    parts, h = case(), 1e-5
    masses = [attend_merged(*parts, weights(w))[1] for w in (0.01, 0.1, 1.0, 10.0)]
    assert all(bool((a < b).all()) for a, b in zip(masses, masses[1:], strict=False))
    up, down = (attend_merged(*parts, weights(0.5) * math.exp(s * h))[1] for s in (1, -1))
    m = attend_merged(*parts, weights(0.5))[1]
    assert ((up - down) / (2 * h) - m * (1 - m)).abs().max() < 1e-8


def test_limits_of_the_weight_are_own_and_reference_attention():
    q, k, v, k_ref, v_ref = case()
    none = attend_merged(q, k, v, k_ref, v_ref, weights(1e-12))[0]
    every = attend_merged(q, k, v, k_ref, v_ref, weights(1e12))[0]
    assert (none - attention_with_lse(q, k, v)[0]).abs().max() < 1e-8
    folded = attention_with_lse(q, k_ref.expand(3, -1, -1, -1), v_ref.expand(3, -1, -1, -1))[0]
    assert (every - folded).abs().max() < 1e-8


def test_flat_logits_give_the_closed_form_of_the_mass():
    q = torch.zeros(1, 1, 5, 4)
    for w, n in ((0.1, 1), (0.8, 1), (0.8, 4), (0.8, 8), (0.3, 3)):
        x, refs = torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5 * n, 4)
        mass = attend_merged(q, x, x, refs, refs, weights(w, 5 * n, torch.float32))[1]
        assert mass.mean().item() == pytest.approx(flat_mass(w * n), abs=1e-6)
    assert [round(flat_mass(s), 2) for s in (0.1, 0.8, 3.2, 6.4)] == [0.09, 0.44, 0.76, 0.86]


def test_cap_limits_the_mass_and_keeps_what_is_below():
    parts = case()
    free_out, free = attend_merged(*parts, weights(1.0))
    out, mass = attend_merged(*parts, weights(1.0), cap=float(free.median()))
    below = free < free.median()
    assert bool((mass <= free.median()).all()) and below.any()
    assert torch.equal(out[below], free_out[below])
    assert not torch.equal(out[~below], free_out[~below])


def test_adain_takes_mean_and_variance_and_leaves_its_own_alone():
    x, other = case()[0], 3 + 2 * case(seed=1)[0][:1]
    assert (adain(x, *moments(x)) - x).abs().max() < 1e-12
    mean, square = moments(adain(x, *moments(other)))
    assert (mean - moments(other)[0]).abs().max() < 1e-12
    assert (square - moments(other)[1]).abs().max() < 1e-3  # the variance has an epsilon
    assert (adain(7 * x - 5, *moments(other)) - adain(x, *moments(other))).abs().max() < 1e-3


def test_pooling_constant_tokens_with_the_area_as_weight_is_exact():
    q, k, v, *_ = case(own=16)
    constant = torch.randn(1, 2, 1, 8, dtype=torch.float64).expand(1, 2, 16, 8)
    pooled = pool_tokens(constant, (4, 4), 2)
    assert pooled.shape == (1, 2, 4, 8)
    full = weighted_attention(q, k, v, constant, constant, weights(0.5, 16))
    assert (weighted_attention(q, k, v, pooled, pooled, weights(2.0, 4)) - full).abs().max() < 1e-12
    assert pool_tokens(constant, (2, 8), 3) is constant


# ---- schedules ------------------------------------------------------------------------------------------------------


def active_steps(start, end, steps=20):
    return [i for i in range(steps) if step_position(i, steps, start, end) is not None]


def test_boxcar_has_the_official_step_sets():
    counts = [len(active_steps(*w)) for w in ((0, 0.8), (0.33, 0.66), (0, 0.5), (0, 1))]
    assert counts == [17, 7, 11, 20]
    assert active_steps(0.33, 0.66) == list(range(7, 14))
    assert active_steps(0.9, 0.1) == []


def test_training_time_counts_one_step_less_than_step_time():
    timesteps = [i * 50 + 1 for i in range(20)][::-1]
    inside = [t for t in timesteps if time_position(t, 1000, 0, 0.8) is not None]
    assert len(inside) == 16


def test_places_in_the_window_worked_out_by_hand():
    assert [step_position(i, 20, 0.33, 0.66) for i in (6, 7, 10, 13, 14)] == [None, 0.0, 0.5, 1.0, None]
    assert step_position(5, 10, 0.5, 0.5) == 0.0
    places = [time_position(t, 1001, 0.2, 0.8) for t in (800, 650, 200)]
    assert places == pytest.approx([0.0, 0.25, 1.0])
    assert [time_position(t, 1001, 0.2, 0.8) for t in (801, 199)] == [None, None]


def test_shapes_hit_both_ends():
    def weight(u, shape):
        return scheduled_weight(u, max_weight=0.9, min_weight=0.1, shape=shape)

    assert weight(0.0, "boxcar") == weight(1.0, "boxcar") == 0.9
    for shape in ("linear", "cosine"):
        assert weight(0.0, shape) == pytest.approx(0.9)
        assert weight(0.5, shape) == pytest.approx(0.5)
        assert weight(1.0, shape) == pytest.approx(0.1)
    assert weight(None, "linear") == 0.1
    assert scheduled_weight(None, max_weight=0.4, min_weight=0.4, shape="boxcar") == 0.4


def test_depth_ramp_is_flat_by_default_and_reaches_the_scale_in_the_middle():
    assert [depth_ramp(d, 1.0) for d in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]
    assert [depth_ramp(d, 0.5) for d in (0.0, 0.5, 1.0)] == [1.0, 0.75, 0.5]


@pytest.mark.parametrize(
    ("name", "window", "weights", "scale", "clock", "sampling"),
    [
        ("paper", (0, 1), (0.8, 0.8), 0.5, "steps", (20, 6.0, 4, 3)),
        ("paper-preference", (0, 1), (0.1, 0.1), 0.5, "steps", (20, 6.0, 4, 3)),
        ("repo", (0, 0.8), (0.0, 0.3), 0.5, "steps", (20, 6.0, 4, 3)),
        ("repo-first", (0, 1), (0.1, 0.8), 0.5, "steps", (20, 6.0, 4, 3)),
        ("repo-generate", (0.33, 0.66), (0.1, 1.0), 0.5, "steps", (20, 8.0, 1, None)),
        ("repo-single-round", (0.33, 0.66), (0.05, 0.8), 0.5, "steps", (20, 7.0, 4, None)),
        ("repo-notebook", (0, 0.8), (0.0, 0.8), 0.5, "steps", (20, 6.0, 4, None)),
        ("diffusers", (0.33, 0.66), (0.05, 0.8), 0.5, "steps", (20, 7.0, 4, None)),
        ("webui", (0, 0.8), (0.0, 0.8), 0.5, "training", (None, None, None, None)),
        ("comfy", (0, 0.8), (0.0, 1.0), 1.0, "steps", (None, None, None, None)),
        ("linear-decay", (0, 0.8), (0.05, 0.9), 0.0, "steps", (100, 6.0, 1, None)),
    ],
)
def test_presets_are_the_published_settings(name, window, weights, scale, clock, sampling):
    preset = PRESETS[name]
    s = preset.settings
    assert (s.start, s.end, s.min_weight, s.max_weight) == (*window, *weights)
    assert (s.negative_scale, s.clock, s.reference_prompt) == (scale, clock, "")
    assert s.shape == ("linear" if name == "linear-decay" else "boxcar")
    assert (preset.steps, preset.guidance_scale, preset.images, preset.rounds) == sampling


def test_first_release_is_the_papers_constant_weight():
    first, paper = PRESETS["repo-first"].settings, PRESETS["paper"].settings

    def weights(s):
        places = [step_position(i, 20, s.start, s.end) for i in range(20)]
        return [scheduled_weight(u, max_weight=s.max_weight, min_weight=s.min_weight, shape=s.shape) for u in places]

    assert weights(first) == weights(paper) == [0.8] * 20


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_weight": -1}, "at least 0"),
        ({"max_weight": float("nan")}, "at least 0"),
        ({"bottleneck_scale": -2}, "bottleneck_scale is -2, expected a finite number"),
        ({"depths": (0.5, 0.2)}, "smaller one first"),
        ({"shape": "square"}, "boxcar, linear, cosine"),
        ({"end": 1.2}, "0 .pure noise"),
        ({"mass_cap": 0.5}, "backend='lse'"),
        ({"pool": 0}, "pool is 0"),
        ({"noise": "none"}, "step, image"),
    ],
)
def test_bad_settings_say_what_is_expected(bad, message):
    with pytest.raises(FabricError, match=message):
        Settings(**bad)


# ---- diversity ----------------------------------------------------------------------------------------------------


def test_diversity_is_zero_for_copies_and_one_for_orthogonal_features():
    assert pairwise_diversity(torch.ones(4, 7)) == pytest.approx(0, abs=1e-6)
    assert pairwise_diversity(torch.eye(5)) == pytest.approx(1)
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    pairs = [torch.cosine_similarity(features[i], features[j], dim=0) for i in range(4) for j in range(i)]
    assert pairwise_diversity(features) == pytest.approx(float(1 - sum(pairs) / 6), abs=1e-6)


def test_diversity_of_two_pictures_of_any_length_and_precision_by_hand():
    features = torch.tensor([[3.0, 4.0], [0.0, 50.0]])  # cosine 4 / 5
    assert pairwise_diversity(features) == pytest.approx(0.2, abs=1e-6)
    assert pairwise_diversity(-features) == pytest.approx(0.2, abs=1e-6)
    assert pairwise_diversity(torch.tensor([[3.0, 4.0], [-3.0, -4.0]])) == pytest.approx(2)
    wide = torch.full((2, 512), 90.0, dtype=torch.float16)
    wide[1, :256] = 0  # cosine 1 / sqrt 2; a square alone is 8,100, 512 of them overflow float16
    assert pairwise_diversity(wide) == pytest.approx(1 - 0.5**0.5, abs=1e-5)
    with pytest.raises(FabricError, match="^diversity needs at least two images, got 1$"):
        pairwise_diversity(features[:1])


# ---- noise ----------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "DDIMScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerDiscreteScheduler": {},
    "EulerDiscreteScheduler karras": {"use_karras_sigmas": True},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "LCMScheduler": {},
}


def scheduler(name):
    import diffusers

    from labkit.models.sd_layout import SD_SCHEDULE

    return getattr(diffusers, name.split()[0])(**{**SD_SCHEDULE, **SCHEDULERS[name]})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noised_reference_is_what_the_sampler_would_show_the_unet(name):
    if "LMS" in name:
        pytest.importorskip("scipy")
    sampler = scheduler(name)
    sampler.set_timesteps(8)
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 4, 8, 8, generator=g)
    for t in list(dict.fromkeys(sampler.timesteps.tolist()))[:-1]:
        sampler._step_index = None
        at = torch.as_tensor(t, dtype=sampler.timesteps.dtype)
        shown = sampler.scale_model_input(sampler.add_noise(x, noise, at[None]), at)
        assert (noised_reference(x, noise, t, sampler.alphas_cumprod) - shown).abs().max() < 2e-4, t


def test_eq_1_worked_out_by_hand():
    abar, x, noise = torch.tensor([0.96, 0.64, 0.36]), torch.tensor([10.0, 0.0]), torch.tensor([0.0, 10.0])
    assert noised_reference(x, noise, 1, abar).tolist() == pytest.approx([8.0, 6.0])
    sigma = ((0.36 / 0.64) * (0.64 / 0.36)) ** 0.25  # half way between two steps: the geometric mean of their sigmas
    assert alpha_bar_at(1.5, abar) == pytest.approx(1 / (1 + sigma**2))
    assert [alpha_bar_at(t, abar) for t in (-1, 7)] == pytest.approx([0.96, 0.36])


def test_alpha_bar_between_the_first_steps_and_at_both_ends():
    """sigma^2 = 1/9, 1 and 4: alpha_bar = 0.9, 0.5 and 0.2; a quarter of the way is a quarter in log sigma."""
    abar = torch.tensor([0.9, 0.5, 0.2])
    for t, sigma2 in ((0, 1 / 9), (0.25, 9**-0.75), (0.5, 1 / 3), (1, 1.0), (1.75, 4**0.75), (1.999, 4**0.999), (2, 4)):
        assert alpha_bar_at(t, abar) == pytest.approx(1 / (1 + sigma2), rel=1e-6), t
    assert isinstance(alpha_bar_at(1, abar), float)


def test_alpha_bar_is_finite_where_the_schedule_has_no_signal_or_no_noise():
    """By hand: beside an end of 0 or 1, sqrt(alpha_bar) is interpolated; elsewhere log sigma."""
    abar = torch.tensor([1.0, 0.64, 0.36, 0.0])
    values = [alpha_bar_at(t, abar) for t in (0, 0.5, 1, 2, 2.5, 3, 9)]
    assert values == pytest.approx([1.0, 0.9**2, 0.64, 0.36, 0.3**2, 0.0, 0.0])
    assert alpha_bar_at(1.5, abar) == pytest.approx(0.5)  # sigma^2 = 9/16 and 16/9: in the middle 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_noised_reference_keeps_the_precision_of_its_latent(dtype):
    latent, noise = torch.tensor([10.0, 0.0], dtype=dtype), torch.tensor([0.0, 10.0])
    noised = noised_reference(latent, noise, 0, torch.tensor([0.64, 0.36]))
    assert noised.dtype == dtype and noised.tolist() == pytest.approx([8.0, 6.0], rel=5e-3)


def test_noise_and_weights_follow_latents_and_keys_to_their_device():
    """ "meta" stands for an accelerator: tensors without numbers, which mix with no others."""
    latent = torch.ones(4, 8, 8, device="meta")
    assert noised_reference(latent, torch.ones(4, 8, 8), 1, torch.tensor([0.9, 0.5])).device.type == "meta"
    parts = [x.to("meta") for x in case()]
    for w in (0.3, weights(0.3)):
        assert weighted_attention(*parts, w).device.type == "meta"


def test_reference_is_pure_noise_at_the_start_and_clean_at_the_end():
    from labkit.diffusion import sd_alphas_cumprod

    abar = sd_alphas_cumprod()
    assert alpha_bar_at(999, abar) == pytest.approx(float(abar[999]), rel=1e-5)
    assert alpha_bar_at(0, abar) == pytest.approx(float(abar[0]), rel=1e-5)
    assert float(abar[500]) > alpha_bar_at(500.5, abar) > float(abar[501])
    latent, noise = torch.full((4, 64, 64), 3.0), reference_noise("a" * 64, 0, 1.0, (4, 64, 64))
    assert (noised_reference(latent, noise, 0, abar) - latent).abs().mean() < 0.05
    late = noised_reference(latent, noise, 999, abar)
    assert late.mean().item() == pytest.approx(3 * float(abar[999]) ** 0.5, abs=0.03)
    assert late.var().item() == pytest.approx(1 - float(abar[999]), abs=0.03)


def test_reference_noise_depends_on_image_seed_and_timestep_alone():
    state = torch.random.get_rng_state()
    a = reference_noise("0a" * 32, 0, 500.0, (4, 8, 8))
    assert torch.equal(a, reference_noise("0a" * 32, 0, 500.0, (4, 8, 8)))
    others = [("0b" * 32, 0, 500.0), ("0a" * 32, 1, 500.0), ("0a" * 32, 0, 500.5), ("0a" * 32, 0, None)]
    assert not any(torch.equal(a, reference_noise(*other, (4, 8, 8))) for other in others)
    assert torch.equal(state, torch.random.get_rng_state())
