"""Kept results: loaded when everything the call reads is the same, never otherwise, and never by pickle."""

import functools
import time
import types
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from labkit.course import lab as session
from labkit.course import start
from labkit.course.fingerprint import fingerprint
from labkit.course.i18n import set_language, use_lesson
from labkit.course.keep import DamagedResult, Store, pack, unpack
from labkit.course.lesson_files import CourseError
from labkit.course.manifest import Project
from labkit.dpo.pool import Pool

FIXTURE = Project(Path(__file__).parent / "data" / "lesson_fixture")


@pytest.fixture(autouse=True)
def _no_session_left():
    yield
    session._current = None
    use_lesson(None)
    set_language("en")


@pytest.fixture(autouse=True)
def _everything_is_worth_keeping(monkeypatch):
    monkeypatch.setattr(session, "WORTH_KEEPING", 0.0)


@pytest.fixture
def lab(tmp_path):
    return start("90", tier="smoke", project=FIXTURE, home=tmp_path, results=tmp_path)


def notebook(code, **names):
    """The names that a cell of a notebook defines."""
    names["__name__"] = "__main__"
    exec(code, names)
    return types.SimpleNamespace(**names)


CELL = """
def helper(x):
    return factor * x

def slow(x, shift=0):
    return {"sum": [helper(x) + shift for _ in range(2)]}
"""


def cell(code=CELL, **names):
    return notebook(code, **names).slow


# ---- what is kept ------------------------------------------------------------------------------------------------

Named = namedtuple("Named", "a b")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        0.1,
        float("inf"),
        "日本語",
        [1, (2.5, "x"), {"a": None, 3: [], (1, "k"): {}}],
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor(2.5),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.tensor([1.0, float("nan")]).half(),
        torch.tensor([1.5]).bfloat16(),
        np.float32(0.1),
        np.array(7),
        np.linspace(0, 1, 5).reshape(1, 5),
        np.array([[True], [False]]),
    ],
    ids=repr,
)
def test_results_come_back_as_they_were(value):
    back = unpack(pack(value, 1.0, 2.0))
    assert (back.at, back.seconds) == (1.0, 2.0)
    assert type(back.value) is type(value)
    if isinstance(value, torch.Tensor):
        assert back.value.dtype == value.dtype and torch.equal(back.value.nan_to_num(), value.nan_to_num())
        back.value[...] = 0  # a cell may write into it
    elif isinstance(value, np.ndarray | np.generic):
        assert back.value.dtype == value.dtype and back.value.shape == value.shape and np.array_equal(back.value, value)
    else:
        assert back.value == value


def test_tensors_that_share_memory_and_pictures_and_dataclasses_come_back():
    base = torch.arange(4.0)
    pool = Pool(("a", "b"), base.reshape(2, 1, 2, 1, 1), {"judge": base[:2, None]}, {"seed": 1})
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    views, back, picture = unpack(pack(([base[:2], base], pool, image), 0.0, 0.0)).value
    assert torch.equal(views[1], base) and torch.equal(views[0], base[:2])
    assert isinstance(back, Pool) and back.n == 1 and back.prompts == ("a", "b") and back.record == {"seed": 1}
    assert np.array_equal(np.asarray(picture), np.asarray(image))


@pytest.mark.parametrize("value", [object(), lambda: 1, {1, 2}, torch.nn.Linear(1, 1), [Named(1, 2)], np.array(["a"])])
def test_other_values_are_refused_in_one_line(value):
    with pytest.raises(CourseError, match=r"cannot be kept: return tensors") as error:
        pack({"deep": [value]}, 0.0, 0.0)
    assert "\n" not in str(error.value)


def test_a_file_with_a_changed_byte_or_a_foreign_class_is_damaged():
    data = pack([torch.arange(5.0)], 0.0, 0.0)
    for spoilt in (data[:-1] + b"\1", data[:100], b"", b"x" * 300):
        with pytest.raises(DamagedResult):
            unpack(spoilt)
    from labkit.course import keep

    with pytest.raises(TypeError, match="os"):
        keep._decode(["dataclass", "os", "system", ["dict", []]], {}, "cpu")


# ---- when a result is the same -----------------------------------------------------------------------------------


def test_a_new_kernel_that_runs_the_same_cells_has_the_same_fingerprints():
    assert fingerprint(cell(factor=2)) == fingerprint(cell(factor=2))
    values = [1, 2.5, "a", None, torch.ones(2), np.ones(2), {"a": {1, 2}}, functools.partial(max, 1), torch.nn.ReLU()]
    again = [1, 2.5, "a", None, torch.ones(2), np.ones(2), {"a": {2, 1}}, functools.partial(max, 1), torch.nn.ReLU()]
    assert [fingerprint(v) for v in values] == [fingerprint(v) for v in again]
    assert len({fingerprint(v) for v in values}) == len(values)


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ("", "", 3),
        ("shift=0", "shift=1", 2),
        ("factor * x", "factor * x + 0", 2),
        ("range(2)", "range(3)", 2),
        ("helper(x) + shift", "helper(x) - shift", 2),
    ],
)
def test_changed_code_helpers_defaults_and_names_change_the_fingerprint(old, new, factor):
    before = fingerprint(cell(factor=2))
    assert fingerprint(cell(CELL.replace(old, new, 1), factor=factor)) != before


def test_comments_and_line_numbers_do_not_count():
    moved = "\n\n# a comment\n" + CELL.replace("def helper(x):", "def helper(x):  # another")
    assert fingerprint(cell(factor=2)) == fingerprint(cell(moved, factor=2))


def test_values_inside_closures_objects_and_networks_count():
    def adder(n):
        return lambda x: x + n

    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert fingerprint(adder(1)) == fingerprint(adder(1)) != fingerprint(adder(2))
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        second.weight[0, 0] += 1e-4
    assert fingerprint(first) != fingerprint(second)
    pools = [Pool(("a",), torch.zeros(1, 1, 1, 1, 1), {"judge": torch.tensor([[s]])}) for s in (0.0, 0.0, 1.0)]
    assert fingerprint(pools[0]) == fingerprint(pools[1]) != fingerprint(pools[2])


def test_a_pipeline_counts_by_weights_and_scheduler_settings():
    from diffusers import DDIMScheduler

    def pipe(scheduler):
        return types.SimpleNamespace(scheduler=scheduler, device=object(), unet=None)

    first = pipe(DDIMScheduler(num_train_timesteps=10))
    again = pipe(DDIMScheduler(num_train_timesteps=10))
    again.scheduler.config._use_default_values.reverse()  # in another order in every process
    again.scheduler.set_timesteps(4)  # how far a run has come does not count
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(pipe(DDIMScheduler(num_train_timesteps=11)))


def test_cycles_end():
    loop = [1]
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop)
    recursive = notebook("def fall(n):\n    return n and fall(n - 1)").fall
    assert fingerprint(recursive) != fingerprint(notebook("def fall(n):\n    return n and fall(n - 2)").fall)


@pytest.mark.parametrize("generator", [torch.Generator(), np.random.default_rng(0)])
def test_generators_made_outside_are_refused(generator):
    with pytest.raises(CourseError, match="make one inside"):
        fingerprint(notebook("def draw():\n    return source", source=generator).draw)


# ---- the session -------------------------------------------------------------------------------------------------


@pytest.fixture
def counted():
    """A function of the notebook and the arguments it was called with (a list's append counts by name alone)."""
    calls = []
    code = "def slow(x):\n    note(x)\n    return {'mean': [x, x + 1]}"
    return notebook(code, note=calls.append).slow, calls


def test_the_second_kernel_loads_and_says_so(lab, counted, tmp_path, capsys):
    slow, calls = counted
    first = lab.keep("means", slow, 3)
    again = start("90", tier="smoke", lang="ja", project=FIXTURE, home=tmp_path)
    capsys.readouterr()
    begun = time.perf_counter()
    assert again.keep("means", slow, 3) == first == {"mean": [3, 4]}
    assert time.perf_counter() - begun < 1 and calls == [3]
    out = capsys.readouterr().out
    assert "読み込みました" in out and "lab.fresh()" in out
    assert again.keep("means", slow, 4) == {"mean": [4, 5]} and again.keep("others", slow, 3) == first
    assert calls == [3, 4, 3]


def test_tier_sizes_and_seed_belong_to_a_result(lab, counted, tmp_path):
    slow, calls = counted
    for options in ({}, {"seed": 1}, {"tier": "cpu"}):
        other = start("90", **{"tier": "smoke", "project": FIXTURE, "home": tmp_path, **options})
        for _ in range(2):
            other.keep("means", slow, 3)
    assert calls == [3, 3, 3]
    lab.sizes.images += 1
    lab.keep("means", slow, 3)
    assert calls == [3, 3, 3, 3]


def test_fresh_forgets_this_lesson_and_tier_alone(lab, counted, tmp_path, capsys):
    slow, calls = counted
    cpu = start("90", tier="cpu", project=FIXTURE, home=tmp_path)
    lab.keep("means", slow, 3)
    cpu.keep("means", slow, 3)
    cut_off = tmp_path / "kept" / ".90-smoke-one-key.1-ab.kept"  # of a kernel that was killed while it wrote
    cut_off.write_bytes(b"half")
    lab.fresh()
    assert not cut_off.exists()
    assert "1 kept results" in capsys.readouterr().out
    lab.keep("means", slow, 3)
    cpu.keep("means", slow, 3)
    assert calls == [3, 3, 3]


def test_a_damaged_file_is_told_in_one_line_and_computed_anew(lab, counted, capsys):
    slow, calls = counted
    lab.keep("means", slow, 3)
    [path] = (lab.progress.path.parent / "kept").glob("*.kept")
    path.write_bytes(path.read_bytes()[:-3])
    capsys.readouterr()
    lab.keep("means", slow, 3)
    assert capsys.readouterr().out.count("\n") == 1 and calls == [3, 3]
    lab.keep("means", slow, 3)
    assert calls == [3, 3]


def test_batch_runs_compute_and_leave_nothing(counted, tmp_path):
    slow, calls = counted
    start("90", tier="smoke", project=FIXTURE, home=tmp_path).keep("means", slow, 3)
    batch = start("90", tier="smoke", project=FIXTURE, home=tmp_path, interactive=False)
    batch.keep("means", slow, 3)
    batch.keep("others", slow, 3)
    assert calls == [3, 3, 3] and len(list((tmp_path / "kept").iterdir())) == 1
    batch.keeps = True
    batch.keep("means", slow, 3)
    assert calls == [3, 3, 3]


def test_what_cannot_be_kept_still_comes_back_and_stops_a_strict_run(lab, tmp_path, capsys):
    assert type(lab.keep("thing", object)) is object
    assert "cannot be kept" in capsys.readouterr().out
    strict = start("90", tier="smoke", project=FIXTURE, home=tmp_path, interactive=False, strict=True)
    with pytest.raises(CourseError, match="cannot be kept"):
        strict.keep("thing", object)


def test_an_unwritable_home_costs_a_line_only(counted, tmp_path, capsys):
    (tmp_path / "kept").write_text("a file where the folder should be")
    lab = start("90", tier="smoke", project=FIXTURE, home=tmp_path)
    assert lab.keep("means", counted[0], 3) == {"mean": [3, 4]}
    assert "could not be kept" in capsys.readouterr().out


def test_what_is_quick_is_not_kept(lab, counted, monkeypatch):
    monkeypatch.setattr(session, "WORTH_KEEPING", 1.0)
    lab.keep("means", counted[0], 3)
    assert not (lab.progress.path.parent / "kept").exists()


def test_changed_code_of_labkit_or_weights_make_results_new(lab, counted, monkeypatch):
    slow, calls = counted
    lab.keep("means", slow, 3)
    monkeypatch.setattr("labkit.course.keep.code_key", lambda: "another labkit")
    lab.keep("means", slow, 3)
    assert calls == [3, 3]


def test_file_names_are_readable_and_safe(tmp_path):
    store = Store(tmp_path, "06", "cpu", seed=0)
    path = store.path("colour ../l06.n2, seed 1", len, (), {})
    assert path.parent == tmp_path / "kept" and path.name.startswith("06-cpu-colour-l06-n2-seed-1-")
