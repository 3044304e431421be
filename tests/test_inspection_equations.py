"""Plans, intervals, sequential tests and certification: published and hand-computed values, edges, and coverage."""

import math
import re

import numpy as np
import pytest
from scipy.stats import binom

from labkit.inspection import (
    acceptance,
    average_outgoing_quality,
    average_total_inspection,
    certification_p_value,
    certify_threshold,
    clopper_pearson,
    csp1,
    e_process,
    lot_upper_bound,
    outgoing_quality_limit,
    sprt,
    true_rate,
    two_point_plan,
    upper_bound,
    zero_failure_n,
)
from labkit.inspection.equations import SPRT, csp1_limit, design_effect, majority_rate, smallest
from labkit.inspection.threshold import CalibrationError, PreferenceFilter
from labkit.metrics import sample_size, wilson_interval

# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "confidence", "n"),
    [(0.05, 0.95, 59), (0.02, 0.95, 149), (0.01, 0.95, 299), (0.005, 0.95, 598), (0.01, 0.9, 230), (0.001, 0.95, 2995)],
)
def test_zero_failure_n_is_the_first_that_reaches_the_confidence(rate, confidence, n):
    assert zero_failure_n(rate, confidence) == n
    assert (1 - rate) ** n <= 1 - confidence < (1 - rate) ** (n - 1)


@pytest.mark.parametrize(("lot", "rate", "n"), [(500, 0.05, 54), (500, 0.02, 119), (1000, 0.01, 238), (200, 0.05, 47)])
def test_zero_failure_n_of_a_finite_lot_is_hypergeometric(lot, rate, n):
    assert zero_failure_n(rate, lot=lot) == n

    def misses(n):  # none of the D bad pictures among n of N
        bad = round(rate * lot) + 1
        return math.comb(lot - bad, n) / math.comb(lot, n)

    assert misses(n) <= 0.05 < misses(n - 1)


def test_a_share_of_a_lot_is_not_spoilt_by_rounding():
    """0.07 x 100 is a little more than 7 in floating point, 0.29 x 100 a little less than 29."""
    assert zero_failure_n(0.07, lot=100) == next(
        n for n in range(1, 101) if math.comb(92, n) / math.comb(100, n) <= 0.05
    )
    assert zero_failure_n(0.29, lot=100) == next(
        n for n in range(1, 101) if math.comb(70, n) / math.comb(100, n) <= 0.05
    )


@pytest.mark.parametrize(
    ("good", "bad", "plan"),
    [
        (0.01, 0.05, (132, 3)),
        (0.01, 0.08, (65, 2)),
        (0.02, 0.08, (98, 4)),
        (0.005, 0.03, (221, 3)),
        (0.01, 0.03, (390, 7)),
    ],
)
def test_two_point_plan_keeps_both_risks_and_no_smaller_one_does(good, bad, plan):
    n, c = two_point_plan(good, bad)
    assert (n, c) == plan
    assert acceptance(good, n=n, c=c) >= 0.95 and acceptance(bad, n=n, c=c) <= 0.1
    smaller = np.arange(1, n)
    for fewer in range(c + 1):  # no smaller sample keeps both, whatever its acceptance number
        assert not ((binom.cdf(fewer, smaller, good) >= 0.95) & (binom.cdf(fewer, smaller, bad) <= 0.1)).any()


def test_two_point_plan_of_a_finite_lot_is_smaller_and_exact():
    n, c = two_point_plan(0.01, 0.05, lot=500)
    assert (n, c) == (123, 3)

    def passes(bad):
        return sum(math.comb(bad, d) * math.comb(500 - bad, n - d) for d in range(c + 1)) / math.comb(500, n)

    assert passes(5) >= 0.95 and passes(25) <= 0.1
    assert acceptance(0.05, n=n, c=c, lot=500) == pytest.approx(passes(25), rel=1e-9)
    assert two_point_plan(0.01, 0.05, lot=10) == (9, 0)  # none against one bad picture of ten
    with pytest.raises(ValueError, match="must be below bad"):
        two_point_plan(0.05, 0.05)


def test_acceptance_by_hand():
    # n = 3, c = 1, p = 0.2: 0.8^3 + 3 x 0.2 x 0.8^2
    assert acceptance(0.2, n=3, c=1) == pytest.approx(0.896)
    # a lot of 5 with 2 bad, n = 2, c = 0: 3/5 x 2/4
    assert acceptance(0.4, n=2, c=0, lot=5) == pytest.approx(0.3)
    assert acceptance([0.0, 1.0], n=3, c=1).tolist() == [1.0, 0.0]
    assert acceptance(0.4, n=5, c=2, lot=5) == 1.0  # the whole lot, exactly c bad
    with pytest.raises(ValueError, match=r"n = 6 must be from 1 to 5 \(the lot\)"):
        acceptance(0.1, n=6, c=0, lot=5)
    with pytest.raises(ValueError, match="2 % is 0.02"):
        acceptance(2, n=6, c=0)


@pytest.mark.parametrize(
    ("n", "c", "at_one_percent", "accepted_in_ten"),
    [(50, 1, 0.911, 0.076), (80, 2, 0.953, 0.065), (125, 3, 0.963, 0.053), (200, 5, 0.984, 0.046)],
)
def test_an_aql_of_one_percent_still_accepts_far_worse_lots_one_time_in_ten(n, c, at_one_percent, accepted_in_ten):
    assert acceptance(0.01, n=n, c=c) == pytest.approx(at_one_percent, abs=5e-4)
    worst = upper_bound(c, n, confidence=0.9)
    assert worst == pytest.approx(accepted_in_ten, abs=5e-4)
    assert acceptance(worst, n=n, c=c) == pytest.approx(0.1, abs=1e-9)
    assert 0.0155 <= round(outgoing_quality_limit(n=n, c=c, lot=10**6)[0], 4) <= 0.0172


def test_outgoing_quality_by_hand_and_at_its_peak():
    # n = 2, c = 0, N = 10: p (1 - p)^2 0.8, whose peak is at p = 1/3
    assert average_outgoing_quality(0.25, n=2, c=0, lot=10) == pytest.approx(0.25 * 0.5625 * 0.8)
    limit, at = outgoing_quality_limit(n=2, c=0, lot=10)
    assert at == pytest.approx(1 / 3, abs=1e-5) and limit == pytest.approx(0.8 * 4 / 27)
    assert average_total_inspection(0.25, n=2, c=0, lot=10) == pytest.approx(2 + (1 - 0.5625) * 8)
    assert average_total_inspection([0.0, 1.0], n=2, c=0, lot=10).tolist() == [2.0, 10.0]


# ---- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "n", "bound"), [(0, 59, 4.95), (0, 80, 3.68), (1, 80, 5.79), (2, 80, 7.66), (3, 125, 6.09)]
)
def test_upper_bound(d, n, bound):
    assert 100 * upper_bound(d, n) == pytest.approx(bound, abs=0.005)


def test_intervals_at_the_published_values_and_the_edges():
    assert np.round(100 * np.array(clopper_pearson(2, 80)), 2).tolist() == [0.30, 8.74]
    assert np.round(100 * np.array(wilson_interval(2, 80)), 2).tolist() == [0.69, 8.66]
    assert clopper_pearson(0, 7)[0] == 0.0 and clopper_pearson(7, 7)[1] == 1.0
    low, high = clopper_pearson(3, 10)
    assert clopper_pearson(7, 10) == pytest.approx((1 - high, 1 - low))
    assert upper_bound(0, 100) == pytest.approx(3 / 100, rel=0.02)  # rule of three
    with pytest.raises(ValueError, match="d = 8 must be from 0 to 7"):
        upper_bound(8, 7)


def test_lot_upper_bound_counts_whole_pictures():
    assert lot_upper_bound(0, 119, lot=500) == 10  # the plan that refuses more than 2 % of 500
    assert lot_upper_bound(0, 118, lot=500) == 11
    assert lot_upper_bound(3, 500, lot=500) == 3  # all seen
    assert lot_upper_bound(2, 2, lot=7) == 7  # nothing good seen: all may be bad
    assert lot_upper_bound(2, 80, lot=10**6) == pytest.approx(upper_bound(2, 80) * 10**6, rel=1e-3)


@pytest.mark.parametrize(("p", "n"), [(0.02, 80), (0.1, 59), (0.3, 200)])
def test_the_intervals_cover_the_true_rate(p, n):
    """Coverage by simulation. The exact interval never falls below its level; Wilson's is near it."""
    draws, times = np.unique(np.random.default_rng(7).binomial(n, p, size=4000), return_counts=True)
    covered = np.array(
        [
            [low <= p <= high for low, high in (clopper_pearson(d, n), wilson_interval(d, n), (0, upper_bound(d, n)))]
            for d in draws
        ]
    )  # [draws, 3]
    exact, wilson, above = times @ covered / 4000
    assert exact >= 0.943 and above >= 0.943  # 0.95 less two standard errors of the simulation
    assert 0.93 <= wilson <= 0.985


def test_the_lot_bound_covers_the_lot():
    bad, lot, n = 18, 300, 60
    seen, times = np.unique(np.random.default_rng(3).hypergeometric(bad, lot - bad, n, size=4000), return_counts=True)
    assert times @ [lot_upper_bound(d, n, lot=lot) >= bad for d in seen] / 4000 >= 0.943


# ---- inspectors -----------------------------------------------------------------------------------------------------


def test_true_rate_undoes_what_imperfect_inspectors_do():
    assert true_rate(0.06, sensitivity=0.9, specificity=0.97) == pytest.approx(0.0345, abs=5e-5)
    p, se, sp = 0.2, 0.7, 0.9
    assert true_rate(p * se + (1 - p) * (1 - sp), sensitivity=se, specificity=sp) == pytest.approx(p)
    assert true_rate(0.01, sensitivity=0.9, specificity=0.97) == 0.0  # fewer reports than false alarms alone
    with pytest.raises(ValueError, match="must exceed 1"):
        true_rate(0.06, sensitivity=0.5, specificity=0.5)


def test_majority_rate_and_sample_sizes_of_comparisons():
    assert [round(100 * majority_rate(rate, 5)) for rate in (0.6, 0.65, 0.7)] == [68, 76, 84]
    assert majority_rate(0.6, 3) == pytest.approx(0.6**3 + 3 * 0.6**2 * 0.4)
    with pytest.raises(ValueError, match="odd"):
        majority_rate(0.6, 4)
    assert [sample_size(rate) for rate in (0.55, 0.6, 0.65, 0.7)] == [783, 194, 85, 47]
    assert design_effect(4, 0.25) == 1.75


# ---- one at a time --------------------------------------------------------------------------------------------------


def test_sprt_has_the_published_lines_and_performance():
    test = sprt(0.01, 0.05)
    assert (test.accept_at, test.reject_at, test.slope) == pytest.approx((1.364, 1.751, 0.0250), abs=5e-4)
    assert test.first_acceptance() == 55
    assert test.decide(0, 54) == "go on" and test.decide(0, 55) == "accept" and test.decide(2, 3) == "reject"
    # mean number and acceptance as simulated elsewhere; here they are exact
    published = {0.0: (1.0, 55), 0.01: (0.970, 86), 0.02: (None, 114), 0.05: (0.101, 71), 0.1: (None, 29)}
    for rate, (accepted, looked) in published.items():
        got_accepted, got_looked = test.performance(rate)
        assert got_looked == pytest.approx(looked, abs=1.5)
        assert accepted is None or got_accepted == pytest.approx(accepted, abs=0.003)
    assert max(test.performance(rate)[1] for rate in (0.0, 0.01, 0.05, 0.1)) < two_point_plan(0.01, 0.05)[0] == 132


def test_sprt_exact_performance_agrees_with_a_walk():
    test, rng = sprt(0.02, 0.2, truncate=40), np.random.default_rng(11)
    ends = []
    for _ in range(3000):
        d = n = 0
        while (decision := test.decide(d, n)) == "go on":
            d, n = d + (rng.random() < 0.1), n + 1
        ends.append((decision == "accept", n))
    accepted, looked = np.mean(ends, axis=0)
    assert test.performance(0.1) == pytest.approx((accepted, looked), abs=0.6) and test.performance(0.1)[0] == (
        pytest.approx(accepted, abs=0.03)
    )


def test_truncation_ends_by_the_nearer_line():
    test = sprt(0.01, 0.05, truncate=10)
    assert test.decide(0, 9) == "go on" and test.decide(0, 10) == "accept" and test.decide(1, 10) == "reject"
    assert test.performance(0.0) == (1.0, 10.0)
    with pytest.raises(ValueError, match="give it a truncate"):
        sprt(0.01, 0.05).performance(0.02, horizon=100)


def test_e_process_by_hand():
    # p0 = 0.2, one bet of half the largest: lambda = 2.5 above, 0.625 below
    assert e_process([1, 0], 0.2, bets=[0.5]).tolist() == pytest.approx([1 + 2.5 * 0.8, 3 * (1 - 2.5 * 0.2)])
    assert e_process([1, 0], 0.2, side="below", bets=[0.5]).tolist() == pytest.approx([0.5, 0.5 * (1 + 0.625 * 0.2)])
    assert e_process([1], 0.2, bets=[0.0, 0.5]).tolist() == pytest.approx([(1 + 3) / 2])
    assert math.isfinite(e_process([1] * 5000, 0.01)[-1])
    with pytest.raises(ValueError, match="0 .good. and 1"):
        e_process([0.5], 0.2)
    with pytest.raises(ValueError, match="cannot come back"):
        e_process([1], 0.2, bets=[1.0])


def test_looking_after_every_picture_keeps_the_level():
    """A fixed-n test that is looked at after every picture does not: that is why managers need this one."""
    rng, p0, looks = np.random.default_rng(5), 0.1, 300
    alarms = peeked = 0
    for _ in range(600):
        x = (rng.random(looks) < p0).astype(int)
        alarms += e_process(x, p0).max() >= 20
        d, n = np.cumsum(x)[19:], np.arange(20, looks + 1)
        peeked += bool((d > n * p0 + 1.645 * np.sqrt(n * p0 * (1 - p0))).any())
    assert alarms / 600 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)
    assert peeked / 600 > 0.15
    assert e_process((rng.random(300) < 0.3).astype(int), p0).max() >= 20  # and it does see a bad process


@pytest.mark.parametrize(("i", "f", "limit"), [(50, 0.1, 2.16), (100, 0.1, 1.09), (100, 0.05, 1.50)])
def test_csp1_limits(i, f, limit):
    value, at = csp1_limit(clearance=i, fraction=f)
    assert 100 * value == pytest.approx(limit, abs=0.005)
    assert csp1(at, clearance=i, fraction=f).outgoing == pytest.approx(value)


def test_csp1_by_its_two_phases_and_at_the_edges():
    p, i, f = 0.1, 3, 0.25
    u, v = (1 - 0.9**3) / (0.1 * 0.9**3), 1 / (0.25 * 0.1)
    got = csp1(p, clearance=i, fraction=f)
    assert got.inspected == pytest.approx((u + f * v) / (u + v)) and got.outgoing == pytest.approx(
        p * (1 - got.inspected)
    )
    assert csp1(0.01, clearance=100, fraction=0.1).inspected == pytest.approx(0.23, abs=0.005)
    assert csp1(0.05, clearance=100, fraction=0.1).inspected == pytest.approx(0.95, abs=0.005)
    assert csp1(0.9, clearance=10**6, fraction=0.1).outgoing == 0.0  # q^i underflows: everything is inspected
    assert csp1(0.2, clearance=5, fraction=1.0).inspected == pytest.approx(1.0)
    rng = np.random.default_rng(2)
    looked, clean, everything = 0, 0, True
    for _ in range(40_000):
        look = everything or rng.random() < f
        looked += look
        if look and rng.random() < p:
            everything, clean = True, 0
        elif look and everything:
            clean += 1
            everything = clean < i
    assert looked / 40_000 == pytest.approx(got.inspected, abs=0.02)


# ---- thresholds -----------------------------------------------------------------------------------------------------


def test_certification_p_values():
    assert certification_p_value(3, 300, alpha=0.03) == pytest.approx(0.0199, abs=5e-5)
    assert certification_p_value(5, 300, alpha=0.03) == pytest.approx(0.112, abs=5e-4)
    assert certification_p_value(8, 500, alpha=0.03) == pytest.approx(0.0354, abs=5e-5)
    assert certification_p_value(0, 0, alpha=0.03) == 1.0


def graded(rng, n):
    """Scores in 0..1 and labels: the higher the score, the rarer a defect."""
    scores = rng.random(n)
    return scores, rng.random(n) < 0.3 * (1 - scores) ** 2


def test_the_sequence_stops_at_the_first_failure_and_deploys_the_one_before():
    scores = [0.9] * 300 + [0.7] * 200 + [0.5] * 100
    bad = [True] * 3 + [False] * 297 + [True] * 5 + [False] * 195 + [True] * 50 + [False] * 50
    got = certify_threshold(scores, bad, thresholds=[0.8, 0.6, 0.4, 0.2], alpha=0.03)
    assert [(t.passed, t.defective, t.certified) for t in got.tests] == [
        (300, 3, True),
        (500, 8, True),
        (600, 58, False),
    ]
    assert got.threshold == 0.6 and got.passes == pytest.approx(500 / 600)
    with pytest.raises(CalibrationError, match="not certified: 3 of 300 defective, p = 0.0199 > 0.01"):
        certify_threshold(scores, bad, thresholds=[0.8], alpha=0.03, delta=0.01)
    with pytest.raises(CalibrationError, match="99 must pass: start looser or label more"):
        certify_threshold(scores[:50], [False] * 50, thresholds=[0.8], alpha=0.03)
    with pytest.raises(ValueError, match="must fall strictly"):
        certify_threshold(scores, bad, thresholds=[0.4, 0.6], alpha=0.03)


def test_a_certified_threshold_is_wrong_at_most_as_often_as_it_says():
    rng, alpha, delta = np.random.default_rng(17), 0.05, 0.1
    thresholds = np.linspace(0.75, 0.05, 29)

    def risk(tau):  # mean of 0.3 (1 - s)^2 over s in tau..1
        return 0.1 * (1 - tau) ** 2

    wrong, runs = 0, 400
    for _ in range(runs):
        scores, bad = graded(rng, 600)
        try:
            tau = certify_threshold(scores, bad, thresholds=thresholds, alpha=alpha, delta=delta).threshold
        except CalibrationError:
            continue
        wrong += risk(tau) > alpha
    assert wrong / runs <= delta + 2 * math.sqrt(delta * (1 - delta) / runs)
    assert wrong > 0  # the test has something to see


def test_a_threshold_says_nothing_about_another_process_and_keeps_a_band_for_people():
    scores, bad = graded(np.random.default_rng(1), 2000)
    certificate = certify_threshold(scores, bad, thresholds=[0.9, 0.8, 0.7], alpha=0.05, process="old")
    tau = certificate.threshold
    keep = PreferenceFilter(certificate, abstain=0.1)
    assert keep.sort([tau, tau - 0.05, tau - 0.2], process="old") == ["pass", "abstain", "refuse"]
    with pytest.raises(CalibrationError, match="calibrate again"):
        keep.sort([0.9], process="new")
    with pytest.raises(ValueError, match="1 scores are not finite"):
        keep.sort([math.nan], process="old")


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zero_failure_n(0.0), "rate = 0 must be between 0 and 1: 2 % is 0.02"),
        (lambda: zero_failure_n(0.1, 1.0), "confidence = 1 must be between 0 and 1"),
        (lambda: zero_failure_n(0.1, lot=0), "lot = 0 must be from 1 to 1000000000 (pictures)"),
        (lambda: two_point_plan(0.0, 0.1), "good = 0 must be between"),
        (lambda: two_point_plan(0.1, 1.0), "bad = 1 must be between"),
        (lambda: two_point_plan(0.1, 0.2, alpha=0), "alpha = 0 must be between"),
        (lambda: two_point_plan(0.1, 0.2, beta_risk=1), "beta_risk = 1 must be between"),
        (lambda: two_point_plan(0.1, 0.2, lot=0), "lot = 0 must be from 1"),
        (lambda: acceptance(0.1, n=0, c=0), "n = 0 must be from 1 to 1000000000 (the lot)"),
        (lambda: acceptance(0.1, n=3, c=-1), "c = -1 must be from 0"),
        (lambda: acceptance(-0.1, n=3, c=0), "rates must lie in 0..1"),
        (lambda: clopper_pearson(1, 3, level=1.0), "level = 1 must be between"),
        (lambda: clopper_pearson(-1, 3), "d = -1 must be from 0 to 3 (the sample)"),
        (lambda: upper_bound(0, 0), "n = 0 must be from 1 to 1000000000 (pictures)"),
        (lambda: upper_bound(0, 3, confidence=0.0), "confidence = 0 must be between"),
        (lambda: lot_upper_bound(0, 3, lot=10, confidence=1), "confidence = 1 must be between"),
        (lambda: lot_upper_bound(0, 11, lot=10), "n = 11 must be from 1 to 10 (the lot)"),
        (lambda: true_rate(1.1, sensitivity=0.9, specificity=0.9), "observed = 1.1 must be from 0 to 1"),
        (lambda: true_rate(0.1, sensitivity=1.1, specificity=0.9), "sensitivity = 1.1 must be from 0 to 1"),
        (lambda: true_rate(0.1, sensitivity=0.9, specificity=-0.1), "specificity = -0.1 must be from 0 to 1"),
        (lambda: majority_rate(1.1, 3), "rate = 1.1 must be from 0 to 1"),
        (lambda: majority_rate(0.5, 0), "voters = 0 must be from 1 to 1000000 (people)"),
        (lambda: sprt(0.0, 0.1), "good = 0 must be between"),
        (lambda: sprt(0.1, 1.0), "bad = 1 must be between"),
        (lambda: sprt(0.1, 0.1), "good = 0.1 must be below bad = 0.1"),
        (lambda: sprt(0.1, 0.2, alpha=0), "alpha = 0 must be between"),
        (lambda: sprt(0.1, 0.2, beta_risk=0), "beta_risk = 0 must be between"),
        (lambda: sprt(0.1, 0.2, truncate=0), "truncate = 0 must be from 1 to 1000000000 (pictures)"),
        (lambda: sprt(0.1, 0.2).performance(1.5), "rate = 1.5 must be from 0 to 1"),
        (lambda: e_process([0], 1.0), "p0 = 1 must be between"),
        (lambda: e_process([[0]], 0.5), "x must be a 1-D sequence"),
        (lambda: e_process([0], 0.5, side="both"), "side = 'both' must be"),
        (lambda: e_process([0], 0.5, bets=[]), "bets = () must be shares"),
        (lambda: csp1(0.0, clearance=3, fraction=0.1), "rate = 0 must be between"),
        (lambda: csp1(0.1, clearance=0, fraction=0.1), "clearance = 0 must be from 1 to 1000000000 (pictures)"),
        (lambda: csp1(0.1, clearance=3, fraction=1.1), "fraction = 1.1 must be from 0 to 1"),
        (lambda: csp1(0.1, clearance=3, fraction=0), "fraction = 0 never finds"),
        (lambda: certification_p_value(0, -1, alpha=0.1), "n = -1 must be from 0 to 1000000000 (pictures)"),
        (lambda: certification_p_value(4, 3, alpha=0.1), "k = 4 must be from 0 to 3 (the accepted)"),
        (lambda: certification_p_value(0, 3, alpha=1), "alpha = 1 must be between"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(ValueError, match="a lot of 2 cannot hold more than 1 of bad pictures"):
        zero_failure_n(0.9999999999, lot=2)
    with pytest.raises(ValueError, match="no plan of up to 10000000 pictures tells 0.0001 from 0.000100001"):
        two_point_plan(1e-4, 1.00001e-4)


def test_a_confidence_that_is_reached_exactly_needs_no_further_picture():
    assert zero_failure_n(0.5, 0.75) == 2  # 0.5^2 = 0.25
    assert zero_failure_n(0.4, 0.5, lot=2) == 1  # one of two is bad: seen in one half of the samples
    assert certification_p_value(0, 1, alpha=0.25) == 0.75
    assert isinstance(acceptance(0.1, n=3, c=1), float)


def test_counts_must_be_whole_numbers():
    with pytest.raises(TypeError, match="n must be an integer, got 2.5"):
        upper_bound(0, 2.5)


def test_rates_at_the_ends_are_rates():
    assert true_rate(0.0, sensitivity=1.0, specificity=1.0) == 0.0
    assert true_rate(1.0, sensitivity=1.0, specificity=1.0) == 1.0
    assert true_rate(0.9, sensitivity=0.8, specificity=0.9) == 1.0  # more reports than defectives could cause
    assert majority_rate(1.0, 1) == 1.0 and majority_rate(0, 3) == 0.0
    assert sprt(0.1, 0.2).performance(1)[0] == 0.0


def test_points_on_a_line_of_the_sequential_test_decide():
    test = SPRT(accept_at=1.0, reject_at=1.0, slope=0.5, truncate=4)
    assert [test.decide(d, 2) for d in (0, 1, 2)] == ["accept", "go on", "reject"]
    assert [test.decide(d, 4) for d in (2, 3)] == ["accept", "reject"]
    assert SPRT(1.0, 2.0, 0.5, truncate=3).decide(2, 3) == "accept"  # the middle of the lines is at 2


def test_the_smallest_of_a_range():
    assert [smallest(lambda n, at=at: n >= at, 3, 9) for at in (1, 3, 4, 9)] == [3, 3, 4, 9]
    assert smallest(lambda n: n >= 3, 3, 3) == 3 and smallest(lambda n: False, 3, 9) is None
    assert smallest(lambda n: True, 4, 3) is None
