"""Quiz questions and predict-then-run prompts: core ipywidgets (7.7 and 8) in a notebook, static text everywhere else.

The static form always stands beside the widget, folded, so that exports and editors that draw no widgets lose nothing.
The YAML format is in the guide of `labkit.course.checks`.
"""

from __future__ import annotations

import html
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labkit.course.i18n import t
from labkit.course.lesson_files import CourseError, stable_seed
from labkit.course.render import KINDS, box, inline, pick, plain, show, widgets_possible

LETTERS = "ABCDEFGH"

# Labels of radio buttons are one line high and cut off; ours are sentences. (They are plain text: no TeX, no code.)
_WRAPS = "labkit-choice"
_STYLE = (
    f".{_WRAPS} label{{height:auto;line-height:1.5;white-space:normal;margin:.15em 0}}"
    f".{_WRAPS} .widget-radio-box label{{display:flex;flex-direction:row-reverse;justify-content:flex-end}}"
    f".{_WRAPS} input[type=radio]{{flex:none;height:auto;margin:.3em .5em 0 0}}"
    f".{_WRAPS},.{_WRAPS} .widget-radio-box{{height:auto;max-width:100%}}"
)


@dataclass(frozen=True)
class Option:
    """One option as shown: its letter, and the texts in the current language."""

    letter: str
    text: str
    explain: str = ""
    correct: bool = False
    id: str = ""


def quiz_options(id: str, question: Mapping[str, Any]) -> list[Option]:
    """The options in the order shown: shuffled, always the same way, so that authors may write the right one first."""
    written = list(question["options"])
    if not question.get("keep_order", False):
        random.Random(stable_seed(id)).shuffle(written)
    return [
        Option(letter, pick(entry["text"]), pick(entry["explain"]), entry.get("correct", False))
        for letter, entry in zip(LETTERS, written, strict=False)
    ]


def prediction_options(prompt: Mapping[str, Any]) -> list[Option]:
    """The options of a prompt in the order written; [] for a number or a free text."""
    entries = zip(LETTERS, prompt.get("options") or [], strict=False)
    return [Option(letter, pick(entry["text"]), id=str(entry["id"])) for letter, entry in entries]


def find_option(options: list[Option], choice: str) -> Option:
    """The option with this letter or id; else a CourseError that lists the letters."""
    for option in options:
        if str(choice).strip().upper() == option.letter or (option.id and str(choice) == option.id):
            return option
    letters = ", ".join(option.letter for option in options)
    raise CourseError(t("quiz.unknown_option", choice=repr(choice), options=letters))


# ---- quiz --------------------------------------------------------------------------------------------------------


def static_question(id: str, question: Mapping[str, Any]) -> tuple[str, str]:
    """(html, text): question, options, and the answer with an explanation per option (folded in HTML)."""
    options = quiz_options(id, question)
    listed = _list_html([(option.letter, option.text) for option in options])
    answers = [
        (f"{option.letter} ({t('quiz.correct_mark')})" if option.correct else option.letter, option.explain)
        for option in options
    ]
    html_text = (
        f"<div><b>{KINDS['info'][0]} {t('quiz.title')}</b><div>{inline(pick(question['question']))}</div>{listed}"
        f"<details><summary>{t('quiz.show_answers')}</summary>{_list_html(answers)}</details></div>"
    )
    lines = [f"{KINDS['info'][0]} {t('quiz.title')}: {pick(question['question'])}"]
    lines += [f"  {option.letter}. {option.text}" for option in options]
    lines += [f"  -- {t('quiz.show_answers')} --", *(f"  {letter}. {text}" for letter, text in answers)]
    return html_text, "\n".join(lines)


def feedback(option: Option) -> tuple[str, str]:
    """(html, text) of the reply to a chosen option: right or not, and why."""
    title = t("quiz.right" if option.correct else "quiz.not_right", option=option.letter)
    return box("pass" if option.correct else "fail", title, option.explain)


def question_widget(id: str, question: Mapping[str, Any], on_answer: Callable[[Option], None]) -> Any:
    """A VBox of question (HTML), RadioButtons with the options, Button, and reply (HTML), in this order.

    `on_answer(option)` is called for each answer.
    """
    options = quiz_options(id, question)
    head = f"<b>{t('quiz.title')}</b><div>{inline(pick(question['question']))}</div>"

    def answer(choice: Option | None) -> str:
        if choice is None:
            return html.escape(t("quiz.choose_first"))
        on_answer(choice)
        return feedback(choice)[0]

    return _choice_widget(head, options, t("quiz.answer"), answer)


def show_question(
    id: str,
    question: Mapping[str, Any],
    on_answer: Callable[[Option], None],
    *,
    interactive: bool,
    choice: str | None = None,
) -> None:
    """Draw the question (widget and folded text, or text only); with `choice`, answer it and show the reply."""
    if choice is not None:
        option = find_option(quiz_options(id, question), choice)
        on_answer(option)
        show(*feedback(option))
    elif interactive and widgets_possible():
        _display_with_fallback(question_widget(id, question, on_answer), static_question(id, question))
    else:
        show(*static_question(id, question))


# ---- predict, then run -------------------------------------------------------------------------------------------


def static_prompt(prompt: Mapping[str, Any], call: str) -> tuple[str, str]:
    """(html, text) of a prompt: question, options, and the call that keeps a prediction."""
    options = prediction_options(prompt)
    how = t("predict.how", call=call)
    html_text, _ = box("info", t("predict.title"), pick(prompt["question"]))
    html_text += _list_html([(option.letter, option.text) for option in options]) + f"<div>{inline(how)}</div>"
    lines = [f"{KINDS['info'][0]} {t('predict.title')}: {pick(prompt['question'])}"]
    return html_text, "\n".join([*lines, *(f"  {option.letter}. {option.text}" for option in options), f"  {how}"])


def parse_prediction(prompt: Mapping[str, Any], answer: Any) -> Any:
    """What is stored: the option's id, a float, or the text; a CourseError says what would have been understood."""
    if prompt.get("options"):
        return find_option(prediction_options(prompt), answer).id
    if prompt.get("number"):
        try:
            return float(answer)
        except (TypeError, ValueError):
            raise CourseError(
                f"a prediction of a number was expected, found {answer!r:.40}: give for example 0.5"
            ) from None
    return str(answer)


def prediction_text(prompt: Mapping[str, Any], prediction: Any) -> str:
    """A stored prediction as the learner knows it: option text, number, or their words."""
    for option in prediction_options(prompt):
        if option.id == prediction:
            return option.text
    return f"{prediction:.4g}" if isinstance(prediction, float) else str(prediction)


def prompt_widget(prompt: Mapping[str, Any], on_predict: Callable[[Any], None]) -> Any:
    """A VBox of question, input (RadioButtons, FloatText or Textarea), Button, and reply; `on_predict(prediction)`."""
    import ipywidgets

    options = prediction_options(prompt)
    head = f"<b>{t('predict.title')}</b><div>{inline(pick(prompt['question']))}</div>"

    def keep(answer: Any) -> str:
        if answer is None or answer == "":
            return html.escape(t("quiz.choose_first"))
        prediction = parse_prediction(prompt, answer.id if isinstance(answer, Option) else answer)
        on_predict(prediction)
        return inline(t("predict.recorded", prediction=prediction_text(prompt, prediction)))

    if options:
        return _choice_widget(head, options, t("predict.record"), keep)
    field = ipywidgets.FloatText() if prompt.get("number") else ipywidgets.Textarea(layout={"width": "90%"})
    return _input_widget(head, field, t("predict.record"), lambda: keep(field.value))


def show_prompt(
    prompt: Mapping[str, Any], call: str, on_predict: Callable[[Any], None], *, interactive: bool, answer: Any = None
) -> None:
    """Draw the prompt (widget and folded text, or text only); with `answer`, keep it as the prediction."""
    if answer is not None:
        prediction = parse_prediction(prompt, answer)
        on_predict(prediction)
        show(*box("info", t("predict.recorded", prediction=prediction_text(prompt, prediction))))
    elif interactive and widgets_possible():
        _display_with_fallback(prompt_widget(prompt, on_predict), static_prompt(prompt, call))
    else:
        show(*static_prompt(prompt, call))


def reveal_texts(prompt: Mapping[str, Any], prediction: Any, value: Any) -> tuple[str, list[str]]:
    """Box kind and paragraphs that compare the prediction (None: there is none) with the result `value`."""
    if prompt.get("options") and str(value) not in {option.id for option in prediction_options(prompt)}:
        ids = ", ".join(option.id for option in prediction_options(prompt))
        raise CourseError(f"{value!r} is no option of this prompt: reveal one of {ids}")
    number = prompt.get("number", False)
    value = float(value) if number else str(value)
    shown = prediction_text(prompt, value)
    explain = [pick(prompt["explain"])] if prompt.get("explain") else []
    if prediction is None:
        return "info", [t("predict.measured", value=shown), t("predict.none"), *explain]
    mine = prediction_text(prompt, prediction)
    if number:
        near = math.isclose(prediction, value, rel_tol=0.0, abs_tol=float(prompt.get("tolerance", 0.0)))
        key = "predict.was_close" if near else "predict.was_wrong"
        return ("pass" if near else "info"), [t(key, prediction=mine, value=shown), *explain]
    if not prompt.get("options"):
        return "info", [t("predict.text_compare", prediction=mine), t("predict.measured", value=shown), *explain]
    right = prediction == value
    key = "predict.was_right" if right else "predict.was_wrong"
    return ("pass" if right else "info"), [t(key, prediction=mine, value=shown), *explain]


# ---- shared ------------------------------------------------------------------------------------------------------


def _list_html(items: list[tuple[str, str]]) -> str:
    rows = "".join(f"<li><b>{html.escape(letter)}</b>. {inline(text)}</li>" for letter, text in items)
    return f'<ul style="list-style:none;padding-left:1em">{rows}</ul>' if rows else ""


def _choice_widget(head: str, options: list[Option], label: str, reply: Callable[[Option | None], str]) -> Any:
    import ipywidgets

    choices = [(f"{option.letter}. {plain(option.text).replace('`', '')}", i) for i, option in enumerate(options)]
    radio = ipywidgets.RadioButtons(options=choices, value=None, layout={"width": "auto"})
    radio.add_class(_WRAPS)
    head += f"<style>{_STYLE}</style>"
    return _input_widget(head, radio, label, lambda: reply(None if radio.value is None else options[radio.value]))


def _input_widget(head: str, field: Any, label: str, reply: Callable[[], str]) -> Any:
    import ipywidgets

    button = ipywidgets.Button(description=label, layout={"width": "max-content"})
    answer = ipywidgets.HTML()

    def clicked(_: Any) -> None:
        answer.value = reply()

    button.on_click(clicked)
    return ipywidgets.VBox([ipywidgets.HTML(head), field, button, answer])


def _display_with_fallback(widget: Any, static: tuple[str, str]) -> None:
    from IPython.display import display

    display(widget)
    html_text, text = static
    show(f"<details><summary>{t('quiz.as_text')}</summary>{html_text}</details>", text)
