"""Pseudo density (Li et al., arXiv 2407.08659): trading fidelity against diversity of a diffusion model.

`PseudoDensity` measures how typical a sample is among real ones. Three methods use it: `perturb` one sample's noise,
`importance_sample` at inference, `fine_tune` on weighted draws of the training data.
"""

from labkit.density.candidates import Candidates
from labkit.density.finetune import FineTuned, fine_tune, fine_tune_pair
from labkit.density.mlp import MLPScorer, fit_mlp, rank_correlation
from labkit.density.perturbation import Perturbation, perturb
from labkit.density.pseudo_density import PseudoDensity, calibrated_density, expected_distance
from labkit.density.rule import (
    Forecast,
    WeightedSampler,
    above,
    acceptance_probability,
    forecast,
    ratio_of,
    reweighted,
    training_weights,
)
from labkit.density.selection import BudgetExhausted, Selection, importance_sample, pilot

__all__ = [
    "BudgetExhausted",
    "Candidates",
    "FineTuned",
    "Forecast",
    "MLPScorer",
    "Perturbation",
    "PseudoDensity",
    "Selection",
    "WeightedSampler",
    "above",
    "acceptance_probability",
    "calibrated_density",
    "expected_distance",
    "fine_tune",
    "fine_tune_pair",
    "fit_mlp",
    "forecast",
    "importance_sample",
    "perturb",
    "pilot",
    "rank_correlation",
    "ratio_of",
    "reweighted",
    "training_weights",
]
