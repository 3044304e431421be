"""Lints of the files beside the sources: YAML in two languages, texts of modules, text that must not occur."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.authoring.lint.code import messages
from labkit.authoring.lint.text import compare, lint_terms
from labkit.authoring.source import Problem
from labkit.course.claim_file import declared
from labkit.course.i18n import LANGUAGES, Catalogue, flatten, is_entry, key_of, placeholders
from labkit.course.lesson_files import CourseError, LessonFiles
from labkit.course.manifest import Project
from labkit.course.yamlfile import YamlError, load_with_lines

FORBIDDEN = (
    (
        re.compile(r"pip3?\s+install\s+(?:-\S+\s+)*[\"']?labkit(?![-\w/])"),
        "labkit on PyPI is an unrelated package",
        "write pip install -e . in a clone; the distribution is called diffusion-labkit",
    ),
)
_TEXT = frozenset(".py .md .yaml .yml .toml .ipynb .tmpl .txt .cfg .sh".split())
_SKIP = frozenset("build dist data tests node_modules __pycache__".split())


def lint_yaml(path: Path, file: str, *, catalogue: bool = False) -> Iterator[Problem]:
    """Texts of a YAML file: both languages there, same placeholders (catalogues), formulas and links, agreed terms."""
    try:
        tree, lines = load_with_lines(path)
    except YamlError as error:
        yield Problem(file, error.line, "lesson-files", error.reason, "correct the YAML there")
        return
    if catalogue:
        for where, leaf in flatten(tree or {}):
            if not is_entry(leaf):
                cure = "write {en: text, ja: text}"
                yield Problem(file, lines.get(where, 1), "message-missing", f"{key_of(where)!r} is {leaf!r:.40}", cure)
    for where, entry in _entries(tree, ()):
        yield from _entry(entry, where, lines, file, catalogue)


def _entries(tree: Any, where: tuple) -> Iterator[tuple[tuple, dict]]:
    if is_entry(tree):
        yield where, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _entries(value, (*where, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _entries(value, (*where, index))


def _entry(entry: dict, where: tuple, lines: dict, file: str, catalogue: bool) -> Iterator[Problem]:
    what = repr(key_of(where))
    at = {lang: lines.get((*where, lang), lines.get(where, 1)) for lang in LANGUAGES}
    for lang in LANGUAGES:
        value = entry.get(lang)
        items = value if isinstance(value, list) else [value]
        if not items or not all(isinstance(item, str) and item.strip() for item in items):
            message, cure = f"{what} has no text in {lang}", "give it in both languages: {en: ..., ja: ...}"
            yield Problem(file, at[lang], "message-missing", message, cure)
            return
    if isinstance(entry["en"], str) and isinstance(entry["ja"], str):
        yield from compare(entry, at, file, what)
        if catalogue:
            yield from _placeholders(entry, at, file, what)
    for text in entry["ja"] if isinstance(entry["ja"], list) else [entry["ja"]]:
        yield from lint_terms(text.replace("\n", " "), at["ja"], file)


def _placeholders(entry: dict, at: dict, file: str, what: str) -> Iterator[Problem]:
    names: dict[str, set[str]] = {}
    for lang in LANGUAGES:
        try:
            names[lang] = placeholders(entry[lang])
        except ValueError as error:
            cure = "name every placeholder, and double the braces of formulas: {{ }}"
            yield Problem(file, at[lang], "message-placeholders", f"{what} in {lang}: {error}", cure)
            return
    if names["en"] != names["ja"]:
        only = ", ".join(f"{{{name}}}" for name in sorted(names["en"] ^ names["ja"]))
        message = f"{what}: placeholder {only} stands in one language only"
        yield Problem(file, at["ja"], "message-placeholders", message, "use the same placeholders in en and ja")


def lint_python_messages(path: Path, catalogue: Catalogue, exercises: set[str], file: str) -> Iterator[Problem]:
    """Catalogue keys in a module of the course: t("key"), and the keys of its own lesson in checks.py."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from messages(tree, catalogue, file, 1)
    if path.name == "checks.py" and re.fullmatch(r"l\d\d", path.parent.name):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                key = node.value
                if re.fullmatch(rf"{path.parent.name}\.[\w.-]+", key) and key not in exercises and key not in catalogue:
                    cure = "add it with en and ja to messages.yaml of the lesson"
                    yield Problem(file, node.lineno, "message-missing", f"there is no message {key!r}", cure)


def lint_lesson_files(files: LessonFiles, project: Project) -> Iterator[Problem]:
    """quiz.yaml, claims.yaml and article.yaml as the course reads them."""
    parts = (
        lambda: files.questions,
        lambda: files.predictions,
        lambda: files.article_rows,
        lambda: declared(files.number, project),
    )
    for part in parts:
        try:
            part()
        except (CourseError, YamlError) as error:
            match = re.fullmatch(r"(?:.*?/)?(\w+\.yaml):(\d+): (.*)", str(error), re.S)
            name, line, message = match.groups() if match else ("lesson.yaml", "1", str(error))
            path = project.relative(files.folder / name)
            yield Problem(path, int(line), "lesson-files", message, "see the guide in labkit/course/checks.py")


def lint_forbidden(project: Project) -> Iterator[Problem]:
    """Text that must not occur anywhere in the repository (tests aside)."""
    for folder, folders, names in os.walk(project.root):
        folders[:] = sorted(name for name in folders if name not in _SKIP and (name[0] != "." or name == ".github"))
        for name in sorted(names):
            if Path(name).suffix in _TEXT or name == "Makefile":
                path = Path(folder, name)
                text = path.read_text(encoding="utf-8", errors="replace")
                for pattern, message, cure in FORBIDDEN:
                    for match in pattern.finditer(text):
                        line = text.count("\n", 0, match.start()) + 1
                        yield Problem(project.relative(path), line, "forbidden-text", message, cure)
