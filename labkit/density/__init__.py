"""Pseudo density (Li et al., arXiv 2407.08659): trading fidelity against diversity of a diffusion model.

Modules, in the order in which to read them:

    equations       the paper's definitions, one function each
    scoring         `PseudoDensity`: fitted on the reals, scores any sample, exactly or with gradients
    mlp             `fit_mlp`: the paper's learned estimator of the same
    candidates      `CandidateStream`: a diffusion pipeline as a stream of numbered candidates
    perturbation    method (i): `perturb` the noise of one sample
    selection       method (ii): `importance_sample` at inference; `pilot` forecasts the cost
    finetune        method (iii): `fine_tune` on weighted draws of the training data (`sampler`)
    torchmetrics_wrapper   `PseudoDensityShare`; needs torchmetrics and is imported on demand

What each function returns is a dataclass of its module, described there.
"""

from labkit.density.candidates import CandidateStream
from labkit.density.equations import (
    acceptance_probability,
    fixed_point,
    forecast,
    mean_distance,
    pseudo_density,
    push_step,
    quantile_threshold,
    ratio_of,
    training_weights,
)
from labkit.density.finetune import fine_tune
from labkit.density.mlp import fit_mlp, rank_correlation
from labkit.density.perturbation import perturb
from labkit.density.scoring import PseudoDensity
from labkit.density.selection import BudgetExhausted, importance_sample, pilot

__all__ = [
    # the measure
    "mean_distance",
    "pseudo_density",
    "quantile_threshold",
    "PseudoDensity",
    "fit_mlp",
    "rank_correlation",
    # method (ii): accept or reject
    "acceptance_probability",
    "forecast",
    "pilot",
    "importance_sample",
    "BudgetExhausted",
    "CandidateStream",
    # method (i): push one sample
    "push_step",
    "perturb",
    # method (iii): weighted training
    "training_weights",
    "ratio_of",
    "fixed_point",
    "fine_tune",
]
