"""Study 02: what counting pictures of one prompt as independent hides; its second round."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.metrics import cmmd
from labkit.studies import l02, l02_controls
from labkit.studies.l02 import estimate_inflation, estimate_rise_in_variety_test, inflation

SMALL = SimpleNamespace(renders=9, others=8, rounds=5, null_rounds=19, steps=1, guidance=1.0)


def test_copies_that_agree_inflate_the_error_by_the_root_of_their_number_and_opposite_ones_leave_none():
    agree, opposite = np.array([[1, 1], [0, 0], [1, 1], [0, 0.0]]), np.array([[1, 0], [0, 1.0]])
    # by prompt: sqrt(1/3 / 4); by picture: sqrt(2/7 / 8), two outcomes of eight pictures
    assert inflation(agree) == pytest.approx(np.sqrt((1 / 12) / (1 / 28)))
    assert inflation(opposite) == 0


def test_a_seed_in_which_every_picture_tied_has_no_ratio_and_is_left_out():
    with np.errstate(invalid="ignore"):
        tied = inflation(np.full((3, 2), 0.5))
    assert np.isnan(tied)
    recorded = SimpleNamespace(values=lambda metric, arm: np.array([[1.2], [tied], [0.9]]))
    assert estimate_inflation(recorded).tolist() == [[1.2], [0.9]]


def test_the_narrow_kernel_is_asked_on_disjoint_rounds_and_keeps_its_width_when_the_variety_is_lost(monkeypatch):
    monkeypatch.setattr(l02_controls, "N", 4)
    found = l02_controls.median_kernel(3, SMALL)
    assert {name: len(values) for name, values in found.items()} == {"same": 2, "alike": 2}
    world, g = l02.renders(3, 9, 8), torch.Generator().manual_seed(4)
    rows, columns = l02.chunks(world.real, 4, 2, g), l02.chunks(world.other, 4, 2, g)
    both = [world.real_clip[rows[1]], world.other_clip[columns[1]]]
    expected = float(cmmd(real=both[0], fake=both[1], sigma="median", normalise=False))
    assert found["same"][1] == pytest.approx(expected)
    width = cmmd(real=both[0], fake=both[1], sigma="median", normalise=False).sigma
    spoilt = l02.more_alike(world.other_clip)[columns[1]]
    assert found["alike"][1] == pytest.approx(float(cmmd(real=both[0], fake=spoilt, sigma=width, normalise=False)))
    own = float(cmmd(real=both[0], fake=spoilt, sigma="median", normalise=False))
    assert abs(own - found["alike"][1]) > 0.02 * own


def test_the_rise_is_a_share_of_the_mean_between_renders():
    values = {"same": np.array([[1.0, 3.0], [2.0, 2.0]]), "alike": np.array([[3.0, 3.0], [1.0, 1.0]])}
    recorded = SimpleNamespace(values=lambda metric, arm: values[metric])
    assert estimate_rise_in_variety_test(recorded).tolist() == [[0.5], [-0.5]]


def test_the_test_with_more_pictures_sounds_for_noise_and_seldom_for_renders(monkeypatch):
    monkeypatch.setattr(l02_controls, "N", 8)
    monkeypatch.setattr(l02_controls, "PAINTED", 8)
    monkeypatch.setattr(l02_controls, "TESTS", 3)
    noise = l02.noise_pictures(8, torch.Generator().manual_seed(0))
    monkeypatch.setattr(l02, "painted", lambda *_: noise)
    found = l02_controls.many_pictures(3, SMALL)
    assert found["model"] == 1
    assert found["same"] < 1
