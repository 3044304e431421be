"""Finds solution text in what students get."""

from __future__ import annotations

import re
from collections.abc import Iterable

from labkit.authoring.regions import RegionError, split
from labkit.authoring.source import Cell, Source

Leak = tuple[str, str, int]  # message, cure, line of the source


def solution_leaks(source: Source, cells: Iterable[tuple[str, str]]) -> list[Leak]:
    """Solution text in the cells (id, text) of a student edition of `source`.

    A leak is a region marker; a cell for instructors; a whole solution, also in a comment or in Markdown; or a part of
    one (a long line, or two lines in a row) that the lesson does not show in shared code anyway.
    """
    leaks: list[Leak] = []
    instructor = {cell.uid: cell.line for cell in source.cells if "instructor" in cell.tags}
    shown: set[str] = set()  # lines of code outside of solutions
    solutions: list[tuple[Cell, int, list[str]]] = []
    for cell in source.code_cells:
        try:
            blocks = split(cell.source)
        except RegionError:  # a lint of its own; the builder stops there
            continue
        for block in blocks:
            if block.solution:
                solutions.append((cell, cell.body_line + block.offset, _lines("\n".join(block.lines), comments=False)))
            elif "instructor" not in cell.tags:
                shown |= set(_lines("\n".join(block.lines), comments=False))
    for uid, text in cells:
        marker = re.search(r"#\s*(BEGIN|END) SOLUTION", text)
        if marker or uid in instructor:
            what = f"the marker {marker[0]!r}" if marker else "a cell for instructors"
            cure = "run labkit build; generated notebooks are not edited by hand"
            leaks.append((f"{what} stands in student cell {uid!r}", cure, instructor.get(uid, 1)))
        lines = _lines(text, comments=True)
        for cell, line, solution in solutions:
            if _leaks(solution, lines, shown):
                message = f"the solution of {cell.exercise or cell.uid!r} stands in student cell {uid!r}"
                leaks.append((message, "take it out there, or move it into a solution region", line))
    return leaks


def _leaks(solution: list[str], lines: list[str], shown: set[str]) -> bool:
    size = len(solution)
    if sum(map(len, solution)) >= 16 and any(lines[i : i + size] == solution for i in range(len(lines) - size + 1)):
        return True
    secret = {line for line in solution if line not in shown}
    if any(line in secret and len(line) >= 30 for line in lines):
        return True
    pairs = {pair for pair in zip(solution, solution[1:], strict=False) if secret & set(pair)}
    return any(pair in pairs for pair in zip(lines, lines[1:], strict=False))


def _lines(text: str, *, comments: bool) -> list[str]:
    """Lines with blanks squeezed and trivial ones dropped; whole-line comments count as code if `comments`."""
    found = []
    for line in text.split("\n"):
        line = re.sub(r"^[\s>#]*(?=\S)" if comments else r"^\s*#.*", "", line)
        line = re.sub(r"\s+", " ", re.sub(r"\s#.*", "", line).replace("`", "")).strip()
        if len(line) > 3:
            found.append(line)
    return found
