"""Study of lesson 04: what is drawn for an arm, and what is counted in it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.diffusion import image_generators, sample
from labkit.portraits import render_tensor, sample_specs
from labkit.portraits.parse import parse_caption
from labkit.studies import l04, l04_controls, l04_words

SIZES = SimpleNamespace(targets=2, copies=2, steps=2, guidance=3.0, weight=0.8, rounds=2, images=3)


def test_fewer_targets_are_the_first_of_more_and_nobody_is_liked_and_disliked():
    few, many = l04.people(2, 7), l04.people(5, 7)
    assert few.liked == many.liked[:2]
    assert torch.equal(few.disliked_pictures, many.disliked_pictures[:2])
    assert not set(many.liked) & set(many.disliked)
    assert l04.people(2, 8).liked != few.liked


def test_palette_and_form_are_all_nine_attributes_once():
    assert sorted((*l04.PALETTE, *l04.FORM)) == sorted(l04.ATTRIBUTES)


def test_the_liked_portrait_itself_has_everything_and_the_disliked_what_they_share():
    crowd = l04.people(2, 7)
    found = l04.measures([p[None].repeat(2, 1, 1, 1) for p in crowd.liked_pictures], 7, SIZES)
    assert found["palette"].min() > 0.95
    assert found["form"].min() > 0.9
    assert found["target"] == pytest.approx([1, 1], abs=1e-5)
    assert found["diversity"] == pytest.approx([0, 0], abs=1e-5)
    assert (found["unwanted"] < 0.95).all()
    other = l04.measures([p[None] for p in crowd.disliked_pictures], 7, SIZES)
    for name in l04.ATTRIBUTES:
        for i in range(2):
            shared = getattr(crowd.liked[i], name) == getattr(crowd.disliked[i], name)
            assert (other[f"has.{name}"][i] > 0.5) == shared, (name, i)
            assert other[f"shuns.{name}"][i] > 0.5


def test_all_settings_start_from_the_same_noise_and_a_weight_of_zero_is_no_feedback():
    plain = l04.draw(1, 7, SIZES, liked=False, disliked=False)
    assert plain.shape == (2, 3, 64, 64)
    assert torch.equal(l04.draw(1, 7, SIZES, max_weight=0.0), plain)
    assert (l04.draw(1, 7, SIZES, disliked=False) - plain).abs().max() > 0.01
    assert (l04.draw(0, 7, SIZES, liked=False, disliked=False) - plain).abs().max() > 0.01


def test_the_best_so_far_stays_when_later_rounds_are_worse():
    crowd = l04.people(2, 7)
    strangers = render_tensor(sample_specs(4, seed=1))
    hit = torch.stack([strangers[0], crowd.liked_pictures[0]])
    rounds = [strangers[:2], hit, strangers[2:]]
    game = SimpleNamespace(rounds=[SimpleNamespace(images=images) for images in rounds])
    found = {name: values[0] for name, values in l04.scores_of_rounds({0: game}, 7, SIZES).items()}
    assert found["best.2"] == pytest.approx(1, abs=1e-5)
    assert found["so_far.1"] < found["so_far.2"] == found["so_far.3"]
    assert found["best.3"] < 0.95
    assert found["chosen.2"] == found["chosen.3"] > 0.9
    assert found["mean.1"] == pytest.approx(float(l04.similarity(strangers[:2], crowd.liked_pictures[:1]).mean()))
    assert found["worst.1"] <= found["mean.1"] <= found["best.1"]


def test_restarts_say_nothing_and_feedback_begins_where_restarts_begin():
    restarts, feedback = (l04.play(arm, 0, 7, SIZES) for arm in ("restarts", "feedback"))
    assert not restarts.references
    assert torch.equal(restarts.rounds[0].images, feedback.rounds[0].images)
    near = l04.nearness(0, 7, SIZES)(feedback.rounds[0].images)
    assert feedback.rounds[0].liked == (int(np.argmax(near)),)
    assert feedback.rounds[0].disliked == (int(np.argmin(near)),)
    assert (restarts.rounds[1].images - feedback.rounds[1].images).abs().max() > 0.01


def test_the_worst_of_a_batch_is_the_farthest_from_the_target_and_of_noise_of_its_own():
    found = l04_controls.worst(1, 7, SIZES)
    generators = image_generators(3, 50_007, first=3)
    batch = sample(l04.models().pipe, l04.PROMPT, generators=generators, steps=2, guidance_scale=3.0).cpu().clamp(-1, 1)
    near = l04.nearness(1, 7, SIZES)(batch)
    assert torch.equal(found[0], batch[int(np.argmin(near))])
    assert len(set(near.tolist())) == 3


def test_the_control_of_the_dislike_differs_from_the_like_alone_by_the_dislike_only():
    plain = l04.draw(1, 7, SIZES, disliked=False)
    with_worst = l04_controls.against_worst(1, 7, SIZES, with_like=True)
    assert 0.01 < (with_worst - plain).abs().max()
    silent = SimpleNamespace(**{**vars(SIZES), "weight": 0.0})
    nothing = l04_controls.against_worst(1, 7, silent, with_like=True)
    assert torch.equal(nothing, l04.draw(1, 7, SIZES, liked=False, disliked=False))


def test_the_windows_of_the_second_round_have_twenty_steps(monkeypatch):
    asked = []
    monkeypatch.setattr(l04, "unit", lambda arm, seed, sizes: asked.append((arm, seed, sizes.steps, sizes.targets)))
    l04_controls.unit("first_steps20", 3, SIZES)
    assert asked == [("first", 3, 20, 2)]


def test_a_prompt_that_contradicts_its_target_names_two_values_of_it_and_two_of_the_other_person():
    right = wrong = 0
    for seed in range(4):
        for target in range(2):
            crowd = l04.people(2, seed)
            named = parse_caption(l04_words.prompt(target, seed, SIZES))
            of_target = {name for name, value in named.items() if getattr(crowd.liked[target], name) == value}
            assert len(named) == 4
            assert len(of_target) == 2
            rest = {name: value for name, value in named.items() if name not in of_target}
            assert all(getattr(crowd.disliked[target], name) == value for name, value in rest.items())
            right, wrong = right + len(of_target), wrong + len(rest)
    assert (right, wrong) == (16, 16)
    assert l04_words.prompt(0, 0, SIZES) != l04_words.prompt(0, 1, SIZES)


def test_dropout_is_the_only_setting_in_which_the_arms_of_the_third_round_differ(monkeypatch):
    full, less = (l04_words.play(1, 7, SIZES, dropout=share) for share in (0.0, 0.3))
    text = l04_words.prompt(1, 7, SIZES)
    assert set(full.rounds[0].prompts) == {text}
    assert all(set(words.split()) <= set(text.split()) for r in less.rounds for words in r.prompts)
    assert any(words != text for r in less.rounds for words in r.prompts)
    settings = [{k: v for k, v in game._configuration().items() if k != "dropout"} for game in (full, less)]
    assert settings[0] == settings[1]
    shares = []
    monkeypatch.setattr(l04_words, "play", lambda *_, dropout: shares.append(dropout))
    monkeypatch.setattr(l04, "scores_of_rounds", lambda games, *_: {"n": np.array([len(games)])})
    for arm in ("rounds_named", "rounds_named_dropout"):
        assert l04_words.unit(arm, 7, SIZES)["n"] == 2
    assert shares == [0.0, 0.0, 0.3, 0.3]
