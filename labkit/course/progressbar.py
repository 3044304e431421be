"""A progress bar with a forecast for long loops: one updating line in a notebook or terminal, ten lines in a log.

In a notebook it is plain HTML that is replaced in place; it leaves no widget state behind in the saved file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

from labkit.course.i18n import t
from labkit.course.render import in_notebook, inline

Item = TypeVar("Item")

REFRESH_SECONDS = 0.5  # a notebook or terminal is redrawn at most this often
LOG_LINES = 10


def clock_text(seconds: float) -> str:
    """65 -> '1:05', 3700 -> '1:01:40', 0.4 -> '0.4 s' in the current language."""
    if seconds < 10:
        return t("bar.seconds", seconds=seconds)
    minutes, rest = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def progress_bar(
    iterable: Iterable[Item],
    desc: str = "",
    total: int | None = None,
    *,
    interactive: bool = True,
    clock: Callable[[], float] = time.monotonic,
    out: TextIO | None = None,
) -> Iterator[Item]:
    """Yield the items of `iterable` and show how far the loop is and how long the rest will take (at constant speed).

    total: number of items, where `iterable` has no length. interactive=False (a batch run) writes at most ten lines.
    clock and out can be replaced by tests.
    """
    if total is None:
        total = len(iterable) if hasattr(iterable, "__len__") else None
    if total is not None and (isinstance(total, bool) or not isinstance(total, int) or total < 0):
        raise ValueError(f"total is {total!r}: expected the number of items, or nothing if it is not known")
    display = _display_for(interactive, out or sys.stdout)
    return _run(iterable, f"{desc}: " if desc else "", total, display, clock)


def _run(iterable: Iterable, desc: str, total: int | None, display: Any, clock: Callable[[], float]) -> Iterator:
    start, done, finished = clock(), 0, False
    try:
        for item in iterable:
            yield item
            done += 1  # counted when the loop's body has run, so the forecast rests on finished work only
            elapsed = clock() - start
            if display.due(done, total, elapsed):
                display.update(_line(desc, done, total, elapsed), done / total if total else None)
        finished = True
    finally:  # also after break or an error in the loop's body
        elapsed = clock_text(clock() - start)
        if finished or (total is not None and done >= total):
            display.end(t("bar.finished", desc=desc, done=done, elapsed=elapsed))
        else:
            display.end(t("bar.stopped", desc=desc, done=done, total="?" if total is None else total, elapsed=elapsed))


def _line(desc: str, done: int, total: int | None, elapsed: float) -> str:
    if not total:
        return t("bar.open_end", desc=desc, done=done, elapsed=clock_text(elapsed))
    left = elapsed / done * max(total - done, 0)
    percent = min(100 * done // total, 100)
    return t(
        "bar.line",
        desc=desc,
        done=done,
        total=total,
        percent=percent,
        elapsed=clock_text(elapsed),
        left=clock_text(left),
    )


def _display_for(interactive: bool, out: TextIO) -> Any:
    if interactive and in_notebook():
        return _Notebook()
    if interactive and out.isatty():
        return _Terminal(out)
    return _Log(out)


class _Log:
    """For files and batch runs: a line at each tenth (without a total: at 1, 10, 100, ...), never more than ten."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.lines = out, 0

    def due(self, done: int, total: int | None, elapsed: float) -> bool:
        if self.lines >= LOG_LINES - 1 or elapsed < REFRESH_SECONDS or done == total:
            return False  # the last line belongs to `end`, which says the same and more
        if not total:
            return str(done).strip("0") == "1"
        return done * LOG_LINES // total > (done - 1) * LOG_LINES // total

    def update(self, line: str, fraction: float | None) -> None:
        self.lines += 1
        print(line, file=self.out, flush=True)

    def end(self, line: str) -> None:
        print(line, file=self.out, flush=True)


class _Timed:
    """Redraws at most every REFRESH_SECONDS."""

    shown = -REFRESH_SECONDS

    def due(self, done: int, total: int | None, elapsed: float) -> bool:
        if elapsed - self.shown < REFRESH_SECONDS:
            return False
        self.shown = elapsed
        return True


class _Terminal(_Timed):
    """One line that is overwritten."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def update(self, line: str, fraction: float | None) -> None:
        print(f"\r\033[K{line}", end="", file=self.out, flush=True)

    def end(self, line: str) -> None:
        print(f"\r\033[K{line}", file=self.out, flush=True)


class _Notebook(_Timed):
    """An HTML <progress> that is replaced in place."""

    handle: Any = None

    def update(self, line: str, fraction: float | None) -> None:
        value = "" if fraction is None else f' value="{min(fraction, 1.0):.3f}"'
        self._draw(f'<progress max="1"{value} style="vertical-align:middle"></progress> {inline(line)}', line)

    def end(self, line: str) -> None:
        self._draw(inline(line), line)

    def _draw(self, html_text: str, text: str) -> None:
        from IPython.display import display

        content = {"text/html": html_text, "text/plain": text}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)
