"""`labkit lint`: what is wrong with the lessons, each finding with file, line, and how to mend it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.authoring.build import BuildError, drift, select
from labkit.authoring.lint.code import lint_code
from labkit.authoring.lint.files import (
    lint_forbidden,
    lint_lesson_files,
    lint_python_messages,
    lint_yaml,
)
from labkit.authoring.lint.lesson import Names, declared_exercises, lint_lesson
from labkit.authoring.lint.stats import report
from labkit.authoring.lint.text import lint_pairs, lint_terms
from labkit.authoring.regions import only_language
from labkit.authoring.source import Problem, Source, SourceError, read_source, write_source
from labkit.course.claim_file import declared
from labkit.course.i18n import MESSAGES, Catalogue, common_messages, load_messages
from labkit.course.lesson_files import CourseError, LessonFiles, full_id
from labkit.course.manifest import ManifestError, Project, lesson_numbers, lesson_problems, load_lesson
from labkit.course.yamlfile import YamlError, load_with_lines

RULES = {
    "malformed-source": "cells, options, regions and code of a source can be read",
    "source-format": "a source is in canonical form",
    "duplicate-uid": "every uid is used once (once per language) and none is the builder's",
    "unknown-tag": "cells carry known tags only",
    "pair-missing": "every Markdown cell has its other language next to it",
    "pair-stale": "both sides of a pair have been compared since either changed",
    "math-differs": "both languages have the same formulas",
    "links-differ": "both languages have the same links and images",
    "headings-differ": "both languages have the same heading levels",
    "solution-leak": "no solution text stands in a student edition",
    "non-english-literal": "texts that code shows come from the catalogue",
    "comment-language": "comments and docstrings in words stand there in both languages",
    "parameters-tag": "one parameters cell, of simple literals, with the five parameters of every lesson",
    "setup-cell": "one setup cell, after the parameters, starts this lesson with them",
    "exercise-meta": "every exercise cell has difficulty, importance and minutes in lesson.yaml, and the reverse",
    "check-id": "checks that are defined are used",
    "quiz-id": "questions and predictions that are defined are used",
    "claim-id": "claims that are declared are recorded",
    "message-missing": "every message key exists, in both languages",
    "message-placeholders": "placeholders are the same in both languages and are filled",
    "glossary": "Japanese texts use the agreed terms",
    "lesson-yaml": "lesson.yaml is complete and fits the source",
    "lesson-files": "quiz.yaml, claims.yaml, article.yaml and catalogues can be read",
    "generated-edited": "committed notebooks are what the builder makes",
    "forbidden-text": "no text tells anyone to install the unrelated package of the same name",
}


def lint(project: Project | None = None, numbers: Iterable[str] = (), *, generated: bool = True) -> list[Problem]:
    """All findings, sorted by file and line. `numbers` restricts them to some lessons (and skips what all share).

    `generated=False` leaves out the comparison of committed notebooks with what the builder makes. Raises ManifestError
    for an unknown lesson number.
    """
    project, numbers = project or Project(), list(numbers)
    problems = [problem for path in select(project, numbers) for problem in _lint_lesson(path, project)]
    if not numbers:
        problems += _lint_shared(project)
    if generated and not any(problem.rule in _UNBUILDABLE for problem in problems):
        try:
            problems += drift(project, numbers)
        except SourceError as error:
            problems += error.problems
        except BuildError as error:
            problems.append(Problem(project.relative(project.stamp), 1, "malformed-source", str(error), "see above"))
    return sorted(set(problems))


_UNBUILDABLE = ("malformed-source", "duplicate-uid", "unknown-tag", "pair-missing", "exercise-meta", "lesson-yaml")


def _lint_lesson(path: Path, project: Project) -> Iterator[Problem]:
    file, number = project.relative(path), path.name[:2]
    folder = project.folder(number)
    catalogue: Catalogue | None = Catalogue(common_messages())
    try:
        source = read_source(path, file)
    except SourceError as error:
        yield from error.problems
        return
    yield from source.problems
    yield from _format(source, file)
    yield from lint_pairs(source, file)
    for cell in source.cells:
        prose = cell.source if cell.lang == "ja" else only_language(cell.source, "ja") if cell.kind == "code" else ""
        yield from lint_terms(prose, cell.body_line, file)
    names = Names(number, project.relative(folder))
    checks = project.relative(folder / "checks.py")
    try:
        names.checks = declared_exercises(folder / "checks.py")
    except SyntaxError as error:
        yield Problem(checks, error.lineno or 1, "lesson-files", f"not Python: {error.msg}", "correct the code")
    if (folder / "messages.yaml").exists():
        yield from lint_yaml(folder / "messages.yaml", project.relative(folder / "messages.yaml"), catalogue=True)
        try:
            catalogue = Catalogue(load_messages(folder / "messages.yaml"), common_messages())
        except YamlError:  # reported above
            catalogue = None
    yield from _lesson_yaml(path, project, names)
    yield from lint_code(source, catalogue, file)
    yield from lint_lesson(source, names, file)
    if names.checks and catalogue:
        yield from lint_python_messages(folder / "checks.py", catalogue, set(names.checks), checks)


def _format(source: Source, file: str) -> Iterator[Problem]:
    if source.problems:
        return
    tidy = write_source(source)
    if tidy != source.text:
        pairs = zip(tidy.split("\n"), source.text.split("\n"), strict=False)
        line = next((index for index, (a, b) in enumerate(pairs, start=1) if a != b), 1)
        cure = f"run labkit build --tidy {source.number}, or see what it changes in this line"
        yield Problem(file, line, "source-format", "the file is not in canonical form", cure)


def _lesson_yaml(path: Path, project: Project, names: Names) -> Iterator[Problem]:
    """lesson.yaml and the files beside it; fills in `names`."""
    number, folder = names.number, project.folder(names.number)
    file = project.relative(folder / "lesson.yaml")
    found = list(lesson_problems(folder / "lesson.yaml"))
    for line, message, cure in found:
        yield Problem(file, line, "exercise-meta" if "exercise" in message else "lesson-yaml", message, cure)
    if found:
        return
    lesson, (_, lines) = load_lesson(number, project), load_with_lines(folder / "lesson.yaml")
    if lesson.stem != path.stem:
        message, cure = f"name is {lesson.name!r}, the source is {path.name}", "use one name for both"
        yield Problem(file, lines[("name",)], "lesson-yaml", message, cure)
    names.exercises = {
        full_id(number, exercise.id): lines[("exercises", index)] for index, exercise in enumerate(lesson.exercises)
    }
    for yaml in sorted(folder.glob("*.yaml")):
        if yaml.name != "messages.yaml":
            yield from lint_yaml(yaml, project.relative(yaml))
    files = LessonFiles(lesson)
    wrong = list(lint_lesson_files(files, project))
    yield from wrong
    if not wrong:
        names.questions, names.predictions = set(files.questions), set(files.predictions)
        names.claims = set(declared(number, project))


def _lint_shared(project: Project) -> Iterator[Problem]:
    """What all lessons share: the common catalogue, the course's modules, lessons without source, forbidden text."""
    catalogue = Catalogue(common_messages())
    if project.course == MESSAGES.parent:  # the course itself, not another project that uses its machinery
        for path in sorted(MESSAGES.glob("*.yaml")):
            yield from lint_yaml(path, project.relative(path), catalogue=True)
        for path in sorted(project.course.glob("*.py")):
            yield from lint_python_messages(path, catalogue, set(), project.relative(path))
    for path in [project.root / "README.ja.md", *sorted((project.course / "templates").glob("*.ja.md"))]:
        if path.exists():
            yield from lint_terms(path.read_text(encoding="utf-8"), 1, project.relative(path))
    written = {path.name[:2] for path in project.source_files()}
    for number in lesson_numbers(project):
        if number not in written:
            file = project.relative(project.folder(number) / "lesson.yaml")
            cure = "write notebooks/src/NN_name.py, or remove the folder"
            yield Problem(file, 1, "lesson-yaml", f"lesson {number} has no source", cure)
    yield from lint_forbidden(project)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register `labkit lint`."""
    parser = subparsers.add_parser("lint", help="check the lessons; every finding has file, line and cure")
    parser.add_argument("numbers", nargs="*", metavar="NN", help="lessons (default: all, and what they share)")
    parser.add_argument("--list", action="store_true", help="list the rules and exit")
    parser.add_argument("--stats", action="store_true", help="count prose, exercises and readings against the goals")
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(func=main)


def main(args: argparse.Namespace) -> int:
    """Run `labkit lint`: 0 nothing found, 1 findings (with --stats: a goal is missed), 2 unknown lesson."""
    if args.list:
        width = max(map(len, RULES))
        print("\n".join(f"{rule:{width}}  {text}" for rule, text in RULES.items()))
        return 0
    start = time.perf_counter()
    try:
        if args.stats:
            return report(args.root, args.numbers)
        problems = lint(Project(args.root) if args.root else None, args.numbers)
    except (ManifestError, CourseError, YamlError) as error:
        print(error, file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    seconds = time.perf_counter() - start
    print(f"{len(problems)} findings" if problems else f"no findings, {len(RULES)} rules, {seconds:.2f} s")
    return 1 if problems else 0
