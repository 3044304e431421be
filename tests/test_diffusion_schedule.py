"""The forward process: its identities, its dtypes, and agreement with diffusers."""

import pytest
import torch

from labkit.diffusion import (
    add_noise,
    epsilon_from_v,
    epsilon_from_x0,
    predict_x0,
    sd_alphas_cumprod,
    to_epsilon,
    v_from_epsilon,
    v_target,
)
from tests.tiny_models import tiny_scheduler

ABAR = sd_alphas_cumprod()


def draws(n: int = 6, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn((n, 4, 8, 8), generator=g, dtype=dtype) for _ in range(2))
    return x0, eps, torch.tensor([0, 1, 250, 500, 998, 999])[:n]


def test_schedule_is_stable_diffusions():
    assert torch.equal(ABAR, tiny_scheduler().alphas_cumprod)
    assert ABAR[0] == pytest.approx(1 - 0.00085, abs=1e-7)
    assert ABAR[999] == pytest.approx(0.0047, abs=5e-5)


def test_noising_and_v_target_equal_diffusers():
    x0, eps, t = draws(dtype=torch.float32)
    scheduler = tiny_scheduler()
    assert torch.equal(add_noise(x0, eps, t, ABAR), scheduler.add_noise(x0, eps, t))
    assert torch.equal(v_target(x0, eps, t, ABAR), scheduler.get_velocity(x0, eps, t))


def test_round_trips_are_exact_in_float64():
    x0, eps, t = draws()
    x_t = add_noise(x0, eps, t, ABAR)
    v = v_target(x0, eps, t, ABAR)
    torch.testing.assert_close(predict_x0(x_t, eps, t, ABAR), x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(epsilon_from_v(v, x_t, t, ABAR), eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(v_from_epsilon(eps, x_t, t, ABAR), v, rtol=0, atol=1e-12)
    torch.testing.assert_close(epsilon_from_x0(x0, x_t, t, ABAR), eps, rtol=0, atol=1e-11)


def test_eps_error_is_alpha_bar_times_v_error():
    x0, eps, t = draws()
    x_t = add_noise(x0, eps, t, ABAR)
    v_wrong = v_target(x0, eps, t, ABAR) + 0.1 * eps.roll(1, 0)
    v_error = ((v_wrong - v_target(x0, eps, t, ABAR)) ** 2).flatten(1).mean(1)
    eps_error = ((epsilon_from_v(v_wrong, x_t, t, ABAR) - eps) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(eps_error, ABAR.double()[t] * v_error, rtol=1e-9, atol=0)


def test_one_timestep_for_all_equals_one_per_row():
    x0, eps, _ = draws(dtype=torch.float32)
    rows = torch.full((6,), 321)
    assert torch.equal(add_noise(x0, eps, 321, ABAR), add_noise(x0, eps, rows, ABAR))
    assert torch.equal(add_noise(x0, eps, torch.tensor(321), ABAR), add_noise(x0, eps, rows, ABAR))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(half):
    x0, eps, t = draws(dtype=torch.float32)
    x0, eps = x0.to(half), eps.to(half)
    exact = add_noise(x0.float(), eps.float(), t, ABAR)
    assert add_noise(x0, eps, t, ABAR).dtype == half
    assert torch.equal(add_noise(x0, eps, t, ABAR), exact.to(half))


def test_to_epsilon_knows_the_three_prediction_types():
    x0, eps, t = draws()
    x_t = add_noise(x0, eps, t, ABAR)
    outputs = {"epsilon": eps, "v_prediction": v_target(x0, eps, t, ABAR), "sample": x0}
    for kind, output in outputs.items():
        torch.testing.assert_close(to_epsilon(output, x_t, t, ABAR, kind), eps, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="prediction_type is 'flow'"):
        to_epsilon(eps, x_t, t, ABAR, "flow")


@pytest.mark.parametrize("t", [-1, 1000, torch.tensor([0, 1, 2, 3, 4, -1]), torch.tensor([0, 1, 2, 3, 4, 1000])])
def test_timesteps_outside_the_schedule_are_refused(t):
    x0, eps, _ = draws()
    with pytest.raises(ValueError, match="outside the schedule"):
        add_noise(x0, eps, t, ABAR)


def test_wrong_shapes_are_refused():
    x0, eps, t = draws()
    with pytest.raises(ValueError, match="one timestep per row"):
        add_noise(x0, eps, t[:3], ABAR)
    with pytest.raises(ValueError, match="noise has shape"):
        add_noise(x0, eps[:3], t, ABAR)
