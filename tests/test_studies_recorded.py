"""The recorded studies that labkit ships: one cheap unit of each, drawn at random, is computed again."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.studies import load_study, read_record, studies
from labkit.studies.recorder import verify

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("lesson", studies())
def test_a_unit_is_computed_again(lesson):
    study = load_study(lesson)
    if not read_record(lesson).facts:
        pytest.skip(f"study {lesson} has no record yet")
    (arm, seed), lines = verify(study, arm=study.cheap, rng=np.random.default_rng())
    assert not lines, f"{arm}/{seed}: " + "; ".join(lines)
