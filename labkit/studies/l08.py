"""Lesson 08: the race of the survey's families (arXiv 2409.07253) at one budget, on portrait-sd-base.

Every contender spends the same NFE, decoding included (`labkit.survey.ledger`), against the same proxy: a network
taught by noisy votes on the base's own pictures, other votes for every seed. It is judged on prompts that nobody
trained on, by the AttributeReader on three axes (`labkit.survey.world`), with the same noise for every arm of a seed.

    base, best_of_n, raft, rwr, ddpo, grpo, draft, alignprop, dpo, kto, guidance, fk, nft, fabric
    *_few       the same against a proxy of a tenth of the votes
    *_bias      the same against the proxy with the planted bug: raters who also like saturated colours
    *_long      a race of three times the budget, with looks on the way (`labkit.studies.l08_long`)

`python -m labkit.studies.l08` repeats the tuning: two trials for every family that has a knob.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from labkit.diffusion import decode_latents, image_generators, sample_latents
from labkit.files import write_atomically
from labkit.metrics import vendi_score
from labkit.models import load_clip, load_pipeline, load_reader
from labkit.studies.estimate import Recorded, gain
from labkit.studies.store import folder_of_studies
from labkit.studies.study import Study
from labkit.survey import (
    ArenaSettings,
    Entry,
    Proxy,
    VoteSettings,
    VotingPool,
    best_of_n_weights,
    enter,
    gold_axes,
    open_prompts,
    overoptimisation,
    path_divergence,
    saturation_of,
    train_proxy,
)
from labkit.survey.policy import precision
from labkit.survey.world import proxy_features

PROXIES = {"main": {}, "few": {"share": 0.1}, "bias": {"bias": 1.0}}
KNOBS = {  # one knob and two trials for every family, on seed 100, by the proxy's score on training prompts
    **{name: ("lr", (1e-3, 4e-3)) for name in ("draft", "ddpo", "raft", "nft", "dpo")},
    "guidance": ("scale", (5.0, 20.0)),
    "fk": ("strength", (1.0, 4.0)),
}
CHOSEN = {  # the better trial of each, see data/studies/l08-tuning.json
    "draft": 4e-3, "ddpo": 4e-3, "raft": 4e-3, "nft": 1e-3, "dpo": 4e-3, "guidance": 20.0, "fk": 1.0,
}  # fmt: skip
RELATIVES = {"alignprop": "draft", "grpo": "ddpo", "rwr": "raft", "kto": "dpo"}  # they take over the knob


@lru_cache(maxsize=1)
def models() -> SimpleNamespace:
    """The base, the proxy's eyes (PortraitCLIP) and the judge that measures."""
    clip, inputs = load_clip("cpu")
    clip.requires_grad_(False)
    pipe = load_pipeline("cpu", variant="portrait-sd-base")
    return SimpleNamespace(pipe=pipe, reader=load_reader(), clip=clip, inputs=inputs)


@lru_cache(maxsize=4)
def prompts(train: int, test: int) -> tuple[list[str], list[str]]:
    """Prompts to train on and held-out ones; none is in both."""
    known = open_prompts(train, 10_000)
    return known, [text for text in open_prompts(2 * test + 8, 20_000) if text not in known][:test]


def look(latents: Tensor) -> Tensor:
    """Latents as pictures in [-1, 1]."""
    with torch.no_grad(), precision(models().pipe, ArenaSettings()):
        return decode_latents(models().pipe, latents, batch_size=64).float().clamp(-1, 1)


def gold(images: Tensor, texts: Sequence[str]) -> Tensor:
    """The mean of the three axes [B]: it watches, nobody trains on it."""
    return torch.as_tensor(gold_axes(models().reader, images, texts)["gold"])


@lru_cache(maxsize=2)
def voting_pool(train: int, each: int, steps: int) -> VotingPool:
    """`each` pictures of the base for every training prompt: what votes are about."""
    m, texts = models(), [text for text in prompts(train, 1)[0] for _ in range(each)]
    with torch.no_grad(), precision(m.pipe, ArenaSettings()):
        latents = sample_latents(
            m.pipe, texts, generators=image_generators(len(texts), 77), steps=steps, eta=1.0, guidance_scale=1.0,
            batch_size=64,
        ).latents  # fmt: skip
        images = decode_latents(m.pipe, latents, batch_size=64).float().clamp(-1, 1)
    with torch.no_grad():
        features = proxy_features(m.clip, m.inputs, images, texts)
    scores, shape = gold(images, texts).float(), (train, each)
    return VotingPool(features.view(*shape, -1), scores.view(shape), saturation_of(images).view(shape))


@lru_cache(maxsize=8)
def proxy(kind: str, seed: int, votes: int, train: int, each: int, steps: int) -> Proxy:
    """A proxy of one kind of PROXIES; its votes belong to the seed."""
    wanted = PROXIES[kind]
    settings = VoteSettings(n=max(10, round(votes * wanted.get("share", 1.0))), bias=wanted.get("bias", 0.0))
    m = models()
    return train_proxy(m.clip, m.inputs, voting_pool(train, each, steps), settings, seed)


def proxy_of(kind: str, seed: int, sizes: SimpleNamespace) -> Proxy:
    return proxy(kind, seed, sizes.votes, sizes.prompts, sizes.pool, sizes.steps)


def settings_of(name: str, sizes: SimpleNamespace, **changes) -> ArenaSettings:
    """A contender's settings at a study's sizes; who draws no groups takes twice the prompts in an update."""
    family = RELATIVES.get(name, name)
    own = {KNOBS[family][0]: CHOSEN[family]} if family in KNOBS else {}
    rows = sizes.batch * (2 if name in ("draft", "alignprop") else 1)
    return replace(ArenaSettings(steps=sizes.steps, prompts=rows, **own), **changes)


def race(
    name: str, kind: str, seed: int, sizes: SimpleNamespace, *, nfe: float | None = None,
    callback: Callable | None = None, **changes,
) -> Entry:  # fmt: skip
    """One contender against one proxy; the lesson calls this for its live runs."""
    train, _ = prompts(sizes.prompts, sizes.test_prompts)
    return enter(
        name, models().pipe, train, proxy_of(kind, seed, sizes), nfe=sizes.nfe if nfe is None else nfe, seed=seed,
        delivered=sizes.test_prompts, settings=settings_of(name, sizes, **changes), gold=gold, callback=callback,
    )  # fmt: skip


def judged(images: Tensor, texts: Sequence[str], kind: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """The axes and gold per prompt, the scores of all three proxies, saturation, and the diversity of all pictures."""
    reader = models().reader
    with torch.no_grad():
        seen = {f"proxy.{k}": proxy_of(k, seed, sizes)(images, texts).numpy() for k in PROXIES}
    return {
        **gold_axes(reader, images, texts), **seen, "proxy": seen[f"proxy.{kind}"],
        "saturation": saturation_of(images).numpy(), "diversity": np.array([vendi_score(reader.features(images))]),
    }  # fmt: skip


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """One arm: its held-out pictures judged, its costs, its curves."""
    name, _, kind = arm.rpartition("_") if arm.rpartition("_")[2] in PROXIES else (arm, "", "main")
    _, test = prompts(sizes.prompts, sizes.test_prompts)
    halves: list[dict[str, np.ndarray]] = []
    entry = race(name, kind, seed, sizes)
    if entry.middle is not None:
        halves.append(judged(look(entry.middle(test, 1000 + seed)), test, kind, seed, sizes))
    if entry.state is not None:
        latents, kl = path_divergence(
            models().pipe, entry.state, test, seed=1000 + seed, settings=settings_of(name, sizes)
        )
        paths = {"kl": kl.numpy()}
    else:
        latents, paths = entry.deliver(test, 1000 + seed), {}
    found = judged(look(latents), test, kind, seed, sizes) | paths
    for half in halves:
        found |= {f"{metric}.half": half[metric] for metric in ("gold", "proxy", "diversity")}
    asked = entry.queries + entry.ledger.counts.reward_rows  # a search asks while it delivers
    costs = {"nfe": entry.training, "queries": asked, "per_image": entry.per_image}
    found |= {metric: np.array([value]) for metric, value in costs.items()}
    found |= traced(entry)
    if name == "best_of_n":
        found |= curves(entry, test, seed, sizes)
    return found


PANELS = ("ratio", "clipped", "accuracy", "d_w", "d_l")  # of the log, where a contender has them


def traced(entry: Entry) -> dict[str, np.ndarray]:
    """The log as arrays: "curve.*" of the updates that gold watched, "panel.*" of all that have a key of PANELS."""
    watched = [record for record in entry.log if "gold" in record]
    found = {}
    if len(watched) > 1:
        found = {f"curve.{key}": np.array([r[key] for r in watched]) for key in ("nfe", "queries", "proxy", "gold")}
    for key in PANELS:
        inside = [record for record in entry.log if key in record]
        if len(inside) > 1:
            found[f"panel.{key}"] = np.array([r[key] for r in inside])
            found["panel.nfe"] = np.array([r["nfe"] for r in inside])
    return found


def curves(entry: Entry, test: Sequence[str], seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Proxy, gold and saturation of the best of n = 1 .. N by each of the proxies, from the one pool it looked at."""
    images = entry.extra["images"]
    p, n = images.shape[:2]
    rows = [text for text in test for _ in range(n)]
    flat = images.flatten(0, 1)
    seen = {"gold": gold(flat, rows).numpy().reshape(p, n), "saturation": saturation_of(flat).numpy().reshape(p, n)}
    found = {}
    for kind in PROXIES:
        score = proxy_of(kind, seed, sizes)
        with torch.no_grad():
            parts = [score(flat[i : i + 64], rows[i : i + 64]) for i in range(0, p * n, 64)]
        scores = torch.cat(parts).numpy().reshape(p, n)
        for metric, values in {"proxy": scores, **seen}.items():
            table = [[best_of_n_weights(scores[i], k) @ values[i] for i in range(p)] for k in range(1, n + 1)]
            found[f"bon.{metric}.{kind}"] = np.mean(table, axis=1)
    return found


# ---- tuning: two trials for every family that has a knob, on another seed --------------------------------------------


def tune(sizes: SimpleNamespace, path: Path | None = None) -> dict[str, dict[str, float]]:
    """Proxy score on training prompts after the race, by contender and trial; resumes from the file."""
    path = folder_of_studies() / "l08-tuning.json" if path is None else path
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    texts = prompts(sizes.prompts, sizes.test_prompts)[0][: sizes.test_prompts]
    for name, (knob, trials) in KNOBS.items():
        for value in trials:
            if f"{knob} {value:g}" in known.setdefault(name, {}):
                continue
            entry = race(name, "main", 100, sizes, **{knob: value})
            with torch.no_grad():
                scores = proxy_of("main", 100, sizes)(look(entry.deliver(texts, 1100)), texts)
            known[name][f"{knob} {value:g}"] = round(float(scores.mean()), 4)
            write_atomically(path, json.dumps(known, indent=1) + "\n")
    return known


# ---- claims ----------------------------------------------------------------------------------------------------------

ONLINE = ("raft", "ddpo", "nft")
TRAINED = ("draft", *ONLINE, "dpo")  # one of every family: these have all seeds, their relatives one
HEADS = ("base", "best_of_n", "draft", "draft_few", "draft_bias", "nft", "ddpo", "dpo", "raft", "raft_bias", "nft_bias")
BIASED = ("raft", "draft", "nft")


def estimate_bon_law(recorded: Recorded, kind: str = "main") -> np.ndarray:
    """Gold of the best of all N of the long race, chosen by a kind of proxy, minus what d (alpha - beta d), fitted on n
    up to N / 2, foretells: [seeds, 1]. The unbiased curve of one pool gives every n; d is the closed form's."""
    table = recorded.values(f"bon.gold.{kind}", "best_of_n_long")  # [seeds, N]
    n = np.arange(1, table.shape[1] + 1)
    kl = np.log(n) - (n - 1) / n
    d = np.sqrt(kl)
    known = n <= table.shape[1] // 2
    gaps = []
    for row in table:
        a, b = np.linalg.lstsq(np.stack([d, -(d**2)], 1)[known], (row - row[0])[known], rcond=None)[0]
        gaps.append([row[-1] - row[0] - float(overoptimisation(kl[-1], a, b, search=True))])
    return np.array(gaps)


def estimate_draft_first(recorded: Recorded) -> np.ndarray:
    """Proxy of DRaFT at half of the budget minus that of the best other trained contender there: [seeds, prompts]."""
    means = {m: recorded.values("proxy.half", m).mean() for m in ONLINE}
    return gain("proxy.half", "draft", max(means, key=means.get))(recorded)


def estimate_hacked(arm: str, against: str) -> Callable[[Recorded], np.ndarray]:
    """Proxy gained per gold gained, in standard deviations of each on the base's pictures: arm minus another."""

    def contrast(recorded: Recorded) -> np.ndarray:
        seeds = recorded.seeds(arm, against, "base")
        spread = {k: recorded.values(k, "base", seeds=seeds).std() for k in ("proxy", "gold")}

        def gap(name: str) -> np.ndarray:
            gained = {
                k: (recorded.values(k, name, seeds=seeds) - recorded.values(k, "base", seeds=seeds)) / spread[k]
                for k in spread
            }
            return gained["proxy"] - gained["gold"]

        return gap(arm) - gap(against)

    return contrast


def estimate_least_lost(recorded: Recorded) -> np.ndarray:
    """Diversity of the trained contender that kept most, minus the base's: [seeds, 1]."""
    seeds = recorded.seeds("base", *TRAINED)
    base = recorded.values("diversity", "base", seeds=seeds)
    lost = {m: recorded.values("diversity", m, seeds=seeds) - base for m in TRAINED}
    return lost[max(lost, key=lambda m: lost[m].mean())]


def estimate_stages(recorded: Recorded, metric: str, arm: str, seeds: list[int] | None = None) -> np.ndarray:
    """A metric of a long race after each of its STAGES: [stages, seeds, prompts]."""
    from labkit.studies.l08_long import STAGES

    return np.stack([recorded.values(f"{metric}.s{i}", arm, seeds=seeds) for i in range(1, len(STAGES) + 1)])


def estimate_seeds(recorded: Recorded, *arms: str) -> list[int]:
    """The seeds that all these arms of the long race have.

    Raises:
        NotRecorded: fewer than three, which show nothing of how much runs differ.
    """
    from labkit.studies.study import NotRecorded

    seeds = recorded.seeds(*arms)
    if len(seeds) < 3:
        raise NotRecorded(f"study 08 has {len(seeds)} seeds of {' and '.join(arms)}: record three at least")
    return seeds


def estimate_drop(gold: np.ndarray) -> np.ndarray:
    """Gold at the end minus gold at the best stage, [seeds, prompts], of gold [stages, seeds, prompts].

    The best stage of a run is chosen on every other prompt and read on the others: a maximum chosen and read on the
    same prompts would look higher than it is. Without a turn the mean is 0 or, by chance choices, above.
    """
    drop = np.empty(gold.shape[1:])
    for half in (0, 1):
        best = gold[:, :, 1 - half :: 2].mean(2).argmax(0)  # [seeds], on the other prompts
        drop[:, half::2] = (gold[-1] - gold[best, np.arange(len(best))])[:, half::2]
    return drop


def estimate_turn(arm: str, against: str = "") -> Callable[[Recorded], np.ndarray]:
    """How far gold of a long race has fallen from its best stage; minus the same of another arm: [seeds, prompts]."""

    def contrast(recorded: Recorded) -> np.ndarray:
        seeds = estimate_seeds(recorded, *filter(None, (arm, against)))
        drop = estimate_drop(estimate_stages(recorded, "gold", arm, seeds))
        return drop - estimate_drop(estimate_stages(recorded, "gold", against, seeds)) if against else drop

    return contrast


def estimate_nft(recorded: Recorded) -> np.ndarray:
    """Gold of NFT minus gold of DDPO at the same NFE, mean over the stages of the long race: [seeds, prompts]."""
    seeds = estimate_seeds(recorded, "nft_long", "ddpo_long")
    first, second = (estimate_stages(recorded, "gold", arm, seeds) for arm in ("nft_long", "ddpo_long"))
    return (first - second).mean(0)


def estimate_search_bug(recorded: Recorded) -> np.ndarray:
    """Saturation of the best of all N of the long race, chosen by the proxy with the planted taste minus by the honest
    one: [seeds, 1]."""
    tainted, honest = (recorded.values(f"bon.saturation.{kind}", "best_of_n_long") for kind in ("bias", "main"))
    return (tainted - honest)[:, -1:]


def estimate_saturated(recorded: Recorded) -> np.ndarray:
    """Saturation under the planted bug minus without it, of the contender that found it least: [seeds, prompts]."""
    found = {m: gain("saturation", f"{m}_bias", m)(recorded) for m in BIASED}
    return found[min(found, key=lambda m: found[m].mean())]


def estimate_gradient_bug(recorded: Recorded) -> np.ndarray:
    """Saturation of DRaFT under the planted bug minus without it, on seeds nobody had looked at: [seeds, prompts]."""
    from labkit.studies.estimate import on_new_seeds

    return on_new_seeds(gain("saturation", "draft_bias", "draft"), 3)(recorded)


def estimate_budget(recorded: Recorded) -> np.ndarray:
    """Gold of DRaFT minus gold of best-of-N, both at the long race's budget: [seeds, prompts]."""
    estimate_seeds(recorded, "draft_long", "best_of_n_long")
    return gain("gold", "draft_long", "best_of_n_long")(recorded)


def estimate_queries(recorded: Recorded) -> np.ndarray:
    """Reward queries of DPO as a share of DDPO's: [seeds, 1]."""
    first, second = recorded.pair("queries", "dpo", "ddpo")
    return first / second


ESTIMATES = {
    "bon_law": estimate_bon_law,
    "draft_first": estimate_draft_first,
    "draft_hacks": estimate_hacked("draft", "raft"),
    "diversity_falls": estimate_least_lost,
    "gold_turns": estimate_turn("draft_few_long"),
    "turn_moves": estimate_turn("draft_few_long", "draft_long"),
    "dpo_asks_less": estimate_queries,
    "dpo_beats_base": gain("gold", "dpo", "base"),
    "nft_is_cheaper": estimate_nft,
    "bug_is_found": estimate_saturated,
    "search_finds_bug": estimate_search_bug,
    "gradient_finds_bug": estimate_gradient_bug,
    "search_is_hard_to_beat": gain("gold", "draft", "best_of_n"),
    "budget_helps": estimate_budget,
}

STUDY = Study(
    lesson="08",
    unit=unit,
    arms=(
        *HEADS, "grpo", "rwr", "alignprop", "kto", "guidance", "fk", "fabric",
        "best_of_n_long", "draft_few_long", "draft_long", "nft_long", "ddpo_long",
    ),
    seeds=(),
    more={
        **{arm: (0, 1, 2, 3, 4) for arm in HEADS},
        # third round: diversity_falls, by the spread of five seeds
        **{arm: tuple(range(14)) for arm in ("base", "ddpo", "dpo")},
        # bug_is_found is decided by the weakest finder: by the spread of eight seeds, RAFT or NFT. DRaFT's own
        # difference (.13, standard error .03) is far above theirs and decided
        **{arm: tuple(range(15)) for arm in ("draft", "draft_bias")},
        **{arm: tuple(range(51)) for arm in ("raft", "raft_bias", "nft", "nft_bias")},
        **{arm: (0, 1, 2) for arm in (*RELATIVES, "guidance", "fk", "fabric")},
        **{f"{arm}_long": (0, 1, 2, 3, 4, 5) for arm in ("nft", "ddpo")},
        # turn_moves would take about 370 seeds, by the spread of six: what is left of the four hours goes to it
        **{f"{arm}_long": tuple(range(38)) for arm in ("draft_few", "draft")},
        "best_of_n_long": tuple(range(12)),  # bon_law, by the spread of six
    },
    later={f"{arm}_long": "labkit.studies.l08_long" for arm in ("best_of_n", "draft_few", "draft", "nft", "ddpo")},
    sizes={"prompts": 64, "pool": 4, "votes": 400, "test_prompts": 24, "steps": 8, "batch": 4, "nfe": 1600},
    estimates=ESTIMATES,
    weights=("portrait-sd-base", "portrait-clip", "attribute-reader"),
    modules=(
        "labkit.survey.equations", "labkit.survey.world", "labkit.survey.policy", "labkit.survey.trained",
        "labkit.survey.search", "labkit.survey.arena", "labkit.survey.ledger",
    ),
    tolerance={"": 0.1, "diversity": 2.0, "kl": 50.0, "nfe": 200.0, "queries": 50.0, "per_image": 0.01},
    cheap="base",
    covers=("best_of_n", "draft", "raft", "ddpo", "nft", "dpo", "guidance", "fk", "fabric"),
)  # fmt: skip


if __name__ == "__main__":
    tune(SimpleNamespace(**{**STUDY.sizes, "nfe": 800, "test_prompts": 12}))  # half of the race
