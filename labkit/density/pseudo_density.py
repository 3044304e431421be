"""Pseudo density of Li et al. (arXiv 2407.08659): how close a sample lies to its k nearest real samples.

    d_k(x) = 1/k  sum_{j=1..k} | F(x) - F(nn_j(x)) |_2          mean distance to the k nearest reals, x itself left out
    rho(x) = (1 / d_k(x))^n  /  mean over the reals of the same  so the reals have mean 1: "times the average density"

The released code has n = 1. A larger exponent stretches the scale and leaves ranks and quantiles alone, and distances
concentrate in many dimensions, so thresholds are quantiles of the reals' rho, never absolute numbers.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from labkit.files import write_atomically
from labkit.metrics import Fingerprint, nearest_neighbours
from labkit.metrics.checks import as_features, check_k, same_width

FORMAT = "labkit-pseudo-density-1"


class PseudoDensity:
    """Pseudo density with respect to a set of real features. `fit` first, then `rho`, `score`, `threshold`.

    Args:
        k: neighbours that are averaged (released code: 10 or 20).
        exponent: n above, > 0.
        floor: d_k is not taken below `floor` times its mean over the reals: more than k copies of one picture would
            have infinite density.

    Attributes (after `fit`):
        features: [N, d] the reals. distances: [N] float64, d_k with the point itself masked, before the floor.
        rho: [N] float64, mean 1, all positive and finite.
    """

    def __init__(self, k: int = 10, *, exponent: float = 1.0, floor: float = 1e-3) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k = {k!r} must be a positive integer: pass a neighbour count such as k=10")
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
        neighbours, _ = nearest_neighbours(real, self.k)  # [N, k]
        self._set(real, neighbours.mean(dim=1).to(real.device), fingerprint)
        return self

    def _set(self, real: Tensor, distances: Tensor, fingerprint: Fingerprint | None) -> None:
        self.features, self.distances, self.fingerprint = real, distances, fingerprint
        self._lowest = self.floor * float(distances.mean()) or 1.0  # all points equal: every d_k is floored to 1
        self._mean_raw = float(self._raw(distances).mean())
        self.rho = self._raw(distances) / self._mean_raw  # [N]

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
        return nearest_neighbours(real, self.k, queries=features)[0].mean(dim=1)

    def score(self, features: object, *, fingerprint: Fingerprint | None = None) -> Tensor:
        """rho [Q] float64 of new features [Q, d], exact, on the reals' scale. For the reals themselves take `rho`."""
        return self._raw(self.distance(features, fingerprint=fingerprint)) / self._mean_raw

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
        return self._raw(distance.mean(dim=1)) / self._mean_raw

    def threshold(self, quantile: float) -> float:
        """The `quantile` (0..1) of the reals' rho: the tau of the paper's two-level rule."""
        self.real_features()
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile = {quantile} must be between 0 and 1: 0.8 has a fifth of the reals above it")
        return float(torch.quantile(self.rho.cpu(), quantile))

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

    def _raw(self, distance: Tensor) -> Tensor:
        return distance.clamp(min=self._lowest) ** -self.exponent

    def real_features(self) -> Tensor:
        """The reals [N, d] that `fit` was given; RuntimeError before that."""
        if self.features is None:
            raise RuntimeError("this PseudoDensity has seen no real features: call fit(real) first")
        return self.features


def expected_distance(k: int, d: int, intensity: float) -> float:
    """E d_k in a homogeneous Poisson process of `intensity` points per unit volume in d dimensions.

    The j-th distance has mean Gamma(j + 1/d) / Gamma(j) (intensity V_d)^(-1/d), V_d the unit ball; the average over
    j <= k telescopes to Gamma(k + 1 + 1/d) / ((1 + 1/d) Gamma(k + 1)).
    """
    ball = math.pi ** (d / 2) / math.gamma(d / 2 + 1)
    bracket = math.exp(math.lgamma(k + 1 + 1 / d) - math.lgamma(k + 1)) / (1 + 1 / d)
    return bracket * (intensity * ball) ** (-1 / d)


def calibrated_density(distances: Tensor, *, k: int, d: int, n: int) -> Tensor:
    """What pseudo density would be if it were a density: the p(x) [Q] under which d_k is the expected distance.

    Args:
        distances: d_k [Q] to the k nearest of n reals. d: intrinsic dimension of the data.
    """
    return (expected_distance(k, d, float(n)) / distances) ** d
