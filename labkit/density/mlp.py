"""The paper's learned estimator: a small MLP from features to pseudo density, trained on the reals alone.

The released one (768-512-256-128-1, ReLU, mean squared error on rho) is fast and differentiable, but it has never seen
a fake. Here it learns log rho, so that its score is positive, and says on held-out reals how well it ranks. Whatever it
scores should be scored again exactly: pushed along its gradient, samples leave what it knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.density.scoring import PseudoDensity
from labkit.metrics.checks import as_features, same_width

WIDTHS = (512, 256, 128)


@dataclass(frozen=True)
class MLPScorer:
    """features -> rho, with its quality on reals that it was not trained on.

    Attributes:
        rank_correlation: Spearman's, between exact and predicted rho of the held-out reals, -1..1.
        error: root mean squared error of log rho there. held_out: [M] which rows of the reals they are.
    """

    network: nn.Module = field(repr=False)
    mean: Tensor = field(repr=False)  # [d]
    scale: float
    rank_correlation: float
    error: float
    held_out: Tensor = field(repr=False)

    def soft_score(self, features: Tensor) -> Tensor:
        """rho [Q] of features [Q, d], float32, with gradients with respect to the features."""
        same_width(self.mean[None], features, ("real", "features"))
        return self.network((features.to(self.mean) - self.mean) / self.scale).squeeze(1).exp()

    @torch.no_grad()
    def score(self, features: object) -> Tensor:
        """rho [Q] of features [Q, d], float64, without gradients."""
        return self.soft_score(as_features("features", features, min_rows=1)).double()


def fit_mlp(
    density: PseudoDensity,
    *,
    generator: torch.Generator,
    epochs: int = 100,
    batch: int = 64,
    learning_rate: float = 1e-3,
    held_out: float = 0.2,
    widths: tuple[int, ...] = WIDTHS,
) -> MLPScorer:
    """Train the MLP on the reals of a fitted `density`: Adam, squared error of log rho, a random share held out.

    Raises:
        ValueError: fewer than 10 reals on either side of the split.
        RuntimeError: `density` is not fitted.
    """
    features = density.real_features().float()  # [N, d]
    target = density.rho.log().float()  # [N]
    order = torch.randperm(len(features), generator=generator)
    test, train = order[: int(held_out * len(order))], order[int(held_out * len(order)) :]
    if min(len(test), len(train)) < 10:
        raise ValueError(f"{len(train)} reals to train on and {len(test)} to test on: expected 10 or more of each")
    mean = features[train].mean(dim=0)
    scale = float((features[train] - mean).square().mean().sqrt()) or 1.0
    inputs = (features - mean) / scale
    network = _network(features.shape[1], widths, generator).to(features.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for rows in train[torch.randperm(len(train), generator=generator)].split(batch):
            loss = F.mse_loss(network(inputs[rows]).squeeze(1), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    network.eval().requires_grad_(False)
    predicted = network(inputs[test]).squeeze(1)
    return MLPScorer(
        network,
        mean,
        scale,
        rank_correlation(predicted, target[test]),
        float((predicted - target[test]).square().mean().sqrt()),
        test,
    )


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors [N], ties at their mean rank; 0 if one of them is constant."""
    ranks = [_ranks(x.double()) for x in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    norm = float((x.square().sum() * y.square().sum()).sqrt())
    return float((x * y).sum()) / norm if norm > 0 else 0.0


def _ranks(x: Tensor) -> Tensor:
    values, group, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()  # rank of the last member of each group of ties, counted from 1
    return (last - (counts - 1) / 2)[group]


def _network(d: int, widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((d, *widths), (*widths, 1), strict=True):
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():  # torch's own initialiser, drawn from our generator
            linear.weight.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            linear.bias.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
