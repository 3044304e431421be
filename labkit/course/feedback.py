"""What a learner sees after a check: the result, then help that is one click away, or their own code and the reference.

Buttons need ipywidgets (7.7 or 8) and a running kernel; everywhere else one line says what to type.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from labkit.course.answers import own_source
from labkit.course.checker import PASSED, Result
from labkit.course.checks import Exercise
from labkit.course.i18n import catalogue, get_language, t
from labkit.course.render import beside, box, fold, inline, show, widgets_possible

HINT_LEVELS = (1, 2, 3)
KIND_OF = {"passed": "pass", "failed": "fail", "todo": "todo", "unchecked": "warn"}


def result_texts(result: Result, *, lang: str | None = None) -> tuple[str, list[str]]:
    """Title and paragraphs of a result in the learner's language."""
    name = result.details.get("name", result.exercise)
    if result.ok:
        example = result.details.get("example")
        return t(PASSED, lang=lang, **result.details), [t("check.example", lang=lang, example=example)] * bool(example)
    title = t(f"check.title_{result.status}", lang=lang, name=result.exercise.split(".", 1)[-1])
    paragraphs = [t(result.key, lang=lang, **{**result.details, "name": name})]
    if result.key == "check.raised" and hint_text(result.exercise, 1, lang=lang):
        paragraphs.append(t("check.hint_here", lang=lang, hint=hint_text(result.exercise, 1, lang=lang)))
    return title, paragraphs


def hint_text(exercise_id: str, level: int, *, lang: str | None = None) -> str:
    """The text of a hint, '' where the lesson has none at this level."""
    key = f"hint.{exercise_id}.{level}"
    return t(key, lang=lang) if key in catalogue() else ""


def next_level(exercise: Exercise, seen: int) -> int | None:
    """The hint that comes after `seen` hints; None when there are no more."""
    return next((level for level in HINT_LEVELS if level > seen and hint_text(exercise.id, level)), None)


def what_to_type(exercise: Exercise, seen: int) -> str:
    """The line that stands for the buttons: the call for the next hint, or for the solution."""
    level = next_level(exercise, seen)
    if level is None:
        return t("check.ask_solution", call="lab.solution()")
    return t("check.ask_hint", call="lab.hint()", level=level)


def hint_box(exercise: Exercise, level: int, *paragraphs: str) -> tuple[str, str]:
    """(html, text) of one hint."""
    text = hint_text(exercise.id, level) or t("help.no_hint")
    return box("info", t("help.hint_title", level=level, name=exercise.name), text, *paragraphs)


def solution_box(exercise: Exercise) -> tuple[str, str]:
    """(html, text) of the reference's source."""
    title = t("help.solution_title", name=exercise.name)
    return box("info", title, t("help.solution_note"), code=reference_source(exercise))


def reference_source(exercise: Exercise) -> str:
    """The reference's source; in Japanese without the docstrings, which are English."""
    source = exercise.source()
    if get_language() == "en":
        return source
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            lines[first:last] = [None] * (last - first)
    return "\n".join(line for line in lines if line is not None)


def show_result(
    exercise: Exercise, obj: Any, result: Result, *, seen: int, record: Callable[..., None], interactive: bool
) -> None:
    """Show the result of a check of `obj`, and what goes with it.

    Args:
        exercise, obj, result: what was checked, and the outcome.
        seen: the hints seen so far.
        record: called with hint=level or solution=True for what the buttons show.
        interactive: whether buttons may be drawn.
    """
    title, paragraphs = result_texts(result)
    line = what_to_type(exercise, seen)
    buttons = not result and interactive and widgets_possible()
    if not result and not buttons:
        paragraphs.append(line)
    html_text, text = box(KIND_OF[result.status], title, *paragraphs)
    show(html_text + (comparison(exercise, obj) if result else ""), text)
    if buttons:
        _draw(help_widget(exercise, seen, record), line)


def comparison(exercise: Exercise, obj: Any) -> str:
    """HTML, folded: the learner's code and the reference side by side."""
    columns = [(t("help.yours"), own_source(exercise, obj)), (t("help.reference"), reference_source(exercise))]
    return fold(t("help.compare"), inline(t("help.solution_note")) + beside([c for c in columns if c[1]]))


def help_widget(exercise: Exercise, seen: int, record: Callable[..., None]) -> Any:
    """A VBox of two buttons (next hint, solution) and the place below them where both appear."""
    import ipywidgets

    ask, solve = (ipywidgets.Button(layout={"width": "max-content"}) for _ in range(2))
    solve.description = t("help.button_solution")
    shown = ipywidgets.HTMLMath()

    def offer(level: int | None) -> None:
        ask.description = t("help.button_hint", level=level or HINT_LEVELS[-1])
        ask.disabled = level is None

    def hint(_: Any) -> None:
        nonlocal seen
        if (level := next_level(exercise, seen)) is None:
            return
        seen = level
        record(hint=seen)
        shown.value += hint_box(exercise, seen)[0]
        offer(next_level(exercise, seen))

    def solution(_: Any) -> None:
        record(solution=True)
        shown.value += solution_box(exercise)[0]
        solve.disabled = True

    ask.on_click(hint)
    solve.on_click(solution)
    offer(next_level(exercise, seen))
    return ipywidgets.VBox([ipywidgets.HBox([ask, solve]), shown])


def _draw(widget: Any, line: str) -> None:
    """Display the widget; where widgets are not drawn (exports, some editors) the line takes its place."""
    from IPython.display import display

    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    display({"application/vnd.jupyter.widget-view+json": view, "text/plain": line}, raw=True)
