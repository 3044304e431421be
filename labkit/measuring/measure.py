"""`measure`: the metrics for two sides, each with floor, spread and N, and one of four conclusions.

A number without these three says nothing: the same generator reads 2,000 or 60 depending on N alone. Conclusions are
the most that the numbers carry:

    "different"     the two laws differ: p <= 0.05 in a permutation test, or more than two standard errors from nothing
    "no difference" none was seen at this N; it is no proof that there is none
    "reference"     to be read against the same number of the reals, which stands beside it
    "unknown"       the files do not say from how many pictures they were made: no floor
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from scipy.stats import beta
from torch import Tensor

from labkit.density import PseudoDensity
from labkit.images import Range
from labkit.measuring.sources import MeasureError, Source, read_source
from labkit.metrics import (
    cmmd,
    frechet_distance,
    frechet_null,
    kernel_distance,
    manifold_metrics,
    nearest_neighbours,
    vendi_score,
    wilson_interval,
)
from labkit.metrics.checks import exact_copies, whole_number
from labkit.metrics.extractors import Extractor, clip_extractor, inception_extractor, reader_extractor

METRICS = ("fid", "kid", "prdc", "cmmd", "density", "vendi")
DEFAULT = ("fid", "kid", "prdc", "vendi")
GROUPS = 8  # of the delete-a-group jackknife
LONG = 50_000_000  # features of both sides together from which the permutation test takes minutes
NEAR = 0.05  # share of reals whose nearest other real is nearer than "suspiciously near"


@dataclass(frozen=True)
class Reading:
    """One number.

    Attributes:
        name: "fid", "kid", "precision", ... value: the number.
        spread: its standard error. floor: what it reads without a difference at this N, or what the reals read
            ("reference"). Both None where unknown.
        conclusion: "different", "no difference", "reference" or "unknown". p_value: of the permutation test.
        n_real, n_fake: pictures behind it (None: unknown).
    """

    name: str
    value: float
    spread: float | None
    floor: float | None
    conclusion: str
    n_real: int | None
    n_fake: int | None
    p_value: float | None = None


@dataclass(frozen=True)
class Copies:
    """Are fakes nearer to reals than reals are to each other?

    Attributes:
        near: share of fakes whose nearest real is nearer than 95% of reals are to their nearest other real (0.05 for a
            law without memory). low: its 95% lower bound. exact: fakes on top of a real.
        suspicious: `low` above twice what chance gives, and above what it can give with so few reals; or any exact
            copy.
        pairs: (index of fake, index of real, distance / median distance among reals), the nearest first.
    """

    near: float
    low: float
    exact: int
    suspicious: bool
    pairs: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Measurement:
    """What `measure` returns: readings, copies (None without features), and warnings (keys of texts, with numbers)."""

    real: str
    fake: str
    extractor: str
    n_real: int | None
    n_fake: int | None
    readings: tuple[Reading, ...]
    copies: Copies | None
    warnings: tuple[tuple[str, dict], ...] = ()
    sides: tuple[Source, Source] | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Reading:
        for reading in self.readings:
            if reading.name == name:
                return reading
        raise MeasureError(f"{name!r} was not measured: expected one of {', '.join(r.name for r in self.readings)}")

    def as_json(self) -> str:
        """All numbers as JSON text."""
        content = {key: value for key, value in vars(self).items() if key not in ("sides", "readings", "copies")}
        content["readings"] = [asdict(reading) for reading in self.readings]
        content["copies"] = None if self.copies is None else asdict(self.copies)
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def measure(
    *,
    real: object,
    fake: object,
    metrics: Sequence[str] = DEFAULT,
    extractor: Extractor | str = "reader",
    weights: str | None = None,
    layer: str = "pool3",
    clip: object = None,
    fit: str | None = None,
    k: int = 5,
    rounds: int = 39,
    seed: int = 0,
    batch_size: int = 64,
    value_range: Range | None = None,
    skip: bool = False,
    say: Callable[[str, dict], object] = lambda key, numbers: None,
) -> Measurement:
    """Measure fakes against reals.

    Args:
        real, fake: see `labkit.measuring.read_source`.
        metrics: some of "fid", "kid", "prdc", "cmmd", "density" (pseudo density of the fakes), "vendi".
        extractor: "reader" (the course's, for portraits), "clip", "inception", or an Extractor.
        weights: of "inception": .pth or .safetensors. layer: see `inception_extractor`.
        clip: folder of a CLIP, or what `load_clip` returned, for "clip" and CMMD; None: the course's PortraitCLIP.
        fit: "squash", "crop" or "clip", how pictures that are not square become square; None: the extractor's.
        k: neighbours of precision, recall, density, coverage. rounds: permutations of the test of FID, at least 19:
            p >= 1 / (1 + rounds), and 0.05 decides. seed: of everything random.
        value_range: of float pictures. skip: leave unreadable files out and name them.
        say: called with (key of a text, its numbers) as the work goes on: "read" {side, n, of}, "testing" {rounds}.

    Raises:
        MeasureError, ImageError: one line.
    """
    _check_settings(extractor, weights, layer, value_range)
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        raise MeasureError(f"unknown metric {(unknown or ['none'])[0]!r}: expected some of {', '.join(METRICS)}")
    if "fid" in metrics and whole_number("rounds", rounds) < 19:
        raise MeasureError(f"{rounds} permutations can never give p <= 0.05, whatever differs: use at least 19 rounds")
    sides = tuple(
        read_source(side, skip=skip, value_range=value_range, name="" if isinstance(side, str) else name)
        for name, side in (("real", real), ("fake", fake))
    )
    clip_tools = _clip_tools(clip) if any(s.has_pictures for s in sides) else None
    chosen = _extractor(extractor, weights, layer, clip_tools, fit) if any(s.has_pictures for s in sides) else None
    warnings: list[tuple[str, dict]] = []
    tables = [_features(side, chosen, batch_size, value_range, say) for side in sides]
    work = sum(table.numel() for table in tables if isinstance(table, Tensor))
    if "fid" in metrics and work >= LONG:
        say("testing", {"rounds": rounds})
    readings: list[Reading] = []
    k, generator = whole_number("k", k), torch.Generator().manual_seed(seed)
    if "fid" in metrics:
        readings.append(_fid(tables, rounds, generator, warnings))
    rows = [table for table in tables if isinstance(table, Tensor)]
    copies = None
    if len(rows) == 2:
        if rows[0].shape[1] != rows[1].shape[1]:
            raise MeasureError(f"the sides have {rows[0].shape[1]} and {rows[1].shape[1]} features: use one extractor")
        warnings += _warnings(sides, rows, k, None if chosen is None else chosen.pipeline.fit)
        if "kid" in metrics:
            readings.append(_kid(*rows))
        if "prdc" in metrics:
            readings += _prdc(*rows, k, generator)
        if "density" in metrics:
            readings += _density(*rows)
        if "vendi" in metrics:
            readings.append(_vendi(*rows, generator))
        copies = _copies(*rows)
        if "cmmd" in metrics:
            readings.append(_cmmd(sides, rows, chosen, clip_tools, batch_size, value_range, fit))
    elif set(metrics) - {"fid"}:
        if set(metrics) != set(DEFAULT):
            lost = ", ".join(m for m in metrics if m != "fid")
            raise MeasureError(f"{lost} cannot be computed from means and covariances: give pictures or features")
        warnings.append(("statistics only", {}))
    name = "features" if chosen is None else chosen.name
    if chosen is not None and name.startswith("attribute-reader"):
        warnings.append(("reader", {}))
    if chosen is not None and clip_tools is None:
        if extractor == "clip" or ("cmmd" in metrics and not chosen.name.startswith("clip-")):
            warnings.append(("portrait clip", {}))
    counts = [len(table) if isinstance(table, Tensor) else table.n for table in tables]
    return Measurement(sides[0].name, sides[1].name, name, *counts, tuple(readings), copies, tuple(warnings), sides)


def _check_settings(extractor, weights, layer, value_range) -> None:
    """Refuse what would be passed over in silence, before anything is read."""
    if extractor != "inception":
        for name, given in (("weights", weights is not None), ("layer", layer != "pool3")):
            if given:
                raise MeasureError(f'{name} is a setting of the extractor "inception", not of {extractor!r}: choose it')
    if value_range is not None and not value_range[0] < value_range[1]:
        raise MeasureError(f"value_range is {tuple(value_range)}, expected (low, high) with low < high")


def _clip_tools(clip: object) -> object:
    if isinstance(clip, str) or hasattr(clip, "__fspath__"):
        from labkit.models import load_clip

        return load_clip("cpu", folder=clip)
    return clip


def _extractor(extractor, weights, layer, clip, fit) -> Extractor:
    if isinstance(extractor, Extractor):
        return extractor.fitting(fit) if fit else extractor
    if extractor == "inception":
        chosen = inception_extractor(weights, layer=layer)
    elif extractor == "clip":
        chosen = clip_extractor("cpu", clip=clip).fitting("clip")
    elif extractor == "reader":
        chosen = reader_extractor()
    else:
        raise MeasureError(f"unknown extractor {extractor!r}: expected reader, clip or inception")
    return chosen.fitting(fit) if fit else chosen


def _features(
    side: Source,
    extractor: Extractor | None,
    batch_size: int,
    value_range: Range | None,
    say: Callable[[str, dict], object] = lambda key, numbers: None,
):
    """Features [N, d], or the statistics where there are only these."""
    if side.stats is not None:
        return side.stats
    if side.features is not None:
        return side.features
    parts = []
    for batch in side.batches(batch_size):
        parts.append(extractor(batch, value_range=value_range))
        if side.folder is not None:
            say("read", {"side": side.name, "n": sum(side.shapes.values()), "of": len(side.folder)})
    if not parts or sum(map(len, parts)) < 2:
        raise MeasureError(f"{side.name} has {sum(map(len, parts))} pictures: at least 2 are needed, better hundreds")
    return torch.cat(parts)


def _warnings(sides: Sequence[Source], rows: Sequence[Tensor], k: int, fit: str | None) -> list[tuple[str, dict]]:
    found: list[tuple[str, dict]] = []
    (n, d), m = rows[0].shape, len(rows[1])
    if rows[0].shape == rows[1].shape and torch.equal(*rows):
        found.append(("same", {"n": n}))
    for side, table in zip(sides, rows, strict=True):
        if side.unreadable:
            found.append(("unreadable", {"side": side.name, "n": len(side.unreadable)}))
        if copies := exact_copies(table):
            found.append(("duplicates", {"side": side.name, "n": copies, "of": len(table)}))
    if n != m:
        found.append(("counts", {"n": n, "m": m}))
    if min(n, m) <= d:
        found.append(("few", {"n": min(n, m), "d": d}))
    kinds = [side.kinds() for side in sides]
    if all(kinds) and (".jpg" in kinds[0]) != (".jpg" in kinds[1]):
        found.append(("formats", {"real": ", ".join(sorted(kinds[0])), "fake": ", ".join(sorted(kinds[1]))}))
    if all(side.shapes for side in sides) and set(sides[0].shapes) != set(sides[1].shapes):
        found.append(("sizes", dict(zip(("real", "fake"), map(_sizes, sides), strict=True))))
    for side in sides:
        oblong = sum(count for (height, width), count in side.shapes.items() if height != width)
        if oblong and fit == "squash":
            found.append(("squashed", {"side": side.name, "n": oblong, "of": len(side.folder or ())}))
    return found


def _sizes(side: Source) -> str:
    """ "64 x 48" in pixels, width first; the most frequent, and how many others there are."""
    (height, width), _ = side.shapes.most_common(1)[0]
    more = f" (+{len(side.shapes) - 1})" if len(side.shapes) > 1 else ""
    return f"{width} x {height}{more}"


def jackknife(value: Callable[[Tensor, Tensor], float], real: Tensor, fake: Tensor, groups: int = GROUPS) -> float:
    """Standard error by leaving out one of `groups` parts of both sides at a time (delete-a-group jackknife)."""
    groups = min(groups, len(real), len(fake))
    parts = [torch.arange(len(x)) % groups for x in (real, fake)]
    left = torch.tensor([value(real[parts[0] != g], fake[parts[1] != g]) for g in range(groups)], dtype=torch.float64)
    return float(((groups - 1) * left.var(correction=0)).sqrt())


def _fid(tables: Sequence, rounds: int, generator: torch.Generator, warnings: list) -> Reading:
    result = frechet_distance(real=tables[0], fake=tables[1])
    counts = (result.n_real, result.n_fake)
    if not all(isinstance(table, Tensor) for table in tables):
        if result.noise_floor is None:
            return Reading("fid", result.value, None, None, "unknown", *counts)
        verdict = "different" if result.value > 2 * result.noise_floor else "unknown"  # no pictures, no test
        return Reading("fid", result.value, None, result.noise_floor, verdict, *counts)
    real, fake = tables
    null, p = frechet_null(real=real, fake=fake, rounds=rounds, generator=generator)
    if min(len(real), len(fake)) >= 2 * GROUPS:
        spread = jackknife(lambda x, y: frechet_distance(real=x, fake=y, floor=False).value, real, fake)
    else:
        spread = None
    verdict = "different" if p <= 0.05 else "no difference"
    return Reading("fid", result.value, spread, float(null.mean()), verdict, *counts, p)


def _kid(real: Tensor, fake: Tensor) -> Reading:
    result = kernel_distance(real=real, fake=fake)
    error = result.standard_error
    verdict = "unknown" if error is None else "different" if result.value > 2 * error else "no difference"
    return Reading("kid", result.value, error, 0.0, verdict, len(real), len(fake))


def _prdc(real: Tensor, fake: Tensor, k: int, generator: torch.Generator) -> list[Reading]:
    """The four numbers; the floor is what one half of the reals reads against the other half."""
    n, m = len(real), len(fake)
    if min(n, m) <= k:
        raise MeasureError(f"{min(n, m)} pictures for k = {k} neighbours: lower k or add pictures")
    numbers = manifold_metrics(real=real, fake=fake, k=k).as_dict()
    floor: dict[str, float] = {}
    if n // 2 > k:
        order = torch.randperm(n, generator=generator)
        floor = manifold_metrics(real=real[order[: n // 2]], fake=real[order[n // 2 :]], k=k).as_dict()
    readings = []
    for name, value in numbers.items():
        count = n if name in ("recall", "coverage") else m
        spread = None
        if name != "density":
            low, high = wilson_interval(round(value * count), count)
            spread = (high - low) / 3.92
        verdict = "reference" if name in floor else "unknown"  # too few reals to read one half against the other
        readings.append(Reading(name, value, spread, floor.get(name), verdict, n, m))
    return readings


def _density(real: Tensor, fake: Tensor) -> list[Reading]:
    """Mean pseudo density of the fakes (reals: 1), and the share of them that is rarer than 95% of the reals."""
    k = min(10, len(real) - 1)
    density = PseudoDensity(k=k).fit(real)
    rho = density.score(fake)
    error = float(rho.std()) / len(rho) ** 0.5
    rare = float((rho < density.threshold(0.05)).double().mean())
    low, high = wilson_interval(round(rare * len(rho)), len(rho))
    counts = (len(real), len(fake))
    return [
        Reading("pseudo density", float(rho.mean()), error, 1.0, "reference", *counts),
        Reading("rare share", rare, (high - low) / 3.92, 0.05, "reference", *counts),
    ]


def _vendi(real: Tensor, fake: Tensor, generator: torch.Generator) -> Reading:
    """Vendi score of the fakes; the floor is that of as many reals. Both grow with N, so N is made equal."""
    n = min(len(real), len(fake))
    picked = [x[torch.randperm(len(x), generator=generator)[:n]] for x in (real, fake)]
    spread = jackknife(lambda _, y: vendi_score(y), *picked) if n >= 2 * GROUPS else None
    return Reading("vendi", vendi_score(picked[1]), spread, vendi_score(picked[0]), "reference", n, n)


def _cmmd(sides, rows, chosen, clip, batch_size, value_range, fit) -> Reading:
    if chosen is None or not all(side.has_pictures for side in sides):
        real, fake = rows  # the caller's own embeddings
    elif chosen.name.startswith("clip-"):
        real, fake = rows
    else:
        embed = clip_extractor("cpu", clip=clip).fitting(fit or "clip")
        real, fake = (_features(side, embed, batch_size, value_range) for side in sides)
    result = cmmd(real=real, fake=fake)
    spread = None
    if min(len(real), len(fake)) >= 2 * GROUPS:
        spread = jackknife(lambda x, y: cmmd(real=x, fake=y).unbiased, real, fake)
    verdict = "unknown" if spread is None else "different" if result.unbiased > 2 * spread else "no difference"
    return Reading("cmmd", result.value, spread, result.bias, verdict, len(real), len(fake))


def _copies(real: Tensor, fake: Tensor, shown: int = 8) -> Copies:
    own = nearest_neighbours(real, 1)[0][:, 0]  # [n_real]
    distance, nearest = (x[:, 0] for x in nearest_neighbours(real, 1, queries=fake))  # [n_fake] each
    typical = float(own.median()) or float(own.max()) or 1.0
    count = int((distance < torch.quantile(own, NEAR)).sum())
    exact = int((distance <= 1e-6 * typical).sum())
    low = wilson_interval(count, len(fake))[0]
    # of few reals, the nearest 5% are nearer than far more than 5% of all pictures of their law: than at most this
    # share, with 95% confidence. Two reals that are nearest to each other are one distance, hence half of them
    half = max(1, len(real) // 2)
    rank = max(1, math.ceil(NEAR * half))
    chance = float(beta.ppf(0.95, rank, half + 1 - rank))
    order = distance.argsort(stable=True)[:shown].tolist()
    pairs = tuple((i, int(nearest[i]), float(distance[i]) / typical) for i in order)
    return Copies(count / len(fake), low, exact, bool(exact or low > max(2 * NEAR, chance)), pairs)
