"""Diffusion-DPO (arXiv 2311.12908) and HG-DPO (arXiv 2405.20216).

Read `equations` first: one function per equation, the one that the notebooks, their checks and the trainer use.

    equations     the papers as functions                       scorers       judges: (images, prompts) -> scores
    terms         an equation with its numbers filled in        pool          N candidates per prompt, scored
    noise         which t and noise a pair gets                 pairs         the record of a preference
    process       diffusion, or rectified flow
    data          pairs in memory, fingerprints of models       recon, hg     HG-DPO: reconstructions, stages
    config        what a run is                                 side_effects  what nobody asked for
    trainer       the loop; record: its log                     toy           the same terms in two dimensions
    guard         what warns and stops                          preference    a judge learnt from votes
    shortcut      winners found by texture alone
    flow          the loss of models that predict a velocity
    train         a run from a YAML file                        gpu_scorers   published judges of photographs
    folders       pairs that somebody collected                 own           from such pairs to a LoRA
    shards        latents that stay on disk                     command       `labkit dpo`
    slices        pairs made by several processes               sharding      the base spread over processes
    scale         `labkit plan`: what many pairs cost

Here are the names that a lesson needs, in the order in which it needs them; the others come from their modules.
"""

from labkit.dpo.config import DPOConfig
from labkit.dpo.data import PreferencePairs, fingerprints
from labkit.dpo.equations import dpo_logit, dpo_loss, epsilon_error, kappa_of, statistics_loss, step_coefficient
from labkit.dpo.hg import (
    Stage,
    attach,
    base_weights_kept,
    each_step,
    hard_pairs,
    leap_pairs,
    normal_pairs,
    run_stages,
    text_window,
    up_blocks,
)
from labkit.dpo.pairs import PairSet, best_vs_worst, channel_gap
from labkit.dpo.pool import Pool, best_and_worst, build_pool, expected_range
from labkit.dpo.recon import recon_levels, sd_recon
from labkit.dpo.scorers import Scorer, blend, faithfulness, sharpness, warmth, warmth_of
from labkit.dpo.shortcut import told_apart
from labkit.dpo.side_effects import side_effects
from labkit.dpo.terms import PairStep, Term, dpo, hinge, ipo, kto, mapo, npo, sdpo, sft, statistics
from labkit.dpo.trainer import DPOTrainer

__all__ = [
    # the equations
    "epsilon_error",
    "dpo_logit",
    "dpo_loss",
    "kappa_of",
    "step_coefficient",
    "statistics_loss",
    # what is minimised
    "PairStep",
    "Term",
    "dpo",
    "sft",
    "sdpo",
    "npo",
    "mapo",
    "ipo",
    "hinge",
    "kto",
    "statistics",
    # pairs by AI feedback
    "Scorer",
    "faithfulness",
    "sharpness",
    "warmth",
    "warmth_of",
    "blend",
    "Pool",
    "build_pool",
    "best_and_worst",
    "expected_range",
    "PairSet",
    "best_vs_worst",
    "channel_gap",
    "told_apart",
    "PreferencePairs",
    "fingerprints",
    # training
    "DPOConfig",
    "DPOTrainer",
    "base_weights_kept",
    # HG-DPO: reconstructions, stages, inference
    "sd_recon",
    "recon_levels",
    "normal_pairs",
    "hard_pairs",
    "leap_pairs",
    "Stage",
    "run_stages",
    "each_step",
    "attach",
    "up_blocks",
    "text_window",
    # what else it did
    "side_effects",
]
