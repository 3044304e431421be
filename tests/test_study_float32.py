"""Partners of controls that were recorded again in float32, and the leap with loud grain."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.diffusion import float32_only, native_bfloat16
from labkit.studies import l05, l05_float32, l06, l06_float32, l06_grain, load_study


@pytest.fixture
def bfloat16_cpu(monkeypatch):
    """A CPU that trains in bfloat16 wherever it may."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert native_bfloat16()


def test_inside_of_float32_only_nothing_is_in_bfloat16(bfloat16_cpu):
    with pytest.raises(KeyError), float32_only():
        assert not native_bfloat16()
        with float32_only():
            pass
        assert not native_bfloat16()
        raise KeyError
    assert native_bfloat16()


@pytest.mark.parametrize("module, study", [(l05_float32, l05), (l06_float32, l06)])
def test_an_arm_again_is_the_same_unit_in_float32(bfloat16_cpu, monkeypatch, module, study):
    asked = []

    def unit(arm, seed, sizes):
        asked.append((arm, seed, sizes.batch, native_bfloat16()))
        return {"x": np.array([1.0])}

    monkeypatch.setattr(study, "unit", unit)
    assert module.unit("dpo_float32", 3, SimpleNamespace(batch=7)) == {"x": np.array([1.0])}
    assert asked == [("dpo", 3, 7, False)] and native_bfloat16()


@pytest.mark.parametrize("module, study", [(l05_float32, l05), (l06_float32, l06)])
def test_what_was_trained_in_another_precision_is_not_taken_from_the_cache(monkeypatch, module, study):
    kept = []
    monkeypatch.setattr(study, "trained", SimpleNamespace(cache_clear=lambda: kept.append("cleared")))
    monkeypatch.setattr(study, "unit", lambda *_: kept.append("unit"))
    module.unit("dpo_float32", 0, SimpleNamespace())
    assert kept == ["cleared", "unit", "cleared"]


def test_the_loud_leap_has_three_times_the_grain_and_counts_what_texture_gives_away(bfloat16_cpu, monkeypatch):
    asked = []
    pairs = SimpleNamespace(leap=SimpleNamespace(training=lambda: "pairs"))

    def world_of(seed, sizes):
        return pairs if (seed, sizes.grain) == (2, l06_grain.GRAIN) else None

    monkeypatch.setattr(l06, "unit", lambda *a: asked.append((*a[:2], a[2].grain, native_bfloat16())) or {"gold": 1})
    monkeypatch.setattr(l06, "world_of", world_of)
    monkeypatch.setattr(l06_grain, "told_apart", lambda given: (0.9, 0.1) if given == "pairs" else None)
    found = l06_grain.unit("leap_grainy", 2, SimpleNamespace(**load_study("06").sizes))
    assert asked == [("leap", 2, 0.75, False)] and 0.75 == 3 * load_study("06").sizes["grain"]
    assert found == {"gold": 1, "told_apart": np.array([0.9])}


@pytest.mark.parametrize(
    ("lesson", "claims"),
    [
        ("05", ["authors_mu_helps", "weaker_mapo_keeps_up", "margin_helps"]),
        ("06", ["right_captions_help", "pairs_beat_careless", "careless_sft_erases"]),
    ],
)
def test_controls_in_float32_are_compared_with_partners_in_float32(lesson, claims):
    """The machine that recorded a unit is in the record; the AMD one trains in bfloat16."""
    from labkit.studies import Recorded, read_record

    study, record = load_study(lesson), read_record(lesson)
    for name in claims:
        recorded = Recorded(record)
        study.estimates[name](recorded)
        trained = {arm for arm in recorded.asked if arm != "base"}
        machines = {fact["machine"] for (arm, _), fact in record.facts.items() if arm in trained}
        assert len(trained) == 2 and not any("AMD" in machine for machine in machines), (name, machines)
