"""Recording a study: unit after unit, in one process or several, each written as soon as it is there."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError
from labkit.studies.store import (
    Key,
    Record,
    Values,
    adoptable,
    compare,
    conditions,
    facts,
    machine,
    read_record,
    recording,
    same_conditions,
    stale,
    unplanned,
    weights_of,
    write_record,
)
from labkit.studies.study import Fingerprint, Study, StudyError, load_study

Report = Callable[[str], None]


def run(
    study: Study,
    *,
    folder: Path | None = None,
    jobs: int = 1,
    hours: float | None = None,
    arms: tuple[str, ...] = (),
    anew: bool = False,
    loaded: Fingerprint | None = None,
    report: Report = print,
) -> int:
    """Record the units that are missing; returns how many of those asked for are missing still.

    Args:
        jobs: processes, each with one thread; all arms of a seed are made by the same one.
        hours: no unit is begun after this time.
        arms: only these (default: all).
        anew: drop what was recorded under other conditions, and what is not planned.
        loaded: the study's fingerprint when it was imported (default: now). Units are computed by that code.

    Raises:
        StudyError: another recorder is at work, or other conditions and not `anew`, or the code is edited meanwhile, or
            a process dies. What was recorded before stays.
    """
    if unknown := sorted(set(arms) - set(study.arms)):
        raise StudyError(f"study {study.lesson} has no arm {unknown[0]!r}: expected some of {', '.join(study.arms)}")
    loaded = loaded or study.fingerprint()
    with recording(study.lesson, folder):
        record = read_record(study.lesson, folder)
        _unedited(study, loaded)
        if record.damaged:
            names = ", ".join(f"{arm}/{seed}" for arm, seed in record.damaged)
            report(f"study {study.lesson}: {len(record.damaged)} units are damaged and dropped: {names}")
        dropped = _drop(study, record, arms, report) if anew else 0
        record.adopted = [] if not record.facts else record.adopted
        same_conditions(study, record, folder)
        record.conditions = conditions(study)
        if dropped or record.damaged:
            write_record(record, folder)
        todo = [key for key in study.planned if key not in record.facts and (not arms or key[0] in arms)]
        report(f"study {study.lesson}: {len(record.facts)} units recorded, {len(todo)} to do")
        deadline = None if hours is None else time.monotonic() + 3600 * hours

        def done(key: Key, values: Values, seconds: float) -> None:
            _unedited(study, loaded, record.conditions["weights"])
            code = {"code": loaded[1][key[0]]} if key[0] in study.later else {}
            record.facts[key], record.values[key] = facts(*key, values, seconds) | code, values
            write_record(record, folder)
            report(f"{key[0]}/{key[1]}: {seconds:.0f} s, {sum(k in record.facts for k in todo)} of {len(todo)}")

        if jobs <= 1:
            for key in todo:
                if deadline is not None and time.monotonic() > deadline:
                    break
                done(key, *_timed(study, key))
        else:
            _in_processes(study, todo, jobs, deadline, done, loaded)
    return len([key for key in study.planned if key not in record.facts and (not arms or key[0] in arms)])


def _drop(study: Study, record: Record, arms: tuple[str, ...], report: Report) -> int:
    """Take out of the record what does not count: all units if what they share has changed, else those of `arms` whose
    own code has, and those that the study does not plan; returns how many."""
    old, changed = stale(study, record)
    shared = {"code", "weights", "sizes"} & set(changed)
    gone = {key for key in old if shared or not arms or key[0] in arms} | set(unplanned(study, record))
    for key in gone:
        del record.facts[key], record.values[key]
    if gone:
        report(f"study {study.lesson}: {len(gone)} units dropped ({', '.join(sorted({arm for arm, _ in gone}))})")
    return len(gone)


def _unedited(study: Study, loaded: Fingerprint, weights: Mapping[str, str] | None = None) -> None:
    """Raise a StudyError if code, sizes or weights on disk are not those that compute: their hashes would be written
    beside the numbers of the others."""
    if study.fingerprint() != loaded:
        raise StudyError(
            f"the code of study {study.lesson} was edited while it was being recorded: start again; "
            "what was recorded before the change stays"
        )
    if weights is not None and weights_of(study) != weights:
        raise StudyError(
            f"the weights of study {study.lesson} were changed while it was being recorded: restore the data folder "
            "and start again; what was recorded before the change stays"
        )


def _timed(study: Study, key: Key) -> tuple[Values, float]:
    begun = time.process_time()
    try:
        values = study.run(*key)
    except LabkitError:
        raise
    except Exception as error:
        raise StudyError(f"unit {key[0]}/{key[1]} failed: {type(error).__name__}: {error}") from error
    return values, time.process_time() - begun


def _in_processes(
    study: Study, todo: list[Key], jobs: int, deadline: float | None, done: Callable, loaded: Fingerprint
) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    seeds = sorted({seed for _, seed in todo})
    shares = [[key for key in todo if seeds.index(key[1]) % jobs == job] for job in range(jobs)]
    left = None if deadline is None else deadline - time.monotonic()
    workers = [
        context.Process(target=_worker, args=(study.lesson, share, left, results, os.getpid(), loaded), daemon=True)
        for share in shares
        if share
    ]
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if here else None  # the workers end, too
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers) or not results.empty():
            try:
                key, values, seconds = results.get(timeout=1)
            except queue.Empty:
                continue
            if isinstance(values, str):
                raise StudyError(values)
            done(key, values, seconds)
        if died := [worker.exitcode for worker in workers if worker.exitcode]:
            raise StudyError(
                f"{len(died)} of {len(workers)} processes died (exit code {died[0]}; -9 is often a lack of memory): "
                "what they had finished is recorded, start again for the rest"
            )
    finally:
        for worker in workers:
            worker.terminate()
        if here:
            signal.signal(signal.SIGTERM, before)


def _worker(lesson: str, share: list[Key], left: float | None, results, parent: int, loaded: Fingerprint) -> None:
    import torch

    torch.set_num_threads(1)
    study, begun = load_study(lesson), time.monotonic()
    try:
        _unedited(study, loaded)  # this process has imported the files as they are now
    except StudyError as error:
        return results.put((share[0], str(error), 0.0))
    for key in share:
        if left is not None and time.monotonic() - begun > left or os.getppid() != parent:
            return  # out of time, or nobody is left who would write it down
        try:
            results.put((key, *_timed(study, key)))
        except LabkitError as error:
            results.put((key, str(error), 0.0))
            return


def verify(
    study: Study, *, folder: Path | None = None, arm: str = "", rng: np.random.Generator, near: bool = False
) -> tuple[Key, list[str]]:
    """Compute one recorded unit again (of `arm`, or of any): which one, and why it does not agree ([]: it does).

    Args:
        near: prefer units that a processor like this one recorded, which agree to the bit.

    Raises:
        StudyError: nothing recorded, or recorded under other conditions.
    """
    record = read_record(study.lesson, folder)
    keys = sorted(key for key in set(record.facts) & set(study.planned) if not arm or key[0] == arm)
    if not keys:
        raise StudyError(
            f"study {study.lesson} has no recorded unit{f' of arm {arm}' if arm else ''}: record some first"
        )
    same_conditions(study, record, folder)
    if near:
        keys = [key for key in keys if record.facts[key].get("machine") == machine()] or keys
    key = keys[int(rng.integers(len(keys)))]
    return key, compare(study, record.values[key], _again(study, record, key), key[0])


def _again(study: Study, record: Record, key: Key) -> Values:
    """A unit's numbers, computed in the precision that it was recorded in."""
    from labkit.diffusion import in_bfloat16, native_bfloat16

    with in_bfloat16(record.facts[key].get("bfloat16", native_bfloat16())):
        return study.run(*key)


def adopt(
    study: Study,
    *,
    folder: Path | None = None,
    rng: np.random.Generator,
    loaded: Fingerprint | None = None,
    report: Report = print,
) -> dict[Key, list[str]]:
    """Keep the recorded units under code that was rewritten without changing what it computes.

    One unit of every recorded arm, drawn at random, is computed again; if all agree within the study's tolerance, the
    record takes the new code's hash and lists the change with what was computed again. One seed an arm cannot show that
    no other seed differs: a change that is meant to alter numbers is recorded anew.

    Args:
        loaded: the study's fingerprint when it was imported (default: now). Units are computed by that code.

    Returns:
        Unit -> why it does not agree. Empty: adopted, or nothing had changed. The first unit that differs ends the
        trial, and the record stays as it was.

    Raises:
        StudyError: other weights or sizes (those units are another experiment; weights that were used before and only
            now are listed are none), another recorder is at work, or code or weights are edited meanwhile.
    """
    loaded = loaded or study.fingerprint()
    with recording(study.lesson, folder):
        record = read_record(study.lesson, folder)
        keys, _ = stale(study, record)
        if not keys:
            report(f"study {study.lesson}: nothing to adopt")
            return {}
        now = conditions(study)
        _unedited(study, loaded)
        if not adoptable(study, record):
            same_conditions(study, record, folder)
        drawn = []
        for arm in sorted({arm for arm, _ in keys} & set(study.arms)):
            seeds = sorted(seed for name, seed in keys if name == arm)
            key = (arm, seeds[int(rng.integers(len(seeds)))])
            again = _again(study, record, key)
            _unedited(study, loaded, now["weights"])
            if lines := compare(study, record.values[key], again, key[0]):
                return {key: lines}
            drawn.append(key)
            report(f"{key[0]}/{key[1]} agrees")
        fact = {"from": record.conditions["code"], "at": datetime.now(UTC).isoformat(timespec="seconds")}
        record.adopted.append(fact | {"machine": machine(), "computed again": [list(key) for key in drawn]})
        record.conditions = now
        for arm, seed in keys:
            record.facts[arm, seed].pop("code", None)
            if arm in study.later:
                record.facts[arm, seed]["code"] = loaded[1][arm]
        write_record(record, folder)
    return {}
