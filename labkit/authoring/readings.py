"""Numbers in the texts of a lesson that its record has outgrown: intervals, and means without one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.authoring.source import read_source
from labkit.course.manifest import Project

if TYPE_CHECKING:
    from labkit.studies import Estimate

_NUMBER = r"[-−+]?(?:\d+\.?\d*|\.\d+)"
_READING = re.compile(rf"(?P<value>{_NUMBER})\$?\s*\$?\[(?P<low>{_NUMBER}),\s*(?P<high>{_NUMBER})\]")


def readings(text: str) -> Iterator[tuple[int, str, tuple[float, float, float], int]]:
    """Every "value [low, high]" of a text: line number, as written, the three numbers, and the decimals of the bounds.

    Formulas may stand between: "$+.091$ $[.068, .114]$". Three numbers whose value lies outside are no interval.
    """
    for number, line in enumerate(text.splitlines(), 1):
        for match in _READING.finditer(line):
            written = match.group("value", "low", "high")
            value, low, high = (float(one.replace("−", "-")) for one in written)
            if low <= value <= high:
                decimals = max(len(one.partition(".")[2]) for one in written[1:])
                yield number, match[0].replace("$", ""), (value, low, high), decimals


def outgrown(lesson: str, project: Project | None = None, folder: Path | None = None) -> list[str]:
    """Intervals in the texts of a lesson that no estimate of its study gives, one line each: the record has grown since
    they were written, or they never were in it. Compared to rounding, as a share or in per cent, in either direction of
    the difference."""
    from labkit.studies import NotRecorded, Recorded, estimate, load_study, read_record
    from labkit.studies.readings import READINGS

    recorded = Recorded(read_record(lesson, folder))
    known: dict[str, Estimate] = {}
    for name, contrast in {**load_study(lesson).estimates, **READINGS.get(lesson, {})}.items():
        try:
            known[name] = estimate(contrast(recorded))
        except NotRecorded:
            continue
    lines = []
    for file in _texts(lesson, project or Project()):
        for number, written, numbers, decimals in readings(file.read_text("utf-8")):
            if not any(_says(numbers, decimals, one) for one in known.values()):
                lines.append(
                    f"{file.name}:{number}: no estimate of study {lesson} is {written}{_nearest(numbers, known)}"
                )
    return lines


def unstated(lesson: str, project: Project | None = None, folder: Path | None = None) -> list[str]:
    """Means of `labkit.studies.readings.MEANS` that their text lacks in one of the languages, one line each."""
    from labkit.studies import NotRecorded, Recorded, read_record
    from labkit.studies.estimate import gain, level
    from labkit.studies.readings import MEANS

    wanted = MEANS.get(lesson, {})
    recorded = Recorded(read_record(lesson, folder)) if wanted else None
    lines = []
    for file in sorted((project or Project()).sources.glob(f"{lesson}_*.py")) if wanted else ():
        pairs = read_source(file).pairs
        for uid, numbers in wanted.items():
            if uid not in pairs:
                lines.append(f"{file.name}: no text {uid}, of which {lesson}'s MEANS speak")
            for (metric, decimals), arms in numbers.items():
                for arm in arms.split():
                    one, _, other = arm.partition("-")
                    try:
                        contrast = gain(metric, one, other) if other else level(metric, one)
                        mean = float(contrast(recorded).mean())
                    except NotRecorded:
                        continue
                    for lang, cell in pairs.get(uid, {}).items():
                        if not _stated(mean, decimals, cell.source):
                            lines.append(
                                f"{file.name}:{cell.line}: {uid} ({lang}) does not state {metric} of {arm}, {mean:.4g}"
                            )
    return lines


def _stated(mean: float, decimals: int | str, text: str) -> bool:
    """Whether a number of the text outside of intervals, with just so many decimals, is this one to rounding."""
    value, places = (100 * mean, 0) if decimals == "%" else (mean, int(decimals))
    for match in re.finditer(_NUMBER, _READING.sub(" ", text)):
        written = match[0].replace("−", "-")
        if len(written.partition(".")[2]) == places and abs(float(written) - value) <= 0.5001 * 10.0**-places:
            return True
    return False


def _says(numbers: tuple[float, float, float], decimals: int, found: Estimate) -> bool:
    """Whether these numbers are the estimate's, as a share or in per cent, or those of the difference taken the other
    way round."""
    off = 0.5001 * 10.0**-decimals
    ways = ((found.value, found.low, found.high), (-found.value, -found.high, -found.low))
    return any(
        all(abs(a - unit * b) <= off for a, b in zip(numbers, way, strict=True)) for way in ways for unit in (1, 100)
    )


def _nearest(numbers: tuple[float, float, float], known: Mapping[str, Estimate]) -> str:
    """' (nearest: tune_share 0.091 [0.068, 0.114])', to find out which one it was."""
    if not known:
        return ""

    def apart(name: str) -> float:
        found, (value, low, high) = known[name], numbers
        return min(
            abs(sign * found.value - value) + abs(abs(found.high - found.low) - (high - low)) for sign in (1, -1)
        )

    name = min(known, key=apart)
    found = known[name]
    return f" (nearest: {name} {found.value:.4g} [{found.low:.4g}, {found.high:.4g}])"


def _texts(lesson: str, project: Project) -> list[Path]:
    """The source of a lesson and its catalogues."""
    return [
        *sorted(project.sources.glob(f"{lesson}_*.py")),
        *sorted((project.lessons / f"l{lesson}").glob("*.yaml")),
    ]
