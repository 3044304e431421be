"""Widgets: plain functions behind them, a first picture always, controls that redraw, errors told in one line."""

import numpy as np
import pytest

from labkit.course.i18n import get_language, set_language
from labkit.figures import image_grid
from labkit.figures.widgets import choice, explore, picture, slider, steps, text, toggle


def tone(level=0, side=4):
    """A grey image."""
    return np.full((side, side, 3), int(level), dtype=np.uint8)


@pytest.fixture(params=["en", "ja"])
def lang(request):
    before = get_language()
    set_language(request.param)
    yield request.param
    set_language(before)


def displayed(monkeypatch, exploration):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    exploration._ipython_display_()
    return shown


def test_without_interaction_only_the_first_picture_is_drawn(monkeypatch):
    shown = displayed(monkeypatch, explore(tone, {"level": slider("level", 0, 255, 9)}, interactive=False))
    assert [type(one).__name__ for one in shown] == ["Picture"]


def test_a_lesson_in_a_batch_run_needs_no_argument(monkeypatch):
    from labkit.course import render

    controls = {"level": slider("level", 0, 255, 9)}
    monkeypatch.setattr(render, "_interactive", True)
    assert explore(tone, controls).interactive is True
    render.set_interactive(False)
    assert explore(tone, controls).interactive is False


def test_with_interaction_the_first_picture_stands_beside_the_controls(monkeypatch):
    exploration = explore(tone, {"level": slider("level", 0, 255, 9)})
    shown = displayed(monkeypatch, exploration)
    assert shown == [exploration.first, exploration.widget]


def test_without_ipywidgets_the_first_picture_and_a_note_remain(monkeypatch, capsys):
    import sys

    exploration = explore(tone, {"level": slider("level", 0, 255, 9)}, lang="en")
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert displayed(monkeypatch, exploration) == [exploration.first]
    assert "pip install ipywidgets" in capsys.readouterr().out


def test_moving_a_control_draws_the_picture_of_its_value():
    exploration = explore(tone, {"level": slider("level", 0, 255, 9)})
    exploration.build()
    exploration.inputs["level"].value = 200
    assert exploration.current.png == picture(tone(200)).png != exploration.first.png
    assert 'alt="level 200"' in exploration.live.value or "level 200" in exploration.live.value
    exploration.reset()
    assert exploration.current is exploration.first and exploration.inputs["level"].value == 9


def test_every_kind_of_control_passes_its_value_by_name(lang):
    seen = {}

    def keep(**values):
        seen.update(values)
        return tone()

    controls = {
        "count": slider("n", 1, 9, 4),
        "scale": slider("s", 0, 1, 0.5, 0.25),
        "mood": choice("m", {"笑顔": "happy", "悲しみ": "sad"}, "sad"),
        "beta": steps("β", [0.01, 0.1, 1]),
        "glasses": toggle("g", True),
        "prompt": text("p", "a person"),
    }
    exploration = explore(keep, controls)
    assert seen == {"count": 4, "scale": 0.5, "mood": "sad", "beta": 0.01, "glasses": True, "prompt": "a person"}
    exploration.build()
    moves = {"count": 5, "scale": 0.75, "mood": "happy", "beta": 1, "glasses": False, "prompt": "b"}
    for name, value in moves.items():
        exploration.inputs[name].value = value
        assert seen[name] == value and type(seen[name]) is type(value)
    yes_no = {"en": "g no", "ja": "g なし"}[lang]
    for words in ("n 5", "s 0.75", "m 笑顔", "β 1", yes_no):
        assert words in exploration.current.alt


def test_a_button_draws_only_when_pressed():
    calls = []
    exploration = explore(
        lambda level: calls.append(level) or tone(level), {"level": slider("level", 0, 255, 9)}, button="Go"
    )
    exploration.build()
    exploration.inputs["level"].value = 10
    exploration.inputs["level"].value = 11
    assert calls == [9] and "Go" in exploration.status.value
    exploration.draw_button.click()
    assert calls == [9, 11]


def test_going_back_to_a_value_does_not_compute_again():
    calls = []
    exploration = explore(lambda level: calls.append(level) or tone(level), {"level": slider("level", 0, 255, 9)})
    exploration.build()
    for level in (10, 9, 10, 9):
        exploration.inputs["level"].value = level
    assert calls == [9, 10]


def test_an_error_in_the_function_is_told_and_the_last_picture_stays(lang):
    def fragile(level):
        if level == 13:
            raise ValueError("no <thirteen>")
        return tone(level)

    exploration = explore(fragile, {"level": slider("level", 0, 255, 9)})
    exploration.build()
    exploration.inputs["level"].value = 12
    before = exploration.live.value
    exploration.inputs["level"].value = 13
    assert exploration.live.value == before
    assert "ValueError: no &lt;thirteen&gt;" in exploration.status.value
    exploration.inputs["level"].value = 14
    assert exploration.live.value != before and "ValueError" not in exploration.status.value


def test_slow_functions_redraw_on_release_only():
    controls = {"level": slider("level", 0, 255, 9), "beta": steps("b", [1, 2])}
    for slow in (True, False):
        exploration = explore(lambda level, beta: tone(level), controls, slow=slow)
        exploration.build()
        assert [one.continuous_update for one in exploration.inputs.values()] == [not slow] * 2


def test_speed_is_judged_by_the_first_picture(monkeypatch):
    clock = iter([0.0, 5.0])
    monkeypatch.setattr("labkit.figures.widgets.time.perf_counter", lambda: next(clock))
    assert explore(tone, {"level": slider("level", 0, 255, 9)}).slow is True


def test_the_description_is_escaped_and_follows_the_values(lang):
    controls = {"level": slider("level", 0, 255, 9)}
    exploration = explore(tone, controls, alt=lambda level: f'"{level}" <b>')
    assert exploration.first.alt.endswith('"9" <b>')
    assert "&quot;9&quot; &lt;b&gt;" in exploration.first.html()


def test_figures_keep_their_own_description_and_screen_size():
    figure = image_grid([tone(3)], alt="a dark square")
    shown = picture(figure)
    assert shown.alt == "a dark square"
    assert shown.width == round(figure.get_size_inches()[0] * 96)
    assert picture([tone(1), tone(2)]).alt.startswith(("grid of 2", "画像2枚"))


def test_a_pyplot_figure_is_closed_so_that_it_is_not_shown_twice():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    picture(plt.subplots()[0])
    assert plt.get_fignums() == before


@pytest.mark.parametrize("result", [None, "text", 3])
def test_a_function_that_returns_no_picture_is_refused(result):
    with pytest.raises(TypeError, match="expected a figure"):
        explore(lambda level: result, {"level": slider("level", 0, 255, 9)})


def test_controls_that_do_not_fit_the_function_are_refused():
    with pytest.raises(TypeError, match="do not fit tone"):
        explore(tone, {"lvel": slider("level", 0, 255, 9)})
    with pytest.raises(TypeError, match="expected slider"):
        explore(tone, {"level": 3})


def test_impossible_controls_are_refused():
    with pytest.raises(ValueError, match="expected 0 <= value <= 10"):
        slider("s", 0, 10, 11)
    with pytest.raises(ValueError, match="starts at 'c'"):
        choice("s", ["a", "b"], "c")
    with pytest.raises(ValueError, match="no options"):
        choice("s", [])
