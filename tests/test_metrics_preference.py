"""Win rates: published values, prompts as units, calibrated intervals; Bradley-Terry: recovery, ties, connectivity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.metrics import (
    bradley_terry,
    cluster_bootstrap,
    holm,
    krippendorff_alpha,
    outcomes,
    sample_size,
    sign_test,
    wilson_interval,
    win_rate,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("wins", "n", "p", "low", "high"), [(60, 100, 0.057, 0.502, 0.691), (300, 500, 9e-6, 0.556, 0.642)]
)
def test_published_win_rate_values(wins, n, p, low, high):
    result = win_rate([1] * wins + [0] * (n - wins))
    assert (result.value, result.wins, result.losses, result.ties) == (wins / n, wins, n - wins, 0)
    assert result.p_value == pytest.approx(p, rel=0.05)
    assert (result.low, result.high) == pytest.approx((low, high), abs=6e-4)
    assert result.method == "wilson"


def test_sample_sizes_have_the_values_of_the_textbook_formula():
    known = {0.52: 4904, 0.55: 783, 0.58: 305, 0.6: 194, 0.65: 85, 0.7: 47}
    assert {rate: sample_size(rate) for rate in known} == known
    assert sample_size(0.4) == sample_size(0.6)
    assert sample_size(0.6, power=0.9) > sample_size(0.6)
    half_width = wilson_interval(250, 500)
    assert (half_width[1] - half_width[0]) / 2 == pytest.approx(0.0437, abs=5e-4)  # 500 prompts: +- 4.4 points
    with pytest.raises(ValueError, match="not 0.5"):
        sample_size(0.5)


def test_sample_size_reaches_its_power():
    n, generator = sample_size(0.65), rng()
    wins = generator.binomial(n, 0.65, size=2000)
    z = (wins - n / 2) / np.sqrt(n / 4)
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.05)


def test_sign_test_is_exact():
    assert sign_test(0, 0) == 1
    assert sign_test(5, 5) == 1
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(2, 8) == sign_test(8, 2)
    assert 0 < sign_test(1800, 1200) < 1e-20
    with pytest.raises(ValueError, match="counts"):
        sign_test(-1, 2)


def test_outcomes_of_scores():
    result = outcomes(candidate=[1.0, 2.0, 3.0, 0.0], baseline=[0.0, 2.0, 3.05, 1.0], tie_margin=0.1)
    assert result.tolist() == [1, 0.5, 0.5, 0]
    with pytest.raises(TypeError):
        outcomes([1.0], [0.0])
    with pytest.raises(ValueError, match="pairs"):
        outcomes(candidate=[1.0], baseline=[1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        outcomes(candidate=[float("nan")], baseline=[1.0])


def test_ties_count_half_and_use_the_bootstrap():
    result = win_rate([1, 1, 1, 0.5, 0.5, 0, 1, 1, 0, 1], generator=rng())
    assert (result.value, result.wins, result.losses, result.ties) == (0.7, 6, 2, 2)
    assert result.method == "bca" and result.low < 0.7 < result.high
    assert result.p_value == pytest.approx(sign_test(6, 2))
    with pytest.raises(ValueError, match="Wilson needs"):
        win_rate([1, 0.5, 0], method="wilson")
    with pytest.raises(ValueError, match="no generator"):
        win_rate([1, 0.5, 0])


def test_the_prompt_is_the_unit():
    """Ten images of one prompt are not ten independent votes."""
    prompts = [f"p{i}" for i in range(20) for _ in range(10)]
    outcome = [float(i % 2) for i in range(20) for _ in range(10)]
    outcome[:10] = [1.0] * 4 + [0.0] * 6  # one prompt is split
    clustered = win_rate(outcome, prompts=prompts, generator=rng())
    naive = win_rate(outcome)
    assert (clustered.prompts, clustered.comparisons, naive.prompts) == (20, 200, 200)
    assert clustered.value == pytest.approx(naive.value)
    assert (clustered.wins, clustered.losses) == (10, 10)
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)
    order = rng(1).permutation(200)
    shuffled = win_rate([outcome[i] for i in order], prompts=[prompts[i] for i in order], generator=rng())
    assert shuffled.value == pytest.approx(clustered.value)
    whole = win_rate([1.0] * 40 + [0.0] * 40, prompts=[i // 4 for i in range(80)])  # no prompt is split: Wilson
    assert whole.method == "wilson"
    assert (whole.low, whole.high) == wilson_interval(10, 20)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_cluster_bootstrap_covers(method):
    generator, hits = rng(), 0
    for _ in range(150):
        values = generator.beta(2, 1, size=40)
        low, high = cluster_bootstrap(values, method=method, resamples=400, generator=generator)
        hits += low <= 2 / 3 <= high
    assert 0.88 <= hits / 150 <= 1
    assert cluster_bootstrap([0.5] * 9, generator=generator) == (0.5, 0.5)
    draw = lambda: cluster_bootstrap([0, 0.5, 1, 1], method=method, generator=rng(3))  # noqa: E731
    assert draw() == draw()


def test_bca_of_a_skewed_mean_leans_to_the_long_tail():
    values = np.array([0.0] * 40 + [1.0] * 3)
    percentile, bca = (cluster_bootstrap(values, method=m, generator=rng()) for m in ("percentile", "bca"))
    assert bca[1] > percentile[1] and bca[0] >= percentile[0]


@settings(max_examples=20)
@given(n=st.integers(1, 300), share=st.floats(0, 1), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_contains_the_estimate_and_mirrors(n, share, level):
    wins = round(share * n)
    low, high = wilson_interval(wins, n, level=level)
    assert 0 <= low <= wins / n <= high <= 1
    assert wilson_interval(n - wins, n, level=level) == pytest.approx((1 - high, 1 - low))


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="p-values"):
        holm([1.2])


# ---- Bradley-Terry ------------------------------------------------------------------------------------------------


def play(strengths: dict[str, float], games: int, seed: int, nu: float = 0.0):
    generator, names = rng(seed), list(strengths)
    first, second, outcome = [], [], []
    for _ in range(games):
        a, b = generator.choice(names, 2, replace=False)
        s, t = np.exp(strengths[a]), np.exp(strengths[b])
        z = s + t + nu * np.sqrt(s * t)
        u = generator.random() * z
        first.append(a), second.append(b), outcome.append(1.0 if u < s else 0.0 if u < s + t else 0.5)
    return {"first": first, "second": second, "outcome": outcome}


TRUTH = {"base": -0.8, "dpo": 0.0, "kto": 0.1, "hg": 0.7}


@pytest.mark.parametrize("nu", [0.0, 0.6])
def test_strengths_are_recovered(nu):
    result = bradley_terry(**play(TRUTH, 3000, seed=1, nu=nu))
    found = dict(zip(result.names, result.strengths, strict=True))
    for name, strength in TRUTH.items():
        assert found[name] == pytest.approx(strength, abs=0.15)
    assert result.nu == pytest.approx(nu, abs=0.1)
    assert result.ranking()[0] == "hg" and result.ranking()[-1] == "base"
    assert sum(result.probability("hg", "base")) == pytest.approx(1)
    assert abs(result.worst_residual) < 3.5


def test_two_models_reproduce_their_win_rate():
    result = bradley_terry(first=["a"] * 100, second=["b"] * 100, outcome=[1.0] * 70 + [0.0] * 30, prior=1e-9)
    assert result.probability("a", "b")[0] == pytest.approx(0.7, abs=1e-6)
    tied = bradley_terry(
        first=["a"] * 100, second=["b"] * 100, outcome=[1.0] * 50 + [0.0] * 20 + [0.5] * 30, prior=1e-9
    )
    assert tied.probability("a", "b") == pytest.approx((0.5, 0.3, 0.2), abs=1e-6)


def test_the_fit_is_a_maximum_and_does_not_depend_on_order_or_side():
    games = play(TRUTH, 300, seed=2, nu=0.4)
    result = bradley_terry(**games)
    order = rng(3).permutation(300)
    mirrored = {
        "first": [games["second"][i] for i in order],
        "second": [games["first"][i] for i in order],
        "outcome": [1 - games["outcome"][i] for i in order],
    }
    other = bradley_terry(**mirrored)
    for name in TRUTH:
        assert other.strengths[other.names.index(name)] == pytest.approx(
            result.strengths[result.names.index(name)], abs=1e-7
        )
    # score equation: observed score of each model = expected score + prior pull
    for i, name in enumerate(result.names):
        residual = 0.0
        for a, b, o in zip(games["first"], games["second"], games["outcome"], strict=True):
            if name in (a, b):
                win, tie, _ = result.probability(name, b if name == a else a)
                residual += (o if name == a else 1 - o) - win - tie / 2
        assert residual == pytest.approx(0.01 * result.strengths[i], abs=1e-6)


def test_bootstrap_intervals_resample_prompts_and_cover():
    games = play({"a": 0.5, "b": -0.5}, 60, seed=4)
    plain = bradley_terry(**games, resamples=100, generator=rng())
    assert all(plain.low <= plain.strengths) and all(plain.strengths <= plain.high)
    copied = {key: [v for v in values for _ in range(5)] for key, values in games.items()}
    prompts = [i for i in range(60) for _ in range(5)]
    clustered = bradley_terry(**copied, prompts=prompts, resamples=100, generator=rng())
    naive = bradley_terry(**copied, resamples=100, generator=rng())
    width = lambda r: float((r.high - r.low)[0])  # noqa: E731
    assert width(clustered) == pytest.approx(width(plain), rel=0.35)
    assert width(naive) < 0.65 * width(clustered)
    assert np.isnan(bradley_terry(**games).low).all()


def test_a_model_that_never_lost_stays_finite_and_a_cycle_shows_in_the_residual():
    result = bradley_terry(first=["a"] * 20, second=["b"] * 20, outcome=[1.0] * 20)
    assert 2 < result.strengths[0] - result.strengths[1] < 20
    cycle = [("a", "b"), ("b", "c"), ("c", "a")] * 30
    rock = bradley_terry(first=[g[0] for g in cycle], second=[g[1] for g in cycle], outcome=[1.0] * 90)
    assert rock.strengths == pytest.approx(np.zeros(3), abs=1e-9)
    assert abs(rock.worst_residual) > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": [1.0, 2.0]}, "outcome must hold"),
        ({"outcome": [1.0]}, "equal non-zero lengths"),
        ({"second": ["a", "b"]}, "compared with itself"),
        ({"first": ["a", "c"], "second": ["b", "d"]}, "no chain of comparisons"),
        ({"prior": 0}, "prior = 0"),
        ({"resamples": 5}, "no generator"),
    ],
)
def test_bad_comparisons_get_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        bradley_terry(**{"first": ["a", "b"], "second": ["b", "a"], "outcome": [1.0, 0.0]} | change)
    assert "\n" not in str(error.value)


def test_krippendorffs_alpha_has_its_published_values():
    """The two worked examples of Krippendorff's "Computing Krippendorff's alpha-reliability" (nominal data)."""
    binary = ["0100000010", "1110010000"]
    assert krippendorff_alpha(binary) == pytest.approx(0.095, abs=5e-4)
    four = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    raters = [[None if c == "." else c for c in rater] for rater in four]
    assert krippendorff_alpha(raters) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_one_for_equal_raters_about_zero_for_blind_ones_and_needs_two_labels_per_item():
    generator = rng()
    first, second = (generator.integers(0, 3, 4000).tolist() for _ in range(2))
    assert krippendorff_alpha([first, first, first]) == krippendorff_alpha([[1, 1], [1, 1]]) == 1.0
    assert abs(krippendorff_alpha([first, second])) < 0.05
    assert krippendorff_alpha([[1, 2, 1, None], [1, 2, 2, 3]]) == krippendorff_alpha([[1, 2, 1], [1, 2, 2]])
    for bad in ([[1, 2]], [[1, 2], [1]], [[1, None], [None, 2]]):
        with pytest.raises(ValueError, match="raters"):
            krippendorff_alpha(bad)
