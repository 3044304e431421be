"""Who has solved what in a room: the summaries that learners chose to share, as a table for the one who teaches.

A learner shares with `labkit progress --share FOLDER` (in a notebook: `!labkit progress --share`); nothing leaves their
folder unasked. A summary holds ids of exercises and questions and how they stand: no code, no answer, no time of day.

The files come from learners, so they are read with care: plain files of at most 200 KB, no links, ids of the course
only. Where the files belong to different accounts (labkit camp serve), the account is the name, whatever the file says.
"""

from __future__ import annotations

import html
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.course.i18n import Catalogue, load_messages
from labkit.course.progress import SUMMARY_VERSION
from labkit.course.render import page, table
from labkit.files import can_print

TEXTS = Path(__file__).with_name("texts.yaml")
LARGEST = 200_000  # bytes of a summary


@dataclass(frozen=True)
class Learner:
    """One summary: name, exercises passed and tried without success, questions answered."""

    name: str
    passed: frozenset[str] = frozenset()
    tried: frozenset[str] = frozenset()
    right: frozenset[str] = field(default=frozenset())


def read_summaries(folder: Path, known: set[str]) -> tuple[list[Learner], list[str]]:
    """The summaries of a folder, by name, and what could not be read, as "FILE: reason".

    Args:
        folder: holds NAME.json files, as `labkit progress --share` writes them.
        known: ids of the course's exercises and questions; others are left out.
    """
    learners, problems = {}, []
    mine = os.stat(folder)
    for path in sorted(folder.glob("*.json")):
        try:
            data, owner = _read(path)
            name = _account(owner) if owner != mine.st_uid else str(data["name"])[:40]
            sets = [frozenset(map(str, data[part])) & known for part in ("passed", "tried", "right")]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path.name}: {getattr(error, 'strerror', None) or error}")
            continue
        learners[name] = Learner(name, sets[0], sets[1] - sets[0], sets[2])
    return [learners[name] for name in sorted(learners)], problems


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """(content, uid of the owner) of a summary; never follows a link, never waits for a pipe."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            raise ValueError("no plain file")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError("too large for a summary")
    data = json.loads(content)
    if data["version"] != SUMMARY_VERSION:
        raise ValueError(f"version {data['version']!r}, not {SUMMARY_VERSION}")
    return data, about.st_uid


def _account(uid: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):  # Windows; an account that is gone
        return str(uid)


def board(learners: Sequence[Learner], project: Any, lang: str) -> tuple[str, str]:
    """(html, text): a table of learners and lessons, and the exercises where most are stuck."""
    from labkit.course.lesson_files import lesson_files
    from labkit.course.manifest import lesson_numbers

    say = texts(lang)
    lessons = {number: list(lesson_files(number, project).exercise_info) for number in lesson_numbers(project)}
    lessons = {number: ids for number, ids in lessons.items() if ids}
    rows = []
    for one in learners:
        cells = [_cell(one, ids) for ids in lessons.values()]
        rows.append((one.name, *cells, str(len(one.passed)), str(len(one.right))))
    headers = [say("name"), *lessons, say("passed"), say("right")]
    parts = [table(headers, rows)]
    stuck = Counter(id for one in learners for id in one.tried).most_common(10)
    solved = Counter(id for one in learners for id in one.passed)
    if stuck:
        columns = [say("exercise"), say("stuck"), say("solved")]
        parts.append(table(columns, [(id, str(count), str(solved[id])) for id, count in stuck]))
    titles = [say("title", count=len(learners)), say("stuck_title")]
    markup = f"<p>{html.escape(say('legend'))}</p>{parts[0][0]}"
    text = [titles[0], say("legend"), "", parts[0][1]]
    if len(parts) > 1:
        markup += f"<h2>{html.escape(titles[1])}</h2>{parts[1][0]}"
        text += ["", titles[1], "", parts[1][1]]
    return page(titles[0], markup), "\n".join(text)


def _cell(one: Learner, ids: Sequence[str]) -> str:
    """ "3/5 +1": three of five passed, one tried without success; "" for nothing yet."""
    passed, tried = len(one.passed & set(ids)), len(one.tried & set(ids))
    return f"{passed}/{len(ids)}{f' +{tried}' if tried else ''}" if passed or tried else ""


def board_ids(project: Any = None) -> set[str]:
    """The ids of all exercises and questions of the course."""
    from labkit.course.lesson_files import lesson_files
    from labkit.course.manifest import lesson_numbers

    files = [lesson_files(number, project) for number in lesson_numbers(project)]
    return {id for one in files for id in (*one.exercise_info, *one.questions)}


def texts(lang: str) -> Callable[..., str]:
    """The texts of the board in one language, by key; English where the output cannot write Japanese."""
    catalogue = Catalogue(load_messages(TEXTS))
    lang = lang if lang != "ja" or can_print("あ") else "en"
    return lambda key, **values: catalogue.text(key, lang, strict=True, **values)
