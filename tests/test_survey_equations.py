"""Equations of labkit.survey on a one-step linear-Gaussian toy: x ~ N(theta, 1), reward r(x) = a x.

Everything about the toy is known: the gradient of E[r] is a, the tilted density p e^{r/tau} has mean theta + a / tau.
Expectations are taken by Gauss-Hermite quadrature, which is exact for the polynomials here.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from labkit.diffusion import ddim_step, sd_alphas_cumprod
from labkit.survey import equations as eq

ALPHAS = sd_alphas_cumprod().double()
NODES, MASS = (torch.tensor(v, dtype=torch.float64) for v in np.polynomial.hermite_e.hermegauss(40))
MASS = MASS / MASS.sum()
A, THETA = 0.7, 0.3


def theta():
    return torch.tensor(THETA, dtype=torch.float64, requires_grad=True)


def expected_gradient(losses, parameter):
    """Gradient of the expectation of per-node losses."""
    return float(torch.autograd.grad((MASS * losses).sum(), parameter)[0])


def log_p(x, parameter):
    return -((x - parameter) ** 2) / 2


def test_the_score_function_estimates_the_gradient_of_the_reward():
    p, x = theta(), NODES + THETA
    assert expected_gradient(eq.reinforce_loss(log_p(x, p), A * x), p) == pytest.approx(-A, abs=1e-12)


@pytest.mark.parametrize("elements", [1, 512])
def test_ppo_at_the_start_has_the_same_gradient_whatever_the_latents_size(elements):
    p, x = theta(), NODES + THETA
    log_ratio = log_p(x, p) - log_p(x, p).detach()
    assert torch.equal((log_ratio / elements).exp(), torch.ones_like(x))
    loss = eq.ppo_loss(log_ratio, A * x, clip=1e-3, elements=elements)
    assert expected_gradient(loss, p) == pytest.approx(-A, abs=1e-12)


def test_ppo_stops_where_the_ratio_has_gone_far_enough_and_only_there():
    log_ratio = torch.tensor([0.3, 0.3, -0.3, -0.3], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = eq.ppo_loss(log_ratio, advantage, clip=0.2)
    assert loss.tolist() == pytest.approx([-1.2, math.exp(0.3), -math.exp(-0.3), 0.8])
    gradient = torch.autograd.grad(loss.sum(), log_ratio)[0]
    assert (gradient != 0).tolist() == [False, True, True, False]
    for clip in (0.0, 1.0, 1.6):
        with pytest.raises(ValueError, match=f"clip is {clip}.*clip_for"):
            eq.ppo_loss(log_ratio, advantage, clip=clip)


def test_the_published_clip_is_the_same_for_a_whole_image_of_any_size():
    assert eq.clip_for(16384) == pytest.approx(1e-4)
    assert eq.clip_for(512) * 512 == pytest.approx(1e-4 * 16384)


def test_back_propagation_through_a_sampler_gives_the_gradient_of_the_reward():
    p = theta()
    x = eq.truncated_chain(lambda x, i: p + x, NODES, 1, 1)
    assert expected_gradient(-A * x, p) == pytest.approx(-A, abs=1e-12)


@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (2, 1.5), (4, 1.875)])
def test_a_truncated_chain_sees_the_last_k_steps_alone(k, expected):
    """x <- x / 2 + theta: d x_4 / d theta is 1 + 1/2 + 1/4 + 1/8, and the first terms belong to the last steps."""
    p = theta()
    start = torch.tensor(5.0, dtype=torch.float64)
    end = eq.truncated_chain(lambda x, i: x / 2 + p, start, 4, k)
    assert float(end.detach()) == pytest.approx(5 / 16 + 1.875 * THETA)
    assert float(torch.autograd.grad(end, p)[0]) == pytest.approx(expected)


def test_every_step_of_a_chain_is_told_its_number():
    assert float(eq.truncated_chain(lambda x, i: 10 * x + i, torch.tensor(0.0), 4, 2)) == 123


def test_truncation_asks_for_a_step_of_the_chain():
    for k in (0, 5):
        with pytest.raises(ValueError, match="1 .. 4"):
            eq.truncated_chain(lambda x, i: x, torch.zeros(1), 4, k)


def test_reward_weighted_regression_points_at_the_tilted_density():
    tau, p, x = 2.0, theta(), NODES + THETA
    weight = eq.rwr_weights((A * x + tau * MASS.log())[None], tau)[0] / len(x)  # the nodes' masses are in the weights
    loss = eq.weighted_error(p.expand(len(x), 1), x[:, None], weight)
    assert float(torch.autograd.grad(loss.sum(), p)[0]) == pytest.approx(-2 * A / tau, abs=1e-10)


def test_weights_of_rwr_have_mean_one_in_every_group_and_are_one_without_spread():
    weights = eq.rwr_weights(torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]]), 0.5)
    assert weights.mean(1).tolist() == pytest.approx([1.0, 1.0])
    assert float(weights[0, 2] / weights[0, 1]) == pytest.approx(math.exp(2.0), rel=1e-5)
    assert weights[1].tolist() == pytest.approx([1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="^temperature is 0, expected a positive number$"):
        eq.rwr_weights(torch.zeros(1, 2), 0)


def test_raft_keeps_the_best_and_nothing_of_a_tied_group():
    rewards = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [0.8, 0.2, 0.4]])
    assert eq.raft_weights(rewards).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert eq.raft_weights(rewards, 2)[2].tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"^keep is 3, expected 1 \.\. 2 of 3 images$"):
        eq.raft_weights(rewards, 3)


def test_group_advantages_are_standardised_cut_and_zero_without_spread():
    rewards = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 10.0]])
    assert eq.group_advantage(rewards).tolist() == [[-1, 1], [0, 0], [-1, 1]]
    one_of_many = torch.zeros(1, 100)
    one_of_many[0, 0] = 1.0
    assert float(eq.group_advantage(one_of_many).max()) == 5.0
    assert float(eq.group_advantage(-one_of_many).min()) == -5.0
    assert eq.group_advantage(torch.tensor([[0.0, 2.0]]), floor=1.0).tolist() == [[0, 0]]  # a deviation of just 1
    assert float(eq.group_advantage(one_of_many, limit=100).max()) == pytest.approx(99**0.5, rel=1e-4)


@pytest.mark.parametrize("function", [eq.group_advantage, eq.raft_weights, lambda r: eq.rwr_weights(r, 1.0)])
def test_groups_of_one_and_failed_rewards_are_refused(function):
    alone = "^groups of one image: its advantage is always 0, draw at least 2 images per prompt$"
    with pytest.raises(ValueError, match=alone):
        function(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="^1 rewards are NaN"):
        function(torch.tensor([[0.0, math.nan, 1.0]]))
    with pytest.raises(ValueError, match="shape"):
        function(torch.zeros(3))


def gaussian_step(eta=1.0):
    generator = torch.Generator().manual_seed(0)
    x_t, eps, eps_ref = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    x_prev, _ = ddim_step(eps, 500, 400, x_t, ALPHAS, eta=eta, noise=torch.randn(x_t.shape, generator=generator))
    return x_t, eps, eps_ref, x_prev


def test_log_ratios_are_zero_at_the_start_and_differences_of_log_probabilities():
    x_t, eps, eps_ref, x_prev = gaussian_step()
    same = eq.step_log_ratio(eps, eps, x_prev, x_t, 500, 400, ALPHAS)
    assert torch.equal(same, torch.zeros(3, dtype=torch.float64))
    logs = [ddim_step(e, 500, 400, x_t, ALPHAS, eta=1.0, x_prev=x_prev)[1] for e in (eps, eps_ref)]
    torch.testing.assert_close(eq.step_log_ratio(eps, eps_ref, x_prev, x_t, 500, 400, ALPHAS), logs[0] - logs[1])


def test_the_last_step_of_a_sampler_that_ends_without_noise_keeps_a_finite_ratio():
    x_t, eps, eps_ref, _ = gaussian_step()
    found = eq.step_log_ratio(eps, eps_ref, x_t, x_t, 0, -1, ALPHAS, final_alpha_cumprod=1.0)
    assert bool(torch.isfinite(found).all())


def test_the_divergence_of_a_step_and_its_gradient_are_those_of_two_gaussians():
    x_t, eps, eps_ref, _ = gaussian_step()
    eps.requires_grad_()
    kl = eq.step_divergence(eps, eps_ref, x_t, 500, 400, ALPHAS)
    abar, prev = ALPHAS[500], ALPHAS[400]
    variance = (1 - prev) / (1 - abar) * (1 - abar / prev)
    slope = (1 - prev - variance).sqrt() - (prev * (1 - abar) / abar).sqrt()  # d mean / d eps
    torch.testing.assert_close(kl, (slope * (eps - eps_ref)).square().flatten(1).sum(1) / 2 / variance)
    gradient = torch.autograd.grad(kl.sum(), eps)[0]
    torch.testing.assert_close(gradient, slope**2 * (eps - eps_ref) / variance)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_nft_starts_along_the_signed_error_and_stands_still_at_one_half(rho, beta):
    generator = torch.Generator().manual_seed(1)
    x0, old = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    new = old.clone().requires_grad_()
    loss = eq.nft_loss(new, old, x0, torch.full((2,), rho, dtype=torch.float64), beta)
    gradient = torch.autograd.grad(loss.sum(), new)[0]
    scale = (old - x0).abs().mean(1, keepdim=True)
    torch.testing.assert_close(gradient, 2 * (2 * rho - 1) * (old - x0) / 3 / scale)


def test_nft_worked_out_by_hand():
    """x+ = 0.25 is 0.25 away from x0 = 0.5, x- = -0.25 is 0.75 away: 0.8 x 0.25 + 0.2 x 0.75."""
    x = (torch.tensor([[value]]) for value in (0.25, 0.0, 0.5))
    assert eq.nft_loss(*x, torch.tensor([0.8])).tolist() == pytest.approx([0.35])
    with pytest.raises(ValueError, match="^beta is 0, expected a positive number$"):
        eq.nft_loss(*torch.zeros(3, 1, 1), torch.zeros(1), 0)


def test_optimality_is_a_probability():
    assert eq.nft_optimality(torch.tensor([-9.0, -2.5, 0.0, 5.0, 9.0])).tolist() == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_guidance_towards_a_linear_reward_samples_the_tilted_posterior():
    """x0 ~ N(0, 1): E[x0 | x_t] = a_t x_t with variance 1 - abar, so e^{a x0} moves the mean by a (1 - abar)."""
    abar, x_t = ALPHAS[600], torch.tensor([0.4], dtype=torch.float64)
    clean = abar.sqrt() * x_t
    eps = (x_t - abar.sqrt() * clean) / (1 - abar).sqrt()
    guided = eq.guided_epsilon(eps, A * abar.sqrt(), abar, 1.0)  # r(x0_hat(x_t)) = A a_t x_t
    moved = (x_t - (1 - abar).sqrt() * guided) / abar.sqrt()
    torch.testing.assert_close(moved - clean, (A * (1 - abar))[None])


def test_particle_weights_tilt_a_gaussian_and_differences_telescope():
    lam, x = 1.3, NODES + THETA
    weights = eq.fk_weights(eq.fk_potential((A * x)[None], lam), MASS.log())
    assert float(weights @ x) == pytest.approx(THETA + lam * A)
    assert eq.fk_weights(torch.tensor([0.0, math.log(3)])).tolist() == pytest.approx([0.25, 0.75])
    for rewards in (torch.zeros(3), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match=r"^rewards have shape \((0, )?3,?\), expected \[checks, particles\]$"):
            eq.fk_potential(rewards, lam)
    rewards = torch.tensor([[0.1, 0.5], [0.4, 0.2], [0.9, 0.3]])
    parts = [eq.fk_potential(rewards[: s + 1], 2.0) for s in range(3)]
    torch.testing.assert_close(sum(parts), 2.0 * rewards[-1])
    assert eq.fk_potential(rewards, 1.0, "max").tolist() == pytest.approx([0.9, 0.5])
    assert eq.fk_potential(rewards, 1.0, "sum").tolist() == pytest.approx([1.4, 1.0])
    with pytest.raises(ValueError, match="kind"):
        eq.fk_potential(rewards, 1.0, "mean")


def test_resampling_copies_in_proportion_and_keeps_equal_particles():
    generator = torch.Generator().manual_seed(3)
    assert eq.resample(torch.full((4,), 0.25), generator).tolist() == [0, 1, 2, 3]
    taken = torch.bincount(eq.resample(torch.tensor([0.5, 0.25, 0.25, 0.0]), generator), minlength=4)
    assert taken.tolist() == [2, 1, 1, 0]
    mean = torch.stack(
        [torch.bincount(eq.resample(torch.tensor([0.6, 0.3, 0.1]), generator), minlength=3) for _ in range(2000)]
    ).double().mean(0)  # fmt: skip
    torch.testing.assert_close(mean, torch.tensor([1.8, 0.9, 0.3]).double(), atol=0.05, rtol=0)
    assert float(eq.effective_size(torch.full((8,), 0.125))) == pytest.approx(8)
    assert eq.effective_size(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == [1, 2]


def test_resampling_by_hand_takes_its_one_draw_from_the_generator():
    """Of two, the places are u / 2 and (1 + u) / 2; weights 0.7 and 0.3 give the second place away where u > 0.4."""
    for seed in range(8):
        u = float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        for scale in (1, 3):  # weights need not sum to one
            found = eq.resample(scale * torch.tensor([0.7, 0.3]), torch.Generator().manual_seed(seed))
            assert found.tolist() == [0, int(u > 0.4)]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_equals_the_mean_over_all_draws(n):
    scores, values = [0.3, -1.0, 2.0, 0.9, 1.1], [5.0, 1.0, -2.0, 0.0, 3.0]
    draws = [max(draw, key=lambda i: scores[i]) for draw in itertools.combinations(range(5), n)]
    assert eq.best_of_n(scores, n) == pytest.approx(np.mean([scores[i] for i in draws]))
    assert eq.best_of_n(scores, n, values) == pytest.approx(np.mean([values[i] for i in draws]))


def test_ties_share_their_weight_and_bad_pools_are_refused():
    assert eq.best_of_n_weights([1.0, 1.0, 1.0, 1.0], 3).tolist() == pytest.approx([0.25] * 4)
    assert eq.best_of_n([1.0, 1.0, 0.0], 2, [4.0, 0.0, 9.0]) == pytest.approx(2.0)
    for scores, n in (([1.0, 2.0], 3), ([1.0], 0), ([math.nan, 1.0], 1)):
        with pytest.raises(ValueError, match="^n is|^scores hold NaN or infinity: drop those images$"):
            eq.best_of_n_weights(scores, n)


def test_the_divergence_of_best_of_n_is_that_of_its_weights():
    """Closed form against the weights of a large pool."""
    assert eq.best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match="^n is 0, expected at least 1$"):
        eq.best_of_n_kl(0)
    for n, stated in ((2, 0.193), (4, 0.636), (16, 1.835)):
        weights = eq.best_of_n_weights(np.arange(4000.0), n)
        measured = float(np.sum(weights * np.log(np.maximum(weights * 4000, 1e-300))))
        assert eq.best_of_n_kl(n) == pytest.approx(stated, abs=5e-4)
        assert measured == pytest.approx(eq.best_of_n_kl(n), abs=0.01)


def test_laws_and_accounts():
    assert eq.overoptimisation(np.array([0.0, 4.0]), 1.0, 0.2, search=True).tolist() == pytest.approx([0.0, 1.2])
    assert float(eq.overoptimisation(np.array(4.0), 1.0, 0.2, search=False)) == pytest.approx(
        2 * (1 - 0.2 * math.log(2))
    )
    assert float(eq.overoptimisation(np.array(0.25), 1.0, 0.2, search=False)) == pytest.approx(
        0.5 * (1 + 0.2 * math.log(2))
    )
    assert eq.break_even(76_000, 10, 40) == pytest.approx(2533.3, abs=0.1)  # 76,000 NFE against best of 4 at 10 steps
    assert math.isinf(eq.break_even(100, 10, 10))
