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
from typing import Annotated, Any

from pydantic import AfterValidator, StrictBool, TypeAdapter, ValidationError

from labkit.course.manifest import ExerciseInfo, Lesson, Project, load_lesson
from labkit.course.schema import Bilingual, Number, Strict, must, problems, with_different_ids
from labkit.course.yamlfile import load_with_lines
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


class Answer(Strict):
    """One option of a question."""

    text: Bilingual
    explain: Bilingual
    correct: StrictBool = False


class Question(Strict):
    """A quiz question."""

    id: str
    question: Bilingual
    options: Annotated[
        list[Answer],
        must(
            lambda options: len(options) > 1 and sum(one.correct for one in options) == 1,
            "two or more options, one of them with correct: true",
        ),
    ]
    keep_order: StrictBool = False


class Choice(Strict):
    """One option of a prediction."""

    id: str
    text: Bilingual


class Prediction(Strict):
    """A predict-then-run prompt: options, a number, or (neither) a free text."""

    id: str
    question: Bilingual
    options: list[Choice] = []
    number: StrictBool = False
    tolerance: Number = 0
    explain: Bilingual | None = None


class Quiz(Strict):
    """quiz.yaml."""

    questions: Annotated[list[Question], AfterValidator(with_different_ids)] = []
    predictions: Annotated[list[Prediction], AfterValidator(with_different_ids)] = []


class ArticleRow(Strict):
    """One row of article.yaml."""

    article: Bilingual
    paper: Bilingual
    claim: str | None = None
    goes_beyond: StrictBool = False
    note: Bilingual | None = None


def read_checked(path: Path, kind: Any) -> Any:
    """The content of a YAML file that fits the type `kind`, as it stands there; None for a missing or empty file.

    Raises:
        CourseError: what is wrong first, as 'l01/quiz.yaml:12: ...'.
    """
    data, lines = load_with_lines(path) if path.is_file() else (None, {})
    try:
        if data is not None:
            TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        line, message, cure = next(problems(error, kind, lines))
        raise CourseError(f"{path.parent.name}/{path.name}:{line}: {message}; {cure}") from None
    return data


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
        return self._quiz("questions")

    @cached_property
    def predictions(self) -> dict[str, dict]:
        """Predict-then-run prompts by id: {question, options: [{id, text}] or number: true, tolerance, explain}."""
        return self._quiz("predictions")

    def _quiz(self, part: str) -> dict[str, dict]:
        entries = (read_checked(self.folder / "quiz.yaml", Quiz) or {}).get(part, [])
        return {full_id(self.number, entry["id"]): entry for entry in entries}

    @cached_property
    def article_rows(self) -> list[dict]:
        """Rows of article.yaml: {article, paper, claim (full id or None), goes_beyond, note}."""
        rows = read_checked(self.folder / "article.yaml", list[ArticleRow]) or []
        named = [row | {"claim": full_id(self.number, row["claim"])} if row.get("claim") else row for row in rows]
        return [{"note": None, "goes_beyond": False, "claim": None, **row} for row in named]


def lesson_files(number: int | str, project: Project | None = None) -> LessonFiles:
    """The files of one lesson ("01", 1 and "l01" are the same); an unknown number: ManifestError that lists them."""
    return LessonFiles(load_lesson(str(number).strip().lower().removeprefix("l"), project))
