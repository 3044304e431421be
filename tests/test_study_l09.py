"""Study of lesson 09: coverage, walks, void certificates, small arms, the shipped catalogue, the record."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from labkit.dpo import PreferencePairs
from labkit.inspection import clopper_pearson, sprt, two_point_plan
from labkit.studies import Recorded, l06, l09, l09_catalogue, l09_long, load_study, read_record
from labkit.studies.store import Record, status
from labkit.studies.study import StudyError

STUDY = load_study("09")
QUICK = {"draws": 4000, "walks": 400, "bettors": 40, "pilots": 6}
TINY = {
    "calibration": 40, "steps": 1, "alpha": 0.5, "tuned_alpha": 0.5, "pairs": 3,
    "candidates": 2, "train_steps": 1, "batch": 2, "test_prompts": 2,
}  # fmt: skip


def test_simulated_coverage_is_the_exact_one():
    found = STUDY.run("intervals", 0, **QUICK)
    n = STUDY.sizes["looked"]
    for place in (0, 11, 29):
        p = l09.RATES[place]
        d = np.arange(n + 1)
        right = [low <= p <= high for low, high in (clopper_pearson(int(k), n) for k in d)]
        exact = binom.pmf(d, n, p) @ right
        assert found["exact"][place] == pytest.approx(exact, abs=4 * np.sqrt(0.05 / 4000))
    assert found["aql"][0] == pytest.approx(0.176, abs=0.03) and len(found["aql"]) == 1
    assert found["textbook"].mean() < found["wilson"].mean() < found["exact"].mean()
    assert found["clustered"].mean() < 0.9 and found["reported"].mean() < found["corrected"].mean()


def test_the_textbook_interval_is_one_point_without_defects():
    assert l09.textbook(0, 80) == (0.0, 0.0)
    assert l09.textbook(8, 80) == pytest.approx((0.1 - 1.96 * np.sqrt(0.09 / 80), 0.1 + 1.96 * np.sqrt(0.09 / 80)))
    low, high = l09.corrected(0, 80, sensitivity=0.9, specificity=0.97)
    assert low == 0.0 and 0 < high < clopper_pearson(0, 80)[1]


def test_walks_need_as_many_looks_as_the_exact_distribution_says():
    found = STUDY.run("looks", 0, **QUICK)
    fixed = two_point_plan(l09.GOOD, l09.BAD)[0]
    test = sprt(l09.GOOD, l09.BAD, truncate=3 * fixed)
    for place in (1, 9, 20):
        accepted, looked = test.performance(float(l09.RATES[place]))
        assert found["looks"][place] * fixed == pytest.approx(looked, rel=0.15)
        assert found["accepted"][place] == pytest.approx(accepted, abs=0.08)
    assert found["calm.bet"].mean() > 0.95 > found["calm.test"].mean()


def test_the_pilots_of_the_study_are_those_of_the_lesson():
    source = (l09_catalogue.data_dir().parent / "notebooks/src/09_verification.py").read_text(encoding="utf-8")
    for name, (low, high) in (l09.VERIFICATION | l09.MODEL).items():
        text = source[source.index(f'"{name}": (') :][:60].replace("_", "")
        assert text.startswith(f'"{name.replace("_", "")}": ({low}, {high})'), name
    assert l09.dominance(l09.PILOT, l09.VERIFICATION | l09.MODEL) > 1
    again = STUDY.run("returns", 3, **QUICK)
    assert np.array_equal(again["ratio"] > 1, again["dominates"] == 1) and len(again["ratio"]) == 6


def test_a_filter_that_sees_nothing_is_void_at_once(monkeypatch):
    """Old pictures with a good score are good; the new process has the same scores and only bad pictures."""

    class Judge:
        name = "mean"

        def __call__(self, images, orders):
            return images.mean((1, 2, 3))

    monkeypatch.setattr(l06, "models", lambda: type("M", (), {"judge": Judge()})())
    monkeypatch.setattr(
        l09,
        "wrong",
        lambda images, orders: np.array([o == "bad" or i.mean() < 0 for i, o in zip(images, orders, strict=True)]),
    )
    pictures = torch.linspace(-1, 1, 400).view(400, 1, 1, 1).expand(400, 3, 2, 2)
    good, bad = (pictures, ["good"] * 400), (pictures, ["bad"] * 400)
    found = l09.audited(good, good, bad, alpha=0.05)
    assert found["certified"] == 1 and found["refused"] == 1
    assert found["over.old"].mean() <= 0 and set(found["over.new"]) == {0.0, 0.95}
    assert found["pass.old"].mean() == found["pass.new"].mean() == pytest.approx(0.5, abs=0.06)
    assert found["over.new"].mean() == pytest.approx(0.95 * found["pass.new"].mean())
    hopeless = l09.audited(bad, good, good, alpha=0.05)
    assert hopeless["certified"] == 0 and hopeless["refused"] == 0


def test_the_first_pairs_keep_their_margins():
    pairs = PreferencePairs(("a", "b", "c"), torch.ones(3, 1, 1, 1), torch.zeros(3, 1, 1, 1), torch.tensor([1.0, 2, 3]))
    first = l09.first_pairs(pairs, 2)
    assert first.prompts == ("a", "b") and first.margin.tolist() == [1, 2] and len(first.loser) == 2
    assert l09.first_pairs(replace(pairs, margin=None), 1).margin is None


def test_the_long_arm_has_four_times_the_steps_and_nothing_else(monkeypatch):
    asked = []
    monkeypatch.setattr(l09, "unit", lambda arm, seed, sizes: asked.append((arm, seed, vars(sizes))))
    sizes = SimpleNamespace(**STUDY.sizes)
    l09_long.unit("pairs_200_long", 2, sizes)
    assert asked == [("pairs_200", 2, {**STUDY.sizes, "train_steps": 4 * STUDY.sizes["train_steps"]})]


def test_neighbours_are_exchanged_in_pairs():
    source = l09_catalogue.mixed_up(101, 0.5, np.random.default_rng(1))
    assert sorted(source) == list(range(101)) and source[100] == 100
    moved = np.flatnonzero(source != np.arange(101))
    assert 20 < len(moved) < 80 and all(abs(source[i] - i) == 1 for i in moved)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["base", "pairs_50", "replaced"])
def test_units_with_pictures_are_the_same_twice_and_ask_nobody(arm):
    found = STUDY.run(arm, 1, **TINY)
    l09.own_pairs.cache_clear()
    again = STUDY.run(arm, 1, **TINY)
    assert all(np.array_equal(found[k], again[k]) for k in found)
    if "connections" in found:
        assert found["connections"] == 0
        assert (found["parameters"] == 0) == (arm == "base")


def test_the_catalogue_holds_the_orders_of_this_version(tmp_path):
    shelf = l09_catalogue.load()
    assert len(shelf.specs) == len(shelf.prompts) == len(shelf.half_prompts) == len(shelf.old) == l09_catalogue.ORDERS
    assert len(shelf.new) == l09_catalogue.LATER
    assert shelf.pictures("old", 3).shape == (3, 3, 64, 64)
    with pytest.raises(StudyError, match="tuned.safetensors is not there"):
        replace(shelf, tuned=None).pictures("tuned")
    l09_catalogue.save(tmp_path, replace(shelf, base=shelf.old, tuned=shelf.new))
    again = l09_catalogue.load(tmp_path)
    assert torch.equal(again.tuned, shelf.new) and torch.equal(again.old, shelf.old)
    l09_catalogue.save(tmp_path, replace(shelf, prompts=shelf.prompts[::-1]))
    with pytest.raises(StudyError, match="other orders"):
        l09_catalogue.load(tmp_path)
    (tmp_path / l09_catalogue.FILE).write_bytes(b"nothing")
    with pytest.raises(StudyError, match="restore the data folder"):
        l09_catalogue.load(tmp_path)


def test_every_claim_is_computed_from_arms_and_metrics_that_the_study_has():
    rng = np.random.default_rng(0)
    metrics = {
        "intervals": ("aql", "exact", "wilson", "textbook", "bound", "lot", "corrected", "reported", "clustered"),
        "looks": ("looks", "calm.bet", "calm.test"),
        "returns": ("dominates", "dominates.low_stakes"),
        **dict.fromkeys(("replaced", "tuned", "tuned_fresh"), ("over.old", "over.new", "pass.old", "pass.new")),
        **dict.fromkeys(("base", "pairs_50", "pairs_100", "pairs_200", "pairs_200_long"), ("gold",)),
    }
    assert set(metrics) == set(STUDY.arms)
    record = Record(
        "09", values={(a, s): {m: rng.random(4) for m in found} for a, found in metrics.items() for s in (3, 4)}
    )
    shapes = {name: contrast(Recorded(record)).shape for name, contrast in l09.ESTIMATES.items()}
    by_seed = {"bounds_hold", "sprt_saves", "tuned_shifts"}  # the last has orders of its own in every seed
    assert {name for name, shape in shapes.items() if shape == (2, 1)} == by_seed
    assert {shape for name, shape in shapes.items() if name not in by_seed} == {(2, 4)}


def test_the_record_is_not_stale():
    found = status(STUDY, read_record("09"))
    assert found["recorded"] >= 9 and not found["stale"] and not found["damaged"]
