"""Lesson 06, second round: real pictures with captions as careless as those that made the base.

In the first round whatever trains on real pictures ends more faithful than the paper has it: the leap, plain
fine-tuning, fine-tuning after the easy stage. There the real pictures' captions are right. Is that why?
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from labkit.dpo import PairSet, PreferencePairs, dpo, sft
from labkit.portraits import ATTRIBUTES, caption, mislabelled
from labkit.portraits.parse import parse_caption
from labkit.studies import l06

MISLABELLED = 0.4  # as in the captions of portrait-sd-base


def careless(prompts: int, seed: int) -> dict[str, str]:
    """Training prompt -> a caption of the same person that names the same attributes, each but the style wrong with
    probability `MISLABELLED`."""
    rng, found = np.random.default_rng(70_000 + seed), {}
    for spec, text in zip(*l06.half_named(prompts, 10_000 + seed), strict=True):
        unnamed = [name for name in ATTRIBUTES if name not in parse_caption(text)]
        found.setdefault(text, caption(mislabelled(spec, rng, MISLABELLED), drop=unnamed).text)
    return found


def relabelled(pairs: PairSet, prompts: int, seed: int) -> PreferencePairs:
    """The pairs to train on, with careless captions."""
    said, kept = careless(prompts, seed), pairs.training()
    return replace(kept, prompts=[said[text] for text in kept.prompts])


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the first round that ends in "_careless", measured as there."""
    world, total = l06.world_of(seed, sizes), sizes.train_steps
    key = tuple(sorted(vars(sizes).items()))
    plain, start = [sft(sizes.kappa / 2)], None
    if arm == "sft_careless":
        start = l06.trained("easy", seed, key)
        plan = ("sft", relabelled(world.hard, sizes.prompts, seed), plain, total - round(0.6 * total))
    elif arm == "real_sft_careless":
        plan = ("real", relabelled(world.leap, sizes.prompts, seed), plain, total)
    else:
        plan = ("leap", relabelled(world.leap, sizes.prompts, seed), [dpo(sizes.kappa)], total)
    states = l06.align([plan], seed, sizes, start)
    _, test = l06.half_named(sizes.test_prompts, 20_000)
    return l06.measures(l06.pictures(test, seed, sizes, states), test, seed, sizes)
