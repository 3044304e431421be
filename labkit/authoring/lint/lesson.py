"""Lints of a lesson as a whole: parameters and setup, and the names that refer to the files in its folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.authoring.lint.code import calls, function_name
from labkit.authoring.source import Cell, Problem, Source
from labkit.course.lesson_files import full_id

PARAMETERS = {"tier": "cpu", "lang": "en", "seed": 0, "strict": False, "interactive": True}

Trees = list[tuple[Cell, ast.Module]]


@dataclass
class Names:
    """What a lesson's other files define: ids in full ("l01.add_noise"); None for files with errors."""

    number: str
    folder: str  # as problems call it
    exercises: dict[str, int] | None = None  # lesson.yaml: id -> line
    checks: dict[str, int] | None = None  # checks.py: id -> line
    questions: set[str] | None = None
    predictions: set[str] | None = None
    claims: set[str] | None = None


def lint_lesson(source: Source, names: Names, file: str) -> Iterator[Problem]:
    """Parameters, setup and ids of one source, as far as its cells are Python."""
    trees: Trees = []
    for cell in source.code_cells:
        try:
            trees.append((cell, ast.parse(cell.source)))
        except SyntaxError:
            continue  # the builder says so
    yield from _parameters(trees, file)
    yield from _setup(trees, names, file)
    yield from _ids(trees, names, file)


def _parameters(trees: Trees, file: str) -> Iterator[Problem]:
    rule, tagged = "parameters-tag", [(cell, tree) for cell, tree in trees if "parameters" in cell.tags]
    if len(tagged) != 1:
        line = tagged[1][0].line if tagged else 1
        yield Problem(file, line, rule, f"{len(tagged)} cells have the tag parameters", "papermill needs exactly one")
        return
    cell, tree = tagged[0]
    values: dict[str, object] = {}
    for node in tree.body:
        try:
            (target,) = node.targets
            values[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            message = f"not a simple literal: {ast.unparse(node)[:60]}"
            cure = "only name = number, text, True, False or None may stand here"
            yield Problem(file, cell.body_line + node.lineno - 1, rule, message, cure)
    for name, default in PARAMETERS.items():
        if values.get(name) != default:
            cure = "see the guide in labkit/authoring/source.py"
            yield Problem(file, cell.line, rule, f"the parameters cell lacks {name} = {default!r}", cure)


def _setup(trees: Trees, names: Names, file: str) -> Iterator[Problem]:
    call = f'lab = start("{names.number}", {", ".join(f"{name}={name}" for name in PARAMETERS)})'
    tags = [tag for cell, _ in trees for tag in cell.tags if tag in ("parameters", "setup")]
    cells = [cell for cell, _ in trees if "setup" in cell.tags]
    if tags[-2:] != ["parameters", "setup"] or len(cells) != 1 or call not in cells[0].source.split("\n"):
        line = cells[-1].line if cells else 1
        message = "there is no one setup cell, after the parameters, that starts this lesson with them"
        yield Problem(file, line, "setup-cell", message, f'write it with tags=["setup"]: {call}')


def _ids(trees: Trees, names: Names, file: str) -> Iterator[Problem]:
    """Checks, questions, predictions, claims that no cell uses (a run finds the reverse); exercises without entry."""
    number, yaml = names.number, f"{names.folder}/lesson.yaml"
    nodes = [node for _, tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    all_asked = any(function_name(node) == "quiz" and not node.args for node in nodes)  # lab.quiz() shows all questions
    kinds = (
        ("check-id", "check", names.checks, "checks.py", "exercise"),
        ("quiz-id", "quiz", names.questions, "quiz.yaml", "question"),
        ("quiz-id", "predict", names.predictions, "quiz.yaml", "prediction"),
        ("claim-id", "claim", names.claims, "claims.yaml", "claim"),
    )
    for rule, function, defined, where, kind in kinds:
        if defined is None:
            continue
        used = {full_id(number, short) for _, tree in trees for _, short in calls(tree, (function,))}
        for full in sorted(set(defined) - used):
            if not (function == "quiz" and all_asked):
                cure = f'call lab.{function}("{full.split(".", 1)[1]}") in the lesson, or remove it from {where}'
                yield Problem(f"{names.folder}/{where}", 1, rule, f"{kind} {full!r} is never used in the lesson", cure)
    if names.exercises is None:
        return
    cells = {full_id(number, cell.exercise) for cell, _ in trees if cell.exercise}  # the builder looks for the reverse
    for full, line in names.exercises.items():
        if full not in cells:
            cure = f'mark its cell: tags=["exercise"] exercise="{full.split(".", 1)[1]}", or remove the entry'
            yield Problem(yaml, line, "exercise-meta", f"exercise {full!r} has no cell in the lesson", cure)


def declared_exercises(path: Path) -> dict[str, int]:
    """Ids in `@exercise("id", ...)` of a checks.py, with their lines; the file is parsed, not run."""
    if not path.exists():
        return {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {key: node.lineno for node, key in calls(tree, ("exercise",))}
