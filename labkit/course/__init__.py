"""What a notebook imports: lessons with their checks, quizzes and claims, in English and Japanese.

    from labkit.course import start
    lab = start("01", tier="cpu", lang="en", seed=0)

| module       | what it holds                                                                    |
|--------------|----------------------------------------------------------------------------------|
| lab          | `start` and the open lesson `lab` that every notebook works with                 |
| checks       | exercises: reference, check, wrong answers; the guide for authors of a lesson    |
| checker      | the steps a check is written with                                                |
| answers      | whether an object is the learner's own answer, or something lent to them         |
| feedback     | what stands below a check: hints, a solution, the reference beside their code    |
| keep         | results of slow cells on disk; fingerprint tells whether a call is the same      |
| values       | looking at objects that somebody else wrote                                      |
| quiz         | questions and predictions                                                        |
| claims       | what a paper claims and what a run measured; claim_file and ledger belong to it  |
| evidence     | what the recorded studies say about the claims                                   |
| rubric       | the rubric of a lesson's project                                                 |
| progress     | the learner's own record, a file on their machine                                |
| i18n         | texts in two languages; render shows them, progressbar counts                    |
| injected     | a mistyped parameter of papermill                                                |
| workspace    | `labkit lab` and `update`: the learner's own copies; fetching: `labkit fetch`    |
| library      | what labkit itself says, warnings and errors, in the lesson's language           |
| manifest     | lesson.yaml, and where the files of a course lie; lesson_files reads the others  |
| schema       | how YAML files are checked; yamlfile reads them with line numbers                |
| lessons/lNN  | the files of each lesson                                                         |

The names here are loaded on first use, so that importing the package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "start": "lab",
    "t": "i18n",
    "Lab": "lab",
    "CheckFailed": "lab",
    "CourseError": "lesson_files",
    "current": "lab",
    "progress_bar": "progressbar",
    "set_language": "i18n",
    "get_language": "i18n",
}

# In the order of use: every notebook calls start and t.
__all__ = ["start", "t", "Lab", "CheckFailed", "CourseError", "current", "progress_bar", "set_language", "get_language"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
