"""What a run consists of: one row per notebook, the options, and the checks before anything starts."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.authoring.run.job import PASSED, Outcome
from labkit.authoring.run.pool import INTERRUPTED
from labkit.course.manifest import Project, load_lesson
from labkit.errors import LabkitError
from labkit.files import write_atomically


class RunError(LabkitError, ValueError):
    """A run that cannot start: one line with what was wrong and the cure."""


@dataclass
class Row:
    """One notebook of a run: what it is, and how it went once `outcome` is set."""

    number: str
    stem: str
    title: dict[str, str]
    lang: str
    edition: str
    tier: str
    source: str
    key: str = ""
    minutes: float | None = None
    outcome: Outcome = field(default_factory=lambda: Outcome(INTERRUPTED, error="not started"))
    cached: bool = False
    claims: dict[str, int] = field(default_factory=dict)
    gate: list[str] = field(default_factory=list)
    finished: str = ""

    @property
    def lane(self) -> str:
        return f"{self.tier}-{self.edition}-{self.lang}"

    @property
    def name(self) -> str:
        return f"{self.lane}/{self.stem}"

    @property
    def passed(self) -> bool:
        return self.outcome.status == PASSED

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "notebook": f"{self.name}.ipynb", "html": f"{self.name}.html"}


@dataclass(frozen=True)
class Options:
    """Everything a run needs beside its rows."""

    output: Path
    jobs: int = 1
    force: bool = False
    strict: bool | None = None  # None: solution editions are strict, student editions are not
    cell_timeout: float | None = None
    notebook_timeout: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def parameters_of(self, row: Row) -> dict[str, Any]:
        strict = row.edition == "solution" if self.strict is None else self.strict
        own = {"tier": row.tier, "lang": row.lang, "strict": strict, "interactive": False}
        return {**own, **self.parameters}


def plan(
    project: Project, numbers: Iterable[str], tier: str, langs: Sequence[str], editions: Sequence[str], output: Path
) -> list[Row]:
    """The rows of a run, in the order of lesson, edition, language. Raises ManifestError for an unknown lesson."""
    from labkit.authoring.build import select

    rows = []
    for path in select(project, numbers):
        lesson = load_lesson(path.name[:2], project)
        for edition in editions:
            for lang in langs:
                notebook = output / "notebooks" / f"{edition}-{lang}" / path.name.replace(".py", ".ipynb")
                row = Row(lesson.number, path.stem, dict(lesson.title), lang, edition, tier, str(notebook))
                rows.append(replace(row, minutes=lesson.minutes.get(tier)))
    return rows


def build_rows(project: Project, rows: Iterable[Row]) -> None:
    """Build what the rows execute from the lesson sources into the run's own folder, and nowhere else: the notebooks
    that git tracks and the learner's copies stay as they are. Raises one of `labkit.authoring.build.BuildError`."""
    from labkit.authoring.build import write_if_changed
    from labkit.authoring.notebook import Course

    course = Course.of(project)
    for row in rows:
        write_if_changed(Path(row.source), course.notebook(project.sources / f"{row.stem}.py", row.lang, row.edition))


def check_writable(folder: Path) -> None:
    """Raise RunError unless a file can be written in `folder`, which is made if it is missing."""
    try:
        write_atomically(folder / ".writable", b"").unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(f"{folder} cannot be written ({reason}); name another folder: --output FOLDER") from None


def check_parameters(notebook: Path, parameters: Iterable[str]) -> None:
    """Raise RunError unless the notebook has exactly one `parameters` cell and that cell sets every given name."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise RunError(f"{notebook}: {len(tagged)} cells are tagged `parameters`; expected exactly one")
    names = set()
    for node in ast.walk(ast.parse("".join(tagged[0]["source"]))):
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    unknown = sorted(set(parameters) - names)
    if unknown:
        raise RunError(
            f"{notebook}: unknown parameter {', '.join(unknown)}; it has {', '.join(sorted(names)) or 'none'}"
        )


def parse_parameters(given: Iterable[str]) -> dict[str, Any]:
    """["seed=1", "note=x"] -> {"seed": 1, "note": "x"}; values are read as YAML scalars."""
    import yaml

    parsed = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RunError(f"-p {text}: expected NAME=VALUE, for example -p seed=1")
        parsed[name] = yaml.safe_load(value)
        if not isinstance(parsed[name], (bool, int, float, str)):
            raise RunError(f"-p {text}: expected a number, true, false or a text as the value")
    return parsed
