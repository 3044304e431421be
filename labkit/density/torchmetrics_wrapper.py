"""torchmetrics.Metric for the share of generated samples above a quantile of the reals' pseudo density.

Needs the optional torchmetrics package. Samples are scored one by one against fixed reals, so counts may be added over
batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.density.equations import above
from labkit.density.scoring import PseudoDensity

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ModuleNotFoundError(
        "labkit.density.torchmetrics_wrapper needs torchmetrics: pip install torchmetrics"
    ) from error


class PseudoDensityShare(Metric):
    """Share (0..1) of all samples seen whose pseudo density lies above tau; 1 - quantile for samples like the reals.

    Args:
        density: fitted on the reals. quantile: tau is this quantile (0..1) of their rho.
        feature: extractor applied to what `update` is given, pictures -> [N, d] (None: `update` takes features).
        kwargs: torchmetrics.Metric arguments.

    Raises:
        RuntimeError: `density` is not fitted. ValueError: a quantile outside 0..1.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    above: Tensor
    count: Tensor

    def __init__(
        self,
        density: PseudoDensity,
        *,
        quantile: float = 0.5,
        feature: Callable[[Any], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.density, self.feature = density, feature
        self.threshold = density.threshold(quantile)
        self.add_state("above", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Any) -> None:
        """Score a batch exactly: features [B, d], or pictures for `feature`."""
        rho = self.density.score(images if self.feature is None else self.feature(images))  # [B]
        self.above += int(above(rho, self.threshold).sum())
        self.count += len(rho)

    def compute(self) -> Tensor:
        """The share, a scalar. Raises ValueError if nothing was seen."""
        if int(self.count) == 0:
            raise ValueError("no samples were given: call update(...) first")
        return self.above / self.count
