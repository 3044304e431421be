"""Flow-DPO: the velocity errors, their identity with noise errors, and both weightings."""

import math

import pytest
import torch

from labkit.dpo.equations import dpo_loss, epsilon_error, kappa_of
from labkit.dpo.flow import flow_dpo_loss, flow_latents, noise_of_velocity, velocity_error, velocity_target


def rows(seed, n=5):
    return torch.randn(n, 3, 4, 2, generator=torch.Generator().manual_seed(seed))


TIMES = torch.tensor([0.0, 0.1, 0.5, 0.75, 1.0])


def test_the_path_is_straight_and_its_velocity_the_same_everywhere():
    x0, noise = rows(0), rows(1)
    x = flow_latents(x0, noise, TIMES)
    assert torch.equal(x[0], x0[0]) and torch.equal(x[4], noise[4])
    assert torch.allclose(x[3], 0.25 * x0[3] + 0.75 * noise[3])
    later = flow_latents(x0, noise, TIMES + 0.25)
    assert torch.allclose((later - x) / 0.25, velocity_target(x0, noise), atol=1e-5)


def test_the_noise_error_is_the_velocity_error_times_one_minus_t_squared():
    x0, noise, prediction = rows(0), rows(1), rows(2)
    x, v = flow_latents(x0, noise, TIMES), velocity_target(x0, noise)
    assert torch.allclose(noise_of_velocity(v, x, TIMES), noise, atol=1e-6)
    of_noise = epsilon_error(noise_of_velocity(prediction, x, TIMES), noise)
    assert torch.allclose(of_noise, (1 - TIMES) ** 2 * velocity_error(prediction, v), atol=1e-5)
    assert of_noise[0] > 1 and of_noise[4] < 1e-10  # at t = 1 the noise is seen, whatever is predicted


def test_weighted_by_noise_it_is_diffusion_dpo_and_constant_it_is_not():
    errors, of_noise = {}, {}
    for i, name in enumerate(("winner", "loser", "ref_winner", "ref_loser")):
        x0, noise, prediction = rows(10 + i % 2), rows(20), rows(30 + i)
        x, v = flow_latents(x0, noise, TIMES), velocity_target(x0, noise)
        errors[name] = velocity_error(prediction, v)
        of_noise[name] = epsilon_error(noise_of_velocity(prediction, x, TIMES), noise)
    derived = flow_dpo_loss(**errors, t=TIMES, kappa=3.0, weighting="noise")
    assert torch.allclose(derived, dpo_loss(**of_noise, kappa=3.0), atol=1e-5)
    constant = flow_dpo_loss(**errors, t=TIMES, kappa=3.0)
    assert torch.equal(constant[0], derived[0]) and (constant[1:] - derived[1:]).abs().min() > 1e-3


def test_a_loss_by_hand():
    """Summed errors 8 and 4 (reference 6 and 7) over 4 elements, beta 0.1: s = -0.1 / 2 ((8 - 6) - (4 - 7)) = -0.25."""
    errors = {"winner": 8.0, "loser": 4.0, "ref_winner": 6.0, "ref_loser": 7.0}
    errors = {name: torch.tensor([value / 4]) for name, value in errors.items()}
    kappa, t = kappa_of(0.1, summed=True, half=True, elements=4), torch.tensor([0.5])
    constant, derived = (flow_dpo_loss(**errors, t=t, kappa=kappa, weighting=one) for one in ("constant", "noise"))
    assert float(constant) == pytest.approx(math.log(1 + math.exp(0.25)))
    assert float(derived) == pytest.approx(math.log(1 + math.exp(0.25 / 4)))
    same = dict.fromkeys(errors, torch.ones(1))
    assert float(flow_dpo_loss(**same, t=t, kappa=kappa)) == pytest.approx(math.log(2))


def test_a_step_down_moves_the_policy_towards_the_winner_and_away_from_the_loser():
    v_w, v_l, reference = rows(1), rows(2), rows(3)
    prediction = reference.clone().requires_grad_()
    errors = {"winner": velocity_error(prediction, v_w), "loser": velocity_error(prediction, v_l)}
    errors |= {"ref_winner": velocity_error(reference, v_w), "ref_loser": velocity_error(reference, v_l)}
    (slope,) = torch.autograd.grad(flow_dpo_loss(**errors, t=TIMES, kappa=2.0).sum(), prediction)
    moved = reference - 0.1 * slope
    assert bool((velocity_error(moved, v_w) - velocity_error(moved, v_l) < (errors["winner"] - errors["loser"])).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weighting": "snr"}, "one of constant, noise"), ({"t": TIMES * 1000}, "divide timesteps")],
)
def test_unknown_weightings_and_timesteps_are_refused(options, message):
    errors = dict.fromkeys(("winner", "loser", "ref_winner", "ref_loser"), torch.ones(5))
    with pytest.raises(ValueError, match=message):
        flow_dpo_loss(**errors, **{"t": TIMES, "kappa": 1.0} | options)
    half = rows(0).bfloat16()
    assert velocity_error(half, rows(1).bfloat16()).dtype == torch.float32
