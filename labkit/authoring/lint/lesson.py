"""Lints of a lesson as a whole: parameters and setup, and the names that refer to the files in its folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.authoring.lint.code import calls, function_name
from labkit.authoring.source import Cell, Problem, Source
from labkit.course.lesson_files import full_id

PARAMETERS = {"tier": "cpu", "lang": None, "seed": None, "strict": False, "interactive": True}

Trees = list[tuple[Cell, ast.Module]]


@dataclass
class Names:
    """What a lesson's other files define: ids in full ("l01.add_noise"), sizes by name; None for files with errors."""

    number: str
    folder: str  # as problems call it
    exercises: dict[str, int] | None = None  # lesson.yaml: id -> line
    sizes: set[str] | None = None  # lesson.yaml
    checks: dict[str, int] | None = None  # checks.py: id -> line
    questions: set[str] | None = None
    predictions: set[str] | None = None
    claims: set[str] | None = None


def lint_lesson(source: Source, names: Names, file: str) -> Iterator[Problem]:
    """Parameters, setup, sizes and ids of one source, as far as its cells are Python."""
    trees: Trees = []
    for cell in source.code_cells:
        try:
            trees.append((cell, ast.parse(cell.source)))
        except SyntaxError:
            continue  # reported by lint_code
    yield from _parameters(trees, file)
    yield from _setup(trees, names, file)
    yield from _ids(trees, names, file)
    for cell, tree in trees:
        yield from _sizes(tree, names, file, cell.body_line)


def _sizes(tree: ast.Module, names: Names, file: str, first_line: int) -> Iterator[Problem]:
    if names.sizes is None:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "sizes":
            if getattr(node.value.value, "id", "") == "lab" and node.attr not in names.sizes:
                cure = f"add it under sizes: (they are: {', '.join(sorted(names.sizes)) or 'none'})"
                message = f"lesson.yaml has no size {node.attr!r}"
                yield Problem(file, first_line + node.lineno - 1, "size-missing", message, cure)


def _parameters(trees: Trees, file: str) -> Iterator[Problem]:
    rule, tagged = "parameters-tag", [(cell, tree) for cell, tree in trees if "parameters" in cell.tags]
    if not tagged:
        cure = 'add one: # %% uid="parameters" tags=["parameters"]'
        yield Problem(file, 1, rule, "no code cell has the tag parameters", cure)
    for cell, _ in tagged[1:]:
        message = f"a second parameters cell (the first is in line {tagged[0][0].line})"
        yield Problem(file, cell.line, rule, message, "papermill takes one only; join them")
    for cell, tree in tagged[:1]:
        values: dict[str, Any] = {}
        for node in tree.body:
            value = _simple(node)
            if value is None:
                message = f"not a simple literal: {ast.unparse(node)[:60]}"
                cure = "only name = number, text, True, False or None may stand here"
                yield Problem(file, cell.body_line + node.lineno - 1, rule, message, cure)
            else:
                values.update(value)
        for name, default in PARAMETERS.items():
            if name not in values or (default is not None and values[name] != default):
                wanted = f"{name} = {default!r}" if default is not None else name
                message, cure = f"the parameters cell lacks {wanted}", "see the guide in labkit/authoring/source.py"
                yield Problem(file, cell.line, rule, message, cure)


def _simple(node: ast.stmt) -> dict[str, Any] | None:
    """{name: value} of `name = literal`, else None."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
        return None
    value = node.value.operand if isinstance(node.value, ast.UnaryOp) else node.value
    return {node.targets[0].id: value.value} if isinstance(value, ast.Constant) else None


def _setup(trees: Trees, names: Names, file: str) -> Iterator[Problem]:
    call = f'lab = start("{names.number}", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)'
    order = [cell.uid for cell, _ in trees]
    tagged = [(cell, tree) for cell, tree in trees if "setup" in cell.tags]
    if len(tagged) != 1:
        line = tagged[1][0].line if tagged else 1
        yield Problem(file, line, "setup-cell", f"{len(tagged)} cells have the tag setup", f"one cell sets up: {call}")
        return
    cell, tree = tagged[0]
    found = any(
        number == names.number
        and set(PARAMETERS) <= {word.arg for word in node.keywords if getattr(word.value, "id", "") == word.arg}
        for node, number in calls(tree, ("start",))
    )
    if not found:
        yield Problem(file, cell.line, "setup-cell", "the setup cell does not start this lesson", f"write {call}")
    before = [other.uid for other, _ in trees if "parameters" in other.tags]
    if before and order.index(before[0]) > order.index(cell.uid):
        yield Problem(file, cell.line, "setup-cell", "setup stands before the parameters", "parameters come first")


def _ids(trees: Trees, names: Names, file: str) -> Iterator[Problem]:
    """Checks, questions, predictions, claims: used but undefined, defined but unused; exercises without entry."""
    number, yaml = names.number, f"{names.folder}/lesson.yaml"
    nodes = [node for _, tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    all_asked = any(function_name(node) == "quiz" and not node.args for node in nodes)  # lab.quiz() shows all questions
    kinds = (
        ("check-id", ("check", "use", "hint", "solution"), names.checks, "checks.py", "exercise"),
        ("quiz-id", ("quiz",), names.questions, "quiz.yaml", "question"),
        ("quiz-id", ("predict", "reveal"), names.predictions, "quiz.yaml", "prediction"),
        ("claim-id", ("claim",), names.claims, "claims.yaml", "claim"),
    )
    for rule, functions, defined, where, kind in kinds:
        if defined is None:
            continue
        used: dict[str, set[str]] = {}
        for cell, tree in trees:
            for node, short in calls(tree, functions):
                used.setdefault(full_id(number, short), set()).add(function_name(node))
                if full_id(number, short) not in defined:
                    cure = f"{where} of the lesson defines: {', '.join(sorted(defined)) or 'none'}"
                    line = cell.body_line + node.lineno - 1
                    yield Problem(file, line, rule, f"there is no {kind} {short!r}", cure)
        for full in sorted(set(defined) - {full for full, by in used.items() if functions[0] in by}):
            if not (functions[0] == "quiz" and all_asked):
                cure = f'call lab.{functions[0]}("{full.split(".", 1)[1]}") in the lesson, or remove it from {where}'
                yield Problem(f"{names.folder}/{where}", 1, rule, f"{kind} {full!r} is never used in the lesson", cure)
    if names.exercises is None:
        return
    cells = {full_id(number, cell.exercise): cell for cell, _ in trees if cell.exercise}
    for full, cell in cells.items():
        if full not in names.exercises:
            cure = f"add {{id: {full}, difficulty: 1-5, importance: 1-5, minutes: 10}} to {yaml}"
            message = f"exercise {full!r} has no difficulty, importance and minutes"
            yield Problem(file, cell.line, "exercise-meta", message, cure)
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
