"""How long do learners of a room wait? They log in to a real hub, open lesson 00 and run every cell of it.

    sudo python tests/benchmarks/camp_learners.py --learners 20 --at-once 5 --tier cpu

Needs what `labkit camp serve` needs (docs/camp.en.md). Prints, for each learner, the seconds until they were logged in,
until JupyterLab answered, until the first picture, and until the last cell was done, with the memory of their account.

Measured so far: only 4 learners, 2 at once, tier smoke, on 2 cores that other programs kept busy (load 12 to 19), so
that these seconds say little about a room of your own. Median, worst: logged in after 1.0 s, 1.0 s; JupyterLab after
69 s, 78 s; first picture 159 s, 220 s after the first cell; all 32 cells in 412 s, 521 s, none failed; largest memory
of an account 1,025 MB, 1,031 MB. Twenty learners, and an idle machine, have not been measured.
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
from dataclasses import dataclass
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


def attend(room, name: str, tier: str) -> Seen:
    """One learner: log in, open, run every code cell in order, as somebody who solves nothing yet."""
    learner = room.learner(name)
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


def watch(names: list[str], peaks: dict[str, float], stop: threading.Event) -> None:
    """Keep the largest memory of each account, in megabytes, looking every second."""
    from labkit.camp.hub import MEGABYTE, own_memory

    numbers = {pwd.getpwnam(name).pw_uid: name for name in names}
    while not stop.wait(1.0):
        for uid, used in own_memory(set(numbers)).items():
            name = numbers[uid]
            peaks[name] = max(peaks.get(name, 0.0), sum(size for size, _ in used) / MEGABYTE)


def main() -> int:
    """Run the room and print the table; 1 if a learner did not get through."""
    from tests.hub_room import room, why_not

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=5, help="how many sit at their desks at a time")
    parser.add_argument("--tier", choices=("smoke", "cpu"), default="cpu")
    parser.add_argument("--python", default=os.environ.get("LABKIT_HUB_PYTHON", sys.executable))
    args = parser.parse_args()
    if reason := why_not(args.python):
        print(f"no hub here: {reason}", file=sys.stderr)
        return 2
    names, peaks, stop = [f"l{number:02d}" for number in range(args.learners)], {}, threading.Event()
    begun, load = time.monotonic(), os.getloadavg()[0]
    with room(args.python, names, "--memory", "3", "--cores", "1") as one:
        watcher = threading.Thread(target=watch, args=(list(one.passphrases), peaks, stop))
        watcher.start()
        try:
            with ThreadPoolExecutor(args.at_once) as pool:
                seen = list(pool.map(lambda name: attend(one, name, args.tier), one.passphrases))
        finally:
            stop.set()
            watcher.join()
    for entry in seen:
        entry.memory = peaks.get(entry.name, 0.0)
    columns = ("login", "server", "first", "lesson", "memory")
    print(f"{'learner':8}" + "".join(f"{name:>9}" for name in (*columns, "cells", "failed")))
    for number, entry in enumerate(seen):
        row = "".join(f"{getattr(entry, name):9.1f}" for name in columns)
        print(f"{number:7d} {row}{entry.cells:9d}{entry.failed:9d}")
    for title, pick in (("median", median), ("worst", max)):
        print(f"{title:8}" + "".join(f"{pick(getattr(entry, name) for entry in seen):9.1f}" for name in columns))
    print(
        f"{args.learners} learners, {args.at_once} at once, tier {args.tier}, {time.monotonic() - begun:.0f} s in all, "
        f"{os.cpu_count()} cores ({platform.machine()}), load {load:.1f} before, {os.getloadavg()[0]:.1f} at the end"
    )
    return int(any(entry.failed for entry in seen))


if __name__ == "__main__":
    sys.exit(main())
