"""How long do learners of a room wait? They log in to a real hub, open lesson 00 and run every cell of it.

    sudo python tests/benchmarks/camp_learners.py --learners 20 --apart 10 --tier cpu

Needs what `labkit camp serve` needs (docs/camp.en.md). Prints, for each learner, the seconds until they were logged in,
until JupyterLab answered, until the first picture, and until the last cell was done, with the memory of their account.

Measured: 20 learners who came 10 s apart, tier cpu, on 2 cores with 24 GB. Other programs ran beside them (load 7
before, nearly a core's worth more for the last ten minutes). Median, worst: logged in after 0.5 s, 1.1 s; JupyterLab
after 94 s, 234 s; first picture 338 s, 353 s after the first cell; all 32 cells in 942 s, 1057 s; none of 640 cells
failed. Largest memory of an account 1,115 MB, 1,126 MB, of which the last section's second Python takes 450 MB for
half a minute; of all accounts at one time 16.9 GB, with 4.1 GB left free. Cores are what was short: a learner's
kernel took about 43 s of a core, that second Python 20 s, the server 8 s, so that 20 learners keep 2 cores busy for
12 minutes at best.
"""

from __future__ import annotations

import argparse
import os
import platform
import pwd
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
FIRST_PICTURE = "picture"  # the cell of lesson 00 that paints
LESSON = "en/00_start_here.ipynb"


@dataclass
class Seen:
    """What one learner waited for, in seconds, and what their account took, in megabytes."""

    name: str
    login: float
    server: float
    first: float
    lesson: float
    cells: int
    failed: int
    memory: float = 0.0


def attend(room, name: str, tier: str, arrives: float) -> Seen:
    """One learner: log in, open, run every code cell in order, as somebody who solves nothing yet.

    `arrives` is the reading of the monotonic clock before which this learner does not come."""
    learner = room.learner(name)
    time.sleep(max(0.0, arrives - time.monotonic()))
    begun = time.monotonic()
    assert learner.log_in(), name
    login = time.monotonic() - begun
    server = learner.open(seconds=900)
    cells = [cell for cell in learner.notebook(LESSON)["cells"] if cell["cell_type"] == "code"]
    failed, first, begun = 0, 0.0, time.monotonic()
    with learner.kernel("en") as kernel:
        for cell in cells:
            code = "".join(cell["source"]).replace('tier = "cpu"', f'tier = "{tier}"')
            status, said = kernel.run(code)
            failed += status != "ok"
            if status != "ok":
                print(f"{name}: {cell['id']}: {said[-300:]}", file=sys.stderr)
            if not first and FIRST_PICTURE in cell["id"]:
                first = time.monotonic() - begun
        lesson = time.monotonic() - begun
    learner.stop()
    seen = Seen(name, login, server, first, lesson, len(cells), failed)
    print(seen, file=sys.stderr, flush=True)
    return seen


@dataclass
class Peaks:
    """Memory in megabytes, every second: the most of each account and of all together, the least left free."""

    accounts: dict[str, float] = field(default_factory=dict)
    together: float = 0.0
    free: float = float("inf")


def watch(names: list[str], peaks: Peaks, stop: threading.Event) -> None:
    """Keep `peaks` until `stop` is set."""
    import psutil

    from labkit.camp.hub import MEGABYTE, own_memory

    numbers = {pwd.getpwnam(name).pw_uid: name for name in names}
    while not stop.wait(1.0):
        together = 0.0
        for uid, used in own_memory(set(numbers)).items():
            mine = sum(size for size, _ in used) / MEGABYTE
            peaks.accounts[numbers[uid]] = max(peaks.accounts.get(numbers[uid], 0.0), mine)
            together += mine
        peaks.together = max(peaks.together, together)
        peaks.free = min(peaks.free, psutil.virtual_memory().available / MEGABYTE)


def main() -> int:
    """Run the room and print the table; 1 if a learner did not get through."""
    from tests.hub_room import room, why_not

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, default=20)
    parser.add_argument("--at-once", type=int, help="how many sit at their desks at a time (default: all)")
    parser.add_argument("--apart", type=float, default=0.0, help="seconds between two arrivals")
    parser.add_argument("--tier", choices=("smoke", "cpu"), default="cpu")
    parser.add_argument("--python", default=os.environ.get("LABKIT_HUB_PYTHON", sys.executable))
    args = parser.parse_args()
    if reason := why_not(args.python):
        print(f"no hub here: {reason}", file=sys.stderr)
        return 2
    names, peaks, stop = [f"l{number:02d}" for number in range(args.learners)], Peaks(), threading.Event()
    at_once = args.at_once or args.learners
    begun, load = time.monotonic(), os.getloadavg()[0]
    with room(args.python, names, "--memory", "3", "--cores", "1") as one:
        watcher = threading.Thread(target=watch, args=(list(one.passphrases), peaks, stop))
        watcher.start()
        try:
            first = time.monotonic()
            with ThreadPoolExecutor(at_once) as pool:
                turns = ((name, args.tier, first + turn * args.apart) for turn, name in enumerate(one.passphrases))
                seen = list(pool.map(lambda turn: attend(one, *turn), turns))
        finally:
            stop.set()
            watcher.join()
    for entry in seen:
        entry.memory = peaks.accounts.get(entry.name, 0.0)
    columns = ("login", "server", "first", "lesson", "memory")
    print(f"{'learner':8}" + "".join(f"{name:>9}" for name in (*columns, "cells", "failed")))
    for number, entry in enumerate(seen):
        row = "".join(f"{getattr(entry, name):9.1f}" for name in columns)
        print(f"{number:7d} {row}{entry.cells:9d}{entry.failed:9d}")
    for title, pick in (("median", median), ("worst", max)):
        print(f"{title:8}" + "".join(f"{pick(getattr(entry, name) for entry in seen):9.1f}" for name in columns))
    print(f"memory of all accounts at one time {peaks.together:.0f} MB, least left free {peaks.free:.0f} MB")
    print(
        f"{args.learners} learners, {at_once} at once, {args.apart:g} s apart, tier {args.tier}, "
        f"{time.monotonic() - begun:.0f} s in all, "
        f"{os.cpu_count()} cores ({platform.machine()}), load {load:.1f} before, {os.getloadavg()[0]:.1f} at the end"
    )
    return int(any(entry.failed for entry in seen))


if __name__ == "__main__":
    sys.exit(main())
