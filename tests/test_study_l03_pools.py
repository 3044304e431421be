"""Lesson 03's shipped pools: they are what the lesson would draw, and are used for nothing else."""

from types import SimpleNamespace

import pytest
import torch

from labkit.files import write_tensors
from labkit.studies import StudyError, l03, l03_pools

SIZES = SimpleNamespace(**l03.STUDY.sizes)
SMALL = SimpleNamespace(
    **vars(SIZES) | {"pool": 3, "reals": 20, "steps": 2, "tune_steps": 1, "tune_batch": 2, "tune_images": 3}
)


def test_the_shipped_candidates_are_what_the_stream_draws():
    pictures = l03_pools.shipped("model", l03_pools.SEED, SIZES)
    drawn = l03.stream("model", l03_pools.SEED, SIZES)(398, 2)
    assert pictures.shape == (SIZES.pool, 3, 64, 64)
    assert (pictures[398:] - drawn).abs().mean() < 0.01  # half precision, another machine
    assert (pictures[:2] - drawn).abs().mean() > 0.05


def test_the_shipped_pictures_of_the_pretrained_model_are_what_it_draws_and_those_of_the_tuned_differ():
    plain, tuned = (l03_pools.shipped(name, l03_pools.SEED, SIZES) for name in ("pretrained", "w1"))
    drawn = l03_pools.open_stream(l03_pools.SEED, SIZES)(126, 2)
    assert plain.shape == tuned.shape == (SIZES.tune_images, 3, 64, 64)
    assert (plain[126:] - drawn).abs().mean() < 0.01
    assert (tuned - plain).abs().mean() > 0.02


@pytest.mark.parametrize("change", [{"seed": 101}, {"steps": 9}, {"tune_lr": 2e-3}, {"pool": 399}])
def test_nothing_is_shipped_for_another_seed_or_other_sizes(change):
    seed = change.pop("seed", l03_pools.SEED)
    assert l03_pools.shipped("model", seed, SimpleNamespace(**vars(SIZES) | change)) is None


def test_sizes_that_do_not_decide_the_latents_do_not_matter():
    assert l03_pools.shipped("w1", l03_pools.SEED, SimpleNamespace(**vars(SIZES) | {"push": 4})) is not None


def test_a_pool_made_and_shipped_is_the_pool_that_the_lesson_would_make(tmp_path, monkeypatch):
    path = tmp_path / "pools.safetensors"
    monkeypatch.setattr(l03_pools, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(l03_pools, "FILE", path.name)
    ticks, begun = [], []

    def bar():
        begun.append(1)
        return iter(ticks.append(n) or n for n in range(SMALL.tune_steps))

    def pools():
        tuned = [l03_pools.tuned_pool(w, 5, SMALL, bar).pictures for w in (None, 1.0)]
        return [l03_pools.model_pool(5, SMALL).pictures, *tuned]

    live = pools()
    assert (len(begun), ticks) == (1, [0])  # the pretrained model has nothing to train
    write_tensors(path, l03_pools.make(5, SMALL), l03_pools.conditions(5, SMALL))
    from_file = pools()
    assert len(begun) == 1
    for a, b in zip(live, from_file, strict=True):
        assert (a - b).abs().max() < 0.02
        assert (a - b).abs().max() > 0  # half precision: the file was read
    assert len(l03_pools.tuned_pool(33.0, 5, SMALL, bar).pictures) == 3
    assert len(begun) == 2


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "pools.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(StudyError, match="restore the data folder"):
        l03_pools.shipped("model", l03_pools.SEED, SIZES, path)
    assert l03_pools.shipped("model", l03_pools.SEED, SIZES, tmp_path / "missing.safetensors") is None
