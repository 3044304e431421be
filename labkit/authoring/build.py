"""`labkit build`: lesson sources -> notebooks in two languages and two editions.

Student editions go to `notebooks/en|ja/` and are committed, solution editions to `build/en|ja/solution/`. A build is
byte-identical on every run and touches only files whose content changes. `--check` writes no notebook and reports every
committed one that differs from what would be built: the drift gate. The grammar of sources is in
`labkit.authoring.source`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.authoring.colab import InstallError
from labkit.authoring.notebook import EDITIONS, Course
from labkit.authoring.source import Problem, SourceError, read_source, reconcile, stale_pairs
from labkit.authoring.stamp import StampError
from labkit.course.i18n import LANGUAGES
from labkit.course.manifest import ManifestError, Project
from labkit.course.yamlfile import YamlError
from labkit.files import write_atomically

BuildError = (SourceError, ManifestError, StampError, InstallError, YamlError)  # what a build may raise


@dataclass(frozen=True)
class Output:
    """One generated notebook: where it belongs, and whether the file already was what it should be."""

    path: Path
    lang: str
    edition: str
    current: bool


def build(project: Project | None = None, numbers: Iterable[str] = (), *, write: bool = True) -> list[Output]:
    """Build the notebooks of the lessons `numbers` (default: all).

    With `write=False` no notebook is written; `Output.current` says which files are what they should be. Raises one of
    BuildError, with file, line and cure; files of lessons built before that stay written.
    """
    project = project or Project()
    course = Course.of(project)
    outputs = []
    for path in select(project, numbers):
        for edition in EDITIONS:
            for lang in LANGUAGES:
                target, text = project.notebook(path.stem, lang, edition), course.notebook(path, lang, edition)
                current = target.exists() and target.read_bytes() == text.encode("utf-8")
                if not current and write:
                    write_atomically(target, text)
                outputs.append(Output(target, lang, edition, current))
    return outputs


def select(project: Project, numbers: Iterable[str]) -> list[Path]:
    """Source files of the lessons `numbers` ("01" or "1"; default: all). ManifestError for unknown numbers."""
    by_number = {path.name[:2]: path for path in project.source_files()}
    wanted = [str(number).zfill(2) for number in numbers]
    for number in wanted:
        if number not in by_number:
            known = ", ".join(by_number) or "none"
            raise ManifestError(f"there is no source of lesson {number!r}; sources in notebooks/src: {known}")
    return [path for number, path in by_number.items() if not wanted or number in wanted]


def drift(project: Project | None = None, numbers: Iterable[str] = ()) -> list[Problem]:
    """Committed notebooks that are not what the builder makes, or that no source makes. Raises BuildError."""
    project, numbers = project or Project(), list(numbers)
    problems = []
    outputs = [output for output in build(project, numbers, write=False) if output.edition == "student"]
    for output in outputs:
        name = project.relative(output.path)
        source = f"notebooks/src/{output.path.stem}.py"
        if not output.path.exists():
            problems.append(Problem(name, 1, "generated-edited", "it has not been built yet", "run labkit build"))
        elif not output.current:
            line = _first_difference(project, output)
            message = "differs from what its source gives (edited by hand, or the source changed)"
            cure = f"move the change into {source} and run labkit build"
            problems.append(Problem(name, line, "generated-edited", message, cure))
    expected = {output.path for output in outputs}
    for lang in () if numbers else LANGUAGES:
        for path in sorted((project.root / "notebooks" / lang).glob("*.ipynb")):
            if path not in expected:
                message, cure = "no source makes this notebook", "delete it, or add its source to notebooks/src"
                problems.append(Problem(project.relative(path), 1, "generated-edited", message, cure))
    return problems


def _first_difference(project: Project, output: Output) -> int:
    path = project.sources / f"{output.path.stem}.py"
    should = Course.of(project).notebook(path, output.lang, output.edition).split("\n")
    found = output.path.read_text(encoding="utf-8", errors="replace").split("\n")
    pairs = enumerate(zip(should, found, strict=False), start=1)
    return next((line for line, (a, b) in pairs if a != b), min(len(should), len(found)))


def write_if_changed(path: Path, text: str) -> None:
    """Write a file in one step, and only if its content changes."""
    if not path.exists() or path.read_bytes() != text.encode("utf-8"):
        write_atomically(path, text)


def reconcile_pairs(project: Project, numbers: Iterable[str], uids: Iterable[str]) -> list[str]:
    """Bring the pair hashes of `uids` ("intro" or "01:intro"; default: every stale pair) up to date in the sources.

    Returns one line per pair that changed. ManifestError for a uid that no selected lesson has, or that several have.
    """
    sources = {path.name[:2]: read_source(path, project.relative(path)) for path in select(project, numbers)}
    chosen: dict[str, list[str]] = {}
    for uid in uids:
        number, _, short = uid.rpartition(":")
        having = [n for n, source in sources.items() if short in source.pairs and number in ("", n)]
        if len(having) != 1:
            who = f"lessons {', '.join(having)} have" if having else "no lesson has"
            raise ManifestError(f"{who} a pair {uid!r}; name lesson and pair, as in {(having or ['01'])[0]}:{short}")
        chosen.setdefault(having[0], []).append(short)
    lines = []
    for number, source in sources.items():
        stale = stale_pairs(source)
        picked = [uid for uid in stale if uid in chosen.get(number, [])] if chosen else list(stale)
        for uid in picked:
            langs = " and ".join(cell.lang or "" for cell in stale[uid])
            where = f"{project.relative(source.path)}:{min(cell.line for cell in stale[uid])}"
            lines.append(f"reconciled {number}:{uid} ({langs} had not been confirmed; {where})")
        if picked:
            write_if_changed(source.path, reconcile(source, picked))
    return lines
