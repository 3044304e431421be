"""Plans of the AQL table, moves of the rollout, drift charts, and the money: table and hand-computed values, edges."""

import dataclasses
import math

import numpy as np
import pytest

from labkit.inspection import (
    Economics,
    Plan,
    Rollout,
    acceptance,
    after_alarm,
    after_lot,
    all_or_none,
    aql_plan,
    average_outgoing_quality,
    average_total_inspection,
    best_sample_size,
    break_even_images,
    calibrate,
    cost_terms,
    cusum_chart,
    ewma_chart,
    meet_process,
    roi,
    score_drift,
    tornado,
    value_of_one_more,
)
from labkit.inspection.aql import code_letter, passes_one_step_tighter
from labkit.inspection.economics import cost_per_image, plan_cost
from labkit.inspection.rollout import RolloutError, from_dict, stage_plan, to_dict

# ---- the table ------------------------------------------------------------------------------------------------------


def test_code_letters_change_after_the_last_size_of_a_row():
    sizes = (8, 9, 280, 281, 500, 501, 1200, 1201, 3200, 10_000, 500_000, 500_001)
    assert "".join(map(code_letter, sizes)) == "ABGHHJJKKLPQ"
    with pytest.raises(ValueError, match="from 2"):
        code_letter(1)


@pytest.mark.parametrize(
    ("lot", "aql", "severity", "plan"),
    [
        (500, 1.0, "normal", (50, 1)),
        (1200, 1.0, "normal", (80, 2)),
        (3200, 1.0, "normal", (125, 3)),
        (10_000, 1.0, "normal", (200, 5)),
        (60, 1.0, "normal", (13, 0)),  # the row of the 0
        (120, 1.0, "normal", (13, 0)),  # arrow up
        (200, 1.0, "normal", (50, 1)),  # arrow down
        (90, 4.0, "normal", (13, 1)),
        (1200, 2.5, "normal", (80, 5)),
        (500, 0.65, "normal", (80, 1)),  # arrow down
        (600_000, 4.0, "normal", (315, 21)),  # arrows up at the end of the column
        (120, 1.0, "tightened", (20, 0)),
        (200, 1.0, "tightened", (80, 1)),  # two arrows down
        (500, 1.0, "tightened", (80, 1)),
        (3200, 1.0, "tightened", (125, 2)),
        (10_000, 1.0, "tightened", (200, 3)),
        (20_000, 1.0, "tightened", (315, 5)),
        (20, 0.65, "normal", (20, 0)),  # the plan is the lot
        (1000, 0.4, "normal", (125, 1)),  # published examples: J at 0.40 and 0.25, F at 0.65 and 0.40
        (1000, 0.25, "normal", (50, 0)),
        (150, 0.65, "normal", (20, 0)),
        (150, 0.4, "normal", (32, 0)),
        (1200, 6.5, "normal", (80, 10)),
        (10, 0.65, "normal", (10, 0)),  # smaller than the plan: every picture
    ],
)
def test_plans_of_the_table(lot, aql, severity, plan):
    got = aql_plan(lot, aql, severity=severity)
    assert (got.n, got.c) == plan


def test_reduced_takes_two_fifths_and_is_no_harder_on_good_lots():
    for lot in (500, 1200, 3200, 10_000):
        normal, reduced = aql_plan(lot, 1.0), aql_plan(lot, 1.0, severity="reduced")
        assert reduced.n == math.ceil(0.4 * normal.n)
        assert acceptance(0.01, n=reduced.n, c=reduced.c) >= acceptance(0.01, n=normal.n, c=normal.c)
        assert acceptance(0.01, n=reduced.n, c=reduced.c - 1) < acceptance(0.01, n=normal.n, c=normal.c)
    with pytest.raises(ValueError, match="has no column here"):
        aql_plan(500, 2.0)
    with pytest.raises(ValueError, match="severity = 'strict'"):
        aql_plan(500, 1.0, severity="strict")


def test_the_plan_follows_the_stage():
    def plan(stage):
        got = stage_plan(Rollout("p", stage, calibrated=True), 1200, 1.0)
        return got.n, got.c

    stages = ("shadow", "all", "tightened", "normal", "reduced")
    assert [plan(stage) for stage in stages] == [(1200, 12), (1200, 12), (80, 1), (80, 2), (32, 1)]
    with pytest.raises(RolloutError, match="has stopped"):
        plan("stopped")


def test_one_step_tighter_is_the_next_smaller_aql_for_the_same_letter():
    # lots of 1201-3200, letter K: Ac 3 at 1.0, 2 at 0.65, 1 at 0.40
    assert [passes_one_step_tighter(d, 2000, 1.0) for d in (2, 3)] == [True, False]
    assert [passes_one_step_tighter(d, 2000, 0.65) for d in (1, 2)] == [True, False]
    with pytest.raises(ValueError, match="no smaller column"):
        passes_one_step_tighter(0, 2000, 0.25)


def test_a_plan_that_accepts_everything_is_refused():
    with pytest.raises(ValueError, match="c = n accepts everything"):
        Plan(5, 5)


# ---- rollout --------------------------------------------------------------------------------------------------------


def run(rollout, *lots, c=2, tighter=True):
    for accepted in lots:
        rollout = after_lot(rollout, accepted=accepted, c=c, accepted_one_step_tighter=tighter)
    return rollout


@pytest.fixture
def tightened():
    return run(calibrate(Rollout("p1"), "p1"), *[True] * 5)


def test_the_way_from_shadow_to_reduced(tightened):
    start = Rollout("p1")
    assert not start.ships and run(start, True, True).stage == "shadow"
    everything = calibrate(start, "p1")
    assert everything.stage == "all" and everything.ships
    assert run(everything, *[True] * 4).stage == "all"
    assert tightened.stage == "tightened"
    assert run(tightened, *[True] * 4, False, *[True] * 4).stage == "tightened"
    normal = run(tightened, *[True] * 5)
    assert normal.stage == "normal"
    assert run(normal, *[True] * 9).stage == "normal"  # score 27
    assert run(normal, *[True] * 10).stage == "reduced"  # 30
    assert run(run(normal, *[True] * 10), True, False).stage == "normal"


def test_the_switching_score_counts_two_for_small_acceptance_numbers_and_falls_to_zero(tightened):
    normal = run(tightened, *[True] * 5)
    assert [run(normal, *[True] * k, c=1).score for k in (1, 3)] == [2, 6]
    assert run(normal, *[True] * 15, c=1).stage == "reduced"
    assert run(normal, *[True] * 9, c=2, tighter=False).score == 0
    assert run(normal, True, True, False, True, c=0).score == 2


def test_two_of_five_refused_tighten_and_five_under_tightened_stop(tightened):
    normal = run(tightened, *[True] * 5)
    assert run(normal, False, True, True, True, False).stage == "tightened"
    assert run(normal, False, True, True, True, True, False).stage == "normal"  # six lots apart
    assert run(normal, False, False).stage == "tightened"
    back = run(normal, False, False)
    assert run(back, False, True, False, False, False).stage == "tightened"
    stopped = run(back, False, True, False, False, False, False)
    assert stopped.stage == "stopped" and not stopped.ships
    with pytest.raises(RolloutError, match="correct the process"):
        run(stopped, True)


def test_another_process_starts_again_without_a_threshold(tightened):
    assert meet_process(tightened, "p1") == tightened
    changed = meet_process(tightened, "p2")
    assert (changed.stage, changed.calibrated, changed.accepted_in_a_row) == ("all", False, 0)
    with pytest.raises(RolloutError, match="no threshold is certified"):
        run(changed, True)
    with pytest.raises(RolloutError, match="belongs to process p1"):
        calibrate(changed, "p1")
    assert calibrate(changed, "p2").stage == "all"


def test_an_alarm_goes_one_stage_back_and_the_state_survives_json(tightened):
    reduced = run(tightened, *[True] * 15)
    assert reduced.stage == "reduced"
    path = [reduced]
    for _ in range(4):
        path.append(after_alarm(path[-1], "EWMA of the pass rate"))
    assert [state.stage for state in path] == ["reduced", "normal", "tightened", "all", "all"]
    assert path[1].calibrated and path[1].reason == "drift: EWMA of the pass rate"
    half = run(tightened, True, False, True)
    assert from_dict(to_dict(half)) == half and half.recent == (True, False, True)
    with pytest.raises(RolloutError, match="unknown fields"):
        from_dict({"process": "p", "level": 3})


# ---- drift ----------------------------------------------------------------------------------------------------------


def test_ewma_by_hand():
    chart = ewma_chart([3.0, 1.0], mean=1.0, sd=2.0, weight=0.25, width=2.0)
    assert chart.values.tolist() == [1.5, 1.375]
    half = 4 * np.sqrt(0.25 / 1.75 * (1 - 0.75 ** np.array([2, 4])))
    assert chart.high == pytest.approx(1 + half) and chart.low == pytest.approx(1 - half)
    assert ewma_chart([3.0], mean=1.0, sd=0.5, weight=1.0, width=3).alarm == 0
    assert ewma_chart([2.4], mean=1.0, sd=0.5, weight=1.0, width=3).alarm is None
    with pytest.raises(ValueError, match="must be positive"):
        ewma_chart([1.0], mean=1.0, sd=0.0)
    with pytest.raises(ValueError, match="finite"):
        ewma_chart([math.nan], mean=1.0, sd=1.0)


def test_cusum_by_hand_on_both_sides():
    chart = cusum_chart([3.0, 3.0, -2.0, -5.0], mean=1.0, sd=2.0, slack=0.5, limit=2.0)
    # z = 1, 1, -1.5, -3; up 0.5, 1, 0, 0; down 0, 0, 1, 3.5
    assert chart.values.tolist() == [0.5, 1.0, -1.0, -3.5] and chart.alarm == 3


def test_false_alarms_are_as_rare_as_said():
    x = np.random.default_rng(4).normal(size=(300, 500))
    for make in (ewma_chart, cusum_chart):
        first = [make(row, mean=0, sd=1).alarm for row in x]
        # a run length of about 500 (465): within 500 lots, 1 - 1/e of the series alarm
        assert 0.5 < np.mean([alarm is not None for alarm in first]) < 0.78
        shifted = [make(row[:60] + 1, mean=0, sd=1).alarm for row in x]
        assert None not in shifted and np.mean(shifted) < 15


def test_score_drift_by_hand():
    distance, p = score_drift([1.0, 2, 3, 4], [3.5, 5, 6])
    assert distance == pytest.approx(0.75) and 0 < p < 1
    assert score_drift([1.0, 2, 3], [1.0, 2, 3]) == (0.0, 1.0)


# ---- money ----------------------------------------------------------------------------------------------------------

PILOT = Economics(
    lot=500,
    lots=20,
    n=50,
    c=1,
    defect_rate=0.02,
    rule_yield=0.8,
    preference_yield=0.5,
    c_generate=2.0,
    c_rule=0.1,
    c_score=0.5,
    c_human=10.0,
    escape_loss=300.0,
    c_manual=80.0,
    fixed=100_000.0,
)


def test_cost_and_return_by_hand():
    pa = 0.98**50 + 50 * 0.02 * 0.98**49
    terms = cost_terms(PILOT)
    assert terms["make"] == pytest.approx((2.0 + 0.1 + 0.8 * 0.5) / 0.4)
    assert terms["inspect"] == pytest.approx(10 * (50 + (1 - pa) * 450) / 500)
    assert terms["escape"] == pytest.approx(300 * 0.02 * pa * 0.9)
    assert cost_per_image(PILOT) == pytest.approx(sum(terms.values()))
    assert roi(PILOT) == pytest.approx((10_000 * (80 - sum(terms.values())) - 100_000) / 100_000)
    nobody = dataclasses.replace(PILOT, n=0)
    assert cost_terms(nobody) == {"make": terms["make"], "inspect": 0.0, "escape": 6.0}
    everyone = dataclasses.replace(PILOT, n=500)
    assert cost_terms(everyone)["inspect"] == 10.0 and cost_terms(everyone)["escape"] == 0.0


def test_cost_of_the_plan_is_ati_and_aoq():
    terms, plan = cost_terms(PILOT), {"n": 50, "c": 1, "lot": 500}
    assert terms["inspect"] == pytest.approx(10 * average_total_inspection(0.02, **plan) / 500)
    assert terms["escape"] == pytest.approx(300 * average_outgoing_quality(0.02, **plan))


def test_the_tornado_is_sorted_and_verification_decides():
    ranges = {
        "c_generate": (1.0, 4.0),
        "defect_rate": (0.005, 0.08),
        "escape_loss": (100.0, 1000.0),
        "c_human": (5.0, 30.0),
        "n": (20, 125),
    }
    bars = tornado(PILOT, ranges)
    assert [bar.width for bar in bars] == sorted((bar.width for bar in bars), reverse=True)
    assert {bar.name for bar in bars} == set(ranges) and bars[-1].name in {"n", "c_generate"}
    one = next(bar for bar in bars if bar.name == "c_human")
    assert one.roi_low == pytest.approx(roi(dataclasses.replace(PILOT, c_human=5.0)))
    with pytest.raises(ValueError, match="'price' is no assumption"):
        tornado(PILOT, {"price": (0, 1)})
    with pytest.raises(ValueError, match="lies outside its own range"):
        tornado(PILOT, {"c_human": (20, 30)})


def test_all_or_none():
    assert all_or_none(0.05, c_human=10, escape_loss=300) == "all"
    assert all_or_none(0.03, c_human=10, escape_loss=300) == "none"


def test_for_a_known_rate_no_sample_beats_all_or_none():
    """Deming: a prior that is almost a point makes every sample in between cost more than the better end."""
    for rate, best in ((0.01, 0), (0.2, 200)):
        prices = {"a": rate * 1e7, "b": (1 - rate) * 1e7, "lot": 200, "c_human": 1.0, "escape_loss": 20.0}
        costs = [plan_cost(n, **prices) for n in range(201)]
        assert min(costs) == pytest.approx(costs[best], rel=1e-6)


def test_cost_of_a_sample_by_hand():
    # uniform prior, lot of 3, one look costs 1, an escape 3: look at one
    prices = {"a": 1.0, "b": 1.0, "lot": 3, "c_human": 1.0, "escape_loss": 3.0}
    # good (1/2): mean 1/3, ship 1 or sort 1 per picture; bad: mean 2/3, sort
    assert plan_cost(0, **prices) == pytest.approx(3 * min(1.5, 1))
    assert plan_cost(1, **prices) == pytest.approx(1 + 2 * (0.5 * 1 + 0.5 * 1))
    assert plan_cost(3, **prices) == 3.0
    n, cost = best_sample_size(**prices | {"lot": 60, "escape_loss": 6.0})
    assert cost == min(plan_cost(k, **prices | {"lot": 60, "escape_loss": 6.0}) for k in range(61))
    assert 0 < n < 60 and cost < 60


def test_value_of_one_more_look():
    prices = {"rest": 100, "c_human": 1.0, "escape_loss": 4.0}
    # uniform: m = 1/2, sorting costs 1 each; one good look: m = 1/3, ship 4/3 > 1: it turns nothing but is a look
    assert value_of_one_more(a=1, b=1, **prices) == pytest.approx(1.0)
    # a = 1, b = 3: m = 1/4, a tie; a good look (3/4) gives m = 1/5, ship 0.8
    assert value_of_one_more(a=1, b=3, **prices) == pytest.approx(100 - 99 * (0.75 * 0.8 + 0.25 * 1))


@pytest.mark.parametrize(("n", "images"), [(4, 2533), (8, 1086), (16, 507)])
def test_train_or_search(n, images):
    assert round(break_even_images(76_000, n=n, steps=10)) == images
    paid = break_even_images(76_000, n=n, steps=10, cost_per_nfe=0.5, saved_per_image=15.0 * (n - 1))
    assert paid == pytest.approx(38_000 / (20 * (n - 1)))


def test_training_that_saves_nothing_never_pays():
    assert break_even_images(76_000, n=1, steps=10) == math.inf
    assert break_even_images(76_000, n=2, steps=10, saved_per_image=-10) == math.inf
