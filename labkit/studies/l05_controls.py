"""Lesson 05, second round: why SDPO, MaPO and KTO end behind DPO, and NPO behind plain guidance.

A quarter of the strength for MaPO and KTO, with DPO at the same one beside them; the authors' own mu for SDPO; DPO that
asks for more where the scores differ more; and a model to avoid that has learnt its empty prompt from the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from labkit.dpo import PreferencePairs, Term, dpo, npo, sdpo
from labkit.studies import l05

CONTROLS: dict[str, Callable[[float, PreferencePairs], list[Term]]] = {
    **{
        f"{loss}_quarter": lambda kappa, pairs, loss=loss: l05.LOSSES[loss](kappa / 4)
        for loss in ("dpo", "mapo", "kto")
    },
    "sdpo_authors": lambda kappa, pairs: [sdpo(kappa, mu=0.9)],
    # on average s > 1 is asked for
    "margin": lambda kappa, pairs: [dpo(kappa, margin_weight=1 / float(pairs.margin.mean()))],
    "npo_unprompted": lambda kappa, pairs: [npo(kappa)],
}


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """One control on the pairs of the first round, measured as there."""
    pairs, test = (
        l05.portrait_pairs(seed, sizes.prompts, sizes.candidates, sizes.steps),
        l05.held_out(sizes.test_prompts),
    )
    terms = CONTROLS[arm](sizes.kappa, pairs)
    if arm == "npo_unprompted":
        pairs = replace(pairs, prompts=[""] * len(pairs.prompts))
    run = l05.align(pairs, terms, seed, sizes)
    if arm == "npo_unprompted":
        images = l05.away_from(run.state, test, seed, sizes)
    else:
        images = l05.pictures(test, seed, sizes, {"dpo": run.state})
    last = {name: np.array([run.log[-1][name]]) for name in ("d_w", "d_l", "accuracy")}
    return l05.measures(images, test, sizes) | last
