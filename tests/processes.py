"""Processes of their own for tests: several that train together, one that is killed.

On Linux they are forks of the test's process, which has imported everything already; elsewhere they start anew, also
where PyTorch computes in several threads, which a fork has lost without knowing it.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def run_apart(function: Callable, *calls: tuple, seconds: float = 240) -> list[int]:
    """Exit codes of one process per entry of `calls`, its arguments; what runs past the limit is killed."""
    alike = sys.platform == "linux" and torch.get_num_threads() == 1
    context = multiprocessing.get_context("fork" if alike else "spawn")
    processes = [context.Process(target=function, args=arguments) for arguments in calls]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def meet(rank: int, folder: Path, processes: int = 2) -> None:
    """Join the others over gloo, single-threaded; they meet at a file in `folder`."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    where = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=processes)
