"""The ring world: its law, its generator, and the shape of the published table."""

import pytest
import torch

from labkit.density import PseudoDensity, importance_sample
from labkit.metrics import frechet_distance, manifold_metrics
from labkit.worlds.ring import FAKE_SD, MASSES, SMEARED, ring_centres, ring_density, ring_generator, ring_reals


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_the_density_integrates_to_one_and_the_reals_have_the_masses():
    axis = torch.linspace(-3, 3, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert float(ring_density(grid).sum() * 0.02**2) == pytest.approx(1, abs=1e-6)
    mode = torch.cdist(ring_reals(20_000, generator(0)), ring_centres()).argmin(dim=1)
    shares = torch.bincount(mode, minlength=8) / 20_000
    assert float((shares - torch.tensor(MASSES)).abs().max()) < 4 * (0.21 / 20_000) ** 0.5


def test_a_fifth_of_the_generated_points_lies_on_bridges():
    z = torch.randn(20_000, 3, generator=generator(1), dtype=torch.float64)
    clean = ring_generator(z) - FAKE_SD * z[:, :2]
    off = torch.cdist(clean, ring_centres()).min(dim=1).values > 1e-9
    assert float(off.double().mean()) == pytest.approx(SMEARED, abs=0.012)
    assert torch.autograd.gradcheck(ring_generator, z[:4].clone().requires_grad_(True))


def test_the_table_has_the_published_shape():
    """Fewer artefacts with a low tau and a large w; mild weights lower the Frechet distance, extremes wreck it."""
    n, reals = 1500, ring_reals(1500, generator(0))
    density = PseudoDensity(k=10).fit(reals)
    z = torch.randn(12 * n, 3, generator=generator(1), dtype=torch.float64)

    def row(quantile, ratio):
        got = importance_sample(
            lambda first, count: ring_generator(z[first : first + count]), density.score, n=n,
            threshold=density.threshold(quantile), ratio=ratio, budget=len(z), generator=generator(2), batch=n,
        )  # fmt: skip
        m = manifold_metrics(real=reals, fake=got.samples, k=5)
        return m.precision, m.coverage, float(frechet_distance(real=reals, fake=got.samples)), got.calls_per_sample

    plain, filtered, extreme, rare = row(0.1, 1.0), row(0.1, 33.0), row(0.8, 33.0), row(0.1, 0.03)
    assert plain[0] == pytest.approx(0.875, abs=0.03) and plain[1] == pytest.approx(0.945, abs=0.03)
    assert filtered[0] > 0.98 and filtered[3] == pytest.approx(1.38, abs=0.12)
    assert extreme[2] > max(0.5, 5 * plain[2]) and extreme[1] < 0.85 and 4 < extreme[3] < 9
    assert rare[0] < 0.7 and rare[1] < 0.6
