"""The shipped world of lesson 06: what is saved comes back, and pairs, pictures and measures are the study's own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.studies import NotRecorded, Recorded, StudyError, l06, l06_world, means
from labkit.studies.store import Record

TINY = SimpleNamespace(
    **{**l06.STUDY.sizes, "prompts": 4, "candidates": 3, "steps": 2, "references": 6, "train_steps": 5, "batch": 2}
)


@pytest.fixture(scope="module")
def world():
    return l06_world.make(TINY, seed=3)


def test_the_world_comes_back_from_its_file(world, tmp_path):
    l06_world.save(world, tmp_path / "w.safetensors")
    back = l06_world.load(tmp_path / "w.safetensors")
    assert back.prompts == world.prompts and back.pool.record["hashes"] == world.pool.record["hashes"]
    assert torch.equal(back.pool.latents, world.pool.latents.half().float())  # half precision, in the same order
    for name in ("judge", "warm"):
        assert torch.equal(back.pool.scores[name], world.pool.scores[name])
    assert list(back.recons) == sorted(l06.LEVELS) and list(back.recon_scores) == sorted(l06.LEVELS)
    assert torch.equal(back.recon_scores[500], world.recon_scores[500])


def test_a_damaged_file_is_one_line_with_the_cure(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not a world")
    with pytest.raises(StudyError, match="restore the data folder"):
        l06_world.load(tmp_path / "w.safetensors")


def test_pairs_are_those_of_the_recorded_study(world):
    study = l06.world(3, 4, 3, 2, TINY.grain, TINY.bias)
    mine = world.pairs()
    assert study.prompts == world.prompts and torch.equal(study.real, world.real)
    for stage in ("easy", "normal", "hard", "leap"):
        ours, theirs = getattr(mine, stage).training(), getattr(study, stage).training()
        assert torch.equal(ours.winner, theirs.winner) and torch.equal(ours.loser, theirs.loser)


def test_the_first_prompts_are_a_world_of_their_own(world):
    two = world.first(2)
    assert two.prompts == world.prompts[:2] and two.pool.n == 3
    assert torch.equal(two.recon_scores[700], world.recon_scores[700][:2])
    assert len(two.pairs().leap) == 2


def test_merged_pictures_are_those_of_the_study_and_leave_the_base_alone(world):
    unet, prompts = l06.models().pipe.unet, world.prompts
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    plan = [("easy", world.pairs().easy.training(), [l06.dpo(TINY.kappa)], 2)]
    states = l06.align(plan, 3, TINY)
    states["easy"] = {k: v + 0.05 if ".lora_B." in k else v for k, v in states["easy"].items()}  # visible
    plain = l06.pictures(prompts, 3, TINY)
    side, merged = l06.pictures(prompts, 3, TINY, states), l06_world.pictures(prompts, 3, 2, states)
    assert (side - plain).abs().mean() > 0.01
    assert (side - merged).abs().mean() < 0.1 * (side - plain).abs().mean()
    assert all(torch.equal(before[name], p) for name, p in unet.named_parameters())


def test_measures_are_the_studys(world):
    pictures = l06_world.decode_latents(l06.models().pipe, world.real).clamp(-1, 1).detach()
    mine = world.measures(pictures, world.prompts)
    theirs = l06.measures(pictures, world.prompts, 3, TINY)
    for metric, values in mine.items():
        assert np.allclose(values, theirs[metric], atol=1e-5), metric


def test_means_leave_out_what_is_not_recorded():
    values = {("a", 0): {"gold": np.array([0.2, 0.4, 0.9])}, ("b", 0): {"gold": np.array([0.1, 0.1, 0.1])}}
    recorded = Recorded(Record("06", values=values))
    found = means(recorded, "gold", {"A": "a", "B": "b", "C": "c"}, prompts=2)
    assert list(found) == ["A", "B"] and found["A"].value == pytest.approx(0.3)
    assert means(recorded, "gold", {"A": "a"}, against="b")["A"].value == pytest.approx(0.4)
    assert means(recorded, "gold", {"A": "a"}, against="c") == {}
    with pytest.raises(NotRecorded):
        recorded.values("gold", "c")
