"""Recorded units on disk: `lNN.parquet`, one row per number, and `lNN.json`, the record beside it.

The parquet file is in long form: study, arm, seed, prompt, metric, value (prompt -1 where a unit gives one number). The
record says how the numbers came to be: hash of the code, weights, sizes, and for every unit its digest, versions,
machine, CPU seconds and time. A unit counts only if its record is there and its digest fits: whatever stops the
recorder between the two files loses that unit and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from labkit import __version__
from labkit.files import write_atomically
from labkit.models.checksums import read_checksums
from labkit.models.paths import data_dir
from labkit.studies.study import Study, StudyError

Key = tuple[str, int]  # arm, seed
Values = dict[str, np.ndarray]  # metric -> float32 [prompts], or [1] for a single number

SCHEMA = pa.schema(
    [
        ("study", pa.dictionary(pa.int8(), pa.string())),
        ("arm", pa.dictionary(pa.int8(), pa.string())),
        ("seed", pa.int32()),
        ("prompt", pa.int32()),
        ("metric", pa.dictionary(pa.int16(), pa.string())),
        ("value", pa.float32()),
    ]
)


def folder_of_studies() -> Path:
    """Where recorded studies are: `studies` in the data folder."""
    return data_dir() / "studies"


def conditions(study: Study) -> dict[str, Any]:
    """What all units of a record share: hash of the code, of the weights, and the sizes."""
    return {"code": study.code(), "weights": weights_of(study), "sizes": json.loads(json.dumps(study.sizes))}


def weights_of(study: Study) -> dict[str, str]:
    """Model -> hash of its files, as checksums.json lists them."""
    table = read_checksums()
    weights = {}
    for model in study.weights:
        files = {name: digest for name, digest in table.items() if name.startswith(f"{model}/")}
        files = {name: digest for name, digest in files.items() if not name.endswith((".md", ".png"))}
        if not files:
            raise StudyError(
                f"study {study.lesson} uses {model}, which checksums.json does not list: restore the data folder"
            )
        weights[model] = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return weights


def digest(values: Values) -> str:
    """Hash of a unit's numbers."""
    made = hashlib.sha256()
    for metric in sorted(values):
        made.update(f"{metric}\0{len(values[metric])}\0".encode() + np.ascontiguousarray(values[metric]).tobytes())
    return made.hexdigest()[:16]


@dataclass
class Record:
    """A study's file pair in memory: conditions shared by all units, units' facts, units' values."""

    lesson: str
    conditions: dict[str, Any] = field(default_factory=dict)
    facts: dict[Key, dict[str, Any]] = field(default_factory=dict)
    values: dict[Key, Values] = field(default_factory=dict)
    damaged: list[Key] = field(default_factory=list)  # recorded, but the numbers are not those that were written
    adopted: list[dict[str, Any]] = field(
        default_factory=list
    )  # changes of the code that left the numbers as they were

    def seconds(self) -> float:
        """CPU seconds of all units."""
        return sum(fact["cpu_seconds"] for fact in self.facts.values())

    def seconds_per_seed(self, arms: Iterable[str]) -> float:
        """CPU seconds of one seed of these arms, as the recorded units took on average."""
        total = 0.0
        for arm in arms:
            times = [fact["cpu_seconds"] for (name, _), fact in self.facts.items() if name == arm]
            total += sum(times) / max(1, len(times))
        return total


def read_record(lesson: str, folder: Path | None = None) -> Record:
    """What is recorded; empty if nothing is.

    Raises:
        StudyError: a file that cannot be read.
    """
    folder = folder_of_studies() if folder is None else folder
    table_file, record_file = folder / f"l{lesson}.parquet", folder / f"l{lesson}.json"
    if not record_file.exists() and table_file.exists():
        raise _half(record_file, table_file)
    if not record_file.exists():
        return Record(lesson)
    try:
        data = json.loads(record_file.read_text("utf-8"))
        facts = {(fact["arm"], int(fact["seed"])): fact for fact in data["units"]}
        if data["lesson"] != lesson or len(facts) != len(data["units"]):
            raise ValueError("another lesson's, or a unit twice")
        for (arm, seed), fact in facts.items():
            if fact["seed"] != seed or not isinstance(fact["digest"], str) or not 0 <= fact["cpu_seconds"] < math.inf:
                raise ValueError(f"the facts of unit {arm}/{seed}")
        shared = {key: data[key] for key in ("code", "weights", "sizes")}
        adopted = data.get("adopted", [])
        if not (isinstance(shared["weights"], dict) and isinstance(adopted, list)):
            raise ValueError("weights or adopted")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{record_file.name} cannot be read ({error}): restore it, or move both files away to record anew"
        ) from None
    if facts and not table_file.exists():
        raise _half(table_file, record_file)
    try:
        values = _from_table(pq.read_table(table_file)) if facts else {}
    except PermissionError:
        raise StudyError(f"{table_file} cannot be read: this user may not") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        line = str(error).splitlines()[0]
        raise StudyError(
            f"{table_file.name} is damaged ({line}): restore it, or move both files away to record anew"
        ) from None
    damaged = [key for key, fact in facts.items() if digest(values.get(key, {})) != fact["digest"]]
    whole = {key: fact for key, fact in facts.items() if key not in damaged}
    return Record(lesson, shared, whole, {key: values[key] for key in whole}, damaged, adopted)


def _half(missing: Path, other: Path) -> StudyError:
    return StudyError(
        f"{missing.name} is missing beside {other.name} in {other.parent}: restore it, "
        f"or move {other.name} away to record anew"
    )


def write_record(record: Record, folder: Path | None = None) -> None:
    """Write both files, numbers first; before the very first numbers a list of no units, so that a stop between the two
    files never leaves numbers alone."""
    folder = folder_of_studies() if folder is None else folder
    if record.facts and not (folder / f"l{record.lesson}.json").exists():
        write_record(replace(record, facts={}, values={}), folder)
    table, path = _to_table(record), folder / f"l{record.lesson}.parquet"
    units = [record.facts[key] for key in sorted(record.facts)]
    content = {"lesson": record.lesson, **record.conditions, "adopted": record.adopted, "units": units}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    try:
        if record.facts:
            write_atomically(path, lambda p: pq.write_table(table, p, compression="zstd"))
        write_atomically(path.with_suffix(".json"), text + "\n")
    except OSError as error:
        raise StudyError(
            f"{path} cannot be written ({error.strerror or error}): make room, or name another --folder; what was "
            "recorded before stays"
        ) from None


def _to_table(record: Record) -> pa.Table:
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for (arm, seed), values in sorted(record.values.items()):
        for metric, numbers in sorted(values.items()):
            n = len(numbers)
            columns["study"] += [f"l{record.lesson}"] * n
            columns["arm"] += [arm] * n
            columns["seed"] += [seed] * n
            columns["prompt"] += [-1] if n == 1 else list(range(n))
            columns["metric"] += [metric] * n
            columns["value"] += [float(v) for v in numbers]
    return pa.table(columns, schema=SCHEMA)


def _from_table(table: pa.Table) -> dict[Key, Values]:
    columns = {name: table[name].to_pylist() for name in ("arm", "seed", "metric", "value")}
    found: dict[Key, dict[str, list[float]]] = {}
    for arm, seed, metric, value in zip(*columns.values(), strict=True):
        found.setdefault((arm, seed), {}).setdefault(metric, []).append(value)
    return {key: {m: np.array(v, dtype=np.float32) for m, v in values.items()} for key, values in found.items()}


def facts(arm: str, seed: int, values: Values, seconds: float) -> dict[str, Any]:
    """What is written about one unit; "bfloat16": whether trainings that leave their precision open had it."""
    import torch

    from labkit.diffusion import native_bfloat16

    return {
        "arm": arm,
        "seed": seed,
        "digest": digest(values),
        "cpu_seconds": round(seconds, 1),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "device": "cpu",
        "bfloat16": native_bfloat16(),
        "versions": {"labkit": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
    }


def machine() -> str:
    """The processor in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextmanager
def recording(lesson: str, folder: Path | None = None) -> Iterator[None]:
    """Inside, this process alone records the study in this folder.

    Raises:
        StudyError: another one does.
    """
    folder = folder_of_studies() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".l{lesson}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StudyError(
            f"study {lesson} is being recorded in {folder} by another process: wait until it ends"
        ) from None
    try:
        yield
    finally:
        lock.release()


def same_conditions(study: Study, record: Record, folder: Path | None = None) -> None:
    """Raise a StudyError if units of the record (in `folder`) were made under other conditions than the study's now."""
    keys, changed = stale(study, record)
    if not keys:
        return
    command = "labkit study" if folder is None else f"labkit study --folder {folder}"
    adopt, anew, count = f"{command} adopt {study.lesson}", f"{command} run {study.lesson} --anew", len(keys)
    cures = f"`{anew}` drops its {count} units and starts again"
    if adoptable(study, record):
        cures = f"if the numbers stayed, `{adopt}` keeps them; `{anew}` drops its {count} units and starts again"
    raise StudyError(f"study {study.lesson} was recorded with other {' and '.join(changed)}: {cures}")


def adoptable(study: Study, record: Record) -> bool:
    """Whether the sizes and all weights that the record names are still the same: only code, and what is listed as
    weights now for the first time, may have changed."""
    now, then = conditions(study), record.conditions
    return now["sizes"] == then["sizes"] and now["weights"].items() >= then["weights"].items()


def unplanned(study: Study, record: Record) -> list[Key]:
    """Recorded units that this study does not plan (an arm was taken out, a seed is not its own): no evidence."""
    return sorted(set(record.facts) - set(study.planned))


def read_planned(study: Study, folder: Path | None = None) -> Record:
    """What is recorded of what the study plans: the units that count as evidence.

    Raises:
        StudyError: a file that cannot be read.
    """
    record = read_record(study.lesson, folder)
    for key in unplanned(study, record):
        del record.facts[key], record.values[key]
    return record


def stale(study: Study, record: Record) -> tuple[list[Key], list[str]]:
    """Units that do not count any more, and the conditions that made them so: all of them if what they share has
    changed, else those of a later round whose own code has."""
    changed = differing(record.conditions, conditions(study)) if record.facts else []
    if changed:
        return list(record.facts), changed
    now = {arm: study.later_code(arm) for arm in study.later}
    keys = [key for key, fact in record.facts.items() if fact.get("code", "") != now.get(key[0], "")]
    return keys, ["code of a later round"] * bool(keys)


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of the conditions that differ."""
    return [key for key in ("code", "weights", "sizes") if first.get(key) != second.get(key)]


def status(study: Study, record: Record) -> dict[str, Any]:
    """recorded, stale, missing: numbers of planned units; changed: the conditions that made them stale."""
    old, changed = stale(study, record)
    planned = set(study.planned)
    there = planned & set(record.facts)
    return {
        "planned": len(planned),
        "recorded": len(there - set(old)),
        "stale": len(there & set(old)),
        "missing": len(planned - set(record.facts)),
        "damaged": len(record.damaged),
        "unplanned": len(unplanned(study, record)),
        "changed": changed,
        "cpu_hours": record.seconds() / 3600,
    }


def merge(study: Study, other: Path, folder: Path | None = None) -> int:
    """Add the units that another machine recorded in the folder `other`; returns how many are new.

    Raises:
        StudyError: other conditions, or a unit that both have and whose numbers differ by more than the tolerance.
    """
    with recording(study.lesson, folder):
        own, theirs = read_record(study.lesson, folder), read_record(study.lesson, other)
        if not theirs.facts:
            raise StudyError(f"{other} holds no units of study {study.lesson}")
        same_conditions(study, own, folder)
        same_conditions(study, theirs, other)
        if theirs.damaged:
            names = ", ".join(f"{arm}/{seed}" for arm, seed in theirs.damaged)
            raise StudyError(f"{other} holds damaged units, {names}: restore its files, or record them again there")
        for key in set(own.facts) & set(theirs.facts):
            for line in compare(study, own.values[key], theirs.values[key], key[0]):
                raise StudyError(f"unit {key[0]}/{key[1]} differs: {line}")
        new = [key for key in theirs.facts if key not in own.facts]
        if unplanned := sorted(set(new) - set(study.planned)):
            arm, seed = unplanned[0]
            raise StudyError(f"{other} has {len(unplanned)} units that this study does not plan, {arm}/{seed} for one")
        for key in new:
            own.facts[key], own.values[key] = theirs.facts[key], theirs.values[key]
        own.conditions = conditions(study)
        write_record(own, folder)
    return len(new)


SCATTER = 4.0  # numbers may differ by so many tolerances of their mean, one by one and on average


def compare(study: Study, recorded: Values, computed: Values, arm: str = "") -> list[str]:
    """Why two computations of one unit of an arm do not agree within the study's tolerance, one line per metric: its
    mean, and the single numbers, which other draws would scatter around the same mean."""
    lines = []
    for metric in sorted(set(recorded) | set(computed)):
        first, second = recorded.get(metric), computed.get(metric)
        if first is None or second is None or len(first) != len(second):
            lines.append(
                f"{metric}: {0 if first is None else len(first)} numbers against {0 if second is None else len(second)}"
            )
        elif not np.array_equal(first, second, equal_nan=True):
            gap, allowed = abs(float(first.mean()) - float(second.mean())), study.allowed(metric, arm)
            apart = float(np.abs(first - second).mean())
            if not gap <= allowed:
                lines.append(f"{metric}: means differ by {gap:.4g}, allowed {allowed:g}")
            elif not apart <= SCATTER * allowed:
                lines.append(f"{metric}: numbers differ by {apart:.4g} on average, allowed {SCATTER * allowed:g}")
    return lines
