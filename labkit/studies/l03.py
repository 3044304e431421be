"""Lesson 03: pseudo density (arXiv 2407.08659): selection, perturbation and weighted fine-tuning, with their controls.

Three generators. *The ring* of `labkit.worlds.ring`, whose density is known. *The ideal generator*: fresh renders of
the population that the real portraits come from, so whatever a selection does to it is the trade-off itself, and what
it reads without selection is the floor of every measure. *The model*: PortraitSD, whose rare pictures are partly broken
ones. Densities are measured in PortraitCLIP's image space (control), results in the AttributeReader's (judge).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from labkit.density import (
    BudgetExhausted,
    CandidateStream,
    PseudoDensity,
    fine_tune,
    fit_mlp,
    importance_sample,
    perturb,
    pilot,
    training_weights,
)
from labkit.density.finetune import FineTuned
from labkit.density.perturbation import Perturbation
from labkit.diffusion import encode_images, encode_prompts
from labkit.metrics import frechet_distance, kernel_distance, manifold_metrics, vendi_score
from labkit.metrics.extractors import clip_extractor, reader_extractor
from labkit.models import load_pipeline, load_reader
from labkit.portraits import ATTRIBUTES, PortraitSpec, random_caption, render_tensor, sample_specs
from labkit.studies.estimate import Recorded, gain
from labkit.studies.study import Study
from labkit.worlds.ring import ring_generator, ring_reals

# what is rare in the population: cartoon drawings, sunglasses, pink and blue hair
POPULATION = {
    "style": {"avataaars": 8, "personas": 3, "toon-head": 0.5},
    "glasses": {"none": 8, "sunglasses": 0.3},
    "hair_color": {"brown": 5, "black": 5, "pink": 0.3, "blue": 0.3},
    "beard": {"none": 6},
}
RARE = {"style": ("toon-head",), "glasses": ("sunglasses",), "hair_color": ("pink", "blue")}
SELECTIONS = {"w1": (0.5, 1.0), "w2": (0.1, 2.0), "w33": (0.5, 33.0), "w003": (0.5, 0.03)}  # quantile of tau, w
OTHER_KNOBS = {"guidance1": (1.0, 1.0), "guidance6": (6.0, 1.0), "noise08": (3.0, 0.8)}  # guidance, noise scale
RATIOS = {"pretrained": None, "w1": 1.0, "w33": 33.0, "w003": 0.03}
OPEN_PROMPT = "a portrait of a person"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@lru_cache(maxsize=1)
def models() -> SimpleNamespace:
    """PortraitSD; the space that controls; the space that judges, and its network."""
    reader = load_reader()
    return SimpleNamespace(
        pipe=load_pipeline("cpu"), control=clip_extractor("cpu"), judge=reader_extractor(reader), reader=reader
    )


# ---- the ring ----------------------------------------------------------------------------------------------------

RING = {
    "w1": (0.1, 1.0), "w2": (0.1, 2.0), "w33": (0.1, 33.0), "w33_half": (0.5, 33.0), "w33_top": (0.8, 33.0),
    "w003": (0.1, 0.03),
}  # fmt: skip
TRUNCATIONS = {"psi07": 0.7, "psi03": 0.3}


def ring_quality(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Precision, recall, coverage (k = 5) and squared Frechet distance of points of the ring."""
    found = manifold_metrics(real=real, fake=fake, k=5)
    distance = float(frechet_distance(real=real, fake=fake, floor=False))
    return {"precision": found.precision, "recall": found.recall, "coverage": found.coverage, "distance": distance}


def ring_run(setting: str, seed: int, n: int) -> dict[str, float]:
    """n points kept by a setting, or drawn from shrunken noise: their quality, what they cost and its forecast from n
    other points."""
    reals = ring_reals(n, generator(1000 + seed))
    z = torch.randn(25 * n, 3, generator=generator(2000 + seed), dtype=torch.float64)
    if setting in TRUNCATIONS:
        return ring_quality(reals, ring_generator(TRUNCATIONS[setting] * z[:n])) | {"calls": 1.0, "forecast": 1.0}
    (quantile, w), points = RING[setting], ring_generator(z)
    ring = PseudoDensity(k=10).fit(reals)
    tau = ring.threshold(quantile)
    first = pilot(lambda i, count: points[-1 - i - count : -1 - i], ring.score, threshold=tau, ratio=w, n=n)
    got = importance_sample(
        lambda i, count: points[i : i + count], ring.score, n=n, threshold=tau, ratio=w, budget=len(points) - n,
        generator=generator(3000 + seed), batch=n,
    )  # fmt: skip
    cost = {"calls": got.calls_per_sample, "forecast": first.calls_per_sample}
    return ring_quality(reals, got.samples) | cost


def ring_unit(setting: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """`ring_run` with several reals and points."""
    runs = [ring_run(setting, 100 * seed + r, sizes.ring) for r in range(sizes.ring_runs)]
    return {metric: np.array([run[metric] for run in runs]) for metric in runs[0]}


# ---- portraits: reals and pools ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reals:
    """Real portraits of one seed."""

    specs: list[PortraitSpec]
    pictures: Tensor  # [N, 3, 64, 64]
    density: PseudoDensity  # in the control space, k = 10
    judged: Tensor  # features in the judge's space [N, d]


@lru_cache(maxsize=1)
def reals(seed: int, n: int) -> Reals:
    """n portraits of the population."""
    specs = sample_specs(n, seed=10_000 + seed, marginals=POPULATION)
    pictures = render_tensor(specs)
    control, judge = models().control, models().judge
    density = PseudoDensity(k=10).fit(control(pictures), fingerprint=control.fingerprint)
    return Reals(specs, pictures, density, judge(pictures))


@dataclass(frozen=True)
class Pool:
    """Candidates of one generator, scored against the reals of the same seed."""

    pictures: Tensor  # [P, 3, 64, 64]
    control: Tensor  # features [P, d]
    judged: Tensor  # features [P, d]
    rho: Tensor  # exact density [P]
    rare: Tensor  # bool [P]: the reader sees something that is rare in the population


def looks_rare(pictures: Tensor) -> Tensor:
    """Bool [P]: cartoon drawing, sunglasses, pink or blue hair, as the AttributeReader sees it."""
    p = models().reader.probabilities(pictures)
    seen = {a: found.argmax(1).cpu() for a, found in p.items()}
    masks = [seen[a] == ATTRIBUTES[a].index(value) for a, values in RARE.items() for value in values]
    return torch.stack(masks).any(0)


def scored(pictures: Tensor, seed: int, sizes: SimpleNamespace) -> Pool:
    """Pictures as a pool."""
    m, real = models(), reals(seed, sizes.reals)
    control = m.control(pictures)
    return Pool(pictures, control, m.judge(pictures), real.density.score(control), looks_rare(pictures))


def captions(n: int, seed: int) -> list[str]:
    """n captions of other people of the population; each names a random part of its attributes."""
    rng = np.random.default_rng(20_000 + seed)
    specs = sample_specs(n, seed=20_000 + seed, marginals=POPULATION)
    return [random_caption(spec, rng).text for spec in specs]


def stream(kind: str, seed: int, sizes: SimpleNamespace) -> CandidateStream:
    """PortraitSD as a stream of candidates, one caption each."""
    guidance, noise = OTHER_KNOBS.get(kind, (3.0, 1.0))
    return CandidateStream(
        models().pipe, captions(sizes.pool, seed), seed=30_000 + seed, steps=sizes.steps, guidance_scale=guidance,
        noise_scale=noise,
    )  # fmt: skip


Bar = Callable[[range], range]  # a progress bar around the numbers of batches


def draw(candidates: CandidateStream, count: int, bar: Bar = lambda numbers: numbers, batch: int = 32) -> Tensor:
    """The first `count` candidates [count, 3, 64, 64], batch by batch."""
    starts = bar(range(0, count, batch))
    return torch.cat([candidates(i, min(batch, count - i)) for i in starts]).cpu()


def pool(kind: str, seed: int, sizes: SimpleNamespace, bar: Bar = lambda numbers: numbers) -> Pool:
    """The pool of a generator: "ideal", "model", or the model at another guidance or noise scale (`kept` pictures)."""
    if kind == "ideal":
        return scored(render_tensor(sample_specs(sizes.pool, seed=40_000 + seed, marginals=POPULATION)), seed, sizes)
    return scored(draw(stream(kind, seed, sizes), sizes.pool if kind == "model" else sizes.kept, bar), seed, sizes)


@lru_cache(maxsize=2)
def _pool(kind: str, seed: int, key: tuple) -> Pool:
    return pool(kind, seed, SimpleNamespace(**dict(key)))


# ---- selection ---------------------------------------------------------------------------------------------------


MEASURES = (
    *("precision", "recall", "coverage", "vendi", "kernel", "frechet"),
    *("own_precision", "rare", "share", "calls"),
)  # of a selection


def select(rho: Tensor, density: PseudoDensity, quantile: float, w: float, n: int, seed: int) -> tuple[Tensor, float]:
    """Which candidates [<= n] a setting keeps, looking at them in a random order, and the candidates that each cost."""
    order = torch.randperm(len(rho), generator=generator(50_000 + seed))
    try:
        got = importance_sample(
            lambda i, count: order[i : i + count], lambda rows: rho[rows], n=n, threshold=density.threshold(quantile),
            ratio=w, budget=len(order), generator=generator(60_000 + seed),
        )  # fmt: skip
    except BudgetExhausted as error:
        got = error.selection
    return got.samples, got.calls_per_sample


def quality(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Precision, recall and coverage (k = 3, as in the paper), Vendi score, kernel distance and squared Frechet
    distance of features [n, d] to those of the reals [N, d]."""
    found = manifold_metrics(real=real, fake=fake, k=3)
    return {
        "precision": found.precision,
        "recall": found.recall,
        "coverage": found.coverage,
        "vendi": vendi_score(fake),
        "kernel": float(kernel_distance(real=real, fake=fake)) / 1000,
        "frechet": float(frechet_distance(real=real, fake=fake, floor=False)),
    }


def selected(candidates: Pool, setting: str, seed: int, sizes: SimpleNamespace) -> dict[str, float]:
    """What a selection keeps: quality in the judge's space, precision in the control space, rare things, cost; means
    over several orders of the same pool. NaN where the pool is too small for `sizes.kept` pictures."""
    real, (quantile, w) = reals(seed, sizes.reals), SELECTIONS[setting]
    found = []
    for r in range(sizes.reruns):
        rows, calls = select(candidates.rho, real.density, quantile, w, sizes.kept, 100 * seed + r)
        enough = len(rows) == sizes.kept
        found.append(of_rows(candidates, rows, real) | {"calls": calls} if enough else dict.fromkeys(MEASURES, np.nan))
    return {metric: float(np.mean([one[metric] for one in found])) for metric in MEASURES}


def of_rows(candidates: Pool, rows: Tensor, real: Reals) -> dict[str, float]:
    """All measures of some candidates."""
    tau = real.density.threshold(0.5)
    own = manifold_metrics(real=real.density.real_features(), fake=candidates.control[rows], k=3)
    return quality(real.judged, candidates.judged[rows]) | {
        "own_precision": own.precision,
        "rare": float(candidates.rare[rows].double().mean()),
        "share": float((candidates.rho[rows] > tau).double().mean()),
    }


# ---- perturbation ------------------------------------------------------------------------------------------------

PUSHES = {
    "up": ("up", "exact", "sign"), "down": ("down", "exact", "sign"), "mlp": ("up", "mlp", "sign"),
    "random": ("up", "exact", "random"),
}  # fmt: skip


def push_stream(seed: int, sizes: SimpleNamespace) -> CandidateStream:
    """The pictures that are pushed."""
    texts = captions(sizes.push, 500 + seed)
    return CandidateStream(models().pipe, texts, seed=70_000 + seed, steps=sizes.push_steps)


def push_pictures(noises: Mapping[str, Tensor], seed: int, sizes: SimpleNamespace) -> dict[str, Tensor]:
    """The pictures [B, 3, 64, 64] before the push ("start"), and those of other noises [B, C, h, w]."""
    few = push_stream(seed, sizes)
    with torch.no_grad():
        made = {name: few.images(z, 0).clamp(-1, 1).cpu() for name, z in noises.items()}
    return {"start": few(0, sizes.push).cpu(), **made}


def pushed(plan: str, seed: int, sizes: SimpleNamespace, progress: Callable[[], None] = lambda: None) -> Perturbation:
    """A few pictures of the model, pushed by their noise; every plan starts from the same pictures."""
    m, real, (direction, scorer, method) = models(), reals(seed, sizes.reals), PUSHES[plan]
    few = push_stream(seed, sizes)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (m.control.pipeline.mean, m.control.pipeline.std))
    score = real.density.soft_score
    if scorer == "mlp":
        score = fit_mlp(real.density, generator=generator(80_000 + seed), epochs=sizes.mlp_epochs).soft_score

    def features(images: Tensor) -> Tensor:
        """The control space without rounding, [B, d]: with gradients."""
        progress()
        return m.control.network((images / 2 + 0.5 - mean) / std)

    return perturb(
        few.scorer(features, score, 0), few.noise(0, sizes.push), direction=direction, method=method, steps=sizes.pgd,
        exact=few.judge(lambda images: real.density.score(m.control(images)), 0), eps=sizes.eps,
        generator=generator(90_000 + seed),
    )  # fmt: skip


def push_unit(plan: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Log of the change in density per picture: exact, and by the climbed score at the best and the last iterate."""
    run = pushed(plan, seed, sizes)
    climbed = (run.climbed / run.climbed[:1]).log()
    return {
        "log_gain": (run.after / run.before).log().numpy(),
        "promised": (run.promised / run.climbed[0]).log().numpy(),
        "last": climbed[-1].numpy(),
        "kept": run.kept.double().numpy(),
    }


# ---- fine-tuning -------------------------------------------------------------------------------------------------


def tuned(w: float | None, seed: int, sizes: SimpleNamespace, progress: Callable | None = None) -> FineTuned | None:
    """PortraitSD after some steps on the reals, those above the median drawn w times as often; None: as it is. All w
    share noise and timesteps."""
    if w is None:
        return None
    pipe, real = models().pipe, reals(seed, sizes.reals)
    rng = np.random.default_rng(100_000 + seed)
    with torch.no_grad():
        latents = encode_images(pipe, real.pictures, batch_size=64)
        conditions = encode_prompts(pipe, [random_caption(spec, rng).text for spec in real.specs])
    weights = training_weights(real.density.rho, threshold=real.density.threshold(0.5), ratio=w)
    return fine_tune(
        pipe, latents, conditions, weights=weights, seed=110_000 + seed, steps=sizes.tune_steps,
        batch=sizes.tune_batch, learning_rate=sizes.tune_lr, progress=progress,
    )  # fmt: skip


def tuned_pool(run: FineTuned | None, seed: int, sizes: SimpleNamespace, bar: Bar = lambda numbers: numbers) -> Pool:
    """Pictures of a fine-tuned model for the open prompt, without guidance: the model itself decides how typical they
    are. The same seed gives every model the same noise."""
    pipe = models().pipe
    with run.applied(pipe) if run else nullcontext():
        free = CandidateStream(pipe, OPEN_PROMPT, seed=120_000 + seed, steps=sizes.steps, guidance_scale=1.0)
        return scored(draw(free, sizes.tune_images, bar), seed, sizes)


def tune_measures(made: Pool, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Per picture log density and whether it lies above the median of the reals; of all pictures the other measures."""
    real = reals(seed, sizes.reals)
    return {
        "log_rho": made.rho.log().numpy(),
        "above": (made.rho > real.density.threshold(0.5)).double().numpy(),
        "rare": np.array([float(made.rare.double().mean())]),
        **{metric: np.array([value]) for metric, value in quality(real.judged, made.judged).items()},
    }


# ---- the study ---------------------------------------------------------------------------------------------------


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """One arm, "part.setting"."""
    part, setting = arm.split(".")
    if part == "ring":
        return ring_unit(setting, seed, sizes)
    if part == "push":
        return push_unit(setting, seed, sizes)
    if part == "tune":
        return tune_measures(tuned_pool(tuned(RATIOS[setting], seed, sizes), seed, sizes), seed, sizes)
    key = tuple(sorted(vars(sizes).items()))
    if setting in SELECTIONS:
        found = selected(_pool(part, seed, key), setting, seed, sizes)
        if not np.isfinite(list(found.values())).all():
            raise ValueError(
                f"{part}, {setting}: fewer than {sizes.kept} of {sizes.pool} were kept: take a larger pool"
            )
        return found
    made = pool(setting, seed, sizes)
    return of_rows(made, torch.arange(len(made.rho)), reals(seed, sizes.reals)) | {"calls": 1.0}


def estimate_ring(metric: str, arm: str, against: str = "") -> Callable[[Recorded], np.ndarray]:
    """A metric of the ring, minus that of another arm; [runs, 1]: every run has its own reals and points."""

    def contrast(recorded: Recorded) -> np.ndarray:
        values = gain(metric, arm, against)(recorded) if against else recorded.values(metric, arm)
        return values.reshape(-1, 1)

    return contrast


def estimate_cost(recorded: Recorded) -> np.ndarray:
    """Generated per kept point, measured over forecast, mean over the settings of the ring that reject anything."""
    settings = [f"ring.{s}" for s, (_, w) in RING.items() if w != 1]
    seeds = recorded.seeds(*settings)
    calls, forecasts = (
        [recorded.values(m, s, seeds=seeds).reshape(-1, 1) for s in settings] for m in ("calls", "forecast")
    )
    return np.mean(np.array(calls) / np.array(forecasts), axis=0)


def estimate_own_space(recorded: Recorded) -> np.ndarray:
    """Gain in precision of w = 33 in the control space minus that in the judge's space."""
    gains = [gain(metric, "model.w33", "model.w1")(recorded) for metric in ("own_precision", "precision")]
    return gains[0] - gains[1]


def estimate_promise(recorded: Recorded) -> np.ndarray:
    """What the MLP promises minus what the exact density keeps, log."""
    gap = recorded.values("promised", "push.mlp") - recorded.values("log_gain", "push.mlp")
    return gap.mean(1, keepdims=True)


def estimate_of_seeds(metric: str, arm: str, against: str) -> Callable[[Recorded], np.ndarray]:
    """Every seed draws pictures of its own, so a seed is one number."""
    from labkit.studies.estimate import by_seed

    return by_seed(gain(metric, arm, against))


ESTIMATES = {
    "cost_forecast": estimate_cost,
    "filter_ring": estimate_ring("precision", "ring.w33", "ring.w1"),
    "filter_is_free": estimate_ring("coverage", "ring.w33", "ring.w1"),
    "extreme_ring": estimate_ring("distance", "ring.w33_top", "ring.w1"),
    "ideal_recall_down": gain("recall", "ideal.w33", "ideal.w1"),
    "ideal_vendi_down": gain("vendi", "ideal.w33", "ideal.w1"),
    "ideal_distance_up": gain("kernel", "ideal.w33", "ideal.w1"),
    "ideal_recall_up": gain("recall", "ideal.w003", "ideal.w1"),
    "ideal_vendi_up": gain("vendi", "ideal.w003", "ideal.w1"),
    "fidelity_up": gain("precision", "model.w33", "model.w1"),
    "diversity_down": gain("recall", "model.w33", "model.w1"),
    "vendi_down": gain("vendi", "model.w33", "model.w1"),
    "fidelity_down": gain("precision", "model.w003", "model.w1"),
    "diversity_up": gain("recall", "model.w003", "model.w1"),
    "vendi_up": gain("vendi", "model.w003", "model.w1"),
    "mild_portraits": gain("kernel", "model.w2", "model.w1"),
    "extreme_portraits": gain("kernel", "model.w33", "model.w1"),
    "own_space": estimate_own_space,
    "push_up": estimate_of_seeds("log_gain", "push.up", "push.random"),
    "push_down": estimate_of_seeds("last", "push.down", "push.random"),
    "mlp_overrates": estimate_promise,
    "tune_density": estimate_of_seeds("log_rho", "tune.w33", "tune.w1"),
    "tune_share": estimate_of_seeds("above", "tune.w33", "tune.w1"),
    "tune_fidelity": gain("precision", "tune.w33", "tune.w1"),
    "tune_diversity": gain("recall", "tune.w003", "tune.w1"),
    "tune_vendi": gain("vendi", "tune.w003", "tune.w1"),
    "control_alone": gain("kernel", "tune.w1", "tune.pretrained"),
}

STUDY = Study(
    lesson="03",
    unit=unit,
    arms=(
        *(f"ring.{s}" for s in (*RING, *TRUNCATIONS)),
        *(f"ideal.{s}" for s in SELECTIONS),
        *(f"model.{s}" for s in (*SELECTIONS, *OTHER_KNOBS)),
        *(f"push.{s}" for s in PUSHES),
        *(f"tune.{s}" for s in RATIOS),
    ),
    seeds=(0, 1, 2, 3, 4),
    more=dict.fromkeys(("ideal.w1", "ideal.w003"), range(5, 35))
    | dict.fromkeys(("model.w1", "model.w33", "model.w003", "push.mlp"), range(5, 14))
    | dict.fromkeys(("tune.pretrained", "tune.w33"), range(5, 30))
    | dict.fromkeys(("tune.w1", "tune.w003"), range(5, 97)),
    sizes={
        "ring": 1000, "ring_runs": 2, "reals": 600, "pool": 400, "kept": 100, "reruns": 6, "steps": 8, "push": 8,
        "push_steps": 4, "pgd": 10, "eps": 0.1, "mlp_epochs": 30, "tune_steps": 120, "tune_batch": 16, "tune_lr": 1e-3,
        "tune_images": 128,
    },
    estimates=ESTIMATES,
    weights=("portrait-sd", "portrait-clip", "attribute-reader"),
    modules=("labkit.density.equations", "labkit.density.perturbation"),
    tolerance={"": 0.05, "kernel": 0.5, "frechet": 60.0, "vendi": 0.3, "kept": 2.0, "calls": 0.2},
    cheap="ring.w2",
    covers=("ring.w33", "model.w33", "push.mlp", "tune.w33"),
)  # fmt: skip
