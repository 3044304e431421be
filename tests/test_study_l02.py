"""Study 02: what counting pictures of one prompt as independent hides."""

from types import SimpleNamespace

import numpy as np
import pytest

from labkit.studies.l02 import estimate_inflation, inflation


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
