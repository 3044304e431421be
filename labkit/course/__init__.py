"""The course around the papers: lessons, checks, quizzes, claims, widgets and figures, in English and Japanese.

    from labkit.course import start
    lab = start("01", tier="cpu", lang="en", seed=0)

The functions exported here use the lesson that was started last. They are loaded on first use, so that importing the
package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "start": "session",
    "current": "session",
    "CheckFailed": "session",
    "check": "checks",
    "use": "checks",
    "hint": "checks",
    "solution": "checks",
    "Result": "checks",
    "quiz": "quizzes",
    "predict": "quizzes",
    "reveal": "quizzes",
    "CourseError": "lesson_files",
    "progress_bar": "progressbar",
    "t": "i18n",
    "set_language": "i18n",
    "get_language": "i18n",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
