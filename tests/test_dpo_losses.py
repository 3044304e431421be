"""Losses of labkit.dpo: identities of the DPO family, the conventions of its constant, and what the messages say."""

import math

import pytest
import torch

from labkit.diffusion import add_noise, epsilon_from_v, sd_alphas_cumprod, v_target
from labkit.dpo import (
    PairStep,
    beta_of,
    check_kappa,
    dpo,
    epsilon_error,
    epsilon_error_of_v,
    hinge,
    hinge_loss,
    implicit_accuracy,
    ipo,
    ipo_loss,
    kappa_of,
    kto,
    kto_loss,
    mapo,
    mapo_loss,
    npo,
    pair_difference,
    pair_logits,
    scale_gradient,
    sdpo,
    sdpo_scale,
    sft,
    sigmoid_loss,
    statistics,
    statistics_loss,
    step_coefficient,
    terms_from,
    to_mean,
    weighted,
)
from labkit.dpo.losses import LN2

ALPHAS = sd_alphas_cumprod()


def errors(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = ("winner", "loser", "ref_winner", "ref_loser")
    return {name: torch.rand(n, generator=generator) for name in names}


def pair_step(seed=0, b=6, grad=False, reference=True):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(b, 4, 8, 8, generator=generator)

    noise = draw()
    winner, loser, ref_w, ref_l = (noise + 0.3 * draw() for _ in range(4))
    known = {
        "ref_winner_error": epsilon_error(ref_w, noise),
        "ref_loser_error": epsilon_error(ref_l, noise),
        "ref_winner_pred": ref_w,
        "ref_loser_pred": ref_l,
    }
    return PairStep(
        winner_pred=winner.requires_grad_(grad),
        loser_pred=loser.requires_grad_(grad),
        noise=noise,
        t=torch.randint(0, 1000, (b,), generator=generator),
        alphas_cumprod=ALPHAS,
        margin=torch.rand(b, generator=generator) + 0.1,
        **(known if reference else {}),
    )


# ---- the logit and its loss -------------------------------------------------------------------------------------


def test_swapping_winner_and_loser_negates_the_logit():
    e = errors()
    s = pair_logits(**e, kappa=2500.0)
    swapped = pair_logits(
        winner=e["loser"], loser=e["winner"], ref_winner=e["ref_loser"], ref_loser=e["ref_winner"], kappa=2500.0
    )
    assert torch.equal(s, -swapped)


def test_winner_and_loser_cannot_be_given_by_position():
    with pytest.raises(TypeError):
        pair_difference(*errors().values())


def test_loss_of_s_minus_loss_of_minus_s_is_minus_s():
    s = torch.linspace(-30, 30, 101)
    torch.testing.assert_close(sigmoid_loss(s) - sigmoid_loss(-s), -s, rtol=0, atol=4e-6)
    exact = torch.tensor([-8.0, -1.0, 0.0, 1.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(sigmoid_loss(exact) - sigmoid_loss(-exact), -exact, rtol=0, atol=1e-15)


def test_policy_equal_to_reference_gives_ln_2_and_accuracy_one_half():
    e = torch.rand(8)
    s = pair_logits(winner=e, loser=e.flip(0), ref_winner=e, ref_loser=e.flip(0), kappa=2500.0)
    assert torch.equal(s, torch.zeros(8))
    torch.testing.assert_close(sigmoid_loss(s), torch.full((8,), LN2), rtol=0, atol=1e-7)
    assert implicit_accuracy(s) == 0.5


def test_logit_is_linear_in_kappa_and_zero_kappa_gives_no_gradient():
    e = errors()
    one = pair_logits(**e, kappa=1.0)
    torch.testing.assert_close(pair_logits(**e, kappa=250.0), 250 * one)
    winner = e["winner"].clone().requires_grad_()
    loss = sigmoid_loss(pair_logits(**(e | {"winner": winner}), kappa=0.0))
    loss.sum().backward()
    assert torch.equal(winner.grad, torch.zeros(8))
    torch.testing.assert_close(loss.detach(), torch.full((8,), LN2))


def test_the_gradient_at_the_start_is_half_of_kappa():
    for kappa in (250.0, 2500.0):
        winner = torch.rand(8, requires_grad=True)
        e = winner.detach()
        s = pair_logits(winner=winner, loser=e, ref_winner=e, ref_loser=e, kappa=kappa)
        sigmoid_loss(s).sum().backward()
        torch.testing.assert_close(winner.grad, torch.full((8,), kappa / 2))


def test_a_constant_added_to_both_reference_errors_and_a_permutation_leave_the_loss():
    e = {k: v.double() for k, v in errors().items()}
    loss = sigmoid_loss(pair_logits(**e, kappa=10.0))
    shifted = e | {"ref_winner": e["ref_winner"] + 5, "ref_loser": e["ref_loser"] + 5}
    torch.testing.assert_close(sigmoid_loss(pair_logits(**shifted, kappa=10.0)), loss)
    order = torch.tensor([3, 1, 4, 0, 7, 2, 6, 5])
    assert torch.equal(sigmoid_loss(pair_logits(**{k: v[order] for k, v in e.items()}, kappa=10.0)), loss[order])


def test_gradient_is_minus_sigmoid_of_minus_s_times_that_of_s():
    s = torch.linspace(-12, 12, 49, requires_grad=True)
    sigmoid_loss(s).sum().backward()
    torch.testing.assert_close(s.grad, -torch.sigmoid(-s.detach()))


def test_extreme_logits_stay_finite_with_finite_gradients():
    s = torch.tensor([-1e4, -200.0, 200.0, 1e4], requires_grad=True)
    loss = sigmoid_loss(s, label_smoothing=0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(s.grad).all()
    assert sigmoid_loss(torch.tensor(-200.0)) == 200.0
    assert torch.isinf(-torch.log(torch.sigmoid(torch.tensor(-200.0))))  # the naive formula


def test_half_of_the_labels_wrong_has_its_minimum_at_zero_and_no_smoothing_is_plain():
    s = torch.linspace(-4, 4, 801)
    assert abs(float(s[sigmoid_loss(s, label_smoothing=0.5).argmin()])) < 1e-6
    assert torch.equal(sigmoid_loss(s, label_smoothing=0.0), -torch.nn.functional.logsigmoid(s))
    with pytest.raises(ValueError, match="label_smoothing"):
        sigmoid_loss(s, label_smoothing=0.7)


def test_ipo_is_least_where_the_gap_is_one_over_two_tau():
    gap = torch.linspace(0, 1e-3, 10001, dtype=torch.float64)
    assert float(gap[ipo_loss(-gap, tau=2500.0).argmin()]) == pytest.approx(2e-4)


def test_hinge_teaches_nothing_beyond_a_logit_of_one():
    assert torch.equal(hinge_loss(torch.tensor([-1.0, 0.0, 1.0, 5.0])), torch.tensor([2.0, 1.0, 0.0, 0.0]))


# ---- conventions --------------------------------------------------------------------------------------------------


def test_the_published_conventions_give_one_logit():
    step = pair_step()
    d = step.noise[0].numel()
    s = -2500.0 * step.difference

    def summed(pred):
        return (pred - step.noise).square().flatten(1).sum(1)

    def difference(reduce):
        winner, loser = reduce(step.winner_pred), reduce(step.loser_pred)
        return (winner - reduce(step.ref_winner_pred)) - (loser - reduce(step.ref_loser_pred))

    mean = difference(lambda pred: epsilon_error(pred, step.noise))
    torch.testing.assert_close(-beta_of(2500.0, "diffusers-sd", d) * mean, s)
    torch.testing.assert_close(-0.5 * beta_of(2500.0, "diffusers-sdxl", d) * mean, s)
    torch.testing.assert_close(-0.5 * beta_of(2500.0, "official", d) * mean, s)
    torch.testing.assert_close(-beta_of(2500.0, "paper", d) * difference(summed), s, rtol=1e-4, atol=1e-3)


def test_the_three_code_betas_are_kappa_2500():
    assert kappa_of(2500, "diffusers-sd", 16384) == kappa_of(5000, "official", 16384) == 2500
    assert kappa_of(5000, "diffusers-sdxl", 65536) == 2500
    assert to_mean(0.1525, "sum", 16384) == pytest.approx(2498.56)
    with pytest.raises(ValueError, match="recipe"):
        kappa_of(1.0, "trl", 10)


def test_kappa_of_another_convention_is_refused_and_the_right_value_named():
    assert check_kappa(2500.0, 16384) == 2500.0
    with pytest.raises(ValueError, match="2506.75"):
        check_kappa(0.153, 16384)
    with pytest.raises(ValueError, match="2500"):
        check_kappa(2500.0 * 16384, 16384)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive"):
            check_kappa(bad, 512)


def test_weighted_v_errors_give_the_epsilon_logit():
    generator = torch.Generator().manual_seed(3)
    x0, noise, v_w, v_l = (torch.randn(5, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    t = torch.tensor([1, 10, 300, 700, 990])
    x_t = add_noise(x0, noise, t, ALPHAS)
    target = v_target(x0, noise, t, ALPHAS)
    for v in (v_w, v_l):
        eps = epsilon_from_v(v, x_t, t, ALPHAS)
        by_epsilon = (eps - noise).square().flatten(1).mean(1)
        by_v = epsilon_error_of_v((v - target).square().flatten(1).mean(1), ALPHAS[t])
        torch.testing.assert_close(by_v, by_epsilon)
    ratio = (1.0 / ALPHAS[torch.tensor([10, 300, 700, 990])].double()).reciprocal()
    expected = torch.tensor([0.990, 0.591, 0.083, 0.0052], dtype=torch.float64)  # fact of the SD 1.5 schedule
    torch.testing.assert_close(ratio, expected, rtol=0.02, atol=5e-4)


def test_errors_of_half_precision_predictions_are_reduced_in_float32():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 4, 64, 64, generator=generator)
    prediction = (noise + 0.39 * torch.randn(noise.shape, generator=generator)).bfloat16()
    ours = epsilon_error(prediction, noise)
    exact = (prediction.double() - noise.double()).square().flatten(1).mean(1)
    assert 2500 * (ours.double() - exact).abs().max() < 1e-3
    naive = (prediction - noise.bfloat16()).square().flatten(1).mean(1).double()
    assert 2500 * (naive - exact).abs().mean() > 0.2  # the rounding that a bfloat16 mean puts into the logit


# ---- SDPO, MaPO, KTO, NPO, statistics -----------------------------------------------------------------------------


def test_sdpo_has_the_value_of_dpo_and_leaves_the_winners_gradient_alone():
    a, b = pair_step(grad=True), pair_step(grad=True)
    plain, safe = dpo(2500.0)(a), sdpo(2500.0, mu=0.5)(b)
    torch.testing.assert_close(safe, plain)
    plain.sum().backward()
    safe.sum().backward()
    torch.testing.assert_close(b.winner_pred.grad, a.winner_pred.grad)
    ratio = b.loser_pred.grad.flatten(1).norm(dim=1) / a.loser_pred.grad.flatten(1).norm(dim=1)
    scale = sdpo_scale(winner_residual=a.winner_pred - a.noise, loser_residual=a.loser_pred - a.noise, mu=0.5)
    torch.testing.assert_close(ratio, scale)


def test_sdpo_scale_is_a_share_and_one_where_gradients_oppose():
    g = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    other = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))
    scale = sdpo_scale(winner_residual=g, loser_residual=other, mu=0.3)
    assert ((scale >= 0) & (scale <= 1)).all()
    assert torch.equal(scale[(g * other).sum(1) <= 0], torch.ones_like(scale[(g * other).sum(1) <= 0]))
    assert torch.equal(sdpo_scale(winner_residual=g, loser_residual=g, mu=1.0), torch.zeros(64))
    torch.testing.assert_close(sdpo_scale(winner_residual=g, loser_residual=g, mu=0.25), torch.full((64,), 0.75))


def test_an_sdpo_step_in_output_space_does_not_raise_the_winners_error():
    """One shared output correction moves both predictions: a plain DPO step may raise e_w, an SDPO step may not."""
    generator = torch.Generator().manual_seed(0)
    g_w = torch.randn(200, 16, generator=generator)
    g_l = 2.0 * g_w + torch.randn(200, 16, generator=generator)  # aligned and larger: pushing the loser wins
    scale = sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=0.1)
    first_order = -(g_w * (g_w - scale[:, None] * g_l)).sum(1)  # change of e_w along the negative gradient
    plain = -(g_w * (g_w - g_l)).sum(1)
    assert (plain > 0).any()
    assert (first_order <= 1e-4).all()


def test_scale_gradient_keeps_the_value():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = scale_gradient(x, torch.tensor([0.25, 0.0]))
    y.sum().backward()
    assert torch.equal(y.detach(), x.detach()) and torch.equal(x.grad, torch.tensor([0.25, 0.0]))


def test_mapo_near_zero_error_is_dpo_at_a_quarter_of_its_scale():
    winner = torch.tensor([0.02], dtype=torch.float64, requires_grad=True)
    mapo_loss(winner=winner, loser=torch.tensor([0.02], dtype=torch.float64)).sum().backward()
    assert float(winner.grad) == pytest.approx(1 + 0.1 * 0.5 * 1000 / 4, rel=0.02)
    assert torch.isfinite(mapo_loss(winner=torch.zeros(1), loser=torch.tensor([5.0]))).all()


def test_kto_prefers_lower_errors_of_liked_and_higher_errors_of_disliked_images():
    reference = torch.full((4,), 0.2)
    good = kto_loss(
        liked=reference - 1e-3, ref_liked=reference, disliked=reference + 1e-3, ref_disliked=reference, beta=1000.0
    )
    bad = kto_loss(
        liked=reference + 1e-3, ref_liked=reference, disliked=reference - 1e-3, ref_disliked=reference, beta=1000.0
    )
    assert (good[0] < bad[0]).all() and (good[1] < bad[1]).all()
    equal = kto_loss(liked=reference, ref_liked=reference, disliked=reference, ref_disliked=reference, beta=1000.0)
    assert torch.equal(torch.cat(equal), torch.full((8,), 0.5))


def test_npo_is_dpo_with_swapped_labels():
    step = pair_step()
    assert torch.equal(npo(2500.0)(step), dpo(2500.0)(step.swapped()))
    torch.testing.assert_close(npo(2500.0)(step) - dpo(2500.0)(step), -2500.0 * step.difference)


def test_statistics_loss_is_zero_at_the_start_and_sees_channel_means_alone():
    step = pair_step()
    same = statistics_loss(step.ref_winner_pred, step.ref_winner_pred, step.t, ALPHAS)
    assert torch.equal(same, torch.zeros(6))
    value = statistics_loss(step.winner_pred, step.ref_winner_pred, step.t, ALPHAS)
    shuffle = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    mixed = (step.winner_pred - step.ref_winner_pred).flatten(2)[:, :, shuffle].view_as(step.winner_pred)
    moved = step.ref_winner_pred + mixed
    torch.testing.assert_close(statistics_loss(moved, step.ref_winner_pred, step.t, ALPHAS), value)


def test_statistics_gradient_reaches_the_policy_only():
    step = pair_step(grad=True)
    reference = step.ref_winner_pred.clone().requires_grad_()
    statistics_loss(step.winner_pred, reference, step.t, ALPHAS).sum().backward()
    assert reference.grad is None and step.winner_pred.grad.abs().sum() > 0


def test_statistics_closed_form_equals_the_channel_means_of_two_ddpm_steps():
    from diffusers import DDPMScheduler

    from labkit.models.sd_layout import SD_SCHEDULE

    scheduler = DDPMScheduler(**{k: v for k, v in SD_SCHEDULE.items() if k != "steps_offset"}, clip_sample=False)
    scheduler.set_timesteps(1000)
    step = pair_step(b=4)
    timesteps = torch.tensor([1, 20, 500, 999])
    ours = statistics_loss(step.winner_pred, step.ref_winner_pred, timesteps, scheduler.alphas_cumprod)
    for i, t in enumerate(timesteps.tolist()):

        def previous(prediction, i=i, t=t):
            generator = torch.Generator().manual_seed(5)  # shared sampling noise
            return scheduler.step(prediction[i : i + 1], t, step.noise[i : i + 1], generator=generator).prev_sample

        gap = (previous(step.winner_pred) - previous(step.ref_winner_pred)).flatten(2).mean(2)
        torch.testing.assert_close(gap.square().sum(), ours[i], rtol=1e-3, atol=1e-10)


def test_step_coefficients_are_those_of_the_sd_schedule():
    c = 10_000 * step_coefficient(torch.tensor([1, 20, 500, 750, 999]), ALPHAS).square()
    expected = torch.tensor([4.29, 0.48, 0.32, 0.69, 1.46])
    torch.testing.assert_close(c, expected, rtol=0.02, atol=0.0)
    assert float(10_000 * step_coefficient(torch.arange(1000), ALPHAS).square().mean()) == pytest.approx(
        0.515, rel=0.02
    )


# ---- terms --------------------------------------------------------------------------------------------------------


def test_every_term_gives_one_finite_number_per_pair_and_a_gradient():
    for term in (dpo(), npo(), hinge(), ipo(), sdpo(), sft(), mapo(), kto(), statistics()):
        step = pair_step(grad=True, reference=term.needs != "nothing")
        value = term(step)
        assert value.shape == (6,) and torch.isfinite(value).all(), term.name
        value.sum().backward()
        assert step.winner_pred.grad.abs().sum() > 0, term.name


def test_a_margin_moves_the_point_of_ln_2():
    step = pair_step()
    s = -2500.0 * step.difference
    torch.testing.assert_close(dpo(2500.0, margin_weight=3.0)(step), sigmoid_loss(s - 3.0 * step.margin))


def test_weights_multiply_the_loss_at_their_timestep_and_belong_to_a_checkpoint():
    step, weights = pair_step(), torch.linspace(0, 2, 1000)
    plain, late = dpo(2500.0), weighted(dpo(2500.0), weights)
    torch.testing.assert_close(late(step), weights[step.t] * plain(step))
    torch.testing.assert_close(weighted(plain, torch.ones(1000))(step), plain(step))
    assert late.kappa == 2500.0 and late.needs == plain.needs
    assert late.settings != weighted(plain, weights.flip(0)).settings
    with pytest.raises(ValueError, match="per timestep"):
        weighted(plain, -weights)


def test_terms_from_a_configuration_convert_the_convention():
    term = terms_from([{"name": "dpo", "kappa": 0.5, "convention": "sum"}], elements=512)[0]
    assert term.name == "dpo" and term.kappa == 256.0
    assert terms_from([{"name": "sft", "weight": 5}], 512)[0].kappa is None
    with pytest.raises(ValueError, match="expected one of"):
        terms_from([{"name": "cpo"}], 512)
