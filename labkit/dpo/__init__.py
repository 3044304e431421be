"""Diffusion-DPO (arXiv 2311.12908) and HG-DPO (arXiv 2405.20216): losses, pairs, trainer."""

from .config import DPOConfig
from .data import PreferencePairs, check_hashes, fingerprints
from .kappa import beta_of, check_kappa, kappa_of, to_mean
from .losses import (
    epsilon_error,
    epsilon_error_of_v,
    hinge_loss,
    implicit_accuracy,
    ipo_loss,
    kto_loss,
    mapo_loss,
    pair_difference,
    pair_logits,
    scale_gradient,
    sdpo_scale,
    sigmoid_loss,
    statistics_loss,
    step_coefficient,
)
from .terms import PairStep, Term, dpo, hinge, ipo, kto, mapo, npo, sdpo, sft, statistics, terms_from
from .trainer import DPOTrainer

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "PairStep",
    "PreferencePairs",
    "Term",
    "beta_of",
    "check_hashes",
    "check_kappa",
    "dpo",
    "epsilon_error",
    "epsilon_error_of_v",
    "fingerprints",
    "hinge",
    "hinge_loss",
    "implicit_accuracy",
    "ipo",
    "ipo_loss",
    "kappa_of",
    "kto",
    "kto_loss",
    "mapo",
    "mapo_loss",
    "npo",
    "pair_difference",
    "pair_logits",
    "scale_gradient",
    "sdpo",
    "sdpo_scale",
    "sft",
    "sigmoid_loss",
    "statistics",
    "statistics_loss",
    "step_coefficient",
    "terms_from",
    "to_mean",
]
