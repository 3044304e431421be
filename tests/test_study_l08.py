"""Study of lesson 08: prompts, units at tiny sizes, the arithmetic of its claims."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.studies import NotRecorded, Recorded, l08, load_study
from labkit.studies.l08 import ESTIMATES, TRAINED, estimate_bon_law, estimate_drop, prompts
from labkit.studies.l08_long import LONG, STAGED, STAGES, kind_of
from labkit.studies.store import Record, folder_of_studies
from labkit.survey import CONTENDERS

TINY = {"prompts": 4, "pool": 2, "votes": 20, "test_prompts": 2, "steps": 3, "batch": 1, "nfe": 130}


def test_nobody_trains_on_the_prompts_that_judge():
    train, test = prompts(64, 24)
    assert len(set(train)) == 64 and len(set(test)) == 24 and not set(train) & set(test)


def test_every_contender_has_an_arm_and_every_claim_an_estimate():
    study = load_study("08")
    assert set(CONTENDERS) <= set(study.arms) and set(TRAINED) <= set(study.arms)
    from labkit.course.claim_file import declared

    assert {claim.split(".")[1] for claim in declared("08")} == set(ESTIMATES)


@pytest.mark.parametrize("arm", ["draft_bias", "best_of_n"])
def test_a_unit_gives_the_same_numbers_twice(arm):
    study = load_study("08")
    found, again = study.run(arm, 3, **TINY), study.run(arm, 3, **TINY)
    assert all(np.array_equal(found[k], again[k]) for k in found)
    assert ((found["gold"] >= 0) & (found["gold"] <= 1)).all() and len(found["gold"]) == 2
    assert found["gold"] == pytest.approx((found["task"] + found["safety"] + found["preference"]) / 3, abs=1e-5)
    if arm == "draft_bias":
        assert np.array_equal(found["proxy"], found["proxy.bias"])
        assert (found["kl"] > 0).all() and {"gold.half", "curve.gold"} <= set(found)
        assert 0 < found["nfe"][0] <= TINY["nfe"]
        assert found["curve.queries"][-1] == found["queries"][0] == 2 * TINY["batch"] * len(found["curve.nfe"])
    if arm == "best_of_n":
        curve = found["bon.proxy.main"]
        assert found["queries"][0] == TINY["test_prompts"] * len(curve)  # a search asks about everything that it draws
        assert (np.diff(curve) >= -1e-6).all() and curve[-1] == pytest.approx(found["proxy"].mean(), abs=0.05)


def test_a_long_race_is_one_run_that_stops_for_looks():
    """Its end is that of a run of the whole budget in one go, and its first stage that of a run of that much."""
    study = load_study("08")
    long = study.run("draft_few_long", 3, **TINY)
    longer = study.run("draft_few", 3, **{**TINY, "nfe": LONG * TINY["nfe"]})
    for metric in ("gold", "proxy", "kl", "curve.gold", "curve.nfe"):
        assert np.array_equal(long[metric], longer[metric]), metric
    last = len(STAGES)
    assert np.array_equal(long[f"gold.s{last}"], long["gold"]) and not np.array_equal(long["gold.s1"], long["gold"])
    spent = [float(long[f"nfe.s{i}"][0]) for i in range(1, last + 1)]
    assert spent == sorted(spent) and all(
        nfe <= part * LONG * TINY["nfe"] for nfe, part in zip(spent, STAGES, strict=True)
    )
    assert {f"{metric}.s{i}" for metric in STAGED for i in range(1, last + 1)} <= set(long)


def test_a_longer_search_looks_at_three_times_as_many_pictures():
    study = load_study("08")
    short, long = (study.run(arm, 3, **TINY) for arm in ("best_of_n", "best_of_n_long"))
    assert long["per_image"][0] > 2 * short["per_image"][0]
    assert len(long["bon.gold.main"]) > 2 * len(short["bon.gold.main"])


def test_names_of_arms_say_contender_and_proxy():
    assert kind_of("best_of_n") == ("best_of_n", "main") and kind_of("draft_few_long") == ("draft", "few")
    assert kind_of("raft_bias") == ("raft", "bias") and kind_of("base") == ("base", "main")


def test_a_drop_is_read_on_prompts_that_did_not_choose_the_stage():
    """Two stages, one seed, four prompts: even prompts say that stage 0 was best, odd ones that the end was."""
    gold = np.array([[[0.9, 0.2, 0.7, 0.4]], [[0.5, 0.6, 0.5, 0.6]]])
    # odd prompts chose the end for the even ones: 0; even prompts chose stage 0 for the odd ones: .6 - .2, .6 - .4
    assert estimate_drop(gold) == pytest.approx(np.array([[0.0, 0.4, 0.0, 0.2]]))


def test_a_race_without_a_turn_shows_none_whatever_the_noise_and_a_turn_is_found():
    rng = np.random.default_rng(0)
    flat = 0.7 + 0.1 * rng.standard_normal((6, 400, 24))
    assert abs(estimate_drop(flat).mean()) < 0.004  # the maximum itself would be .03 above the mean
    assert (flat[-1] - flat.mean(2, keepdims=True).max(0)).mean() < -0.02
    turned = flat + np.array([0, 0.1, 0.2, 0.1, 0, 0])[:, None, None]
    assert estimate_drop(turned).mean() == pytest.approx(-0.2, abs=0.02)


def test_a_claim_on_the_long_race_waits_for_three_seeds():
    def recorded(seeds):
        units = {("draft_few_long", seed): {f"gold.s{i}": np.full(4, 0.1 * i) for i in (1, 2, 3, 4)} for seed in seeds}
        return Recorded(Record("08", {}, dict.fromkeys(units, {}), units))

    with pytest.raises(NotRecorded, match="has 2 seeds of draft_few_long"):
        ESTIMATES["gold_turns"](recorded([0, 1]))
    assert ESTIMATES["gold_turns"](recorded([0, 1, 4])) == pytest.approx(np.zeros((3, 4)))


class Fabricated:
    """A record with the curve of best-of-n that follows the law exactly, beside a shift at the end."""

    def __init__(self, shift):
        n = np.arange(1, 13)
        kl = np.log(n) - (n - 1) / n
        row = 0.5 + np.sqrt(kl) * 0.2 - 0.05 * kl
        row[-1] += shift
        self.table = np.stack([row, row + 0.1])

    def values(self, metric, arm, seeds=None):
        assert (metric, arm) == ("bon.gold.main", "best_of_n_long")
        return self.table


def test_the_law_is_held_against_a_number_that_the_fit_did_not_see():
    assert estimate_bon_law(Fabricated(0.0)) == pytest.approx(np.zeros((2, 1)), abs=1e-12)
    assert estimate_bon_law(Fabricated(0.03)) == pytest.approx(np.full((2, 1), 0.03))


def test_tuning_tries_every_family_once_per_value_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    ran = []

    def race(name, kind, seed, sizes, **knob):
        ran.append((name, kind, seed, knob))
        return SimpleNamespace(deliver=lambda texts, seed: torch.zeros(len(texts), 8, 8, 8))

    monkeypatch.setattr(l08, "race", race)
    monkeypatch.setattr(l08, "look", lambda latents: latents)
    monkeypatch.setattr(l08, "proxy_of", lambda *_: lambda images, texts: torch.full((len(texts),), 0.25))
    (tmp_path / "t.json").write_text('{"draft": {"lr 0.001": 0.5}}', "utf-8")
    known = l08.tune(SimpleNamespace(**TINY), tmp_path / "t.json")
    assert {name: len(tried) for name, tried in known.items()} == dict.fromkeys(l08.KNOBS, 2)
    assert known["draft"] == {"lr 0.001": 0.5, "lr 0.004": 0.25}
    assert len(ran) == 2 * len(l08.KNOBS) - 1 and {kind_seed[1:3] for kind_seed in ran} == {("main", 100)}


def test_the_chosen_knobs_are_those_that_the_recorded_tuning_prefers():
    tuned = json.loads((folder_of_studies() / "l08-tuning.json").read_text("utf-8"))
    best = {name: float(max(tried, key=tried.get).split()[1]) for name, tried in tuned.items()}
    assert best == l08.CHOSEN


def test_sizes_of_the_study_pay_for_every_contender():
    from labkit.studies.l08 import settings_of
    from labkit.survey.arena import METHODS
    from labkit.survey.ledger import Prices, updates_for
    from labkit.survey.trained import update_price

    sizes = SimpleNamespace(**load_study("08").sizes)
    for name in METHODS:
        price = update_price(name, settings_of(name, sizes), Prices(decode=1.86))
        assert updates_for(sizes.nfe, price, name) >= 5
