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
"""

from labkit.density.candidates import CandidateStream
from labkit.density.equations import (
    Forecast,
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
from labkit.density.finetune import FineTuned, fine_tune
from labkit.density.mlp import MLPScorer, fit_mlp, rank_correlation
from labkit.density.perturbation import Perturbation, perturb
from labkit.density.scoring import PseudoDensity
from labkit.density.selection import BudgetExhausted, Selection, importance_sample, pilot

__all__ = [  # in the order of use
    "mean_distance",
    "pseudo_density",
    "quantile_threshold",
    "PseudoDensity",
    "fit_mlp",
    "MLPScorer",
    "rank_correlation",
    "acceptance_probability",
    "forecast",
    "Forecast",
    "pilot",
    "importance_sample",
    "Selection",
    "BudgetExhausted",
    "CandidateStream",
    "push_step",
    "perturb",
    "Perturbation",
    "training_weights",
    "ratio_of",
    "fixed_point",
    "fine_tune",
    "FineTuned",
]
