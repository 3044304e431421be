"""Alignment of diffusion models, the survey (arXiv 2409.07253): its families, raced on one base at one budget.

Read `equations` first: one function per equation, the one that the notebook, its checks and the contenders use.

    equations   the papers of the survey as functions        policy    a LoRA policy: rollouts, updates, checkpoints
    ledger      what everything costs, in NFE                trained   one update of every trained contender
    world       gold on three axes, proxies from votes       search    contenders that train nothing
    arena       every contender behind one call          leaderboard  a file of the learner's own
    sweep       the race on photographs, as a folder     command      `labkit arena`

It is the one paper's package that may import others: DPO and FABRIC race in it.
"""

from labkit.survey.arena import CONTENDERS, Entry, enter
from labkit.survey.equations import (
    best_of_n,
    best_of_n_kl,
    best_of_n_weights,
    break_even,
    clip_for,
    effective_size,
    fk_potential,
    fk_weights,
    group_advantage,
    guided_epsilon,
    nft_loss,
    nft_optimality,
    overoptimisation,
    ppo_loss,
    raft_weights,
    reinforce_loss,
    resample,
    rwr_weights,
    step_divergence,
    step_log_ratio,
    truncated_chain,
    weighted_error,
)
from labkit.survey.ledger import BudgetError, Prices, prices
from labkit.survey.policy import ArenaSettings, Policy, path_divergence, worn
from labkit.survey.world import Proxy, VoteSettings, VotingPool, gold_axes, open_prompts, saturation_of, train_proxy

__all__ = [
    # the equations
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_weights",
    "fk_potential",
    "fk_weights",
    "effective_size",
    "resample",
    "raft_weights",
    "rwr_weights",
    "weighted_error",
    "step_log_ratio",
    "step_divergence",
    "group_advantage",
    "clip_for",
    "ppo_loss",
    "reinforce_loss",
    "truncated_chain",
    "guided_epsilon",
    "nft_optimality",
    "nft_loss",
    "overoptimisation",
    "break_even",
    # gold and proxy
    "open_prompts",
    "gold_axes",
    "saturation_of",
    "VotingPool",
    "VoteSettings",
    "train_proxy",
    "Proxy",
    # the race
    "Prices",
    "prices",
    "BudgetError",
    "ArenaSettings",
    "Policy",
    "worn",
    "path_divergence",
    "CONTENDERS",
    "Entry",
    "enter",
]
