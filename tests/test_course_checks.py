"""The check engine and the session: whatever a learner hands over, there is a clear answer and the lesson runs on."""

import argparse
import inspect
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import labkit.course
import labkit.diffusion
from labkit.course import feedback, render, start
from labkit.course import lab as session
from labkit.course.answers import lend
from labkit.course.checker import LENT, MISSING_CELL, NOT_YOURS, TODO, Checker
from labkit.course.checks import Exercise, exercise, judge, load_exercises, run_check
from labkit.course.feedback import result_texts
from labkit.course.i18n import set_language, use_lesson
from labkit.course.lesson_files import CourseError
from labkit.course.manifest import ManifestError, Project
from labkit.course.progressbar import LOG_LINES, clock_text, progress_bar
from labkit.course.render import language
from labkit.course.values import brief, call_text, diagnose

FIXTURE = Project(Path(__file__).parent / "data" / "lesson_fixture")


@pytest.fixture(autouse=True)
def _no_session_left():
    yield
    session._current = None
    use_lesson(None)
    set_language("en")


@pytest.fixture
def lab(tmp_path):
    return start("90", tier="smoke", project=FIXTURE, home=tmp_path, results=tmp_path)


def make(check, reference=lambda x: x, **options) -> Exercise:
    """An exercise that is declared in passing."""
    return Exercise("l90.thing", check, reference, options.get("value", False), (), (), None)


def outcome(got, want, **options) -> str:
    """Message key of one comparison ('check.passed' if it holds)."""
    return run_check(make(lambda c, obj: c.close(obj, want, **options)), got).key


# ---- comparing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "want", "key"),
    [
        (torch.ones(3), torch.ones(3), "check.passed"),
        (torch.ones(3).double(), torch.ones(3), "check.passed"),
        (1.0, 1, "check.passed"),
        (torch.tensor(2.0), 2.0, "check.passed"),
        (2.0, torch.tensor(2.0), "check.type"),
        (np.ones(3), torch.ones(3), "check.type"),
        (torch.ones(3), np.ones(3), "check.type"),
        ("yes", "yes", "check.passed"),
        ("yes", "no", "check.differs"),
        (True, 1.0, "check.not_number"),
        ([1.0, 2.0], [1.0, 2.0], "check.passed"),
        ([1.0], [1.0, 2.0], "check.length"),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, "check.keys"),
        ({"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 2.0}, "check.value"),
        (torch.ones(3), torch.ones(3, 1), "check.shape"),
        (torch.ones(2, 3), torch.ones(3, 2), "check.shape_transposed"),
        (torch.tensor(1.0), torch.ones(3), "check.shape_scalar"),
        (torch.ones(3).long(), torch.ones(3), "check.dtype"),
        (torch.ones(3), torch.ones(3) > 0, "check.dtype"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), "check.not_finite"),
        (float("inf"), 1.0, "check.not_finite"),
        (-torch.arange(3.0), torch.arange(3.0), "check.sign"),
        (2 * torch.arange(3.0), torch.arange(3.0), "check.factor"),
        (torch.arange(3.0) + 1, torch.arange(3.0), "check.offset"),
        (torch.arange(4.0).reshape(2, 2).T, torch.arange(4.0).reshape(2, 2), "check.transposed"),
        (torch.tensor([0.0, 1.0, 5.0]), torch.arange(3.0), "check.value"),
        (None, torch.ones(3), TODO),
        ((None, None), [1.0, 2.0], TODO),
        (torch.ones(3, device="meta"), torch.ones(3), "check.device"),
    ],
)
def test_comparison_names_what_is_wrong(got, want, key):
    assert outcome(got, want) == key


def test_values_may_be_off_by_rounding_and_by_no_more():
    """Within 1e-4 of the number, or 1e-5 where it is 0: by hand, against the reference, and in `is_close`."""

    def verdicts(got, want):
        by_hand = run_check(make(lambda c, obj: c.hand(obj, want)), got).key
        return {key == "check.passed" for key in (outcome(got, want), by_hand)} | {
            Checker(make(None)).is_close(got, want)
        }

    for want, near, far in ((1.0, 1.00009, 1.0002), (-500.0, -499.96, -499.9), (0.0, 9e-6, 3e-5)):
        for kind in (float, lambda v: torch.tensor([v, 2.0], dtype=torch.float64), lambda v: [2.0, v]):
            assert verdicts(kind(near), kind(want)) == {True}
            assert verdicts(kind(far), kind(want)) == {False}


def test_message_points_at_the_worst_element():
    got = torch.zeros(4, 5)
    got[2, 3], got[0, 1] = 0.7, 0.1
    result = run_check(make(lambda c, obj: c.close(obj, torch.zeros(4, 5))), got)
    assert result.details["index"] == "[2, 3]"
    assert (result.details["got"], result.details["want"], result.details["wrong"]) == ("0.7", "0", "2/20")


def test_own_key_and_details_reach_the_message():
    result = run_check(make(lambda c, obj: c.close(obj, 1.0, key="l90.own", paper="DDPM")), 3.0)
    assert (result.key, result.details["paper"], result.details["got"]) == ("l90.own", "DDPM", "3")


def test_exact_comparison_knows_no_tolerance():
    almost = torch.ones(3) + 1e-6
    assert outcome(almost, torch.ones(3)) == "check.passed"
    assert run_check(make(lambda c, obj: c.equal(obj, torch.ones(3))), almost).key == "check.value"


def test_diagnosis_finds_no_pattern_in_noise():
    draws = np.random.default_rng(0)
    assert diagnose(draws.normal(size=8), draws.normal(size=8), 1e-4, 1e-5) is None


def test_brief_stays_short():
    assert len(brief(torch.randn(50, 50, generator=torch.Generator().manual_seed(0)))) <= 90
    assert brief(torch.tensor([1.0, 0.5])) == "[1, 0.5]"


# ---- learners' objects -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("obj", [None, ..., NotImplemented, lambda x: None, lambda x: ..., lambda x: (None, None)])
def test_unwritten_answers_are_not_done_yet(obj):
    def check(c, fn):
        c.callable(fn)
        c.close(c.call(fn, 1.0), 1.0)

    assert run_check(make(check), obj).key == TODO


def test_error_in_learners_code_becomes_one_line_with_its_place():
    def broken(x):
        return x + undefined_name  # noqa: F821

    result = run_check(make(lambda c, fn: c.call(fn, 1.0)), broken)
    assert result.key == "check.raised" and not result
    assert result.details["error"] == "NameError: name 'undefined_name' is not defined"
    assert "return x + undefined_name" in result.details["where"]


def test_error_inside_the_check_itself_is_a_failed_result():
    result = run_check(make(lambda c, obj: obj.no_such_attribute), 3)
    assert result.key == "check.raised" and "no_such_attribute" in result.details["error"]


def test_check_without_a_step_is_the_authors_mistake():
    with pytest.raises(CourseError, match="has no step"):
        run_check(make(lambda c, obj: None), 3)


@pytest.mark.parametrize(
    ("obj", "key"),
    [
        (3.0, "check.not_callable"),
        (lambda: 1.0, "check.signature"),
        (lambda x, y: 1.0, "check.signature"),
        (lambda x, y=2: x, "check.passed"),
        (lambda *args: args[0], "check.passed"),
    ],
)
def test_signature_is_compared_with_the_reference(obj, key):
    def check(c, fn):
        c.callable(fn)
        c.close(c.call(fn, 1.0), 1.0)

    assert run_check(make(check), obj).key == key


@pytest.mark.parametrize(
    "argument", [torch.ones(2), np.ones(2), [1, 2], {"a": torch.ones(2)}], ids=["tensor", "array", "list", "dict"]
)
def test_changed_arguments_are_noticed(argument):
    def spoil(x):
        x["a" if isinstance(x, dict) else 0] = 5
        return 1.0

    assert run_check(make(lambda c, fn: c.call(fn, argument)), spoil).key == "check.mutated"


def test_arguments_may_change_where_the_author_allows_it():
    result = run_check(make(lambda c, fn: c.call(fn, [1], may_mutate=True, none_ok=True)), lambda x: x.append(2))
    assert result.ok


def test_learner_draws_are_repeatable_inside_a_check():
    seen = []
    for _ in range(2):
        run_check(make(lambda c, fn: seen.append(c.call(fn, 0).item())), lambda x: torch.rand(()))
    assert seen[0] == seen[1]


def test_expected_errors():
    def check(c, fn):
        c.raises(ValueError, fn, -1.0)

    def refuses(x):
        raise ValueError("negative")

    assert run_check(make(check), refuses).ok
    assert run_check(make(check), lambda x: x).key == "check.no_error"
    assert run_check(make(check), lambda x: 1 / 0).details["got"] == "ZeroDivisionError: division by zero"


def test_gradient_steps():
    weight = torch.ones(2, requires_grad=True)
    steps = {
        "has_gradient": lambda c, loss: c.has_gradient(loss, weight),
        "no_gradient": lambda c, loss: c.no_gradient(loss, weight),
        "detached": lambda c, loss: c.detached(loss),
    }
    flowing, cut = (weight**2).sum(), (weight**2).sum().detach()
    keys = {name: (run_check(make(step), flowing).key, run_check(make(step), cut).key) for name, step in steps.items()}
    assert keys == {
        "has_gradient": ("check.passed", "check.no_gradient"),
        "no_gradient": ("check.leaking_gradient", "check.passed"),
        "detached": ("check.not_detached", "check.passed"),
    }


def test_number_range_and_exact_dtype():
    assert run_check(make(lambda c, obj: c.number(obj, 0, 1)), 1.5).details["want"] == "[0, 1]"
    wrong = run_check(make(lambda c, obj: c.tensor(obj, (2,), dtype=torch.float32)), torch.ones(2).double())
    assert (wrong.key, wrong.details["want"], wrong.details["got"]) == ("check.dtype", "float32", "float64")
    assert run_check(make(lambda c, obj: c.array(obj, (2, -1))), np.ones((2, 7))).ok


def test_checker_draws_depend_on_the_exercise_only():
    draws = [Checker(make(None)).randn(3) for _ in range(2)]
    assert torch.equal(*draws)
    other = Checker(Exercise("l90.other", None, len, False, (), (), None))
    assert not torch.equal(draws[0], other.randn(3))
    assert other.randint(0, 5, 2, 2).max() < 5 and other.rand(4).min() >= 0


# ---- lesson files ------------------------------------------------------------------------------------------------


def test_declaring_an_exercise_twice_is_an_error():
    with pytest.raises(CourseError, match="declared twice"):
        for _ in range(2):
            exercise("l90.twice", reference=len)(lambda c, obj: None)


def test_value_exercises_need_a_function_as_reference():
    with pytest.raises(CourseError, match="value=True"):
        exercise("l90.constant", reference=3.0)


@pytest.fixture
def copied(tmp_path):
    """A copy of the fixture lesson that a test may spoil, as Project."""
    shutil.copytree(FIXTURE.root, tmp_path / "course", ignore=shutil.ignore_patterns("__pycache__"))
    return Project(tmp_path / "course")


def test_exercise_of_another_lesson_is_refused(copied):
    path = copied.folder("90") / "checks.py"
    path.write_text(path.read_text(encoding="utf-8").replace("l90.answer", "l91.answer"), encoding="utf-8")
    with pytest.raises(CourseError, match=r"'l91\.answer' must be called 'l90\.name'"):
        load_exercises(copied.folder("90"))


def test_lesson_without_checks_has_no_exercises(copied):
    (copied.folder("90") / "checks.py").unlink()
    assert load_exercises(copied.folder("90")) == {}


# ---- session -----------------------------------------------------------------------------------------------------


def test_check_shows_the_message_in_the_lessons_language(tmp_path, capsys):
    for lang, words in (("en", "Take the square roots"), ("ja", "平方根を取ってください")):
        lab = start(90, tier="smoke", lang=lang, project=FIXTURE, home=tmp_path)
        result = lab.check("add_noise", lambda x0, noise, a: a * x0 + (1 - a) * noise)
        assert (result.ok, result.stage, result.key) == (False, "mistake", "l90.no_root")
        assert words in capsys.readouterr().out


def test_failed_checks_offer_the_next_hint_and_then_the_solution(lab, capsys):
    for offered in ("lab.hint()` (hint 1", "hint 2", "hint 3", "lab.solution()"):
        for answer in (torch.zeros(3, 3), None):
            lab.check("answer", answer)
            assert offered in capsys.readouterr().out
        lab.hint()


def test_help_without_an_id_is_for_the_exercise_checked_last(lab, capsys):
    with pytest.raises(CourseError, match=r'lab\.hint\("name"\) with one of add_noise, margin_loss, answer'):
        lab.hint()
    lab.check("add_noise", None)
    lab.check("answer", None)
    capsys.readouterr()
    for level in (1, 2, 3, 3):
        lab.hint()
        assert f"Hint {level} of 3 for `answer`" in capsys.readouterr().out
    lab.hint("add_noise")
    lab.solution()
    assert "return alpha_bar**0.5 * x0" in capsys.readouterr().out
    entries = {id: lab.progress.entry("90", "exercises", f"l90.{id}") for id in ("answer", "add_noise")}
    assert entries == {"answer": {"hints": 3}, "add_noise": {"hints": 1, "solution_seen": True}}


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_buttons_give_one_hint_after_another_and_the_solution(tmp_path, lang):
    lab = start("90", tier="smoke", lang=lang, project=FIXTURE, home=tmp_path)
    exercise, seen = lab.exercise("add_noise"), []
    widget = feedback.help_widget(exercise, 1, lambda **help: seen.append(help))
    (ask, solve), shown = widget.children[0].children, widget.children[1]
    for level in (2, 3):
        assert ask.description == lab.t("help.button_hint", level=level) and not ask.disabled
        ask.click()
        assert render.inline(lab.t(f"hint.l90.add_noise.{level}")) in shown.value
    assert ask.disabled and "def add_noise" not in shown.value
    ask.click()
    solve.click()
    assert "def add_noise" in shown.value and solve.disabled
    assert ("Ho et al. 2020" in shown.value) is (lang == "en")  # the docstring is English
    assert render.inline(lab.t("hint.l90.add_noise.2")) in shown.value  # what was asked for stays
    assert seen == [{"hint": 2}, {"hint": 3}, {"solution": True}]


def test_buttons_replace_the_line_only_where_they_can_be_drawn(lab, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(feedback, "widgets_possible", lambda: True)
    monkeypatch.setattr(feedback, "_draw", lambda widget, line: drawn.append(line))
    lab.check("answer", None)
    assert [line.count("lab.hint()") for line in drawn] == [1] and "lab.hint" not in capsys.readouterr().out
    lab.check("answer", torch.triu(torch.ones(3, 3)))
    assert len(drawn) == 1
    lab.interactive = False
    lab.check("answer", None)
    assert len(drawn) == 1 and "lab.hint()" in capsys.readouterr().out


def test_a_pass_shows_a_number_of_the_learners_own_and_the_reference_beside_their_code(lab, monkeypatch):
    shown = []
    monkeypatch.setattr(feedback, "show", lambda html_text, text: shown.append((html_text, text)))
    lab.check("add_noise", solve)
    html_text, text = shown[0]
    assert "`add_noise([1], [2], 0.64) = [2]`" in text
    summary, *columns = html_text.split("<details")[1].split("<pre")
    assert lab.t("help.compare") in summary
    assert "A right answer" in columns[0] and "Ho et al. 2020" in columns[1] and len(columns) == 2
    lab.check("add_noise", lambda x0, noise, alpha_bar: x0)
    assert "<details" not in shown[1][0]  # nothing is given away before


def test_long_calls_are_not_shown_as_examples(lab):
    long = make(lambda c, fn: c.hand(c.call(fn, torch.randn(40, 40, generator=c.generator)).sum(), 1600.0))
    result = run_check(long, torch.ones_like)
    assert result.ok and result.details["example"] == ""
    assert call_text("f", solve, (1, 2.5), {"a": [3]}, (4, 0.2)) == "f(1, 2.5, a=[3]) = (4, 0.2)"
    assert call_text("f", solve, (torch.zeros(40, 40),), {}, 4) == "f(…) = 4"


def test_error_message_comes_with_the_first_hint(lab, capsys):
    lab.check("add_noise", lambda x0, noise, a: x0 @ noise @ undefined)  # noqa: F821
    out = capsys.readouterr().out
    assert "NameError" in out and "Which two numbers" in out and "hint 2" in out
    lab.hint("add_noise")
    assert "Hint 2 of 3" in capsys.readouterr().out


def test_use_hands_back_the_learners_object_or_the_reference(lab, capsys):
    mine = lambda x0, noise, a: a**0.5 * x0 + (1 - a) ** 0.5 * noise  # noqa: E731
    assert lab.use("add_noise", mine) is mine
    assert "your own `add_noise`" in capsys.readouterr().out
    reference = lab.use("add_noise", None)
    assert reference(5.0, 10.0, 0.64) == 0.8 * 5 + 0.6 * 10
    assert inspect.signature(reference) == inspect.signature(lab.exercise("add_noise").reference)
    assert lab.use("add_noise", reference) is reference
    assert "reference solution of `add_noise`" in capsys.readouterr().out
    assert torch.equal(lab.use("answer", "wrong"), torch.triu(torch.ones(3, 3)))


def test_use_checks_values_again_because_they_can_change(lab):
    answer = torch.triu(torch.ones(3, 3))
    assert lab.use("answer", answer) is answer
    answer[0, 0] = 7
    assert lab.use("answer", answer) is not answer


def test_name_is_looked_up_in_the_notebook_and_deleted_cells_are_survived(lab, monkeypatch, capsys):
    assert lab.check("add_noise").key == MISSING_CELL
    assert "is not defined" in capsys.readouterr().out
    assert lab.use("running_mean") is lab.exercise("running_mean").reference

    class RunningMean:
        def __init__(self):
            self.seen = []

        def add(self, value):
            self.seen.append(value)
            return sum(self.seen) / len(self.seen)

    monkeypatch.setattr(sys.modules["__main__"], "RunningMean", RunningMean, raising=False)
    assert lab.check("running_mean").ok and lab.use("running_mean") is RunningMean


def solve(x0, noise, alpha_bar):
    """A right answer for l90.add_noise."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


def test_what_the_lesson_lent_is_no_answer_under_any_name(lab):
    lent, cls = lab.use("add_noise", None), lab.use("running_mean", None)
    reference = lab.exercise("add_noise").reference
    for obj in (lent, reference, partial(lent), lambda x0, noise, alpha_bar: lent(x0, noise, alpha_bar)):
        assert lab.check("add_noise", obj).key == LENT, obj
        assert lab.use("add_noise", obj) is lent
    for obj in (cls, type("RunningMean", (cls,), {})):
        assert lab.check("running_mean", obj).key == LENT
    assert lab.progress.entry("90", "exercises", "l90.add_noise") == {}
    assert lab.check("add_noise", solve).ok


def test_what_labkit_defines_is_no_answer(lab):
    result = lab.check("add_noise", labkit.diffusion.add_noise)
    assert (result.key, result.details["got"]) == (NOT_YOURS, "labkit.diffusion.schedule.add_noise")
    assert not lab.check("running_mean", labkit.course.Lab)


def test_a_lent_value_is_no_answer_but_an_equal_one_is(lab):
    lent = lab.use("answer", None)
    assert lab.check("answer", lent).key == LENT
    assert lab.check("answer", lent.clone()).ok
    number = make_exercise_of_value(4)
    assert lend(number) == 4 and judge(number, 4).ok  # small numbers are one object, whoever made them


def make_exercise_of_value(value) -> Exercise:
    return make(lambda c, obj: c.close(obj, value), lambda: value, value=True)


def test_a_lent_function_may_be_used_by_the_answer_of_another_exercise(lab):
    lent = lab.use("add_noise", None)
    assert run_check(make(lambda c, fn: c.close(c.call(fn, 1.0), 0.8)), lambda x: lent(x, 0.0, 0.64)).ok


def test_only_answers_of_the_learners_own_are_attempts(lab):
    wrong = lambda x0, noise, alpha_bar: x0  # noqa: E731
    lent = lab.use("add_noise", wrong)
    for obj, attempts in ((wrong, 1), (lent, 1), (None, 1), (wrong, 2), (solve, 3), (lent, 3)):
        lab.check("add_noise", obj)
        assert lab.progress.entry("90", "exercises", "l90.add_noise")["attempts"] == attempts


def test_strict_sessions_raise_with_the_message(tmp_path):
    lab = start("90", tier="smoke", project=FIXTURE, home=tmp_path, strict=True)
    with pytest.raises(session.CheckFailed, match="There is no answer here yet"):
        lab.check("answer", None)
    with pytest.raises(session.CheckFailed, match="not finished"):
        lab.use("answer", None)
    assert lab.check("answer", torch.triu(torch.ones(3, 3))).ok


def test_verdicts_are_shown_and_a_strict_session_stops_at_a_wrong_one(lab, tmp_path, capsys):
    lab.verdict("the answer is 42", torch.tensor(42) == 42)
    assert "Holds: the answer is 42" in capsys.readouterr().out
    for wrong in (False, torch.tensor(float("nan")) < 1):
        lab.verdict("the answer is 43", wrong)
        assert "Does not hold: the answer is 43" in capsys.readouterr().out
    strict = start("90", tier="smoke", project=FIXTURE, home=tmp_path, strict=True, lang="ja")
    strict.verdict("答えは 42", True)
    assert "成立: 答えは 42" in capsys.readouterr().out
    with pytest.raises(session.CheckFailed, match="不成立: 答えは 43"):
        strict.verdict("答えは 43", False)


def test_hints_and_solution(lab, capsys):
    lab.hint("add_noise", level=3)
    assert "`alpha_bar**0.5 * x0 + ...`" in capsys.readouterr().out
    lab.solution("add_noise")
    assert "return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise" in capsys.readouterr().out
    with pytest.raises(CourseError, match="choose 1, 2 or 3"):
        lab.hint("add_noise", level=4)


def test_unknown_ids_list_what_there_is(lab):
    with pytest.raises(CourseError, match=r"no exercise 'add_nose'; it has: l90\.add_noise, l90\.margin_loss"):
        lab.check("add_nose", None)
    with pytest.raises(CourseError, match="no question"):
        lab.quiz("nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tier": "big"}, "unknown tier 'big'"),
        ({"lang": "fr"}, "unknown language 'fr'"),
        ({"lesson": "42"}, "no lesson '42'; the lessons are: 90"),
        ({"lesson": "abc"}, "the lessons are: 90"),
        ({"seed": "0"}, "expected a whole number"),
        ({"seed": True}, "expected a whole number"),
    ],
)
def test_start_refuses_unknown_values_by_name(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        start(**{"lesson": "90", "project": FIXTURE, "home": tmp_path, **arguments})
    assert issubclass(ManifestError, ValueError)


def test_sizes_follow_the_tier_and_name_themselves(lab, tmp_path, monkeypatch):
    assert (lab.sizes.images, lab.sizes.rate, lab.sizes.scorer) == (4, 0.5, "reader")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert start("90", tier="gpu", project=FIXTURE, home=tmp_path).sizes.images == 256
    with pytest.raises(AttributeError, match="no size 'image'; lesson.yaml gives: images, rate, scorer"):
        _ = lab.sizes.image


def test_generators_repeat_and_seeds_do_not_overlap(tmp_path):
    draws = {}
    for seed in (0, 1):
        lab = start("90", tier="smoke", seed=seed, project=FIXTURE, home=tmp_path)
        for offset in (0, 1):
            first, again = (torch.rand(4, generator=lab.generator(offset)) for _ in range(2))
            assert torch.equal(first, again)
            draws[seed, offset] = tuple(first.tolist())
    assert len(set(draws.values())) == 4
    with pytest.raises(CourseError, match="expected 0 to"):
        lab.generator(10_000)


def test_small_tiers_stay_on_the_cpu_and_gpu_stops_at_once_where_there_is_none(lab, tmp_path, monkeypatch):
    assert lab.device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(CourseError, match='tier gpu needs a GPU, and none was found: set tier = "cpu"') as error:
        start("90", tier="gpu", project=FIXTURE, home=tmp_path)
    assert "\n" not in str(error.value)
    assert session._current is not None and session._current.tier != "gpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert start("90", tier="gpu", project=FIXTURE, home=tmp_path).device.type == "cuda"


def test_the_current_lesson_is_the_last_one_started_and_without_one_an_error_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(session, "_current", None)
    with pytest.raises(CourseError, match="run the setup cell"):
        session.current()
    lab = start("90", "smoke", "en", project=FIXTURE, home=tmp_path)
    assert session.current() is lab
    assert labkit.course.t("l90.margin_sign") == lab.t("l90.margin_sign")


def test_importing_the_course_loads_no_torch():
    code = (
        "import sys, labkit.course as c; assert callable(c.start) and 'torch' not in sys.modules and 'start' in dir(c)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_results_are_not_shown_twice_in_a_notebook(lab):
    from IPython.core.formatters import DisplayFormatter

    result = lab.check("answer", torch.triu(torch.ones(3, 3)))
    assert DisplayFormatter().format(result) == ({}, {})


def test_summary_and_repr(lab, capsys):
    lab.check("answer", torch.triu(torch.ones(3, 3)))
    lab.summary()
    assert "1 of 4 exercises passed" in capsys.readouterr().out
    assert "tier smoke" in repr(lab)


def test_texts_can_be_asked_for_in_either_language(lab):
    result = run_check(lab.exercise("answer"), torch.zeros(3, 3))
    english, japanese = (result_texts(result, lang=lang)[1][0] for lang in ("en", "ja"))
    assert english.startswith("Worked out by hand") and japanese.startswith("手計算では")


# ---- progress bar ------------------------------------------------------------------------------------------------


class Clock:
    """Advances by `step` seconds per look."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.mark.parametrize("total", [3, 10, 1000])
def test_batch_log_never_exceeds_ten_lines(total, capsys):
    assert list(progress_bar(range(total), "noise", interactive=False, clock=Clock(1.0))) == list(range(total))
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= LOG_LINES
    assert lines[-1].startswith(f"noise: {total} done in")


def test_quick_loops_write_one_line(capsys):
    list(progress_bar(range(1000), interactive=False, clock=Clock(1e-5)))
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_forecast_assumes_constant_speed(capsys):
    list(progress_bar(range(10), interactive=False, clock=Clock(60.0)))
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "1/10 (10%), 1:00 elapsed, about 9:00 left"


def test_length_may_be_unknown(capsys):
    assert len(list(progress_bar(iter(range(1000)), interactive=False, clock=Clock(1.0)))) == 1000
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "10", "100", "1000", "1000"]


def test_interrupted_loops_say_where_they_stopped(capsys):
    for item in progress_bar(range(10), interactive=False):
        if item == 4:
            break
    assert "stopped after 4 of 10" in capsys.readouterr().out


def test_bad_total_is_refused_before_the_loop():
    with pytest.raises(ValueError, match="expected the number of items"):
        progress_bar([], total=-1)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0.4 s"), (65, "1:05"), (3700, "1:01:40")])
def test_clock_text(seconds, text):
    assert clock_text(seconds) == text


def test_clock_text_in_japanese():
    with language("ja"):
        assert (clock_text(0.4), clock_text(65)) == ("0.4秒", "1:05")


def test_notebook_display_is_updated_in_place(monkeypatch):
    import IPython.display

    from labkit.course import progressbar

    shown = []

    class Handle:
        def update(self, content, raw):
            shown.append(("update", content["text/html"]))

    def display(content, raw, display_id):
        shown.append(("new", content["text/html"]))
        return Handle()

    monkeypatch.setattr(progressbar, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    list(progress_bar(range(4), "run", clock=Clock(1.0)))
    assert [kind for kind, _ in shown] == ["new"] + ["update"] * 4
    assert 'value="0.250"' in shown[0][1] and "run: 4 done" in shown[-1][1]


def test_parsers_register_their_commands(tmp_path, capsys):
    from labkit.course import ledger, progress

    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for module in (ledger, progress):
        module.add_parser(subparsers)
    for command, word in (("claims", "Claim"), ("progress", "Your progress")):
        args = parser.parse_args([command, "--root", str(FIXTURE.root)])
        assert args.func(args) == 0
        assert word in capsys.readouterr().out
