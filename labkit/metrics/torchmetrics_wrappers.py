"""torchmetrics.Metric for precision, recall, density and coverage, which torchmetrics itself does not have.

Needs the optional torchmetrics package. Features of all processes are gathered before the radii are computed: averaging
per-process scores would be another (wrong) number, since balls would reach to neighbours of the same process only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.metrics.checks import as_features
from labkit.metrics.manifold import manifold_metrics

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
    from torchmetrics.utilities.distributed import gather_all_tensors
except ImportError as error:
    raise ModuleNotFoundError(
        "labkit.metrics.torchmetrics_wrappers needs torchmetrics: pip install torchmetrics"
    ) from error

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class ManifoldMetric(Metric):
    """{"precision", "recall", "density", "coverage"} of all features seen by all processes.

    Every process must call `compute` (it gathers). A sampler that pads the last batch makes images count twice.

    Args:
        k: neighbours behind each radius. boundary: "closed" or "open", see `manifold_metrics`.
        feature: extractor applied to what `update` is given, pictures -> [N, d] (None: `update` takes features).
        reset_real_features: forget the reals in `reset` too; False keeps them, e.g. between epochs.
        kwargs: torchmetrics.Metric arguments.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(
        self,
        k: int = 5,
        *,
        boundary: str = "closed",
        feature: Callable[[Any], Tensor] | None = None,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.k, self.boundary, self.feature = k, boundary, feature
        self.reset_real_features = reset_real_features
        self.add_state("real_features", default=[], dist_reduce_fx="cat")
        self.add_state("fake_features", default=[], dist_reduce_fx="cat")

    def update(self, images: Any, *, real: bool) -> None:
        """Add a batch of one side.

        Args:
            images: features [B, d], or pictures for `feature`.
            real: which side; keyword-only so that it is always written out.
        """
        features = as_features("features", images if self.feature is None else self.feature(images), min_rows=1)
        (self.real_features if real else self.fake_features).append(features.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Scalars in float64 (float32 where the device has no float64).

        Raises:
            ValueError: fewer than k + 1 features on a side.
        """
        sides = {name: getattr(self, f"{name}_features") for name in ("real", "fake")}
        for name, side in sides.items():
            if len(side) == 0:
                raise ValueError(f"no {name} features were given: call update(..., real={name == 'real'}) first")
        result = manifold_metrics(
            real=dim_zero_cat(sides["real"]), fake=dim_zero_cat(sides["fake"]), k=self.k, boundary=self.boundary
        )
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return {name: torch.tensor(value, dtype=dtype, device=self.device) for name, value in result.as_dict().items()}

    def reset(self) -> None:
        """Forget the fakes, and the reals unless reset_real_features=False."""
        kept = list(self.real_features)
        super().reset()
        if not self.reset_real_features:
            self.real_features = kept

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any | None = None) -> None:
        """Let a process that saw nothing of a side take part with an empty [0, d] of the others' width and dtype;
        torchmetrics' own stand-in is 1-D float32, and gathering it with 2-D features hangs or fails."""
        group = process_group or self.process_group
        for name in ("real_features", "fake_features"):
            side = getattr(self, name)
            side = [dim_zero_cat(side)] if len(side) else []
            mine = torch.tensor(
                [side[0].shape[1], _DTYPES.index(side[0].dtype)] if side else [0, -1], device=self.device
            )
            known = [tuple(entry.tolist()) for entry in dist_sync_fn(mine, group=group)]
            known = {entry for entry in known if entry[0]}
            if len(known) > 1:
                widths = sorted((width, str(_DTYPES[dtype])) for width, dtype in known)
                raise ValueError(
                    f"processes hold different {name} (width, dtype): {widths}: use one extractor everywhere"
                )
            if known and not side:
                width, dtype = known.pop()
                side = [torch.empty(0, width, dtype=_DTYPES[dtype], device=self.device)]
            setattr(self, name, side)
        super()._sync_dist(dist_sync_fn, process_group)
