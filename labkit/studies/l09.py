"""Lesson 09: verification. Coverage of intervals, looks of sequential tests, void certificates, the return, small data.

The statistics are simulated ("prompts" are true rates of defects, or pilots drawn from the stated ranges). Two changes
of the model meet a certified threshold, on the pictures of the shipped catalogue: PortraitSD replaced by
portrait-sd-base, and portrait-sd-base tuned by lesson 06's adapter. Small data: adapters from 50, 100 and 200 pairs,
trained while the network is blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
from torch import Tensor

from labkit.dpo import PreferencePairs, best_vs_worst, build_pool, dpo
from labkit.inspection import (
    Economics,
    aql_plan,
    certify_threshold,
    clopper_pearson,
    e_process,
    lot_upper_bound,
    sprt,
    tornado,
    true_rate,
    two_point_plan,
    upper_bound,
)
from labkit.inspection.calibration import threshold_steps
from labkit.inspection.threshold import CalibrationError, PreferenceFilter
from labkit.metrics import wilson_interval
from labkit.offline import network_blocked
from labkit.portraits import ATTRIBUTES
from labkit.portraits.parse import parse_caption
from labkit.studies import l06, l06_world, l09_catalogue
from labkit.studies.estimate import Recorded, gain, level
from labkit.studies.study import Study

RATES = np.linspace(0.005, 0.15, 30)  # true rates of defects
LOT = 500
GOOD, BAD = 0.01, 0.05  # the sequential test tells these apart

# ---- intervals: how often are they right? ------------------------------------------------------------------------


def textbook(d: int, n: int) -> tuple[float, float]:
    """p -+ 1.96 standard errors (Wald's interval)."""
    p = d / n
    half = 1.96 * (p * (1 - p) / n) ** 0.5
    return p - half, p + half


def corrected(d: int, n: int, *, sensitivity: float, specificity: float) -> tuple[float, float]:
    """The exact interval of what was reported, each end corrected for the inspectors."""
    low, high = clopper_pearson(d, n)
    undo = partial(true_rate, sensitivity=sensitivity, specificity=specificity)
    return undo(low), undo(high)


def share_right(d: np.ndarray, truth: float, interval: Callable[[int], tuple[float, float]]) -> float:
    """Share of the simulated samples whose interval contains the truth."""
    seen, times = np.unique(d, return_counts=True)
    right = [low <= truth <= high for low, high in map(interval, seen.tolist())]
    return float(np.dot(times, right)) / len(d)


def intervals(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Per true rate, how often each 95 % interval or bound contains it; how often AQL 1 % accepts a lot of 6 %."""
    rng, n, draws = np.random.default_rng(9_000 + seed), sizes.looked, sizes.draws
    se, sp, together = sizes.sensitivity, sizes.specificity, 4
    exact = partial(clopper_pearson, n=n)
    found: dict[str, list[float]] = {}
    for p in RATES.tolist():
        d = rng.binomial(n, p, draws)
        reported = rng.binomial(n, p * se + (1 - p) * (1 - sp), draws)
        bad = round(p * LOT)
        of_lot = rng.hypergeometric(bad, LOT - bad, n, draws)
        # pictures of one prompt share their fate half of the time: rho = 0.5 among 4 pictures of each prompt
        prompts = rng.beta(p, 1 - p, (draws // 10, n // together))
        clustered = rng.binomial(together, prompts).sum(1)
        shares = {
            "exact": share_right(d, p, exact),
            "wilson": share_right(d, p, partial(wilson_interval, n=n)),
            "textbook": share_right(d, p, partial(textbook, n=n)),
            "bound": share_right(d, p, lambda k: (0.0, upper_bound(k, n))),
            "lot": share_right(of_lot, bad, lambda k: (0, lot_upper_bound(k, n, lot=LOT))),
            "corrected": share_right(reported, p, partial(corrected, n=n, sensitivity=se, specificity=sp)),
            "reported": share_right(reported, p, exact),
            "clustered": share_right(clustered, p, exact),
        }
        for name, share in shares.items():
            found.setdefault(name, []).append(share)
    plan = aql_plan(LOT, 1.0)
    passed = rng.hypergeometric(30, LOT - 30, plan.n, draws) <= plan.c
    return {name: np.array(shares) for name, shares in found.items()} | {"aql": np.array([passed.mean()])}


# ---- one picture at a time ---------------------------------------------------------------------------------------


def looks(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Per true rate: mean number of looks of Wald's test over the single plan's, share accepted; how often looking
    daily raises no false alarm, with a bet and with a test made for one look."""
    rng = np.random.default_rng(19_000 + seed)
    fixed, _ = two_point_plan(GOOD, BAD)
    horizon = 3 * fixed
    test, n = sprt(GOOD, BAD, truncate=horizon), np.arange(1, horizon + 1)
    found: dict[str, list[float]] = {"looks": [], "accepted": [], "calm.bet": [], "calm.test": []}
    for p in RATES.tolist():
        d = np.cumsum(rng.random((sizes.walks, horizon)) < p, axis=1)  # [walks, horizon]
        rejects = d >= test.slope * n + test.reject_at
        accepts = d <= test.slope * n - test.accept_at
        ended = rejects | accepts
        ended[:, -1] = True
        stop = ended.argmax(1)
        outcome = [test.decide(int(d[i, k]), int(k) + 1) for i, k in enumerate(stop)]
        found["looks"].append(float((stop + 1).mean()) / fixed)
        found["accepted"].append(outcome.count("accept") / len(outcome))
        x = (rng.random((sizes.bettors, 300)) < p).astype(int)
        found["calm.bet"].append(float(np.mean([e_process(row, p).max() < 20 for row in x])))
        seen, k = np.cumsum(x, axis=1)[:, 19:], np.arange(20, 301)
        limit = k * p + 1.645 * np.sqrt(k * p * (1 - p))
        found["calm.test"].append(float((seen <= limit).all(1).mean()))
    return {name: np.array(shares) for name, shares in found.items()}


# ---- the return on investment ------------------------------------------------------------------------------------

VERIFICATION = {"defect_rate": (0.005, 0.06), "escape_loss": (1000, 20_000), "c_human": (10, 80), "n": (32, 200)}
MODEL = {"c_generate": (0.5, 10), "c_score": (0.05, 1), "rule_yield": (0.85, 0.99), "preference_yield": (0.6, 0.95)}
LOW_STAKES = {"escape_loss": (5, 100), "c_generate": (5, 100)}  # pictures whose defects hardly matter, a dear model
PILOT = Economics(
    lot=500, lots=20, n=80, c=2, defect_rate=0.02, rule_yield=0.95, preference_yield=0.85,
    c_generate=2.0, c_rule=0.1, c_score=0.2, c_human=30.0, escape_loss=5000.0, c_manual=400.0, fixed=1_500_000.0,
)  # fmt: skip


def dominance(pilot: Economics, ranges: Mapping[str, tuple[float, float]]) -> float:
    """Widest bar of a verification term over the widest bar of a model term."""
    width = {bar.name: bar.width for bar in tornado(pilot, ranges)}
    return max(width[name] for name in VERIFICATION) / max(width[name] for name in MODEL)


def returns(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """For pilots drawn from the stated ranges, 1 where the widest bar of the tornado chart is a verification term; the
    same for low stakes, and the ratio of the widest bars."""
    rng, found = np.random.default_rng(29_000 + seed), {}
    for name, ranges in (("", VERIFICATION | MODEL), (".low_stakes", VERIFICATION | MODEL | LOW_STAKES)):
        ratios = []
        for _ in range(sizes.pilots):
            guess = {k: float(np.exp(rng.uniform(np.log(low), np.log(high)))) for k, (low, high) in ranges.items()}
            pilot = replace(PILOT, **guess | {"n": round(guess["n"]), "c": int(rng.integers(0, 4))})
            ratios.append(dominance(pilot, ranges))
        found[f"dominates{name}"] = (np.array(ratios) > 1).astype(float)
        found[f"ratio{name}"] = np.array(ratios)
    return found


# ---- a certified threshold and another model ---------------------------------------------------------------------


def wrong(images: Tensor, prompts: Sequence[str]) -> np.ndarray:
    """True where the AttributeReader sees another value than the prompt names, for any attribute: [n]."""
    p = {a: found.cpu().numpy() for a, found in l06.models().reader.probabilities(images).items()}
    said = [parse_caption(prompt) for prompt in prompts]
    return np.array(
        [any(p[a][i].argmax() != ATTRIBUTES[a].index(v) for a, v in one.items()) for i, one in enumerate(said)]
    )


def audited(
    calibration: tuple[Tensor, Sequence[str]],
    old: tuple[Tensor, Sequence[str]],
    new: tuple[Tensor, Sequence[str]],
    alpha: float,
) -> dict[str, np.ndarray]:
    """Certify a threshold on labelled pictures of the old process; what it lets through of the old and of the new one.

    Args:
        calibration, old, new: pictures and their orders; "old" and "new" are no calibration pictures.

    Returns:
        Per picture of "old" and "new": "pass", 1 if it passes; "bad", 1 if it is defective; "over", pass (bad - alpha),
        whose mean is above 0 exactly if more than alpha of what passes is defective. "refused": 1 if the filter refuses
        the new process; "certified": 1 if a threshold was.
    """
    judge = l06.models().judge
    scores, bad = judge(*calibration).numpy(), wrong(*calibration)
    steps = threshold_steps(scores, alpha=alpha)
    certified, refused = 1.0, 0.0
    try:
        certificate = certify_threshold(scores, bad, thresholds=steps, alpha=alpha, process="old", judge=judge.name)
        tau = certificate.threshold
        try:
            PreferenceFilter(certificate).sort(scores[:1], process="new")
        except CalibrationError:
            refused = 1.0
    except CalibrationError:
        tau, certified = steps[0], 0.0
    found = {"certified": np.array([certified]), "refused": np.array([refused])}
    for name, (images, orders) in {"old": old, "new": new}.items():
        through, fault = judge(images, orders).numpy() >= tau, wrong(images, orders)
        found |= {f"pass.{name}": through.astype(float), f"bad.{name}": fault.astype(float)}
        found[f"over.{name}"] = through * (fault - alpha)
    return found


def replaced(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """PortraitSD's catalogue with some orders mixed up, then portrait-sd-base for the first orders of it.

    The threshold is certified on a random part of the later orders, so the seeds share the catalogue's pictures.
    """
    shelf, rng = l09_catalogue.load(), np.random.default_rng(seed)
    m, prompts = l09_catalogue.LATER, shelf.prompts
    drawn = shelf.pictures("old")[l09_catalogue.mixed_up(len(prompts), sizes.mixed, rng)]
    part = m + rng.choice(len(prompts) - m, sizes.calibration, replace=False)
    calibration = drawn[part], [prompts[i] for i in part]
    return audited(calibration, (drawn[:m], prompts[:m]), (shelf.pictures("new"), prompts[:m]), sizes.alpha)


def tuned(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """portrait-sd-base, then the same with lesson 06's adapter, which was trained to please the filter's own judge.

    Same orders, same noise; the seeds share the catalogue's pictures and its adapter.
    """
    shelf, rng = l09_catalogue.load(), np.random.default_rng(seed)
    m, prompts = l09_catalogue.LATER, shelf.half_prompts
    drawn = shelf.pictures("base")
    part = m + rng.choice(len(prompts) - m, sizes.calibration, replace=False)
    calibration = drawn[part], [prompts[i] for i in part]
    return audited(calibration, (drawn[:m], prompts[:m]), (shelf.pictures("tuned"), prompts[:m]), sizes.tuned_alpha)


# ---- small data on the premises ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def own_pairs(seed: int, pairs: int, candidates: int, steps: int) -> PreferencePairs:
    """Best against worst of a few candidates for each of `pairs` prompts of one's own, by the training judge."""
    m = l06.models()
    _, texts = l06.half_named(pairs, 60_000 + seed)
    return best_vs_worst(build_pool(m.pipe, texts, candidates, scorers=[m.judge], seed=seed, steps=steps)).training()


def first_pairs(pairs: PreferencePairs, n: int) -> PreferencePairs:
    """The first n of the pairs."""
    margin = None if pairs.margin is None else pairs.margin[:n]
    return replace(pairs, prompts=pairs.prompts[:n], winner=pairs.winner[:n], loser=pairs.loser[:n], margin=margin)


def small(count: int, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Gold and judge per held-out prompt after training on `count` pairs (0: the base), with the network blocked."""
    _, test = l06.half_named(sizes.test_prompts, 20_000)
    settings = SimpleNamespace(**{**l06.STUDY.sizes, "batch": sizes.batch})
    with network_blocked() as asked:
        states: l06.Adapters = {}
        if count:
            pairs = own_pairs(seed, sizes.pairs, sizes.candidates, sizes.steps)
            plan = [("own", first_pairs(pairs, count), [dpo(settings.kappa)], sizes.train_steps)]
            states = l06.align(plan, seed, settings)
        images = l06_world.pictures(test, seed, sizes.steps, states)
    judge = l06.models().judge
    size = sum(x.numel() for state in states.values() for x in state.values())
    return {
        "gold": l06.gold(images, test),
        "judge": judge(images, test).numpy(),
        "connections": np.array([len(asked)]),
        "parameters": np.array([size]),
    }


# ---- the study ---------------------------------------------------------------------------------------------------

PAIRS = {"base": 0, "pairs_50": 50, "pairs_100": 100, "pairs_200": 200}


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """One arm."""
    if arm in PAIRS:
        return small(min(PAIRS[arm], sizes.pairs), seed, sizes)
    parts = {"intervals": intervals, "looks": looks, "returns": returns, "replaced": replaced, "tuned": tuned}
    return parts[arm](seed, sizes)


def estimate_extreme(metric: str, arm: str, pick: Callable) -> Callable[[Recorded], np.ndarray]:
    """The smallest or largest number of each seed, [seeds, 1]."""
    return lambda recorded: pick(recorded.values(metric, arm), axis=1, keepdims=True)


def estimate_shift(metric: str, arm: str) -> Callable[[Recorded], np.ndarray]:
    """The new process minus the old one."""
    return lambda recorded: recorded.values(f"{metric}.new", arm) - recorded.values(f"{metric}.old", arm)


def estimate_confirmed(contrast: Callable[[Recorded], np.ndarray]) -> Callable[[Recorded], np.ndarray]:
    """For the claims that were changed after a look at seeds 0 to 2: decided on the seeds recorded after that."""
    from labkit.studies.estimate import on_new_seeds

    return on_new_seeds(contrast, 3)


def estimate_fresh(contrast: Callable[[Recorded], np.ndarray]) -> Callable[[Recorded], np.ndarray]:
    """Where every seed has orders of its own."""
    from labkit.studies.estimate import by_seed

    return by_seed(contrast)


ESTIMATES = {
    "aql_accepts_bad": level("aql", "intervals"),
    "bounds_hold": estimate_extreme("exact", "intervals", np.min),
    "exact_covers": level("exact", "intervals"),
    "wilson_covers": level("wilson", "intervals"),
    "textbook_covers": level("textbook", "intervals"),
    "bound_covers": level("bound", "intervals"),
    "lot_covers": level("lot", "intervals"),
    "corrected_covers": level("corrected", "intervals"),
    "reported_misses": level("reported", "intervals"),
    "clustered_misses": level("clustered", "intervals"),
    "bet_stays_calm": level("calm.bet", "looks"),
    "test_cries_wolf": level("calm.test", "looks"),
    "sprt_saves": estimate_extreme("looks", "looks", np.max),
    "certificate_holds": level("over.old", "replaced"),
    "old_threshold_void": estimate_confirmed(level("over.new", "replaced")),
    "yield_collapses": estimate_confirmed(estimate_shift("pass", "replaced")),
    "tuned_threshold_void": level("over.new", "tuned"),
    "tuned_shifts": estimate_fresh(estimate_shift("pass", "tuned_fresh")),
    "verification_dominates": level("dominates", "returns"),
    "low_stakes": level("dominates.low_stakes", "returns"),
    "fifty_pairs_help": gain("gold", "pairs_50", "base"),
    "two_hundred_pairs_help": gain("gold", "pairs_200", "base"),
    "more_pairs_help": gain("gold", "pairs_200", "pairs_50"),
    "repetition_is_why": gain("gold", "pairs_200_long", "pairs_50"),
}

STUDY = Study(
    lesson="09",
    unit=unit,
    arms=(
        *("intervals", "looks", "returns", "replaced", "tuned"),
        *("base", "pairs_50", "pairs_200", "pairs_100", "pairs_200_long"),
        "tuned_fresh",
    ),
    seeds=(0, 1, 2, 3, 4),
    more={"replaced": range(5, 45)}
    | {"base": range(5, 10), "tuned_fresh": range(5, 16)}  # tuned_shifts, by the spread over the catalogue's orders
    | dict.fromkeys(("pairs_50", "pairs_200"), range(5, 40)),  # more_pairs_help, by the spread of seven seeds
    sizes={
        "looked": 80, "draws": 200_000, "sensitivity": 0.9, "specificity": 0.97, "walks": 4000, "bettors": 1000,
        "pilots": 400, "calibration": 192, "mixed": 0.12, "alpha": 0.08, "tuned_alpha": 0.1, "steps": 8, "pairs": 200,
        "candidates": 2, "train_steps": 96, "batch": 10,
        "test_prompts": 128,
    },
    estimates=ESTIMATES,
    weights=("portrait-sd", "portrait-sd-base", "portrait-clip", "attribute-reader", "catalogue"),
    modules=(
        *(f"labkit.inspection.{name}" for name in ("equations", "economics", "threshold", "calibration")),
        *(f"labkit.dpo.{name}" for name in ("equations", "terms", "trainer", "pool", "pairs")),
        *(f"labkit.studies.{name}" for name in ("l06", "l06_world", "l09_catalogue")),
    ),
    tolerance={"": 0.05, "connections": 0.0, "parameters": 0.0, "pairs_*/gold": 0.01, "pairs_*/judge": 0.01}
    | dict.fromkeys(  # simulated: the same numbers on every machine, but for rounding
        (
            *("exact", "wilson", "textbook", "bound", "lot", "corrected", "reported", "clustered", "aql"),
            *("looks", "accepted", "calm.bet", "calm.test"),
            *("dominates", "ratio", "dominates.low_stakes", "ratio.low_stakes"),
        ),
        1e-3,
    ),
    cheap="intervals",
    covers=("intervals", "looks", "returns", "replaced", "pairs_50"),
    later={"pairs_200_long": "labkit.studies.l09_long", "tuned_fresh": "labkit.studies.l09_fresh"},
)  # fmt: skip
