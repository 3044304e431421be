"""What a study is: a function of arm, seed and sizes that gives numbers, and what its claims are computed from."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from labkit.errors import LabkitError

Numbers = Mapping[str, "float | Sequence[float] | np.ndarray"]
Fingerprint = tuple[str, dict[str, str], str]  # code, arm of a later round -> its code, sizes


class StudyError(LabkitError, ValueError):
    """A study, a record or a request that does not fit; one line that names the cure."""


class NotRecorded(StudyError):
    """What is asked for has no recorded units yet, or too few."""


@dataclass(frozen=True)
class Study:
    """One recorded experiment of one lesson.

    Attributes:
        lesson: "06".
        unit: (arm, seed, sizes) -> metric -> one number, or one per prompt. A pure function: the same arguments give
            the same numbers, whatever ran before. The lesson calls the same function for its live run.
        arms: what is compared. seeds: how often each arm is repeated.
        more: arm -> further seeds of this arm: the second round, planned from the first one's spread for claims that
            it left undecided, or new seeds for claims that were made after a look at the first round.
        sizes: the numbers that `unit` reads, as attributes of its third argument.
        estimates: claim id (without the lesson) -> function of `Recorded` that gives differences [seeds, prompts].
        weights: shipped model folders that it uses, for instance ("portrait-sd-base", "attribute-reader").
        modules: modules whose code decides the numbers, beside the study's own; a record is stale when they change.
        tolerance: by how much the mean of a metric may differ when a unit is computed again on another machine;
            one number for every metric, or metric -> number ("" for all others, "toy_*/d_w" for a metric of some arms).
        cheap: the arm that a quick verification recomputes.
        covers: arms that together run the lesson's methods; `labkit.studies.reach` computes a unit of each again when
            code further away has changed (default: the cheap arm).
        later: arm -> module whose `unit` makes it, for arms that were added after others had been recorded. Their code
            is held unit by unit, so a later round makes no earlier unit stale; what both share stays in `modules`.
    """

    lesson: str
    unit: Callable[[str, int, SimpleNamespace], Numbers]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    estimates: Mapping[str, Callable[[Any], np.ndarray]] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    tolerance: float | Mapping[str, float] = 0.0
    cheap: str = ""
    covers: tuple[str, ...] = ()
    more: Mapping[str, Sequence[int]] = field(default_factory=dict)
    later: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.arms)) != len(self.arms) or len(set(self.seeds)) != len(self.seeds):
            raise StudyError(f"study {self.lesson}: arms and seeds must be distinct, got {self.arms} and {self.seeds}")
        if self.cheap and self.cheap not in self.arms:
            raise StudyError(f"study {self.lesson}: cheap is {self.cheap!r}, expected one of {', '.join(self.arms)}")
        if unknown := sorted(set(self.covers) - set(self.arms)):
            raise StudyError(f"study {self.lesson} covers {unknown[0]!r}, expected some of {', '.join(self.arms)}")
        if unknown := sorted(set(self.more) - set(self.arms)):
            raise StudyError(f"study {self.lesson}: more seeds of an arm {unknown[0]!r} that it does not have")
        if unknown := sorted(set(self.later) - set(self.arms)):
            raise StudyError(f"study {self.lesson}: a module for an arm {unknown[0]!r} that it does not have")
        if len(set(self.planned)) != len(self.planned):
            raise StudyError(f"study {self.lesson}: the further seeds must differ from the first, {self.seeds}")

    @property
    def planned(self) -> list[tuple[str, int]]:
        """All units, seed by seed: what the arms of a seed share is made once."""
        first = [(arm, seed) for seed in self.seeds for arm in self.arms]
        later = sorted({seed for seeds in self.more.values() for seed in seeds})
        return first + [(arm, seed) for seed in later for arm in self.arms if seed in self.more.get(arm, ())]

    def run(self, arm: str, seed: int, **sizes: Any) -> dict[str, np.ndarray]:
        """The numbers of one unit as float32 [prompts] per metric ([1] for a single number), at the recorded sizes or
        others.

        Raises:
            StudyError: an arm or a size that the study does not have, or a unit that gives no numbers.
        """
        if arm not in self.arms:
            raise StudyError(f"study {self.lesson} has no arm {arm!r}: expected one of {', '.join(self.arms)}")
        if unknown := sorted(set(sizes) - set(self.sizes)):
            raise StudyError(
                f"study {self.lesson} has no size {unknown[0]!r}: expected some of {', '.join(self.sizes)}"
            )
        unit = importlib.import_module(self.later[arm]).unit if arm in self.later else self.unit
        numbers = unit(arm, seed, SimpleNamespace(**{**self.sizes, **sizes}))
        made = {metric: np.atleast_1d(np.asarray(values, dtype=np.float32)) for metric, values in numbers.items()}
        if not made or any(values.ndim != 1 or not len(values) for values in made.values()):
            raise StudyError(f"study {self.lesson}, unit {arm}/{seed}: expected numbers or lists of numbers by metric")
        return made

    def allowed(self, metric: str, arm: str = "") -> float:
        """The tolerance of a metric's mean in an arm."""
        if not isinstance(self.tolerance, Mapping):
            return self.tolerance
        ours = (value for key, value in self.tolerance.items() if "/" in key and fnmatchcase(f"{arm}/{metric}", key))
        return next(ours, self.tolerance.get(metric, self.tolerance.get("", 0.0)))

    def code(self) -> str:
        """Hash of the code that decides the numbers: the module of `unit` and `modules`, without comments, docstrings
        and layout. What they import from further away is held by `labkit.studies.reach`."""
        digest = hashlib.sha256()
        for name in (self.unit.__module__, *self.modules):
            digest.update(meaning(importlib.import_module(name)).encode())
        return digest.hexdigest()[:16]

    def fingerprint(self) -> Fingerprint:
        """The hashes of all its code as the files are now, and the sizes: a recorder compares them with those that it
        began with.

        Raises:
            StudyError: a file of the code cannot be read.
        """
        try:
            later = {arm: self.later_code(arm) for arm in self.later}
            return self.code(), later, json.dumps(self.sizes, sort_keys=True)
        except (SyntaxError, OSError) as error:
            raise StudyError(
                f"the code of study {self.lesson} cannot be read ({type(error).__name__}: {error}): was it edited or "
                "moved? Mend it and start again; what was recorded stays"
            ) from None

    def later_code(self, arm: str) -> str:
        """Hash of the module of `later` that makes an arm; "" for the arms of the first round."""
        if arm not in self.later:
            return ""
        return hashlib.sha256(meaning(importlib.import_module(self.later[arm])).encode()).hexdigest()[:16]


def meaning(module: ModuleType) -> str:
    """The module's syntax tree as text, without docstrings; comments and layout are not in it. The plan of a study
    (the call of `Study`: seeds, estimates, tolerances) is left out, so more seeds make no recorded unit stale."""
    return code_text(ast.parse(inspect.getsource(module)))


def code_text(tree: ast.Module) -> str:
    """A module's syntax tree as text, see `meaning`; the tree stays as it is."""
    tree = copy.deepcopy(tree)
    tree.body = [node for node in tree.body if not _is_plan(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return _text(tree)


def _text(node: Any) -> str:
    """A syntax tree as text, the same under every Python: `ast.dump` of 3.11. Later versions know type parameters,
    which every function and class then has, leave out what is empty, and end a format specifier in an empty string."""
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, getattr(node, name, None)) for name in node._fields]
    if isinstance(node, ast.JoinedStr):
        fields = [("values", [part for part in node.values if getattr(part, "value", None) != ""])]
    shown = [
        f"{name}={_text(value)}"
        for name, value in fields
        if not (value is None and getattr(type(node), name, ...) is None) and (name != "type_params" or value)
    ]
    return f"{type(node).__name__}({', '.join(shown)})"


def _is_plan(node: ast.stmt) -> bool:
    """Assignments of a `Study`, of the tables of its estimates and later arms, and functions marked as estimates by
    their name."""
    if isinstance(node, ast.FunctionDef):
        return node.name.startswith("estimate_")
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return False
    return node.targets[0].id in ("STUDY", "ESTIMATES", "LATER")


def load_study(lesson: str) -> Study:
    """The study of a lesson: `STUDY` of labkit.studies.lNN.

    Raises:
        StudyError: the lesson has none.
    """
    name = f"labkit.studies.l{lesson}"
    if not (len(lesson) == 2 and lesson.isdigit()):
        raise StudyError(f"lesson {lesson} has no study: expected one of {', '.join(studies())}")
    try:
        return importlib.import_module(name).STUDY
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise StudyError(f"lesson {lesson} has no study: expected one of {', '.join(studies())}") from None


def studies() -> list[str]:
    """Lessons with a study, in order."""
    from pathlib import Path

    return sorted(path.stem[1:] for path in Path(__file__).parent.glob("l[0-9][0-9].py"))
