"""Finds solution text in what students get."""

from __future__ import annotations

import re

from labkit.course.regions import in_language, split
from labkit.course.source import Cell, Problem, Source


def solution_leaks(source: Source, cells: list[tuple[str, str]], name: str) -> list[Problem]:
    """Solution text in the cells (id, text) of a student edition.

    A leak is a region marker, a cell for instructors, or the lines of a solution: all of it (if it is more than a few
    characters), or two or more of its lines in a row that the lesson does not show elsewhere anyway.
    """
    problems = []
    instructor = {cell.uid for cell in source.cells if "instructor" in cell.tags}
    shown = set()  # lines that the source shows outside of solutions
    solutions: list[tuple[Cell, int, list[str]]] = []
    for cell in source.code_cells:
        for block in split(cell.source):
            if block.kind == "solution":
                solutions.append((cell, cell.body_line + block.offset, _significant(list(block.lines))))
            elif block.kind == "text":
                shown |= set(_significant(in_language("\n".join(block.lines), "en").split("\n")))
    for uid, text in cells:
        marker = re.search(r"#\s*(BEGIN|END) (SOLUTION|STUB)", text)
        if marker or uid in instructor:
            what = f"the marker {marker[0]!r}" if marker else "a cell for instructors"
            cure = "rebuild with labkit build; never edit generated notebooks"
            problems.append(Problem(name, 1, "solution-leak", f"{what} stands in student cell {uid!r}", cure))
        lines = _significant(re.sub(r"[`>]", " ", text).split("\n"))
        for cell, line, solution in solutions:
            if _leaks(solution, lines, shown):
                message = f"the solution of {cell.exercise or cell.uid!r} stands in student cell {uid!r}"
                problems.append(Problem(name, line, "solution-leak", message, "move it into the solution region"))
    return problems


def _leaks(solution: list[str], lines: list[str], shown: set[str]) -> bool:
    secret = [line for line in solution if line not in shown]
    if not secret or sum(map(len, secret)) < 12:
        return False
    if len(solution) == 1 or len(secret) == 1:
        return secret[0] in lines
    pairs = {pair for pair in zip(solution, solution[1:], strict=False) if pair[0] in secret or pair[1] in secret}
    return any(pair in pairs for pair in zip(lines, lines[1:], strict=False))


def _significant(lines: list[str]) -> list[str]:
    """Code lines without comments and blanks, spaces squeezed; docstrings and trivial lines do not count."""
    squeezed = (re.sub(r"\s+", " ", re.sub(r"(^|\s)#.*", "", line)).strip() for line in lines)
    return [line for line in squeezed if len(line) > 3]
