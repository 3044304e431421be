"""What lessons ship instead of computing it: it is what they would compute, and is used under no other conditions."""

from types import SimpleNamespace

import pytest
import torch

from labkit.course.manifest import load_lesson
from labkit.models import ModelLoadError, checksums
from labkit.models.checksums import read_checksums
from labkit.studies import StudyError, l03, l03_shipped, l05, l05_shipped, l06_shipped, shipped

THREE = SimpleNamespace(**l03.STUDY.sizes)
FIVE, SIX = SimpleNamespace(**l05_shipped.LIVE), SimpleNamespace(**l06_shipped.LIVE)
SMALL_THREE = SimpleNamespace(
    **vars(THREE) | {"pool": 3, "reals": 20, "steps": 2, "tune_steps": 2, "tune_batch": 2, "tune_images": 3}
)
SMALL_FIVE = SimpleNamespace(
    **vars(FIVE)
    | {"prompts": 3, "candidates": 2, "test_prompts": 2, "steps": 2, "train_steps": 1, "batch": 2, "draws": 1}
)
SMALL_SIX = SimpleNamespace(**vars(SIX) | {"prompts": 6, "train_steps": 2, "batch": 2, "draws": 1})


@pytest.fixture
def another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(shipped, "write_checksums", lambda folders: folders)
    monkeypatch.setattr(shipped, "read_checksums", dict)


@pytest.mark.parametrize(("shelf", "sizes"), [(l03_shipped, THREE), (l05_shipped, FIVE), (l06_shipped, SIX)])
def test_what_is_shipped_fits_the_live_run_of_tier_cpu(shelf, sizes):
    live = SimpleNamespace(**load_lesson(shelf.SHELF.study.lesson).sizes_for("cpu"))
    assert shelf.SHELF.read(shipped.SEED, live) is not None
    assert shelf.SHELF.conditions(1, live) == shelf.SHELF.conditions(1, sizes)
    for change in ({"seed": 101}, {shelf.SHELF.decide[0]: 1}, {shelf.SHELF.decide[-1]: 1}):
        seed = change.pop("seed", shipped.SEED)
        assert shelf.SHELF.read(seed, SimpleNamespace(**vars(sizes) | change)) is None


def test_lesson_03_ships_what_its_streams_draw():
    candidates, plain, tuned = (l03_shipped.pictures(n, shipped.SEED, THREE) for n in ("model", "pretrained", "w1"))
    drawn = l03.stream("model", shipped.SEED, THREE)(398, 2)
    assert candidates.shape == (THREE.pool, 3, 64, 64)
    assert (candidates[398:] - drawn).abs().mean() < 0.01  # half precision, another machine
    assert (candidates[:2] - drawn).abs().mean() > 0.05
    drawn = l03_shipped.open_stream(shipped.SEED, THREE)(126, 2)
    assert plain.shape == tuned.shape == (THREE.tune_images, 3, 64, 64)
    assert (plain[126:] - drawn).abs().mean() < 0.01
    assert (tuned - plain).abs().mean() > 0.02


def test_lesson_05_ships_the_candidates_that_it_would_draw():
    found = l05_shipped.SHELF.read(shipped.SEED, FIVE)
    first = SimpleNamespace(**vars(FIVE) | {"prompts": 1})
    drawn = l05_shipped.pool(shipped.SEED, first, lambda: range(1))
    assert found["pool"].shape[:2] == (40, 6)
    assert found["npo"].shape == found["npo_words"].shape == (48, *found["pool"].shape[2:])
    assert (found["pool"][0] - drawn.latents[0]).abs().mean() < 0.02
    assert (found["pool"][1] - drawn.latents[0]).abs().mean() > 0.2
    assert l05_shipped.prompts_of(shipped.SEED, FIVE)[:1] == list(drawn.prompts)


def bars():
    """A bar factory, and the ticks that it has seen, one list for each bar."""
    seen = []

    def bar(n):
        def items():
            seen.append([])
            for item in range(n):
                yield item
                seen[-1].append(item)

        return items

    return bar, seen


def test_lesson_03_with_its_shelf_has_the_pools_that_it_has_without(another_folder):
    bar, seen = bars()

    def pools():
        tuned = [l03_shipped.tuned_pool(w, 5, SMALL_THREE, bar(2)).pictures for w in (None, 1.0)]
        return [l03_shipped.model_pool(5, SMALL_THREE).pictures, *tuned]

    live = pools()
    assert seen == [[0, 1]]  # the pretrained model has nothing to train
    l03_shipped.SHELF.write(l03_shipped.make(5, SMALL_THREE), 5, SMALL_THREE)
    for a, b in zip(live, pools(), strict=True):
        assert 0 < (a - b).abs().max() < 0.02  # in half precision: the file was read
    assert len(seen) == 1
    assert len(l03_shipped.tuned_pool(33.0, 5, SMALL_THREE, bar(2)).pictures) == 3
    assert seen == [[0, 1], [0, 1]]


def test_lesson_05_with_its_shelf_has_the_pictures_that_it_has_without(another_folder):
    bar, seen = bars()
    asked = []

    def worse():
        asked.append(1)
        return l05.align(l05.portrait_pairs(5, 3, 2, 2), [l05.npo(SMALL_FIVE.kappa)], 5, SMALL_FIVE)

    def all_of_it():
        pool = l05_shipped.pool(5, SMALL_FIVE, bar(1))
        return {"pool": pool.latents, "scores": pool.scores[l05.models().judge.name]} | l05_shipped.guided_away(
            5, SMALL_FIVE, worse
        )

    live = all_of_it()
    assert (seen, asked) == ([[0]], [1])
    assert (live["npo"] - live["npo_words"]).abs().max() > 0.01
    l05_shipped.SHELF.write(l05_shipped.make(5, SMALL_FIVE), 5, SMALL_FIVE)
    again = all_of_it()
    assert (seen, asked) == ([[0]], [1])
    assert live["pool"].shape[:2] == (3, 2)
    for name, value in live.items():
        assert 0 < (again[name] - value).abs().max() < 0.03, name


def test_lesson_06_with_its_shelf_has_the_adapter_that_it_would_train(another_folder):
    asked = []

    def train():
        asked.append(1)
        return l06_shipped.make(5, SMALL_SIX)

    live = l06_shipped.easy_stage(5, SMALL_SIX, train)["easy"]
    l06_shipped.SHELF.write(live, 5, SMALL_SIX)
    again = l06_shipped.easy_stage(5, SMALL_SIX, train)["easy"]
    assert asked == [1]
    assert again.keys() == live.keys()
    assert all(torch.allclose(again[name], live[name], atol=1e-3) for name in live)
    assert l06_shipped.easy_steps(SIX) == 60


def test_a_damaged_file_is_named_and_a_missing_one_is_nothing(another_folder, tmp_path):
    assert l03_shipped.SHELF.read(shipped.SEED, THREE) is None
    path = tmp_path / shipped.FOLDER / l03_shipped.SHELF.file
    path.parent.mkdir()
    path.write_bytes(b"nothing")
    with pytest.raises(StudyError, match="pools-03.*restore the data folder"):
        l03_shipped.pictures("model", shipped.SEED, THREE)


def test_a_file_that_is_not_the_listed_one_is_refused_whatever_it_holds(another_folder, tmp_path, monkeypatch):
    l06_shipped.SHELF.write({"a": torch.ones(3)}, shipped.SEED, SIX)
    path = tmp_path / shipped.FOLDER / l06_shipped.SHELF.file
    listed = {f"{shipped.FOLDER}/{path.name}": shipped.sha256(path)}
    monkeypatch.setattr(shipped, "read_checksums", lambda: listed)
    assert l06_shipped.SHELF.read(shipped.SEED, SIX)["a"].tolist() == [1, 1, 1]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a bit of a number: the file can be read
    with pytest.raises(StudyError, match="easy-06.*checksums.json"):
        l06_shipped.SHELF.read(shipped.SEED, SIX)


def test_another_world_or_other_prompts_are_other_conditions(tmp_path, monkeypatch):
    for module, sizes, name in ((l03_shipped.l03, THREE, "captions"), (l05_shipped, FIVE, "prompts_of")):
        shelf = l03_shipped.SHELF if sizes is THREE else l05_shipped.SHELF
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_: ["a portrait of somebody else"])
            assert shelf.read(shipped.SEED, sizes) is None
        assert shelf.read(shipped.SEED, sizes) is not None
    (tmp_path / l06_shipped.WORLD).write_bytes(b"another world")
    monkeypatch.setattr(l06_shipped, "folder_of_studies", lambda: tmp_path)
    assert l06_shipped.SHELF.read(shipped.SEED, SIX) is None


def test_the_world_of_lesson_06_is_the_one_of_this_base_and_of_the_list(monkeypatch):
    assert len(l06_shipped.world().prompts) == 96
    with monkeypatch.context() as patch:
        patch.setattr(l06_shipped, "fingerprints", lambda pipe: {"base": "another", "vae": "another"})
        with pytest.raises(StudyError, match=r"made by another portrait-sd-base \(base, vae\): .*make studies"):
            l06_shipped.world()
    table = read_checksums() | {"studies/l06-world.safetensors": "0" * 64}
    monkeypatch.setattr(checksums, "read_checksums", lambda data: table)
    with pytest.raises(ModelLoadError, match="l06-world.safetensors is damaged"):
        l06_shipped.world()


def test_the_world_is_made_only_where_it_is_missing_or_of_another_base(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(l06_shipped.l06_world, "main", lambda: made.append("world"))
    monkeypatch.setattr(l06_shipped, "write_checksums", lambda folders: made.append(folders))
    assert not l06_shipped.make_world() and made == []
    with monkeypatch.context() as patch:
        patch.setattr(l06_shipped, "fingerprints", lambda pipe: {"base": "another"})
        assert l06_shipped.make_world() and made == ["world", ["studies"]]
    monkeypatch.setattr(l06_shipped, "folder_of_studies", lambda: tmp_path)
    assert l06_shipped.make_world() and len(made) == 4
