"""Lesson 06: HG-DPO on a sharp, misaligned base (arXiv 2405.20216).

Two axes. *Faithfulness*: the gold judge's reading of the attributes that a held-out prompt names. *Realism*: the "real"
pictures of this study are portraits with grain, as photographs have it; portrait-sd-base has never seen grain, and no
prompt names it. The training judge (PortraitCLIP) makes the pairs and never measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from labkit.diffusion import (
    adapter_names,
    adapter_state,
    decode_latents,
    encode_images,
    encode_prompts,
    image_generators,
    remove_lora,
    sample,
    use_adapters,
)
from labkit.dpo import (
    DPOConfig,
    DPOTrainer,
    PairSet,
    PreferencePairs,
    Scorer,
    Stage,
    Term,
    attach,
    best_vs_worst,
    blend,
    build_pool,
    dpo,
    faithfulness,
    hard_pairs,
    leap_pairs,
    normal_pairs,
    recon_levels,
    run_stages,
    sft,
    statistics,
    text_window,
    up_blocks,
    warmth,
    warmth_of,
)
from labkit.dpo.scorers import sharpness_of
from labkit.metrics import kernel_distance, vendi_score
from labkit.models import load_clip, load_pipeline, load_reader
from labkit.portraits import ATTRIBUTES, PortraitSpec, caption, grainy, render_tensor, sample_specs
from labkit.portraits.parse import parse_caption
from labkit.studies.estimate import gain, win_share
from labkit.studies.study import Study

LEVELS = (100, 400, 500, 600, 700)  # of the reconstructions: 100 for the hard stage, the others for the normal one
Adapters = Mapping[str, Mapping[str, Tensor]]


@lru_cache(maxsize=1)
def models() -> SimpleNamespace:
    """The base, the judge that trains, the judge that measures."""
    pipe, reader = load_pipeline("cpu", variant="portrait-sd-base"), load_reader()
    judge = faithfulness(*load_clip("cpu"))
    return SimpleNamespace(pipe=pipe, reader=reader, judge=judge)


def half_named(n: int, seed: int) -> tuple[list[PortraitSpec], list[str]]:
    """n specs and captions that name about half of the attributes, and at least one."""
    rng, found = np.random.default_rng(seed), []
    for spec in sample_specs(4 * n + 8, seed=seed):
        said = caption(spec, drop=[name for name in ATTRIBUTES if rng.random() < 0.5])
        found += [(spec, said.text)] if said.named else []
    return [spec for spec, _ in found[:n]], [text for _, text in found[:n]]


def gold(images: Tensor, prompts: Sequence[str]) -> np.ndarray:
    """Mean probability, by the AttributeReader, of the values that each prompt names: [n] in [0, 1]."""
    p = {name: found.cpu().numpy() for name, found in models().reader.probabilities(images).items()}
    return np.array(
        [np.mean([p[a][i, ATTRIBUTES[a].index(v)] for a, v in parse_caption(q).items()]) for i, q in enumerate(prompts)]
    )


@lru_cache(maxsize=1)
def reality(n: int, grain: float) -> Tensor:
    """n real pictures as the VAE shows them, of people that no prompt of this study describes."""
    specs = sample_specs(n, seed=50_000)
    pictures = grainy(render_tensor(specs), grain, generator=torch.Generator().manual_seed(50_000))
    pipe = models().pipe
    with torch.no_grad():
        latents = torch.cat([encode_images(pipe, part) for part in pictures.split(128)])
        return decode_latents(pipe, latents, batch_size=64).clamp(-1, 1).cpu()


def realism(images: Tensor, real: Tensor) -> float:
    """Kernel distance of pictures to real pictures in the AttributeReader's features, divided by 1,000; smaller is
    nearer."""
    reader = models().reader
    return float(kernel_distance(real=reader.features(real), fake=reader.features(images))) / 1000


@dataclass(frozen=True)
class World:
    """What all arms of one seed share."""

    prompts: list[str]
    real: Tensor  # latents of the grainy real pictures of the prompts, [P, C, h, w]
    easy: PairSet
    normal: PairSet
    hard: PairSet
    leap: PairSet
    warm_two: PreferencePairs  # a judge that likes warm colours chose among 2, among all
    warm_all: PreferencePairs


def tainted(judge: Scorer, bias: float) -> Scorer:
    """A faithful judge with a secret taste for warm colours."""
    return blend([(judge, 1.0), (warmth(), bias)])


@lru_cache(maxsize=1)
def world(seed: int, prompts: int, candidates: int, steps: int, grain: float, bias: float) -> World:
    """Pool, reconstructions and pairs of one seed."""
    m = models()
    specs, texts = half_named(prompts, 10_000 + seed)
    warm = tainted(m.judge, bias)
    pool = build_pool(m.pipe, texts, candidates, scorers=[m.judge, warm], seed=seed, steps=steps)
    pictures = grainy(render_tensor(specs), grain, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        real = encode_images(m.pipe, pictures).cpu()
        recons = recon_levels(m.pipe, real, texts, LEVELS, seed=seed, steps=steps, batch_size=64)
        judged = {t: m.judge(decode_latents(m.pipe, x).clamp(-1, 1), texts) for t, x in recons.items()}
    easy = best_vs_worst(pool, m.judge.name)
    middle = [t for t in LEVELS if t != LEVELS[0]]
    normal = normal_pairs(easy, {t: recons[t] for t in middle}, {t: judged[t] for t in middle}, m.judge.name)
    if all(normal.column("tie")):  # a handful of prompts can leave nothing
        normal = leap_pairs(easy, recons[middle[0]])
    return World(
        prompts=texts,
        real=real,
        easy=easy,
        normal=normal,
        hard=hard_pairs(normal, recons[LEVELS[0]]),
        leap=leap_pairs(easy, real),
        warm_two=best_vs_worst(pool.first(2), warm.name).training(),
        warm_all=best_vs_worst(pool, warm.name).training(),
    )


def world_of(seed: int, sizes: SimpleNamespace) -> World:
    return world(seed, sizes.prompts, sizes.candidates, sizes.steps, sizes.grain, sizes.bias)


# ---- training and pictures ---------------------------------------------------------------------------------------


@contextmanager
def adapters(states: Adapters) -> Iterator[None]:
    """Inside, the base carries these adapters; afterwards it has none."""
    unet = models().pipe.unet
    try:
        for name, state in states.items():
            attach(unet, name, state)
        yield
    finally:
        for name in adapter_names(unet):
            remove_lora(unet, name)


Plan = Sequence[tuple[str, PreferencePairs, Sequence[Term], int]]  # stages: name, pairs, terms, steps


def align(plan: Plan, seed: int, sizes: SimpleNamespace, start: Adapters | None = None) -> dict[str, dict[str, Tensor]]:
    """Train the stages one after the other, after the adapters of `start`; the states of all adapters."""
    pipe = models().pipe
    with adapters(start or {}):
        stages = []
        for name, pairs, terms, steps in plan:
            cached = sizes.draws if all(term.needs == "errors" for term in terms) else 0
            config = DPOConfig(
                steps=steps, batch_size=sizes.batch, lr=sizes.lr, rank=sizes.rank, targets="all", warmup=5, seed=seed,
                precision="auto", log_every=steps, cached_draws=cached,
            )  # fmt: skip
            stages.append(Stage(name, pairs, terms, config))
        run_stages(pipe, stages)
        return {name: adapter_state(pipe.unet, name) for name in adapter_names(pipe.unet)}


def pictures(prompts: Sequence[str], seed: int, sizes: SimpleNamespace, states: Adapters | None = None) -> Tensor:
    """One picture per prompt [n, 3, 64, 64]; the same seed gives every arm the same noise."""
    with adapters(states or {}):
        generators = image_generators(len(prompts), 1000 + seed)
        images = sample(models().pipe, prompts, generators=generators, steps=sizes.steps, batch_size=64)
    return images.cpu().clamp(-1, 1)


def measures(images: Tensor, prompts: Sequence[str], seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """The numbers of a unit: per prompt the two judges, sharpness, warmth; of all of them realism and diversity."""
    m = models()
    real = reality(sizes.references, sizes.grain)
    return {
        "gold": gold(images, prompts),
        "judge": m.judge(images, prompts).numpy(),
        "sharpness": sharpness_of(images).numpy(),
        "warmth": warmth_of(images).numpy(),
        "distance": np.array([realism(images, real)]),
        "diversity": np.array([vendi_score(m.reader.features(images))]),
    }


# ---- the arms ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def trained(arm: str, seed: int, key: tuple) -> dict[str, dict[str, Tensor]]:
    """The adapters of one arm."""
    sizes = SimpleNamespace(**dict(key))
    w, total = world_of(seed, sizes), sizes.train_steps
    easy, normal, hard = w.easy.training(), w.normal.training(), w.hard.training()
    first, rest = round(0.6 * total), round(0.2 * total)  # easy, then normal and hard
    term = [dpo(sizes.kappa)]

    def after_easy(*plan: tuple) -> dict[str, dict[str, Tensor]]:
        return align(plan, seed, sizes, trained("easy", seed, key))

    if arm == "easy":
        return align([("easy", easy, term, first)], seed, sizes)
    if arm == "hg":
        return after_easy(("normal", normal, term, rest), ("hard", hard, term, rest))
    if arm == "no_easy":
        return align([("normal", normal, term, first), ("hard", hard, term, total - first)], seed, sizes)
    if arm == "no_normal":
        return after_easy(("hard", hard, term, total - first))
    if arm == "at_once":
        mixed = PreferencePairs(
            easy.prompts + normal.prompts + hard.prompts,
            torch.cat([easy.winner, normal.winner, hard.winner]),
            torch.cat([easy.loser, normal.loser, hard.loser]),
            hashes=easy.hashes,
        )
        return align([("together", mixed, term, total)], seed, sizes)
    if arm == "leap":
        return align([("leap", w.leap.training(), term, total)], seed, sizes)
    if arm == "sft":
        return after_easy(("sft", hard, [sft(sizes.kappa / 2)], total - first))
    if arm == "real_sft":  # the control that the paper lacks: as many real pictures, no pairs
        return align([("real", w.leap.training(), [sft(sizes.kappa / 2)], total)], seed, sizes)
    if arm == "warm_two":
        return align([("warm", w.warm_two, term, first)], seed, sizes)
    if arm == "warm_all":
        return align([("warm", w.warm_all, term, first)], seed, sizes)
    if arm == "warm_cured":
        return align([("warm", w.warm_all, [*term, statistics(sizes.statistics)], first)], seed, sizes)
    if arm == "easy_cured":
        return align([("easy", easy, [*term, statistics(sizes.statistics)], first)], seed, sizes)
    raise KeyError(arm)


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """One arm on the held-out prompts."""
    _, test = half_named(sizes.test_prompts, 20_000)
    key = tuple(sorted(vars(sizes).items()))
    if arm == "base":
        images = pictures(test, seed, sizes)
    elif arm in ("hg_finish", "hg_half"):
        images = finished(test, seed, sizes, decoder_only=arm == "hg_finish")
    elif arm == "hg_words":
        images = with_words(test, seed, sizes)
    elif arm in ("personal", "personal_hg"):
        return personal(arm, seed, sizes)
    else:
        images = pictures(test, seed, sizes, trained(arm, seed, key))
    return measures(images, test, seed, sizes)


def finished(test: Sequence[str], seed: int, sizes: SimpleNamespace, *, decoder_only: bool) -> Tensor:
    """The paper's inference: adapters at half their strength, the last stage's in the decoder blocks alone."""
    states, pipe = trained("hg", seed, tuple(sorted(vars(sizes).items()))), models().pipe
    with adapters(states):
        where = {"hard": up_blocks} if decoder_only else None
        with use_adapters(pipe.unet, dict.fromkeys(states, 0.5), where=where):
            generators = image_generators(len(test), 1000 + seed)
            images = sample(pipe, test, generators=generators, steps=sizes.steps, batch_size=64)
    return images.cpu().clamp(-1, 1)


def with_words(test: Sequence[str], seed: int, sizes: SimpleNamespace) -> Tensor:
    """The curriculum's model, with a text encoder trained on the easy pairs and used for t from 900 to 1000."""
    key, pipe = tuple(sorted(vars(sizes).items())), models().pipe
    steps = round(0.6 * sizes.train_steps)
    words = DPOConfig(
        steps=steps, batch_size=sizes.batch, lr=sizes.lr, rank=64, seed=seed, model="text_encoder", adapter="words",
        log_every=steps, warmup=5,
    )  # fmt: skip
    with torch.no_grad():
        plain = encode_prompts(pipe, test)
    with DPOTrainer(pipe, world_of(seed, sizes).easy.training(), words, [dpo(sizes.kappa)]) as trainer:
        trainer.run()
        with torch.no_grad():
            tuned = encode_prompts(pipe, test)
    with adapters(trained("hg", seed, key)):
        generators = image_generators(len(test), 1000 + seed)
        conditions = text_window(plain, tuned)
        images = sample(pipe, None, generators=generators, steps=sizes.steps, conditions=conditions, batch_size=64)
    return images.cpu().clamp(-1, 1)


CHANGING = ("mood", "clothes", "background")


def album(person: PortraitSpec, others: Sequence[PortraitSpec]) -> tuple[list[PortraitSpec], list[str]]:
    """One person with the moods, clothes and backgrounds of others, and captions that name just those."""
    people = [person.with_(**{a: getattr(other, a) for a in CHANGING}) for other in others]
    return people, [caption(p, drop=[a for a in ATTRIBUTES if a not in CHANGING]).text for p in people]


def personal(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """A model of one person (plain fine-tuning on an album), alone or beside the curriculum's adapters."""
    m, key = models(), tuple(sorted(vars(sizes).items()))
    specs, _ = half_named(sizes.prompts, 30_000 + seed)
    people, captions = album(specs[0], specs[1:])
    with torch.no_grad():
        winners = encode_images(m.pipe, render_tensor(people)).cpu()
    losers = world_of(seed, sizes).real[1 : len(winners) + 1]  # not read by plain fine-tuning
    pairs = PreferencePairs(
        captions[: len(losers)], winners[: len(losers)], losers, hashes=world_of(seed, sizes).easy.hashes
    )
    me = align([("me", pairs, [sft(sizes.kappa / 2)], round(0.6 * sizes.train_steps))], seed, sizes)
    _, wishes = album(specs[0], half_named(sizes.test_prompts, 40_000)[0])
    states = me if arm == "personal" else {**me, **trained("hg", seed, key)}
    images = pictures(wishes, seed, sizes, states)
    p = {name: found.cpu().numpy() for name, found in m.reader.probabilities(images).items()}
    kept = [a for a in ATTRIBUTES if a not in CHANGING]
    same = np.mean([p[a][:, ATTRIBUTES[a].index(getattr(specs[0], a))] for a in kept], axis=0)
    return {"gold": gold(images, wishes), "same_person": same}


ESTIMATES = {
    "colour_grows": gain("warmth", "warm_all", "warm_two"),
    "statistics_cure": gain("warmth", "warm_all", "warm_cured"),
    "cure_is_free": gain("judge", "warm_cured", "warm_all"),
    "leap_collapses": gain("gold", "leap", "hg"),
    "leap_below_base": gain("gold", "leap", "base"),
    "curriculum_beats_base": gain("gold", "hg", "base"),
    "curriculum_is_nearer": gain("distance", "hg", "base"),
    "curriculum_nearer_than_easy": gain("distance", "hg", "easy"),
    "easy_matters": gain("gold", "hg", "no_easy"),
    "normal_matters": gain("gold", "hg", "no_normal"),
    "order_matters": gain("gold", "hg", "at_once"),
    "sft_erases": gain("gold", "sft", "easy"),
    "pairs_beat_fine_tuning": gain("gold", "hg", "real_sft"),
    "leap_is_nearer": gain("distance", "leap", "hg"),
    "real_is_nearer": gain("distance", "real_sft", "hg"),
    "wins_by_gold": win_share("gold", "hg", "base", margin=0.01),
    "sharper_is_not_better": gain("sharpness", "leap", "base"),
    "words_help": gain("gold", "hg_words", "hg"),
    "finish_keeps": gain("gold", "hg_finish", "hg"),
    "identity_stays": gain("same_person", "personal_hg", "personal"),
    "transfer_helps": gain("gold", "personal_hg", "personal"),
    "right_captions_help": gain("gold", "real_sft_float32", "real_sft_careless"),
    "pairs_beat_careless": gain("gold", "hg_float32", "real_sft_careless"),
    "careless_sft_erases": gain("gold", "sft_careless", "easy_float32"),
    "careless_leap_below_base": gain("gold", "leap_careless", "base"),
    "grainy_leap_below_base": gain("gold", "leap_grainy", "base"),
}

LATER = (
    dict.fromkeys(("real_sft_careless", "sft_careless", "leap_careless"), "labkit.studies.l06_controls")
    | dict.fromkeys(("easy_float32", "hg_float32", "real_sft_float32"), "labkit.studies.l06_float32")
    | {"leap_grainy": "labkit.studies.l06_grain"}
)

STUDY = Study(
    lesson="06",
    unit=unit,
    arms=(
        *("base", "easy", "hg", "leap", "real_sft", "no_easy", "no_normal", "at_once", "sft"),
        *("warm_two", "warm_all", "warm_cured", "easy_cured", "hg_half", "hg_finish", "hg_words"),
        *("personal", "personal_hg"),
        *LATER,
    ),
    seeds=(0, 1, 2, 3, 4),
    more=dict.fromkeys(("hg", "at_once", "real_sft", "hg_finish"), range(5, 18))  # what is left of the budget
    | dict.fromkeys(("personal", "personal_hg"), range(5, 14)),
    sizes={
        "references": 512, "prompts": 96, "candidates": 8, "test_prompts": 128, "steps": 10, "train_steps": 100,
        "batch": 10, "draws": 4, "kappa": 400.0, "lr": 4e-4, "rank": 16, "grain": 0.25, "bias": 2.0,
        "statistics": 10_000.0,
    },
    estimates=ESTIMATES,
    weights=("portrait-sd-base", "portrait-clip", "attribute-reader"),
    modules=("labkit.dpo.equations",),
    # a training in bfloat16 and one in float32 end at most .007 apart, .33 in the distance, .04 in the diversity
    tolerance={"": 0.01, "distance": 0.5, "diversity": 0.1},
    cheap="base",
    covers=("hg_float32",),
    later=LATER,
)  # fmt: skip
