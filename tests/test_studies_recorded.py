"""The recorded studies that labkit ships: one cheap unit of each, drawn at random, is computed again."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.studies import NotRecorded, Recorded, estimate, load_study, read_record, studies
from labkit.studies.recorder import verify

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("lesson", studies())
def test_a_unit_is_computed_again(lesson):
    study = load_study(lesson)
    if not read_record(lesson).facts:
        pytest.skip(f"study {lesson} has no record yet")
    (arm, seed), lines = verify(study, arm=study.cheap, rng=np.random.default_rng())
    assert not lines, f"{arm}/{seed}: " + "; ".join(lines)


@pytest.mark.parametrize("lesson", studies())
def test_every_recorded_number_that_a_claim_reads_is_one(lesson):
    """A ratio of two zeros, recorded in one seed of a hundred, would take the whole lesson's verdicts away."""
    recorded, read = Recorded(read_record(lesson)), 0
    for contrast in load_study(lesson).estimates.values():
        try:
            estimate(contrast(recorded))
        except NotRecorded:
            continue
        read += 1
    assert read
