"""Reads claims.yaml: what a lesson expects, written down before the run (the format is in `labkit.course.claims`)."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from labkit.course.i18n import t
from labkit.course.lesson_files import YamlList, full_id, lesson_files, read_list
from labkit.course.manifest import TIERS, Project

DIRECTIONS = {  # direction -> (needed fields, optional fields)
    "increase": ((), ("threshold",)),
    "decrease": ((), ("threshold",)),
    "equal": (("value", "tolerance"), ()),
    "band": (("lo", "hi"), ()),
}


@dataclass(frozen=True)
class Region:
    """The part of the real line where a claim expects its value; strict at a one-sided border, closed for bands."""

    lo: float = -math.inf
    hi: float = math.inf

    def holds(self, low: float, high: float) -> bool:
        """The interval [low, high] lies inside; False for NaN."""
        if math.isinf(self.hi):
            return self.lo < low <= high
        if math.isinf(self.lo):
            return low <= high < self.hi
        return self.lo <= low and high <= self.hi

    def text(self) -> str:
        """'above 0', 'below 1', 'between 0.2 and 0.6', in the current language."""
        key = "claim.above" if math.isinf(self.hi) else "claim.below" if math.isinf(self.lo) else "claim.between"
        return t(key, lo=f"{self.lo:.4g}", hi=f"{self.hi:.4g}")


@dataclass(frozen=True)
class Claim:
    """One declaration of claims.yaml."""

    id: str
    lesson: str
    paper: str | dict[str, str]
    place: dict[str, str]
    statement: dict[str, str]
    region: Region
    testable: tuple[str, ...] = TIERS
    gated: tuple[str, ...] = ()
    band: dict[str, tuple[float, float]] = field(default_factory=dict)
    digest: str = ""


def declared(number: int | str, project: Project | None = None) -> dict[str, Claim]:
    """The claims a lesson declares, by full id. Raises CourseError with file and line for a bad declaration."""
    files = lesson_files(number, project)
    required, optional = ("id", "paper", "place", "statement", "expected"), ("testable", "gated", "band")
    found = read_list(files.folder / "claims.yaml", required=required, optional=optional)
    claims = {}
    for index, entry in enumerate(found.items):
        for name in ("statement", "place", *(["paper"] if isinstance(entry["paper"], dict) else [])):
            found.bilingual(index, entry[name], name)
        testable = _tiers(found, index, "testable", TIERS)
        gated = _tiers(found, index, "gated", ())
        if not set(gated) <= set(testable):
            raise found.error(
                index, f"gated on {', '.join(gated)} but testable on {', '.join(testable)}; gate testable tiers only"
            )
        band = entry.get("band") or {}
        for tier, pair in band.items() if isinstance(band, dict) else [("band", None)]:
            if (
                tier not in gated
                or not isinstance(pair, list)
                or len(pair) != 2
                or not _number(*pair)
                or pair[0] > pair[1]
            ):
                raise found.error(index, "band: expected {gated tier: [lo, hi]} with lo <= hi, e.g. {cpu: [0.2, 0.6]}")
        id = full_id(files.number, entry["id"])
        digest = hashlib.sha256(json.dumps(entry, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
        claims[id] = Claim(
            id=id,
            lesson=files.number,
            paper=entry["paper"],
            place=entry["place"],
            statement=entry["statement"],
            region=_region(found, index),
            testable=testable,
            gated=gated,
            band={tier: (float(lo), float(hi)) for tier, (lo, hi) in band.items()},
            digest=digest,
        )
    return claims


def _number(*values: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def _tiers(found: YamlList, index: int, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    tiers = found.items[index].get(name, default)
    if not isinstance(tiers, list | tuple) or not set(tiers) <= set(TIERS):
        raise found.error(index, f"{name}: expected a list of tiers from {', '.join(TIERS)}, found {tiers!r:.60}")
    return tuple(tiers)


def _region(found: YamlList, index: int) -> Region:
    expected = found.items[index]["expected"]
    direction = expected.get("direction") if isinstance(expected, dict) else None
    if direction not in DIRECTIONS:
        raise found.error(index, f"expected: needs a direction, one of {', '.join(DIRECTIONS)}, found {expected!r:.60}")
    needed, optional = DIRECTIONS[direction]
    given = {name: value for name, value in expected.items() if name != "direction"}
    if not set(needed) <= set(given) <= {*needed, *optional} or not _number(*given.values()):
        fields = ", ".join((*needed, *(f"{name} (optional)" for name in optional)))
        raise found.error(index, f"expected, {direction}: the fields are {fields}, all numbers; found {given!r:.60}")
    if direction == "increase":
        return Region(lo=float(given.get("threshold", 0.0)))
    if direction == "decrease":
        return Region(hi=float(given.get("threshold", 0.0)))
    lo, hi = (
        (given["lo"], given["hi"])
        if direction == "band"
        else (given["value"] - given["tolerance"], given["value"] + given["tolerance"])
    )
    if lo > hi:
        raise found.error(index, f"expected, {direction}: the lower end {lo} lies above the upper end {hi}; swap them")
    return Region(float(lo), float(hi))
