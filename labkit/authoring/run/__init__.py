"""`labkit run`: executes the lessons and judges them.

    labkit run                                   all lessons, cpu tier, English solution editions
    labkit run 00 01 --tier smoke --lang both    two lessons at their smallest, in both languages
    labkit run --edition student --jobs 2        unsolved editions: they too must run to the end

Each notebook runs in a process of its own (`job`). It passes when no cell raised, every code cell has an execution
count, and every claim that is gated on the tier kept to its band. A notebook that passed, and of which nothing has
changed since (`cache`), is not run again. Executed notebooks, HTML pages and results land in
OUTPUT/TIER-EDITION-LANG/, the report over all of them in OUTPUT/report.html (also summary.json and junit.xml). What is
executed is built from notebooks/src into OUTPUT/notebooks/: a run writes nowhere else, not to notebooks/, not to work/.
Exit code: 0 passed, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit.authoring.run.cache import environment_versions, run_key
from labkit.authoring.run.console import Console
from labkit.authoring.run.html import write_html
from labkit.authoring.run.job import PASSED, Job, Outcome
from labkit.authoring.run.plan import (
    Options,
    Row,
    RunError,
    build_rows,
    check_parameters,
    check_writable,
    parse_parameters,
    plan,
)
from labkit.authoring.run.pool import INTERRUPTED, Task, run_all
from labkit.course.i18n import LANGUAGES, get_language, set_language
from labkit.course.lab import NO_GPU
from labkit.course.manifest import TIERS, Project
from labkit.course.render import terminal_language
from labkit.files import write_atomically

EDITIONS = ("solution", "student")
CLAIM = "claim"  # ran to the end, but a gated claim left its band
CELL_SECONDS = {"smoke": 300, "cpu": 900, "gpu": 1800}
SLOW_FACTOR = 4  # cells tagged `slow`
NOTEBOOK_SECONDS = {"smoke": 900, "cpu": 5400, "gpu": 4500}  # gpu: well below the limit of the job in gpu.yml


def execute(rows: Sequence[Row], options: Options, project: Project) -> bool:
    """Run the rows and fill in their outcomes; prints one line per notebook. False when interrupted."""
    for row in rows:
        check_parameters(Path(row.source), options.parameters_of(row))
        row.key = run_key(project, row.number, Path(row.source), name=row.name, parameters=options.parameters_of(row))
    todo, console = [], Console(len(rows))
    for row in rows:
        if not options.force and _recall(row, options.output):
            _judge_claims(row, options.output, project)
            console.row(row)
        else:
            todo.append(row)
    by_name = {row.name: row for row in todo}

    def done(task: Task, outcome: Outcome) -> None:
        row = by_name[task.name]
        row.outcome, row.finished = outcome, datetime.now(UTC).isoformat(timespec="seconds")
        if outcome.status != INTERRUPTED and not Path(task.job.html).exists():  # the job was killed before it could
            write_html(Path(task.job.output), Path(task.job.html), title=task.job.title, lang=row.lang)
        _judge_claims(row, options.output, project)
        _remember(row, options.output)
        if outcome.status != INTERRUPTED:
            console.row(row)

    tasks = [_task(row, options) for row in todo]
    if options.jobs > 1:  # the longest first, so that the last worker does not start it when the others are done
        tasks.sort(key=lambda task: -(by_name[task.name].minutes or 0))
    with _terminate_as_interrupt():
        return run_all(tasks, options.jobs, done=done, tick=console.tick)


def _task(row: Row, options: Options) -> Task:
    target = options.output / f"{row.name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in (target, target.with_suffix(".html"), target.with_suffix(".json"), _claim_file(row, options.output)):
        old.unlink(missing_ok=True)
    cell = options.cell_timeout or CELL_SECONDS[row.tier]
    job = Job(
        notebook=str(Path(row.source).resolve()),
        output=str(target),
        folder="",
        parameters=options.parameters_of(row),
        cell_timeout=cell,
        slow_timeout=cell * SLOW_FACTOR,
        html=str(target.with_suffix(".html")),
        title=f"{row.number} {row.title[row.lang]}",
        lang=row.lang,
    )
    env = {"LABKIT_RESULTS": str(_results(row, options.output))}
    if options.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
    return Task(row.name, job, options.notebook_timeout or NOTEBOOK_SECONDS[row.tier], env)


def _results(row: Row, output: Path) -> Path:
    return output / row.lane / "results"


def _claim_file(row: Row, output: Path) -> Path:
    return _results(row, output) / "claims" / f"l{row.number}.{row.tier}.{row.lang}.jsonl"


def _judge_claims(row: Row, output: Path, project: Project) -> None:
    """Count the verdicts of a solution edition, those of the recorded study where there is one, as the ledger shows
    them, and fail it where a gated claim left its band."""
    if row.edition != "solution":
        return
    from collections import Counter

    from labkit.course import claims
    from labkit.course.ledger import ledger_rows

    results = _results(row, output)
    rows = ledger_rows(claims.load_records(results), tier=row.tier, lang=row.lang, project=project)
    row.claims = dict(Counter(r["verdict"] for r in rows if r["record"] and r["record"].lesson == row.number))
    if row.passed:
        row.gate = claims.gate(results, row.number, row.tier, lang=row.lang, project=project)
        if row.gate:
            row.outcome.status, row.outcome.error = CLAIM, "; ".join(row.gate)


def _remember(row: Row, output: Path) -> None:
    record = (output / row.name).with_suffix(".json")
    write_atomically(record, json.dumps(row.as_json(), ensure_ascii=False, indent=1))


def _recall(row: Row, output: Path) -> bool:
    """Take over the outcome of an earlier run with the same key that passed and whose files are still there."""
    target = output / f"{row.name}.ipynb"
    try:
        known = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
        same = known["key"] == row.key and known["outcome"]["status"] == PASSED
        outcome, finished = Outcome(**known["outcome"]), known["finished"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not same or not target.exists() or not target.with_suffix(".html").exists():
        return False
    row.outcome, row.finished, row.cached = outcome, finished, True
    return True


class _terminate_as_interrupt:
    """SIGTERM (a cancelled CI job) is treated like Ctrl-C, so that kernels end and a report is left."""

    def __enter__(self) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        try:
            self.before = signal.signal(signal.SIGTERM, interrupt)
        except ValueError:  # not in the main thread
            self.before = None

    def __exit__(self, *_: Any) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)


def add_parser(subparsers: Any) -> None:
    """Register `labkit run`."""
    parser = subparsers.add_parser("run", help="execute lessons and judge them", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("numbers", nargs="*", metavar="NN", help="lessons (default: all)")
    parser.add_argument("--tier", choices=TIERS, default="cpu", help="how much is computed (default: cpu)")
    parser.add_argument("--lang", choices=(*LANGUAGES, "both"), default="en", help="default: en")
    parser.add_argument("--edition", choices=(*EDITIONS, "both"), default="solution", help="default: solution")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks side by side (default: 1)")
    parser.add_argument("--force", action="store_true", help="run also what has not changed since it passed")
    strict = parser.add_mutually_exclusive_group()
    strict.add_argument(
        "--strict", action="store_true", default=None, help="a failed check stops the notebook (solutions: always)"
    )
    strict.add_argument("--no-strict", dest="strict", action="store_false", help="failed checks are shown only")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="limit of one cell in seconds, 4 times that if tagged slow"
    )
    parser.add_argument("--notebook-timeout", type=float, metavar="S", help="limit of one notebook in seconds")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="e.g. -p seed=1")
    parser.add_argument("--output", type=Path, default=None, help="folder for reports (default: build/run)")
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(func=main)


def main(args: argparse.Namespace) -> int:
    """Build, run, report."""
    from labkit.authoring.build import BuildError

    project = Project(args.root) if args.root else Project()
    langs = LANGUAGES if args.lang == "both" else (args.lang,)
    editions = EDITIONS if args.edition == "both" else (args.edition,)
    before = get_language()
    set_language(terminal_language(langs[0]))
    try:
        options = Options(
            output=(args.output or project.root / "build" / "run").resolve(),
            jobs=args.jobs,
            force=args.force,
            strict=args.strict,
            cell_timeout=args.timeout,
            notebook_timeout=args.notebook_timeout,
            parameters=parse_parameters(args.parameter),
        )
        if args.jobs < 1:
            raise RunError(f"--jobs is {args.jobs}; expected 1 or more")
        rows = plan(project, args.numbers, args.tier, langs, editions, options.output)
        if not rows:
            raise RunError(f"there is no lesson to run in {project.sources}: call labkit run in a clone of the course")
        if args.tier == "gpu" and not has_gpu():
            raise RunError(NO_GPU)  # at once, not after minutes in every notebook
        check_writable(options.output)
        build_rows(project, rows)
        return run_and_report(rows, options, project)
    except (RunError, *BuildError) as error:
        print(f"labkit run: {error}", file=sys.stderr)
        return 2
    finally:
        set_language(before)


def has_gpu() -> bool:
    """Whether lessons of tier gpu find one here (CUDA or Apple)."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def run_and_report(rows: Sequence[Row], options: Options, project: Project) -> int:
    """Execute the rows and write the reports, also after an interruption."""
    from labkit.authoring.run.report import write_reports

    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    finished = execute(rows, options, project)
    seconds = time.perf_counter() - clock
    about = {"started": started, "seconds": round(seconds, 1), "interrupted": not finished, **environment_versions()}
    print("\n" + write_reports(rows, options.output, about, project))
    if not finished:
        return 130
    return 0 if all(row.passed for row in rows) else 1
