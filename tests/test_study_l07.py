"""Study of lesson 07: the bank of frames, new words, units at tiny sizes, the record."""

import numpy as np
import pytest
import torch

from labkit.models import load_clip
from labkit.pairwise import Statement, TextTower, portrait_wording
from labkit.pairwise.frames import FRAMES, NEW_GRAMMAR, NEW_MARKERS, TRAINED, comparative, frame_words, phrase
from labkit.pairwise.vocabulary import with_words
from labkit.studies import load_study, read_record
from labkit.studies.l07 import disjoint_pairs
from labkit.studies.store import status

WORDING = portrait_wording()
RED = Statement({"hair_color": "red"}, {"hair_color": "black"})
TINY = {
    "portraits": 24, "tests": 24, "asked": 6, "pairs": 40, "steps": 2, "short_steps": 2, "batch": 4, "rehearsed": 2,
    "edits": 2, "draw_steps": 1, "products": 16, "checked": 20,
}  # fmt: skip


def test_frames_say_whose_value_is_whose():
    assert phrase(RED, WORDING, "not") == "the first has red hair, not black hair"
    assert phrase(RED, WORDING, "only", order="second-first") == "only the second has black hair"
    assert phrase(RED.mirrored(), WORDING, "sides") == "left: black hair; right: red hair"
    assert set(TRAINED) | set(NEW_GRAMMAR) | set(NEW_MARKERS) == set(FRAMES)
    assert not set(TRAINED) & (set(NEW_GRAMMAR) | set(NEW_MARKERS))
    with pytest.raises(ValueError, match="unknown frame 'sung'"):
        phrase(RED, WORDING, "sung")


def test_degrees_turn_around_with_the_images_and_with_the_order():
    said = Statement({"skin": "dark"}, {"skin": "tan"})
    assert comparative(said) == "the first has darker skin than the second"
    assert comparative(said.mirrored()) == "the first has lighter skin than the second"
    assert comparative(said, order="second-first") == "the second has lighter skin than the first"
    with pytest.raises(ValueError, match="cannot be compared by degree"):
        comparative(RED)


def test_new_words_are_one_token_each_and_change_no_other_text():
    clip, inputs = load_clip("cpu")
    grown, known = with_words(clip, inputs, frame_words())
    said = phrase(RED, WORDING, "plain")
    assert len(TextTower(grown, known).tokens([said])[0]) == 13 < len(TextTower(clip, inputs).tokens([said])[0])
    caption = ["a happy person with red hair"]
    assert torch.equal(TextTower(grown, known)(caption), TextTower(clip, inputs)(caption))
    assert len(inputs.tokenizer) == clip.config.text_config.vocab_size == 345  # the original stays as it was


def test_no_portrait_is_in_two_pairs_and_held_out_comparisons_are_kept_apart():
    values = [{"hair_color": c, "mood": m} for c, m in [("red", "sad"), ("black", "calm")] * 3]
    wording = {a: WORDING[a] for a in ("hair_color", "mood")}
    held_out = {("hair_color", frozenset(("red", "black")))}
    pairs = disjoint_pairs(values, 9, wording, held_out=held_out)
    assert [(p.first, p.second) for p in pairs] == [(0, 1), (2, 3), (4, 5)]
    assert {p.statement.attributes for p in pairs} == {("mood",)}
    unseen = disjoint_pairs(values, 2, wording, held_out=held_out, only=True)
    assert [p.statement.attributes for p in unseen] == [("hair_color",)] * 2


@pytest.mark.parametrize("arm", ["base", "fixed", "captions", "pin", "desk"])
def test_a_unit_gives_shares_and_gives_them_twice(arm):
    study = load_study("07")
    found, again = study.run(arm, 0, **TINY), study.run(arm, 0, **TINY)
    assert all(np.array_equal(found[k], again[k]) for k in found)
    assert all(((0 <= v) & (v <= 1)).all() for v in found.values())
    if arm != "base" and "m1.plain" in found:
        orders = (found["plain.first-second"] + found["plain.second-first"]) / 2
        assert np.allclose(found["m1.plain"], orders)


def test_a_direction_of_strength_nothing_draws_the_caption():
    found = load_study("07").run("edits", 0, **{**TINY, "strength": 0.0})
    assert np.array_equal(found["glasses.none"], found["glasses.sentence"])
    assert np.array_equal(found["mood.none"], found["mood.random"])


def test_the_record_is_there_and_not_stale():
    found = status(load_study("07"), read_record("07"))
    assert found["recorded"] >= 20 and not found["stale"] and not found["damaged"]
