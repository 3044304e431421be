"""Claims: declared before, judged by one rule, kept with their declaration, gated per tier."""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.course import claims, start
from labkit.course import lab as session
from labkit.course.claim_file import Region
from labkit.course.claims import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    declared,
    gate,
    judge,
    latest,
    load_records,
    make_record,
    save,
    value_text,
)
from labkit.course.i18n import set_language, use_lesson
from labkit.course.ledger import add_parser, ledger, ledger_rows
from labkit.course.lesson_files import CourseError
from labkit.course.manifest import Project
from labkit.course.render import language

FIXTURE = Project(Path(__file__).parent / "data" / "lesson_fixture")
CLAIMS = declared("90", FIXTURE)
numbers = st.floats(-10, 10)


@pytest.fixture(autouse=True)
def _no_session_left():
    yield
    session._current = None
    use_lesson(None)
    set_language("en")


@pytest.fixture
def copied(tmp_path):
    """A copy of the fixture lesson that a test may spoil, as Project."""
    shutil.copytree(FIXTURE.root, tmp_path / "course", ignore=shutil.ignore_patterns("__pycache__"))
    return Project(tmp_path / "course")


def record(name="better", tier="cpu", at="2026-11-22T10:00:00.000+00:00", lang="en", **measurement):
    return make_record(CLAIMS[f"l90.{name}"], tier=tier, lang=lang, at=at, **measurement)


# ---- the rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "interval", "verdict", "undecided"),
    [
        ("better", 0.3, (0.1, 0.5), REPRODUCED, False),
        ("better", 0.3, None, REPRODUCED, False),
        ("better", 0.0, None, NOT_REPRODUCED, False),
        ("better", 0.3, (-0.1, 0.7), NOT_REPRODUCED, True),
        ("better", -0.3, (-0.5, -0.1), NOT_REPRODUCED, False),
        ("better", 0.3, (0.1, math.inf), REPRODUCED, False),
        ("better", math.nan, None, NOT_REPRODUCED, False),
        ("better", math.inf, None, NOT_REPRODUCED, False),
        ("better", 0.3, (0.1, math.nan), NOT_REPRODUCED, True),
        ("better", None, None, NOT_TESTABLE, False),
        ("worse", 0.4, (0.3, 0.49), REPRODUCED, False),
        ("worse", 0.4, (0.3, 0.5), NOT_REPRODUCED, True),
        ("worse", 0.6, None, NOT_REPRODUCED, False),
        ("same", 1.05, (0.95, 1.1), REPRODUCED, False),
        ("same", 1.05, (0.8, 1.1), NOT_REPRODUCED, True),
        ("same", 1.2, None, NOT_REPRODUCED, False),
        ("within", 0.2, (0.2, 0.6), REPRODUCED, False),
        ("within", 0.4, (0.1, 0.7), NOT_REPRODUCED, True),
    ],
)
def test_verdict_follows_the_declared_region(name, value, interval, verdict, undecided):
    assert judge(CLAIMS[f"l90.{name}"], "cpu", value, interval) == (verdict, undecided)


def test_tiers_that_cannot_test_a_claim_say_so():
    measured = record(tier="smoke", value=5.0)
    assert measured.verdict == NOT_TESTABLE and "not on smoke" in measured.reason


def test_missing_value_is_not_testable_with_the_given_reason():
    assert record(reason="needs human raters").reason == "needs human raters"
    assert record().reason == "nothing was measured"


@settings(max_examples=40)
@given(value=numbers, half=st.floats(0, 5), shrink=st.floats(0, 1))
def test_more_certainty_never_loses_a_reproduced_claim(value, half, shrink):
    for claim in CLAIMS.values():
        wide, _ = judge(claim, "cpu", value, (value - half, value + half))
        narrow, _ = judge(claim, "cpu", value, (value - half * shrink, value + half * shrink))
        assert (wide, narrow) != (REPRODUCED, NOT_REPRODUCED)


@settings(max_examples=40)
@given(value=numbers, half=st.floats(0.001, 5))
def test_opposite_directions_are_never_both_reproduced(value, half):
    better, opposite = CLAIMS["l90.better"], CLAIMS["l90.better"].model_copy(update={"region": Region(hi=0.0)})
    verdicts = [judge(claim, "cpu", value, (value - half, value + half)) for claim in (better, opposite)]
    assert [verdict for verdict, _ in verdicts].count(REPRODUCED) == (0 if value - half <= 0 <= value + half else 1)


@pytest.mark.parametrize("value", [np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5]), 0.5])
def test_numbers_of_every_library_are_taken(value):
    assert record(value=value).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("measurement", "message"),
    [
        ({"value": "high"}, "value must be one number, found str"),
        ({"value": torch.zeros(3)}, "value must be one number, found Tensor"),
        ({"value": 1.0, "interval": (2.0, 1.0)}, "no pair lo <= hi"),
        ({"value": 1.0, "interval": (1.0,)}, "needs a value and two ends"),
        ({"interval": (0.0, 1.0)}, "needs a value and two ends"),
    ],
)
def test_bad_measurements_are_refused(measurement, message):
    with pytest.raises(CourseError, match=message):
        record(**measurement)


# ---- declarations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("expected: {direction: increase}", "expected: increase", r"a direction, one of increase, .*and its numbers"),
        ("expected: {direction: increase}", "expected: {direction: [increase]}", r"a direction, one of increase, "),
        ("threshold: 0.5}", "threshold: .nan}", r"finite numbers beside decrease"),
        ("tolerance: 0.1}", "tolerance: .inf}", r"finite numbers beside equal"),
        ("tolerance: 0.1}", "tolerance: 0.1}\n  smallest: 0.1", r"no smallest beside equal or band"),
        (
            "expected: {direction: increase}",
            "expected: {direction: up}",
            r"l90/claims\.yaml:5: 0\.expected is {'direction': 'up'}; expected a direction, one of increase, ",
        ),
        (
            "{direction: decrease, threshold: 0.5}",
            "{direction: decrease, lo: 0.5}",
            r"claims\.yaml:12: 1\.expected is .*; expected beside decrease the numbers \(threshold=0\.0\)",
        ),
        ("value: 1, tolerance: 0.1", "value: 1", r"expected beside equal the numbers \(value, tolerance\)"),
        ("lo: 0.2, hi: 0.6", "lo: 0.6, hi: 0.2", r"swap them"),
        ("lo: 0.2, hi: 0.6", "lo: low, hi: 0.2", r"expected beside band the numbers \(lo, hi\)"),
        ("gated: [cpu]", "gated: [smoke]", r"expected testable tiers only under gated"),
        ("testable: [cpu, gpu]", "testable: [laptop]", r"testable\.0 is 'laptop'; expected 'smoke', 'cpu' or 'gpu'"),
        ("band: {smoke: [0.2, 0.8]}", "band: {gpu: [0.2, 0.8]}", r"gated tiers only under band"),
        ("band: {smoke: [0.2, 0.8]}", "band: [0.2, 0.8]", r"band is \[0\.2, 0\.8\]; expected a valid dictionary"),
        (
            "band: {smoke: [0.2, 0.8]}",
            "band: {smoke: [0.8, 0.2]}",
            r"band\.smoke is \[0\.8, 0\.2\]; expected \[lo, hi\]",
        ),
        (', ja: "多様性は下がる。"', "", r"statement is .*; expected \{en: text, ja: text\}"),
        ("place: {en: Table 1, ja: 表 1}", "place: Table 1", r"place is 'Table 1'; expected \{en: text, ja: text\}"),
        (
            "  place: {en: Table 1, ja: 表 1}\n",
            "",
            r"claims\.yaml:1: 0\.place is missing; fields are id, paper, place, statement, expected, ",
        ),
        ("id: worse", "id: better", r"appear once only"),
        ("- id: better", "id: better", r"claims\.yaml:\d+: "),
        ("gated: [cpu]", "gatd: [cpu]", r"unknown key '0\.gatd'; fields are .*gated"),
    ],
)
def test_bad_declarations_are_named_with_line_and_cure(copied, old, new, message):
    path = copied.folder("90") / "claims.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        declared("90", copied)


def test_lesson_without_claims_declares_none(copied):
    (copied.folder("90") / "claims.yaml").unlink()
    assert declared("90", copied) == {}
    assert gate(copied.root, "90", "cpu", project=copied) == []


def test_regions_are_named_in_both_languages():
    with language("ja"):
        assert [claim.region.text() for claim in CLAIMS.values()] == [
            "0より大きい",
            "0.5より小さい",
            "0.9以上1.1以下",
            "0.2以上0.6以下",
        ]
    assert CLAIMS["l90.better"].region.text() == "above 0"


# ---- records -----------------------------------------------------------------------------------------------------


def test_records_come_back_as_they_were(tmp_path):
    saved = [
        record(value=0.3, interval=(0.1, 0.5), seeds=[0, 1], measured={"en": "win rate", "ja": "勝率"}),
        record("same", value=math.nan, at="2026-11-22T11:00:00.000+00:00"),
        record("within", value=math.inf, interval=(-math.inf, math.inf), at="2026-11-22T12:00:00.000+00:00"),
    ]
    for one in saved:
        path = save(one, tmp_path)
    assert path.name == "l90.cpu.en.jsonl"
    back = load_records(tmp_path)
    assert back[0] == saved[0] and back[2] == saved[2] and math.isnan(back[1].value)
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_damaged_lines_are_left_out(tmp_path):
    path = save(record(value=0.3), tmp_path)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"claim": "l90.bet\n[]\n{"claim": "l90.better"}\n')
    assert [one.value for one in load_records(tmp_path)] == [0.3]


def test_newest_record_counts(tmp_path):
    save(record(value=0.3, at="2026-11-22T12:00:00.000+00:00", lang="ja"), tmp_path)
    save(record(value=0.1, at="2026-11-22T11:00:00.000+00:00"), tmp_path)
    records = load_records(tmp_path)
    assert latest(records)["l90.better", "cpu"].value == 0.3
    assert latest(records, lang="en")["l90.better", "cpu"].value == 0.1
    assert latest(records, tier="gpu") == {}


def test_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_RESULTS", str(tmp_path))
    assert save(record(value=1.0)).is_relative_to(tmp_path)
    monkeypatch.delenv("LABKIT_RESULTS")
    assert claims.results_folder() == Path("build") / "results"


# ---- the gate ----------------------------------------------------------------------------------------------------


def test_gate_holds_when_gated_claims_are_reproduced(tmp_path):
    save(record("better", value=0.3), tmp_path)
    save(record("worse", value=0.3), tmp_path)
    save(record("same", value=99.0), tmp_path)  # not gated
    assert gate(tmp_path, "90", "cpu", project=FIXTURE) == []
    assert gate(tmp_path, "90", "gpu", project=FIXTURE) == []


def test_gate_fails_for_missing_and_unreproduced_claims(tmp_path):
    save(record("worse", value=0.7, interval=(0.6, 0.8)), tmp_path)
    failures = gate(tmp_path, "90", "cpu", project=FIXTURE)
    assert len(failures) == 2
    assert "l90.better: gated on cpu, but the run recorded nothing" in failures[0]
    assert failures[1] == "l90.worse: not_reproduced on cpu: 0.7 [0.6, 0.8]"


@pytest.mark.parametrize(("value", "holds"), [(0.7, True), (0.2, True), (0.9, False), (math.nan, False), (None, False)])
def test_band_of_a_tier_gates_the_value_whatever_the_verdict(tmp_path, value, holds):
    save(record("worse", tier="smoke", value=value), tmp_path)
    failures = gate(tmp_path, "90", "smoke", project=FIXTURE)
    assert (failures == []) is holds
    assert holds or "left its band [0.2, 0.8] on smoke" in failures[0]


def test_gate_looks_at_one_language_if_asked(tmp_path):
    for name in ("better", "worse"):
        save(record(name, value=0.3, lang="ja"), tmp_path)
    assert gate(tmp_path, "90", "cpu", lang="ja", project=FIXTURE) == []
    assert len(gate(tmp_path, "90", "cpu", lang="en", project=FIXTURE)) == 2


def test_declaration_changed_after_the_run_is_noticed(tmp_path, copied):
    save(record("better", value=0.3), tmp_path)
    save(record("worse", value=0.3), tmp_path)
    path = copied.folder("90") / "claims.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("increase}", "increase, threshold: 0.2}"), encoding="utf-8"
    )
    assert gate(tmp_path, "90", "cpu", project=copied) == [
        "l90.better: the declaration changed after it was measured; run the lesson again"
    ]
    assert "declaration changed since the run" in ledger(ledger_rows(load_records(tmp_path), project=copied))[1]


# ---- what learners see -------------------------------------------------------------------------------------------


def test_lesson_records_shows_and_saves_a_claim(tmp_path, capsys):
    lab = start("90", tier="cpu", lang="ja", project=FIXTURE, home=tmp_path, results=tmp_path)
    shown = lab.claim(
        "better", measured={"en": "win rate", "ja": "勝率"}, value=0.7, interval=(0.6, 0.8), seeds=range(3)
    )
    out = capsys.readouterr().out
    assert "再現できた" in out and "勝率 = 0.7、区間 [0.6, 0.8](シード数3、tier cpu)" in out and "表 1" in out
    (saved,) = load_records(tmp_path)
    assert saved == shown and saved.seeds == [0, 1, 2] and saved.at.endswith("+00:00")
    lab.claim("worse", value=0.4, interval=(0.3, 0.9))
    assert "境界をまたいでいる" in capsys.readouterr().out
    lab.claim("same", value=math.nan)
    assert "有限の数ではありません" in capsys.readouterr().out
    lab.claim("same", reason="評価者が必要です")
    assert "評価者が必要です" in capsys.readouterr().out
    with pytest.raises(CourseError, match="no claim 'bettr'; it has: l90.better"):
        lab.claim("bettr", value=1.0)


def test_a_claim_shows_how_our_setting_differs_from_the_papers(tmp_path, capsys):
    for lang, said in (("en", "Setting: The prompt has five words"), ("ja", "条件: プロンプトは5語")):
        lab = start("04", tier="cpu", lang=lang, home=tmp_path, results=tmp_path)
        capsys.readouterr()
        lab.claim("dropout_varies", value=0.0)
        out = capsys.readouterr().out
        assert said in out and claims_reason(lang) in out and out.index(said) < out.index(claims_reason(lang))
        session._current = None


def claims_reason(lang):
    return declared("04")["l04.dropout_varies"].too_far[lang]


def test_unwritable_results_do_not_stop_a_lesson(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    lab = start("90", tier="cpu", project=FIXTURE, home=tmp_path, results=tmp_path / "file" / "results")
    lab.claim("better", value=0.7)
    assert "cannot be written" in capsys.readouterr().out
    lab.claim("better", value=0.8)
    said = capsys.readouterr().out
    assert "0.8" in said and "cannot be written" not in said  # once is enough
    lab.article_map()
    assert "✓ reproduced 0.8" in capsys.readouterr().out


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_article_map_marks_what_goes_beyond_the_paper(tmp_path, capsys, lang):
    lab = start("90", tier="cpu", lang=lang, project=FIXTURE, home=tmp_path, results=tmp_path)
    capsys.readouterr()
    lab.article_map()
    lines = capsys.readouterr().out.splitlines()
    mark = lab.t("article.goes_beyond").strip("*")
    assert [mark in line for line in lines if "%" in line or "2024" in line] == [True, False]
    assert any(lab.t("article.not_yet", id="l90.better") in line for line in lines)


def test_ledger_covers_measured_and_unmeasured_claims(tmp_path):
    save(record("better", value=0.3, seeds=[1, 2]), tmp_path)
    save(record("better", tier="gpu", value=-0.3), tmp_path)
    save(record("better", tier="smoke", value=0.3), tmp_path)
    rows = ledger_rows(load_records(tmp_path), project=FIXTURE)
    assert [(row["claim"].id, row["verdict"]) for row in rows] == [
        ("l90.better", "not_testable"),
        ("l90.better", "reproduced"),
        ("l90.better", "not_reproduced"),
        ("l90.worse", "not_run"),
        ("l90.same", "not_run"),
        ("l90.within", "not_run"),
    ]
    text = ledger(rows)[1]
    assert "reproduced: 1, not reproduced: 1, not testable here: 1, not run yet: 3" in text


def test_value_text_has_four_digits():
    assert value_text(record(value=0.123456, interval=(0.1, 0.2))) == "0.1235 [0.1, 0.2]"
    assert value_text(record()) == ""


def cli(*arguments) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["claims", "--root", str(FIXTURE.root), *map(str, arguments)])
    return args.func(args)


def test_labkit_claims_prints_table_json_and_html(tmp_path, capsys):
    save(record("better", value=0.3), tmp_path)
    assert cli("--results", tmp_path, "--lang", "ja") == 0
    assert "✓ 再現できた" in capsys.readouterr().out
    assert cli("--results", tmp_path, "--json", "--tier", "cpu") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["record"]["value"] == 0.3 and rows[1]["record"] is None
    page = tmp_path / "deep" / "ledger.html"
    assert cli("--results", tmp_path, "--lang", "ja", "--html", page) == 0
    html_text = page.read_text(encoding="utf-8")
    assert '<html lang="ja">' in html_text and "学習済みモデルはベースモデルを上回る。" in html_text
    assert html_text.count("<tr>") == 5 and "://" not in html_text


def test_labkit_claims_names_a_broken_file_in_one_line(tmp_path, copied, capsys):
    (copied.folder("90") / "claims.yaml").write_text("- {id: x}\n", encoding="utf-8")
    assert cli("--results", tmp_path, "--root", copied.root) == 2
    assert capsys.readouterr().err.startswith("labkit claims: l90/claims.yaml:1: 0.paper is missing; fields are id, ")


def test_labkit_claims_names_a_page_that_cannot_be_written_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert cli("--results", tmp_path, "--html", tmp_path / "file" / "ledger.html") == 2
    said = capsys.readouterr().err
    assert said.startswith("labkit claims: ") and said.count("\n") == 1 and "--html" in said


def test_html_escapes_what_lessons_and_learners_write(tmp_path):
    claim = CLAIMS["l90.better"].model_copy(update={"statement": {"en": "a < b & <script>", "ja": "x"}})
    html_text, _ = ledger([{"claim": claim, "record": None, "verdict": "not_run"}])
    assert "<script>" not in html_text and "a &lt; b &amp; &lt;script&gt;" in html_text
