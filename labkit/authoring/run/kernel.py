"""The kernel of a job: always the interpreter that runs this, reached over sockets in the job's own folder."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError

# Evaluated in the kernel after the last cell: the most GPU memory that torch held, in bytes.
GPU_PEAK = (
    "(lambda torch: torch.cuda.max_memory_reserved() if torch and torch.cuda.is_available() else 0)"
    "(__import__('sys').modules.get('torch'))"
)


class KernelStartError(LabkitError, RuntimeError):
    """The kernel did not come up; the one kind of failure that is tried again."""


def kernel_manager(folder: Path) -> Any:
    """A kernel manager for this very interpreter, with its sockets in `folder` (TCP on Windows, which lacks IPC)."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
    )

    class CourseKernelManager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return spec

    manager = CourseKernelManager(connection_file=str(folder / "k.json"))
    if os.name != "nt":
        manager.transport = "ipc"
    return manager


def start_kernel(folder: Path, timeout: float) -> Any:
    """A kernel that answers, working in `folder`/work. Raises KernelStartError when none answers in `timeout` s."""
    from jupyter_core.utils import run_sync

    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    manager = kernel_manager(folder)
    client = None
    try:
        run_sync(manager.start_kernel)(cwd=str(work), extra_arguments=["--HistoryManager.hist_file=:memory:"])
        import papermill  # noqa: F401  # loads while the kernel starts

        client = manager.client()
        client.start_channels()
        run_sync(client.wait_for_ready)(timeout=timeout)
    except Exception as error:
        shut_down(manager)
        raise KernelStartError(f"the kernel did not start: {type(error).__name__}: {error}") from error
    finally:
        if client is not None:
            client.stop_channels()
    return manager


def ask_kernel(manager: Any, expression: str) -> int:
    """The value of a Python expression in the idle kernel as an int; 0 if it does not answer."""
    from jupyter_client.blocking.client import BlockingKernelClient

    client = BlockingKernelClient()
    client.load_connection_info(manager.get_connection_info(session=False))
    client.start_channels()
    try:
        client.wait_for_ready(timeout=10)
        message = client.execute("", silent=True, store_history=False, user_expressions={"value": expression})
        while True:
            reply = client.get_shell_msg(timeout=10)
            if reply["parent_header"].get("msg_id") == message:
                return int(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])
    except Exception:  # a number for the report is not worth a failed run
        return 0
    finally:
        client.stop_channels()


def shut_down(manager: Any) -> None:
    from jupyter_core.utils import run_sync

    try:
        if getattr(manager, "has_kernel", False):
            run_sync(manager.shutdown_kernel)(now=True)
    except Exception:  # it is gone already
        pass


def kernel_pid(manager: Any) -> int | None:
    return getattr(getattr(manager, "provisioner", None), "pid", None)


class MemoryWatch(threading.Thread):
    """Follows the resident memory of a process and its descendants; `peak` is in bytes."""

    def __init__(self, pid: int | None, interval: float = 0.1):
        super().__init__(daemon=True)
        self.pid, self.interval, self.peak = pid, interval, 0
        self._end = threading.Event()

    def run(self) -> None:
        import psutil

        while self.pid and not self._end.is_set():
            try:
                kernel = psutil.Process(self.pid)
                total = kernel.memory_info().rss
                for child in kernel.children(recursive=True):
                    try:
                        total += child.memory_info().rss
                    except psutil.Error:
                        continue
                self.peak = max(self.peak, total, self._high_water())
            except psutil.Error:
                return
            self._end.wait(self.interval)

    def stop(self) -> None:
        """End the watch, with one last look."""
        self._end.set()
        self.join(timeout=2)
        self.peak = max(self.peak, self._high_water())

    def _high_water(self) -> int:
        """The kernel's own peak as Linux counted it, which sees what falls between two samples; 0 elsewhere."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0
