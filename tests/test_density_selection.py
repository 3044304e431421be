"""The two-level rule, accept/reject with a budget, weighted training draws."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from labkit.density import (
    BudgetExhausted,
    acceptance_probability,
    fixed_point,
    forecast,
    importance_sample,
    pilot,
    ratio_of,
    training_weights,
)
from labkit.density.sampler import WeightedSampler


def generate(first, count):
    """Candidate i is a uniform number that depends on i alone."""
    rows = [torch.rand(1, 1, generator=torch.Generator().manual_seed(i)) for i in range(first, first + count)]
    return torch.cat(rows)  # [count, 1]


def score(samples):
    return samples[:, 0].double()


def select(n=200, *, tau, ratio, budget=100_000, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return importance_sample(
        generate, score, n=n, threshold=tau, ratio=ratio, budget=budget, generator=generator, **options
    )


@pytest.mark.parametrize(
    ("pi", "ratio", "acceptance", "share", "calls"),
    [  # the six published rows of the closed form
        (0.9, 33, 0.9030, 0.9966, 1.11),
        (0.5, 33, 0.5152, 0.9706, 1.94),
        (0.1, 33, 0.1273, 0.7857, 7.86),
        (0.9, 0.03, 0.1270, 0.2126, 7.87),
        (0.5, 0.03, 0.5150, 0.0291, 1.94),
        (0.1, 0.03, 0.9030, 0.0033, 1.11),
    ],
)
def test_forecast_has_the_check_values(pi, ratio, acceptance, share, calls):
    f = forecast(pi, ratio=ratio)
    assert (f.acceptance, f.share_above_after) == pytest.approx((acceptance, share), abs=5e-5)
    assert f.calls_per_sample == pytest.approx(calls, abs=0.005)
    odds = ratio * pi / (ratio * pi + 1 - pi)
    assert f.share_above_after == pytest.approx(odds, rel=1e-12)


def test_forecast_at_the_ends():
    assert forecast(0.1, ratio=math.inf).calls_per_sample == pytest.approx(10)
    assert forecast(0.25, ratio=1).acceptance == 1
    assert forecast(0.25, ratio=0).share_above_after == 0
    empty = forecast(0.0, ratio=math.inf)
    assert empty.calls_per_sample == math.inf and empty.calls(5) == math.inf
    f = forecast(0.5, ratio=math.inf)
    assert f.calls(100) == 200 and f.calls(100, sd=2) == pytest.approx(200 + 2 * math.sqrt(50) / 0.5)


@pytest.mark.parametrize(("tau", "ratio"), [(0.5, 33.0), (0.8, 4.0), (0.3, 0.1), (0.5, 0.03)])
def test_rate_and_share_match_the_closed_form_within_four_sigma(tau, ratio):
    n = 1500
    got, exact = select(n, tau=tau, ratio=ratio), forecast(1 - tau, ratio=ratio)
    a, s = exact.acceptance, exact.share_above_after
    assert abs(got.acceptance - a) < 4 * math.sqrt(a * (1 - a) / got.calls) + 1 / got.calls
    assert abs(got.share_above_after - s) < 4 * math.sqrt(s * (1 - s) / n) + 1e-9
    spread = math.sqrt(n * (1 - a)) / a
    assert abs(got.calls - exact.calls(n)) < 4 * spread and exact.calls(n, sd=4) == exact.calls(n) + 4 * spread


def test_ratio_one_accepts_everything_in_order():
    got = select(50, tau=0.5, ratio=1.0)
    assert got.indices.tolist() == list(range(50)) and got.calls == got.generated == 50
    assert torch.equal(got.samples, generate(0, 50))


def test_a_ratio_and_its_inverse_restore_the_proportions():
    """Accepted with w, then again with 1/w: every probability is the same 1/w on both sides of tau."""
    scores = torch.tensor([0.2, 0.8]).double()
    for ratio in (3.0, 0.25, 1.0):
        both = acceptance_probability(scores, threshold=0.5, ratio=ratio) * acceptance_probability(
            scores, threshold=0.5, ratio=1 / ratio
        )
        assert float(both[0]) == pytest.approx(float(both[1]))


def test_infinite_ratio_keeps_only_what_lies_above_and_zero_only_the_rest():
    assert bool((select(100, tau=0.7, ratio=math.inf).scores > 0.7).all())
    assert bool((select(100, tau=0.7, ratio=0.0).scores <= 0.7).all())
    assert select(20, tau=-math.inf, ratio=math.inf).calls == 20
    assert select(20, tau=math.inf, ratio=0.0).calls == 20


def test_a_tie_with_the_threshold_is_below():
    scores = torch.tensor([0.5, 0.5000001]).double()
    assert acceptance_probability(scores, threshold=0.5, ratio=math.inf).tolist() == [0, 1]
    weights = training_weights(scores, threshold=0.5, ratio=4.0)
    assert float(weights[1] / weights[0]) == pytest.approx(4)


def test_the_accepted_image_is_the_returned_image():
    """A generator that never makes the same twice: scores must be those of the returned rows."""
    calls = torch.Generator().manual_seed(0)
    got = importance_sample(
        lambda first, count: torch.rand(count, 1, generator=calls), score, n=40, threshold=0.6, ratio=math.inf,
        budget=5000, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert torch.equal(score(got.samples), got.scores) and bool((got.scores > 0.6).all())


def test_what_is_accepted_does_not_depend_on_the_batch_size():
    a, b = (select(60, tau=0.6, ratio=5.0, batch=size) for size in (1, 37))
    assert torch.equal(a.indices, b.indices) and torch.equal(a.samples, b.samples) and a.calls == b.calls
    assert torch.equal(a.all_scores, b.all_scores) and a.generated <= b.generated
    assert torch.equal(a.samples, torch.cat([generate(i, 1) for i in a.indices.tolist()]))


def test_an_empty_acceptance_region_ends_with_the_budget_and_gives_back_what_there_is():
    with pytest.raises(BudgetExhausted, match="accepted 0 of 5 samples within the budget of 70 calls") as caught:
        select(5, tau=2.0, ratio=math.inf, budget=70)
    assert caught.value.selection.samples.shape == (0, 1) and caught.value.selection.calls == 70
    with pytest.raises(BudgetExhausted, match="of 40 samples") as caught:
        select(40, tau=0.9, ratio=math.inf, budget=64)
    kept = caught.value.selection
    assert 0 < len(kept.samples) < 40 and bool((kept.scores > 0.9).all()) and kept.generated == 64


def test_the_pilot_forecasts_the_cost_before_it_is_paid():
    f = pilot(generate, score, threshold=0.8, ratio=10.0, n=1000, first=50_000)
    got = select(400, tau=0.8, ratio=10.0)
    assert got.calls == pytest.approx(f.calls(400), rel=0.2)
    assert got.forecast.share_above == got.share_above


def test_progress_reports_accepted_and_generated():
    seen = []
    got = select(30, tau=0.5, ratio=math.inf, batch=16, progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (30, got.generated) and seen == sorted(seen)


@pytest.mark.parametrize("ratio", [33.0, 0.03])
def test_training_draws_have_the_ratio_within_four_sigma(ratio):
    scores = torch.linspace(0, 1, 500).double()
    weights = training_weights(scores, threshold=0.7, ratio=ratio)
    assert float(weights.sum()) == pytest.approx(1, rel=1e-12)
    n, p = 40_000, float(weights[scores > 0.7].sum())
    drawn = WeightedSampler(weights, seed=0).draw(n, torch.Generator().manual_seed(3))
    assert abs(float((scores[drawn] > 0.7).double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / n)
    high, low = int((scores > 0.7).sum()), int((scores <= 0.7).sum())
    assert p == pytest.approx(ratio * high / (ratio * high + low))


def test_training_draws_are_reproducible_by_seed_and_new_in_every_epoch():
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0])
    a, b, c = WeightedSampler(weights, seed=1), WeightedSampler(weights, seed=1), WeightedSampler(weights, seed=2)
    first = list(a)
    assert first == list(b) and list(a) == list(b) and len(a) == 4
    long = [list(WeightedSampler(weights, seed=s, n=400)) for s in (1, 2)]
    assert long[0] != long[1] and set(long[0]) == {1, 2}
    batches = list(DataLoader(torch.arange(4), batch_size=2, sampler=c))
    assert sum(len(batch) for batch in batches) == 4 and all(int(x) in (1, 2) for batch in batches for x in batch)


def test_the_fixed_point_is_the_real_law_times_the_ratio_of_weights():
    """A 1-D 'GAN': move p_fake until w_real p_real and w_fake p_fake agree."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    high = torch.tensor([False, False, True, True])
    w_real, w_fake = torch.where(high, 4.0, 1.0).double(), torch.where(high, 0.25, 1.0).double()
    fake = torch.full((4,), 0.25).double()
    for _ in range(200):  # multiplicative updates by the odds that an ideal discriminator sees
        seen_real, seen_fake = (w * q / (w * q).sum() for w, q in ((w_real, p), (w_fake, fake)))
        fake = fake * (seen_real / seen_fake) ** 0.5
        fake = fake / fake.sum()
    torch.testing.assert_close(fake, fixed_point(p, w_real=w_real, w_fake=w_fake), rtol=1e-9, atol=0)
    odds = float(fake[2:].sum() / fake[:2].sum()) / float(p[2:].sum() / p[:2].sum())
    assert odds == pytest.approx(ratio_of(w_real=4.0, w_fake=0.25)) == 16
    assert ratio_of(w_real=33.0, w_fake=0.33) == pytest.approx(100) and ratio_of(w_real=2.0) == 2


def test_nonsense_is_refused():
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="must be >= 0"):
            select(5, tau=0.5, ratio=bad)
    with pytest.raises(ValueError, match="at least 1"):
        select(0, tau=0.5, ratio=2.0)
    with pytest.raises(ValueError, match="threshold is NaN"):
        select(5, tau=math.nan, ratio=2.0)
    with pytest.raises(ValueError, match="scores are not finite"):
        acceptance_probability(torch.tensor([0.1, math.nan]), threshold=0.5, ratio=2.0)
    with pytest.raises(ValueError, match="score returned shape"):
        importance_sample(generate, lambda x: x, n=2, threshold=0.5, ratio=2.0, budget=9, generator=torch.Generator())
    with pytest.raises(ValueError, match="generate returned 1 samples for 3"):
        importance_sample(
            lambda f, c: torch.zeros(1, 1), score, n=3, threshold=0.5, ratio=2.0, budget=9, generator=torch.Generator()
        )
    with pytest.raises(ValueError, match="leaves no sample to draw"):
        training_weights(torch.tensor([0.1, 0.2]), threshold=0.5, ratio=math.inf)
    with pytest.raises(ValueError, match="all weights are 0"):
        WeightedSampler(torch.zeros(3), seed=0)
    with pytest.raises(ValueError, match="must be positive"):
        ratio_of(w_real=1.0, w_fake=0.0)
    with pytest.raises(ValueError, match="share_above"):
        forecast(33, ratio=2.0)
