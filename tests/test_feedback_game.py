"""The feedback game without a browser: votes reach the loop, rounds can be taken back, the status says where one is."""

from dataclasses import dataclass, replace

import pytest
import torch

from labkit.course.i18n import LANGUAGES, set_language
from labkit.figures.game import DISLIKE, LIKE, NEUTRAL, FeedbackGame


@dataclass(frozen=True)
class Round:
    images: torch.Tensor
    liked: tuple = ()
    disliked: tuple = ()


class Loop:
    """Every round is a little brighter."""

    def __init__(self):
        self.rounds = ()

    def generate(self):
        images = torch.linspace(-1, 0, 3).view(3, 1, 1, 1).expand(3, 3, 8, 8) + 0.2 * len(self.rounds)
        self.rounds += (Round(images),)

    def feedback(self, *, liked, disliked):
        self.rounds = (*self.rounds[:-1], replace(self.rounds[-1], liked=tuple(liked), disliked=tuple(disliked)))

    def undo(self):
        self.rounds = self.rounds[:-1]


def brightness(images):
    return images.mean((1, 2, 3))


def game(**options):
    return FeedbackGame(Loop(), brightness, **({"goal": 0.3} | options))


def test_votes_reach_the_loop_and_the_goal_is_noticed():
    one = game()
    one.vote(0, DISLIKE)
    one.vote(2, LIKE)
    one.next_round()
    assert (one.loop.rounds[0].liked, one.loop.rounds[0].disliked) == ((2,), (0,))
    assert one.votes == [NEUTRAL] * 3
    assert one.best == pytest.approx(0.2)
    assert not one.won
    one.next_round()
    assert one.won


def test_the_round_that_won_is_named_whatever_is_played_afterwards():
    one = game()
    assert one.found is None
    for _ in range(4):  # best of the rounds: 0, 0.2, 0.4, 0.6, 0.8
        one.next_round()
    assert one.found == 3
    assert "round 3, 9 pictures" in one.status
    assert "round 5" in one.status
    one.undo()
    one.undo()
    one.undo()
    assert not one.won


def test_a_budget_of_rounds_is_counted_down_and_what_comes_after_it_is_no_win_in_time():
    one = game(rounds=2)  # the goal is reached in round 3
    assert "Round 1 of 2" in one.status
    one.next_round()
    assert "Round 2 of 2" in one.status
    one.next_round()
    assert "only in round 3" in one.status
    assert "budget of 2" in one.status
    never = game(rounds=1, goal=9)
    never.next_round()
    assert "Round 2, beyond the budget of 1" in never.status
    in_time = game(rounds=3)
    in_time.next_round()
    in_time.next_round()
    assert "Found in round 3, 9 pictures" in in_time.status


def test_the_target_stands_beside_the_round_and_votes_are_frames(monkeypatch):
    seen = {}
    monkeypatch.setattr("labkit.figures.game.image_grid", lambda *a, **k: seen.update(images=a[0], scores=a[2], **k))
    one = game(target=torch.zeros(3, 8, 8))
    one.vote(0, DISLIKE)
    one.vote(2, LIKE)
    one.figure()
    assert len(seen["images"]) == 4
    assert seen["scores"][0] != seen["scores"][0]  # the target has no score
    assert seen["scores"][3] == pytest.approx(0.0)
    assert seen["frames"] == {1: "bad", 3: "good"}


def test_undo_goes_back_to_the_votes_of_the_round_before():
    one = game()
    one.vote(1, LIKE)
    one.next_round()
    assert one.undo()
    assert one.votes == [NEUTRAL, LIKE, NEUTRAL]
    assert not one.undo()


def test_impossible_votes_are_refused():
    for bad in ((3, LIKE), (-1, LIKE), (0, 2)):
        with pytest.raises(ValueError, match="expected an image below 3"):
            game().vote(*bad)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_buttons_do_what_the_methods_do(lang):
    pytest.importorskip("ipywidgets")
    set_language(lang)
    try:
        one = game()
        one.build()
        first = one.pictures[0].value
        one.choices[2].value = LIKE
        one.next_button.click()
        assert one.loop.rounds[0].liked == (2,)
        assert one.choices[2].value == NEUTRAL
        assert one.pictures[0].value != first
        assert "2" in one.line.value
        assert "0.20" in one.scores[2].value
        one.undo_button.click()
        assert one.choices[2].value == LIKE
        assert one.votes == [NEUTRAL, NEUTRAL, LIKE]
        one.undo_button.click()
        assert one.line.value
    finally:
        set_language("en")


def test_the_first_round_is_an_ordinary_figure():
    figure = game().figure()
    assert "goal" in figure.alt or "Round 1" in figure.alt


@pytest.mark.parametrize(("interactive", "shown"), [(True, ["CourseFigure", "VBox"]), (False, ["CourseFigure"])])
def test_the_round_is_shown_and_the_buttons_only_where_the_lesson_is_interactive(monkeypatch, interactive, shown):
    from labkit.course import render

    seen = []
    monkeypatch.setattr("IPython.display.display", seen.append)
    monkeypatch.setattr(render, "_interactive", interactive)
    game()._ipython_display_()
    assert [type(one).__name__ for one in seen] == shown
