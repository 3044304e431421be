"""Lesson 08, second round: the same race at three times the budget, with a look at trained contenders on the way.

Six updates end before gold can turn, and the best of 7 tests no law. Settings, prompts, proxies and noise are those of
`labkit.studies.l08`.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np

from labkit.studies import l08
from labkit.survey import Entry, enter, path_divergence

LONG = 3
STAGES = (0.125, 0.25, 0.5, 1.0)  # of the budget
STAGED = ("gold", "proxy", "task", "preference", "diversity", "saturation", "kl", "nfe", "queries")  # "gold.s1" ...


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm that ends in "_long": a search as in the short race, a trained contender looked at after every stage."""
    arm = arm.removesuffix("_long")
    longer = SimpleNamespace(**{**vars(sizes), "nfe": LONG * sizes.nfe})
    return l08.unit(arm, seed, longer) if arm == "best_of_n" else staged(*kind_of(arm), seed, longer)


def kind_of(arm: str) -> tuple[str, str]:
    """Contender and kind of proxy of an arm of the race, long or not."""
    arm = arm.removesuffix("_long")
    name, _, kind = arm.rpartition("_")
    return (name, kind) if kind in l08.PROXIES else (arm, "main")


def staged(name: str, kind: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """One run that stops for a look after each of STAGES and goes on from its checkpoint: what the judges and the
    ledger say of its end, and "<metric>.s<number of the stage>" for the metrics of STAGED."""
    train, test = l08.prompts(sizes.prompts, sizes.test_prompts)
    pipe, settings, found = l08.models().pipe, l08.settings_of(name, sizes), {}
    with TemporaryDirectory() as folder:
        for number, part in enumerate(STAGES, 1):
            entry: Entry = enter(
                name, pipe, train, l08.proxy_of(kind, seed, sizes), nfe=part * sizes.nfe, seed=seed,
                delivered=len(test), settings=settings, gold=l08.gold, folder=folder,
            )  # fmt: skip
            latents, kl = path_divergence(pipe, entry.state, test, seed=1000 + seed, settings=settings)
            seen = l08.judged(l08.look(latents), test, kind, seed, sizes) | {"kl": kl.numpy()}
            seen |= {"nfe": np.array([entry.training]), "queries": np.array([entry.queries])}
            found |= {f"{metric}.s{number}": seen[metric] for metric in STAGED}
    return found | seen | l08.traced(entry)
