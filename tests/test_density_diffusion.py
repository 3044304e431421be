"""Perturbed noise, candidates of a pipeline, weighted fine-tuning; and all three on the full layout of SD 1.5."""

import copy

import pytest
import torch
from tiny_models import tiny_pipeline

from labkit.density import (
    BudgetExhausted,
    CandidateStream,
    PseudoDensity,
    fine_tune,
    fit_mlp,
    importance_sample,
    perturb,
    training_weights,
)
from labkit.diffusion import (
    AdapterError,
    adapter_names,
    encode_images,
    encode_prompts,
    image_generators,
    sample,
)
from labkit.metrics.extractors import clip_extractor
from labkit.models import load_clip, load_pipeline
from labkit.models.sd_layout import write_layout
from labkit.portraits import render_tensor, sample_specs


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ring(n, seed=0):
    """A ring of eight tight modes; the density between them is smooth at the scale of a perturbation."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator) * (torch.pi / 4)
    centre = 2 * torch.stack([angle.cos(), angle.sin()], 1).double()
    return centre + 0.2 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def test_the_sign_method_reaches_the_corner_of_the_box_under_a_linear_score():
    g, z = randn(3, 4, seed=1), randn(3, 4)

    def score(x):
        return (x * g).sum(1)

    up = perturb(score, z, exact=score, direction="up", eps=0.1, step_size=0.04, steps=3)  # ceil(eps / step) = 3
    torch.testing.assert_close(up.z, z + 0.1 * g.sign(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(up.after - up.before, 0.1 * g.abs().sum(1), rtol=1e-9, atol=1e-12)
    down = perturb(score, z, exact=score, direction="down", eps=0.1, step_size=0.04, steps=3)
    torch.testing.assert_close(down.delta, -up.delta)
    assert up.climbed.shape == (4, 3) and bool((up.climbed.diff(dim=0) > 0).all())


@pytest.mark.parametrize("method", ["sign", "gradient", "random"])
def test_the_change_stays_in_the_box_and_the_input_is_not_touched(method):
    z, g = randn(4, 2, 3, 3), 100 * randn(4, 2, 3, 3, seed=1)
    kept = z.clone()

    def score(x):
        return (x * g).sum((1, 2, 3))

    generator = torch.Generator().manual_seed(0)
    got = perturb(score, z, exact=score, direction="up", eps=0.2, step_size=0.15, method=method, generator=generator)
    assert float(got.delta.abs().max()) <= 0.2 and torch.equal(z, kept) and not got.z.requires_grad
    still = perturb(score, z, exact=score, direction="up", eps=0.0, method=method, generator=generator)
    assert torch.equal(still.z, z) and torch.equal(still.before, still.after)


def test_the_raw_gradient_method_takes_steps_proportional_to_the_gradient():
    g, z = randn(2, 3, seed=1), randn(2, 3)
    got = perturb(
        lambda x: (x * g).sum(1), z, exact=lambda x: (x * g).sum(1), direction="up", eps=10.0, steps=2, step_size=0.1,
        method="gradient",
    )  # fmt: skip
    torch.testing.assert_close(got.delta, 0.2 * g)


def test_the_exact_density_rises_and_falls_where_the_score_is_the_density_itself():
    density = PseudoDensity(k=10).fit(ring(1500))
    z = ring(60, seed=5) + 0.5 * randn(60, 2, seed=6)
    up, down = (perturb(density.soft_score, z, exact=density.score, direction=d, eps=0.1) for d in ("up", "down"))
    assert float((up.after > up.before).double().mean()) >= 0.95
    assert float((down.after < down.before).double().mean()) >= 0.95
    torch.testing.assert_close(up.before, density.score(z))
    torch.testing.assert_close(up.after, density.score(up.z))
    control = perturb(
        density.soft_score, z, exact=density.score, direction="up", eps=0.1, method="random", keep="last",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert float((control.after / control.before).log().mean()) < 0.2 * float((up.after / up.before).log().mean())


def test_a_step_that_jumps_over_the_maximum_is_not_kept():
    """|x| has its minimum between the iterates: from 0.03 steps of 0.05 go to -0.02, 0.03, -0.02, ..."""
    z = torch.tensor([[0.03], [1.0]], dtype=torch.float64)

    def run(keep):
        options = {"direction": "down", "eps": 0.5, "step_size": 0.05, "steps": 4, "keep": keep}
        return perturb(lambda x: x.abs().sum(1), z, exact=lambda x: x.abs().sum(1), **options)

    best, last = run("best"), run("last")
    torch.testing.assert_close(best.after, torch.tensor([0.02, 0.8], dtype=torch.float64))
    torch.testing.assert_close(last.after, torch.tensor([0.03, 0.8], dtype=torch.float64))
    assert best.kept.tolist() == [1, 4] and last.kept.tolist() == [4, 4]
    torch.testing.assert_close(best.promised, best.after)
    worse = perturb(lambda x: -x.sum(1), z, exact=lambda x: x.sum(1), direction="down", eps=0.0)
    assert worse.kept.tolist() == [0, 0]  # no gain: the start stays


def test_the_mlp_promises_more_than_the_exact_density_keeps():
    """Far from the reals the network extrapolates: the judge is the exact density, and it is recorded."""
    density = PseudoDensity(k=10).fit(ring(400))
    scorer = fit_mlp(density, generator=torch.Generator().manual_seed(0), epochs=10, widths=(32,))
    z = 6 + randn(40, 2, seed=3)
    got = perturb(scorer.soft_score, z, exact=density.score, direction="down", eps=3.0)
    torch.testing.assert_close(got.after, density.score(got.z))
    assert float((got.climbed[-1] / got.after).log().abs().max()) > 0.1
    assert all(p.grad is None for p in scorer.network.parameters())


def test_perturbation_refuses_nonsense():
    def score(x):
        return x.sum(1)

    z = randn(2, 3)
    with pytest.raises(ValueError, match="direction is 'higher'"):
        perturb(score, z, exact=score, direction="higher")
    with pytest.raises(ValueError, match="method is 'fgsm'"):
        perturb(score, z, exact=score, direction="up", method="fgsm")
    with pytest.raises(ValueError, match="keep is 'first'"):
        perturb(score, z, exact=score, direction="up", keep="first")
    with pytest.raises(ValueError, match="must not be negative"):
        perturb(score, z, exact=score, direction="up", eps=-0.1)
    with pytest.raises(ValueError, match="pass generator="):
        perturb(score, z, exact=score, direction="up", method="random")
    with pytest.raises(ValueError, match="does not depend on z"):
        perturb(lambda x: torch.ones(2), z, exact=score, direction="up")
    with pytest.raises(ValueError, match="must be 2 finite numbers"):
        perturb(lambda x: x.sum(), z, exact=score, direction="up")


# ---- pipelines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def pooled(images):
    """A differentiable extractor: 4x4 mean colours, [B, 48]."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def test_a_candidate_depends_on_its_number_alone(pipe):
    stream = CandidateStream(pipe, ["a cat", "a dog"], seed=3, steps=2)
    together, alone = stream(0, 4), stream(3, 1)
    torch.testing.assert_close(together[3:], alone, rtol=1e-4, atol=1e-4)
    theirs = sample(pipe, "a dog", generators=image_generators(1, 3, first=3), steps=2)
    torch.testing.assert_close(alone, theirs, rtol=1e-4, atol=1e-4)
    warm = CandidateStream(pipe, "a cat", seed=3, steps=2, noise_scale=0.5)
    torch.testing.assert_close(warm.noise(0, 2), 0.5 * stream.noise(0, 2))


def test_images_from_noise_are_the_images_of_the_stream_and_have_gradients(pipe):
    stream = CandidateStream(pipe, "a cat", seed=0, steps=2)
    z = stream.noise(0, 2).requires_grad_(True)
    images = stream.images(z, 0)
    torch.testing.assert_close(images, stream(0, 2), rtol=1e-4, atol=1e-4)
    images.sum().backward()
    assert float(z.grad.abs().sum()) > 0 and all(p.grad is None for p in pipe.unet.parameters())


def test_perturbing_a_sampler_raises_the_exact_density_of_most_images(pipe):
    stream = CandidateStream(pipe, "a cat", seed=0, steps=2)
    density = PseudoDensity(k=3).fit(pooled(stream(100, 16)))
    got = perturb(
        stream.scorer(pooled, density.soft_score, 0), stream.noise(0, 4),
        exact=stream.judge(lambda images: density.score(pooled(images)), 0), direction="up", steps=3,
    )  # fmt: skip
    assert int((got.after > got.before).sum()) >= 3
    torch.testing.assert_close(got.before, density.score(pooled(stream(0, 4))), rtol=1e-4, atol=1e-5)


def training_set(pipe, n=12):
    images = torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return encode_images(pipe, images), encode_prompts(pipe, ["a cat", "a dog"] * (n // 2))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_fine_tuning_changes_the_pipeline_only_where_it_is_applied(pipe, mode):
    latents, conditions = training_set(pipe)
    before = {name: p.clone() for name, p in pipe.unet.state_dict().items()}
    stream = CandidateStream(pipe, "a cat", seed=0, steps=2)
    plain, unet = stream(0, 1), pipe.unet
    run = fine_tune(
        pipe, latents, conditions, weights=torch.ones(12), steps=2, seed=0, mode=mode, batch=4, learning_rate=1e-2
    )
    with run.applied(pipe):
        inside = stream(0, 1)
    assert float((inside - plain).abs().max()) > 1e-4
    assert pipe.unet is unet and adapter_names(pipe.unet) == () and torch.equal(stream(0, 1), plain)
    after = pipe.unet.state_dict()
    assert set(before) == set(after) and all(torch.equal(p, after[name]) for name, p in before.items())
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    assert len(run.losses) == 2 and int(run.drawn.sum()) == 8


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [5.0, None])
def test_two_steps_of_fine_tuning_are_those_computed_by_hand(prediction_type, snr_gamma):
    """Draws by the weights, noise of each draw's own timestep, min-SNR weight of that timestep, clipped Adam steps."""
    pipe = tiny_pipeline(prediction_type=prediction_type)
    latents, conditions = training_set(pipe)
    latents = 5 * latents  # a gradient norm above 1, so that clipping shows
    weights = torch.tensor([0, 3, 1, 0, 6, 0.5, 0, 2, 0, 0, 1, 4])  # sum 17.5
    run = fine_tune(
        pipe, latents, conditions, weights=weights, steps=2, seed=3, mode="full", batch=5, learning_rate=2e-3,
        dropout=0.5, snr_gamma=snr_gamma,
    )  # fmt: skip

    draws, noises = image_generators(2, 3)
    unet = copy.deepcopy(pipe.unet).requires_grad_(True)
    drawn, first = torch.zeros(12, dtype=torch.long), {}
    clear = {name: torch.ones_like(p, dtype=torch.bool) for name, p in unet.named_parameters()}
    for step in range(2):
        u = torch.rand(5, generator=draws, dtype=torch.float64)
        index = (u[:, None] >= weights.double().cumsum(0) / 17.5).sum(1)  # [5] inverse of the cumulative sum
        t = torch.randint(1000, (5,), generator=noises)
        noise = torch.randn(5, 4, 8, 8, generator=noises)
        empty = torch.rand(5, generator=noises) < 0.5
        assert len(index.unique()) > 2 and len(t.unique()) == 5 and 0 < int(empty.sum()) < 5  # nothing is symmetric
        drawn += torch.bincount(index, minlength=12)

        alpha_bar = pipe.scheduler.alphas_cumprod[t].view(5, 1, 1, 1)
        x_t = alpha_bar.sqrt() * latents[index] + (1 - alpha_bar).sqrt() * noise
        rows = zip(index, empty, strict=True)
        text = torch.stack([conditions.uncond[0] if none else conditions.cond[i] for i, none in rows])
        epsilon = unet(x_t, t, encoder_hidden_states=text).sample
        if prediction_type == "v_prediction":
            epsilon = alpha_bar.sqrt() * epsilon + (1 - alpha_bar).sqrt() * x_t
        snr = (alpha_bar / (1 - alpha_bar)).flatten()
        scale = torch.ones(5) if snr_gamma is None else torch.minimum(snr, torch.tensor(5.0)) / snr
        loss = sum(scale[i] * (epsilon[i] - noise[i]).square().mean() for i in range(5)) / 5
        assert run.losses[step] == pytest.approx(float(loss.detach()), rel=1e-4)

        unet.zero_grad()
        loss.backward()
        norm = float(torch.cat([p.grad.flatten() for p in unet.parameters()]).norm())
        assert norm > 1.05 or prediction_type == "v_prediction"  # there the gradient is small
        with torch.no_grad():
            for name, p in unet.named_parameters():
                clear[name] &= p.grad.abs() > 1e-5  # below, the direction is rounding
                g = p.grad * min(1.0, 1 / norm)
                if step == 0:
                    first[name], direction = g, g / (g.abs() + 1e-8)  # Adam: m = 0.1 g and v = 0.001 g^2, corrected
                else:
                    m = (0.9 * 0.1 * first[name] + 0.1 * g) / (1 - 0.9**2)
                    v = (0.999 * 0.001 * first[name] ** 2 + 0.001 * g**2) / (1 - 0.999**2)
                    direction = m / (v.sqrt() + 1e-8)
                p -= 2e-3 * direction
    assert torch.equal(run.drawn, drawn)
    compared = 0
    for (name, want), after in zip(unet.named_parameters(), run.unet.parameters(), strict=True):
        rows = clear[name]
        torch.testing.assert_close(after[rows], want.detach()[rows], rtol=0, atol=4e-5)
        compared += int(rows.sum())
    assert compared > 0.7 * sum(p.numel() for p in unet.parameters())


def test_training_lowers_the_loss_and_draws_what_the_weights_say(pipe):
    latents, conditions = training_set(pipe)
    weights = training_weights(torch.arange(12.0).double(), threshold=7.5, ratio=1e9)
    run = fine_tune(pipe, latents, conditions, weights=weights, steps=8, seed=0, mode="full", batch=4, snr_gamma=None)
    assert sum(run.losses[-3:]) < sum(run.losses[:3])
    assert int(run.drawn[:8].sum()) == 0 and int(run.drawn[8:].sum()) == 32


def test_the_control_shares_noise_and_timesteps_with_the_weighted_run(pipe):
    latents, conditions = training_set(pipe)
    typical = training_weights(torch.arange(12.0), threshold=5.5, ratio=20.0)
    control, again, skewed = (
        fine_tune(pipe, latents, conditions, weights=weights, steps=2, seed=4, batch=4)
        for weights in (torch.ones(12), torch.ones(12), typical)
    )
    assert again.losses == control.losses and skewed.losses != control.losses
    assert all(torch.equal(a, again.adapter[name]) for name, a in control.adapter.items())


def test_fine_tuning_refuses_sets_that_do_not_fit_and_cleans_up(pipe):
    latents, conditions = training_set(pipe)
    with pytest.raises(ValueError, match="got 12 latents, 12 conditions, 3 weights"):
        fine_tune(pipe, latents, conditions, weights=torch.ones(3), steps=1, seed=0)
    with pytest.raises(ValueError, match="mode is 'dreambooth'"):
        fine_tune(pipe, latents, conditions, weights=torch.ones(12), steps=1, seed=0, mode="dreambooth")
    with pytest.raises(ValueError, match="at least 1"):
        fine_tune(pipe, latents, conditions, weights=torch.ones(12), steps=0, seed=0)
    with pytest.raises(AdapterError, match="not finite"):
        fine_tune(pipe, latents * float("nan"), conditions, weights=torch.ones(12), steps=1, seed=0)
    assert adapter_names(pipe.unet) == ()


def test_all_three_methods_run_on_the_full_layout_of_sd15(tmp_path):
    """One accept/reject batch, one perturbation step and one weighted fine-tuning step, as on the gpu tier."""
    pipe = load_pipeline("gpu", device="cpu", folder=write_layout(tmp_path / "model"))
    clip = load_clip("cpu")
    extract = clip_extractor(clip=clip)
    stream = CandidateStream(pipe, "a cat", seed=0, steps=1, guidance_scale=5.0)
    real = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    density = PseudoDensity(k=3).fit(extract(real), fingerprint=extract.fingerprint)

    def score(images):
        return density.score(extract(images), fingerprint=extract.fingerprint)

    tau = float(score(stream(0, 6)).median())
    try:
        kept = importance_sample(
            stream, score, n=2, threshold=tau, ratio=2.0, budget=6, generator=torch.Generator().manual_seed(0)
        )
    except BudgetExhausted as error:
        kept = error.selection
    torch.testing.assert_close(score(kept.samples), kept.scores, rtol=1e-5, atol=0)
    assert 0 < len(kept.samples) <= 2 and kept.calls <= 6

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (clip[1].mean, clip[1].std))
    got = perturb(
        stream.scorer(lambda x: extract.network(((x + 1) / 2 - mean) / std), density.soft_score, 0), stream.noise(0, 1),
        exact=stream.judge(score, 0), direction="up", steps=1,
    )  # fmt: skip
    assert float(got.delta.abs().max()) == pytest.approx(0.025) and float(got.after) != float(got.before)

    with torch.no_grad():
        latents, conditions = encode_images(pipe, real[:4]), encode_prompts(pipe, ["a cat"] * 4)
    weights = training_weights(density.rho[:4], threshold=density.threshold(0.5), ratio=33.0)
    run = fine_tune(pipe, latents, conditions, weights=weights, steps=1, seed=0, batch=2, snr_gamma=None)
    assert len(run.losses) == 1 and len(run.adapter) == 256
    with run.applied(pipe):
        assert bool(torch.isfinite(stream(0, 1)).all())


def test_portrait_sd_s_typical_and_rare_portraits_lie_on_the_right_sides():
    """The shipped models: accept/reject with the CLIP density orders the images as the densities say."""
    pipe, extract = load_pipeline("cpu"), clip_extractor()
    real = render_tensor(sample_specs(50, seed=5))
    density = PseudoDensity(k=5).fit(extract(real))
    stream = CandidateStream(pipe, "a portrait of a person", seed=1, steps=3)
    rho = density.score(extract(stream(0, 8)))
    tau = float(rho.median())
    kept = {
        ratio: importance_sample(
            stream, lambda x: density.score(extract(x)), n=3, threshold=tau, ratio=ratio, budget=8,
            generator=torch.Generator().manual_seed(0), batch=8,
        ).scores
        for ratio in (1e9, 1e-9)
    }  # fmt: skip
    assert float(kept[1e9].min()) > tau >= float(kept[1e-9].max())
