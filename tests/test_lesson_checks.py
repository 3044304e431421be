"""Every lesson's exercises, quizzes, claims and article map, whichever lessons there are, and the fixture lesson.

Per exercise: the reference passes, an untouched stub says "not done yet", and two to four stored wrong answers fail
with the message they are stored for; every text exists in both languages with all its placeholders filled.
"""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from other_solutions import OTHER_SOLUTIONS
from wrong_solutions import WRONG_SOLUTIONS

from labkit.course.checker import TODO
from labkit.course.checks import load_exercises, run_check
from labkit.course.claims import declared
from labkit.course.feedback import HINT_LEVELS, result_texts
from labkit.course.i18n import LANGUAGES, catalogue, set_language, use_lesson
from labkit.course.lesson_files import lesson_files
from labkit.course.manifest import Project, lesson_numbers
from labkit.course.quiz import quiz_options

FIXTURE = Project(Path(__file__).parent / "data" / "lesson_fixture")
LESSONS = [(project, number) for project in (FIXTURE, Project()) for number in lesson_numbers(project)]
JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


def exercises():
    """(lesson, exercise) for all lessons; a checks.py that cannot be loaded becomes a case that shows its error."""
    for project, number in LESSONS:
        try:
            found = load_exercises(project.folder(number))
        except Exception as error:
            yield pytest.param(project, number, error, id=f"l{number}-cannot-be-loaded")
            continue
        for id, exercise in found.items():
            yield pytest.param(project, number, exercise, id=id)


each_exercise = pytest.mark.parametrize(("project", "number", "exercise"), list(exercises()))
each_lesson = pytest.mark.parametrize(("project", "number"), LESSONS, ids=[f"l{number}" for _, number in LESSONS])


@pytest.fixture(autouse=True)
def _lesson_texts(request):
    """The lesson's own messages, and English and no lesson again afterwards."""
    if isinstance(error := request.node.callspec.params.get("exercise"), Exception):
        raise error
    use_lesson(request.getfixturevalue("project").folder(request.getfixturevalue("number")))
    yield
    use_lesson(None)
    set_language("en")


def assert_readable(key: str, details: dict) -> None:
    """The message exists in both languages, is filled, and the Japanese one is Japanese."""
    texts = {lang: catalogue().text(key, lang, strict=True, **details) for lang in LANGUAGES}
    assert JAPANESE.search(texts["ja"])
    assert not JAPANESE.search(texts["en"].replace(str(details.get("got")), ""))


@each_exercise
def test_reference_passes_again_and_again(project, number, exercise):
    first, second = (run_check(exercise, exercise._reference_object()) for _ in range(2))
    assert first.ok, result_texts(first)
    assert first == second
    assert_readable(first.key, first.details)


@each_exercise
def test_untouched_stub_is_not_done_yet(project, number, exercise):
    for stub in exercise.stubs():
        result = run_check(exercise, stub)
        assert (result.key, result.status) == (TODO, "todo"), (stub, result)
        assert_readable(result.key, result.details)


@each_exercise
def test_stored_wrong_answers_fail_with_their_message(project, number, exercise):
    assert 2 <= len(exercise.wrong_answers) <= 4
    for expected, obj in exercise.wrong_answers:
        result = run_check(exercise, exercise.make(obj))
        assert (result.ok, result.key) == (False, expected), (obj, result, result_texts(result))
        assert_readable(result.key, result.details)
        for lang in LANGUAGES:
            title, paragraphs = result_texts(result, lang=lang)
            assert exercise.short in title and len(paragraphs) == 1 + (expected == "check.raised")


@each_exercise
def test_three_hints_in_both_languages(project, number, exercise):
    texts = {catalogue().text(f"hint.{exercise.id}.{level}", "en", strict=True) for level in HINT_LEVELS}
    assert len(texts) == len(HINT_LEVELS)
    for level in HINT_LEVELS:
        assert_readable(f"hint.{exercise.id}.{level}", {})


@each_exercise
def test_solution_can_be_shown(project, number, exercise):
    source = exercise.source()
    assert exercise.reference.__name__ in source
    compile(source, exercise.id, "exec")


@each_exercise
def test_check_leaves_global_random_state_alone(project, number, exercise):
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    run_check(exercise, exercise._reference_object())
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@each_lesson
def test_lesson_file_and_checks_list_the_same_exercises(project, number):
    info = lesson_files(number, project).exercise_info
    assert set(info) == set(load_exercises(project.folder(number)))


@each_lesson
def test_quizzes_have_one_right_option_and_explanations(project, number):
    for id, question in lesson_files(number, project).questions.items():
        for lang in LANGUAGES:
            set_language(lang)
            options = quiz_options(id, question)
            assert len(options) == len(question["options"]) >= 2
            assert sum(option.correct for option in options) == 1
            assert all(option.explain and option.text for option in options)
            assert len({option.explain for option in options}) == len(options)


@each_lesson
def test_quiz_options_have_the_same_order_in_both_languages(project, number):
    for id, question in lesson_files(number, project).questions.items():
        orders = []
        for lang in LANGUAGES:
            set_language(lang)
            written = [entry["text"][lang] for entry in question["options"]]
            orders.append([written.index(option.text) for option in quiz_options(id, question)])
        assert orders[0] == orders[1]


@each_lesson
def test_predictions_are_complete(project, number):
    for prompt in lesson_files(number, project).predictions.values():
        assert not (prompt.get("options") and prompt.get("number"))
        if prompt.get("options"):
            assert len({option["id"] for option in prompt["options"]}) == len(prompt["options"]) >= 2


@each_lesson
def test_claims_are_declared_and_article_rows_name_them(project, number):
    claims = declared(number, project)
    for claim in claims.values():
        assert claim.paper and claim.place and claim.testable
        assert JAPANESE.search(claim.statement["ja"])
    for row in lesson_files(number, project).article_rows:
        assert row["claim"] is None or row["claim"] in claims
        assert JAPANESE.search(row["article"]["ja"])


@each_lesson
def test_lesson_messages_have_both_languages(project, number):
    for key, entry in catalogue().layers[0].items():
        assert set(entry) == set(LANGUAGES), key


def wins(after, before, margin):
    """A tie ends before the margin."""
    return np.where(np.abs(after - before) < margin, 0.5, (after > before).astype(float))


def cluster_interval(values, prompts, generator, resamples=2000):
    """Draws without the generator."""
    count = torch.bincount(prompts)
    chosen = torch.randint(len(count), (resamples, len(count)))
    means = (torch.bincount(prompts, weights=values) / count)[chosen].mean(dim=1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def pareto_front(points):
    """Only who is more faithful dominates."""
    points = [(float(faithful), -float(far)) for faithful, far in points]
    return np.array([not any(q != p and q[0] > p[0] and q[1] >= p[1] for q in points) for p in points])


def acceptance(rho, tau, w):
    """A probability above 1 for w from 1 to 2."""
    above, below = (1.0, 1 / w) if w >= 2 else (w, 1.0)
    return torch.where(rho > tau, above, below).to(rho.dtype)


def forecast(pi, w):
    """The formula of w < 1 up to w = 2."""
    above, below = (pi, (1 - pi) / w) if w >= 2 else (w * pi, 1 - pi)
    return above + below, above / (above + below), 1 / (above + below)


# Small mistakes that checks once passed, found by changing every operator and constant of the references.
NARROW = [("02", cluster_interval), ("03", acceptance), ("03", forecast), ("05", wins), ("06", pareto_front)]


@pytest.mark.parametrize(
    ("project", "number", "exercise"),
    [pytest.param(Project(), number, answer, id=answer.__name__) for number, answer in NARROW],
)
def test_wrong_answers_that_differ_in_one_place_fail(project, number, exercise):
    result = run_check(load_exercises(project.folder(number))[f"l{number}.{exercise.__name__}"], exercise)
    assert not result.ok and result.key not in ("check.raised", TODO)
    assert_readable(result.key, result.details)


def each_answer(solutions):
    """A case for each answer of a table of answers."""
    cases = [
        pytest.param(Project(), id[1:3], id, answer, id=f"{id}-{answer.__name__}")
        for id, answers in solutions.items()
        for answer in answers
    ]
    return pytest.mark.parametrize(("project", "number", "exercise", "answer"), cases)


@each_answer(OTHER_SOLUTIONS)
def test_right_answers_that_are_written_otherwise_pass(project, number, exercise, answer):
    result = run_check(load_exercises(project.folder(number))[exercise], answer)
    assert result.ok, result_texts(result)


@each_answer(WRONG_SOLUTIONS)
def test_wrong_answers_that_fit_the_examples_fail(project, number, exercise, answer):
    result = run_check(load_exercises(project.folder(number))[exercise], answer)
    assert not result.ok and result.key != TODO
    assert (result.key == "check.raised") == (answer.__name__ == "divides_by_the_mass")  # a division by zero
