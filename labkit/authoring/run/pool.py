"""Jobs side by side, each in a process of its own that is killed together with its kernel when it must stop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labkit.authoring.run.job import TIMEOUT, Job, Outcome
from labkit.course.manifest import ROOT

CRASHED, INTERRUPTED = "crashed", "interrupted"
_POLL = 0.05  # seconds between two looks at a running job


@dataclass
class Task:
    """A job and how to run it: `name` for the log, `limit` in seconds for the whole notebook, `env` beyond our own."""

    name: str
    job: Job
    limit: float
    env: dict[str, str]


def run_all(
    tasks: Sequence[Task],
    workers: int,
    *,
    done: Callable[[Task, Outcome], None],
    tick: Callable[[dict[str, tuple[float, int]]], None] = lambda running: None,
) -> bool:
    """Run the tasks, `workers` at a time. Returns False when interrupted (Ctrl-C, SIGTERM); then all are stopped.

    `done(task, outcome)` is called in this thread as each ends; `tick({name: (seconds, cell)})` about twice a second.
    """
    stop = threading.Event()
    running: dict[str, tuple[float, int]] = {}
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        futures = {pool.submit(run_task, task, stop, running): task for task in tasks}
        waiting, finished = set(futures), True
        try:
            while waiting:
                try:
                    ready, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt:
                    finished = False
                    stop.set()
                    continue
                for future in ready:
                    done(futures[future], future.result())
                tick(dict(running))
        finally:
            stop.set()  # also when `done` raised: never leave jobs behind
    return finished


def run_task(task: Task, stop: threading.Event, running: dict[str, tuple[float, int]]) -> Outcome:
    """Run one task to its end, its limit, or `stop`; nothing of it is left running afterwards."""
    if stop.is_set():
        return Outcome(INTERRUPTED, error="not started")
    folder = Path(tempfile.mkdtemp(prefix="lk-", dir=_short_temporary()))
    started = time.monotonic()
    try:
        job = replace(task.job, folder=str(folder))
        spec = folder / "job.json"
        spec.write_text(json.dumps(asdict(job), ensure_ascii=False), encoding="utf-8")
        log = Path(job.output).with_suffix(".log")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "labkit.authoring.run.job", str(spec)],
                cwd=folder,
                env=_environment(task, folder),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the runner only, which then stops the jobs one by one
            )
            try:
                outcome = _watch(task, process, folder, stop, running, started)
            finally:
                kill_tree(process)
        if outcome is None:
            _kill_strays(folder)
            outcome = _read_outcome(folder, process.returncode, log)
        if not log.stat().st_size:
            log.unlink()
        outcome.seconds = outcome.seconds or time.monotonic() - started
        return outcome
    finally:
        running.pop(task.name, None)
        shutil.rmtree(folder, ignore_errors=True)


def _watch(
    task: Task,
    process: subprocess.Popen,
    folder: Path,
    stop: threading.Event,
    running: dict[str, tuple[float, int]],
    started: float,
) -> Outcome | None:
    """Wait for the process; an outcome when it had to be stopped, None when it ended by itself."""
    while process.poll() is None:
        seconds = time.monotonic() - started
        cell = _state(folder)
        running[task.name] = (seconds, cell.get("cell", 0))
        if stop.is_set():
            return Outcome(
                INTERRUPTED, seconds, error=f"stopped in cell {cell.get('cell', 0)}", where=cell.get("id", "")
            )
        if seconds > task.limit:
            message = f"the notebook ran past its limit of {task.limit:g} s in cell {cell.get('cell', 0)}"
            return Outcome(TIMEOUT, seconds, error=f"{message}; raise --notebook-timeout", where=cell.get("id", ""))
        time.sleep(_POLL)
    return None


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process and everything it started, kernels included; wait until they are gone."""
    import psutil

    try:
        root = psutil.Process(process.pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(family, timeout=5)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        pass


def _kill_strays(folder: Path) -> None:
    """Kill kernels of a job that ended without shutting them down; they name the job's folder on their command line."""
    import psutil

    if (folder / "outcome.json").exists():
        return
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in argument for argument in process.info["cmdline"] or ()):
            try:
                process.kill()
            except psutil.Error:
                continue


def _read_outcome(folder: Path, code: int, log: Path) -> Outcome:
    try:
        return Outcome(**json.loads((folder / "outcome.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
        last = tail[-1] if tail else "it left no message; most often memory ran out"
        return Outcome(CRASHED, error=f"the job ended with exit code {code}: {last}", traceback="\n".join(tail))


def _state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _environment(task: Task, folder: Path) -> dict[str, str]:
    """The environment of a job: labkit importable, no settings of the user's own Jupyter, plain progress bars."""
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # notebooks draw inline
    paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    env.update(
        PYTHONPATH=os.pathsep.join(paths),
        PYTHONUNBUFFERED="1",
        PYDEVD_DISABLE_FILE_VALIDATION="1",
        TQDM_DISABLE="1",
        TOKENIZERS_PARALLELISM="false",
        IPYTHONDIR=str(folder / "ipython"),
        JUPYTER_RUNTIME_DIR=str(folder / "runtime"),
        LABKIT_HOME=str(folder / "home"),  # a batch run leaves the learner's progress alone
    )
    return {**env, **task.env}


def _short_temporary() -> str:
    """A folder for sockets: their paths may have about 100 characters."""
    folder = tempfile.gettempdir()
    return folder if len(folder) < 60 or os.name == "nt" else "/tmp"
