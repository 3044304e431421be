"""All the code that a study runs, however far away, and when it was last shown to give the recorded numbers.

A record's own hash covers the study and the modules that it lists: a change there makes the units stale. Samplers,
trainers and judges lie further away, and rewriting one of them should cost neither hours of recording nor the evidence.
So `reach.json`, beside the records, holds a hash of everything that is reached from import to import, and the units
that were computed again under it, one of each arm that `Study.covers` names. `labkit study check` fails when that hash
is not today's; `labkit study verify --reach` computes them again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from labkit.files import write_atomically
from labkit.studies.recorder import verify
from labkit.studies.store import folder_of_studies, machine
from labkit.studies.study import Study, StudyError, code_text

FILE, PACKAGE = "reach.json", "labkit"
FRAME = {PACKAGE, *(f"{PACKAGE}.{name}" for name in ("errors", "studies.estimate", "studies.store", "studies.study"))}


@lru_cache(maxsize=1024)
def _file(module: str) -> Path | None:
    """The module's source file, without importing it; None if there is no such module."""
    root = Path(importlib.util.find_spec(PACKAGE).origin).parent.parent / Path(*module.split("."))
    return next((path for path in (root.with_suffix(".py"), root / "__init__.py") if path.is_file()), None)


@lru_cache(maxsize=1024)
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text("utf-8"))


def _taken(module: str) -> Iterable[tuple[str, str]]:
    """(module, name) of every import of the package's own code, "" for a whole module; those for type checkers only are
    left out."""
    skipped = {
        id(inner)
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(_tree(module)):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == PACKAGE)


def _home(module: str, name: str) -> str:
    """The module that defines what `from module import name` takes: packages pass names on from their modules."""
    if name and _file(f"{module}.{name}"):
        return f"{module}.{name}"
    if name and _file(module).name == "__init__.py":
        for source, passed in _taken(module):
            if passed == name and source != module:
                return _home(source, name)
    return module


def reached(modules: Iterable[str]) -> list[str]:
    """These modules and all that they import of the package, in order of their names, but for FRAME: what is around a
    unit and gives none of its numbers."""
    waiting, found = list(modules), set()
    while waiting:
        module = waiting.pop()
        if module in found or module in FRAME:
            continue
        found.add(module)
        waiting += [_home(*taken) for taken in _taken(module)]
    return sorted(found)


def reach(study: Study) -> str:
    """Hash of all the code that the study's units run, without comments, docstrings, layout and plans of studies."""
    digest = hashlib.sha256()
    for module in reached({study.unit.__module__, *study.modules, *study.later.values()}):
        digest.update(f"{module}\n{code_text(_tree(module))}\n".encode())
    return digest.hexdigest()[:16]


def read_reach(folder: Path | None = None) -> dict[str, dict]:
    """lesson -> {"code": hash, "units": what was computed again under it}.

    Raises:
        StudyError: the file cannot be read.
    """
    path = (folder or folder_of_studies()) / FILE
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}): restore the data folder") from error


def unverified(study: Study, folder: Path | None = None) -> str:
    """Why the record has to be verified again; "" if today's code has been."""
    known = read_reach(folder).get(study.lesson)
    if known and known["code"] == reach(study):
        return ""
    since = "has never been verified" if not known else "has changed since it was verified"
    return f"study {study.lesson}: code that it runs {since}: `labkit study verify {study.lesson} --reach`"


def verify_reach(
    study: Study, rng: np.random.Generator, *, folder: Path | None = None, report: Callable[[str], None] = print
) -> list[str]:
    """Compute one recorded unit of each arm of `covers` again, and note today's code if all agree.

    Returns:
        One line per unit that does not agree; [] if all do.

    Raises:
        StudyError: nothing recorded of an arm, or recorded under other conditions; the code is edited meanwhile.
    """
    code, units = reach(study), []
    for arm in study.covers or (study.cheap,):
        (_, seed), lines = verify(study, folder=folder, arm=arm, rng=rng, near=True)
        report(f"{study.lesson}  {arm}/{seed}: {'agrees' if not lines else '; '.join(lines)}")
        if lines:
            return [f"{arm}/{seed}: {line}" for line in lines]
        units.append({"arm": arm, "seed": seed, "machine": machine()})
    _tree.cache_clear()
    if reach(study) != code:
        raise StudyError(f"the code of study {study.lesson} was edited meanwhile: verify it again")
    known = read_reach(folder)
    known[study.lesson] = {"code": code, "at": datetime.now(UTC).isoformat(timespec="seconds"), "units": units}
    path = (folder or folder_of_studies()) / FILE
    write_atomically(path, json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    return []
