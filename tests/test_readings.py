"""Intervals that a lesson's text states, held against its record."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.authoring import readings as module
from labkit.authoring.readings import outgrown, readings, unstated
from labkit.course.manifest import Project
from labkit.studies import NotRecorded, Recorded, Study, estimate, load_study, read_record, studies
from labkit.studies.estimate import gain, on_first_seeds
from labkit.studies.readings import MEANS, READINGS
from labkit.studies.store import Record

# three seeds of one number, a - b = .1, .2, .6: mean .3, standard error .1528, t(2) = 4.303
RECORD = Record("06", {}, {}, {("a", s): {"x": np.float32([v])} for s, v in enumerate((0.1, 0.2, 0.6))})
RECORD.values.update({("b", s): {"x": np.float32([0.0])} for s in range(3)})


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """A project whose lesson 06 has one text and one estimate: .300 [-.357, .957]."""
    project = Project(tmp_path)
    project.sources.mkdir(parents=True)
    (project.lessons / "l06").mkdir(parents=True)
    study = Study("06", lambda *_: {}, ("a", "b"), (0, 1, 2), estimates={"gain": gain("x", "a", "b")})
    monkeypatch.setattr("labkit.studies.read_record", lambda lesson, folder: RECORD)
    monkeypatch.setattr("labkit.studies.load_study", lambda lesson: study)
    monkeypatch.setattr("labkit.studies.readings.READINGS", {})

    def write(text: str, quiz: str = "") -> list[str]:
        (project.sources / "06_x.py").write_text(text, "utf-8")
        (project.lessons / "l06" / "quiz.yaml").write_text(quiz, "utf-8")
        return outgrown("06", project)

    return write


@pytest.mark.parametrize(
    "text",
    [
        "gains $.300$ $[-.357, .957]$ here",
        "gains 0.30 [-0.36, 0.96]",
        "loses $-.300$ $[-.957, .357]$",
        "$30.0$ $[-35.7, 95.7]$ points",
        "負で書くと −.3 [−1.0, .4]",
        "no interval: 7 [1, 2]; a shape [2, 3]; x[0, 1]",
    ],
)
def test_a_number_of_the_record_is_left_alone(lesson, text):
    assert lesson(text) == []


@pytest.mark.parametrize(
    "text", ["$.301$ $[-.357, .957]$", "$.300$ $[-.357, .958]$", "0.3 [0.1, 0.5]", "$3.0$ $[-3.6, 9.6]$"]
)
def test_a_number_that_the_record_does_not_give_is_found_with_its_place_and_the_nearest(lesson, text):
    (line,) = lesson(f"one\ntwo {text}")
    assert line.startswith("06_x.py:2: no estimate of study 06 is ") and "nearest: gain 0.3 [" in line


def test_an_interval_without_its_value_is_found(lesson):
    (line,) = lesson("$.300$ $[-.357, .957]$ and $[-.1, .2]$ and a list [0.1, 0.2], x$[1, 2]$")
    assert line == "06_x.py:1: [-.1, .2] without its value: write the value before it"


def test_catalogues_are_read_too(lesson):
    (line,) = lesson("", "a: 1\nexplain: 0.5 [0.4, 0.6]\n")
    assert line.startswith("quiz.yaml:2:")


def test_every_interval_of_a_line_is_read_as_written():
    text = "a\n$+.091$ $[.068, .114]$; higher, 2 [1.5, 2.25]."
    assert list(readings(text)) == [
        (2, "+.091 [.068, .114]", (0.091, 0.068, 0.114), 3),
        (2, "2 [1.5, 2.25]", (2.0, 1.5, 2.25), 2),
    ]


def test_first_seeds_are_those_below_the_border():
    contrast = on_first_seeds(gain("x", "a", "b"), 2)
    assert contrast(Recorded(RECORD)).ravel() == pytest.approx([0.1, 0.2])
    with pytest.raises(NotRecorded):
        on_first_seeds(gain("x", "a", "b"), 0)(Recorded(RECORD))


@pytest.mark.parametrize("number", studies())
def test_the_texts_of_the_lessons_say_what_is_recorded(number):
    assert outgrown(number) == []


@pytest.mark.parametrize("number", sorted(READINGS))
def test_a_reading_is_stated_somewhere(number):
    """One that no text states any more would let an old number pass."""
    recorded = Recorded(read_record(number))
    written = [
        (numbers, decimals)
        for file in module._texts(number, Project())
        for _, _, numbers, decimals in readings(file.read_text("utf-8"))
    ]
    for name, contrast in READINGS[number].items():
        found = estimate(contrast(recorded))
        assert any(module._says(numbers, decimals, found) for numbers, decimals in written), name
    assert not set(READINGS[number]) & set(load_study(number).estimates)


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A lesson 06 with one text in two languages that states the mean of arm a, .300, and its gain over b."""
    project = Project(tmp_path)
    project.sources.mkdir(parents=True)
    monkeypatch.setattr("labkit.studies.read_record", lambda lesson, folder: RECORD)

    def write(en: str, ja: str, numbers: dict, uid: str = "x") -> list[str]:
        monkeypatch.setattr("labkit.studies.readings.MEANS", {"06": {uid: numbers}})
        cells = "\n\n".join(
            f'# %% [markdown] lang="{lang}" uid="x" pair="00000000"\n# {text}'
            for lang, text in {"en": en, "ja": ja}.items()
        )
        (project.sources / "06_x.py").write_text(cells + "\n", "utf-8")
        return unstated("06", project)

    return write


@pytest.mark.parametrize(
    ("text", "decimals"),
    [("gains .30 here", 2), ("0.3です", 1), ("30% of them", "%"), ("a−0.300", 3), (".31, then .30.", 2)],
)
def test_a_mean_that_both_texts_state_is_left_alone(cell, text, decimals):
    sign = -1 if "−" in text else 1
    assert cell(text, text, {("x", decimals): "a" if sign > 0 else "b-a"}) == []


@pytest.mark.parametrize(
    "text", ["gains .31 here", "gains .3 here", "$.30$ $[.20, .40]$", "no number", "gains 30 of them", "version 1.30.2"]
)
def test_a_mean_that_one_text_does_not_state_is_found_with_its_language(cell, text):
    (line,) = cell("gains .30", text, {("x", 2): "a"})
    assert line == "06_x.py:4: x (ja) does not state x of a, 0.3"


def test_means_are_stated_in_the_order_of_their_arms_where_they_are_one_group(cell):
    text = "from .00 to .30"
    assert cell(text, text, {("x", 2): "b a"}) == cell(text, text, {("x", 2): "a; b"}) == []
    lines = cell(text, text, {("x", 2): "a b"})
    assert len(lines) == 2 and all(line.endswith("does not state x of b, 0 (after those before it)") for line in lines)


def test_a_mean_on_the_seeds_of_another_arm(cell, monkeypatch):
    monkeypatch.setitem(RECORD.values, ("short", 0), {"x": np.float32([9.0])})
    assert cell(".10", ".10", {("x", 2): "a/short"}) == []


def test_means_of_a_text_that_is_gone_and_of_arms_not_recorded(cell):
    (line,) = cell(".30", ".30", {("x", 2): "a"}, uid="y")
    assert "no text y" in line
    assert cell("", "", {("x", 2): "c"}) == []


@pytest.mark.parametrize("number", sorted(MEANS))
def test_the_texts_state_the_recorded_means(number):
    """Arms that are not recorded are passed over, so a name that is none would let any number pass."""
    recorded = Recorded(read_record(number))
    for numbers in MEANS[number].values():
        for (metric, _), arms in numbers.items():
            assert all(np.isfinite(module._mean(recorded, metric, arm)) for arm in arms.replace(";", " ").split())
    assert unstated(number) == []
