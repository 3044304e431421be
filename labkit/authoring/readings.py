"""Numbers in the texts of a lesson that its record has outgrown: intervals, and means without one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.authoring.source import read_source
from labkit.course.manifest import Project

if TYPE_CHECKING:
    from labkit.studies import Estimate, Recorded

_NUMBER = r"[-−+]?(?:\d+\.?\d*|\.\d+)"
_READING = re.compile(rf"(?P<value>{_NUMBER})\$?\s*\$?\[(?P<low>{_NUMBER}),\s*(?P<high>{_NUMBER})\]")
_BARE = re.compile(r"\$\[[-−+]?\d*\.\d+,\s*[-−+]?\d*\.\d+\]\$")  # an interval that nothing can be held against


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
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            for match in _BARE.finditer(_READING.sub(" ", line)):
                lines.append(
                    f"{file.name}:{number}: {match[0].strip('$')} without its value: write the value before it"
                )
    return lines


def unstated(lesson: str, project: Project | None = None, folder: Path | None = None) -> list[str]:
    """Means of `labkit.studies.readings.MEANS` that their text lacks in one of the languages, or has in another order,
    one line each."""
    from labkit.studies import NotRecorded, Recorded, read_record
    from labkit.studies.readings import MEANS

    wanted = MEANS.get(lesson, {})
    recorded = Recorded(read_record(lesson, folder)) if wanted else None
    lines = []
    for file in sorted((project or Project()).sources.glob(f"{lesson}_*.py")) if wanted else ():
        pairs = read_source(file).pairs
        for uid, numbers in wanted.items():
            if uid not in pairs:
                lines.append(f"{file.name}: no text {uid}, of which {lesson}'s MEANS speak")
            for metric, decimals, arms in ((*key, row) for key, rows in numbers.items() for row in rows.split(";")):
                try:
                    means = {arm: _mean(recorded, metric, arm) for arm in arms.split()}
                except NotRecorded:
                    continue
                for lang, cell in pairs.get(uid, {}).items():
                    if arm := _not_stated(means, decimals, cell.source):
                        after = " (after those before it)" * (arm != next(iter(means)))
                        said = f"{uid} ({lang}) does not state {metric} of {arm}, {means[arm]:.4g}{after}"
                        lines.append(f"{file.name}:{cell.line}: {said}")
    return lines


def _mean(recorded: Recorded, metric: str, arm: str) -> float:
    """The mean that an entry of MEANS names."""
    from labkit.studies.estimate import gain

    if "-" in arm:
        return float(gain(metric, *arm.split("-"))(recorded).mean())
    one, _, other = arm.partition("/")
    seeds = recorded.seeds(one, other) if other else None
    return float(recorded.values(metric, one, seeds=seeds).mean())


def _not_stated(means: Mapping[str, float], decimals: int | str, text: str) -> str:
    """The first of these means that no number of the text, outside of intervals and after those of the means before it,
    gives to rounding with just so many decimals; "" if all are there."""
    unit, places = (100, 0) if decimals == "%" else (1, int(decimals))
    written = iter(match[0].replace("−", "-") for match in re.finditer(_NUMBER, _READING.sub(" ", text)))
    for arm, mean in means.items():
        for number in written:
            if len(number.partition(".")[2]) == places and abs(float(number) - unit * mean) <= 0.5001 * 10.0**-places:
                break
        else:
            return arm
    return ""


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
