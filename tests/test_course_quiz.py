"""Quizzes and predictions: widgets without a browser, static text, a real kernel; bad files name their line."""

import re
import shutil
from pathlib import Path

import ipywidgets
import nbformat
import pytest
from nbclient import NotebookClient

from labkit.course import lab as session
from labkit.course import quiz as quizzes
from labkit.course import render, start
from labkit.course.i18n import set_language, use_lesson
from labkit.course.lesson_files import CourseError, lesson_files
from labkit.course.manifest import Project
from labkit.course.yamlfile import YamlError

FIXTURE = Project(Path(__file__).parent / "data" / "lesson_fixture")


@pytest.fixture(autouse=True)
def _no_session_left():
    yield
    session._current = None
    use_lesson(None)
    set_language("en")


@pytest.fixture(params=["en", "ja"])
def lab(request, tmp_path, capsys):
    opened = start("90", tier="smoke", lang=request.param, project=FIXTURE, home=tmp_path, results=tmp_path)
    capsys.readouterr()
    return opened


def parts(box):
    """(question, field, button, reply) of a quiz or prompt widget, in both generations of ipywidgets."""
    question, field, button, reply = box.children
    assert isinstance(question, ipywidgets.HTML) and isinstance(button, ipywidgets.Button)
    return question, field, button, reply


# ---- quiz --------------------------------------------------------------------------------------------------------


def test_widget_replies_to_each_option_with_its_explanation(lab):
    answers = []
    question = lab.files.questions["l90.snr"]
    head, radio, button, reply = parts(quizzes.question_widget("l90.snr", question, answers.append))
    assert question["question"][lab.lang] in head.value.replace("<code>", "`").replace("</code>", "`")
    options = quizzes.quiz_options("l90.snr", question)
    shown = [f"{option.letter}. {option.text.replace('`', '')}" for option in options]
    assert [label for label, _ in radio.options] == shown and "`" in "".join(option.text for option in options)
    assert not any(option.text in head.value for option in options)  # an option stands once, where it is clicked
    assert "labkit-choice" in radio._dom_classes and ".labkit-choice label{height:auto" in head.value
    button.click()
    assert reply.value == lab.t("quiz.choose_first") and not answers
    for index, option in enumerate(quizzes.quiz_options("l90.snr", question)):
        radio.value = index
        button.click()
        assert option.explain in reply.value
        assert (render.KINDS["pass"][0] in reply.value) is option.correct
    assert [option.correct for option in answers].count(True) == 1


def test_order_is_shuffled_but_fixed_unless_the_author_keeps_it():
    options = [{"text": str(i), "explain": "-", **({"correct": True} if i == 0 else {})} for i in range(4)]
    orders = {id: [o.text for o in quizzes.quiz_options(id, {"options": options})] for id in map(str, range(20))}
    again = [o.text for o in quizzes.quiz_options("3", {"options": options})]
    assert again == orders["3"]
    assert {order.index("0") for order in orders.values()} == {0, 1, 2, 3}
    kept = quizzes.quiz_options("3", {"options": options, "keep_order": True})
    assert [option.text for option in kept] == ["0", "1", "2", "3"]


def test_static_text_has_question_options_answer_and_explanations(lab, capsys):
    lab.quiz("steps")
    out = capsys.readouterr().out
    question = lab.files.questions["l90.steps"]
    assert question["question"][lab.lang] in out and f"B ({lab.t('quiz.correct_mark')})" in out
    for option in question["options"]:
        assert option["explain"][lab.lang] in out
    html_text, _ = quizzes.static_question("l90.steps", question)
    before, folded = html_text.split("<details>")
    assert question["options"][1]["explain"][lab.lang] in folded
    assert question["options"][1]["explain"][lab.lang] not in before


def test_all_questions_are_shown_without_an_id(lab, capsys):
    lab.quiz()
    assert capsys.readouterr().out.count(lab.t("quiz.title")) == 2


def test_answers_are_kept_and_count_until_right(lab, capsys):
    for choice in ("A", "b", "B"):
        lab.quiz("steps", choice)
    entry = lab.progress.entry("90", "quizzes", "l90.steps")
    assert entry["attempts"] == 2 and entry["right"]
    assert lab.t("quiz.right", option="B") in capsys.readouterr().out
    with pytest.raises(CourseError, match="A, B"):
        lab.quiz("steps", "C")


def test_static_form_replaces_widgets_where_none_are_possible(lab, monkeypatch, capsys):
    assert not quizzes.widgets_possible()
    displayed = []
    monkeypatch.setattr(quizzes, "_display_with_fallback", lambda widget, static: displayed.append(widget))
    monkeypatch.setattr(quizzes, "widgets_possible", lambda: True)
    lab.quiz("steps")
    lab.predict("norm")
    assert len(displayed) == 2 and not capsys.readouterr().out
    lab.interactive = False
    lab.quiz("steps")
    lab.predict("norm")
    assert len(displayed) == 2 and capsys.readouterr().out


# ---- predict, then run -------------------------------------------------------------------------------------------


def test_prediction_widget_keeps_the_option(lab):
    kept = []
    prompt = lab.files.predictions["l90.more_steps"]
    _, radio, button, reply = parts(quizzes.prompt_widget(prompt, kept.append))
    button.click()
    assert not kept
    radio.value = 1
    button.click()
    assert kept == ["down"] and prompt["options"][1]["text"][lab.lang] in reply.value


def test_prediction_widgets_for_numbers_and_texts(lab):
    kept = []
    _, number, button, _ = parts(quizzes.prompt_widget(lab.files.predictions["l90.norm"], kept.append))
    number.value = 0.5
    button.click()
    _, text, button, reply = parts(quizzes.prompt_widget(lab.files.predictions["l90.why"], kept.append))
    button.click()
    assert kept == [0.5]
    text.value = "a <b>reason</b>"
    button.click()
    assert kept == [0.5, "a <b>reason</b>"] and "&lt;b&gt;" in reply.value


@pytest.mark.parametrize(
    ("id", "answer", "value", "key"),
    [
        ("more_steps", "B", "down", "predict.was_right"),
        ("more_steps", "up", "down", "predict.was_wrong"),
        ("norm", 1, 1.05, "predict.was_close"),
        ("norm", "2.5", 1.05, "predict.was_wrong"),
        ("why", "because", "it is so", "predict.text_compare"),
        ("why", None, "it is so", "predict.none"),
    ],
)
def test_reveal_compares_prediction_and_result(lab, capsys, id, answer, value, key):
    if answer is not None:
        lab.predict(id, answer)
    capsys.readouterr()
    lab.reveal(id, value)
    start_of_text = lab.t(key, prediction="\0", value="\0").split("\0")[0]
    assert start_of_text in capsys.readouterr().out


def test_reveal_explains_and_refuses_what_is_no_option(lab, capsys):
    lab.reveal("more_steps", "down")
    assert lab.files.predictions["l90.more_steps"]["explain"][lab.lang] in capsys.readouterr().out
    with pytest.raises(CourseError, match="reveal one of up, down"):
        lab.reveal("more_steps", "sideways")


def test_prompt_says_how_to_keep_a_prediction_without_widgets(lab, capsys):
    for id, call in (("more_steps", 'lab.predict("more_steps", "A")'), ("norm", 'lab.predict("norm", 0.5)')):
        lab.predict(id)
        assert call in capsys.readouterr().out
    with pytest.raises(CourseError, match="a number was expected"):
        lab.predict("norm", "many")


# ---- bad files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ", correct: true}",
            "}",
            r"l90/quiz\.yaml:4: questions\.0\.options is .*; expected two or more options, one of them",
        ),
        (
            '{text: {en: "10", ja: "10"}, explain',
            '{text: {en: "10"}, explain',
            r"quiz\.yaml:12: questions\.1\.options\.0\.text is .*; expected \{en: text, ja: text\}",
        ),
        (
            "id: steps",
            "id: snr",
            r"quiz\.yaml:1: questions is .*; expected different ids: snr must appear once only; rename",
        ),
        (
            "keep_order: true",
            "keep_ordr: true",
            r"quiz\.yaml:9: unknown key 'questions\.1\.keep_ordr'; fields are id, question, options, keep_order",
        ),
        (
            '    question: {en: "How',
            '    qestion: {en: "How',
            r"quiz\.yaml:8: questions\.1\.question is missing; fields are id, question, ",
        ),
        ("predictions:", "forecasts:", r"unknown key 'forecasts'; fields are questions, predictions"),
        ("{id: up, text", "{text", r"predictions\.0\.options\.0\.id is missing; fields are id, text"),
        ("questions:", "questions: [", r"quiz\.yaml:"),
    ],
)
def test_bad_quiz_files_are_named_with_line_and_cure(tmp_path, old, new, message):
    shutil.copytree(FIXTURE.root, tmp_path / "course", ignore=shutil.ignore_patterns("__pycache__"))
    project = Project(tmp_path / "course")
    path = project.folder("90") / "quiz.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    files = lesson_files("90", project)
    with pytest.raises((CourseError, YamlError), match=message):
        assert files.questions and files.predictions


def test_lesson_without_a_quiz_file_has_no_questions(tmp_path):
    shutil.copytree(FIXTURE.root, tmp_path / "course", ignore=shutil.ignore_patterns("__pycache__", "quiz.yaml"))
    files = lesson_files("90", Project(tmp_path / "course"))
    assert files.questions == files.predictions == {}


# ---- a real kernel -----------------------------------------------------------------------------------------------


CELLS = [
    "from pathlib import Path\nfrom labkit.course import start\nfrom labkit.course.manifest import Project\n"
    'lab = start("90", tier="smoke", lang="ja", project=Project(Path("{root}")), home="{home}", results="{home}")',
    'lab.check("answer", None)',
    'lab.quiz("snr")',
    'lab.predict("norm")',
    'for _ in lab.progress_bar(range(3), "x"):\n    pass',
    "def add_noise(x0, noise, alpha_bar):\n    return x0 @ nothing",
    'add_noise = lab.use("add_noise")',
    'lab.check("add_noise")',
    "def add_noise(x0, noise, alpha_bar):\n    return alpha_bar**0.5 * x0 + noise * (1 - alpha_bar) ** 0.5\n"
    'lab.check("add_noise")',
    'lab.claim("same", value=1.0, seeds=[0])',
]


def test_everything_is_drawn_once_in_a_kernel(tmp_path):
    sources = [cell.replace("{root}", FIXTURE.root.as_posix()).replace("{home}", tmp_path.as_posix()) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client = NotebookClient(notebook, timeout=300, startup_timeout=300, kernel_name="python3")
    client.execute(cwd=str(Path(__file__).parents[1]))
    data = [[output.get("data", {}) for output in cell.outputs] for cell in notebook.cells]
    html_texts = ["".join(part.get("text/html", "") for part in cell) for cell in data]
    assert "レッスン90" in html_texts[0] and 'lang="ja"' in html_texts[0]
    assert [len(cell) for cell in data] == [1, 2, 2, 2, 1, 0, 1, 2, 1, 1]
    assert "未解答" in html_texts[1]
    view = "application/vnd.jupyter.widget-view+json"
    for cell in (2, 3):
        assert view in data[cell][0] and "<details>" in html_texts[cell]
    assert view in data[1][1] and "lab.hint()" in data[1][1]["text/plain"] and "lab.hint" not in html_texts[1]
    assert "3件を" in html_texts[4]
    assert "参照実装" in html_texts[6] and "先に進むために教材が用意した" in html_texts[7]
    assert "合格" in html_texts[8] and html_texts[8].count("<pre") == 2
    assert "return alpha_bar**0.5 * x0 + noise * (1 - alpha_bar) ** 0.5" in html_texts[8]
    assert "再現できた" in html_texts[9]
    assert all(re.search(r"\S", part.get("text/plain", "x")) for cell in data for part in cell)
