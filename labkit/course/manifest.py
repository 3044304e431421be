"""What a lesson is: `lesson.yaml` in its folder, and where everything of a lesson lies.

A lesson has a number ("01"), a source `notebooks/src/01_name.py`, and a folder `labkit/course/lessons/l01/`:

    number: "01"
    name: diffusion_essentials
    title: {en: Diffusion essentials, ja: 拡散モデルの基礎}
    summary: {en: One or two sentences., ja: 一、二文の要約。}
    prerequisites: ["00"]                                    # lesson numbers, may be empty
    references:                                              # papers, articles (title: text or {en, ja}), may be empty
      - {id: ddpm, title: Denoising Diffusion Probabilistic Models, year: 2020, url: "https://arxiv.org/abs/2006.11239"}
    objectives: {en: [what the learner can do afterwards], ja: [学べること]}
    minutes: {smoke: 0.4, cpu: 6, gpu: null}                 # measured; null where nobody has measured yet
    sizes:                                                   # lab.sizes.<name>; a plain value holds for all tiers
      images: {smoke: 4, cpu: 64, gpu: 256}
    exercises:
      - {id: l01.add_noise, difficulty: 2, importance: 5, minutes: 10}
    last_checked: {date: 2026-11-22, python: "3.11", torch: "2.13.0"}      # or null; further keys are shown as they are

`Project` says where these files lie; tests and other courses point it at another root. Without a clone (labkit was
installed from a wheel) the root is the folder of the installed packages: lessons and student editions are there, sources
and pyproject.toml are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.course.i18n import LANGUAGES
from labkit.course.yamlfile import Lines, YamlError, load_with_lines
from labkit.errors import LabkitError

TIERS = ("smoke", "cpu", "gpu")
ROOT = Path(__file__).resolve().parents[2]
EXERCISE_ID = re.compile(r"(?:l\d\d\.)?[a-z][a-z0-9_-]*")
SOURCE_NAME = re.compile(r"(\d\d)_([a-z0-9_]+)\.py")


class ManifestError(LabkitError, ValueError):
    """A lesson.yaml that cannot be used, or a lesson that does not exist."""


@dataclass(frozen=True)
class Project:
    """Where the files of a course lie, below one root folder."""

    root: Path = ROOT

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    @property
    def sources(self) -> Path:
        return self.root / "notebooks" / "src"

    @property
    def notebooks(self) -> Path:
        """The student editions, en/*.ipynb and ja/*.ipynb: notebooks/ of the clone, or where a wheel has them."""
        packed = self.root / "labkit" / "_notebooks"
        return packed if packed.is_dir() else self.root / "notebooks"

    @property
    def course(self) -> Path:
        return self.root / "labkit" / "course"

    @property
    def lessons(self) -> Path:
        return self.course / "lessons"

    @property
    def stamp(self) -> Path:
        return self.root / "labkit" / "authoring" / "stamp.yaml"

    @property
    def pyproject(self) -> Path:
        return self.root / "pyproject.toml"

    def folder(self, number: str) -> Path:
        """The folder of a lesson: "01" -> labkit/course/lessons/l01."""
        return self.lessons / f"l{number}"

    def notebook(self, stem: str, lang: str, edition: str = "student") -> Path:
        """The generated notebook of a source stem ("01_name"); student editions are committed, solutions are not."""
        if edition == "solution":
            return self.root / "build" / lang / "solution" / f"{stem}.ipynb"
        return self.notebooks / lang / f"{stem}.ipynb"

    def source_files(self) -> list[Path]:
        """All lesson sources, by number. Raises ManifestError for two sources with one number."""
        found: dict[str, Path] = {}
        for path in sorted(self.sources.glob("*.py")):
            match = SOURCE_NAME.fullmatch(path.name)
            if not match:
                raise ManifestError(f"{path.name} in {self.sources}: a lesson source is called NN_name.py; rename it")
            if match[1] in found:
                raise ManifestError(f"{found[match[1]].name} and {path.name} share the number {match[1]}; renumber one")
            found[match[1]] = path
        return list(found.values())

    def relative(self, path: Path) -> str:
        """`path` below the root, with forward slashes, as messages and notebooks show it."""
        path = Path(path)
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()


@dataclass(frozen=True)
class ExerciseInfo:
    """One exercise: its id, difficulty and importance (1-5), and the minutes it takes."""

    id: str
    difficulty: int
    importance: int
    minutes: float


@dataclass(frozen=True)
class Lesson:
    """A checked lesson.yaml. Texts are {"en": ..., "ja": ...}; `minutes[tier]` is None where nobody has measured."""

    number: str
    name: str
    title: Mapping[str, str]
    summary: Mapping[str, str]
    objectives: Mapping[str, list[str]]
    minutes: Mapping[str, float | None]
    folder: Path
    sizes: Mapping[str, Any] = field(default_factory=dict)
    exercises: tuple[ExerciseInfo, ...] = ()
    prerequisites: tuple[str, ...] = ()
    references: tuple[Mapping[str, Any], ...] = ()
    last_checked: Mapping[str, str] | None = None

    @property
    def stem(self) -> str:
        """File name of the lesson's notebooks without the ending: "01_diffusion_essentials"."""
        return f"{self.number}_{self.name}"

    def sizes_for(self, tier: str) -> dict[str, Any]:
        """The sizes of one tier: {"images": 64}. Raises ManifestError for an unknown tier."""
        if tier not in TIERS:
            raise ManifestError(f"unknown tier {tier!r}; choose one of {', '.join(TIERS)}")
        return {name: value[tier] if isinstance(value, dict) else value for name, value in self.sizes.items()}

    def exercise(self, id: str) -> ExerciseInfo:
        """The exercise `id`, short ("add_noise") or full ("l01.add_noise"); ManifestError lists the ids there are."""
        for exercise in self.exercises:
            if exercise.id in (id, f"l{self.number}.{id}"):
                return exercise
        known = ", ".join(exercise.id for exercise in self.exercises) or "none"
        raise ManifestError(f"lesson {self.number} has no exercise {id!r}; it has: {known}")


def lesson_numbers(project: Project | None = None) -> list[str]:
    """Numbers of all lessons that have a folder with a lesson.yaml: ["00", "01", ...]."""
    return sorted(path.parent.name[1:] for path in (project or Project()).lessons.glob("l[0-9][0-9]/lesson.yaml"))


def load_lesson(number: str, project: Project | None = None) -> Lesson:
    """The checked lesson.yaml of lesson `number` ("01"; 1 and "1" are understood too).

    Raises ManifestError for an unknown number (with the known ones) and for an incomplete file (file, line, cure).
    """
    project = project or Project()
    number = str(number).zfill(2)
    known = lesson_numbers(project)
    if number not in known:
        raise ManifestError(f"there is no lesson {number!r}; the lessons are: {', '.join(known) or 'none'}")
    path = project.folder(number) / "lesson.yaml"
    for line, message, cure in lesson_problems(path):
        raise ManifestError(f"{project.relative(path)}:{line}: {message}; {cure}")
    data = load_with_lines(path)[0]
    return Lesson(
        number=data["number"],
        name=data["name"],
        title=data["title"],
        summary=data["summary"],
        objectives=data["objectives"],
        minutes=data["minutes"],
        folder=path.parent,
        sizes=data.get("sizes") or {},
        exercises=tuple(ExerciseInfo(**entry) for entry in data.get("exercises") or []),
        prerequisites=tuple(data.get("prerequisites") or []),
        references=tuple(data.get("references") or []),
        last_checked=data["last_checked"],
    )


def all_lessons(project: Project | None = None) -> list[Lesson]:
    """Every lesson of the course, by number."""
    return [load_lesson(number, project) for number in lesson_numbers(project)]


_KEYS = {
    *("number", "name", "title", "summary", "objectives", "minutes", "last_checked"),
    *("sizes", "exercises", "prerequisites", "references"),
}
_REQUIRED = ("number", "name", "title", "summary", "objectives", "minutes", "last_checked")


def lesson_problems(path: Path) -> Iterator[tuple[int, str, str]]:
    """Everything that is wrong with a lesson.yaml, as (line, what is wrong, how to mend it)."""
    try:
        data, lines = load_with_lines(path)
    except YamlError as error:
        yield error.line, error.reason, "see the module docstring of labkit.course.manifest for the format"
        return
    if not isinstance(data, dict):
        yield 1, "not a mapping", "see the module docstring of labkit.course.manifest for the format"
        return
    for key in _REQUIRED:
        if key not in data:
            yield 1, f"{key!r} is missing", f"add {key}: (see the module docstring of labkit.course.manifest)"
    for key in data.keys() - _KEYS:
        yield lines[(key,)], f"unknown key {key!r}", f"keys are {', '.join(sorted(_KEYS))}"
    for check in (_identity, _texts, _numbers, _exercises, _links):
        yield from check(data, lines, Path(path))


def _identity(data: dict, lines: Lines, path: Path) -> Iterator[tuple[int, str, str]]:
    number, name = data.get("number", "00"), data.get("name", "x")
    if not isinstance(number, str) or not re.fullmatch(r"\d\d", number):
        yield lines[("number",)], f"number is {number!r}", 'write two digits in quotes: number: "01"'
    elif "number" in data and path.parent.name != f"l{number}":
        yield lines[("number",)], f"number {number!r} in the folder {path.parent.name}", f"call the folder l{number}"
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name):
        yield lines[("name",)], f"name is {name!r}", "use lower-case letters, digits and underscores, as in the source"


def _texts(data: dict, lines: Lines, path: Path) -> Iterator[tuple[int, str, str]]:
    for key, kind in (("title", str), ("summary", str), ("objectives", list)):
        if key not in data:
            continue
        value, line = data[key], lines[(key,)]
        what = "a text" if kind is str else "a list of texts"
        for lang in LANGUAGES:
            text = value.get(lang) if isinstance(value, dict) else None
            items = text if isinstance(text, list) else [text]
            filled = bool(items) and all(isinstance(item, str) and item.strip() for item in items)
            if not isinstance(text, kind) or not filled:
                yield line, f"{key} has no {lang!r}", f"give {what} in each language: {key}: {{en: ..., ja: ...}}"
    value = data.get("objectives")
    if isinstance(value, dict) and all(isinstance(value.get(lang), list) for lang in LANGUAGES):
        counts = {lang: len(value[lang]) for lang in LANGUAGES}
        if counts["en"] != counts["ja"]:
            yield lines[("objectives",)], f"{counts['en']} objectives in en, {counts['ja']} in ja", "make them match"


def _numbers(data: dict, lines: Lines, path: Path) -> Iterator[tuple[int, str, str]]:
    if "minutes" in data:
        minutes = data["minutes"] if isinstance(data["minutes"], dict) else {}
        for tier in TIERS:
            value = minutes.get(tier, "missing")
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
                continue
            yield lines[("minutes",)], f"minutes.{tier} is {value!r}", "give measured minutes, or null if unknown"
    sizes = data.get("sizes") or {}
    if not isinstance(sizes, dict):
        yield lines[("sizes",)], "sizes is not a mapping", "write sizes: {name: {smoke: 1, cpu: 2, gpu: 3}}"
        return
    for name, values in sizes.items():
        if not str(name).isidentifier():
            yield lines[("sizes", name)], f"size name {name!r}", "use a Python name: it is read as lab.sizes.<name>"
        if values is None or (isinstance(values, dict) and (set(values) != set(TIERS) or None in values.values())):
            yield lines[("sizes", name)], f"sizes.{name} lacks a tier", f"give one value for each of {', '.join(TIERS)}"


def _exercises(data: dict, lines: Lines, path: Path) -> Iterator[tuple[int, str, str]]:
    entries = data.get("exercises") or []
    if not isinstance(entries, list):
        yield lines[("exercises",)], "exercises is not a list", "write - {id: ..., difficulty: ..., ...} per exercise"
        return
    seen: set[str] = set()
    example = "write {id: l01.add_noise, difficulty: 1-5, importance: 1-5, minutes: 10}"
    for index, entry in enumerate(entries):
        line = lines[("exercises", index)]
        if not isinstance(entry, dict) or set(entry) != {"id", "difficulty", "importance", "minutes"}:
            yield line, "an exercise needs exactly id, difficulty, importance and minutes", example
            continue
        id = entry["id"]
        if not isinstance(id, str) or not EXERCISE_ID.fullmatch(id):
            yield line, f"exercise id {id!r}", "write it as l01.add_noise: lesson, dot, lower-case name"
        elif id in seen:
            yield line, f"exercise {id!r} stands here twice", "rename or remove one"
        seen.add(str(id))
        for key in ("difficulty", "importance"):
            if isinstance(entry[key], bool) or entry[key] not in (1, 2, 3, 4, 5):
                yield line, f"{key} of exercise {id!r} is {entry[key]!r}", "give a whole number from 1 to 5"
        if isinstance(entry["minutes"], bool) or not isinstance(entry["minutes"], int | float) or entry["minutes"] <= 0:
            yield line, f"minutes of exercise {id!r} is {entry['minutes']!r}", "give the minutes a learner needs"


def _links(data: dict, lines: Lines, path: Path) -> Iterator[tuple[int, str, str]]:
    for number in data.get("prerequisites") or []:
        folder = path.parent.parent / f"l{number}"
        if not isinstance(number, str) or not (folder / "lesson.yaml").exists():
            yield lines[("prerequisites",)], f"prerequisite {number!r} is no lesson", 'name lessons that exist: ["00"]'
    for index, entry in enumerate(data.get("references") or []):
        if not isinstance(entry, dict) or not {"id", "title", "url"} <= set(entry):
            yield lines[("references", index)], "a reference needs id, title and url", "add them (year is welcome too)"
    checked = data.get("last_checked")
    date = checked.get("date") if isinstance(checked, dict) else None
    if checked is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", str(date)):
        cure = 'write {date: 2026-11-22, python: "3.11", torch: "2.13.0"}, or null if never checked'
        yield lines[("last_checked",)], f"last_checked is {checked!r}", cure
