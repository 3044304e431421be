"""The measuring instruments of the course. Metrics take plain features [N, d]; `real=` and `fake=` are keyword-only.

Modules, in the order of use:

    images          `ImagePipeline`: pictures of any kind -> network input, with a name for the results
    extractors      pictures -> features (`reader_extractor`, `clip_extractor`, `inception_extractor`); shipped models
                    are loaded on demand; `inception_net`: the network behind FID
    gaussian        `GaussianStats`: streaming mean and covariance; `Fingerprint`: how features were made
    frechet         `frechet_distance` (FID); `noise_floor`: what it reads without a difference; `fid_infinity`
    kernels         `kernel_distance` (KID), `cmmd`
    manifold        `manifold_metrics`: precision, recall, density, coverage; `knn`: exact neighbours in blocks
    scores          `vendi_score`, `clip_score`
    preference      win rates with the prompt as the unit: intervals, tests, sample sizes, agreement of raters
    bradley_terry   strengths of more than two models
    checks          one line that says what was wrong with the arguments, and how to mend it
    cubic           the kernel of KID in float32 without losing what KID looks at; `products`: of many rows with many
    torch_files     the tensors of a .pth file, read without unpickling: the standard Inception weights
    torchmetrics_wrappers   `ManifoldMetric`; needs torchmetrics and is imported on demand

What each function returns is a dataclass of its module, described there; `float(result)` is the value.
"""

from labkit.metrics.bradley_terry import bradley_terry
from labkit.metrics.fid_infinity import fid_infinity, frechet_null
from labkit.metrics.frechet import frechet_distance
from labkit.metrics.gaussian import Fingerprint, GaussianStats
from labkit.metrics.images import ImagePipeline
from labkit.metrics.kernels import cmmd, kernel_distance
from labkit.metrics.knn import nearest_neighbours
from labkit.metrics.manifold import manifold_metrics
from labkit.metrics.noise_floor import noise_floor
from labkit.metrics.preference import (
    cluster_bootstrap,
    holm,
    krippendorff_alpha,
    outcomes,
    sample_size,
    sign_test,
    wilson_interval,
    win_rate,
)
from labkit.metrics.scores import clip_score, vendi_score

__all__ = [
    # pictures and their features
    "ImagePipeline",
    "Fingerprint",
    "GaussianStats",
    # two sets of features
    "frechet_distance",
    "noise_floor",
    "frechet_null",
    "fid_infinity",
    "kernel_distance",
    "cmmd",
    "manifold_metrics",
    "nearest_neighbours",
    # one set
    "vendi_score",
    "clip_score",
    # comparisons
    "outcomes",
    "win_rate",
    "wilson_interval",
    "cluster_bootstrap",
    "sign_test",
    "holm",
    "sample_size",
    "krippendorff_alpha",
    "bradley_terry",
]
