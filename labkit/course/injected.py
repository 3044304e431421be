"""A mistyped `papermill -p`: papermill only warns, and the notebook would run with the value it has anyway.

papermill writes the given values into a cell of its own, which begins with `# Parameters`, right after the notebook's
parameters cell. The kernel keeps the cells it has run, so `start`, which the next cell calls, can compare the two.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

from labkit.course.lesson_files import CourseError

PARAMETER = "tier"  # what every parameters cell of the course sets


def check_injected(cells: Sequence[str] | None = None) -> None:
    """Raise CourseError where papermill was given a parameter that the notebook does not have.

    Args:
        cells: sources of the cells that have run, oldest first; by default those of this kernel.
    """
    for own, injected in pairwise(_cells_that_ran() if cells is None else cells):
        known = _assigned(own)
        if PARAMETER not in known or not injected.startswith("# Parameters\n"):
            continue
        for name in _assigned(injected):
            if name not in known:
                close = get_close_matches(name, known, n=1)
                names = ", ".join(known)
                if close:
                    raise CourseError(f"unknown parameter {name}: this notebook has {names}; did you mean {close[0]}?")
                raise CourseError(f"unknown parameter {name}: this notebook has {names}")


def _cells_that_ran() -> list[str]:
    if "IPython" not in sys.modules:
        return []
    shell = sys.modules["IPython"].get_ipython()
    return list(shell.user_ns.get("In", ())) if shell is not None else []


def _assigned(source: str) -> list[str]:
    """The names that a cell assigns at its top level, in order; none for what is not Python."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]
