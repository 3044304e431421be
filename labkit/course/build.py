"""`labkit build`: lesson sources -> notebooks in two languages and two editions.

Student editions go to `notebooks/en|ja/` and are committed, solution editions to `build/en|ja/solution/`. A build is
byte-identical on every run, touches only files whose content changes, and skips lessons whose inputs and outputs are
what they were (hashes in `build/notebooks.json`). `--check` writes no notebook and reports every committed one that
differs from what would be built: the drift gate. The grammar of sources is in `labkit.course.source`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from labkit.course.colab import InstallError
from labkit.course.i18n import LANGUAGES
from labkit.course.manifest import ManifestError, Project
from labkit.course.notebook import EDITIONS, Course
from labkit.course.source import Problem, SourceError, read_source, reconcile, stale_pairs, write_source
from labkit.course.stamp import StampError
from labkit.course.yamlfile import YamlError

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
    paths = select(project, numbers)
    common = _common_key(project)
    cache = _read_cache(project)
    outputs: list[Output] = []
    course: Course | None = None
    for path in paths:
        key = hashlib.sha256(common + path.read_bytes()).hexdigest()
        targets = {(lang, ed): project.notebook(path.stem, lang, ed) for ed in EDITIONS for lang in LANGUAGES}
        known = cache.get(path.stem, {})
        if known.get("key") != key or len(known.get("hashes", {})) != len(targets):
            course = course or Course.of(project)
            texts = {what: course.notebook(path, *what) for what in targets}
            known = {"key": key, "hashes": {_name(what): _sha(text.encode()) for what, text in texts.items()}}
        else:
            texts = {}
        for what, target in targets.items():
            current = target.exists() and _sha(target.read_bytes()) == known["hashes"][_name(what)]
            if not current and write:
                course = course or Course.of(project)
                _write(target, texts.get(what) or course.notebook(path, *what))
            outputs.append(Output(target, *what, current))
        cache[path.stem] = known
    with suppress(OSError):  # a cache that cannot be kept only costs time
        _write(project.cache, json.dumps(cache, indent=1, sort_keys=True) + "\n")
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


def _common_key(project: Project) -> bytes:
    """Hash of everything but the source that a notebook depends on."""
    here = Path(__file__).parent
    files = [path for path in sorted(here.glob("*.py")) if path.name in _CODE]
    files += sorted((here / "templates").iterdir()) + sorted((here / "messages").glob("*.yaml"))
    files += sorted(project.lessons.glob("l[0-9][0-9]/lesson.yaml")) + [project.stamp, project.pyproject]
    digest = hashlib.sha256(f"jupytext {version('jupytext')} nbformat {version('nbformat')}".encode())
    digest.update(json.dumps([path.name for path in project.source_files()]).encode())
    for path in files:
        digest.update(f"\0{path.parent.name}/{path.name}\0".encode())
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.digest()


_CODE = frozenset(
    f"{name}.py"
    for name in "build colab frame i18n install leaks manifest notebook regions source stamp yamlfile".split()
)


def _read_cache(project: Project) -> dict:
    try:
        cache = json.loads(project.cache.read_text(encoding="utf-8"))
        return cache if isinstance(cache, dict) else {}
    except (OSError, ValueError):
        return {}


def _name(what: tuple[str, str]) -> str:
    return "/".join(what)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, text: str) -> None:
    """Write a file in one step, and only if its content changes."""
    data = text.encode("utf-8")
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


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
            _write(source.path, reconcile(source, picked))
    return lines


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register `labkit build`."""
    parser = subparsers.add_parser("build", help="make the notebooks from notebooks/src", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("numbers", nargs="*", metavar="NN", help="lessons (default: all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; fail if a generated file is not up to date")
    what.add_argument(
        "--reconcile",
        nargs="*",
        metavar="UID",
        help="confirm that these Markdown pairs (intro or 01:intro; default: all stale ones) agree, then build",
    )
    what.add_argument("--tidy", action="store_true", help="put the sources into canonical form, then build")
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(func=main)


def main(args: argparse.Namespace) -> int:
    """Run `labkit build`: 0 built (or up to date), 1 drift, 2 sources that cannot be built."""
    project = Project(args.root) if args.root else Project()
    try:
        if args.check:
            problems = drift(project, args.numbers)
            print("\n".join(map(str, problems)) or "generated notebooks are up to date")
            return 1 if problems else 0
        if args.reconcile is not None:
            print("\n".join(reconcile_pairs(project, args.numbers, args.reconcile)) or "no pair needed it")
        if args.tidy:
            for path in select(project, args.numbers):
                _write(path, write_source(read_source(path, project.relative(path))))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    return build_and_report(project, args.numbers)


def build_and_report(project: Project, numbers: Iterable[str] = ()) -> int:
    """Build, print what was written and which pairs are stale: 0 built, 2 sources that cannot be built."""
    start, numbers = time.perf_counter(), list(numbers)
    try:
        outputs = build(project, numbers)
        written = [output for output in outputs if not output.current]
        for stem in sorted({output.path.stem for output in written}):
            source = read_source(project.sources / f"{stem}.py")
            stale = ", ".join(f"{source.number}:{uid}" for uid in stale_pairs(source))
            if stale:
                print(f"compare the languages of {stale}; then run labkit build --reconcile UID ...", file=sys.stderr)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    for output in written:
        print(f"wrote {project.relative(output.path)}")
    lessons = len({output.path.stem for output in outputs})
    seconds = time.perf_counter() - start
    print(f"{lessons} lessons, {len(outputs)} notebooks: {len(written)} written, {seconds:.2f} s")
    return 0
