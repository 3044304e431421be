"""Frechet distance: closed forms F1-F6, metric and invariance properties, agreement of the solvers, bias formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.metrics import (
    GaussianStats,
    fid_infinity,
    frechet_distance,
    frechet_null,
    noise_floor,
)
from labkit.metrics.fid_infinity import extrapolate

SEEDS = st.integers(0, 2**31)


def normal(n: int, d: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(mean, covariance) -> GaussianStats:
    return GaussianStats.from_moments(mean=mean, covariance=covariance)


def fd(real, fake, **options) -> float:
    return frechet_distance(real=real, fake=fake, **options).value


def rotation(d: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed))[0]


# ---- check values -------------------------------------------------------------------------------------------------


def test_f1_unit_mean_shift_in_2048_dimensions():
    eye = torch.eye(2048, dtype=torch.float64)
    result = frechet_distance(real=moments(torch.zeros(2048), eye), fake=moments(torch.ones(2048), eye))
    assert result.value == pytest.approx(2048, abs=1e-8)
    assert (result.solver, result.rank, result.mean_term) == ("eigvalsh", 2048, 2048)


def test_f2_one_dimension():
    assert fd(moments([0], [[1]]), moments([3], [[4]])) == pytest.approx(10, abs=1e-12)


def test_f3_diagonal_covariances():
    a, b = torch.diag(torch.tensor([1.0, 4.0, 9.0])), torch.diag(torch.tensor([4.0, 9.0, 16.0]))
    assert fd(moments([0, 0, 0], a), moments([0, 0, 0], b)) == pytest.approx(3, abs=1e-12)


def test_f4_two_by_two():
    value = fd(moments([0, 0], [[2, 1], [1, 2]]), moments([0, 0], [[1, 0], [0, 4]]))
    assert value == pytest.approx(0.7712204476543416, abs=1e-12)


@pytest.mark.parametrize("solver", ["auto", "gram", "svd"])
def test_f5_rank_one_from_two_point_samples(solver):
    u, v = normal(1, 6, 0), normal(1, 6, 1)
    real, fake = torch.cat([torch.zeros(1, 6), u]).double(), torch.cat([torch.zeros(1, 6), v]).double()
    a, b = u[0] / math.sqrt(2), v[0] / math.sqrt(2)  # covariances a a^T and b b^T
    want = float(a @ a + b @ b - 2 * abs(a @ b) + ((u - v) / 2).square().sum())
    result = frechet_distance(real=real, fake=fake, solver=solver)
    assert result.value == pytest.approx(want, abs=1e-12)
    assert result.rank == 1


def test_f5_rank_one_from_moments():
    a, b = normal(1, 7, 2)[0], normal(1, 7, 3)[0]
    zero = torch.zeros(7)
    value = fd(moments(zero, torch.outer(a, a)), moments(zero, torch.outer(b, b)))
    assert value == pytest.approx(float(a @ a + b @ b - 2 * abs(a @ b)), abs=1e-7)


@pytest.mark.parametrize(("n", "d"), [(50, 4), (10, 40)])
def test_f6_translation(n, d):
    x, c = normal(n, d, 0), normal(1, d, 1)
    assert fd(x, x + c) == pytest.approx(float(c.square().sum()), rel=1e-9)


# ---- properties ---------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=SEEDS, n=st.integers(2, 30), m=st.integers(2, 30), d=st.integers(1, 12))
def test_symmetric_not_negative_and_zero_for_equal_sets(seed, n, m, d):
    x, y = normal(n, d, seed), normal(m, d, seed + 1, 1.7)
    assert fd(x, y) == pytest.approx(fd(y, x), rel=1e-9, abs=1e-10)
    assert fd(x, y) >= -1e-9
    assert abs(fd(x, x)) < 1e-10


@pytest.mark.parametrize(("n", "m", "d"), [(60, 50, 8), (9, 12, 30)])
def test_isometry_scale_and_constant_columns(n, m, d):
    x, y = normal(n, d, 0), 0.5 + normal(m, d, 1, 1.3)
    value, q, shift = fd(x, y), rotation(d, 2), normal(1, d, 3, 10)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(4))
    assert fd((x @ q + shift)[order], y @ q + shift) == pytest.approx(value, rel=1e-9)
    assert fd(3 * x, 3 * y) == pytest.approx(9 * value, rel=1e-9)
    constant = [torch.cat([s, torch.full((len(s), 1), 7.0, dtype=torch.float64)], dim=1) for s in (x, y)]
    assert fd(*constant) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (6, 20)])
def test_duplicating_rows_changes_only_the_ddof_factor(n, d):
    x, y = normal(n, d, 0), normal(n, d, 1, 1.5)
    twice = [torch.cat([s, s]) for s in (x, y)]
    assert fd(*twice, ddof=0) == pytest.approx(fd(x, y, ddof=0), rel=1e-9)
    once, doubled = frechet_distance(real=x, fake=y), frechet_distance(real=twice[0], fake=twice[1])
    factor = 2 * (n - 1) / (2 * n - 1)
    assert doubled.covariance_term == pytest.approx(factor * once.covariance_term, rel=1e-9)
    assert doubled.mean_term == pytest.approx(once.mean_term, rel=1e-9)


def test_projection_never_increases_and_blocks_add_up():
    x, y = normal(80, 9, 0), 0.3 + normal(70, 9, 1, 1.4)
    assert fd(x[:, :5], y[:, :5]) <= fd(x, y) + 1e-12
    covariances = [[GaussianStats.from_features(s[:, part]) for part in (slice(0, 4), slice(4, 9))] for s in (x, y)]
    joined = [
        moments(torch.cat([a.mean, b.mean]), torch.block_diag(a.covariance, b.covariance)) for a, b in covariances
    ]
    parts = sum(fd(covariances[0][i], covariances[1][i]) for i in range(2))
    assert fd(*joined) == pytest.approx(parts, rel=1e-10)


@settings(max_examples=15)
@given(seed=SEEDS, d=st.integers(1, 8), n=st.integers(3, 20))
def test_square_root_obeys_the_triangle_inequality(seed, d, n):
    x, y, z = (normal(n, d, seed + i, 1 + i) + i for i in range(3))
    xy, yz, xz = (math.sqrt(max(fd(a, b), 0)) for a, b in ((x, y), (y, z), (x, z)))
    assert xz <= xy + yz + 1e-6


@settings(max_examples=15)
@given(seed=SEEDS, d=st.integers(1, 8), n=st.integers(2, 20))
def test_bounds_by_means_and_traces(seed, d, n):
    x, y = normal(n, d, seed), 0.2 + normal(n + 3, d, seed + 1, 0.6)
    shift = float((x.mean(0) - y.mean(0)).square().sum())
    trace_x, trace_y = float(x.var(0).sum()), float(y.var(0).sum())
    value = fd(x, y)
    assert shift + (math.sqrt(trace_x) - math.sqrt(trace_y)) ** 2 <= value + 1e-9
    assert value <= shift + trace_x + trace_y + 1e-9


@settings(max_examples=15)
@given(seed=SEEDS, d=st.integers(1, 10), n=st.integers(2, 25))
def test_gelbrich_no_pairing_transports_for_less(seed, d, n):
    x, y = normal(n, d, seed), 0.5 + normal(n, d, seed + 1, 1.5)
    for pairing in (torch.arange(n), torch.randperm(n, generator=torch.Generator().manual_seed(seed))):
        cost = float((x - y[pairing]).square().sum(dim=1).mean())
        assert fd(x, y, ddof=0) <= cost * (1 + 1e-9)


# ---- solvers ------------------------------------------------------------------------------------------------------


def test_solvers_agree_at_full_rank():
    x, y = normal(90, 12, 0), 0.1 + normal(80, 12, 1, 1.2)
    values = [fd(x, y, solver=s) for s in ("gram", "eigvalsh", "svd", "auto")]
    assert values == pytest.approx([values[0]] * 4, rel=1e-10)
    stats = [GaussianStats.from_features(s) for s in (x, y)]
    assert fd(*stats) == pytest.approx(values[0], rel=1e-10)


def test_solvers_agree_without_full_rank():
    x, y = normal(20, 60, 0), normal(25, 60, 1) * torch.linspace(0.1, 2, 60)
    reference = fd(x, y, solver="gram")
    stats = [GaussianStats.from_features(s) for s in (x, y)]
    for real, fake in ((stats[0], stats[1]), (x, stats[1]), (stats[0], y)):
        assert fd(real, fake) == pytest.approx(reference, rel=1e-8)
    assert abs(fd(stats[0], stats[0])) < 1e-10
    many = normal(200, 60, 3)  # a full-rank side against a rank-deficient one
    assert fd(many, GaussianStats.from_features(x)) == pytest.approx(fd(many, x, solver="gram"), rel=1e-8)


def test_nearly_singular_covariances_do_not_cost_digits():
    spectrum = 10.0 ** -torch.linspace(0, 8, 30, dtype=torch.float64)  # covariance eigenvalues 1 .. 1e-16
    x, y = normal(60, 30, 0) * spectrum, normal(55, 30, 1) * spectrum.flip(0)
    assert fd(x, y) == pytest.approx(fd(x, y, solver="gram"), rel=1e-9)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_two_by_two_oracle(seed):
    a, b = (normal(2, 2, seed + i) for i in range(2))
    s1, s2 = a @ a.T + 0.01 * torch.eye(2), b @ b.T + 0.01 * torch.eye(2)
    root = math.sqrt(float((s1 @ s2).trace()) + 2 * math.sqrt(float(torch.det(s1) * torch.det(s2))))
    want = float(s1.trace() + s2.trace()) - 2 * root
    assert fd(moments([0, 0], s1), moments([0, 0], s2)) == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_a_cached_reference_is_recomputed_after_an_update():
    x, y = normal(60, 5, 0), normal(60, 5, 1)
    stats = GaussianStats.from_features(x)
    first = fd(stats, y)
    assert fd(stats, y) == first
    stats.update(normal(60, 5, 2, 3.0))
    want = fd(torch.cat([x, normal(60, 5, 2, 3.0)]), y)
    assert fd(stats, y) == pytest.approx(want, rel=1e-10)
    assert want != pytest.approx(first, rel=1e-3)


# ---- noise floor and extrapolation --------------------------------------------------------------------------------


def test_noise_floor_closed_form_for_the_identity():
    d, n, m = 32, 1000, 500
    assert noise_floor(torch.ones(d), n_real=n, n_fake=m) == pytest.approx((1 / n + 1 / m) * (d + d * (d + 1) / 4))
    assert noise_floor(torch.eye(d), n_real=n, n_fake=m) == pytest.approx(0.8880, abs=5e-5)


def test_noise_floor_predicts_the_mean_distance_of_equal_laws():
    spread = torch.linspace(0.5, 1.5, 16, dtype=torch.float64)
    results = [
        frechet_distance(real=normal(2000, 16, 2 * i) * spread, fake=normal(2000, 16, 2 * i + 1) * spread)
        for i in range(30)
    ]
    observed = sum(r.value for r in results) / 30
    assert observed == pytest.approx(noise_floor(spread**2, n_real=2000, n_fake=2000), rel=0.1)
    assert sum(r.noise_floor for r in results) / 30 == pytest.approx(observed, rel=0.1)
    assert all("noise floor" in r.warnings[0] for r in results)


@pytest.mark.parametrize(("n", "d"), [(300, 5), (20, 60)])
def test_the_value_is_the_same_without_the_floor(n, d):
    x, y = normal(n, d, 0), normal(n, d, 1)
    full, bare = frechet_distance(real=x, fake=y), frechet_distance(real=x, fake=y, floor=False)
    assert (bare.value, bare.noise_floor) == (full.value, None) and full.noise_floor > 0
    assert not any("noise floor" in warning for warning in bare.warnings)


def test_no_warning_when_the_difference_is_far_above_the_noise():
    assert frechet_distance(real=normal(500, 4, 0), fake=5 + normal(500, 4, 1)).warnings == ()


def test_permutation_null_is_the_floor_when_samples_are_few():
    generator = torch.Generator().manual_seed(0)
    x, y = normal(30, 80, 0), normal(30, 80, 1)
    null, p = frechet_null(real=x, fake=y, rounds=19, generator=generator)
    assert float(null.mean()) == pytest.approx(fd(x, y), rel=0.1)
    assert 0.05 < p <= 1
    _, p = frechet_null(real=x, fake=y + 1, rounds=19, generator=generator)
    assert p == pytest.approx(1 / 20)


def test_fid_infinity_recovers_a_straight_line_exactly():
    sizes = [500, 700, 1000, 1500, 3000]
    result = extrapolate(sizes, [2.5 + 40 / n for n in sizes])
    assert (result.value, result.slope) == pytest.approx((2.5, 40))
    assert result.standard_error == pytest.approx(0, abs=1e-10)
    with pytest.raises(ValueError, match="2 different sizes"):
        extrapolate([100, 100], [1.0, 1.0])


def test_fid_infinity_is_closer_to_the_truth_than_the_plain_value():
    d, truth = 12, 12 * 0.2**2
    real = GaussianStats.from_moments(mean=torch.zeros(d), covariance=torch.eye(d, dtype=torch.float64), n=10**6)
    errors = []
    for seed in range(4):
        fake = normal(600, d, seed, 1.2)
        result = fid_infinity(real=real, fake=fake, generator=torch.Generator().manual_seed(seed))
        errors.append((abs(result.value - truth), abs(fd(real, fake) - truth)))
        assert len(result.sizes) == 15 and result.sizes[-1] == 600
        assert result.values[-1] == pytest.approx(fd(real, fake))
    assert sum(e[0] for e in errors) < sum(e[1] for e in errors)
    few = fid_infinity(real=normal(50, d, 9), fake=normal(60, d, 8), generator=torch.Generator().manual_seed(0))
    assert "only 50 reals" in few.warnings[0]


# ---- bad input ----------------------------------------------------------------------------------------------------


def test_sides_cannot_be_swapped_by_position():
    x = normal(10, 3, 0)
    with pytest.raises(TypeError):
        frechet_distance(x, x)


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (torch.zeros(10), "fake must be 2-D"),
        (torch.zeros(1, 3), "fake has 1 sample"),
        (torch.zeros(10, 4), "real has 3 features but fake has 4"),
        (torch.full((10, 3), torch.nan), "fake has NaN or infinite values in 10 of 10 rows"),
        (torch.full((10, 3), torch.inf), "fake has NaN or infinite"),
    ],
)
def test_bad_features_get_one_line(fake, message):
    with pytest.raises(ValueError, match=message) as error:
        frechet_distance(real=normal(10, 3, 0), fake=fake)
    assert "\n" not in str(error.value)


def test_solvers_that_cannot_be_used_say_so():
    x, stats = normal(10, 20, 0), GaussianStats.from_features(normal(10, 20, 1))
    with pytest.raises(ValueError, match="needs features on both sides"):
        frechet_distance(real=stats, fake=x, solver="gram")
    with pytest.raises(ValueError, match="needs covariances of full rank"):
        frechet_distance(real=x, fake=x, solver="eigvalsh")
    with pytest.raises(ValueError, match="unknown solver"):
        frechet_distance(real=x, fake=x, solver="sqrtm")


def test_constant_features_have_distance_zero_or_their_shift():
    x = torch.ones(5, 4)
    assert fd(x, x) == 0
    assert fd(x, x + 2) == pytest.approx(16)
    assert fd(GaussianStats.from_features(x), GaussianStats.from_features(x + 2)) == pytest.approx(16)
