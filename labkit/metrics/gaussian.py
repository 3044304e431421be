"""Streaming Gaussian statistics of features: count, mean and centred second moment, always in float64.

Two accumulators are merged with the pairwise rule of Chan, Golub and LeVeque (1979), so any batching, any order and any
merge tree gives the statistics of the whole set; raw sums (as in most FID code) lose digits when the mean is large.
Files carry a fingerprint of how the features were made, because statistics made in two ways must not be compared.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from labkit.files import write_atomically
from labkit.metrics.checks import as_features, whole_number, work_device

FORMAT = "labkit-gaussian-stats-1"


@dataclass(frozen=True)
class Fingerprint:
    """How features were made. Two fingerprints must be equal before their statistics may be compared.

    Attributes:
        extractor: name of the network and layer, e.g. "inception-2015-12-05/pool3".
        weights: sha256 of the weights ("" when the extractor has none).
        pipeline: description of the image pipeline in front of it, e.g. "clean-299: ...".
    """

    extractor: str
    weights: str = ""
    pipeline: str = ""

    def differences(self, other: Fingerprint) -> list[str]:
        """The fields in which the two differ, as "field: a != b"."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{key}: {mine[key]!r} != {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]


class GaussianStats:
    """Count, mean and covariance of feature rows, accumulated batch by batch.

    Args:
        ddof: the covariance divides by n - ddof. 1 is what almost every FID code does; 0 is NVIDIA's StyleGAN2-ADA.
        fingerprint: how the features were made (None: unknown).

    Attributes:
        n: rows seen (None for statistics given as moments without a count).
        mean: [d] float64.
        m2: [d, d] float64, sum of (x - mean)(x - mean)^T.
    """

    def __init__(self, *, ddof: int = 1, fingerprint: Fingerprint | None = None) -> None:
        if ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 or 1, got {ddof!r}: 1 divides by n - 1, 0 by n")
        self.ddof = int(ddof)
        self.fingerprint = fingerprint
        self.n: int | None = 0
        self.mean: Tensor | None = None
        self.m2: Tensor | None = None
        self.cache: dict[str, object] = {}  # roots of the covariance, filled by labkit.metrics.frechet

    @classmethod
    def from_features(
        cls, features: object, *, ddof: int = 1, fingerprint: Fingerprint | None = None, batch_size: int = 4096
    ) -> GaussianStats:
        """Statistics of a whole [N, d] feature array, converted to float64 `batch_size` rows at a time."""
        features = as_features("features", features, min_rows=1)
        stats = cls(ddof=ddof, fingerprint=fingerprint)
        for start in range(0, len(features), batch_size):
            stats._add(features[start : start + batch_size])
        return stats

    @classmethod
    def from_moments(
        cls,
        *,
        mean: object,
        covariance: object,
        n: int | None = None,
        ddof: int = 1,
        fingerprint: Fingerprint | None = None,
    ) -> GaussianStats:
        """Statistics from a known mean [d] and covariance [d, d] (e.g. a published file, or a textbook Gaussian).

        Without `n` the result has no sample size, so it cannot be merged and predicts no noise floor.
        """
        mean = torch.as_tensor(mean, dtype=torch.float64).detach().clone()
        covariance = as_features("covariance", covariance, min_rows=1).double()
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"mean must be [d] and covariance [d, d], got {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        if not torch.isfinite(mean).all():
            raise ValueError("mean has NaN or infinite values: check the file that it came from")
        if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9 * float(covariance.abs().max())):
            raise ValueError("covariance is not symmetric: pass the covariance matrix, not a factor of it")
        n = None if n is None else whole_number("n", n)
        if n is not None and n <= ddof:
            raise ValueError(f"n = {n} is too small for ddof = {ddof}: pass the number of samples behind the moments")
        stats = cls(ddof=ddof, fingerprint=fingerprint)
        stats.n, stats.mean = n, mean
        stats.m2 = 0.5 * (covariance + covariance.T) * (1 if n is None else n - ddof)
        return stats

    @property
    def dimension(self) -> int | None:
        """Number of features, None before the first batch."""
        return None if self.mean is None else len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """[d, d] float64, m2 / (n - ddof)."""
        self._require_rows(self.ddof + 1)
        return self.m2 / (1 if self.n is None else self.n - self.ddof)

    @property
    def total_variance(self) -> float:
        """Trace of the covariance."""
        self._require_rows(self.ddof + 1)
        return float(self.m2.trace()) / (1 if self.n is None else self.n - self.ddof)

    def update(self, features: object) -> GaussianStats:
        """Add a batch of feature rows [B, d]; returns self."""
        self._add(as_features("features", features, min_rows=1))
        return self

    def merge(self, other: GaussianStats) -> GaussianStats:
        """Statistics of both sets together, as a new object (the operation to use between processes)."""
        if self.ddof != other.ddof:
            raise ValueError(f"cannot merge ddof = {self.ddof} with ddof = {other.ddof}: build both with the same ddof")
        require_same_fingerprint(self, other, ("self", "other"))
        if self.n is None or other.n is None:
            raise ValueError("cannot merge statistics without a sample count: pass n= to from_moments")
        merged = GaussianStats(ddof=self.ddof, fingerprint=self.fingerprint or other.fingerprint)
        for part in (self, other):
            if part.n:
                merged._combine(part.n, part.mean, part.m2)
        return merged

    def save(self, path: str | os.PathLike) -> Path:
        """Write a .safetensors or .json file (by the path's ending); a crash never leaves half a file behind."""
        path = Path(path)
        self._require_rows(1)
        header = {
            "format": FORMAT,
            "n": self.n,
            "ddof": self.ddof,
            "fingerprint": asdict(self.fingerprint) if self.fingerprint else None,
        }
        if path.suffix == ".json":
            return write_atomically(path, json.dumps(header | {"mean": self.mean.tolist(), "m2": self.m2.tolist()}))
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            tensors = {"mean": self.mean.cpu().contiguous(), "m2": self.m2.cpu().contiguous()}
            return write_atomically(path, lambda part: save_file(tensors, part, {"labkit": json.dumps(header)}))
        raise ValueError(f"unknown ending {path.suffix!r} of {path.name}: use .safetensors or .json")

    @classmethod
    def load(cls, path: str | os.PathLike) -> GaussianStats:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another format or a damaged file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no statistics file {path}: make it with GaussianStats.save")
        try:
            if path.suffix == ".json":
                header = json.loads(path.read_text(encoding="utf-8"))
                mean, m2 = (torch.tensor(header[key], dtype=torch.float64) for key in ("mean", "m2"))
            else:
                from safetensors import safe_open

                with safe_open(path, framework="pt") as file:
                    header = json.loads((file.metadata() or {}).get("labkit", "{}"))
                    mean, m2 = file.get_tensor("mean"), file.get_tensor("m2")
            if header.get("format") != FORMAT:
                raise ValueError(f"format is {header.get('format')!r}")
            if mean.ndim != 1 or m2.shape != (len(mean), len(mean)) or mean.dtype != torch.float64:
                raise ValueError(f"shapes are {tuple(mean.shape)} and {tuple(m2.shape)} in {mean.dtype}")
            fingerprint = Fingerprint(**header["fingerprint"]) if header["fingerprint"] else None
            stats = cls(ddof=header["ddof"], fingerprint=fingerprint)
            stats.n = header["n"]
        except Exception as error:  # safetensors, json and key errors alike mean: this is not such a file
            raise ValueError(
                f"{path.name} is not a statistics file of format {FORMAT} ({error}): rebuild it with GaussianStats.save"
            ) from error
        stats.mean, stats.m2 = mean, m2
        return stats

    def __repr__(self) -> str:
        return f"GaussianStats(n={self.n}, dimension={self.dimension}, ddof={self.ddof})"

    def _require_rows(self, rows: int) -> None:
        if self.n is not None and self.n < rows:
            raise ValueError(f"the statistics hold {self.n} sample(s) but {rows} are needed: update them first")

    def _add(self, batch: Tensor) -> None:
        if batch.device.type == "mps":  # no float64 there
            batch = batch.cpu()
        batch = batch.double()
        if self.mean is not None:
            batch = batch.to(self.mean.device)
        mean = batch.mean(dim=0)  # [d]
        centred = batch - mean  # [B, d]
        self._combine(len(batch), mean, _gram(centred))

    def _combine(self, n: int, mean: Tensor, m2: Tensor) -> None:
        """Chan's pairwise update: m2 = m2_a + m2_b + delta delta^T n_a n_b / (n_a + n_b)."""
        if self.n is None:
            raise ValueError("cannot add rows to statistics without a sample count: pass n= to from_moments")
        self.cache.clear()
        if self.mean is None:
            self.n, self.mean, self.m2 = n, mean.clone(), m2.clone()
            return
        if mean.shape != self.mean.shape:
            raise ValueError(
                f"the batch has {len(mean)} features but the statistics have {len(self.mean)}: use the same extractor"
            )
        total = self.n + n
        delta = mean.to(self.mean) - self.mean
        self.mean = self.mean + delta * (n / total)
        self.m2 = self.m2 + m2.to(self.m2) + torch.outer(delta, delta) * (self.n * n / total)
        self.n = total


def _gram(rows: Tensor, blocks: int = 8) -> Tensor:
    """rows^T rows [d, d], the blocks below the diagonal mirrored: 0.56 of the work of a full product."""
    d = rows.shape[1]
    if d < 256:
        return rows.T @ rows
    out = rows.new_empty(d, d)
    edges = [round(i * d / blocks) for i in range(blocks + 1)]
    for start, stop in zip(edges, edges[1:], strict=False):
        out[start:stop, start:] = rows[:, start:stop].T @ rows[:, start:]
        out[stop:, start:stop] = out[start:stop, stop:].T
    return out


def require_same_fingerprint(first: GaussianStats, second: GaussianStats, names: tuple[str, str]) -> None:
    """Raise ValueError if both sides say how their features were made and the two accounts differ."""
    if first.fingerprint and second.fingerprint and first.fingerprint != second.fingerprint:
        differences = "; ".join(first.fingerprint.differences(second.fingerprint))
        raise ValueError(f"{names[0]} and {names[1]} were made differently ({differences}): extract both the same way")


def rows_root(features: Tensor, ddof: int) -> Tensor:
    """The factor A [N, d] of the covariance that the centred rows are: A^T A = S."""
    features = features.to(work_device(features)).double()
    return (features - features.mean(dim=0)) / (len(features) - ddof) ** 0.5
