"""The quiz, claim and article files of one lesson, read strictly: a mistake in them names file, line and cure.

lesson.yaml itself belongs to `labkit.course.manifest`, the exercises in checks.py to `labkit.course.checks`. What the
files look like is shown in the guide for lesson authors at the top of `labkit.course.checks`. Ids may be written short
("snr") or full ("l01.snr"); everything here returns them in full.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from labkit.course.i18n import LANGUAGES
from labkit.course.manifest import ExerciseInfo, Lesson, Project, load_lesson
from labkit.course.yamlfile import Lines, load_with_lines
from labkit.errors import LabkitError


class CourseError(LabkitError, ValueError):
    """A mistake in how the course is called or written: one line with what was wrong, what was expected, the cure."""


def full_id(number: str, id: str) -> str:
    """'add_noise' of lesson '01' -> 'l01.add_noise'; a full id stays as it is."""
    return id if id.startswith(f"l{number}.") else f"l{number}.{id}"


def known_id(number: str, id: str, known: Iterable[str], kind: str) -> str:
    """The full id, if it is in `known`; else a CourseError that lists them (kind: "exercise", "claim", ...)."""
    if full_id(number, str(id)) in known:
        return full_id(number, id)
    raise CourseError(f"lesson {number} has no {kind} {id!r}; it has: {', '.join(known) or 'none'}")


def stable_seed(name: str) -> int:
    """The same small integer for the same name on every machine (Python's own hash() changes from run to run)."""
    return zlib.crc32(name.encode("utf-8"))


@dataclass(frozen=True)
class YamlList:
    """One list of mappings inside a YAML file, with the line of every entry, so that errors can point at it."""

    path: Path
    items: list[dict]
    lines: Lines
    prefix: tuple = ()

    def error(self, index: int | None, message: str) -> CourseError:
        """A CourseError 'l01/quiz.yaml:12: ...' for entry `index` (None: the list itself)."""
        line = self.lines.get(self.prefix if index is None else (*self.prefix, index), 1)
        return CourseError(f"{self.path.parent.name}/{self.path.name}:{line}: {message}")

    def bilingual(self, index: int, value: Any, what: str) -> None:
        """`value` must be {en: text, ja: text}, both filled."""
        if isinstance(value, dict) and set(value) == set(LANGUAGES):
            if all(isinstance(text, str) and text.strip() for text in value.values()):
                return
        raise self.error(index, f"{what}: expected {{en: text, ja: text}}, found {value!r:.60}")


def read_list(path: Path, *prefix: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> YamlList:
    """The entries of a YAML list (below `prefix`), each a mapping with the `required` fields and a different id."""
    if not path.is_file():
        return YamlList(path, [], {}, prefix)
    items, lines = load_with_lines(path)
    for name in prefix:
        items = items.get(name) if isinstance(items, dict) else None
    found = YamlList(path, items or [], lines, prefix)
    if not isinstance(found.items, list):
        raise found.error(None, f"expected a list (entries start with '- '), found {type(items).__name__}")
    seen: set[str] = set()
    for index, entry in enumerate(found.items):
        if not isinstance(entry, dict):
            raise found.error(index, f"expected 'field: value' lines, found {entry!r:.60}")
        missing = [name for name in required if name not in entry]
        unknown = [str(name) for name in entry if name not in (*required, *optional)]
        if missing or unknown:
            wrong = f"lacks {', '.join(missing)}" if missing else f"has the unknown field {', '.join(unknown)}"
            fields = f"fields are {', '.join(required)}" + (
                f" and optionally {', '.join(optional)}" if optional else ""
            )
            raise found.error(index, f"entry {entry.get('id', index + 1)!r} {wrong}; {fields}")
        if "id" in required and (not isinstance(entry["id"], str) or entry["id"] in seen):
            raise found.error(index, f"id {entry['id']!r} must be a text and appear once only; rename it")
        seen.add(entry.get("id", ""))
    return found


@dataclass(frozen=True)
class LessonFiles:
    """What a lesson's folder says. Texts are {"en": ..., "ja": ...}; errors appear when the part is first read."""

    lesson: Lesson

    @property
    def number(self) -> str:
        return self.lesson.number

    @property
    def folder(self) -> Path:
        return self.lesson.folder

    @cached_property
    def exercise_info(self) -> dict[str, ExerciseInfo]:
        """ExerciseInfo id -> difficulty, importance, minutes (from lesson.yaml)."""
        return {full_id(self.number, entry.id): entry for entry in self.lesson.exercises}

    @cached_property
    def questions(self) -> dict[str, dict]:
        """Quiz questions by id: {question, options: [{text, explain, correct}], keep_order}."""
        found = self._quiz("questions", ("id", "question", "options"), ("keep_order",))
        for index, entry in enumerate(found.items):
            found.bilingual(index, entry["question"], "question")
            options = entry["options"] if isinstance(entry["options"], list) else []
            for position, option in enumerate(options, start=1):
                if not isinstance(option, dict) or not {"text", "explain"} <= set(option) <= {
                    "text",
                    "explain",
                    "correct",
                }:
                    raise found.error(index, f"option {position}: fields are text, explain and, for one, correct: true")
                found.bilingual(index, option["text"], f"option {position}, text")
                found.bilingual(index, option["explain"], f"option {position}, explain")
            correct = sum(option.get("correct") is True for option in options)
            if len(options) < 2 or correct != 1:
                raise found.error(
                    index, f"{len(options)} options, {correct} correct; expected two or more, one correct"
                )
        return self._by_id(found)

    @cached_property
    def predictions(self) -> dict[str, dict]:
        """Predict-then-run prompts by id: {question, options: [{id, text}] or number: true, tolerance, explain}."""
        found = self._quiz("predictions", ("id", "question"), ("options", "number", "tolerance", "explain"))
        for index, entry in enumerate(found.items):
            found.bilingual(index, entry["question"], "question")
            if "explain" in entry:
                found.bilingual(index, entry["explain"], "explain")
            for position, option in enumerate(entry.get("options") or [], start=1):
                if not isinstance(option, dict) or set(option) != {"id", "text"}:
                    raise found.error(index, f"option {position}: fields are id and text")
                found.bilingual(index, option["text"], f"option {position}, text")
        return self._by_id(found)

    @cached_property
    def article_rows(self) -> list[dict]:
        """Rows of article.yaml: {article, paper, claim (full id or None), goes_beyond, note}."""
        path = self.folder / "article.yaml"
        found = read_list(path, required=("article", "paper"), optional=("claim", "goes_beyond", "note"))
        rows = []
        for index, entry in enumerate(found.items):
            for name in ("article", "paper", *(["note"] if entry.get("note") else [])):
                found.bilingual(index, entry[name], name)
            if not isinstance(entry.get("goes_beyond", False), bool):
                raise found.error(index, f"goes_beyond: expected true or false, found {entry['goes_beyond']!r}")
            claim = full_id(self.number, entry["claim"]) if entry.get("claim") else None
            rows.append({"note": None, "goes_beyond": False, **entry, "claim": claim})
        return rows

    def _quiz(self, part: str, required: tuple[str, ...], optional: tuple[str, ...]) -> YamlList:
        path = self.folder / "quiz.yaml"
        loaded, lines = load_with_lines(path) if path.is_file() else ({}, {})
        if loaded and (not isinstance(loaded, dict) or set(loaded) - {"questions", "predictions"}):
            raise YamlList(path, [], lines).error(
                None, "expected the lists 'questions:' and 'predictions:', nothing else"
            )
        return read_list(path, part, required=required, optional=optional)

    def _by_id(self, found: YamlList) -> dict[str, dict]:
        return {full_id(self.number, entry["id"]): entry for entry in found.items}


def lesson_files(number: int | str, project: Project | None = None) -> LessonFiles:
    """The files of one lesson ("01", 1 and "l01" are the same); an unknown number: ManifestError that lists them."""
    return LessonFiles(load_lesson(str(number).strip().lower().removeprefix("l"), project))
