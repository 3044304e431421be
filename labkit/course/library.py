"""What labkit itself says to a learner, warnings and one-line errors, in the lesson's language.

The library speaks English and knows nothing of lessons. library.yaml holds its sentences as `{en: ..., ja: ...}`, with
a name in braces for each thing that a message fills in; a message is found by what stands between those. What is not
in the file is shown in English.
"""

from __future__ import annotations

import linecache
import re
import sys
import traceback
import warnings
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from labkit.course.i18n import get_language, load_messages, t
from labkit.course.render import show_box
from labkit.errors import LabkitError, LabkitWarning

SENTENCES = Path(__file__).with_name("library.yaml")
FIELD = re.compile(r"\{(\w+)\}")


@cache
def sentences() -> list[tuple[re.Pattern[str], dict[str, str]]]:
    """(pattern of the English text, {en, ja}) of every known sentence, those with the most text of their own first."""
    entries = sorted(load_messages(SENTENCES).values(), key=lambda entry: -len(FIELD.sub("", entry["en"])))
    return [(re.compile(pattern(entry["en"]), re.DOTALL), entry) for entry in entries]


def pattern(text: str) -> str:
    """The regular expression of a sentence, a named group for each thing that it fills in."""
    parts = FIELD.split(text)  # text, name, text, name, ..., text
    return "".join(f"(?P<{part}>.*?)" if at % 2 else re.escape(part) for at, part in enumerate(parts))


def translated(message: str, lang: str | None = None) -> str:
    """A message of the library in `lang` (default: the current language); as it is where it is not known.

    What a message fills in may be a sentence itself, such as the cure that fits the numbers.
    """
    for known, entry in sentences():
        if found := known.fullmatch(message):
            return FIELD.sub(lambda field: translated(found[field[1]], lang), entry[lang or get_language()])
    return message


def speak_to_learners(*, errors: bool) -> None:
    """From now on labkit's warnings are boxes, each time that they occur; with `errors`, its errors are one line.

    errors: only in a notebook; every other error, and what `%tb` shows, keeps its traceback.
    """
    warnings.filterwarnings("always", category=LabkitWarning)  # also when a cell runs again
    if not hasattr(warnings.showwarning, "instead_of"):
        warnings.showwarning = _boxes_instead_of(warnings.showwarning)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.set_custom_exc((Exception,) if errors else (), _show_error)


def _boxes_instead_of(show_other: Any) -> Any:
    def showwarning(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, LabkitWarning):
            show_box("warn", translated(str(message)))
        else:
            show_other(message, category, *rest, **options)

    showwarning.instead_of = show_other
    return showwarning


def _show_error(shell: Any, kind: type, error: Exception, trace: TracebackType, tb_offset: int | None = None) -> None:
    """IPython's hook for an error in a cell; what the library said on purpose takes three lines."""
    if is_ours(error):
        error._render_traceback_ = lambda: error_lines(error)  # IPython asks an error how it wants to be shown
    try:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    finally:
        vars(error).pop("_render_traceback_", None)  # for %tb


def is_ours(error: BaseException) -> bool:
    """Whether labkit raised it on purpose: one of its own errors, or a `raise` in its code."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames or isinstance(error, LabkitError):
        return isinstance(error, LabkitError)
    frame, line = frames[-1]
    inside = str(frame.f_globals.get("__name__")).split(".")[0] == "labkit"
    return inside and linecache.getline(frame.f_code.co_filename, line).strip().startswith("raise ")


def error_lines(error: BaseException) -> list[str]:
    """The message in the lesson's language, the learner's line that led to it, and how to see more."""
    lines = [f"{type(error).__name__}: {translated(str(error))}"]
    cells = [(f, n) for f, n in traceback.walk_tb(error.__traceback__) if f.f_globals.get("__name__") == "__main__"]
    if cells:
        frame, number = cells[-1]
        code = linecache.getline(frame.f_code.co_filename, number).strip()
        lines.append(t("library.at_line", line=number, code=code))
    return [*lines, t("library.more")]
