"""The DDIM step as a Gaussian: same numbers as diffusers, the right density, finite at the last step."""

import math

import pytest
import torch

from labkit.diffusion import (
    add_noise,
    ddim_mean_sigma,
    ddim_step,
    ddim_timesteps,
    density_sigma,
    gaussian_log_prob,
    image_generators,
    log_prob_ratio,
    predict_x0,
    sd_alphas_cumprod,
    step_kl,
)
from tests.tiny_models import tiny_scheduler

ABAR = sd_alphas_cumprod()
SHAPE = (3, 4, 8, 8)


def normal(seed: int, shape=SHAPE, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"set_alpha_to_one": True},
        {"steps_offset": 0},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
    ],
    ids=["sd", "alpha_to_one", "offset_0", "trailing", "linspace"],
)
def test_every_step_equals_diffusers(options, eta):
    scheduler = tiny_scheduler(**options)
    for steps in (1, 3, 20):
        scheduler.set_timesteps(steps)
        pairs = ddim_timesteps(scheduler, steps)
        assert [t for t, _ in pairs] == scheduler.timesteps.tolist()
        for i, (t, t_prev) in enumerate(pairs):
            eps, x_t, noise = normal(3 * i), normal(3 * i + 1), normal(3 * i + 2)
            theirs = scheduler.step(eps, t, x_t, eta=eta, variance_noise=noise if eta else None)
            mine, log_prob = ddim_step(
                eps,
                t,
                t_prev,
                x_t,
                ABAR,
                eta=eta,
                noise=noise,
                final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
            )
            torch.testing.assert_close(mine, theirs.prev_sample, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(predict_x0(x_t, eps, t, ABAR), theirs.pred_original_sample, rtol=1e-6, atol=1e-6)
            assert (log_prob is None) if eta == 0 else bool(torch.isfinite(log_prob).all())


def test_log_probability_is_that_of_torchs_normal_distribution_summed_over_elements():
    eps, x_t, noise = normal(0, dtype=torch.float64), normal(1, dtype=torch.float64), normal(2, dtype=torch.float64)
    x_prev, log_prob = ddim_step(eps, 401, 351, x_t, ABAR, eta=0.7, noise=noise)
    mean, sigma = ddim_mean_sigma(eps, 401, 351, x_t, ABAR, eta=0.7)
    reference = torch.distributions.Normal(mean, sigma.expand_as(mean)).log_prob(x_prev).flatten(1).sum(1)
    torch.testing.assert_close(log_prob, reference, rtol=1e-12, atol=1e-9)
    single, log_prob_32 = ddim_step(eps.float(), 401, 351, x_t.float(), ABAR, eta=0.7, noise=noise.float())
    assert log_prob_32.dtype == torch.float32
    torch.testing.assert_close(log_prob_32, reference.float(), rtol=1e-5, atol=2e-3)


def test_evaluating_a_stored_sample_gives_its_log_probability_again_bitwise():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        eps, x_t = normal(0).to(dtype), normal(1).to(dtype)
        x_prev, log_prob = ddim_step(eps, 201, 151, x_t, ABAR, eta=1.0, generators=image_generators(3, 5))
        again, log_prob_again = ddim_step(eps, 201, 151, x_t, ABAR, eta=1.0, x_prev=x_prev)
        assert x_prev.dtype == dtype and log_prob.dtype == torch.float32
        assert torch.equal(x_prev, again) and torch.equal(log_prob, log_prob_again)


def test_the_last_step_of_stable_diffusion_keeps_its_own_noise():
    """The landscape sheet's executed check: variance 4.3e-4 at the last of 10 steps."""
    _, sigma = ddim_mean_sigma(normal(0), 1, -99, normal(1), ABAR, eta=1.0)
    assert float(sigma) ** 2 == pytest.approx(4.3e-4, rel=0.01)
    assert torch.equal(density_sigma(sigma, 1.0), sigma)


def test_a_last_step_without_noise_has_a_finite_log_probability_that_is_largest_at_the_mean():
    eps, x_t = normal(0), normal(1)
    for t, final in ((1, 1.0), (0, None), (0, 1.0)):
        x_prev, log_prob = ddim_step(eps, t, -50, x_t, ABAR, eta=1.0, noise=normal(2), final_alpha_cumprod=final)
        mean, sigma = ddim_mean_sigma(eps, t, -50, x_t, ABAR, eta=1.0, final_alpha_cumprod=final)
        assert float(sigma) == 0.0 and torch.equal(x_prev, mean)
        d = x_t[0].numel()
        expected = -d * (math.log(0.02) + 0.5 * math.log(2 * math.pi))
        torch.testing.assert_close(log_prob, torch.full((3,), expected), rtol=1e-5, atol=0)
        _, elsewhere = ddim_step(eps, t, -50, x_t, ABAR, eta=1.0, x_prev=x_prev + 0.01, final_alpha_cumprod=final)
        assert bool((elsewhere < log_prob).all())


def test_rows_may_have_different_timesteps():
    eps, x_t, noise = normal(0), normal(1), normal(2)
    t, t_prev = torch.tensor([951, 401, 1]), torch.tensor([901, 351, -49])
    for final in (None, 1.0):
        together, log_probs = ddim_step(eps, t, t_prev, x_t, ABAR, eta=1.0, noise=noise, final_alpha_cumprod=final)
        for i in range(3):
            row = slice(i, i + 1)
            alone, log_prob = ddim_step(
                eps[row],
                int(t[i]),
                int(t_prev[i]),
                x_t[row],
                ABAR,
                eta=1.0,
                noise=noise[row],
                final_alpha_cumprod=final,
            )
            torch.testing.assert_close(together[row], alone, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(log_probs[row], log_prob, rtol=1e-5, atol=1e-3)


def test_full_noise_at_eta_one_is_the_ddpm_posterior():
    """With the true noise, mean and variance are those of q(x_prev | x_t, x_0), DDPM eq. 7."""
    x0, noise = normal(0, dtype=torch.float64), normal(1, dtype=torch.float64)
    t, p = 500, 499
    x_t = add_noise(x0, noise, t, ABAR)
    mean, sigma = ddim_mean_sigma(noise, t, p, x_t, ABAR, eta=1.0)
    abar_t, abar_p = ABAR.double()[t], ABAR.double()[p]
    alpha, beta = abar_t / abar_p, 1 - abar_t / abar_p
    posterior = abar_p**0.5 * beta / (1 - abar_t) * x0 + alpha**0.5 * (1 - abar_p) / (1 - abar_t) * x_t
    torch.testing.assert_close(mean, posterior, rtol=0, atol=1e-12)
    assert float(sigma) ** 2 == pytest.approx(float((1 - abar_p) / (1 - abar_t) * beta), rel=1e-12)


def test_ddim_inverts_itself_with_eta_zero():
    x0, eps = normal(0, dtype=torch.float64), normal(1, dtype=torch.float64)
    x_t = add_noise(x0, eps, 300, ABAR)
    up, _ = ddim_step(eps, 300, 600, x_t, ABAR)
    torch.testing.assert_close(up, add_noise(x0, eps, 600, ABAR), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="use eta=0"):
        ddim_step(eps, 300, 600, x_t, ABAR, eta=0.5, noise=eps)


def test_gradient_of_the_log_probability_reaches_eps_through_the_mean_alone():
    eps, x_t = normal(0).requires_grad_(), normal(1)
    _, log_prob = ddim_step(eps, 401, 351, x_t, ABAR, eta=1.0, noise=normal(2))
    (sampled,) = torch.autograd.grad(log_prob.sum(), eps)
    x_prev, _ = ddim_step(eps.detach(), 401, 351, x_t, ABAR, eta=1.0, noise=normal(2))
    _, evaluated = ddim_step(eps, 401, 351, x_t, ABAR, eta=1.0, x_prev=x_prev)
    (given,) = torch.autograd.grad(evaluated.sum(), eps)
    assert sampled.abs().max() > 0 and torch.equal(sampled, given)


def test_log_ratio_equals_the_difference_and_keeps_precision_where_the_difference_loses_it():
    mean = normal(0, (2, 4, 64, 64))
    old = mean + 1e-5 * normal(1, mean.shape)
    sigma = torch.tensor(0.05)
    x = mean + sigma * normal(2, mean.shape)
    exact = gaussian_log_prob(x.double(), mean.double(), sigma) - gaussian_log_prob(x.double(), old.double(), sigma)
    by_ratio = (log_prob_ratio(x, mean, old, sigma) - exact).abs().max()
    by_difference = (gaussian_log_prob(x, mean, sigma) - gaussian_log_prob(x, old, sigma) - exact).abs().max()
    assert by_ratio < 1e-5
    assert by_ratio < by_difference


def test_kl_is_that_of_two_gaussians():
    mean, ref, sigma = normal(0), normal(1), torch.tensor(0.3)
    p, q = (torch.distributions.Normal(m, sigma.expand_as(m)) for m in (mean, ref))
    expected = torch.distributions.kl_divergence(p, q).flatten(1).sum(1)
    torch.testing.assert_close(step_kl(mean, ref, sigma), expected, rtol=1e-5, atol=0)


def test_wrong_calls_are_refused():
    eps, x_t, noise = normal(0), normal(1), normal(2)
    with pytest.raises(ValueError, match="exactly one of noise, generators, x_prev; got none"):
        ddim_step(eps, 401, 351, x_t, ABAR, eta=1.0)
    with pytest.raises(ValueError, match="got .'noise', 'x_prev'."):
        ddim_step(eps, 401, 351, x_t, ABAR, eta=1.0, noise=noise, x_prev=noise)
    with pytest.raises(ValueError, match="deterministic step has no log-probability"):
        ddim_step(eps, 401, 351, x_t, ABAR, eta=0.0, x_prev=noise)
    with pytest.raises(ValueError, match="eta is 1.5"):
        ddim_step(eps, 401, 351, x_t, ABAR, eta=1.5, noise=noise)
    with pytest.raises(ValueError, match="eps has shape"):
        ddim_step(eps[:1], 401, 351, x_t, ABAR)
    with pytest.raises(ValueError, match="x_prev has shape"):
        ddim_step(eps, 401, 351, x_t, ABAR, eta=1.0, x_prev=noise[:1])
    with pytest.raises(ValueError, match="timestep 1000"):
        ddim_timesteps(tiny_scheduler(), 1000)  # SD's offset of 1 does not fit 1000 steps
