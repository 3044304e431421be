"""Precision, recall, density, coverage: brute-force agreement, identities, expectations, and the known failure toys."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.metrics import manifold_metrics
from labkit.metrics.manifold import expected_coverage


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(real: torch.Tensor, fake: torch.Tensor, k: int, closed: bool = True) -> dict[str, float]:
    def radii(x):
        squared = (x[:, None] - x[None]).square().sum(-1).fill_diagonal_(torch.inf)
        return squared.topk(k, largest=False).values[:, -1]

    cross = (real[:, None] - fake[None]).square().sum(-1)
    inside = (lambda a, b: a <= b) if closed else (lambda a, b: a < b)
    in_real, in_fake = inside(cross, radii(real)[:, None]), inside(cross, radii(fake)[None])
    return {
        "precision": in_real.any(0).double().mean().item(),
        "recall": in_fake.any(1).double().mean().item(),
        "density": in_real.sum().item() / (k * len(fake)),
        "coverage": in_real.any(1).double().mean().item(),
    }


@pytest.mark.parametrize("d", [2, 40])
@pytest.mark.parametrize("boundary", ["closed", "open"])
@pytest.mark.parametrize("block_bytes", [60_000, 2**27])
def test_equals_brute_force_in_blocks(d, boundary, block_bytes):
    x, y = cloud(70, d), cloud(60, d, 1) * 1.2
    result = manifold_metrics(real=x, fake=y, k=4, boundary=boundary, block_bytes=block_bytes)
    assert result.as_dict() == pytest.approx(brute_force(x, y, 4, boundary == "closed"), abs=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_details_agree_with_the_totals(offset):
    x, y = (cloud(60, 50) + offset).float(), (cloud(45, 50, 1) + offset).float()
    r = manifold_metrics(real=x, fake=y, k=3)
    assert (r.n_real, r.n_fake, r.k) == (60, 45, 3)
    assert r.precision == pytest.approx(float((r.fake_balls > 0).double().mean()))
    assert torch.equal(r.realism >= 1, r.fake_balls > 0)
    assert r.coverage == pytest.approx(float(r.covered.double().mean()))
    assert r.recall == pytest.approx(float(r.recalled.double().mean()))
    cross = (x.double()[:, None] - y.double()[None]).square().sum(-1).sqrt()
    torch.testing.assert_close(r.realism, (r.radii_real[:, None] / cross).amax(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(r.nearest_distance, cross.amin(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(cross[r.nearest_real, torch.arange(45)], cross.amin(0), rtol=1e-12, atol=0)
    pruned = manifold_metrics(real=x, fake=y, k=3, prune_realism=True).realism
    small = r.radii_real <= r.radii_real.median()
    torch.testing.assert_close(pruned, (r.radii_real[:, None] / cross)[small].amax(0), rtol=1e-10, atol=0)


@settings(max_examples=15)
@given(seed=st.integers(0, 999), n=st.integers(7, 40), m=st.integers(7, 40), k=st.integers(1, 6), d=st.integers(1, 4))
def test_identities_and_ranges(seed, n, m, k, d):
    x, y = cloud(n, d, seed), 0.5 + cloud(m, d, seed + 1)
    r, swapped = manifold_metrics(real=x, fake=y, k=k), manifold_metrics(real=y, fake=x, k=k)
    assert (r.precision, r.recall) == (swapped.recall, swapped.precision)
    assert 0 <= min(r.precision, r.recall, r.coverage) and max(r.precision, r.recall, r.coverage) <= 1
    assert 0 <= r.density <= n / k
    assert r.precision <= k * r.density + 1e-12
    assert r.coverage <= k * m / n * r.density + 1e-12
    assert (r.precision == 0) == (r.density == 0) == (r.coverage == 0)


def test_monotone_in_k():
    x, y = cloud(60, 5), 0.7 + cloud(60, 5, 1)
    results = [manifold_metrics(real=x, fake=y, k=k) for k in (1, 2, 4, 8, 16)]
    for a, b in zip(results, results[1:], strict=False):
        assert a.precision <= b.precision and a.recall <= b.recall and a.coverage <= b.coverage
        assert a.k * a.density <= b.k * b.density + 1e-12


@pytest.mark.parametrize("d", [3, 60])
def test_a_set_against_itself_and_its_subset(d):
    x, k = cloud(40, d), 5
    closed, opened = (manifold_metrics(real=x, fake=x.clone(), k=k, boundary=b) for b in ("closed", "open"))
    assert (closed.precision, closed.recall, closed.coverage) == (1, 1, 1)
    assert closed.density == pytest.approx((k + 1) / k)
    assert opened.density == pytest.approx(1)
    assert manifold_metrics(real=x, fake=x[:15], k=k).precision == 1


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_features(value):
    x = torch.full((30, 40), value)
    assert manifold_metrics(real=x, fake=x, k=5).as_dict() == {
        "precision": 1,
        "recall": 1,
        "density": 30 / 5,
        "coverage": 1,
    }
    assert set(manifold_metrics(real=x, fake=x, k=5, boundary="open").as_dict().values()) == {0}


def test_sets_far_apart_score_zero():
    r = manifold_metrics(real=cloud(50, 8), fake=cloud(50, 8, 1) + 1000, k=5)
    assert set(r.as_dict().values()) == {0}
    assert float(r.realism.max()) < 0.01


@pytest.mark.parametrize(("k", "density", "coverage"), [(3, 0.334, 0.003), (5, 0.2006, 0.004)])
def test_p1_two_outliers_fool_precision_and_recall_but_not_density_and_coverage(k, density, coverage):
    generator = torch.Generator().manual_seed(0)
    a = torch.cat([torch.rand(999, 1, generator=generator), torch.tensor([[2.0]])])
    b = torch.cat([2 + torch.rand(999, 1, generator=generator), torch.tensor([[1.0]])])
    r = manifold_metrics(real=a, fake=b, k=k)
    assert (r.precision, r.recall) == (1, 1)
    assert r.density == pytest.approx(density, abs=0.002)
    assert r.coverage == pytest.approx(coverage, abs=0.0015)


P3 = {"precision": (0.61, 0.02), "recall": (0.58, 0.02), "density": (1.10, 0.07), "coverage": (0.980, 0.006)}
P3_64 = {"precision": (0.714, 0.014), "density": (1.005, 0.07)}


@pytest.mark.parametrize(("n", "d", "draws", "want"), [(1000, 1000, 3, P3), (2000, 64, 2, P3_64)])
def test_p3_reference_values_for_equal_laws(n, d, draws, want):
    """Published mean and spread of one draw; ours averages a few."""
    runs = [
        manifold_metrics(real=cloud(n, d, 2 * i).float(), fake=cloud(n, d, 2 * i + 1).float(), k=5)
        for i in range(draws)
    ]
    for name, (mean, spread) in want.items():
        assert sum(getattr(r, name) for r in runs) / draws == pytest.approx(mean, abs=3 * spread)


def test_expected_coverage_values():
    cases = {
        (10000, 10000, 5): 0.968773,
        (50000, 50000, 3): 0.875008,
        (100, 50, 3): 0.709686,
        (200, 300, 5): 0.990216,
        (300, 150, 3): 0.705685,
        (1000, 1000, 5): 0.968984,
    }
    for (n, m, k), want in cases.items():
        assert expected_coverage(n_real=n, n_fake=m, k=k) == pytest.approx(want, abs=1e-6)
        all_real = math.comb(n - 1, k) / math.comb(n + m - 1, k)  # the k nearest others are all real
        assert expected_coverage(n_real=n, n_fake=m, k=k) == pytest.approx(1 - all_real, rel=1e-12)
    assert expected_coverage(n_real=10**7, n_fake=10**7, k=4) == pytest.approx(1 - 2**-4, abs=1e-6)


@pytest.mark.parametrize(("n", "m", "k"), [(60, 60, 5), (80, 40, 3)])
def test_mean_density_and_coverage_for_equal_laws(n, m, k):
    runs = [manifold_metrics(real=cloud(n, 3, 2 * i), fake=cloud(m, 3, 2 * i + 1), k=k) for i in range(50)]
    for name, want in (("density", 1.0), ("coverage", expected_coverage(n_real=n, n_fake=m, k=k))):
        values = torch.tensor([getattr(r, name) for r in runs])
        assert float(values.mean()) == pytest.approx(want, abs=4 * float(values.std()) / 50**0.5)


def test_adding_fakes_never_lowers_coverage_and_an_outlier_real_fools_only_precision():
    x, y = cloud(60, 4), 30 + cloud(50, 4, 1)
    base = manifold_metrics(real=x, fake=y, k=3)
    more = manifold_metrics(real=x, fake=torch.cat([y, 0.5 * cloud(20, 4, 2)]), k=3)
    assert more.coverage >= base.coverage
    assert base.precision == 0
    fooled = manifold_metrics(real=torch.cat([x, torch.full((1, 4), 40.0)]), fake=y, k=3)
    assert fooled.precision == 1
    assert fooled.coverage - base.coverage <= 1 / 61 + 1e-12


def test_mode_collapse_has_high_precision_and_low_recall():
    r = manifold_metrics(real=cloud(150, 5), fake=0.1 * cloud(150, 5, 1), k=5)
    assert r.precision > 0.8 and r.recall < 0.3


def test_isometry_and_scale():
    x, y = cloud(50, 12), 0.2 + cloud(50, 12, 1)
    q = torch.linalg.qr(cloud(12, 12, 2))[0]
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    moved = manifold_metrics(real=7 * (x @ q)[order] + 3, fake=7 * (y @ q) + 3, k=4)
    assert moved.as_dict() == manifold_metrics(real=x, fake=y, k=4).as_dict()


def test_duplicates_give_radius_zero_only_with_k_copies():
    x = torch.cat([cloud(20, 40), cloud(1, 40, 1).repeat(4, 1)])  # four copies: three others at distance 0
    y = cloud(20, 40, 2)
    assert (manifold_metrics(real=x, fake=y, k=3).radii_real[20:] == 0).all()
    assert (manifold_metrics(real=x, fake=y, k=4).radii_real > 0).all()


def test_sides_cannot_be_swapped_by_position():
    with pytest.raises(TypeError):
        manifold_metrics(cloud(9, 2), cloud(9, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 9}, "k = 9 but fake has 9 samples"),
        ({"k": 0}, "k must be between 1 and"),
        ({"boundary": "<"}, "boundary must be"),
        ({"fake": torch.zeros(9, 3)}, "real has 2 features but fake has 3"),
        ({"fake": torch.zeros(9)}, "fake must be 2-D"),
        ({"fake": torch.zeros(1, 2)}, "fake has 1 sample"),
        ({"fake": torch.full((9, 2), torch.inf)}, "NaN or infinite"),
    ],
)
def test_bad_input_gets_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        manifold_metrics(**{"real": cloud(20, 2), "fake": cloud(9, 2, 1)} | options)
    assert "\n" not in str(error.value)
