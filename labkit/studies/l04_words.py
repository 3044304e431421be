"""Lesson 04, third round: prompt dropout where the prompt names things and the target contradicts some of them.

The prompt of the first rounds names nothing, so leaving out words frees nothing. Here it names four attributes: two as
the target has them, two as the disliked person of that target has them (one, in the rare case that both differ in one
attribute only). Targets, oracle and weight are those of `labkit.studies.l04`. The arms do not share their noise:
dropout draws from an image's generator before the initial noise is drawn.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np

from labkit.fabric import FabricWarning, FeedbackLoop
from labkit.portraits.captions import describe
from labkit.studies import l04

RIGHT = WRONG = 2  # attributes that the prompt names as the target has them, and as somebody else has them
NAMEABLE = ("style", "skin", "mood", "glasses", "beard", "clothes", "background")  # hair: a bald head has no colour


def prompt(target: int, seed: int, sizes: SimpleNamespace) -> str:
    """What is asked for: two values of the target, two of the other person where both differ."""
    crowd = l04.people(sizes.targets, seed)
    own, other = crowd.liked[target], crowd.disliked[target]
    order = [str(name) for name in np.random.default_rng([60_000 + seed, target]).permutation(NAMEABLE)]
    wrong = [name for name in order if getattr(own, name) != getattr(other, name)][:WRONG]
    right = [name for name in order if name not in wrong][:RIGHT]
    named = {name: getattr(other if name in wrong else own, name) for name in order if name in wrong + right}
    return describe(named).text


def play(target: int, seed: int, sizes: SimpleNamespace, *, dropout: float) -> FeedbackLoop:
    """The oracle plays one target; each word of the prompt is left out with probability `dropout`."""
    game = FeedbackLoop(
        l04.models().pipe, prompt(target, seed, sizes), images=sizes.images, steps=sizes.steps,
        guidance_scale=sizes.guidance, seed=10_000 + 100 * seed + target, max_weight=sizes.weight, end=1.0,
        noise="fixed", dropout=dropout,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FabricWarning)
        game.run(l04.nearness(target, seed, sizes), sizes.rounds)
    return game


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Rounds with such prompts: "rounds_named", or with dropout as in the first rounds, "rounds_named_dropout"."""
    dropout = l04.ROUNDS["dropout"]["dropout"] if arm.endswith("dropout") else 0.0
    games = {target: play(target, seed, sizes, dropout=dropout) for target in range(sizes.targets)}
    return l04.scores_of_rounds(games, seed, sizes)
