"""The measuring instruments of the course. Metrics take plain features [N, d]; `real=` and `fake=` are keyword-only.

Extractors (pictures -> features) live in `labkit.metrics.extractors`, the torchmetrics wrapper in
`labkit.metrics.torchmetrics_wrappers`; both are imported on demand.
"""

from labkit.metrics.bradley_terry import BradleyTerryResult, bradley_terry
from labkit.metrics.fid_infinity import FidInfinityResult, extrapolate, fid_infinity, frechet_null
from labkit.metrics.frechet import FrechetResult, frechet_distance
from labkit.metrics.gaussian import Fingerprint, GaussianStats
from labkit.metrics.images import PIPELINES, ImagePipeline, to_uint8
from labkit.metrics.kernels import CmmdResult, KernelResult, cmmd, kernel_distance
from labkit.metrics.knn import nearest_neighbours
from labkit.metrics.manifold import ManifoldResult, expected_coverage, manifold_metrics, manifold_metrics_per_class
from labkit.metrics.noise_floor import noise_floor
from labkit.metrics.preference import (
    WinRateResult,
    cluster_bootstrap,
    holm,
    krippendorff_alpha,
    outcomes,
    paired_permutation_test,
    sample_size,
    sample_size_table,
    sign_test,
    wilson_interval,
    win_rate,
)
from labkit.metrics.scores import (
    ClipScoreResult,
    InceptionScoreResult,
    clip_score,
    inception_score,
    monge_distance,
    vendi_score,
)

__all__ = [
    "BradleyTerryResult",
    "ClipScoreResult",
    "CmmdResult",
    "FidInfinityResult",
    "Fingerprint",
    "FrechetResult",
    "GaussianStats",
    "ImagePipeline",
    "InceptionScoreResult",
    "KernelResult",
    "ManifoldResult",
    "PIPELINES",
    "WinRateResult",
    "bradley_terry",
    "clip_score",
    "cluster_bootstrap",
    "cmmd",
    "expected_coverage",
    "extrapolate",
    "fid_infinity",
    "frechet_distance",
    "frechet_null",
    "holm",
    "inception_score",
    "kernel_distance",
    "krippendorff_alpha",
    "manifold_metrics",
    "manifold_metrics_per_class",
    "monge_distance",
    "nearest_neighbours",
    "noise_floor",
    "outcomes",
    "paired_permutation_test",
    "sample_size",
    "sample_size_table",
    "sign_test",
    "to_uint8",
    "vendi_score",
    "wilson_interval",
    "win_rate",
]
