"""Equations of labkit.dpo: values by hand, identities of the DPO family, gradients, the conventions of its constant."""

import math

import pytest
import torch

from labkit.diffusion import sd_alphas_cumprod
from labkit.dpo.equations import (
    conservative_dpo_loss,
    dpo_logit,
    dpo_loss,
    epsilon_error,
    hinge_loss,
    implicit_accuracy,
    ipo_loss,
    kappa_of,
    kto_loss,
    mapo_loss,
    npo_loss,
    sdpo_loss,
    sdpo_scale,
    statistics_loss,
    step_coefficient,
)
from labkit.dpo.terms import (
    PairStep,
    check_kappa,
    check_terms,
    dpo,
    hinge,
    ipo,
    kto,
    mapo,
    npo,
    sdpo,
    sft,
    statistics,
    terms_from,
)

LN2 = math.log(2.0)
ALPHAS = sd_alphas_cumprod()


def errors(n=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    names = ("winner", "loser", "ref_winner", "ref_loser")
    return {name: torch.rand(n, generator=generator).to(dtype) for name in names}


def by_hand(kappa=4.0):
    """Two pairs: D = (0.30 - 0.25) - (0.70 - 0.40) = -0.25, D = (0.50 - 0.40) - (0.30 - 0.35) = 0.15."""
    values = {"winner": [0.30, 0.50], "loser": [0.70, 0.30], "ref_winner": [0.25, 0.40], "ref_loser": [0.40, 0.35]}
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()} | {"kappa": kappa}


def pair_step(seed=0, b=6, grad=False, reference=True):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(b, 4, 8, 8, generator=generator)

    noise = draw()
    winner, loser, ref_w, ref_l = (noise + spread * draw() for spread in (0.3, 0.5, 0.4, 0.2))
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


# ---- the error --------------------------------------------------------------------------------------------------


def test_an_error_is_the_mean_over_all_elements_of_one_image():
    prediction = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[0.0, 0.0]], [[0.0, 8.0]]]])  # [2, 2, 1, 2]
    assert epsilon_error(prediction, torch.ones(2, 2, 1, 2)).tolist() == [(0 + 1 + 4 + 9) / 4, (1 + 1 + 1 + 49) / 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_of_half_precision_tensors_are_reduced_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 4, 64, 64, generator=generator)
    prediction = (noise + 0.39 * torch.randn(noise.shape, generator=generator)).to(dtype)
    noise = noise.to(dtype)
    ours = epsilon_error(prediction, noise)
    assert ours.dtype == torch.float32
    exact = (prediction.double() - noise.double()).square().flatten(1).mean(1)
    assert 2500 * (ours.double() - exact).abs().max() < 1e-3
    naive = (prediction - noise).square().flatten(1).mean(1).double()
    assert 2500 * (naive - exact).abs().mean() > 0.02  # what rounding the mean puts into the logit


def test_a_large_error_in_float16_does_not_overflow():
    big = torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16)
    assert epsilon_error(big, torch.zeros_like(big)).item() == 90_000.0  # float16 ends at 65,504


# ---- eq. 14 -----------------------------------------------------------------------------------------------------


def test_the_loss_of_two_pairs_by_hand():
    s = torch.tensor([1.0, -0.6], dtype=torch.float64)
    torch.testing.assert_close(dpo_logit(**by_hand()), s)
    expected = torch.tensor([math.log1p(math.exp(-1.0)), math.log1p(math.exp(0.6))], dtype=torch.float64)
    torch.testing.assert_close(dpo_loss(**by_hand()), expected)


def test_the_gradients_of_the_loss_by_hand():
    e = by_hand() | {k: v.requires_grad_() for k, v in by_hand().items() if k != "kappa"}
    dpo_loss(**e).sum().backward()
    weight = torch.tensor([1 / (1 + math.exp(1.0)), 1 / (1 + math.exp(-0.6))], dtype=torch.float64)  # sigmoid(-s)
    for name, sign in (("winner", 4.0), ("loser", -4.0), ("ref_winner", -4.0), ("ref_loser", 4.0)):
        torch.testing.assert_close(e[name].grad, sign * weight)


def test_swapping_winner_and_loser_negates_the_logit():
    e = errors()
    swapped = {"winner": e["loser"], "loser": e["winner"], "ref_winner": e["ref_loser"], "ref_loser": e["ref_winner"]}
    assert torch.equal(dpo_logit(**e, kappa=2500.0), -dpo_logit(**swapped, kappa=2500.0))
    assert torch.equal(npo_loss(**e, kappa=2500.0), dpo_loss(**swapped, kappa=2500.0))


@pytest.mark.parametrize("function", [dpo_logit, dpo_loss, npo_loss, hinge_loss])
def test_winner_and_loser_cannot_be_given_by_position(function):
    with pytest.raises(TypeError, match="positional"):
        function(*errors().values(), 2500.0)


def test_loss_of_s_minus_loss_of_minus_s_is_minus_s():
    e = errors(101, dtype=torch.float64)
    gap = dpo_loss(**e, kappa=20.0) - npo_loss(**e, kappa=20.0)
    torch.testing.assert_close(gap, -dpo_logit(**e, kappa=20.0), rtol=0, atol=1e-13)


def test_policy_equal_to_reference_gives_ln_2_and_accuracy_one_half():
    e = torch.rand(8, generator=torch.Generator().manual_seed(0))
    same = {"winner": e, "loser": e.flip(0), "ref_winner": e, "ref_loser": e.flip(0), "kappa": 2500.0}
    assert torch.equal(dpo_logit(**same), torch.zeros(8))
    torch.testing.assert_close(dpo_loss(**same), torch.full((8,), LN2), rtol=0, atol=1e-7)
    assert implicit_accuracy(dpo_logit(**same)) == 0.5


def test_accuracy_counts_ties_as_a_half():
    assert implicit_accuracy(torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5])).item() == pytest.approx(3.5 / 5)


def test_zero_kappa_gives_ln_2_and_no_gradient():
    winner = errors()["winner"].requires_grad_()
    loss = dpo_loss(**(errors() | {"winner": winner}), kappa=0.0)
    loss.sum().backward()
    assert torch.equal(winner.grad, torch.zeros(8))
    torch.testing.assert_close(loss.detach(), torch.full((8,), LN2))


def test_a_constant_added_to_both_reference_errors_and_a_permutation_leave_the_loss():
    e = errors(dtype=torch.float64)
    loss = dpo_loss(**e, kappa=10.0)
    shifted = e | {"ref_winner": e["ref_winner"] + 5, "ref_loser": e["ref_loser"] + 5}
    torch.testing.assert_close(dpo_loss(**shifted, kappa=10.0), loss)
    order = torch.tensor([3, 1, 4, 0, 7, 2, 6, 5])
    assert torch.equal(dpo_loss(**{k: v[order] for k, v in e.items()}, kappa=10.0), loss[order])


def test_extreme_logits_stay_finite_with_finite_gradients():
    winner = torch.tensor([1e4, 200.0, -200.0, -1e4], requires_grad=True)
    zero = torch.zeros(4)
    rest = {"loser": zero, "ref_winner": zero, "ref_loser": zero, "kappa": 1.0}
    loss = dpo_loss(winner=winner, **rest)
    loss.sum().backward()
    assert loss.tolist() == [1e4, 200.0, 0.0, 0.0]
    assert winner.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    smooth = conservative_dpo_loss(winner=winner.detach(), **rest, label_smoothing=0.1)
    torch.testing.assert_close(smooth, torch.tensor([9e3, 180.0, 20.0, 1e3]))
    assert torch.isinf(-torch.log(torch.sigmoid(torch.tensor(-200.0))))  # the naive formula


# ---- relatives: label smoothing, margin, IPO, hinge ---------------------------------------------------------------


def test_smoothing_and_margin_by_hand_and_without_them_plain_dpo():
    assert torch.equal(conservative_dpo_loss(**by_hand()), dpo_loss(**by_hand()))
    got = conservative_dpo_loss(**by_hand(), label_smoothing=0.2, margin=torch.tensor([0.4, 0.9], dtype=torch.float64))
    expected = [0.8 * math.log1p(math.exp(-s)) + 0.2 * math.log1p(math.exp(s)) for s in (1.0 - 0.4, -0.6 - 0.9)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(ValueError, match="label_smoothing"):
        conservative_dpo_loss(**by_hand(), label_smoothing=0.7)


def test_half_of_the_labels_wrong_has_its_minimum_at_a_logit_of_zero():
    winner, zero = torch.linspace(-4, 4, 801), torch.zeros(801)
    e = {"winner": winner, "loser": zero, "ref_winner": zero, "ref_loser": zero, "kappa": 1.0}
    assert abs(float(winner[conservative_dpo_loss(**e, label_smoothing=0.5).argmin()])) < 1e-6


def test_ipo_by_hand_and_its_minimum_at_a_gap_of_one_over_two_tau():
    e = by_hand()
    del e["kappa"]
    expected = torch.tensor([(0.25 - 0.1) ** 2, (-0.15 - 0.1) ** 2], dtype=torch.float64)
    torch.testing.assert_close(ipo_loss(**e, tau=5.0), expected)
    gap, zero = torch.linspace(0, 1e-3, 10001, dtype=torch.float64), torch.zeros(10001)
    loss = ipo_loss(winner=-gap, loser=zero, ref_winner=zero, ref_loser=zero, tau=2500.0)
    assert float(gap[loss.argmin()]) == pytest.approx(2e-4)


def test_hinge_by_hand_teaches_nothing_beyond_a_logit_of_one():
    torch.testing.assert_close(hinge_loss(**by_hand(2.0)), torch.tensor([0.5, 1.3], dtype=torch.float64))
    assert hinge_loss(**by_hand(8.0))[0] == 0  # s = 2


# ---- conventions --------------------------------------------------------------------------------------------------


def test_the_published_betas_are_one_kappa():
    assert kappa_of(2500, False, False, 16384) == kappa_of(5000, False, True, 16384) == 2500
    assert kappa_of(2, True, False, 512) == 1024 and kappa_of(3, True, True, 100) == 150
    step = pair_step()
    d = step.noise[0].numel()

    def summed(pred):
        return (pred - step.noise).square().flatten(1).sum(1)

    difference = (summed(step.winner_pred) - summed(step.ref_winner_pred)) - (
        summed(step.loser_pred) - summed(step.ref_loser_pred)
    )
    paper = dpo_logit(**step.errors, kappa=kappa_of(9.0, summed=True, half=False, elements=d))
    torch.testing.assert_close(paper, -9.0 * difference, rtol=1e-4, atol=1e-3)


def test_kappa_of_another_convention_is_refused_and_the_right_value_named():
    assert check_kappa(2500.0, 16384) == 2500.0
    assert check_kappa(10.0, 512) == 10.0 and check_kappa(1e6, 512) == 1e6
    with pytest.raises(ValueError, match="2506.75"):
        check_kappa(0.153, 16384)
    with pytest.raises(ValueError, match="it is 2500; start at 2500"):
        check_kappa(2500.0 * 16384, 16384)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive number, start at 78"):
            check_kappa(bad, 512)


# ---- SDPO, MaPO, KTO ----------------------------------------------------------------------------------------------


def test_sdpo_scale_by_hand():
    g_w = torch.tensor([[1.0, 2.0], [1.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
    g_l = torch.tensor([[4.0, 3.0], [-2.0, 5.0], [0.5, 7.0], [0.0, 0.0]])  # overlaps 10, -2, 1.5, 0
    scale = sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=0.2)
    torch.testing.assert_close(scale, torch.tensor([0.8 * 5 / 10, 1.0, 1.0, 1.0]))
    assert torch.equal(sdpo_scale(winner_residual=g_w, loser_residual=g_w, mu=1.0), torch.zeros(4))
    with pytest.raises(ValueError, match="mu is 1.5"):
        sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=1.5)


def test_lambda_at_the_edges_of_mu_and_of_the_overlap():
    g_w, g_l = torch.tensor([[0.5, 0.5], [0.0, 0.0]]), torch.tensor([[1.0, 0.5], [3.0, 1.0]])  # overlaps 0.75 and 0
    scale = sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=0.0)
    torch.testing.assert_close(scale, torch.tensor([0.5 / 0.75, 1.0]))  # no overlap: the loser may be pushed freely
    with pytest.raises(ValueError, match="mu is -0.1, expected 0 .. 1"):
        sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=-0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lambda_of_half_precision_residuals_is_taken_in_float32(dtype):
    g_w, g_l = torch.full((1, 4, 64), 30.0, dtype=dtype), torch.full((1, 4, 64), 50.0, dtype=dtype)
    scale = sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=0.3)  # overlap 384,000: float16 ends at 65,504
    torch.testing.assert_close(scale, torch.tensor([0.7 * 0.6]))


def test_lambda_is_a_number_not_a_path_for_gradients():
    g_w, g_l = (torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (1, 2))
    scale = sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=0.5)
    assert ((g_w * g_l).flatten(1).sum(1) < 0).any() and not scale.requires_grad


def test_sdpo_has_the_value_of_dpo_and_scales_the_losers_gradient_alone():
    e = by_hand() | {k: v.requires_grad_() for k, v in by_hand().items() if k in ("winner", "loser")}
    loss = sdpo_loss(**e, scale=torch.tensor([0.25, 0.0], dtype=torch.float64))
    torch.testing.assert_close(loss, dpo_loss(**by_hand()))
    loss.sum().backward()
    weight = torch.tensor([1 / (1 + math.exp(1.0)), 1 / (1 + math.exp(-0.6))], dtype=torch.float64)
    torch.testing.assert_close(e["winner"].grad, 4 * weight)
    torch.testing.assert_close(e["loser"].grad, torch.tensor([-4 * 0.25, 0.0], dtype=torch.float64) * weight)


def test_the_sdpo_term_scales_every_pair_by_its_own_lambda_and_gives_finite_gradients():
    a, b = pair_step(grad=True), pair_step(grad=True)
    with torch.no_grad():
        for step in (a, b):  # residuals of two pairs oppose, those of four align
            times = torch.tensor([-1.0, -2.0, 0.05, 0.5, 1.0, 4.0])[:, None, None, None]
            step.loser_pred.copy_(step.noise + times * (step.winner_pred - step.noise))
    plain, safe = dpo(2500.0)(a), sdpo(2500.0, mu=0.9)(b)
    torch.testing.assert_close(safe, plain)
    plain.sum().backward()
    safe.sum().backward()
    torch.testing.assert_close(b.winner_pred.grad, a.winner_pred.grad)
    scale = sdpo_scale(winner_residual=a.winner_pred - a.noise, loser_residual=a.loser_pred - a.noise, mu=0.9)
    torch.testing.assert_close(scale, torch.tensor([1.0, 1.0, 1.0, 0.2, 0.1, 0.025]))
    torch.testing.assert_close(b.loser_pred.grad, scale[:, None, None, None] * a.loser_pred.grad)


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


def test_mapo_by_hand():
    f = [e / 2 / math.expm1(e / 2) for e in (0.2, 0.6)]
    expected = 0.2 + 0.3 * math.log1p(math.exp(-10 * (f[0] - f[1])))
    got = mapo_loss(winner=torch.tensor([0.2]), loser=torch.tensor([0.6]), weight=0.3, scale=10.0)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_mapo_near_zero_error_is_dpo_at_a_quarter_of_its_scale_and_f_of_zero_is_one():
    winner = torch.tensor([0.02], dtype=torch.float64, requires_grad=True)
    mapo_loss(winner=winner, loser=torch.tensor([0.02], dtype=torch.float64)).sum().backward()
    assert float(winner.grad) == pytest.approx(1 + 0.1 * 0.5 * 1000 / 4, rel=0.02)
    e = {"winner": torch.tensor([0.3]), "loser": torch.tensor([0.1])}
    assert torch.equal(mapo_loss(**e), mapo_loss(**e, weight=0.1, scale=1000.0))
    at_zero = mapo_loss(winner=torch.zeros(1), loser=torch.tensor([2 * LN2]), weight=1.0, scale=1.0)
    assert at_zero.item() == pytest.approx(math.log1p(math.exp(-(1 - LN2))), rel=1e-6)  # f(2 ln 2) = ln 2


def test_kto_losses_and_gradients_by_hand():
    """Two likes, three dislikes. g = 0.10, -0.05 and -0.20, 0.30, 0.10, so k = 0.05, a constant for the gradient."""
    liked = torch.tensor([0.20, 0.45], dtype=torch.float64, requires_grad=True)
    disliked = torch.tensor([0.70, 0.10, 0.30], dtype=torch.float64, requires_grad=True)
    reference = {"ref_liked": torch.tensor([0.30, 0.40]), "ref_disliked": torch.tensor([0.50, 0.40, 0.40])}
    reference = {name: value.double() for name, value in reference.items()}
    likes, dislikes = kto_loss(liked=liked, disliked=disliked, **reference, beta=4.0)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    up, down = [sigmoid(4 * (g - 0.05)) for g in (0.10, -0.05)], [sigmoid(-4 * (g - 0.05)) for g in (-0.20, 0.30, 0.10)]
    near = {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(likes, torch.tensor([1 - p for p in up], dtype=torch.float64), **near)
    torch.testing.assert_close(dislikes, torch.tensor([1 - p for p in down], dtype=torch.float64), **near)
    (likes.sum() + dislikes.sum()).backward()
    expected = torch.tensor([4 * p * (1 - p) for p in up], dtype=torch.float64)
    torch.testing.assert_close(liked.grad, expected, **near)
    expected = torch.tensor([-4 * p * (1 - p) for p in down], dtype=torch.float64)
    torch.testing.assert_close(disliked.grad, expected, **near)


# ---- statistics matching ------------------------------------------------------------------------------------------


def test_step_coefficients_by_hand_also_of_the_first_timestep():
    c = step_coefficient(torch.tensor([0, 2, 1]), torch.tensor([0.81, 0.5, 0.2]))
    first = 0.19 / (0.9 * math.sqrt(0.19))  # alpha_bar_{-1} = 1: alpha_0 = 0.81, beta_0 = 0.19
    second = (1 - 0.5 / 0.81) / (math.sqrt(0.5 / 0.81) * math.sqrt(0.5))
    third = (1 - 0.4) / (math.sqrt(0.4) * math.sqrt(0.8))
    torch.testing.assert_close(c, torch.tensor([first, third, second]))


def test_step_coefficients_are_those_of_the_sd_schedule():
    c = 10_000 * step_coefficient(torch.tensor([1, 20, 500, 750, 999]), ALPHAS).square()
    torch.testing.assert_close(c, torch.tensor([4.29, 0.48, 0.32, 0.69, 1.46]), rtol=0.02, atol=0.0)
    mean = float(10_000 * step_coefficient(torch.arange(1000), ALPHAS).square().mean())
    assert mean == pytest.approx(0.515, rel=0.02)


def test_statistics_loss_by_hand_adds_channels_after_averaging_pixels():
    eps = torch.tensor([[[[1.0, 3.0]], [[0.0, -2.0]]], [[[5.0, 5.0]], [[1.0, 0.0]]]])  # [2, 2, 1, 2]
    reference = torch.tensor([[[[1.0, 1.0]], [[1.0, 1.0]]], [[[2.0, 2.0]], [[0.0, 1.0]]]])
    got = statistics_loss(eps, reference, torch.tensor([0.5, 2.0]))  # shifts (1, -2) and (3, 0)
    torch.testing.assert_close(got, torch.tensor([0.25 * 5, 4.0 * 9]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_channel_means_of_half_precision_predictions_are_taken_in_float32(dtype):
    step = pair_step()
    eps, ref, c = step.winner_pred.to(dtype), step.ref_winner_pred.to(dtype), torch.full((6,), 10.0)
    exact = 100 * (eps.double() - ref.double()).mean((2, 3)).square().sum(1)
    torch.testing.assert_close(statistics_loss(eps, ref, c).double(), exact, rtol=1e-4, atol=1e-7)


def test_statistics_gradient_reaches_the_policy_only():
    step = pair_step(grad=True)
    reference = step.ref_winner_pred.clone().requires_grad_()
    statistics_loss(step.winner_pred, reference, torch.ones(6)).sum().backward()
    assert reference.grad is None
    shift = (step.winner_pred - step.ref_winner_pred).detach().mean((2, 3), keepdim=True)
    torch.testing.assert_close(step.winner_pred.grad, (2 / 64 * shift).expand(6, 4, 8, 8))


def test_statistics_closed_form_equals_the_channel_means_of_two_ddpm_steps():
    from diffusers import DDPMScheduler

    from labkit.models.sd_layout import SD_SCHEDULE

    scheduler = DDPMScheduler(**{k: v for k, v in SD_SCHEDULE.items() if k != "steps_offset"}, clip_sample=False)
    scheduler.set_timesteps(1000)
    step = pair_step(b=5)
    timesteps = torch.tensor([0, 1, 20, 500, 999])
    c = step_coefficient(timesteps, scheduler.alphas_cumprod)
    ours = statistics_loss(step.winner_pred, step.ref_winner_pred, c)
    for i, t in enumerate(timesteps.tolist()):

        def previous(prediction, i=i, t=t):
            generator = torch.Generator().manual_seed(5)  # shared sampling noise
            return scheduler.step(prediction[i : i + 1], t, step.noise[i : i + 1], generator=generator).prev_sample

        gap = (previous(step.winner_pred) - previous(step.ref_winner_pred)).flatten(2).mean(2)
        torch.testing.assert_close(gap.square().sum(), ours[i], rtol=1e-3, atol=1e-10)


# ---- terms --------------------------------------------------------------------------------------------------------


def test_every_term_is_its_equation_on_the_four_errors():
    step = pair_step()
    e = step.errors
    assert torch.equal(e["winner"], epsilon_error(step.winner_pred, step.noise))
    assert torch.equal(e["loser"], epsilon_error(step.loser_pred, step.noise))
    assert e["ref_winner"] is step.ref_winner_error and e["ref_loser"] is step.ref_loser_error
    liked, disliked = kto_loss(
        liked=e["winner"], ref_liked=e["ref_winner"], disliked=e["loser"], ref_disliked=e["ref_loser"], beta=300.0
    )
    c = step_coefficient(step.t, ALPHAS)
    for term, value in (
        (dpo(300.0), dpo_loss(**e, kappa=300.0)),
        (npo(300.0), npo_loss(**e, kappa=300.0)),
        (hinge(20.0), hinge_loss(**e, kappa=20.0)),
        (ipo(20.0), 400 * ipo_loss(**e, tau=20.0)),
        (sft(7.0), 7 * e["winner"]),
        (mapo(weight=0.3, scale=50.0), mapo_loss(winner=e["winner"], loser=e["loser"], weight=0.3, scale=50.0)),
        (kto(300.0), (liked + disliked) / 2),
        (statistics(50.0), 50 * statistics_loss(step.winner_pred, step.ref_winner_pred, c)),
    ):
        torch.testing.assert_close(term(step), value, msg=term.name)


def test_terms_know_what_they_need_of_the_reference():
    needs = {"sft": "nothing", "mapo": "nothing", "statistics": "predictions"}
    for term in (dpo(3.0), npo(3.0), hinge(3.0), ipo(3.0), sdpo(3.0), sft(), mapo(), kto(3.0), statistics()):
        assert term.needs == needs.get(term.name, "errors")
        step = pair_step(grad=True, reference=term.needs != "nothing")
        value = term(step)
        assert value.shape == (6,) and torch.isfinite(value).all(), term.name
        value.sum().backward()
        assert step.winner_pred.grad.abs().sum() > 0, term.name
    assert check_terms([sft(), mapo()], 512) == "nothing"
    assert check_terms([sft(), dpo(), mapo()], 512) == "errors"
    assert check_terms([statistics(), dpo()], 512) == "predictions"


def test_a_margin_shifts_the_logit_of_its_pair():
    step = pair_step()
    expected = conservative_dpo_loss(**step.errors, kappa=30.0, margin=3.0 * step.margin, label_smoothing=0.1)
    torch.testing.assert_close(dpo(30.0, margin_weight=3.0, label_smoothing=0.1)(step), expected)
    without = PairStep(**{k: getattr(step, k) for k in step.__dataclass_fields__} | {"margin": None})
    with pytest.raises(ValueError, match="no margins"):
        dpo(30.0, margin_weight=3.0)(without)


def test_terms_from_a_configuration_convert_the_convention():
    term = terms_from([{"name": "dpo", "kappa": 0.5, "convention": "sum"}], elements=512)[0]
    assert term.name == "dpo" and term.kappa == 256.0
    assert terms_from([{"name": "dpo", "kappa": 500, "convention": "mean"}], 512)[0].kappa == 500
    assert terms_from([{"name": "sft", "weight": 5}], 512)[0].kappa is None
    with pytest.raises(ValueError, match="expected one of"):
        terms_from([{"name": "cpo"}], 512)
    with pytest.raises(ValueError, match="convention is 'max'"):
        terms_from([{"name": "dpo", "kappa": 5, "convention": "max"}], 512)
