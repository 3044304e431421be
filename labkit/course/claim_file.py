"""Reads claims.yaml: what a lesson expects, written down before the run (the format is in `labkit.course.claims`)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from labkit.course.i18n import t
from labkit.course.lesson_files import full_id, lesson_files, read_checked
from labkit.course.manifest import TIERS, Project
from labkit.course.schema import Bilingual, Filled, Number, Strict, expected, must, with_different_ids


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


REGIONS: dict[str, Callable[..., Region]] = {  # direction -> region of the numbers beside it
    "increase": lambda threshold=0.0: Region(lo=threshold),
    "decrease": lambda threshold=0.0: Region(hi=threshold),
    "equal": lambda value, tolerance: Region(value - tolerance, value + tolerance),
    "band": lambda lo, hi: Region(lo, hi),
}


def _region(given: Any) -> Region:
    if not isinstance(given, dict) or not isinstance(given.get("direction"), str):
        raise ValueError(f"a direction, one of {', '.join(REGIONS)}, and its numbers: {{direction: increase}}")
    numbers = {name: value for name, value in given.items() if name != "direction"}
    make = REGIONS.get(given.get("direction", ""))
    if make is None:
        raise ValueError(f"a direction, one of {', '.join(REGIONS)}")
    try:
        region = make(**{name: float(value) for name, value in numbers.items()})
    except (TypeError, ValueError):
        raise ValueError(f"beside {given['direction']} the numbers {signature(make)}") from None
    if not all(math.isfinite(float(value)) for value in numbers.values()):
        raise ValueError(f"finite numbers beside {given['direction']}: no value could contradict the claim")
    if region.lo > region.hi:
        raise ValueError(f"a lower end below the upper end, found {region.lo} and {region.hi}; swap them")
    return region


Interval = Annotated[tuple[Number, Number], must(lambda pair: pair[0] <= pair[1], "lo <= hi")]
Tiers = tuple[Literal[TIERS], ...]


class Claim(Strict):
    """One declaration of claims.yaml."""

    id: str
    paper: Filled | Bilingual
    place: Bilingual
    statement: Bilingual
    region: Annotated[Region, BeforeValidator(_region)] = Field(alias="expected")
    smallest: Annotated[Number, must(lambda x: x >= 0, "a number >= 0")] = 0.0
    seen: Annotated[int, must(lambda x: x >= 0, "a number of seeds")] = 0
    setting: Bilingual | None = None
    too_far: Bilingual | None = None
    explored: bool = False
    verdict: Literal["reproduced", "contradicted", "equivalent", "undecided", "too_far"] | None = None
    testable: Tiers = TIERS
    gated: Tiers = ()
    band: dict[Literal[TIERS], Annotated[Interval, expected("[lo, hi] with lo <= hi, e.g. {cpu: [0.2, 0.6]}")]] = {}
    lesson: str = Field("", exclude=True)  # this and the next are no keys of the file
    digest: str = Field("", exclude=True)

    @model_validator(mode="after")
    def _gates_what_is_testable(self) -> Claim:
        if not set(self.band) <= set(self.gated) <= set(self.testable):
            raise ValueError("testable tiers only under gated, and gated tiers only under band")
        return self

    @model_validator(mode="after")
    def _smallest_beside_one_border(self) -> Claim:
        if self.smallest and math.isfinite(self.region.lo) and math.isfinite(self.region.hi):
            raise ValueError("no smallest beside equal or band: the region itself says what does not matter")
        return self


def declared(number: int | str, project: Project | None = None) -> dict[str, Claim]:
    """The claims a lesson declares, by full id. Raises CourseError with file and line for a bad declaration."""
    files = lesson_files(number, project)
    kind = Annotated[list[Claim], AfterValidator(with_different_ids)]
    claims = {}
    for entry in read_checked(files.folder / "claims.yaml", kind) or []:
        id = full_id(files.number, entry["id"])
        digest = hashlib.sha256(json.dumps(entry, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
        claims[id] = Claim(**entry | {"id": id, "lesson": files.number, "digest": digest})
    return claims
