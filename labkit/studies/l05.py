"""Lesson 05: Diffusion-DPO (arXiv 2311.12908) beside every other loss of `labkit.dpo.terms`: same pairs, same budget.

Two worlds. *The ring* of `labkit.worlds.toy`, where the errors of winners and losers, and what leaves the data, can be
followed in seconds: a number per base model and seed. *Portraits* on portrait-sd-base, sharp and misaligned: the
training judge (PortraitCLIP) makes the pairs, the AttributeReader alone measures on held-out prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from labkit.diffusion import adapter_state, image_generators, sample
from labkit.dpo import (
    DPOConfig,
    DPOTrainer,
    PreferencePairs,
    Term,
    best_vs_worst,
    build_pool,
    dpo,
    hinge,
    ipo,
    kto,
    mapo,
    npo,
    sdpo,
    sft,
)
from labkit.dpo.toy import ToyResult, train_toy
from labkit.metrics import vendi_score
from labkit.studies.estimate import gain, level, win_share
from labkit.studies.l06 import Adapters, adapters, gold, half_named, models, realism, reality
from labkit.studies.study import Study
from labkit.worlds.toy import Denoiser, make_pairs, off_ring, pretrain, reward, sample_points

LOSSES: dict[str, Callable[[float], list[Term]]] = {
    # strength kappa -> what is minimised; scaled so that each starts with a pull on the pairs like that of DPO
    "dpo": lambda kappa: [dpo(kappa)],
    "sft": lambda kappa: [sft(kappa / 2)],
    "anchor": lambda kappa: [dpo(kappa), sft(kappa / 10)],
    "sdpo": lambda kappa: [sdpo(kappa, mu=0.5)],
    "conservative": lambda kappa: [dpo(kappa, label_smoothing=0.1)],
    "ipo": lambda kappa: [ipo(kappa)],
    "hinge": lambda kappa: [hinge(kappa)],
    "mapo": lambda kappa: [mapo(scale=4 * kappa)],
    "kto": lambda kappa: [kto(kappa)],
}
NOISY = {"noisy_dpo": 0.0, "noisy_smooth": 0.25}  # a quarter of the labels is wrong: label smoothing of the loss

# ---- the ring ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def ring_base(number: int, steps: int) -> Denoiser:
    """A model of the ring; the learning rate of the trainings was chosen on number 0."""
    return pretrain(100 + number, steps)


@lru_cache(maxsize=16)
def ring_pairs(number: int, seed: int, n: int, pool: int, steps: int) -> tuple[Tensor, Tensor]:
    """Best and worst of `pool` samples of a base, by the judge who likes the right side: [n, 2] each."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    return make_pairs(ring_base(number, steps), n, pool, generator)


def flipped(winner: Tensor, loser: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The pairs with about this share of their labels turned round."""
    turned = torch.rand(len(winner), 1, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(turned, loser, winner), torch.where(turned, winner, loser)


def ring_terms(arm: str) -> list[Term]:
    """What an arm of the ring minimises: 'dpo_2' is DPO at kappa 2, a bare name has kappa 10."""
    if arm in NOISY:
        return [dpo(10.0, label_smoothing=NOISY[arm])]
    name, _, kappa = arm.partition("_")
    return LOSSES["dpo" if name == "two" else name](float(kappa or 10))


def ring_run(
    arm: str, number: int, seed: int, sizes: SimpleNamespace, terms: Callable | Sequence[Term] | None = None
) -> ToyResult:
    """Train one base of the ring as an arm does, or with the learner's own `terms` on the arm's pairs."""
    pool = 2 if arm == "two" else 8
    pairs = ring_pairs(number, seed, sizes.toy_pairs, pool, sizes.toy_pretrain)
    if arm in NOISY:
        pairs = flipped(*pairs, 0.25, seed)
    terms = ring_terms(arm) if terms is None else terms
    base = ring_base(number, sizes.toy_pretrain)
    return train_toy(base, *pairs, terms, seed=seed, steps=sizes.toy_steps, lr=sizes.toy_lr)


def ring_unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Per base: mean reward, share off the ring, final changes of the errors, accuracy; d_w on the way, over bases."""
    numbers = range(sizes.toy_bases)
    if arm == "base":
        made = [
            sample_points(ring_base(n, sizes.toy_pretrain), 2000, torch.Generator().manual_seed(seed + 1))
            for n in numbers
        ]
        return {
            "reward": np.array([float(reward(p).mean()) for p in made]),
            "off_ring": np.array([float(off_ring(p).float().mean()) for p in made]),
        }
    runs = [ring_run(arm, n, seed, sizes) for n in numbers]
    last = {key: np.array([run.log[-1][key] for run in runs]) for key in ("d_w", "d_l", "accuracy")}
    return {
        "reward": np.array([run.reward for run in runs]),
        "off_ring": np.array([run.off_ring for run in runs]),
        **last,
        "d_w_curve": np.mean([[record["d_w"] for record in run.log] for run in runs], axis=0),
    }


# ---- portraits ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def portrait_pairs(seed: int, prompts: int, candidates: int, steps: int) -> PreferencePairs:
    """Best against worst of the candidates of each prompt, by the training judge; ties left out."""
    m = models()
    _, texts = half_named(prompts, 10_000 + seed)
    pool = build_pool(m.pipe, texts, candidates, scorers=[m.judge], seed=seed, steps=steps)
    return best_vs_worst(pool, m.judge.name).training()


@dataclass(frozen=True)
class Run:
    """A trained adapter and the log of its training."""

    state: dict[str, Tensor]
    log: list[dict[str, float]]


def watched(terms: Sequence[Term]) -> list[Term]:
    """The terms and one that is always 0: it makes the trainer log the reference's errors for losses without one."""
    return [*terms, Term("watch", lambda step: 0.0 * step.ref_winner_error, {})]


def align(
    pairs: PreferencePairs, terms: Sequence[Term], seed: int, sizes: SimpleNamespace, callback: Callable | None = None
) -> Run:
    """Train LoRA in every layer of the base; the base is as before afterwards. callback: as of `DPOTrainer.run`."""
    config = DPOConfig(
        steps=sizes.train_steps, batch_size=sizes.batch, lr=sizes.lr, rank=sizes.rank, targets="all", warmup=5,
        seed=seed, precision="auto", log_every=max(1, sizes.train_steps // 10), cached_draws=sizes.draws,
    )  # fmt: skip
    pipe = models().pipe
    with DPOTrainer(pipe, pairs, config, watched(terms)) as trainer:
        log = trainer.run(callback)
        return Run(adapter_state(pipe.unet, config.adapter), log)


def pictures(prompts: Sequence[str], seed: int, sizes: SimpleNamespace, states: Adapters | None = None) -> Tensor:
    """One picture per prompt [n, 3, 64, 64]; the same seed gives every model the same noise."""
    with adapters(states or {}):
        generators = image_generators(len(prompts), 1000 + seed)
        return sample(models().pipe, prompts, generators=generators, steps=sizes.steps, batch_size=64).cpu()


def away_from(
    state: dict[str, Tensor], prompts: Sequence[str], seed: int, sizes: SimpleNamespace, *, with_words: bool = False
) -> Tensor:
    """Pictures of the base, guided away from the model with this adapter instead of from the base's own empty prompt.

    with_words: the model to avoid is asked for the prompt itself, not for the empty one.
    """
    pipe = models().pipe
    with adapters({"dpo": state}):
        worse = deepcopy(pipe.unet)
    generators = image_generators(len(prompts), 1000 + seed)
    options = {"negative_prompts": list(prompts)} if with_words else {}
    return sample(
        pipe, prompts, generators=generators, steps=sizes.steps, batch_size=64, negative_model=worse, **options
    ).cpu()


def measures(images: Tensor, prompts: Sequence[str], sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Per prompt what the two judges say; of all pictures the distance to real ones and the diversity."""
    m = models()
    return {
        "gold": gold(images, prompts),
        "judge": m.judge(images, prompts).numpy(),
        "distance": np.array([realism(images, reality(sizes.references, 0.0))]),
        "diversity": np.array([vendi_score(m.reader.features(images))]),
    }


@lru_cache(maxsize=1)
def trained(loss: str, seed: int, key: tuple) -> Run:
    """One loss on the pairs of one seed."""
    sizes = SimpleNamespace(**dict(key))
    pairs = portrait_pairs(seed, sizes.prompts, sizes.candidates, sizes.steps)
    terms = [npo(sizes.kappa)] if loss == "npo" else LOSSES[loss](sizes.kappa)
    return align(pairs, terms, seed, sizes)


def held_out(n: int) -> list[str]:
    """n prompts that no pool contains, half of whose attributes are named."""
    return half_named(n, 20_000)[1]


def portrait_unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """One loss on the held-out prompts."""
    test, key = held_out(sizes.test_prompts), tuple(sorted(vars(sizes).items()))
    if arm == "base":
        return measures(pictures(test, seed, sizes), test, sizes)
    run = trained("npo" if arm == "npo_words" else arm, seed, key)
    if arm in ("npo", "npo_words"):
        images = away_from(run.state, test, seed, sizes, with_words=arm == "npo_words")
    else:
        images = pictures(test, seed, sizes, {"dpo": run.state})
    return measures(images, test, sizes) | {name: np.array([run.log[-1][name]]) for name in ("d_w", "d_l", "accuracy")}


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """An arm of the ring ("toy_...") or of the portraits."""
    if arm.startswith("toy_"):
        return ring_unit(arm.removeprefix("toy_"), seed, sizes)
    return portrait_unit(arm, seed, sizes)


ESTIMATES = {
    "winner_error_grows": level("d_w", "toy_dpo_2"),
    "anchor_holds_winner": level("d_w", "toy_anchor"),
    "sdpo_holds_winner": gain("d_w", "toy_sdpo", "toy_dpo"),
    "small_kappa_leaves_data": gain("off_ring", "toy_dpo", "toy_dpo_250"),
    "smoothing_guards": gain("off_ring", "toy_noisy_smooth", "toy_noisy_dpo"),
    "judge_is_pleased": win_share("judge", "dpo", "base", margin=0.01),
    "dpo_beats_base": win_share("gold", "dpo", "base", margin=0.01),
    "dpo_beats_sft": gain("gold", "dpo", "sft"),
    "sdpo_beats_dpo": gain("gold", "sdpo", "dpo"),
    "mapo_keeps_up": gain("gold", "mapo", "dpo"),
    "kto_beats_dpo": gain("gold", "kto", "dpo"),
    "npo_helps": win_share("gold", "npo", "base", margin=0.01),
    "npo_needs_words": gain("gold", "npo_words", "npo"),
    "authors_mu_helps": gain("gold", "sdpo_authors", "sdpo_float32"),
    "weaker_mapo_keeps_up": gain("gold", "mapo_quarter", "dpo_float32"),
    "weaker_kto_beats_dpo": gain("gold", "kto_quarter", "dpo_quarter"),
    "margin_helps": gain("gold", "margin", "dpo_float32"),
    "unprompted_npo_helps": win_share("gold", "npo_unprompted", "base", margin=0.01),
}
LATER = dict.fromkeys(
    ("dpo_quarter", "mapo_quarter", "kto_quarter", "sdpo_authors", "margin", "npo_unprompted"),
    "labkit.studies.l05_controls",
) | dict.fromkeys(("dpo_float32", "sdpo_float32"), "labkit.studies.l05_float32")

STUDY = Study(
    lesson="05",
    unit=unit,
    arms=(
        *("base", "dpo", "sft", "npo", "npo_words", "sdpo", "mapo", "kto", "conservative", "ipo", "hinge", "anchor"),
        *("toy_base", "toy_dpo_2", "toy_dpo", "toy_dpo_50", "toy_dpo_250", "toy_two", "toy_sft", "toy_anchor"),
        *("toy_sdpo", "toy_conservative", "toy_ipo", "toy_hinge", "toy_mapo", "toy_kto"),
        *("toy_noisy_dpo", "toy_noisy_smooth"),
        *LATER,
    ),
    seeds=(0, 1, 2),
    more=dict.fromkeys(("base", "dpo", "sdpo", "mapo"), range(3, 13))
    | dict.fromkeys(("dpo_quarter", "kto_quarter", "npo_unprompted"), range(3, 7))  # open after three
    # open after five, by their spread
    | dict.fromkeys(("mapo_quarter", "dpo_float32"), range(3, 13)),
    sizes={
        "toy_bases": 3, "toy_pretrain": 2000, "toy_pairs": 2000, "toy_steps": 300, "toy_lr": 2e-4,
        "prompts": 64, "candidates": 6, "test_prompts": 128, "references": 256, "steps": 8,
        "train_steps": 60, "batch": 10, "draws": 4, "kappa": 400.0, "lr": 4e-4, "rank": 16,
    },
    estimates=ESTIMATES,
    weights=("portrait-sd-base", "portrait-clip", "attribute-reader"),
    modules=(
        *(f"labkit.dpo.{name}" for name in ("equations", "terms", "toy", "pairs")),
        *("labkit.worlds.toy", "labkit.studies.l06"),
    ),
    tolerance={  # a training in bfloat16 and one in float32 end at most .006 apart, .8 in the distance
        "": 0.01, "distance": 1.0, "diversity": 0.1, "d_w": 0.002, "d_l": 0.003, "accuracy": 0.1,
        "toy_*/d_w*": 0.3, "toy_*/d_l": 3.0, "toy_*/accuracy": 0.2, "toy_*/*": 0.03,
    },
    cheap="toy_base",
    covers=("toy_dpo", "toy_sdpo", "dpo_float32", "sdpo_float32"),
    later=LATER,
)  # fmt: skip
