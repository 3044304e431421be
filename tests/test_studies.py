"""Recorded studies: what is written, what counts, what is refused, and how numbers become a verdict."""

import ast
import dataclasses
import errno
import importlib
import inspect
import json
import math
import os
import queue
import time
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.studies import (
    Recorded,
    Study,
    StudyError,
    decide,
    estimate,
    fits,
    gain,
    level,
    load_study,
    read_record,
    studies,
    win_share,
)
from labkit.studies import store as store_module
from labkit.studies.estimate import Estimate, on_new_seeds
from labkit.studies.recorder import _worker, adopt, run, verify
from labkit.studies.store import compare, merge, read_planned, recording, status, write_record


def unit(arm, seed, sizes):
    """Numbers that differ by arm, seed and prompt, and one number for the whole unit."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=sizes.prompts) + {"base": 0.0, "better": 0.5, "same": 0.001}[arm]
    return {"score": scores, "total": float(scores.sum())}


STUDY = Study(
    "99", unit, ("base", "better", "same"), (0, 1, 2), {"prompts": 16}, cheap="base", tolerance={"score": 0.1}
)
quiet = {"report": lambda line: None}


def test_a_study_records_every_unit_once_and_resumes(tmp_path):
    asked = []

    def counting(arm, seed, sizes):
        asked.append((arm, seed))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return unit(arm, seed, sizes)

    stopped = dataclasses.replace(STUDY, unit=counting)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, folder=tmp_path, **quiet)
    assert len(read_record("99", tmp_path).facts) == 4
    assert run(stopped, folder=tmp_path, **quiet) == 0
    assert asked == [*STUDY.planned[:5], *STUDY.planned[4:]]  # the interrupted unit again, the finished ones not
    record = read_record("99", tmp_path)
    for (arm, seed), values in record.values.items():
        wanted = unit(arm, seed, SimpleNamespace(prompts=16))
        assert np.array_equal(values["score"], np.float32(wanted["score"]))
        assert np.array_equal(values["total"], [np.float32(wanted["total"])])


def test_the_record_says_how_the_numbers_came_to_be(tmp_path):
    run(STUDY, folder=tmp_path, arms=("base",), **quiet)
    data = json.loads((tmp_path / "l99.json").read_text("utf-8"))
    assert data["code"] == STUDY.code()
    assert data["sizes"] == {"prompts": 16}
    fact = data["units"][0]
    assert (fact["arm"], fact["seed"], fact["device"]) == ("base", 0, "cpu")
    assert {"digest", "cpu_seconds", "at", "machine", "versions"} <= set(fact)


def test_the_parquet_file_is_in_long_form(tmp_path):
    import pyarrow.parquet as pq

    run(STUDY, folder=tmp_path, arms=("better",), **quiet)
    table = pq.read_table(tmp_path / "l99.parquet")
    assert table.column_names == ["study", "arm", "seed", "prompt", "metric", "value"]
    assert table.num_rows == 3 * 17
    rows = [row for row in table.to_pylist() if row["metric"] == "total"]
    assert [row["prompt"] for row in rows] == [-1, -1, -1]


def test_status_counts_recorded_stale_and_missing(tmp_path):
    run(STUDY, folder=tmp_path, arms=("base",), **quiet)
    found = status(STUDY, read_record("99", tmp_path))
    assert (found["recorded"], found["stale"], found["missing"]) == (3, 0, 6)
    other = dataclasses.replace(STUDY, sizes={"prompts": 17})
    found = status(other, read_record("99", tmp_path))
    assert (found["recorded"], found["stale"], found["changed"]) == (0, 3, ["sizes"])


def test_more_seeds_and_other_estimates_make_nothing_stale(tmp_path):
    run(STUDY, folder=tmp_path, **quiet)
    more = dataclasses.replace(STUDY, seeds=(0, 1, 2, 3), estimates={"x": level("score", "base")})
    assert run(more, folder=tmp_path, **quiet) == 0
    assert len(read_record("99", tmp_path).facts) == 12


def test_further_seeds_of_some_arms_come_last_and_make_nothing_stale(tmp_path):
    run(STUDY, folder=tmp_path, **quiet)
    more = dataclasses.replace(STUDY, more={"base": (7, 5)})
    assert more.planned == [*STUDY.planned, ("base", 5), ("base", 7)]
    assert status(more, read_record("99", tmp_path))["missing"] == 2
    assert run(more, folder=tmp_path, **quiet) == 0
    recorded = Recorded(read_record("99", tmp_path))
    assert recorded.seeds("base") == [0, 1, 2, 5, 7] and recorded.seeds("base", "better") == [0, 1, 2]
    fresh = on_new_seeds(level("score", "base"), 5)(recorded)
    assert (fresh == recorded.values("score", "base", seeds=[5, 7])).all()
    with pytest.raises(StudyError, match="must differ"):
        dataclasses.replace(STUDY, more={"base": (2,)})
    with pytest.raises(StudyError, match="'none'"):
        dataclasses.replace(STUDY, more={"none": (9,)})


def test_units_of_other_conditions_are_refused_until_dropped(tmp_path, monkeypatch):
    run(STUDY, folder=tmp_path, arms=("base",), **quiet)
    monkeypatch.setattr(Study, "code", lambda self: "0" * 16)
    with pytest.raises(StudyError, match="recorded with other code.*--anew"):
        run(STUDY, folder=tmp_path, **quiet)
    assert run(STUDY, folder=tmp_path, anew=True, **quiet) == 0
    assert {fact["digest"] for fact in read_record("99", tmp_path).facts.values()}


def test_rewritten_code_that_computes_the_same_is_adopted_with_a_trace(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    run(STUDY, folder=tmp_path, **quiet)
    before = read_record("99", tmp_path)
    assert adopt(STUDY, folder=tmp_path, rng=rng, **quiet) == {}
    assert read_record("99", tmp_path).adopted == []  # nothing had changed
    old = STUDY.code()
    monkeypatch.setattr(Study, "code", lambda self: "0" * 16)
    with pytest.raises(StudyError, match="adopt 99` keeps them.*--anew"):
        run(STUDY, folder=tmp_path, **quiet)
    asked = []
    counting = dataclasses.replace(STUDY, unit=lambda *unit_of: (asked.append(unit_of[:2]), unit(*unit_of))[1])
    assert adopt(counting, folder=tmp_path, rng=rng, **quiet) == {}
    record = read_record("99", tmp_path)
    assert sorted(arm for arm, _ in asked) == ["base", "better", "same"]
    assert record.conditions["code"] == "0" * 16 and record.facts == before.facts
    assert [(fact["from"], fact["computed again"]) for fact in record.adopted] == [(old, [list(key) for key in asked])]
    assert run(STUDY, folder=tmp_path, **quiet) == 0
    assert len(read_record("99", tmp_path).adopted) == 1


def test_one_arm_that_differs_and_nothing_is_adopted(tmp_path, monkeypatch):
    run(STUDY, folder=tmp_path, **quiet)
    content = (tmp_path / "l99.json").read_bytes()
    monkeypatch.setattr(Study, "code", lambda self: "0" * 16)
    shifted = dataclasses.replace(
        STUDY, unit=lambda arm, seed, sizes: {k: v + 0.2 * (arm == "same") for k, v in unit(arm, seed, sizes).items()}
    )
    found = adopt(shifted, folder=tmp_path, rng=np.random.default_rng(0), **quiet)
    assert [arm for arm, _ in found] == ["same"] and "means differ by 0.2" in found.popitem()[1][0]
    assert (tmp_path / "l99.json").read_bytes() == content
    with pytest.raises(StudyError, match="other code and sizes"):
        adopt(dataclasses.replace(STUDY, sizes={"prompts": 17}), folder=tmp_path, rng=np.random.default_rng(0))


def test_other_weights_are_other_conditions(tmp_path, monkeypatch):
    tables = [{"m/a.safetensors": "1", "m/README.md": "1"}]
    monkeypatch.setattr(store_module, "read_checksums", lambda: tables[-1])
    study = dataclasses.replace(STUDY, weights=("m",))
    run(study, folder=tmp_path, arms=("base",), **quiet)
    tables.append({"m/a.safetensors": "1", "m/README.md": "2"})  # a card is no weight
    assert status(study, read_record("99", tmp_path))["stale"] == 0
    tables.append({"m/a.safetensors": "2", "m/README.md": "2"})
    with pytest.raises(StudyError, match="other weights"):
        run(study, folder=tmp_path, **quiet)
    with pytest.raises(StudyError, match="does not list"):
        run(dataclasses.replace(STUDY, weights=("n",)), folder=tmp_path, **quiet)


def test_the_hash_of_the_code_ignores_comments_docstrings_and_the_plan():
    from labkit.studies import study as module

    def text(source):
        return module.ast.dump(module.ast.parse(source))

    made = {}
    for name, source in {
        "first": 'def f(x):\n    """One."""\n    return x + 1  # a\nSTUDY = 1\ndef estimate_a(r):\n    return 1\n',
        "second": 'def f(x):\n    """Two."""\n\n    return x + 1\nLATER = {}\ndef estimate_a(r):\n    return 2\n',
        "third": "def f(x):\n    return x + 2\n",
    }.items():
        loaded = SimpleNamespace()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.inspect, "getsource", lambda _, source=source: source)
            made[name] = module.meaning(loaded)
    assert made["first"] == made["second"] == text("def f(x):\n    return x + 1\n")
    assert made["third"] != made["first"]


def test_a_unit_whose_numbers_were_changed_does_not_count(tmp_path):
    run(STUDY, folder=tmp_path, **quiet)
    record = read_record("99", tmp_path)
    record.values["base", 1]["score"][3] += 1
    write_record(record, tmp_path)
    again = read_record("99", tmp_path)
    assert again.damaged == [("base", 1)]
    assert ("base", 1) not in again.values
    assert run(STUDY, folder=tmp_path, **quiet) == 0
    assert not read_record("99", tmp_path).damaged


def test_a_stop_between_the_two_files_loses_one_unit(tmp_path):
    run(STUDY, folder=tmp_path, arms=("base",), **quiet)
    before = (tmp_path / "l99.json").read_bytes()
    run(STUDY, folder=tmp_path, arms=("better",), **quiet)
    (tmp_path / "l99.json").write_bytes(before)
    assert {arm for arm, _ in read_record("99", tmp_path).facts} == {"base"}
    assert run(STUDY, folder=tmp_path, **quiet) == 0


@pytest.mark.parametrize("cut", ["l99.parquet", "l99.json"])
def test_a_file_cut_off_is_named_in_one_line(tmp_path, cut):
    run(STUDY, folder=tmp_path, arms=("base",), **quiet)
    path = tmp_path / cut
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StudyError, match=f"{cut} (is damaged|cannot be read).*restore it") as caught:
        read_record("99", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_second_recorder_is_refused(tmp_path):
    with recording("99", tmp_path), pytest.raises(StudyError, match="by another process"):
        run(STUDY, folder=tmp_path, **quiet)


def test_no_unit_is_begun_after_the_time(tmp_path):
    def slow(arm, seed, sizes):
        time.sleep(0.05)
        return unit(arm, seed, sizes)

    assert run(dataclasses.replace(STUDY, unit=slow), folder=tmp_path, hours=0.12 / 3600, **quiet) > 3


def test_another_machines_units_are_merged_if_the_conditions_agree(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    run(STUDY, folder=here, arms=("base",), **quiet)
    run(STUDY, folder=there, arms=("base", "better"), **quiet)
    assert merge(STUDY, there, here) == 3
    assert {arm for arm, _ in read_record("99", here).facts} == {"base", "better"}
    with pytest.raises(StudyError, match="holds no units"):
        merge(STUDY, tmp_path / "none", here)
    data = json.loads((there / "l99.json").read_text("utf-8"))
    (there / "l99.json").write_text(json.dumps(data | {"code": "f" * 16}), encoding="utf-8")
    with pytest.raises(StudyError, match="other code"):
        merge(STUDY, there, here)


def test_merging_refuses_units_that_disagree(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    run(STUDY, folder=here, arms=("base",), **quiet)
    run(dataclasses.replace(STUDY, unit=shifted), folder=there, arms=("base",), **quiet)
    data = json.loads((there / "l99.json").read_text("utf-8"))
    (there / "l99.json").write_text(json.dumps(data | {"code": STUDY.code()}), encoding="utf-8")
    with pytest.raises(StudyError, match="unit base/. differs: score: means differ by 0.2"):
        merge(STUDY, there, here)


def shifted(arm, seed, sizes):
    return {"score": unit(arm, seed, sizes)["score"] + 0.2, "total": 1.0}


def test_verification_computes_a_unit_again(tmp_path):
    run(STUDY, folder=tmp_path, **quiet)
    key, lines = verify(STUDY, folder=tmp_path, arm="base", rng=np.random.default_rng(0))
    assert key[0] == "base"
    assert lines == []
    wrong = dataclasses.replace(STUDY, unit=shifted)
    lines = verify(wrong, folder=tmp_path, rng=np.random.default_rng(0))[1]
    assert len(lines) == 2
    with pytest.raises(StudyError, match="no recorded unit"):
        verify(STUDY, folder=tmp_path / "none", rng=np.random.default_rng(0))


def test_small_differences_of_rounding_agree_and_missing_metrics_do_not():
    first = {"score": np.float32([1, 2]), "total": np.float32([3])}
    near = {"score": np.float32([1.05, 2.05]), "total": np.float32([3])}
    assert compare(STUDY, first, near) == []
    assert compare(STUDY, first, {"score": first["score"]}) == ["total: 1 numbers against 0"]
    assert compare(STUDY, first, {**first, "total": np.float32([3.01])}) == ["total: means differ by 0.01, allowed 0"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: STUDY.run("worse", 0), "no arm 'worse': expected one of base"),
        (lambda: STUDY.run("base", 0, prompt=3), "no size 'prompt': expected some of prompts"),
        (lambda: dataclasses.replace(STUDY, unit=lambda *_: {}).run("base", 0), "expected numbers"),
        (lambda: dataclasses.replace(STUDY, arms=("a", "a")), "must be distinct"),
        (lambda: dataclasses.replace(STUDY, cheap="c"), "cheap is 'c'"),
        (lambda: load_study("98"), "lesson 98 has no study"),
    ],
)
def test_wrong_requests_get_one_line(call, message):
    with pytest.raises(StudyError, match=message):
        call()


# ---- numbers to verdicts -----------------------------------------------------------------------------------------


def test_contrasts_pair_seeds_and_prompts(tmp_path):
    run(STUDY, folder=tmp_path, **quiet)
    record = read_record("99", tmp_path)
    del record.values["better", 1], record.facts["better", 1]
    recorded = Recorded(record)
    assert recorded.seeds("base", "better") == [0, 2]
    assert np.allclose(gain("score", "better", "base")(recorded), 0.5, atol=1e-6)
    assert gain("score", "better", "base")(recorded).shape == (2, 16)
    assert (win_share("score", "same", "base", margin=0.01)(recorded) == 0.5).all()
    assert (win_share("score", "base", "better")(recorded) == 0).all()
    with pytest.raises(StudyError, match="no metric 'scores': expected one of score, total"):
        level("scores", "base")(recorded)


def test_the_estimate_by_hand():
    """Two seeds, three prompts: A = 2/2, B = 7/3, residuals 0."""
    values = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 7.0]])
    found = estimate(values)
    a, b = 1.0, 7 / 3
    assert found.value == 3
    assert found.standard_error == pytest.approx(math.sqrt(a + b))
    freedom = (a + b) ** 2 / (a**2 / 1 + b**2 / 2)
    from scipy import stats

    half = stats.t.ppf(0.975, freedom) * math.sqrt(a + b)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    assert found.per_seed == (2, 4)
    assert found.prompts == 3


def test_the_interval_covers_the_mean_where_seeds_and_prompts_are_both_random():
    rng, hits, n = np.random.default_rng(0), 0, 1500
    for _ in range(n):
        values = 0.3 * rng.normal(size=(5, 1)) + 1.0 * rng.normal(size=(1, 40)) + 2.0 * rng.normal(size=(5, 40))
        found = estimate(values)
        hits += found.low < 0 < found.high
    assert 0.935 < hits / n < 0.985, hits / n


@pytest.mark.parametrize(
    ("interval", "region", "smallest", "verdict"),
    [
        ((0.03, 0.09), (0, math.inf), 0.02, "reproduced"),
        ((0.001, 0.09), (0, math.inf), 0.02, "reproduced"),
        ((-0.09, -0.03), (0, math.inf), 0.02, "contradicted"),
        ((-0.01, 0.015), (0, math.inf), 0.02, "equivalent"),
        ((0.001, 0.015), (0, math.inf), 0.02, "equivalent"),  # real, but smaller than what matters
        ((-0.01, 0.03), (0, math.inf), 0.02, "undecided"),
        ((-0.01, 0.015), (0, math.inf), 0.0, "undecided"),
        ((-0.09, -0.03), (-math.inf, 0), 0.02, "reproduced"),
        ((0.45, 0.48), (-math.inf, 0.5), 0.01, "reproduced"),
        ((-0.01, 0.02), (-0.03, math.inf), 0.0, "reproduced"),  # not worse than 0.03
        ((0.3, 0.4), (0.2, 0.6), 0.0, "reproduced"),
        ((0.7, 0.8), (0.2, 0.6), 0.0, "contradicted"),
        ((0.5, 0.7), (0.2, 0.6), 0.0, "undecided"),
    ],
)
def test_decisions(interval, region, smallest, verdict):
    low, high = interval
    found = Estimate((low + high) / 2, low, high, (high - low) / 4, (0.0, 0.0, 0.0), 10)
    assert decide(found, low=region[0], high=region[1], smallest=smallest).verdict == verdict


def test_what_is_undecided_says_how_many_seeds_it_would_take():
    found = Estimate(0.02, -0.02, 0.06, 0.02, (0.02,) * 4, 10)
    decision = decide(found, low=0, high=math.inf, smallest=0.0)
    # One seed has the standard error 0.04; t(n - 1) 0.04 / sqrt(n) <= 0.02 holds from n = 18 on (2.110 / 4.243).
    assert decision.seeds_needed == 18
    few = Estimate(0.02, -0.037, 0.077, 0.0132, (0.02,) * 3, 10)  # three seeds: t is 4.30, at many 1.96
    assert decide(few, low=0, high=math.inf, smallest=0.0).seeds_needed == 8


def test_where_the_prompts_leave_the_interval_wide_no_number_of_seeds_helps():
    rng = np.random.default_rng(0)
    same = 0.03 + rng.normal(0, 0.3, 16) + rng.normal(0, 1e-4, (5, 16))  # every seed repeats what the prompts say
    found = estimate(same)
    assert found.prompt_error == pytest.approx(found.standard_error, rel=1e-3)
    decision = decide(found, low=0, high=math.inf, smallest=0.02)
    assert decision.seeds_needed is None
    # prompts may take half of the allowed variance: 1.96 spread / sqrt(n) <= half / sqrt(2), where half is the distance
    # to the nearest border between verdicts
    spread, target = same.mean(0).std(ddof=1), min(abs(found.value - end) for end in (-0.02, 0.0, 0.02))
    second = sorted(abs(found.value - end) for end in (-0.02, 0.0, 0.02))[1]
    needed = 2 * (1.96 * spread / max(target, second / 2)) ** 2
    assert decision.prompts_needed == pytest.approx(needed, rel=1 / 12)
    own = estimate(0.03 + rng.normal(0, 0.3, (5, 16)))  # every picture has its own chance
    assert own.prompt_error < 0.5 * own.standard_error


def test_an_estimate_on_the_border_has_no_number_of_seeds():
    found = Estimate(0.0, -0.04, 0.04, 0.02, (0.0,) * 4, 10)
    assert decide(found, low=0, high=math.inf, smallest=0.0).seeds_needed is None
    assert decide(found, low=0, high=math.inf, smallest=0.0).prompts_needed is None


def test_a_live_run_fits_what_new_seeds_would_give():
    found = estimate(np.array([[0.1], [0.2], [0.3], [0.2]]))
    assert fits(0.35, 0.0, found)
    assert not fits(0.6, 0.0, found)
    assert fits(0.6, 0.2, found)  # the learner's own run is small and uncertain


def test_a_record_is_read_once_until_its_files_change(tmp_path, monkeypatch):
    """A lesson asks for the evidence of each of its claims."""
    from labkit.course import evidence

    reads, read = [], evidence._read
    monkeypatch.setattr(store_module, "folder_of_studies", lambda: tmp_path)
    monkeypatch.setattr("labkit.studies.folder_of_studies", lambda: tmp_path)
    monkeypatch.setattr(store_module, "read_record", lambda *where: reads.append(where) or read_record(*where))
    monkeypatch.setattr("labkit.studies.load_study", lambda lesson: STUDY)
    read.cache_clear()
    assert not evidence._record("99").facts
    run(dataclasses.replace(STUDY, seeds=(0,)), folder=tmp_path, **quiet)
    assert len(evidence._record("99").facts) == len(evidence._record("99").facts) == 3
    run(STUDY, folder=tmp_path, **quiet)
    assert len(evidence._record("99").facts) == 9
    assert reads == [("99", tmp_path)] * 3
    read.cache_clear()


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_records_in_several_processes_what_one_process_gives(tmp_path, monkeypatch):
    """A study that another process can import: lesson 02's toy, whose units take milliseconds."""
    study = dataclasses.replace(load_study("02"), seeds=(0, 1, 2, 3), more={})
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, jobs in ((one, 1), (two, 2)):
        folder.mkdir()
        assert run(study, folder=folder, arms=("toy",), jobs=jobs, report=lambda line: None) == 0
    first, second = (read_record("02", folder).values for folder in (one, two))
    assert list(first) and first.keys() == second.keys() == {("toy", seed) for seed in range(4)}
    for key, metrics in first.items():
        assert metrics.keys() == second[key].keys()
        assert all(np.array_equal(metrics[name], second[key][name]) for name in metrics)


def test_undecided_claims_of_a_lesson_name_the_seeds_that_they_need():
    from labkit.course.claim_file import declared
    from labkit.course.evidence import evidence, undecided

    for lesson in ("06", "07"):
        within, beyond = undecided(lesson)
        known = {name: evidence(claim) for name, claim in declared(lesson).items()}
        open_ones = [name for name, one in known.items() if one is not None and one.verdict == "undecided"]
        assert sorted(line.split()[0] for line in within + beyond) == sorted(n.split(".", 1)[1] for n in open_ones)
        assert all("seeds, " in line and line.endswith("CPU hours)") for line in within)
        assert all(line.endswith(("CPU hours)", " prompts)")) for line in beyond)


def test_what_a_verdict_takes_is_the_missing_seeds_of_the_arms_that_it_compares(monkeypatch):
    """Two arms of 600 and 1,200 CPU seconds a seed; four seeds there, about 18 needed: 14 times half an hour."""
    from labkit.course import evidence as module
    from labkit.course.claim_file import declared

    claim = next(one for one in declared("06").values() if not one.too_far and one.region.lo == 0)
    numbers = {("a", s): {"x": np.float32([v])} for s, v in enumerate((0.3, -0.2, 0.25, 0.1))}
    numbers |= {("b", s): {"x": np.float32([0.0])} for s in range(4)} | {("c", 0): {"x": np.float32([0.0])}}
    seconds = {"a": 600, "b": 1200, "c": 9000}
    record = store_module.Record("06", {}, {key: {"cpu_seconds": seconds[key[0]]} for key in numbers}, numbers)
    study = dataclasses.replace(load_study("06"), estimates={claim.id.split(".", 1)[1]: gain("x", "a", "b")})
    monkeypatch.setattr(module, "_record", lambda lesson, folder: record)
    monkeypatch.setattr("labkit.studies.load_study", lambda lesson: study)
    known = module.evidence(claim)
    assert known.verdict == "undecided" and known.cpu_hours == pytest.approx((4 * 1800 + 9000) / 3600)
    assert known.hours_needed == pytest.approx((known.seeds_needed - 4) * 1800 / 3600)
    assert known.beyond_budget  # 4.5 hours are spent
    assert not dataclasses.replace(known, cpu_hours=3.9).beyond_budget  # though a verdict takes more than is left


def test_a_claim_changed_after_a_look_at_the_record_says_so():
    from labkit.course.claim_file import declared
    from labkit.course.evidence import evidence, evidence_lines
    from labkit.course.i18n import t

    claims = declared("08")
    marked = {name for name, claim in claims.items() if t("claim.explored") in evidence_lines(claim, evidence(claim))}
    assert marked == {name for name, claim in claims.items() if claim.explored} and "l08.bon_law" in marked
    assert "l08.draft_first" not in marked


def test_a_smallest_effect_that_was_chosen_after_a_look_is_not_called_declared_before():
    from labkit.course.claim_file import declared
    from labkit.course.evidence import evidence, evidence_lines

    shown = {
        name: [line for line in evidence_lines(claim, evidence(claim)) if line.startswith("Smallest effect")]
        for lesson in ("05", "06")
        for name, claim in declared(lesson).items()
        if claim.smallest and evidence(claim)
    }
    assert shown["l05.dpo_beats_sft"] == ["Smallest effect that matters, declared before the run: 0.02"]
    assert shown["l06.leap_collapses"] == [
        "Smallest effect that matters, chosen when 1 of the seeds had been seen: 0.02"
    ]


@pytest.mark.parametrize("lesson", studies())
def test_a_study_that_measures_with_another_ones_functions_hashes_them(lesson):
    """Else the other one is edited, this one's numbers change, and its record still counts."""
    study = load_study(lesson)
    hashed = {study.unit.__module__, *study.modules, *study.later.values()}
    plumbing = {f"labkit.studies.{name}" for name in ("study", "store", "estimate")}
    for name in hashed:
        tree = ast.parse(inspect.getsource(importlib.import_module(name)))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("labkit.studies"):
                inside = node.module == "labkit.studies"
                used = {f"labkit.studies.{one.name}" for one in node.names} if inside else {node.module}
                assert used <= hashed | plumbing, f"{name} measures with {sorted(used - hashed - plumbing)}"


def test_weights_that_are_newly_listed_are_adopted_changed_ones_are_not(tmp_path, monkeypatch):
    table = {"m/a.safetensors": "1", "n/b.safetensors": "2"}
    monkeypatch.setattr(store_module, "read_checksums", lambda: table)
    once = dataclasses.replace(STUDY, weights=("m",))
    now = dataclasses.replace(STUDY, weights=("m", "n"))
    run(once, folder=tmp_path, **quiet)
    assert status(now, read_record("99", tmp_path))["stale"]
    assert adopt(now, folder=tmp_path, rng=np.random.default_rng(0), **quiet) == {}
    assert not status(now, read_record("99", tmp_path))["stale"]
    table["n/b.safetensors"] = "3"
    with pytest.raises(StudyError, match="other weights"):
        adopt(now, folder=tmp_path, rng=np.random.default_rng(0), **quiet)


def test_what_is_edited_while_units_are_adopted_is_not_certified(tmp_path, monkeypatch):
    run(STUDY, folder=tmp_path, **quiet)
    before = (tmp_path / "l99.json").read_bytes()
    codes = iter(["1" * 16] * 3 + ["2" * 16] * 99)
    monkeypatch.setattr(Study, "code", lambda self: next(codes))
    with pytest.raises(StudyError, match="was edited while"):
        adopt(STUDY, folder=tmp_path, rng=np.random.default_rng(0), **quiet)
    assert (tmp_path / "l99.json").read_bytes() == before


def test_weights_that_are_changed_meanwhile_are_noticed(tmp_path, monkeypatch):
    table = {"m/a.safetensors": "1"}
    monkeypatch.setattr(store_module, "read_checksums", lambda: table)

    def swapping(arm, seed, sizes):
        if (arm, seed) == ("better", 0):
            table["m/a.safetensors"] = "2"
        return unit(arm, seed, sizes)

    study = dataclasses.replace(STUDY, weights=("m",), unit=swapping)
    with pytest.raises(StudyError, match="the weights of study 99 were changed while"):
        run(study, folder=tmp_path, **quiet)
    assert list(read_record("99", tmp_path).facts) == [("base", 0)]


def test_a_process_that_has_imported_other_sizes_computes_nothing():
    results = queue.SimpleQueue()
    loaded = load_study("09").fingerprint()
    _worker("09", [("looks", 0)], None, results, os.getppid(), (*loaded[:2], '{"walks": 4}'))
    key, message, _ = results.get()
    assert key == ("looks", 0) and "was edited while" in message and results.empty()


def test_units_that_are_not_planned_are_no_evidence(tmp_path):
    run(STUDY, folder=tmp_path, **quiet)
    fewer = dataclasses.replace(STUDY, seeds=(0, 1))
    found = status(fewer, read_record("99", tmp_path))
    assert (found["unplanned"], found["recorded"]) == (3, 6)
    assert {seed for _, seed in read_planned(fewer, tmp_path).facts} == {0, 1}
    assert {seed for _, seed in read_record("99", tmp_path).facts} == {0, 1, 2}  # nothing is lost unasked
    said = []
    run(fewer, folder=tmp_path, anew=True, report=said.append)
    assert "study 99: 3 units dropped (base, better, same)" in said
    assert status(fewer, read_record("99", tmp_path))["unplanned"] == 0


def test_units_of_an_arm_that_is_planned_no_more_do_not_stand_in_the_way_of_the_others(tmp_path, monkeypatch):
    run(STUDY, folder=tmp_path, **quiet)
    monkeypatch.setattr(Study, "code", lambda self: "0" * 16)
    fewer = dataclasses.replace(STUDY, arms=("base", "better"))
    assert adopt(fewer, folder=tmp_path, rng=np.random.default_rng(0), **quiet) == {}
    assert status(fewer, read_record("99", tmp_path))["stale"] == 0
    assert verify(fewer, folder=tmp_path, rng=np.random.default_rng(0))[1] == []


def test_an_arm_of_a_later_round_that_becomes_one_of_the_first_can_be_adopted(tmp_path):
    run(STUDY, folder=tmp_path, **quiet)
    record = read_record("99", tmp_path)
    record.facts["same", 0]["code"] = "abc"
    write_record(record, tmp_path)
    assert status(STUDY, read_record("99", tmp_path))["stale"] == 1
    assert adopt(STUDY, folder=tmp_path, rng=np.random.default_rng(0), **quiet) == {}
    assert status(STUDY, read_record("99", tmp_path))["stale"] == 0


def test_a_newly_listed_model_is_no_reason_to_drop_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "read_checksums", lambda: {"m/a.safetensors": "1"})
    run(STUDY, folder=tmp_path, **quiet)
    with pytest.raises(StudyError, match=f"--folder {tmp_path} adopt 99` keeps them"):
        run(dataclasses.replace(STUDY, weights=("m",)), folder=tmp_path, **quiet)


def test_other_draws_around_the_same_mean_do_not_agree():
    first, second = (np.random.default_rng(seed).normal(size=4000).astype(np.float32) for seed in (0, 1))
    second += first.mean() - second.mean()
    assert compare(STUDY, {"score": first}, {"score": first + np.float32(0.05)}) == []
    assert "numbers differ by 1.1" in compare(STUDY, {"score": first}, {"score": second})[0]


def test_a_unit_that_fails_and_a_full_disk_are_one_line(tmp_path, monkeypatch):
    failing = dataclasses.replace(STUDY, unit=lambda arm, seed, sizes: {"score": 1 / seed})
    with pytest.raises(StudyError, match="unit base/0 failed: ZeroDivisionError: division by zero"):
        run(failing, folder=tmp_path, **quiet)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "write_atomically", full)
    with pytest.raises(StudyError, match="cannot be written .No space left on device.: make room"):
        run(STUDY, folder=tmp_path, **quiet)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"lesson": "05"}, "another lesson"),
        ({"weights": None}, "weights or adopted"),
        ({"adopted": None}, "weights or adopted"),
        ({"cpu_seconds": "1.5"}, "<="),
        ({"cpu_seconds": float("nan")}, "facts of unit base/0"),
        ({"seed": 0.5}, "facts of unit base/0"),
    ],
)
def test_a_record_edited_by_hand_is_named(tmp_path, change, names):
    run(STUDY, folder=tmp_path, **quiet)
    file = tmp_path / "l99.json"
    data = json.loads(file.read_text("utf-8"))
    target = data["units"][0] if set(change) & {"cpu_seconds", "seed"} else data
    file.write_text(
        json.dumps(data | change if target is data else {**data, "units": [target | change, *data["units"][1:]]})
    )
    with pytest.raises(StudyError, match=rf"l99.json cannot be read .*{names}.*restore it"):
        read_record("99", tmp_path)


def test_evidence_that_no_claim_declares_is_a_difference(monkeypatch):
    from labkit.course import evidence as module

    claims = dict(module.declared("05"))
    assert module.changed_verdicts("05") == []
    claims["l05.judge_is_pleased"] = claims["l05.judge_is_pleased"].model_copy(update={"verdict": None})
    del claims["l05.dpo_beats_base"]
    monkeypatch.setattr(module, "declared", lambda lesson: claims)
    assert module.changed_verdicts("05") == [
        "l05.dpo_beats_base: the study estimates it, and claims.yaml declares no such claim",
        "l05.judge_is_pleased: declares no verdict, the recorded study says reproduced: declare it",
    ]


def test_code_has_the_same_hash_under_every_python():
    """Later versions give functions `type_params`, and format specifiers an empty string at their end."""
    import ast

    from labkit.studies.study import _text

    source = "def f(x: int, *, y=None) -> str:\n    return f'{x:>{y}} and {x!r}'\n\nclass C(A, k=1):\n    a: int = 0\n"
    wanted = _text(ast.parse(source))
    assert ("type_params" in ast.FunctionDef._fields) or wanted == ast.dump(ast.parse(source))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node._fields = (*dict.fromkeys((*type(node)._fields, "type_params")),)
            node.type_params = []
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            node.format_spec.values.append(ast.Constant(value=""))
    assert _text(tree) == wanted
    assert _text(ast.parse(source.replace("a: int = 0", "a: int = 1"))) != wanted


def test_code_that_is_edited_meanwhile_is_not_certified(tmp_path, monkeypatch):
    """The module in memory computes, the file on disk would be hashed: the recorder stops and keeps what it had."""
    codes = iter(["before"] * 3)  # when it begins, then before each unit is written
    loaded = ("before", {}, STUDY.fingerprint()[2])
    monkeypatch.setattr(Study, "code", lambda self: next(codes, "after"))
    with pytest.raises(StudyError, match="edited while it was being recorded"):
        run(STUDY, folder=tmp_path, loaded=loaded, **quiet)
    data = json.loads((tmp_path / "l99.json").read_text("utf-8"))
    assert data["code"] == "before" and 0 < len(data["units"]) < len(STUDY.planned)
    with pytest.raises(StudyError, match="edited while"):  # before anything is written
        run(STUDY, folder=tmp_path / "other", loaded=loaded, **quiet)
    assert not list((tmp_path / "other").glob("*.json"))


@pytest.mark.parametrize("lost", ["l99.json", "l99.parquet"])
def test_half_a_record_is_not_taken_for_none(tmp_path, lost):
    run(STUDY, folder=tmp_path, **quiet)
    (tmp_path / lost).unlink()
    (left,) = tmp_path.glob("l99.*")
    before = left.read_bytes()
    for action in (lambda: read_record("99", tmp_path), lambda: run(STUDY, folder=tmp_path, **quiet)):
        with pytest.raises(StudyError, match=f"{lost} is missing beside {left.name}"):
            action()
    assert left.read_bytes() == before


def test_damaged_units_are_named_before_they_are_recorded_again(tmp_path):
    run(STUDY, folder=tmp_path, **quiet)
    file = tmp_path / "l99.json"
    data = json.loads(file.read_text("utf-8"))
    data["units"][0]["digest"] = "0" * 16
    file.write_text(json.dumps(data), "utf-8")
    said = []
    assert run(STUDY, folder=tmp_path, report=said.append) == 0
    assert said[0] == "study 99: 1 units are damaged and dropped: base/0"
    assert read_record("99", tmp_path).damaged == []


def test_units_that_nobody_planned_are_not_merged(tmp_path):
    run(STUDY, folder=tmp_path / "own", **quiet)
    run(dataclasses.replace(STUDY, seeds=(0, 1, 2, 7)), folder=tmp_path / "other", **quiet)
    with pytest.raises(StudyError, match="3 units that this study does not plan, base/7 for one"):
        merge(STUDY, tmp_path / "other", tmp_path / "own")
    assert set(read_record("99", tmp_path / "own").facts) == set(STUDY.planned)


def test_one_seed_decides_nothing():
    found = estimate(np.full((1, 128), 0.3) + np.linspace(-0.01, 0.01, 128))
    assert found.low > 0.29
    decision = decide(found, low=0.0, high=math.inf, smallest=0.02)
    assert decision.verdict == "undecided" and decision.seeds_needed == 3


def test_what_was_asked_for_and_is_missing_counts(tmp_path):
    assert run(STUDY, folder=tmp_path, arms=("base",), hours=0, **quiet) == 3
    assert run(STUDY, folder=tmp_path, arms=("base",), **quiet) == 0


def test_the_cost_is_averaged_over_the_seeds_that_all_settings_have():
    """As a recorder that was stopped in the middle of a seed leaves them."""
    from labkit.studies.l03 import RING, estimate_cost

    settings = [f"ring.{s}" for s, (_, w) in RING.items() if w != 1]
    values = {
        (arm, seed): {"calls": np.float32([2.0 + seed]), "forecast": np.float32([2.0])}
        for arm in settings
        for seed in (0, 1)
    }
    del values[settings[0], 0]
    got = estimate_cost(Recorded(store_module.Record("03", {}, {}, values)))
    assert got.ravel() == pytest.approx([1.5])


def dying_worker(lesson, share, left, results, parent, loaded):
    import os

    results.put((share[0], {"score": np.float32([1.0])}, 0.1))
    results.close()
    results.join_thread()
    os._exit(9)


def test_a_process_that_dies_is_reported_and_what_it_had_done_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.studies.recorder._worker", dying_worker)
    with pytest.raises(StudyError, match=r"2 of 2 processes died \(exit code 9"):
        run(STUDY, folder=tmp_path, jobs=2, **quiet)
    assert len(read_record("99", tmp_path).facts) == 2


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--jobs", "-3"], ["--hours", "nan"], ["--hours", "-1"]])
def test_numbers_that_mean_nothing_are_refused(words, capsys):
    from labkit.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["study", "run", "09", *words])
    assert caught.value.code == 2 and "expected" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["6", "99", "09_catalogue", "../x", "6.1"])
def test_a_lesson_without_a_study_is_named(number):
    with pytest.raises(StudyError, match="has no study: expected one of 01"):
        load_study(number)


def test_check_judges_the_folder_that_it_is_given(tmp_path, capsys):
    from labkit.cli import main

    assert main(["study", "--folder", str(tmp_path), "check", "09"]) == 1
    assert "no recorded study decides it" in capsys.readouterr().out


def test_check_refuses_a_claim_that_the_rest_of_the_budget_would_decide(capsys, monkeypatch):
    from labkit.cli import main

    assert main(["study", "check", "07"]) == 0
    monkeypatch.setattr(
        "labkit.course.evidence.undecided", lambda lesson: (["open (about 9 seeds, 0.1 CPU hours)"], [])
    )
    assert main(["study", "check", "07"]) == 1
    assert "l07.open (about 9 seeds, 0.1 CPU hours): undecided within 4 CPU hours" in capsys.readouterr().out


@pytest.mark.parametrize("writes", range(1, 8))
def test_a_stop_between_the_two_files_loses_at_most_the_unit_at_hand(tmp_path, monkeypatch, writes):
    from labkit.files import write_atomically

    left = iter(range(writes))

    def stopped(path, content):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr(store_module, "write_atomically", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(STUDY, folder=tmp_path, **quiet)
    monkeypatch.undo()
    assert len(read_record("99", tmp_path).facts) == (writes - 1) // 2
    assert run(STUDY, folder=tmp_path, **quiet) == 0
    assert len(read_record("99", tmp_path).facts) == len(STUDY.planned)
