"""What `labkit run` prints while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from labkit.authoring.run.plan import Row
from labkit.course.i18n import t
from labkit.course.render import width


class Console:
    """One line per finished notebook; on a terminal also a line that says what is running."""

    def __init__(self, total: int, stream: Any = None, heartbeat: float = 120):
        self.total, self.count, self.stream = total, 0, stream or sys.stdout
        self.heartbeat, self.last = heartbeat, time.monotonic()
        self.live = self.stream.isatty()

    def row(self, row: Row) -> None:
        self.count += 1
        status = t("run.cached") if row.cached else t(f"run.status.{row.outcome.status}")
        name = row.name + " " * max(0, 48 - width(row.name))
        line = f"[{self.count:>2}/{self.total}] {name} {status}" + " " * max(0, 10 - width(status))
        line += f" {row.outcome.seconds:7.1f} s {row.outcome.peak_rss / 2**20:7.0f} MB"
        if not row.passed:
            line += f"\n        {row.outcome.error[:400]}"
            line += f"  ({t('run.in_cell', cell=row.outcome.where)})" if row.outcome.where else ""
        self._print(line)

    def tick(self, running: Mapping[str, tuple[float, int]]) -> None:
        words = ", ".join(f"{name} {t('run.at_cell', cell=cell)} {s:.0f} s" for name, (s, cell) in running.items())
        if self.live and words:
            self.stream.write("\r\x1b[K" + words[:110])
            self.stream.flush()
        elif words and time.monotonic() - self.last > self.heartbeat:
            self._print(f"        … {words}")

    def _print(self, line: str) -> None:
        self.last = time.monotonic()
        self.stream.write(("\r\x1b[K" if self.live else "") + line + "\n")
        self.stream.flush()
