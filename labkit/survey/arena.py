"""The arena: every contender behind one call.

    entry = enter("draft", pipe, prompts, proxy, nfe=6000, delivered=48, seed=0)
    latents = entry.deliver(test_prompts, seed=1)

One budget for all, in NFE with decoding (`labkit.survey.ledger`): training may spend `nfe`, then each of `delivered`
pictures costs a plain sample; a method that trains nothing may spend nfe / delivered more on every picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from labkit.diffusion import NFELedger, adapter_state, decode_latents, image_generators, sample_latents
from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, dpo, fingerprints, kto
from labkit.optim import world_size
from labkit.survey import search, trained
from labkit.survey.ledger import BudgetError, prices, updates_for
from labkit.survey.policy import ArenaSettings, Policy, Record, Reward, precision, rewarded, worn

Deliver = Callable[[Sequence[str], int], Tensor]


@dataclass(frozen=True)
class Entry:
    """What a contender hands in.

    Attributes:
        state: its adapter's tensors, None if it trained nothing.
        log: one record per update, with running "nfe" and "queries", mean "proxy" and, where a gold judge watched,
            "gold" of its own training pictures.
        training: NFE spent before the first delivery; queries: of the reward until then.
        per_image: NFE of every delivered picture, decoding included. seen: "gradient", "scores" or "pairs".
        deliver: (prompts, seed) -> latents [P, C, h, w]. ledger: counts what deliveries cost.
        extra: what a search looked at, of the latest delivery.
        middle: deliver, after half of the updates; None for searches, preferences and runs that were resumed later.
    """

    name: str
    state: dict[str, Tensor] | None
    log: list[Record]
    training: float
    queries: float
    per_image: float
    seen: str
    deliver: Deliver
    ledger: NFELedger
    extra: dict[str, Tensor] = field(default_factory=dict)
    middle: Deliver | None = None


METHODS = {"raft": trained.raft, "rwr": trained.rwr, "ddpo": trained.ddpo, "grpo": trained.ddpo}
METHODS |= {"draft": trained.draft, "alignprop": trained.draft, "nft": trained.nft}
PREFERENCES = {"dpo": dpo, "kto": kto}
SEARCHES = ("best_of_n", "guidance", "fk", "fabric")
CONTENDERS = ("base", *METHODS, *PREFERENCES, *SEARCHES)
SEEN = {"draft": "gradient", "alignprop": "gradient", "guidance": "gradient", "dpo": "pairs", "kto": "pairs"}


def enter(
    name: str, pipe, prompts: Sequence[str], reward: Reward, *, nfe: float, seed: int, delivered: int = 64,
    settings: ArenaSettings | None = None, folder: str | Path | None = None, gold: Reward | None = None,
    callback: Callable[[Record], object] | None = None, save_every: int = 0,
) -> Entry:  # fmt: skip
    """Let a contender spend its budget; the pipeline is as before afterwards.

    Args:
        name: one of CONTENDERS. prompts: to train on (a search ignores them).
        reward: (images [B, 3, H, W] in [-1, 1], prompts) -> scores [B]; with gradient for draft, alignprop, guidance.
        nfe: budget beyond plain deliveries, see the module. delivered: how many pictures will be asked for.
        folder, save_every: where trained contenders keep a checkpoint that they resume from, and how often.
        gold: a judge that only watches: it enters the log and is not charged.
        callback: called with each record of a training; True stops it.

    Raises:
        BudgetError: the budget does not pay for one update; the message has the number needed.
        ValueError: an unknown name, or a reward that fails.
    """
    if name not in CONTENDERS:
        raise ValueError(f"no contender {name!r}: expected one of {', '.join(CONTENDERS)}")
    settings = _own(name, settings or ArenaSettings())
    price, ledger = prices(pipe), NFELedger(pipe)
    plain = price.sampled(settings.steps, rows=settings.rows)
    seen = SEEN.get(name, "scores")
    if name in SEARCHES:
        allowance = plain + nfe / delivered
        deliver, per_image, extra = _search(name, pipe, reward, allowance, settings, price, ledger)
        return Entry(name, None, [], 0.0, 0.0, per_image, seen, deliver, ledger, extra)
    state, middle, log = None, None, []
    if name in PREFERENCES:
        state, log = _preferences(name, pipe, prompts, reward, nfe, seed, settings, folder, gold, callback)
    elif name != "base":
        updates = updates_for(nfe, trained.update_price(name, settings, price) * world_size(), name)
        with Policy(pipe, prompts, reward, seed=seed, settings=settings, folder=folder, gold=gold) as policy:
            log = policy.run(METHODS[name], updates, name=name, callback=callback, save_every=save_every)
            state, middle = policy.state(), policy.middle
    spent = log[-1] if log else {"nfe": 0.0, "queries": 0.0}
    deliver = partial(_deliver, pipe, state, settings, ledger)
    halfway = None if middle is None else partial(_deliver, pipe, middle, settings, ledger)
    return Entry(name, state, log, spent["nfe"], spent["queries"], plain, seen, deliver, ledger, middle=halfway)


def _own(name: str, s: ArenaSettings) -> ArenaSettings:
    """What a name says already: GRPO's advantages, AlignProp's random K up to k (half of the steps if k is 1)."""
    if name == "grpo":
        return replace(s, grouped=True)
    if name == "alignprop":
        return replace(s, k_random=True, k=s.k if s.k > 1 else max(1, s.steps // 2))
    return s


def _deliver(pipe, state, settings: ArenaSettings, ledger: NFELedger, prompts: Sequence[str], seed: int) -> Tensor:
    """One plain sample per prompt by the base or a trained policy."""
    with worn(pipe, state), torch.no_grad(), precision(pipe, settings), ledger:
        return sample_latents(
            pipe, list(prompts), generators=image_generators(len(prompts), seed), steps=settings.steps,
            eta=settings.eta, guidance_scale=settings.guidance_scale, batch_size=64,
        ).latents  # fmt: skip


def _search(name: str, pipe, reward: Reward, allowance: float, s: ArenaSettings, price, ledger: NFELedger):
    """(deliver, NFE per image, what it looked at) of a contender that trains nothing."""
    extra: dict[str, Tensor] = {}
    options = {"settings": s, "ledger": ledger}
    if name in ("guidance", "fabric"):
        cost = (search.guidance_price if name == "guidance" else search.fabric_price)(s, price)
        if cost > allowance:
            raise BudgetError(f"{name}: {allowance:.0f} NFE per delivered picture are too few, one needs {cost:.0f}")
        make = search.guided_latents if name == "guidance" else search.fabric_latents
        return lambda prompts, seed: _open(make, pipe, prompts, reward, seed=seed, **options), cost, extra
    checks = s.checks if name == "fk" else 0
    n = search.affordable(allowance, s, price, name, checks=checks)
    cost = n * (price.sampled(s.steps, rows=s.rows) + checks * price.decode)

    def deliver(prompts: Sequence[str], seed: int) -> Tensor:
        if name == "fk":
            return _open(search.fk_latents, pipe, prompts, reward, n, seed=seed, **options)
        best, looked = _open(search.best_of_n_latents, pipe, prompts, reward, n, seed=seed, **options)
        extra.update(looked)
        return best

    return deliver, cost, extra


def _open(function, *arguments, ledger: NFELedger, **options):
    """Call a search while its ledger counts."""
    with ledger:
        return function(*arguments, ledger=ledger, **options)


def _preferences(
    name: str,
    pipe,
    prompts: Sequence[str],
    reward: Reward,
    nfe: float,
    seed: int,
    s: ArenaSettings,
    folder,
    gold,
    callback,
) -> tuple[dict[str, Tensor], list[Record]]:
    """DPO or KTO through labkit.dpo: candidates, best against worst, then training without another question."""
    price, n = prices(pipe), s.candidates
    made = n * price.sampled(s.steps, rows=s.rows)  # per prompt
    step = s.batch * 2 * 3 * world_size()  # of training; every process has a batch of its own
    pair = s.draws * 2  # a pair's reference errors, computed once
    groups = max(2, int(nfe * s.pool / (made + pair)))
    steps = updates_for(nfe, step, name, fixed=groups * (made + pair))
    texts = [prompts[i % len(prompts)] for i in range(groups)]
    with NFELedger(pipe) as ledger:
        with torch.no_grad(), precision(pipe, s):
            rows = [text for text in texts for _ in range(n)]
            latents = sample_latents(
                pipe, rows, generators=image_generators(len(rows), seed), steps=s.steps, eta=s.eta,
                guidance_scale=s.guidance_scale, batch_size=64,
            ).latents  # fmt: skip
            images = decode_latents(pipe, latents, batch_size=64).float().clamp(-1, 1)
            scores = rewarded(reward, images, rows, ledger).cpu().view(groups, n)
        latents = latents.cpu().view(groups, n, *latents.shape[1:])
        best, worst = scores.max(1), scores.min(1)
        kept = (best.values > worst.values).nonzero().flatten()
        pairs = PreferencePairs(
            [texts[i] for i in kept], latents[kept, best.indices[kept]], latents[kept, worst.indices[kept]],
            hashes=fingerprints(pipe),
        )  # fmt: skip
        config = DPOConfig(
            steps=steps, batch_size=min(s.batch, len(pairs)), lr=s.lr, rank=s.rank, targets="all", warmup=5, seed=seed,
            adapter="preferences", cached_draws=s.draws, log_every=max(1, steps // 10), precision=s.precision,
        )  # fmt: skip
        start = {"proxy": float(scores.mean())}
        if gold is not None:
            start["gold"] = float(torch.as_tensor(gold(images, rows)).float().mean())
        asked = price.nfe(ledger.counts)  # every process makes the same candidates: charged once
        log: list[Record] = [{"update": 0, **start, "nfe": asked, "queries": float(len(rows))}]

        def record(found: Record) -> object:
            since = (price.nfe(ledger.counts) - asked) * world_size()
            costs = {"nfe": asked + since, "queries": float(ledger.counts.reward_rows)}
            log.append({"update": found["step"], **found, **costs})
            return callback(log[-1]) if callback is not None else None

        with DPOTrainer(pipe, pairs, config, [PREFERENCES[name](s.kappa)], folder=folder) as trainer:
            trainer.run(record)
            return _renamed(adapter_state(pipe.unet, "preferences")), log


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an adapter as `worn` wants them."""
    return {path.replace(".preferences.", ".arena."): value for path, value in state.items()}
