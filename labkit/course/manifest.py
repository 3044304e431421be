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
installed from a wheel) the root is the folder of the installed packages: lessons and student editions are there,
sources and pyproject.toml are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictInt, ValidationError, ValidationInfo, field_validator

from labkit.course.i18n import LANGUAGES
from labkit.course.schema import Bilingual, Filled, Number, Strict, each, expected, must, problems, with_different_ids
from labkit.course.yamlfile import YamlError, load_with_lines
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


Grade = Annotated[StrictInt, Field(ge=1, le=5), expected("a whole number from 1 to 5")]
Minutes = Annotated[Number, Field(gt=0)]


class ExerciseInfo(Strict):
    """One exercise: its id, difficulty and importance (1-5), and the minutes it takes."""

    id: Annotated[str, Field(pattern=f"^(?:{EXERCISE_ID.pattern})$"), expected("l01.add_noise: lesson, dot, name")]
    difficulty: Grade
    importance: Grade
    minutes: Annotated[Minutes, expected("the minutes a learner needs")]


def _same_length(objectives: dict[str, list[str]]) -> dict[str, list[str]]:
    counts = {lang: len(texts) for lang, texts in objectives.items()}
    if len(set(counts.values())) != 1:
        raise ValueError("as many texts in each language, found " + ", ".join(f"{n} in {k}" for k, n in counts.items()))
    return objectives


def _for_all_tiers(size: Any) -> bool:
    return size is not None and not (isinstance(size, dict) and (set(size) != set(TIERS) or None in size.values()))


SizeName = Annotated[str, must(str.isidentifier, "a Python name: it is read as lab.sizes.<name>")]
Size = Annotated[Any, must(_for_all_tiers, f"one value for all tiers, or one for each of {', '.join(TIERS)}")]
Reference = Annotated[
    dict[str, Any], must(lambda one: {"id", "title", "url"} <= set(one), "id, title and url (year is welcome too)")
]
Checked = Annotated[dict[str, Any], must(lambda one: re.fullmatch(r"\d{4}-\d\d-\d\d", str(one.get("date"))), "a date")]


class Lesson(Strict):
    """A checked lesson.yaml. Texts are {"en": ..., "ja": ...}; `minutes[tier]` is None where nobody has measured."""

    folder: Path = Field(exclude=True)  # where the file lies; not a key of the file
    number: Annotated[str, Field(pattern=r"^\d\d$"), expected('two digits in quotes, as in number: "01"')]
    name: Annotated[str, Field(pattern="^[a-z0-9_]+$"), expected("lower-case letters, digits, _, as in the source")]
    title: Bilingual
    summary: Bilingual
    objectives: Annotated[each(LANGUAGES, Annotated[list[Filled], Field(min_length=1)]), AfterValidator(_same_length)]
    minutes: each(TIERS, Annotated[Minutes | None, expected("measured minutes, or null if unknown")])
    last_checked: Annotated[
        Checked | None,
        expected('{date: 2026-11-22, python: "3.11", torch: "2.13.0"}, or null if never checked'),
    ]
    sizes: dict[SizeName, Size] = {}
    exercises: Annotated[tuple[ExerciseInfo, ...], AfterValidator(with_different_ids)] = ()
    prerequisites: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()

    @field_validator("number")
    @classmethod
    def _is_that_of_its_folder(cls, number: str, info: ValidationInfo) -> str:
        if info.data["folder"].name != f"l{number}":
            raise ValueError(f"the number of the folder {info.data['folder'].name}")
        return number

    @field_validator("prerequisites")
    @classmethod
    def _are_lessons(cls, numbers: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if unknown := [one for one in numbers if not (info.data["folder"].parent / f"l{one}/lesson.yaml").exists()]:
            raise ValueError(f"lessons that exist; there is no lesson {', '.join(unknown)}")
        return numbers

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
    return Lesson(**load_with_lines(path)[0], folder=path.parent)


def all_lessons(project: Project | None = None) -> list[Lesson]:
    """Every lesson of the course, by number."""
    return [load_lesson(number, project) for number in lesson_numbers(project)]


def lesson_problems(path: Path) -> Iterator[tuple[int, str, str]]:
    """Everything that is wrong with a lesson.yaml, as (line, what is wrong, how to mend it)."""
    path = Path(path)
    try:
        data, lines = load_with_lines(path)
        Lesson.model_validate({**data, "folder": path.parent} if isinstance(data, dict) else data)
    except YamlError as error:
        yield error.line, error.reason, "see the module docstring of labkit.course.manifest for the format"
    except ValidationError as error:
        yield from problems(error, Lesson, lines)
