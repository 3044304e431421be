"""`PseudoDensity`: the reals of one data set, measured once, against which any other sample is scored.

The equations themselves (d_k, rho, tau) are in `labkit.density.equations`.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from labkit.density.equations import FLOOR, mean_distance, pseudo_density, quantile_threshold
from labkit.errors import LabkitWarning
from labkit.files import write_atomically
from labkit.metrics import Fingerprint, nearest_neighbours
from labkit.metrics.checks import as_features, check_k, exact_copies, same_width, whole_number

FORMAT = "labkit-pseudo-density-1"


class PseudoDensity:
    """Pseudo density with respect to a set of real features. `fit` first, then `rho`, `score`, `threshold`.

    Args:
        k: neighbours that are averaged (released code: 10 or 20).
        exponent: n > 0. floor: see `labkit.density.equations.pseudo_density`.

    Attributes (after `fit`):
        features: [N, d] the reals. distances: [N] float64, d_k with the point itself masked, before the floor.
        rho: [N] float64, mean 1, all positive and finite.
    """

    def __init__(self, k: int = 10, *, exponent: float = 1.0, floor: float = FLOOR) -> None:
        k = whole_number("k", k)
        if k < 1:
            raise ValueError(f"k = {k} must be positive: pass a neighbour count such as k=10")
        if not (exponent > 0 and math.isfinite(exponent)) or not 0 < floor < 1:
            raise ValueError(f"exponent = {exponent} must be positive and floor = {floor} between 0 and 1")
        self.k, self.exponent, self.floor = k, float(exponent), float(floor)
        self.features: Tensor | None = None
        self.fingerprint: Fingerprint | None = None

    def fit(self, real: object, *, fingerprint: Fingerprint | None = None) -> PseudoDensity:
        """Measure the reals; returns self.

        Args:
            real: features [N, d], N > k. fingerprint: how they were made; `score` then refuses other features.

        Raises:
            ValueError: features that are not [N, d], not finite or fewer than 2, or k >= N.
        """
        real = as_features("real", real)
        check_k(self.k, len(real), "real")
        if copies := exact_copies(real):
            warnings.warn(
                f"{copies} of the {len(real)} reals are exact copies of others: their densities are too high and the "
                "thresholds with them, leave the copies out",
                LabkitWarning,
                stacklevel=2,
            )
        self._set(real, mean_distance(real, self.k).to(real.device), fingerprint)
        return self

    def _set(self, real: Tensor, distances: Tensor, fingerprint: Fingerprint | None) -> None:
        self.features, self.distances, self.fingerprint = real, distances, fingerprint
        self.rho = self._rho(distances)  # [N]

    def _rho(self, distance: Tensor) -> Tensor:
        return pseudo_density(distance, self.distances, exponent=self.exponent, floor=self.floor)

    def distance(self, features: object, *, fingerprint: Fingerprint | None = None) -> Tensor:
        """d_k [Q] float64 of new features [Q, d]: exact, nothing masked (a copy of a real has a first distance of 0).

        Raises:
            ValueError: bad features, another width than the reals, or another fingerprint.
            RuntimeError: not fitted.
        """
        real = self.real_features()
        features = as_features("features", features, min_rows=1)
        same_width(real, features, ("real", "features"))
        if fingerprint and self.fingerprint and fingerprint != self.fingerprint:
            differences = "; ".join(self.fingerprint.differences(fingerprint))
            raise ValueError(
                f"the features were made otherwise than the reals ({differences}): "
                "use one extractor and one image pipeline for both"
            )
        return mean_distance(real, self.k, queries=features)

    def score(self, features: object, *, fingerprint: Fingerprint | None = None) -> Tensor:
        """rho [Q] float64 of new features [Q, d], exact, on the reals' scale. For the reals themselves take `rho`."""
        return self._rho(self.distance(features, fingerprint=fingerprint))

    def soft_score(self, features: Tensor) -> Tensor:
        """`score` with gradients: rho [Q] in the features' dtype. The neighbours are found exactly and then held fixed.

        This is the true gradient wherever no two reals are equally far; on top of a real that distance adds none.
        """
        real = self.real_features()
        same_width(real, features, ("real", "features"))
        _, nearest = nearest_neighbours(real, self.k, queries=features)  # [Q, k]
        gap = features[:, None] - real[nearest.to(real.device)].to(features)  # [Q, k, d]
        square = gap.square().sum(dim=2)
        apart = square > 0
        distance = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)  # sqrt has no gradient at 0
        return self._rho(distance.mean(dim=1))

    def threshold(self, quantile: float) -> float:
        """The `quantile` (0..1) of the reals' rho: the tau of the paper's two-level rule."""
        self.real_features()
        return quantile_threshold(self.rho, quantile)

    def save(self, path: str | os.PathLike) -> Path:
        """Write features, distances and settings to a .safetensors file; a crash leaves no half file behind."""
        from safetensors.torch import save_file

        real, path = self.real_features(), Path(path)
        header = {"format": FORMAT, "k": self.k, "exponent": self.exponent, "floor": self.floor}
        header["fingerprint"] = asdict(self.fingerprint) if self.fingerprint else None
        tensors = {"features": real.cpu().contiguous(), "distances": self.distances.cpu().contiguous()}
        return write_atomically(path, lambda part: save_file(tensors, part, {"labkit": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> PseudoDensity:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for any other file."""
        from safetensors import safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no pseudo density file {path}: make it with PseudoDensity.save")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("labkit", "{}"))
                real, distances = file.get_tensor("features"), file.get_tensor("distances")
            if header.get("format") != FORMAT or distances.shape != real.shape[:1]:
                raise ValueError(
                    f"format {header.get('format')!r}, shapes {tuple(real.shape)}, {tuple(distances.shape)}"
                )
            fingerprint = Fingerprint(**header["fingerprint"]) if header["fingerprint"] else None
            density = cls(header["k"], exponent=header["exponent"], floor=header["floor"])
        except Exception as error:  # safetensors, json and key errors alike mean: this is not such a file
            raise ValueError(
                f"{path.name} is no pseudo density file ({error}): rebuild it with PseudoDensity.save"
            ) from error
        density._set(real, distances, fingerprint)
        return density

    def real_features(self) -> Tensor:
        """The reals [N, d] that `fit` was given; RuntimeError before that."""
        if self.features is None:
            raise RuntimeError("this PseudoDensity has seen no real features: call fit(real) first")
        return self.features
