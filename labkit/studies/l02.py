"""Lesson 02: what metrics of image sets read, by number of pictures, by k, and by what is wrong with the fakes.

An arm is a kind of fakes, measured against fresh renders of the training law at growing numbers of pictures. Three
arms are experiments of their own: `ranking` (which of two models with known true distances reads lower), `toy` (two
disjoint sets with an outlier each) and `wins` (guidance 3 against 2, prompt by prompt).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from labkit.diffusion import image_generators, sample, to_pil
from labkit.metrics import (
    ImagePipeline,
    cmmd,
    frechet_distance,
    frechet_null,
    kernel_distance,
    manifold_metrics,
    noise_floor,
    outcomes,
)
from labkit.metrics.extractors import clip_extractor, reader_extractor
from labkit.metrics.fid_infinity import extrapolate
from labkit.models import load_pipeline, load_reader
from labkit.portraits import HELD_OUT_COMBINATIONS, PortraitSpec, caption, render_tensor, sample_specs
from labkit.studies.estimate import Contrast, Recorded, gain, level
from labkit.studies.study import Study

KINDS = (
    "same",
    "jpeg90",
    "jpeg75",
    "truncated",
    "antialiased",
    "aliased",
    "no_mode",
    "junk",
    "alike",
    "noise",
    "model",
)
KS = (1, 3, 5, 10)
MODE = "toon-head"  # the style that is a mode of the data: a third of all portraits
SHRUNK = 0.8  # a model whose samples lie this much nearer to their mean: its true distance is (1 - 0.8)^2 tr S
LAW = {"exclude": HELD_OUT_COMBINATIONS}  # what PortraitSD was trained on

# ---- pictures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sets:
    """Real and fake features [n, d] of the AttributeReader, and CLIP embeddings [n, e] of the same pictures."""

    real: Tensor
    fake: Tensor
    real_clip: Tensor
    fake_clip: Tensor


@lru_cache(maxsize=1)
def networks() -> SimpleNamespace:
    """The networks of the study, on the CPU."""
    return SimpleNamespace(
        reader=load_reader(), features=reader_extractor(), clip=clip_extractor("cpu"), pipe=load_pipeline("cpu")
    )


def in_parts(specs: Sequence[PortraitSpec], size: int = 64) -> Tensor:
    """Renders of many portraits [n, 3, size, size]."""
    return torch.cat([render_tensor(specs[i : i + 64], size) for i in range(0, len(specs), 64)])


@lru_cache(maxsize=1)
def renders(seed: int, n: int, others: int) -> SimpleNamespace:
    """n reals and other renders of one law: features and embeddings of both, pictures and specs of the others."""
    specs = sample_specs(n + others, seed=7000 + seed, **LAW)
    pictures = in_parts(specs)
    features, clip = networks().features(pictures), networks().clip(pictures)
    return SimpleNamespace(
        real=features[:n], other=features[n:], real_clip=clip[:n], other_clip=clip[n:], pictures=pictures[n:],
        specs=specs[n:],
    )  # fmt: skip


def jpeg(pictures: Tensor, quality: int) -> Tensor:
    """What is left of pictures [n, 3, H, W] after saving as JPEG."""
    kept = []
    for picture in to_pil(pictures):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        kept.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(kept) / 127.5 - 1


def truncated(pictures: Tensor) -> Tensor:
    """Pictures whose conversion to uint8 cut the fraction off instead of rounding."""
    return ((pictures + 1) * 127.5).floor() / 127.5 - 1


def blends(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The mean of each picture and another one, pixel by pixel: junk."""
    return (pictures + pictures[torch.randperm(len(pictures), generator=generator)]) / 2


@lru_cache(maxsize=1)
def reduced(seed: int, n: int) -> dict[str, Tensor]:
    """n portraits, drawn at 192 pixels and reduced to 64 with each filter."""
    filters = {kind: ImagePipeline(kind, 64, kind) for kind in ("bilinear-antialias", "bilinear")}
    specs, small = sample_specs(n, seed=8000 + seed, **LAW), {kind: [] for kind in filters}
    for i in range(0, len(specs), 16):
        large = in_parts(specs[i : i + 16], 192)
        for kind, reduce in filters.items():
            small[kind].append(reduce(large))
    return {kind: torch.cat(parts) for kind, parts in small.items()}


def more_alike(x: Tensor, share: float = 0.5) -> Tensor:
    """Features or embeddings [n, d] nearer to their mean, which stays: less variety and nothing else."""
    return x.mean(0) + share * (x - x.mean(0))


def mean_colours(pictures: Tensor) -> Tensor:
    """Mean colour of each of 16 x 16 squares, [n, 768]: nothing was trained for this space."""
    return torch.nn.functional.avg_pool2d(pictures, 4).flatten(1)


def noise_pictures(n: int, generator: torch.Generator) -> Tensor:
    """Pictures [n, 3, 64, 64] of independent uniform pixels."""
    return torch.rand(n, 3, 64, 64, generator=generator) * 2 - 1


def painted(specs: Sequence[PortraitSpec], seed: int, sizes: SimpleNamespace, scale: float, copies: int = 1) -> Tensor:
    """PortraitSD's pictures [n * copies, 3, 64, 64] of the full captions; the same seed gives the same noise."""
    texts = [caption(spec).text for spec in specs for _ in range(copies)]
    generators = image_generators(len(texts), 1000 * (seed + 1))
    options = {"steps": sizes.steps, "guidance_scale": scale, "batch_size": 32}
    return sample(networks().pipe, texts, generators=generators, **options).cpu()


def sets(kind: str, seed: int, sizes: SimpleNamespace) -> Sets:
    """Reals and one kind of fakes."""
    world, net, g = renders(seed, sizes.renders, sizes.others), networks(), torch.Generator().manual_seed(seed)
    real = {"real": world.real, "real_clip": world.real_clip}

    def of(pictures: Tensor, real: dict[str, Tensor] = real) -> Sets:
        return Sets(**real, fake=net.features(pictures), fake_clip=net.clip(pictures))

    if kind == "same":
        return Sets(**real, fake=world.other, fake_clip=world.other_clip)
    if kind == "no_mode":
        kept = torch.tensor([spec.style != MODE for spec in world.specs])
        return Sets(**real, fake=world.other[kept], fake_clip=world.other_clip[kept])
    if kind == "alike":
        return Sets(**real, fake=more_alike(world.other), fake_clip=more_alike(world.other_clip))
    if kind in ("antialiased", "aliased"):
        small = reduced(seed, 2 * sizes.large)
        smooth = small["bilinear-antialias"][: sizes.large]
        fakes = small["bilinear-antialias" if kind == "antialiased" else "bilinear"][sizes.large :]
        return of(fakes, {"real": net.features(smooth), "real_clip": net.clip(smooth)})
    if kind == "model":
        asked = sample_specs(sizes.painted, seed=9000 + seed, **LAW)
        return of(painted(asked, seed, sizes, sizes.guidance))
    some, half = world.pictures, sizes.others // 2
    made = {
        "jpeg90": lambda: jpeg(some, 90),
        "jpeg75": lambda: jpeg(some, 75),
        "truncated": lambda: truncated(some),
        "junk": lambda: torch.cat([some[:half], blends(some[half:], g)]),
        "noise": lambda: noise_pictures(sizes.others, g),
    }
    return of(made[kind]())


# ---- curves over the number of pictures and k ----------------------------------------------------------------------


def chunks(x: Tensor, n: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` disjoint random choices of n rows, [count, n] row numbers."""
    return torch.randperm(len(x), generator=generator)[: n * count].reshape(count, n)


def fd(real: Tensor, fake: Tensor) -> float:
    """Frechet distance without its noise floor."""
    return frechet_distance(real=real, fake=fake, floor=False).value


def scores(real: Tensor, fake: Tensor, ks: Sequence[int] = KS) -> dict[str, float]:
    """FD, KID, and precision, recall, density, coverage at every k ("precision3")."""
    found = {"fd": fd(real, fake), "kid": float(kernel_distance(real=real, fake=fake))}
    for k in ks:
        result = manifold_metrics(real=real, fake=fake, k=k)
        found |= {f"{name}{k}": value for name, value in result.as_dict().items()}
    return found


def curves(kind: str, made: Sets, seed: int, sizes: SimpleNamespace) -> dict[str, float]:
    """Metric at n pictures on each side ("fd@64"): mean over disjoint rounds, and their deviation ("fd.sd@64")."""
    numbers, g = {}, torch.Generator().manual_seed(seed + 1)
    for n in sizes.ns:
        count = min(sizes.rounds, len(made.real) // n, len(made.fake) // n)
        if not count:  # precision alone does not depend on the number of fakes
            if n <= len(made.real):
                for k in KS:
                    found = manifold_metrics(real=made.real[:n], fake=made.fake, k=k)
                    numbers[f"precision{k}@{n}"] = found.precision
            continue
        rows, columns = chunks(made.real, n, count, g), chunks(made.fake, n, count, g)
        rounds = [
            scores(made.real[i], made.fake[j]) | {"cmmd": _cmmd(kind, made.real_clip[i], made.fake_clip[j])}
            for i, j in zip(rows, columns, strict=True)
        ]
        for name in rounds[0]:
            values = np.array([found[name] for found in rounds])
            numbers[f"{name}@{n}"] = values.mean()
            if count > 2:
                numbers[f"{name}.sd@{n}"] = values.std(ddof=1)
    return numbers


def _cmmd(kind: str, real: Tensor, fake: Tensor) -> float:
    return float(cmmd(real=real, fake=fake, normalise=kind != "alike"))  # length 1 again would undo half of the change


def slope(numbers: dict[str, float], ns: Sequence[int]) -> float:
    """Slope of log FD over log n."""
    return float(np.polyfit(np.log(ns), np.log([numbers[f"fd@{n}"] for n in ns]), 1)[0])


def null_alarms(real: Tensor, fake: Tensor, n: int, tests: int, rounds: int, generator: torch.Generator) -> float:
    """Share of permutation tests at n pictures a side with p <= 0.05."""
    alarms = 0
    for _ in range(tests):
        i, j = (torch.randperm(len(x), generator=generator)[:n] for x in (real, fake))
        alarms += frechet_null(real=real[i], fake=fake[j], rounds=rounds, generator=generator)[1] <= 0.05
    return alarms / tests


def other_spaces(seed: int, sizes: SimpleNamespace) -> dict[str, float]:
    """Precision (k = 3) of noise in CLIP's space and in mean colours, by number of reals."""
    g = torch.Generator().manual_seed(seed + 2)
    noise, world = noise_pictures(256, g), renders(seed, sizes.renders, sizes.others)
    spaces = {"clip": networks().clip, "colours": mean_colours}
    reals = {"clip": world.real_clip, "colours": mean_colours(world.pictures)}
    return {
        f"{name}.precision3@{n}": manifold_metrics(real=reals[name][:n], fake=space(noise), k=3).precision
        for name, space in spaces.items()
        for n in sizes.ns
    }


def kind_unit(kind: str, seed: int, sizes: SimpleNamespace) -> dict[str, float]:
    """The curves of one kind of fakes, and what is asked of this kind alone."""
    made = sets(kind, seed, sizes)
    numbers, g = curves(kind, made, seed, sizes), torch.Generator().manual_seed(seed + 3)
    options = {"rounds": sizes.null_rounds, "generator": g}
    if kind == "same":
        measured = [n for n in sizes.ns if f"fd@{n}" in numbers]
        many = [n for n in measured if n >= made.real.shape[1]]  # where every direction is seen
        numbers["slope"] = slope(numbers, many if len(many) > 1 else measured)
        numbers["null@32"] = null_alarms(made.real, made.fake, 32, sizes.null_tests, **options)
    if kind == "model":
        numbers["null@32"] = null_alarms(made.real, made.fake, 32, sizes.null_tests // 3, **options)
    return numbers | (other_spaces(seed, sizes) if kind == "noise" else {})


# ---- rankings: spread against bias ---------------------------------------------------------------------------------


def averaged(real: Tensor, fake: Tensor, n: int) -> float:
    """FD at n pictures a side, mean over the disjoint choices that both sets hold (at most eight)."""
    count = min(8, len(real) // n, len(fake) // n)
    return float(np.mean([fd(real[i * n : (i + 1) * n], fake[i * n : (i + 1) * n]) for i in range(count)]))


def at_infinity(real: Tensor, fake: Tensor) -> float:
    """FD extrapolated along 1/n with both sides growing together: a quarter, a half and all of the pictures."""
    ns = [len(fake) // 4, len(fake) // 2, len(fake)]
    return extrapolate(ns, [averaged(real, fake, n) for n in ns]).value


@dataclass(frozen=True)
class Rivals:
    """Two models that are worse than a perfect one, as changes of features [n, d], and what is true of them.

    floor: FD of two sets of the law at n pictures a side. shift: the mean off by an eighth of it, its true distance.
    alike: less variety (`SHRUNK`).
    """

    floor: float
    trace: float
    shift: Callable[[Tensor], Tensor]
    alike: Callable[[Tensor], Tensor]


def rivals(pool: Tensor, n: int, generator: torch.Generator) -> Rivals:
    """The two worse models for a law of which `pool` [N, d] are samples; the direction of the shift is random."""
    law, centre = torch.cov(pool.T), pool.mean(0)
    floor = noise_floor(law, n_real=n, n_fake=n)
    direction = torch.randn(pool.shape[1], generator=generator).double()
    shift = (floor / 8) ** 0.5 * direction / direction.norm()
    return Rivals(floor, float(law.trace()), lambda x: x + shift, lambda x: centre + SHRUNK * (x - centre))


def reads_lower(
    pool: Tensor, n: int, worse: Mapping[str, Callable[[Tensor], Tensor]], generator: torch.Generator
) -> tuple[dict[str, float], tuple[Tensor, Tensor, Tensor]]:
    """One round at n pictures a side: name -> 1 where the perfect model (fresh samples of the pool) reads lower than a
    worse one with samples of its own; ".paired" with the same samples, as two models share prompts and seeds.

    Returns also the reals, the perfect model's samples and the other ones, [n, d] each.
    """
    real, own, others = (pool[rows] for rows in chunks(pool, n, 3, generator))
    perfect = fd(real, own)
    read = {name: fd(real, change(others)) for name, change in worse.items()}
    read |= {f"{name}.paired": fd(real, change(own)) for name, change in worse.items()}
    return {name: float(perfect < value) for name, value in read.items()}, (real, own, others)


def ranking_unit(seed: int, sizes: SimpleNamespace) -> dict[str, float]:
    """How often the better of two models reads lower, by the number of pictures, and extrapolated from the most."""
    world, g = renders(seed, sizes.renders, sizes.others), torch.Generator().manual_seed(seed + 4)
    pool = torch.cat([world.real, world.other]).double()
    rival = rivals(pool, 64, g)
    right: dict[str, list[float]] = {}
    for _ in range(sizes.rank_rounds):
        for n in sizes.rank_ns:
            worse = {"alike": rival.alike} | ({"shift": rival.shift} if n == 64 else {})
            lower, (real, own, others) = reads_lower(pool, n, worse, g)
            for name, value in lower.items():
                right.setdefault(f"{name}@{n}", []).append(value)
        ends = at_infinity(real, own), at_infinity(real, rival.alike(others))  # of the largest n
        right.setdefault("alike.infinity", []).append(float(ends[0] < ends[1]))
        right.setdefault("infinity.perfect", []).append(ends[0])
        right.setdefault("infinity.alike", []).append(ends[1])
    numbers = {name: float(np.mean(values)) for name, values in right.items()}
    return numbers | {"floor": rival.floor, "truth.alike": (1 - SHRUNK) ** 2 * rival.trace}


# ---- outliers, win rates -------------------------------------------------------------------------------------------


def disjoint_sets(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on a line [n, 1]: reals between 0 and 1, fakes between 2 and 3, and one of each at the other's edge."""
    real = torch.cat([torch.rand(n - 1, 1, generator=generator), torch.tensor([[2.0]])])
    return real, torch.cat([torch.rand(n - 1, 1, generator=generator) + 2, torch.tensor([[1.0]])])


def toy_unit(seed: int, sizes: SimpleNamespace) -> dict[str, float]:
    """The four scores (k = 5) of the disjoint sets, and the smaller of precision and recall."""
    real, fake = disjoint_sets(1000, torch.Generator().manual_seed(seed))
    found = manifold_metrics(real=real, fake=fake, k=5).as_dict()
    return found | {"least": min(found["precision"], found["recall"])}


def share_right(pictures: Tensor, specs: Sequence[PortraitSpec]) -> Tensor:
    """Share of attributes that the AttributeReader reads as asked, per picture [n]."""
    right = networks().reader.correct(pictures, list(specs))
    return torch.stack([hits.double() for hits in right.values()]).mean(0)


def inflation(table: np.ndarray) -> float:
    """Standard error by prompt over standard error by picture, of outcomes [prompts, copies]."""
    by_prompt = table.mean(1).std(ddof=1) / len(table) ** 0.5
    return float(by_prompt / (table.std(ddof=1) / table.size**0.5))


def wins_unit(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray | float]:
    """Guidance 3 against 2: mean outcome per prompt (1 won, 0.5 tie, 0 lost), and what counting pictures hides."""
    asked = sample_specs(sizes.prompts, seed=9999, **LAW)  # the same prompts in every seed
    judged = [spec for spec in asked for _ in range(sizes.copies)]
    strong, weak = (share_right(painted(asked, seed, sizes, scale, sizes.copies), judged) for scale in (3.0, 2.0))
    table = np.asarray(outcomes(candidate=strong, baseline=weak)).reshape(-1, sizes.copies)
    return {"won": table.mean(1), "inflation": inflation(table)}


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray | float]:
    """One kind of fakes, or one of the three experiments."""
    units = {"ranking": ranking_unit, "toy": toy_unit, "wins": wins_unit}
    return units[arm](seed, sizes) if arm in units else kind_unit(arm, seed, sizes)


# ---- claims --------------------------------------------------------------------------------------------------------


def estimate_fall_between(metric: str, arm: str, few: int, many: int) -> Contrast:
    """metric at `many` pictures minus metric at `few`."""
    return lambda recorded: recorded.values(f"{metric}@{many}", arm) - recorded.values(f"{metric}@{few}", arm)


def estimate_inflation(recorded: Recorded) -> np.ndarray:
    """Ratio of the standard errors, without the seeds in which every picture tied: neither error exists there."""
    ratios = recorded.values("inflation", "wins")
    return ratios[np.isfinite(ratios).all(1)]


def estimate_rise_in_variety_test(recorded: Recorded) -> np.ndarray:
    """By how much CMMD with the narrower kernel rises when the variety is halved, as a share of its mean between
    renders; [seeds, 1]."""
    same, alike = (recorded.values(metric, "median_kernel").mean(1, keepdims=True) for metric in ("same", "alike"))
    return alike / same - 1


def estimate_coverage_falls_more(recorded: Recorded) -> np.ndarray:
    """Change of recall minus change of coverage when the mode is missing: above 0 if coverage falls more."""
    return gain("recall5@128", "no_mode", "same")(recorded) - gain("coverage5@128", "no_mode", "same")(recorded)


ESTIMATES = {
    "bias_falls": level("slope", "same"),
    "floor_hides": level("shift@64", "ranking"),
    "equal_numbers": level("alike@64", "ranking"),
    "infinity_ranks": level("alike.infinity", "ranking"),
    "null_is_level": level("null@32", "same"),
    "null_sees_model": level("null@32", "model"),
    "jpeg": gain("fd@128", "jpeg75", "same"),
    "aliasing": gain("fd@128", "aliased", "antialiased"),
    "recall_sees_lost_mode": gain("recall5@128", "no_mode", "same"),
    "precision_sees_junk": gain("precision5@128", "junk", "same"),
    "coverage_beats_recall": estimate_coverage_falls_more,
    "outlier_fools_both": level("least", "toy"),
    "coverage_resists": level("coverage", "toy"),
    "noise_is_imprecise": level("precision3@256", "noise"),
    "noise_needs_reals": estimate_fall_between("precision3", "noise", 256, 1600),
    "cmmd_sees_variety": gain("cmmd@128", "alike", "same"),
    "clusters_matter": estimate_inflation,
    "median_kernel_sees": estimate_rise_in_variety_test,
    "null_sees_model_at_128": level("model", "many_pictures"),
}

LATER = dict.fromkeys(("median_kernel", "many_pictures"), "labkit.studies.l02_controls")

_NS = (32, 64, 128, 256, 600, 1600)
TOLERANCE = {
    "": 0.06,  # shares: one of twenty rankings may turn round
    **{f"{name}{sd}@{n}": size for name, size in (("fd", 15.0), ("kid", 3e3)) for sd in ("", ".sd") for n in _NS},
    **{"infinity.perfect": 5.0, "infinity.alike": 5.0, "floor": 0.1, "truth.alike": 0.1, "inflation": 0.3},
}

STUDY = Study(
    lesson="02",
    unit=unit,
    arms=(*KINDS, "ranking", "toy", "wins", *LATER),
    seeds=tuple(range(10)),
    more={"wins": range(10, 150)},
    sizes={
        "renders": 1600, "others": 600, "large": 128, "painted": 128, "ns": list(_NS),
        "rounds": 16, "null_tests": 60, "null_rounds": 39, "rank_ns": [32, 64, 128, 256], "rank_rounds": 20,
        "prompts": 24, "copies": 4, "steps": 8, "guidance": 3.0,
    },
    estimates=ESTIMATES,
    weights=("portrait-sd", "portrait-clip", "attribute-reader"),
    modules=("labkit.metrics.frechet", "labkit.metrics.noise_floor", "labkit.metrics.manifold"),
    tolerance=TOLERANCE,
    cheap="toy",
    covers=("wins", "noise", "jpeg75", "antialiased", "ranking", "median_kernel"),
    later=LATER,
)  # fmt: skip
