"""The code that a study runs from afar, and the proof that it still gives the recorded numbers."""

from __future__ import annotations

import ast
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.cli import main
from labkit.studies import StudyError, load_study, read_record, studies
from labkit.studies import reach as module
from labkit.studies.reach import reach, reached, read_reach, unverified, verify_reach
from labkit.studies.store import compare

PACKAGE = {
    "__init__": "",
    "a.__init__": "from labkit.a.deep import passed_on, other\n",
    "a.deep": "from labkit.a import lazy\npassed_on = 1\n\ndef other():\n    from labkit.late import x\n    return x\n",
    "a.lazy": "x = 1\n",
    "late": "import labkit.plain\nx = 2\n",
    "plain": "import os\n",
    "unit": '"""Doc."""\nfrom typing import TYPE_CHECKING\n\nfrom labkit.a import passed_on\n\nif TYPE_CHECKING:\n'
    "    from labkit.types import T\n",
    "types": "T = 1\n",
    "b": "y = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of that name on disk; write("a.deep", text) changes a module."""

    def write(name: str, text: str) -> None:
        path = (tmp_path / "labkit").joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        module._tree.cache_clear()
        module._file.cache_clear()

    for name, text in PACKAGE.items():
        write(name, text)
    spec = SimpleNamespace(origin=str(tmp_path / "labkit" / "__init__.py"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    yield write
    module._tree.cache_clear()
    module._file.cache_clear()


def test_imports_are_followed_to_the_module_that_defines_a_name_also_inside_of_functions(package):
    assert reached(["labkit.unit"]) == ["labkit.a.deep", "labkit.a.lazy", "labkit.late", "labkit.plain", "labkit.unit"]
    assert reached(["labkit.b"]) == ["labkit.b"]


def test_the_hash_knows_code_from_afar_and_no_comments(package):
    study = SimpleNamespace(unit=SimpleNamespace(__module__="labkit.unit"), modules=(), later={"x": "labkit.b"})
    first = reach(study)
    package("plain", '"""A docstring."""\n\nimport os  # a comment\n')
    package("types", "T = 2\n")
    assert reach(study) == first
    package("plain", "import sys\n")
    second = reach(study)
    package("b", "y = 2\n")
    assert len({first, second, reach(study)}) == 3


@pytest.mark.parametrize(
    ("lesson", "modules"),
    [
        ("02", ["metrics.kernels"]),
        ("03", ["density.selection", "density.finetune", "diffusion.sample", "diffusion.guidance", "models.reader"]),
        ("05", ["dpo.trainer", "dpo.pool", "dpo.pairs"]),
        ("06", ["dpo.trainer", "dpo.pool", "dpo.hg", "dpo.recon", "portraits.captions"]),
        ("07", ["pairwise.equations", "pairwise.train"]),
        ("08", ["survey.trained", "diffusion.ddim"]),
    ],
)
def test_the_methods_are_reached(lesson, modules):
    study = load_study(lesson)
    assert {f"labkit.{name}" for name in modules} <= set(reached([study.unit.__module__]))


def test_turning_every_preference_round_is_noticed(monkeypatch):
    """Best and worst of a pool exchanged: no module that study 06 lists has changed."""
    study, tree = load_study("06"), module._tree
    before, listed = reach(study), study.code()

    def turned(name: str) -> ast.Module:
        text = ast.unparse(tree(name))
        return ast.parse(
            text.replace("return (best, worst)", "return (worst, best)") if name == "labkit.dpo.pool" else text
        )

    assert "return (best, worst)" in ast.unparse(tree("labkit.dpo.pool"))
    monkeypatch.setattr(module, "_tree", turned)
    assert reach(study) != before and study.code() == listed


@pytest.fixture
def small(monkeypatch):
    """Study 05 with a unit that takes no time: x is the seed."""
    study = dataclasses.replace(load_study("05"), covers=("toy_dpo", "toy_sft"))
    record = read_record("05")
    values = {key: {"x": np.float32([key[1]])} for key in record.values}
    monkeypatch.setattr("labkit.studies.recorder.read_record", lambda *_: dataclasses.replace(record, values=values))
    monkeypatch.setattr(type(study), "run", lambda self, arm, seed: {"x": np.float32([seed])})
    return study


def test_what_agrees_is_noted_and_holds_until_the_code_changes(small, tmp_path, monkeypatch):
    lines = []
    assert "has never been verified: `labkit study verify 05 --reach`" in unverified(small, tmp_path)
    assert verify_reach(small, np.random.default_rng(0), folder=tmp_path, report=lines.append) == []
    assert [line.split("/")[0] for line in lines] == ["05  toy_dpo", "05  toy_sft"]
    noted = read_reach(tmp_path)["05"]
    assert [unit["arm"] for unit in noted["units"]] == ["toy_dpo", "toy_sft"] and noted["code"] == reach(small)
    assert unverified(small, tmp_path) == ""
    monkeypatch.setattr(module, "reach", lambda study: "other")
    assert "has changed since it was verified" in unverified(small, tmp_path)


def test_what_differs_is_said_and_nothing_is_noted(small, tmp_path, monkeypatch):
    monkeypatch.setattr(type(small), "run", lambda self, arm, seed: {"x": np.float32([seed + (arm == "toy_sft")])})
    (line,) = verify_reach(small, np.random.default_rng(0), folder=tmp_path, report=lambda _: None)
    assert line.startswith("toy_sft/") and "means differ by 1" in line
    assert read_reach(tmp_path) == {}


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "reach.json").write_text("{")
    with pytest.raises(StudyError, match="cannot be read"):
        read_reach(tmp_path)


def test_a_tolerance_of_some_arms():
    study = dataclasses.replace(load_study("05"), tolerance={"": 0.1, "x": 0.2, "toy_*/x": 3.0})
    assert [study.allowed("x", arm) for arm in ("toy_dpo", "dpo", "")] == [3.0, 0.2, 0.2]
    assert study.allowed("y", "toy_dpo") == 0.1
    here, there = {"x": np.float32([0.0])}, {"x": np.float32([1.0])}
    assert compare(study, here, there, "toy_dpo") == [] and compare(study, here, there, "dpo")


@pytest.mark.parametrize("lesson", studies())
def test_all_studies_are_verified_under_todays_code(lesson):
    assert unverified(load_study(lesson)) == ""


def test_the_command_computes_nothing_where_nothing_has_changed(capsys):
    assert main(["study", "verify", "01", "--reach"]) == 0
    assert capsys.readouterr().out == "01  verified\n"


def test_covers_names_arms():
    with pytest.raises(StudyError, match="covers 'nobody', expected some of"):
        dataclasses.replace(load_study("05"), covers=("nobody",))


def test_the_file_is_json_by_lesson():
    assert json.loads((module.folder_of_studies() / "reach.json").read_text("utf-8")).keys() == set(studies())


def test_a_unit_is_computed_again_in_the_precision_that_it_was_recorded_in(small, tmp_path, monkeypatch):
    from labkit.diffusion import native_bfloat16

    facts = {key: {**fact, "bfloat16": key[0] == "toy_dpo"} for key, fact in read_record("05").facts.items()}
    record = dataclasses.replace(read_record("05"), facts=facts)
    record = dataclasses.replace(record, values={key: {"x": np.float32([key[0] == "toy_dpo"])} for key in facts})
    monkeypatch.setattr("labkit.studies.recorder.read_record", lambda *_: record)
    monkeypatch.setattr(type(small), "run", lambda self, arm, seed: {"x": np.float32([native_bfloat16()])})
    assert verify_reach(small, np.random.default_rng(0), folder=tmp_path, report=lambda _: None) == []


def test_units_of_a_processor_like_this_one_are_taken_first(small, tmp_path, monkeypatch):
    known = read_record("05").facts.items()
    facts = {key: {**fact, "machine": "here" if key[1] == 2 else "there"} for key, fact in known}
    values = {key: {"x": np.float32([key[1]])} for key in facts}
    record = dataclasses.replace(read_record("05"), facts=facts, values=values)
    monkeypatch.setattr("labkit.studies.recorder.read_record", lambda *_: record)
    monkeypatch.setattr("labkit.studies.recorder.machine", lambda: "here")
    lines = []
    verify_reach(small, np.random.default_rng(0), folder=tmp_path, report=lines.append)
    assert lines == ["05  toy_dpo/2: agrees", "05  toy_sft/2: agrees"]
