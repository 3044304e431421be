"""PseudoDensity: definition, invariances, check values, bad input, the MLP."""

import math

import pytest
import torch

from labkit.density import PseudoDensity, fit_mlp, rank_correlation
from labkit.density.equations import expected_distance
from labkit.metrics import Fingerprint, nearest_neighbours


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct(real, query, k):
    """Mean distance of the k nearest, by the full matrix."""
    return (query[:, None] - real[None]).norm(dim=2).sort(dim=1).values[:, :k].mean(dim=1)


def rotation(d, seed=9):
    return torch.linalg.qr(randn(d, d, seed=seed))[0]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_rho_has_mean_one_and_is_positive_also_with_more_than_k_copies(exponent):
    x = torch.cat([randn(40, 5), torch.zeros(8, 5, dtype=torch.float64)])
    density = PseudoDensity(k=4, exponent=exponent).fit(x)
    assert float(density.rho.mean()) == pytest.approx(1, rel=1e-12)
    assert bool((density.rho > 0).all()) and bool(torch.isfinite(density.rho).all())
    assert float(density.distances[-1]) == 0 and int(density.rho.argmax()) >= 40
    assert torch.isfinite(density.score(torch.zeros(1, 5, dtype=torch.float64))).all()
    same = PseudoDensity(k=4).fit(torch.ones(9, 3))
    assert torch.equal(same.rho, torch.ones(9, dtype=torch.float64))


def test_rho_does_not_notice_rotation_translation_permutation_and_scale():
    x = randn(60, 6)
    base = PseudoDensity(k=5).fit(x)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    moved = PseudoDensity(k=5).fit(3.5 * (x @ rotation(6) + 20)[order])
    torch.testing.assert_close(moved.rho, base.rho[order], rtol=1e-9, atol=0)
    torch.testing.assert_close(moved.distances, 3.5 * base.distances[order], rtol=1e-9, atol=0)


def test_the_exponent_changes_the_scale_and_no_rank():
    x = randn(80, 4)
    one = PseudoDensity(k=5).fit(x).rho
    for exponent in (0.3, 2.0, 4.0):
        rho = PseudoDensity(k=5, exponent=exponent).fit(x).rho
        torch.testing.assert_close(rho, one**exponent / (one**exponent).mean(), rtol=1e-9, atol=0)
        assert torch.equal(rho.argsort(), one.argsort())


def test_points_on_a_circle_have_one_density():
    """D1: d_k = (2 / k) sum_{j <= k/2} 2 sin(pi j / N)."""
    angle = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    density = PseudoDensity(k=6).fit(torch.stack([angle.cos(), angle.sin()], 1))
    torch.testing.assert_close(density.rho, torch.ones(24, dtype=torch.float64), rtol=1e-9, atol=0)
    assert float(density.distances[0]) == pytest.approx(0.5146857797917748, rel=1e-12)


@pytest.mark.parametrize("kind", ["cube corners", "torus grid"])
def test_rho_is_one_wherever_all_points_look_alike(kind):
    """Vertex-transitive sets: every point has the same distances to the others."""
    if kind == "cube corners":
        points = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).double()  # [16, 4]
    else:
        angle = torch.arange(7, dtype=torch.float64) * (2 * math.pi / 7)
        circle = torch.stack([angle.cos(), angle.sin()], 1)  # [7, 2]
        points = torch.cat([circle.repeat(7, 1), 2 * circle.repeat_interleave(7, 0)], 1)  # [49, 4], flat torus
    for k in (1, 3, 6, len(points) - 1):
        rho = PseudoDensity(k=k).fit(points).rho
        torch.testing.assert_close(rho, torch.ones_like(rho), rtol=1e-9, atol=0)


def test_points_on_a_line_have_the_check_values():
    """D2: the ends are sparser."""
    density = PseudoDensity(k=4).fit(torch.arange(11.0).double()[:, None])
    expected = torch.tensor([2.5, 1.75, *[1.5] * 7, 1.75, 2.5], dtype=torch.float64)
    torch.testing.assert_close(density.distances, expected, rtol=1e-12, atol=0)
    assert density.rho[:3].tolist() == pytest.approx([0.66571, 0.95101, 1.10951], abs=5e-6)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_poisson_points_have_the_expected_mean_distance(d):
    """D3, on a torus so that there is no edge."""
    n, k = 4000 if d < 3 else 2000, 10
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    shifts = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * d).double().reshape(-1, d)
    tiled = (x[None] + shifts[:, None]).reshape(-1, d)
    tiled = tiled[((tiled > -0.3) & (tiled < 1.3)).all(dim=1)]
    distance = nearest_neighbours(tiled, k + 1, queries=x)[0][:, 1:].mean(dim=1)
    assert float(distance.mean()) == pytest.approx(expected_distance(k, d, n), rel=0.03)


def test_log_rho_follows_log_density_with_slope_n_over_d():
    means = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 9.0]]).double()
    sds = torch.tensor([0.3, 1.0, 2.0]).double()
    which = torch.randint(3, (5000,), generator=torch.Generator().manual_seed(0))
    x = means[which] + sds[which, None] * randn(5000, 2)
    square = (x[:, None] - means).square().sum(-1)
    log_p = (torch.exp(-square / (2 * sds**2)) / (2 * math.pi * sds**2) / 3).sum(1).log()
    log_rho = PseudoDensity(k=10).fit(x).rho.log()
    centred = log_p - log_p.mean()
    slope = float((centred * log_rho).sum() / centred.square().sum())
    assert 0.45 < slope < 0.55
    assert rank_correlation(log_rho, log_p) > 0.95


def test_scores_equal_the_full_matrix_and_keep_their_digits_far_from_the_origin():
    x, q = randn(70, 6), randn(9, 6, seed=3)
    density = PseudoDensity(k=7).fit(x)
    torch.testing.assert_close(density.distance(q), direct(x, q, 7), rtol=1e-12, atol=0)
    torch.testing.assert_close(density.score(q), 1 / direct(x, q, 7) / (1 / density.distances).mean())
    far = PseudoDensity(k=7).fit(x + 1e4)
    torch.testing.assert_close(far.rho, density.rho, rtol=1e-6, atol=0)
    single = PseudoDensity(k=7).fit(x.float())
    torch.testing.assert_close(single.rho, density.rho, rtol=1e-5, atol=0)


def test_a_new_real_nearby_never_lowers_the_density_and_a_far_real_removed_changes_nothing():
    x, q = randn(50, 3), randn(1, 3, seed=4)
    before = PseudoDensity(k=5).fit(x).distance(q)
    near = q + 0.5 * before * torch.tensor([[1.0, 0, 0]]).double()
    assert float(PseudoDensity(k=5).fit(torch.cat([x, near])).distance(q)) <= float(before)
    order = (x - q).norm(dim=1).argsort()
    assert torch.equal(PseudoDensity(k=5).fit(x[order[:-1]]).distance(q), before)


def test_k_of_all_others_is_the_mean_distance_to_them():
    x = randn(12, 3)
    expected = torch.cdist(x, x).sum(1) / 11
    torch.testing.assert_close(PseudoDensity(k=11).fit(x).distances, expected, rtol=1e-9, atol=0)


def test_a_query_that_is_a_real_keeps_its_distance_of_zero():
    x = randn(30, 3)
    density = PseudoDensity(k=4).fit(x)
    torch.testing.assert_close(density.distance(x[:5]), direct(x, x[:5], 4), rtol=1e-9, atol=1e-12)
    assert bool((density.score(x) > density.rho).all())


def test_soft_score_is_the_score_and_its_gradient_is_right():
    x, q = randn(40, 3), randn(5, 3, seed=5)
    density = PseudoDensity(k=4, exponent=2.0).fit(x)
    torch.testing.assert_close(density.soft_score(q), density.score(q), rtol=1e-9, atol=0)
    assert torch.autograd.gradcheck(density.soft_score, q.clone().requires_grad_(True))
    on_top = x[:2].clone().requires_grad_(True)
    density.soft_score(on_top).sum().backward()
    assert bool(torch.isfinite(on_top.grad).all())


def test_thresholds_are_quantiles_of_the_reals():
    density = PseudoDensity(k=5).fit(randn(200, 4))
    for q in (0.1, 0.5, 0.8):
        assert float((density.rho > density.threshold(q)).double().mean()) == pytest.approx(1 - q, abs=0.01)
    with pytest.raises(ValueError, match="quantile = 80 must be between 0 and 1"):
        density.threshold(80)


def test_saving_and_loading_gives_the_same_scores(tmp_path):
    fingerprint = Fingerprint("clip", "abc", "64 px")
    density = PseudoDensity(k=5, exponent=2.0).fit(randn(50, 4), fingerprint=fingerprint)
    loaded = PseudoDensity.load(density.save(tmp_path / "density.safetensors"))
    q = randn(6, 4, seed=2)
    assert torch.equal(loaded.score(q), density.score(q)) and torch.equal(loaded.rho, density.rho)
    assert loaded.fingerprint == fingerprint and loaded.k == 5
    with pytest.raises(ValueError, match="made otherwise than the reals.*pipeline: '64 px' != '32 px'"):
        loaded.score(q, fingerprint=Fingerprint("clip", "abc", "32 px"))
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="other.safetensors is no pseudo density file"):
        PseudoDensity.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no pseudo density file"):
        PseudoDensity.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.tensor([[0.0], [float("nan")], [1.0]]), "real has NaN or infinite values in 1 of 3 rows"),
        (torch.tensor([[0.0], [float("inf")], [1.0]]), "real has NaN or infinite values"),
        (torch.zeros(5), "real must be 2-D"),
        (torch.zeros(1, 3), "real has 1 sample"),
        (torch.zeros(4, 3), "k = 4 but real has 4 samples"),
    ],
)
def test_unusable_reals_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        PseudoDensity(k=4).fit(features)


def test_unusable_queries_and_settings_are_refused():
    density = PseudoDensity(k=3).fit(randn(10, 4))
    with pytest.raises(ValueError, match="real has 4 features but features has 5"):
        density.score(randn(2, 5))
    with pytest.raises(ValueError, match="features has NaN"):
        density.score(torch.full((2, 4), math.nan))
    with pytest.raises(RuntimeError, match="call fit"):
        PseudoDensity().score(randn(2, 4))
    for bad in ({"k": 0}, {"exponent": 0.0}, {"exponent": math.inf}, {"floor": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            PseudoDensity(**bad)
    for bad in (2.5, True, None):
        with pytest.raises(TypeError, match="k must be an integer"):
            PseudoDensity(k=bad)


def test_rank_correlation_is_spearmans():
    a = torch.tensor([1.0, 2, 3, 4, 5])
    assert rank_correlation(a, a.exp()) == pytest.approx(1) and rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, torch.ones(5)) == 0
    # ties at their mean rank: ranks 1.5 1.5 3 4 5 against 1 2 3 4 5
    assert rank_correlation(a, torch.tensor([1.0, 1, 3, 4, 5])) == pytest.approx(9.5 / math.sqrt(10 * 9.5))


def test_the_mlp_ranks_held_out_reals_and_loses_its_rank_when_the_target_is_shuffled():
    which = torch.randint(4, (600,), generator=torch.Generator().manual_seed(0))
    x = 4 * randn(4, 6, seed=1)[which] + (0.3 + 0.5 * which[:, None]) * randn(600, 6, seed=2)
    density = PseudoDensity(k=10).fit(x)
    scorer = fit_mlp(density, generator=torch.Generator().manual_seed(0), epochs=20, widths=(64,))
    assert scorer.rank_correlation > 0.8 and len(scorer.held_out) == 120
    exact = density.rho[scorer.held_out]
    assert rank_correlation(scorer.score(x[scorer.held_out]), exact) == pytest.approx(scorer.rank_correlation, abs=1e-6)
    assert bool((scorer.score(3 * x) > 0).all())
    density.rho = density.rho[torch.randperm(600, generator=torch.Generator().manual_seed(5))]
    null = fit_mlp(density, generator=torch.Generator().manual_seed(0), epochs=5, widths=(32,))
    assert abs(null.rank_correlation) < 0.35  # 120 pairs: standard error 0.09


def test_the_mlp_is_reproducible_and_has_gradients_in_its_features():
    density = PseudoDensity(k=3).fit(randn(60, 4))
    a, b = (fit_mlp(density, generator=torch.Generator().manual_seed(1), epochs=2, widths=(8,)) for _ in range(2))
    q = randn(3, 4, seed=2).requires_grad_(True)
    assert torch.equal(a.soft_score(q), b.soft_score(q))
    a.soft_score(q).sum().backward()
    assert float(q.grad.abs().sum()) > 0
    assert all(p.grad is None for p in a.network.parameters())
    with pytest.raises(ValueError, match="expected 10 or more of each"):
        fit_mlp(PseudoDensity(k=3).fit(randn(20, 4)), generator=torch.Generator())
