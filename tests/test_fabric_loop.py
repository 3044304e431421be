"""Rounds of feedback: a state machine whose history can be undone, stored and resumed."""

import json

import pytest
import torch
from tiny_models import tiny_pipeline

from labkit.fabric import FabricError, FeedbackLoop, Reference
from labkit.fabric.loop import drop_words
from labkit.fabric.references import ReferenceSet


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def loop(pipe, **options):
    return FeedbackLoop(pipe, "a red house", **({"images": 3, "steps": 2, "guidance_scale": 3.0, "seed": 1} | options))


def brightness(images):
    return images.mean((1, 2, 3))


def test_the_first_round_is_plain_sampling(pipe):
    from labkit.diffusion import from_uint8, image_generators, sample, to_uint8

    plain = sample(pipe, "a red house", generators=image_generators(3, 1), steps=2, guidance_scale=3.0)
    assert torch.equal(loop(pipe).generate(), from_uint8(to_uint8(plain)))


def test_a_round_is_the_sampling_with_feedback_that_one_would_write_by_hand(pipe):
    from labkit.diffusion import from_uint8, image_generators, sample, to_uint8
    from labkit.fabric import fabric

    one = loop(pipe, end=1.0, negative_prompt="a blue house")
    first = one.generate()
    one.feedback(liked=[2, 0], disliked=[1])
    options = {"steps": 2, "guidance_scale": 3.0, "negative_prompts": "a blue house"}
    generators = image_generators(3, 1, first=3)  # images 3, 4 and 5 of seed 1
    with fabric(pipe, liked=[first[2], first[0]], disliked=[first[1]], end=1.0, seed=2):  # fresh noise in each round
        expected = sample(pipe, "a red house", generators=generators, **options)
    assert torch.equal(one.generate(), from_uint8(to_uint8(expected)))


def test_a_picture_without_dark_places_is_a_reference_like_any_other(pipe, monkeypatch):
    """Its values lie in [0, 1], but it is a picture in [-1, 1] all the same: nothing is guessed, nothing refused."""
    bright = torch.full((3, 3, 64, 64), 0.5)
    monkeypatch.setattr(FeedbackLoop, "_images", lambda self, prompts, generators: bright)
    one = loop(pipe)
    made = one.generate()
    references = one.feedback(liked=[0], disliked=[2])
    assert torch.equal(references.liked[0].image, made[0]) and torch.equal(references.disliked[0].image, made[2])


def test_feedback_appends_and_undo_takes_back_one_step(pipe):
    one = loop(pipe)
    first = one.generate()
    one.feedback(liked=[0], disliked=[2])
    assert torch.equal(one.references.liked[0].image, first[0])
    assert torch.equal(one.references.disliked[0].image, first[2])
    second = one.generate()
    one.feedback(liked=[1])
    assert (len(one.references.liked), len(one.references.disliked)) == (2, 1)
    one.undo()
    assert (len(one.rounds), len(one.references.liked)) == (2, 1)
    one.undo()
    assert (len(one.rounds), len(one.references.liked)) == (1, 1)
    assert torch.equal(one.generate(), second)
    one.undo()
    one.undo()
    one.undo()
    assert (one.rounds, len(one.references)) == ((), 0)
    with pytest.raises(FabricError, match="nothing to undo"):
        one.undo()


def test_what_the_caller_passed_is_never_changed(pipe):
    mine = ReferenceSet().added(liked=[torch.zeros(3, 64, 64)], value_range=(-1, 1))
    one = loop(pipe, initial=mine)
    one.generate()
    one.feedback(liked=[0])
    assert (len(mine), len(one.references)) == (1, 2)


def test_reset_restores_the_initial_references(pipe, tmp_path):
    mine = ReferenceSet().added(liked=[torch.zeros(3, 64, 64)], value_range=(-1, 1))
    one = loop(pipe, initial=mine, folder=tmp_path)
    first = one.generate()
    one.feedback(liked=[0], disliked=[1])
    one.reset()
    assert (one.rounds, len(one.references)) == ((), 1)
    assert loop(pipe, initial=mine, folder=tmp_path).rounds == ()
    assert torch.equal(one.generate(), first)


def test_only_the_latest_references_are_kept():
    images = [torch.full((3, 8, 8), v) for v in (0.1, 0.2, 0.3)]
    kept = ReferenceSet().added(liked=images, disliked=images[:1], most=2, value_range=(-1, 1))
    assert [float(r.image[0, 0, 0]) for r in kept.liked] == pytest.approx([0.2, 0.3])
    assert len(kept.disliked) == 1
    assert len(kept.added(most=0)) == 0


def test_an_oracle_likes_the_best_and_dislikes_the_worst(pipe):
    one = loop(pipe)
    summaries = one.run(brightness, rounds=2)
    scores = brightness(one.rounds[0].images)
    assert one.rounds[0].liked == (int(scores.argmax()),)
    assert one.rounds[0].disliked == (int(scores.argmin()),)
    assert summaries[0].best >= summaries[0].mean >= summaries[0].worst
    assert summaries[0].mean == pytest.approx(float(scores.mean()), abs=1e-6)
    assert len(one.run(brightness, rounds=2)) == 2


def test_a_loop_read_from_disk_goes_on_bit_for_bit(pipe, tmp_path):
    whole = loop(pipe, folder=tmp_path / "a")
    whole.run(brightness, rounds=3)
    part = loop(pipe, folder=tmp_path / "b")
    part.run(brightness, rounds=1)
    part.generate()  # killed before the feedback
    again = loop(pipe, folder=tmp_path / "b")
    assert len(again.rounds) == 2
    scores = brightness(again.rounds[1].images)
    again.feedback(liked=[int(scores.argmax())], disliked=[int(scores.argmin())])
    again.run(brightness, rounds=3)
    for a, b in zip(whole.rounds, again.rounds, strict=True):
        assert torch.equal(a.images, b.images)
        assert (a.liked, a.disliked) == (b.liked, b.disliked)


def test_a_history_of_another_loop_or_a_damaged_one_is_refused(pipe, tmp_path):
    loop(pipe, folder=tmp_path).generate()
    with pytest.raises(FabricError, match="other seed"):
        loop(pipe, folder=tmp_path, seed=2)
    (tmp_path / "round-000-image-1.png").write_bytes(b"")
    with pytest.raises(FabricError, match="cannot be read"):
        loop(pipe, folder=tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"rounds": []}))
    with pytest.raises(FabricError, match="cannot be read"):
        loop(pipe, folder=tmp_path)


def test_fixed_noise_reuses_the_reference_pass_across_rounds_and_fresh_noise_does_not(pipe):
    from labkit.diffusion import NFELedger

    rows = {}
    for noise in ("fixed", "fresh"):
        one = loop(pipe, noise=noise, steps=4, end=1.0)
        one.generate()
        one.feedback(liked=[0])
        one.generate()
        with NFELedger(pipe) as ledger:
            one.generate()
        rows[noise] = ledger.counts.unet_rows - 4 * 2 * 3
    assert rows == {"fixed": 0, "fresh": 4}


def test_bad_feedback_is_refused(pipe):
    one = loop(pipe)
    with pytest.raises(FabricError, match="generate"):
        one.feedback(liked=[0])
    one.generate()
    for bad in ({"liked": [3]}, {"liked": [-1]}, {"liked": [1], "disliked": [1]}):
        with pytest.raises(FabricError, match="image numbers are 0 .. 2"):
            one.feedback(**bad)
    with pytest.raises(FabricError, match="fresh"):
        loop(pipe, noise="none")


def test_dropped_words_are_a_subset_in_order_and_never_all():
    g = torch.Generator().manual_seed(0)
    prompt = "a portrait of a woman with red hair"
    assert drop_words(prompt, 0.0, g) == prompt
    counts = [len(drop_words(prompt, 0.5, g).split()) for _ in range(400)]
    assert sum(counts) / 400 == pytest.approx(4.0, abs=0.25)
    assert min(len(drop_words("one two", 0.99, g).split()) for _ in range(50)) == 1
    words = iter(prompt.split())
    assert all(word in words for word in drop_words(prompt, 0.5, g).split())


def test_equal_images_have_equal_keys_and_other_images_others():
    image = -torch.ones(3, 8, 8)
    assert Reference(image).key == Reference(image.clone()).key
    assert Reference(image).key != Reference(image + 1e-3).key
    assert Reference(image).key != Reference(-torch.ones(3, 8, 16)).key
