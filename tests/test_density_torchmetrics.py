"""The pseudo-density share as a torchmetrics.Metric."""

import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (extra dev)")

from labkit.density import PseudoDensity  # noqa: E402
from labkit.density.torchmetrics_wrapper import PseudoDensityShare  # noqa: E402


def cloud(n, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_share_is_that_of_all_samples_for_any_batching_and_any_split_over_processes():
    density, fakes = PseudoDensity(k=5).fit(cloud(60)), 1.3 * cloud(45, 1)
    share = float((density.score(fakes) > density.threshold(0.4)).double().mean())
    assert 0 < share < 1
    metric = PseudoDensityShare(density, quantile=0.4)
    for part in fakes.split(7):
        metric.update(part)
    assert float(metric.compute()) == pytest.approx(share)
    other = PseudoDensityShare(density, quantile=0.4)
    metric.reset()
    metric.update(fakes[:10])
    other.update(fakes[10:])
    metric.merge_state(other)
    assert float(metric.compute()) == pytest.approx(share)


def test_an_extractor_is_applied_and_bad_use_is_refused():
    density = PseudoDensity(k=5).fit(cloud(60))
    metric = PseudoDensityShare(density, feature=lambda pictures: pictures.flatten(1))
    with pytest.raises(ValueError, match="no samples"):
        metric.compute()
    metric.update(cloud(6, 2).reshape(6, 2, 2))
    assert int(metric.count) == 6
    with pytest.raises(ValueError, match="NaN"):
        metric.update(torch.full((2, 4), torch.nan))
    assert int(metric.count) == 6
    with pytest.raises(RuntimeError, match="call fit"):
        PseudoDensityShare(PseudoDensity())
    with pytest.raises(ValueError, match="quantile = 3"):
        PseudoDensityShare(density, quantile=3)
