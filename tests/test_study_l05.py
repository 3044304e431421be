"""The study of lesson 05: what its arms share and where they differ, at tiny sizes; its record; drawing on it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.dpo import PairStep
from labkit.studies import Recorded, l05, l05_controls, means, read_record
from labkit.studies.store import Record, status

TINY = {
    "toy_bases": 2, "toy_pretrain": 5, "toy_pairs": 64, "toy_steps": 3, "prompts": 4, "candidates": 2,
    "test_prompts": 3, "references": 8, "steps": 2, "train_steps": 2, "batch": 2, "draws": 1,
}  # fmt: skip
SIZES = SimpleNamespace(**{**l05.STUDY.sizes, **TINY})


def a_step(d_w: float, d_l: float) -> PairStep:
    """One pair whose errors moved by d_w and d_l from a reference of 0.3 and 0.4."""
    noise = torch.zeros(1, 1, 1, 1)
    winner, loser = (torch.full((1, 1, 1, 1), e).sqrt().requires_grad_() for e in (0.3 + d_w, 0.4 + d_l))
    return PairStep(
        winner_pred=winner, loser_pred=loser, noise=noise, t=torch.zeros(1), alphas_cumprod=torch.ones(1),
        ref_winner_error=torch.tensor([0.3]), ref_loser_error=torch.tensor([0.4]),
    )  # fmt: skip


class TestLosses:
    @pytest.mark.parametrize("name", [name for name in l05.LOSSES if name != "mapo"])
    def test_all_start_with_a_pull_on_the_winner_of_the_size_of_dpo(self, name):
        step = a_step(0.0, 0.0)
        sum(term(step).sum() for term in l05.LOSSES[name](8.0)).backward()
        pull = step.winner_pred.grad / (2 * step.winner_pred.detach())  # d loss / d e_w
        assert 0.25 * 4 <= float(pull) <= 2.01 * 4  # DPO: kappa / 2 = 4; KTO pulls a quarter, the hinge twice as much

    def test_the_watching_term_adds_nothing(self):
        step = a_step(0.1, 0.2)
        terms = l05.watched(l05.LOSSES["sft"](8.0))
        assert sum(float(term(step)) for term in terms) == pytest.approx(4 * 0.4)
        assert terms[-1].needs == "errors"


class TestRing:
    def test_every_arm_reports_one_number_per_base(self):
        for arm in ("toy_base", "toy_dpo_2", "toy_two", "toy_noisy_smooth", "toy_kto"):
            found = l05.STUDY.run(arm, 0, **TINY)
            assert {len(found[m]) for m in ("reward", "off_ring")} == {2}
            assert ("d_w" in found) == (arm != "toy_base")

    def test_a_unit_does_not_depend_on_what_ran_before(self):
        first = l05.STUDY.run("toy_dpo", 1, **TINY)
        l05.STUDY.run("toy_sft", 1, **TINY)
        l05.ring_base.cache_clear()
        l05.ring_pairs.cache_clear()
        again = l05.STUDY.run("toy_dpo", 1, **TINY)
        assert all(np.array_equal(first[m], again[m]) for m in first)

    def test_the_strength_is_in_the_name(self):
        assert [l05.ring_terms(arm)[0].kappa for arm in ("dpo", "dpo_2", "dpo_250", "two")] == [10, 2, 250, 10]
        assert l05.ring_terms("noisy_smooth")[0].settings["label_smoothing"] == 0.25

    def test_noisy_labels_are_turned_round_in_about_a_quarter_of_the_pairs_and_no_point_is_lost(self):
        winner, loser = torch.zeros(4000, 2), torch.ones(4000, 2)
        w, lo = l05.flipped(winner, loser, 0.25, 3)
        assert 0.22 < float(w[:, 0].mean()) < 0.28
        assert torch.equal(w + lo, torch.ones(4000, 2))

    def test_a_learners_own_loss_replaces_the_arms(self):
        own = l05.ring_run("dpo", 0, 0, SIZES, lambda step: 0.0 * step.winner_error)
        base = l05.ring_unit("base", 0, SIZES)
        assert own.reward == pytest.approx(float(base["reward"][0]), abs=1e-6)  # a loss that is 0 moves nothing


class TestPortraits:
    def test_training_leaves_the_base_as_it_was_and_logs_both_errors(self):
        prompts = l05.held_out(2)
        before = l05.pictures(prompts, 0, SIZES)
        found = l05.STUDY.run("sft", 0, **TINY)
        assert set(found) == {"gold", "judge", "distance", "diversity", "d_w", "d_l", "accuracy"}
        assert len(found["gold"]) == TINY["test_prompts"]
        assert torch.equal(before, l05.pictures(prompts, 0, SIZES))

    def test_an_untrained_negative_model_is_plain_guidance(self):
        pairs = l05.portrait_pairs(0, 4, 2, 2)
        nothing = l05.align(pairs, [l05.Term("none", lambda s: 0.0 * s.winner_error, {})], 0, SIZES)
        prompts = l05.held_out(2)
        away = l05.away_from(nothing.state, prompts, 0, SIZES)
        assert torch.allclose(away, l05.pictures(prompts, 0, SIZES), atol=1e-4)


class TestControls:
    def test_a_quarter_is_the_first_rounds_loss_at_a_quarter_of_its_strength(self):
        step = a_step(0.1, -0.2)

        def values(terms):
            return [float(term(step).detach()) for term in terms]

        for loss in ("dpo", "mapo", "kto"):
            control = l05_controls.CONTROLS[f"{loss}_quarter"](8.0, None)
            assert values(control) == values(l05.LOSSES[loss](2.0))
            assert values(control) != values(l05.LOSSES[loss](8.0))

    def test_the_margin_asks_for_one_on_average_and_for_more_where_scores_differ_more(self):
        pairs = SimpleNamespace(margin=torch.tensor([0.1, 0.3]))
        (term,) = l05_controls.CONTROLS["margin"](8.0, pairs)
        step = replace(a_step(0.0, 0.0), margin=torch.tensor([0.1]))  # half of the mean: s = 0 is asked for 0.5
        assert float(term(step)) == pytest.approx(np.log1p(np.exp(0.5)), abs=1e-6)
        assert float(term(replace(step, margin=torch.tensor([0.3])))) == pytest.approx(np.log1p(np.exp(1.5)), abs=1e-6)

    def test_sdpo_has_the_authors_mu(self):
        (term,) = l05_controls.CONTROLS["sdpo_authors"](8.0, None)
        assert term.settings == {"kappa": 8.0, "mu": 0.9}

    def test_the_unprompted_negative_model_sees_empty_prompts_and_is_asked_for_them(self, monkeypatch):
        seen = []
        align, away = l05.align, l05.away_from
        monkeypatch.setattr(l05, "align", lambda pairs, *rest: seen.append(set(pairs.prompts)) or align(pairs, *rest))
        monkeypatch.setattr(l05, "away_from", lambda *given, **words: seen.append(words) or away(*given, **words))
        found = l05.STUDY.run("npo_unprompted", 0, **TINY)
        assert seen == [{""}, {}] and len(found["gold"]) == TINY["test_prompts"]
        assert "" not in l05.portrait_pairs(0, 4, 2, 2).prompts


class TestRecord:
    def test_what_is_recorded_is_current(self):
        found = status(l05.STUDY, read_record("05"))
        assert not found["stale"]
        assert not found["damaged"]

    def test_every_claim_is_computed_from_arms_and_metrics_that_the_study_has(self):
        rng = np.random.default_rng(0)
        metrics = ("gold", "judge", "d_w", "off_ring")
        keys = [(arm, seed) for arm in l05.STUDY.arms for seed in (0, 1)]
        record = Record("05", values={key: {m: rng.random(4) for m in metrics} for key in keys})
        assert all(contrast(Recorded(record)).shape == (2, 4) for contrast in l05.ESTIMATES.values())

    def test_means_are_of_the_gain_over_another_arm_and_leave_out_what_is_not_recorded(self):
        values = {
            ("a", 0): {"m": np.array([1.0, 2.0, 4.0])},
            ("b", 0): {"m": np.array([0.0, 1.0, 3.0])},
            ("single", 0): {"m": np.array([7.0])},
        }
        recorded = Recorded(Record("05", values=values))
        found = means(recorded, "m", {"A": "a", "C": "c"}, against="b")
        assert list(found) == ["A"]
        assert (found["A"].value, found["A"].low, found["A"].high) == (1.0, 1.0, 1.0)
        alone = means(recorded, "m", {"A": "a", "single": "single"})
        assert list(alone) == ["A"]
        assert alone["A"].high - 7 / 3 == pytest.approx(4.303 * np.std([1, 2, 4], ddof=1) / 3**0.5, rel=1e-3)
