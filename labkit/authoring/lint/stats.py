"""`labkit lint --stats`: how much of a lesson is explained, and how much of it the learner does.

Goals (`GOALS`) are those of the course: prose carries the lesson, every third of it has something to do, the exercises
become harder, there is a task without a single answer, and every group of figures is followed by its reading.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.authoring.build import select
from labkit.authoring.regions import in_language, split
from labkit.authoring.source import Cell, Source, read_source
from labkit.course.manifest import Project, load_lesson

GOALS = {"words_en": 4.0, "characters_ja": 10.0, "per_third": 1, "hardest": 4, "open_tasks": 1, "unread": 0}
FIGURES = {
    *("image_grid", "strips", "before_after", "heatmap_overlay", "curve_with_interval", "bar_with_interval"),
    *("recorded_means", "recorded_plane", "recorded_paths", "tornado_chart", "label_points", "new_figure"),
}
_TO_DO = {"exercise", "open", "widget"}
_NO_PROSE = re.compile(r"```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|`[^`\n]*`|https?://\S+|<[^>]+>", re.S)


@dataclass(frozen=True)
class Stats:
    """What is counted of one lesson.

    Attributes:
        words_en: English words of prose per line of code. characters_ja: Japanese characters per line of code.
        exercises: checked exercises. thirds: exercises and decisions in each third of the lesson; an exercise, an open
            task, a widget and a prediction count, the closing quiz does not.
        difficulties: how many exercises have difficulty 1, 2, ... 5.
        open_tasks: tasks without a single answer. figures: groups of figures (cells without prose between them).
        unread: groups that no prose follows before the next heading.
    """

    number: str
    words_en: float
    characters_ja: float
    exercises: int
    thirds: tuple[int, int, int]
    difficulties: tuple[int, ...]
    open_tasks: int
    figures: int
    unread: int

    def missed(self) -> list[str]:
        """Names of the goals that the lesson does not reach."""
        hardest = max((grade for grade, n in enumerate(self.difficulties, start=1) if n), default=0)
        short = {
            "words_en": self.words_en < GOALS["words_en"],
            "characters_ja": self.characters_ja < GOALS["characters_ja"],
            "per_third": min(self.thirds) < GOALS["per_third"],
            "hardest": hardest < GOALS["hardest"],
            "open_tasks": self.open_tasks < GOALS["open_tasks"],
            "unread": self.unread > GOALS["unread"],
        }
        return [name for name, is_short in short.items() if is_short]


def stats(project: Project, numbers: Iterable[str] = ()) -> list[Stats]:
    """The counts of the lessons asked for (default: all), in order."""
    return [count(read_source(path), load_lesson(path.name[:2], project)) for path in select(project, list(numbers))]


def count(source: Source, lesson: object) -> Stats:
    """The counts of a source; `lesson` is its lesson.yaml as read (`exercises` with `difficulty`)."""
    english = [cell for cell in source.cells if cell.kind == "code" or cell.lang == "en"]
    english = [cell for cell in english if "instructor" not in cell.tags]
    machinery = {"parameters", "setup"}
    code = sum(code_lines(cell.source) for cell in english if cell.kind == "code" and not machinery & set(cell.tags))
    words = sum(len(re.findall(r"[^\W_][\w'’.-]*", prose(c.source))) for c in english if c.kind == "markdown")
    japanese = (cell for cell in source.cells if cell.lang == "ja" and "instructor" not in cell.tags)
    characters = sum(len(re.sub(r"[\s\W_]", "", prose(cell.source))) for cell in japanese)
    lengths = [len(in_language(cell.source, "en").splitlines()) for cell in english]
    begun, thirds = 0, [0, 0, 0]
    for cell, length in zip(english, lengths, strict=True):
        if is_to_do(cell):
            thirds[min(2, 3 * begun // max(1, sum(lengths)))] += 1
        begun += length
    grades = [exercise.difficulty for exercise in lesson.exercises]
    groups = figure_groups(english)
    return Stats(
        number=source.number,
        words_en=words / max(1, code),
        characters_ja=characters / max(1, code),
        exercises=len(grades),
        thirds=tuple(thirds),
        difficulties=tuple(grades.count(grade) for grade in range(1, 6)),
        open_tasks=sum("open" in cell.tags for cell in english if cell.kind == "code"),
        figures=len(groups),
        unread=groups.count(False),
    )


def prose(markdown: str) -> str:
    """Markdown without formulas, code, addresses and tags."""
    return _NO_PROSE.sub(" ", markdown)


def code_lines(code: str) -> int:
    """Lines of the solution edition that are code: no blank ones, comments and docstrings."""
    code = "\n".join(line for block in split(code) for line in block.lines)
    lines = {
        n for n, line in enumerate(code.split("\n"), start=1) if line.strip() and not line.lstrip().startswith("#")
    }
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def is_to_do(cell: Cell) -> bool:
    """Whether the learner writes or decides something in this cell."""
    return cell.kind == "code" and (bool(_TO_DO & set(cell.tags)) or "predict" in calls(cell.source))


def calls(code: str) -> set[str]:
    """Names of the functions and methods that a cell calls at any depth."""
    called = (node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    return {getattr(func, "id", getattr(func, "attr", "")) for func in called}


def figure_groups(cells: Iterable[Cell]) -> list[bool]:
    """One entry per run of code cells with a figure: whether prose follows it before the next heading."""
    groups, drawn = [], False
    for cell in cells:
        if cell.kind == "markdown":
            if drawn:
                groups.append(not cell.source.lstrip().startswith("#"))
            drawn = False
        else:
            drawn = drawn or bool(FIGURES & calls(cell.source))
    return [*groups, False] if drawn else groups


def table(rows: Iterable[Stats]) -> str:
    """The counts as text, the goals last, with a star at what does not reach its goal."""
    head = (
        *("lesson", "words en / code line", "characters ja / code line", "exercises", "to do per third"),
        *("difficulty 1-5", "open tasks", "figures", "without reading"),
    )
    lines = [head, *map(_row, rows)]
    lines.append(
        ("goal", f"{GOALS['words_en']:g}", f"{GOALS['characters_ja']:g}", "", "1 1 1", "up to 4 or 5", "1", "", "0")
    )
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _row(row: Stats) -> tuple[str, ...]:
    missed = row.missed()

    def cell(goal: str, text: str) -> str:
        return text + "*" * (goal in missed)

    return (
        row.number,
        cell("words_en", f"{row.words_en:.1f}"),
        cell("characters_ja", f"{row.characters_ja:.1f}"),
        str(row.exercises),
        cell("per_third", " ".join(map(str, row.thirds))),
        cell("hardest", " ".join(map(str, row.difficulties))),
        cell("open_tasks", str(row.open_tasks)),
        str(row.figures),
        cell("unread", str(row.unread)),
    )


def report(root: Path | None, numbers: Iterable[str]) -> int:
    """Print the table: 0, or 1 if a lesson misses a goal."""
    rows = stats(Project(root) if root else Project(), numbers)
    print(table(rows))
    return 1 if any(row.missed() for row in rows) else 0
