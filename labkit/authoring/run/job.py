"""One notebook, executed in a process of its own: `python -m labkit.authoring.run.job JOB.json`.

The runner (`labkit.authoring.run`) starts this as a child, so that a notebook that must be stopped can be killed
with its kernel. The kernel always is the interpreter that runs this file, whatever kernelspecs are installed, and talks
over IPC sockets in the job's own folder: no ports, so nothing to collide on when many run side by side.

papermill's own status fields mislead (after a timeout, cells that never ran read "completed"), so a run is judged by
the exception, by the execution count of every code cell, and by error outputs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labkit.authoring.run.kernel import (
    GPU_PEAK,
    KernelStartError,
    MemoryWatch,
    ask_kernel,
    kernel_pid,
    shut_down,
    start_kernel,
)
from labkit.files import write_atomically

PASSED, FAILED, TIMEOUT, KERNEL_DIED, NO_KERNEL = "passed", "failed", "timeout", "kernel-died", "no-kernel"
SLOWEST = 3  # cells named in the summary
PATIENCE = 60.0  # seconds for which a learner waits without a bar
STATE = "state.json"  # in the job's folder: {"cell": position from 1, "id": ...} of the cell that was started last
START_RETRIES = 1  # only for a kernel that does not come up; a failed cell is never tried again
_WARNING = re.compile(r"\b(?!Py)\w*Warning: ")


@dataclass
class Job:
    """What to execute; all paths absolute, times in seconds. `folder` is private to the job and exists."""

    notebook: str
    output: str
    folder: str
    parameters: dict[str, Any] = field(default_factory=dict)
    cell_timeout: float = 600
    slow_timeout: float = 3000
    start_timeout: float = 120
    html: str | None = None
    title: str = ""
    lang: str = "en"


@dataclass
class Outcome:
    """How it went. `cells` are the slowest ones: {"id", "seconds", "line"}; `silent` those among all that took longer
    than PATIENCE and showed no bar with a forecast; memory in bytes, 0 where unknown."""

    status: str
    seconds: float = 0.0
    peak_rss: int = 0
    peak_gpu: int = 0
    cells: list[dict[str, Any]] = field(default_factory=list)
    silent: list[dict[str, Any]] = field(default_factory=list)
    warnings: int = 0
    kernel_starts: int = 0
    error: str = ""
    where: str = ""
    traceback: str = ""


def main(argv: list[str] | None = None) -> int:
    """Execute the job described in a JSON file; write `outcome.json` beside it. 0 passed, 1 anything else."""
    # With this package jsonschema, which nbformat imports, compiles a grammar of web addresses: 2 s for nothing here.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    path = Path((argv or sys.argv[1:])[0])
    job = Job(**json.loads(path.read_text(encoding="utf-8")))
    _end_with_parent(path.parent)
    outcome = execute(job)
    if job.html:
        from labkit.authoring.run.html import write_html

        write_html(Path(job.output), Path(job.html), title=job.title, lang=job.lang)
    write_atomically(path.with_name("outcome.json"), json.dumps(asdict(outcome), ensure_ascii=False))
    return 0 if outcome.status == PASSED else 1


def execute(job: Job) -> Outcome:
    """Run the notebook to its end or first error. Never raises for what the notebook does."""
    started = time.perf_counter()
    outcome = Outcome(PASSED)
    manager = None
    while manager is None:
        outcome.kernel_starts += 1
        try:
            manager = start_kernel(Path(job.folder) / f"kernel{outcome.kernel_starts}", job.start_timeout)
        except KernelStartError as error:
            if outcome.kernel_starts > START_RETRIES:
                seconds = time.perf_counter() - started
                return Outcome(NO_KERNEL, seconds, kernel_starts=outcome.kernel_starts, error=str(error))
    memory = MemoryWatch(kernel_pid(manager))
    memory.start()
    try:
        _papermill(job, manager)
        outcome.peak_gpu = ask_kernel(manager, GPU_PEAK)
    except Exception as error:  # papermill, nbclient and the kernel raise many kinds
        _blame(outcome, error)
        outcome.where = last_cell(Path(job.folder))
    finally:
        memory.stop()
        shut_down(manager)
    outcome.peak_rss = memory.peak
    outcome.seconds = time.perf_counter() - started
    inspect(job, outcome)
    return outcome


def inspect(job: Job, outcome: Outcome) -> None:
    """Complete `outcome` from the executed notebook: cells that never ran, error outputs, warnings, slowest cells,
    those without a bar."""
    import nbformat

    try:
        notebook = nbformat.read(job.output, as_version=4)
    except (OSError, ValueError):
        if outcome.status == PASSED:
            outcome.status, outcome.error = FAILED, "no executed notebook was written"
        return
    timed, never = [], []
    for cell in notebook.cells:
        if cell.cell_type != "code" or not cell.source.strip() or "skip-execution" in cell.metadata.get("tags", []):
            continue
        if cell.execution_count is None:
            never.append(cell)
        seconds = cell.metadata.get("papermill", {}).get("duration") or 0
        timed.append({"id": cell.get("id", ""), "seconds": round(seconds, 2), "line": _first_line(cell.source)})
        if seconds > PATIENCE and not _shows_bar(cell.outputs):
            outcome.silent.append(timed[-1])
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                outcome.warnings += len(_WARNING.findall(output.text))
            if output.output_type == "error":
                outcome.where = outcome.where or cell.get("id", "")
                if outcome.status == PASSED:
                    outcome.status, outcome.error = FAILED, f"{output.ename}: {output.evalue}"
                    outcome.traceback = _plain("\n".join(output.traceback))
    if never:
        outcome.where = outcome.where or never[0].get("id", "")
        if outcome.status == PASSED:
            outcome.status, outcome.error = FAILED, f"{len(never)} code cells were never executed"
    outcome.cells = sorted(timed, key=lambda cell: -cell["seconds"])[:SLOWEST]


def _papermill(job: Job, manager: Any) -> None:
    import papermill

    from labkit.authoring.run import engine

    def limit(cell: Any) -> float:
        return job.slow_timeout if "slow" in cell.metadata.get("tags", []) else job.cell_timeout

    state = Path(job.folder) / STATE

    def tell(cell: Any, cell_index: int) -> None:
        state.write_text(json.dumps({"cell": cell_index + 1, "id": cell.get("id", "")}), encoding="utf-8")

    papermill.execute_notebook(
        job.notebook,
        job.output,
        parameters=job.parameters,
        engine_name=engine.NAME,
        kernel_name="python3",  # explicit: else the name stored in the notebook wins
        language="python",
        progress_bar=False,
        log_output=False,
        cwd=str(Path(manager.connection_file).parent / "work"),
        km=manager,
        timeout_func=limit,
        on_cell_start=tell,
        store_widget_state=False,
        iopub_timeout=60,
        raise_on_iopub_timeout=True,
    )


def _blame(outcome: Outcome, error: Exception) -> None:
    """Name the failure in one line; the notebook keeps the rest."""
    kind = type(error).__name__
    if kind == "CellTimeoutError":
        outcome.status = TIMEOUT
        found = re.search(r"after (\d+) seconds", str(error))
        limit = f" of {found[1]} s" if found else ""
        outcome.error = f"a cell ran past its limit{limit}; raise --timeout, or tag the cell slow"
    elif kind == "DeadKernelError":
        outcome.status = KERNEL_DIED
        outcome.error = "the kernel died, most often because memory ran out; try a smaller tier or fewer --jobs"
    elif kind == "PapermillExecutionError":
        outcome.status, outcome.error = FAILED, f"{error.ename}: {error.evalue}"  # type: ignore[attr-defined]
        outcome.traceback = _plain("\n".join(error.traceback))  # type: ignore[attr-defined]
    else:
        outcome.status, outcome.error = FAILED, f"{kind}: {error}"
    outcome.error = " ".join(outcome.error.split())


def _end_with_parent(folder: Path) -> None:
    """When the runner is gone (killed, say), end the kernel and this process and remove the job's folder."""
    if os.name == "nt":
        return
    import psutil

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        for process in psutil.Process().children(recursive=True):
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def last_cell(folder: Path) -> str:
    """Id of the cell that was started last; "" before the first one."""
    try:
        return str(json.loads((folder / STATE).read_text(encoding="utf-8")).get("id", ""))
    except (OSError, ValueError):
        return ""


def _first_line(source: str) -> str:
    lines = [line.strip() for line in source.splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), lines[0] if lines else "")[:80]


def _shows_bar(outputs: list[Any]) -> bool:
    """Whether `progress_bar` wrote a forecast into these outputs, in any language."""
    from labkit.course.i18n import LANGUAGES, t

    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    blank = dict.fromkeys(("desc", "done", "total", "percent", "elapsed", "left"), "\0")
    lines = [re.escape(t("bar.line", lang=lang, **blank)).replace("\0", ".*") for lang in LANGUAGES]
    return any(re.search(line, printed) for line in lines)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


if __name__ == "__main__":
    sys.exit(main())
