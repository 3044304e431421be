"""Whose answer is it? A check judges what the learner wrote, never what the lesson lent them.

Where the learner's own answer has not passed, `lab.use` lends the reference, and the notebook binds it to the learner's
own name so that later cells can go on. Three things are therefore no answer, whatever they are called: the lent
reference (or a function that calls it), what labkit defines itself, and what an exercise cell defined before it was
changed into something that stops with an error.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from labkit.course.checker import LENT, NOT_YOURS, STALE, Stop

if TYPE_CHECKING:
    from labkit.course.checks import Exercise

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "<look the name up>"})()

_under_check: list[str] = []  # ids of the exercises whose checks are running
_stopped: set[str] = set()  # texts of cells that stopped with an error when they ran last


def notebook_names() -> Mapping[str, Any]:
    """The names that the learner's cells have defined (those of the main script outside of a notebook)."""
    shell = _shell()
    return vars(sys.modules["__main__"]) if shell is None else shell.user_ns


def cells_run() -> Sequence[str]:
    """The texts of the cells that this kernel was given, oldest first; [] outside of a notebook."""
    return getattr(getattr(_shell(), "history_manager", None), "input_hist_raw", [])


def watch_cells() -> None:
    """From now on, remember which cells stop with an error; nothing outside of a notebook."""
    shell = _shell()
    if shell is not None and _remember not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _remember)


def _remember(result: Any) -> None:
    text = getattr(getattr(result, "info", None), "raw_cell", None)
    if text is not None:
        (_stopped.discard if result.success else _stopped.add)(text)


def look_up(exercise: Exercise, obj: Any) -> Any:
    """`obj`, or, where none was given, what the notebook calls by the exercise's name (MISSING if nothing)."""
    return notebook_names().get(exercise.name, MISSING) if obj is MISSING else obj


def lend(exercise: Exercise) -> Any:
    """The reference, for the lesson to go on with: a function that works everywhere but in its own exercise's check."""
    reference = exercise._reference_object()
    if exercise.value or isinstance(reference, type):
        exercise.lent.append(reference)  # kept, so that no other object can have its identity
        return reference
    if not exercise.lent:
        exercise.lent.append(_refusing_its_check(exercise.id, reference))
    return exercise.lent[0]


def _refusing_its_check(id: str, reference: Callable) -> Callable:
    @functools.wraps(reference)
    def lent(*args: Any, **kwargs: Any) -> Any:
        if id in _under_check:
            raise Stop(LENT, "type", {})
        return reference(*args, **kwargs)

    lent.__signature__ = inspect.signature(reference)
    del lent.__wrapped__  # nobody gets at the reference through what is lent
    return lent


@contextmanager
def under_check(id: str) -> Iterator[None]:
    """Inside, the lent reference of this exercise refuses to work, also when another function calls it."""
    _under_check.append(id)
    try:
        yield
    finally:
        _under_check.pop()


def objection(exercise: Exercise, obj: Any) -> str | None:
    """Why `obj` is no answer of the learner's: check.lent, check.not_yours, check.stale; None if nothing is known."""
    origin = _origin(obj)
    if any(obj is lent for lent in exercise.lent if not isinstance(lent, str | int)):  # equal ones may be one object
        return STALE if _is_broken(_defining_cell(exercise.name)) else LENT
    if exercise.value:
        return None
    if exercise._reference in (inspect.getmro(origin) if isinstance(origin, type) else (origin,)):
        return LENT
    if callable(origin) and str(getattr(origin, "__module__", None)).split(".")[0] == "labkit":
        return NOT_YOURS
    return STALE if _is_stale(exercise.name, origin) else None


def own_source(exercise: Exercise, obj: Any) -> str:
    """What the learner wrote, as far as it can still be found: the object's source or its cell; else ''."""
    try:
        return inspect.getsource(_origin(obj)).rstrip()
    except (OSError, TypeError):
        return _defining_cell(exercise.name).rstrip()


def _origin(obj: Any) -> Any:
    while isinstance(obj, functools.partial):
        obj = obj.func
    return inspect.unwrap(obj) if callable(obj) else obj


def _is_stale(name: str, function: Any) -> bool:
    """The cell that defined `name` last stopped with an error or reads `def name`, yet this function, written in a
    notebook, does not come from it."""
    cell = _defining_cell(name)
    if not cell or getattr(function, "__module__", "") != "__main__":
        return False
    stopped = cell in _stopped or _is_broken(cell)
    if not stopped and not re.search(rf"^\s*def\s+{name}\b", cell, re.MULTILINE):
        return False
    try:
        return (stopped or function.__name__ == name) and inspect.getsource(function).strip() not in cell
    except (OSError, TypeError, AttributeError):
        return False  # nothing to compare with: believe the learner


def _defining_cell(name: str) -> str:
    """The text of the cell run last that defines `name`, also if it stopped with an error; '' outside of a notebook."""
    return next((cell for cell in reversed(cells_run()) if _defines(cell, name)), "")


def _defines(cell: str, name: str) -> bool:
    """Whether the cell defines `name` at its top level: by def, class or an assignment other than `lab.use(...)`."""
    if name not in cell:
        return False
    body = cell.partition("\n")[2] if cell.startswith("%%") else cell
    try:
        tree = ast.parse(_shell().transform_cell(body))
    except SyntaxError:  # what it was to define can only be guessed
        assigned = rf"^{name}\s*(:[^=\n]*)?=(?!=|\s*lab\.use\()"
        return bool(re.search(rf"^\s*((async\s+)?def|class)\s+{name}\b|{assigned}", body, re.MULTILINE))
    return any(_binds(statement, name) for statement in _top_level(tree.body))


def _top_level(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run with the cell, also inside if, for, while, with and try, but not inside a definition."""
    for statement in statements:
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(statement, part, []))
            for handler in getattr(statement, "handlers", []):
                yield from _top_level(handler.body)


def _binds(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return statement.name == name
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    lent = ast.unparse(statement.value).startswith("lab.use(")
    return not lent and any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _is_broken(cell: str) -> bool:
    """Whether the cell is no Python, so that it stopped before it defined anything."""
    try:
        ast.parse(_shell().transform_cell(cell) if cell else "")
    except SyntaxError:
        return True
    return False


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
