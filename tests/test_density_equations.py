"""Every equation of the pseudo-density paper against values computed by hand, on data without symmetry and at edges."""

import math

import pytest
import torch

from labkit.course.checks import load_exercises
from labkit.course.manifest import Project
from labkit.density import (
    PseudoDensity,
    acceptance_probability,
    equations,
    fixed_point,
    forecast,
    mean_distance,
    pseudo_density,
    push_step,
    quantile_threshold,
    ratio_of,
    training_weights,
)

LINE = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
INVERSE_MEAN = (1 / 2 + 1 / 1.5 + 1 / 2.5) / 3  # of the reals' 1 / d_2


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_mean_distance_of_as_few_reals_as_k_allows():
    """N = k + 1: the neighbours are all the others, and they differ for every point."""
    assert mean_distance(LINE, 2).tolist() == [2.0, 1.5, 2.5]
    assert mean_distance(LINE, 1).tolist() == [1.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="k = 3 but points has 3 samples"):
        mean_distance(LINE, 3)
    with pytest.raises(ValueError, match="at least 2 are needed"):
        mean_distance(LINE[:1], 1)


def test_mean_distance_of_one_query_masks_nothing():
    assert mean_distance(LINE, 2, queries=[[4.0]]).tolist() == [2.0]
    assert mean_distance(LINE, 3, queries=[[4.0]]).item() == pytest.approx(8 / 3, rel=1e-15)
    assert mean_distance(LINE, 2, queries=LINE[1:2]).tolist() == [0.5]  # a copy: distances 0 and 1
    assert mean_distance(LINE[:1], 1, queries=[[4.0]]).tolist() == [4.0]  # one real
    with pytest.raises(ValueError, match="k = 4 but points has 3 samples"):
        mean_distance(LINE, 4, queries=[[4.0]])


def test_mean_distance_counts_whole_vectors():
    points = doubles(0, 0, 3, 4, -6, 8).reshape(3, 2)
    assert mean_distance(points, 2).tolist() == pytest.approx([(5 + 10) / 2, (5 + 97**0.5) / 2, (10 + 97**0.5) / 2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_mean_distance_is_float64_whatever_the_features_are(dtype):
    got = mean_distance(LINE.to(dtype), 2)
    assert got.dtype == torch.float64 and got.tolist() == [2.0, 1.5, 2.5]


@pytest.mark.parametrize(("n", "raw"), [(1.0, (1 / 2, 1 / 1.5, 1 / 2.5)), (2.0, (1 / 4, 1 / 2.25, 1 / 6.25))])
def test_pseudo_density_is_the_inverse_distance_in_units_of_the_reals_mean(n, raw):
    reals, mean = doubles(2, 1.5, 2.5), sum(raw) / 3
    assert pseudo_density(reals, reals, exponent=n).tolist() == pytest.approx([v / mean for v in raw], rel=1e-14)
    assert pseudo_density(doubles(4), reals, exponent=n).tolist() == pytest.approx([4**-n / mean], rel=1e-14)


def test_pseudo_density_of_copies_ends_at_the_floor():
    reals = doubles(0, 1, 3, 4)  # mean 2
    raw = [1 / 0.02, 1, 1 / 3, 1 / 4]
    got = pseudo_density(doubles(0, 0.01, 0.03), reals, floor=0.01)
    assert got.tolist() == pytest.approx([v / (sum(raw) / 4) for v in (50, 50, 1 / 0.03)], rel=1e-14)
    assert pseudo_density(doubles(0, 2), doubles(0, 0)).tolist() == [1, 0.5]  # reals that are all equal: floored to 1


def test_the_class_uses_the_equations():
    density = PseudoDensity(k=2, exponent=2.0, floor=0.01).fit(LINE)
    distance = mean_distance(LINE, 2)
    assert torch.equal(density.rho, pseudo_density(distance, distance, exponent=2.0, floor=0.01))
    assert torch.equal(density.score([[4.0]]), pseudo_density(doubles(2), distance, exponent=2.0, floor=0.01))
    assert density.threshold(0.3) == quantile_threshold(density.rho, 0.3)


@pytest.mark.parametrize(
    ("q", "slope"),
    [
        (4.0, -1 / 4),  # d_2 = (1 + 3) / 2, both neighbours on the left: d rho = -1 / d^2
        (-1.0, 1 / 2.25),  # d_2 = (1 + 2) / 2, both on the right
        (2.25, 0.0),  # neighbours 1 and 3, one on each side: the sum of distances does not change
        (1.0, -1 / 2 / 0.25),  # d_2 = (0 + 1) / 2, on top of a real, which adds nothing: d moves by 1/2
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_soft_score_has_the_gradient_computed_by_hand(q, slope, dtype):
    x = torch.tensor([[q]], dtype=dtype, requires_grad=True)
    rho = PseudoDensity(k=2).fit(LINE).soft_score(x)
    rho.sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.item() == pytest.approx(slope / INVERSE_MEAN, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_soft_score_works_in_half_precision(dtype):
    x = torch.tensor([[4.0], [-1.0]], dtype=dtype, requires_grad=True)
    rho = PseudoDensity(k=2).fit(LINE).soft_score(x)
    rho.sum().backward()
    assert rho.dtype == x.grad.dtype == dtype
    assert rho.tolist() == pytest.approx([1 / 2 / INVERSE_MEAN, 1 / 1.5 / INVERSE_MEAN], rel=0.01)
    assert x.grad.flatten().tolist() == pytest.approx([-1 / 4 / INVERSE_MEAN, 1 / 2.25 / INVERSE_MEAN], rel=0.02)


def test_quantile_threshold_interpolates_between_the_reals():
    rho = doubles(3, 1, 2, 6)
    assert [quantile_threshold(rho, q) for q in (0, 0.25, 0.5, 0.9, 1)] == pytest.approx([1, 1.75, 2.5, 5.1, 6])
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile_threshold(rho, 1.01)


def test_push_step_by_hand():
    delta, gradient = doubles(0.0, 0.09, -0.09, 0.05), doubles(3.0, 0.2, -5.0, -0.4)
    assert push_step(delta, gradient, 0.025, 0.1).tolist() == pytest.approx([0.025, 0.1, -0.1, 0.025])
    assert push_step(delta, gradient, 0.025, 0.1, raw=True).tolist() == pytest.approx([0.075, 0.095, -0.1, 0.04])
    assert push_step(delta, 0 * gradient, 0.025, 0.1).tolist() == delta.tolist()


def test_the_rule_its_cost_and_the_training_weights_agree():
    """One rule in three forms, for scores of which three of five lie above tau (the tie does not)."""
    rho = doubles(0.2, 0.7, 0.9, 1.4, 0.71)
    for w, probability in (
        (4.0, [1 / 4, 1 / 4, 1, 1, 1]),
        (1.5, [2 / 3, 2 / 3, 1, 1, 1]),
        (0.25, [1, 1, 0.25, 0.25, 0.25]),
    ):
        accepted = acceptance_probability(rho, threshold=0.7, ratio=w)
        assert accepted.tolist() == pytest.approx(probability, rel=1e-7)
        weights = training_weights(rho, threshold=0.7, ratio=w)
        assert weights.tolist() == pytest.approx([v / sum(probability) for v in probability], rel=1e-7)
        told = forecast(3 / 5, ratio=w)
        assert (told.ratio, told.share_above) == (w, 3 / 5)
        assert told.acceptance == pytest.approx(float(accepted.mean()))
        assert told.share_above_after == pytest.approx(float(weights[2:].sum()))
        assert told.calls_per_sample == pytest.approx(5 / sum(probability))


def test_the_fixed_point_by_hand():
    got = fixed_point(doubles(0.5, 0.3, 0.2), w_real=doubles(1, 4, 4), w_fake=doubles(1, 2, 0.5))
    assert got.tolist() == pytest.approx([0.5 / 2.7, 0.6 / 2.7, 1.6 / 2.7])


def test_calls_until_n_are_accepted_are_those_of_a_negative_binomial():
    told = forecast(0.2, ratio=4.0)  # a = 0.2 + 0.8 / 4 = 0.4
    assert told.calls(30) == pytest.approx(75)
    assert told.calls(30, sd=2.0) == pytest.approx(75 + 2 * math.sqrt(30 * 0.6) / 0.4)
    assert forecast(0.2, ratio=1.0).calls(30, sd=3.0) == 30  # all are accepted: nothing varies
    assert forecast(0.0, ratio=math.inf).calls(5) == math.inf


def test_nothing_and_everything_above_the_threshold_are_forecast_too():
    for w, acceptance in ((4.0, (0.25, 1.0)), (0.25, (1.0, 0.25)), (0.0, (1.0, 0.0)), (math.inf, (0.0, 1.0))):
        assert (forecast(0.0, ratio=w).acceptance, forecast(1.0, ratio=w).acceptance) == acceptance
    none = forecast(1.0, ratio=0.0)
    assert math.isnan(none.share_above_after) and none.calls_per_sample == math.inf
    for bad in (-0.01, 1.01):
        with pytest.raises(ValueError, match=f"share_above = {bad} must be between 0 and 1"):
            forecast(bad, ratio=2.0)


def test_a_ratio_of_zero_infinity_or_nonsense():
    rho = doubles(0.2, 0.9, 0.7)
    assert acceptance_probability(rho, threshold=0.7, ratio=0.0).tolist() == [1, 0, 1]
    assert acceptance_probability(rho, threshold=0.7, ratio=math.inf).tolist() == [0, 1, 0]
    assert training_weights(rho, threshold=0.7, ratio=0.0).tolist() == [0.5, 0, 0.5]
    assert training_weights(rho, threshold=0.1, ratio=0.01).tolist() == pytest.approx([1 / 3] * 3)  # all above tau
    for bad in (-0.5, math.nan):
        with pytest.raises(ValueError, match=f"ratio = {bad} must be >= 0: above 1 for typical"):
            acceptance_probability(rho, threshold=0.7, ratio=bad)
    with pytest.raises(ValueError, match="ratio = inf leaves no sample to draw: 0 of 3 lie above tau$"):
        training_weights(rho, threshold=1.0, ratio=math.inf)


def test_scores_that_are_no_numbers_are_counted_and_refused():
    with pytest.raises(ValueError, match="^2 of 3 scores are not finite: check features$"):
        equations.above(doubles(math.nan, 0.5, math.inf), 0.3)
    with pytest.raises(ValueError, match="^the threshold is NaN: take it from PseudoDensity.threshold"):
        equations.above(doubles(0.5), math.nan)


def test_the_ratio_of_a_gan_is_that_of_its_two_weights():
    assert ratio_of(w_real=3.0, w_fake=0.5) == 6
    assert ratio_of(w_real=0.25) == 0.25  # fakes are not weighted unless one says so
    for real, fake in ((0.0, 1.0), (1.0, 0.0), (-2.0, -1.0)):
        with pytest.raises(ValueError, match=f"w_real = {real} and w_fake = {fake} must be positive"):
            ratio_of(w_real=real, w_fake=fake)


def test_expected_distance_is_exact_on_a_line():
    """d = 1: the j-th distance in a Poisson process of rate c has mean j / (2 c)."""
    assert equations.expected_distance(1, 1, 5.0) == pytest.approx(0.1)
    assert equations.expected_distance(3, 1, 5.0) == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    assert equations.expected_distance(1, 2, 2.0) == pytest.approx(0.5 / math.sqrt(2))  # 1 / (2 sqrt(c))


def test_the_exercises_of_lesson_03_are_the_same_equations():
    """Reference solution and library function, on other data than the check's."""
    reference = {name: e.reference for name, e in load_exercises(Project().folder("03")).items()}
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64).exp()
    distance = mean_distance(x, 5)
    rho = pseudo_density(distance, distance)
    torch.testing.assert_close(reference["l03.pseudo_density"](x, 5), rho, rtol=1e-9, atol=0)
    for w in (20.0, 0.2, 1.0):
        want = acceptance_probability(rho, threshold=0.8, ratio=w)
        torch.testing.assert_close(reference["l03.acceptance"](rho, 0.8, w), want)
        told = forecast(0.37, ratio=w)
        want = told.acceptance, told.share_above_after, told.calls_per_sample
        assert reference["l03.forecast"](0.37, w) == want
    delta, gradient = 0.1 * x - 0.1, x - 1
    assert torch.equal(reference["l03.push_step"](delta, gradient, 0.03, 0.1), push_step(delta, gradient, 0.03, 0.1))
