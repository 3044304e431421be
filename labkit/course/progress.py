"""What a learner has done, in one JSON file on their own machine; nothing is sent anywhere. Also `labkit progress`.

The file is `progress.json` in the folder LABKIT_HOME, or in ~/.labkit. It is rewritten as a whole (temporary file, then
rename), re-read before every change so that two open notebooks do not overwrite each other, kept aside when it is
damaged, and replaced by memory, with one note, where nothing can be written.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from labkit.course.i18n import LANGUAGES, t
from labkit.course.render import language, show_box, table, terminal_language
from labkit.files import write_atomically

VERSION = 1
SUMMARY_VERSION = 1
PARTS = ("exercises", "quizzes", "predictions")


def home_folder() -> Path:
    """LABKIT_HOME if it is set, else ~/.labkit."""
    return Path(os.environ.get("LABKIT_HOME") or Path.home() / ".labkit")


class Progress:
    """The learner's record: lessons -> exercises, quizzes, predictions -> entry (a small dict)."""

    def __init__(self, folder: Path | str | None = None, *, notify: Callable[[str], None] | None = None) -> None:
        """`notify` shows the rare notes about a damaged or unwritable file (default: a box or a printed line)."""
        self.path = Path(folder or home_folder()) / "progress.json"
        self.notify = notify or (lambda text: show_box("warn", text))
        self.in_memory = False
        self.data = self._read()

    def entry(self, lesson: str, part: str, id: str) -> dict[str, Any]:
        """What is known about one item; {} if nothing. part: "exercises", "quizzes" or "predictions"."""
        lesson_data = self.data["lessons"].get(lesson, {})
        return dict(lesson_data.get(part, {}).get(id, {}))

    def update(self, lesson: str, part: str, id: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Apply `change` to the entry (in place) and save; returns a copy of the new entry."""
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}: choose one of {', '.join(PARTS)}")
        with self._locked():
            if not self.in_memory:
                self.data = self._read()
            entry = self.data["lessons"].setdefault(lesson, {}).setdefault(part, {}).setdefault(id, {})
            change(entry)
            self._write()
        return dict(entry)

    def record_check(self, lesson: str, exercise: str, status: str) -> dict[str, Any]:
        """A check was run: counts attempts (an untouched stub is none), remembers for good that it passed once."""

        def change(entry: dict[str, Any]) -> None:
            if status != "todo":
                entry["attempts"] = entry.get("attempts", 0) + (0 if entry.get("passed") else 1)
            if status == "passed" and not entry.get("passed"):
                entry["passed"] = _now()

        if status == "todo" and not self.entry(lesson, "exercises", exercise):
            return {}  # nothing done, nothing written
        return self.update(lesson, "exercises", exercise, change)

    def record_help(self, lesson: str, exercise: str, *, hint: int = 0, solution: bool = False) -> None:
        """The learner saw a hint (its level) or the solution."""

        def change(entry: dict[str, Any]) -> None:
            entry["hints"] = max(entry.get("hints", 0), hint)
            if solution:
                entry["solution_seen"] = True

        self.update(lesson, "exercises", exercise, change)

    def record_quiz(self, lesson: str, question: str, right: bool) -> None:
        """An option was chosen; attempts count until the first right answer."""

        def change(entry: dict[str, Any]) -> None:
            entry["attempts"] = entry.get("attempts", 0) + (0 if entry.get("right") else 1)
            if right and not entry.get("right"):
                entry["right"] = _now()

        self.update(lesson, "quizzes", question, change)

    def record_prediction(self, lesson: str, prompt: str, prediction: Any) -> None:
        """The learner's prediction (option id, number or text)."""
        self.update(lesson, "predictions", prompt, lambda entry: entry.update(prediction=prediction, at=_now()))

    # ---- the file -----------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {"version": VERSION, "lessons": {}}
        except UnicodeDecodeError:
            return self._set_aside()
        except OSError as error:
            self._fall_back(error)
            return {"version": VERSION, "lessons": {}}
        try:
            data = json.loads(text)
        except ValueError:
            return self._set_aside()
        return data if _well_formed(data) else self._set_aside()

    def _set_aside(self) -> dict[str, Any]:
        """Keep a damaged file under a free name, so that nobody loses what could still be repaired by hand."""
        taken = 1
        while (kept := self.path.with_name(f"progress.damaged-{taken}.json")).exists():
            taken += 1
        try:
            self.path.rename(kept)
            self.notify(t("progress.damaged", path=self.path, kept=kept.name))
        except OSError as error:
            self._fall_back(error)
        return {"version": VERSION, "lessons": {}}

    def _write(self) -> None:
        if self.in_memory:
            return
        try:
            write_atomically(self.path, json.dumps(self.data, ensure_ascii=False, indent=1, sort_keys=True))
        except OSError as error:
            self._fall_back(error)

    def _fall_back(self, error: OSError) -> None:
        if not self.in_memory:
            self.in_memory = True
            self.notify(t("progress.memory", path=self.path, error=error.strerror or type(error).__name__))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; where a lock cannot be had the rename alone keeps the file whole."""
        with ExitStack() as stack:
            with suppress(OSError, NotImplementedError):  # no right to write: _write() will say so; no locks here
                self.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self.path.with_name(".progress.lock")))
            yield


def _well_formed(data: Any) -> bool:
    """The nesting is as this version writes it (an older or newer version counts as damaged: kept, not guessed at)."""
    if not isinstance(data, dict) or data.get("version") != VERSION or not isinstance(data.get("lessons"), dict):
        return False
    for lesson in data["lessons"].values():
        if not isinstance(lesson, dict) or not all(isinstance(part, dict) for part in lesson.values()):
            return False
        if not all(isinstance(entry, dict) for part in lesson.values() for entry in part.values()):
            return False
    return True


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


# ---- labkit progress ---------------------------------------------------------------------------------------------


def overview(progress: Progress, project: Any = None) -> list[dict[str, Any]]:
    """One row per exercise and quiz question of every lesson, done or not, in the order of the lessons."""
    from labkit.course.lesson_files import lesson_files
    from labkit.course.manifest import lesson_numbers

    rows = []
    for number in lesson_numbers(project):
        files = lesson_files(number, project)
        for id, info in files.exercise_info.items():
            entry = progress.entry(number, "exercises", id)
            state = "passed" if entry.get("passed") else "tried" if entry.get("attempts") else "open"
            rows.append(
                {"lesson": number, "id": id, "kind": "exercise", "state": state, "difficulty": info.difficulty, **entry}
            )
        for id in files.questions:
            entry = progress.entry(number, "quizzes", id)
            state = "right" if entry.get("right") else "tried" if entry.get("attempts") else "open"
            rows.append({"lesson": number, "id": id, "kind": "quiz", "state": state, "difficulty": None, **entry})
    return rows


def report(rows: list[dict[str, Any]], path: Path) -> tuple[str, str]:
    """(html, text) of the learner's state."""
    columns = ("lesson", "item", "kind", "difficulty", "state", "attempts", "hints")
    cells = []
    for row in rows:
        state = t(f"progress.{row['state']}")
        state = t("progress.solution_seen", state=state) if row.get("solution_seen") else state
        stars = "●" * row["difficulty"] + "○" * (5 - row["difficulty"]) if row["difficulty"] else ""
        attempts, hints = str(row.get("attempts") or ""), str(row.get("hints") or "")
        cells.append((row["lesson"], row["id"], t(f"progress.kind.{row['kind']}"), stars, state, attempts, hints))
    exercises = [row for row in rows if row["kind"] == "exercise"]
    quizzes = [row for row in rows if row["kind"] == "quiz"]
    total = t(
        "progress.total",
        passed=sum(row["state"] == "passed" for row in exercises),
        exercises=len(exercises),
        right=sum(row["state"] == "right" for row in quizzes),
        quizzes=len(quizzes),
    )
    html_text, text = table([t(f"progress.column.{name}") for name in columns], cells)
    ends = [total, t("progress.where", path=path)]
    if all(row["state"] == "open" for row in rows):
        ends.insert(0, t("progress.nothing"))
    return html_text + "".join(f"<p>{line}</p>" for line in ends), "\n".join([t("progress.title"), "", text, "", *ends])


def summary(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """What `labkit progress --share` writes: ids by state, and the name; no answers, no predictions, no times."""

    def ids(kind: str, state: str) -> list[str]:
        return [row["id"] for row in rows if row["kind"] == kind and row["state"] == state]

    parts = {"passed": ("exercise", "passed"), "tried": ("exercise", "tried"), "right": ("quiz", "right")}
    return {"version": SUMMARY_VERSION, "name": name, **{part: ids(*which) for part, which in parts.items()}}


def share(rows: list[dict[str, Any]], folder: Path, name: str) -> Path:
    """Write the summary as NAME.json into `folder`, with characters that no file name takes left out.

    Raises:
        OSError: the folder cannot be written.
    """
    stem = re.sub(r"[^\w-]+", "_", name).strip("_") or "learner"
    return write_atomically(folder / f"{stem}.json", json.dumps(summary(rows, name), ensure_ascii=False, indent=1))


def add_parser(subparsers: Any) -> None:
    """Register `labkit progress`."""
    parser = subparsers.add_parser("progress", help="show which exercises and questions you have solved")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the table")
    parser.add_argument("--lesson", metavar="NN", help="only this lesson")
    parser.add_argument("--home", type=Path, help="folder of progress.json (default: LABKIT_HOME or ~/.labkit)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--share", nargs="?", type=Path, const=Path(""), metavar="FOLDER",
        help="write a summary for the teacher's board into FOLDER (default: LABKIT_BOARD)",
    )  # fmt: skip
    parser.add_argument("--name", help="your name on the board (default: that of your account)")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the learner's state: 0; 2 with one line for an unknown lesson or a lesson file that is wrong."""
    try:
        return _run(args)
    except ValueError as error:
        print(f"labkit progress: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from labkit.course.lesson_files import lesson_files
    from labkit.course.manifest import Project

    project = Project(args.root) if args.root else None
    with language(args.lang if args.json else terminal_language(args.lang)):
        progress = Progress(args.home)
        rows = overview(progress, project)
        if args.lesson is not None:
            number = lesson_files(args.lesson, project).number
            rows = [row for row in rows if row["lesson"] == number]
        if args.share is not None:
            return _share(args, rows)
        print(json.dumps(rows, indent=1) if args.json else report(rows, progress.path)[1])
    return 0


def _share(args: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    given = str(args.share) if str(args.share) != "." else os.environ.get("LABKIT_BOARD", "")
    if not given:
        print(f"labkit progress: {t('progress.no_board')}", file=sys.stderr)
        return 2
    try:
        path = share(rows, Path(given), args.name or getpass.getuser())
    except OSError as error:
        print(f"labkit progress: {given}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(t("progress.shared", path=path))
    return 0
