"""The runner: what it executes, how it judges, what it leaves behind, and that nothing of it stays running."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labkit.authoring import run
from labkit.authoring.run import job as run_job
from labkit.authoring.run import pool as run_pool
from labkit.authoring.run.html import mathml, notebook_html, offline
from labkit.authoring.run.job import Job, Outcome, inspect
from labkit.authoring.run.plan import Options, Row, RunError, check_parameters, parse_parameters, plan
from labkit.authoring.run.report import junit, thumbnail, write_reports
from labkit.course.i18n import get_language, set_language
from labkit.course.manifest import ROOT, ManifestError, Project
from labkit.course.progressbar import progress_bar

PARAMETERS = 'tier = "cpu"\nlang = "en"\nseed = 0\nstrict = False\ninteractive = True\n'
PICTURE = "from PIL import Image\nimage = Image.new('RGB', (900, 300), '#0072B2')\nimage"

LESSON = """
number: "{number}"
name: lesson
title: {{en: Lesson {number}, ja: レッスン {number}}}
summary: {{en: A lesson., ja: レッスンです。}}
objectives: {{en: [run], ja: [実行する]}}
minutes: {{smoke: 0.1, cpu: null, gpu: null}}
last_checked: null
"""
CLAIMS = """
- id: rises
  paper: A paper
  place: {en: Table 1, ja: 表 1}
  statement: {en: It rises., ja: 上がります。}
  expected: {direction: increase}
  gated: [smoke]
"""
RECORD = """
from datetime import datetime, UTC
from pathlib import Path
from labkit.course import claims
from labkit.course.manifest import Project
claim = claims.declared("{number}", Project(Path({root!r})))["l{number}.rises"]
now = datetime.now(UTC).isoformat()
claims.save(claims.make_record(claim, tier=tier, lang=lang, at=now, value={value}, seeds=[seed]))
"""

# name -> code cells after the parameters; a tuple adds tags
NOTEBOOKS = {
    "good": [
        "import json, os, sys, ipykernel.connect\n"
        "print(json.dumps({'python': sys.executable, 'cwd': os.getcwd(), 'results': os.environ['LABKIT_RESULTS'],"
        " 'home': os.environ['LABKIT_HOME'], 'parameters': [tier, lang, seed, strict, interactive],"
        " 'transport': json.load(open(ipykernel.connect.get_connection_file()))['transport']}))",
        "import labkit\nblock = bytearray(200_000_000)\nlen(block)",
        PICTURE,
        "import warnings\nwarnings.warn('beware')",
        ("1 / 0", "skip-execution"),
        "del block",
    ],
    "broken": ["1 + 1", "raise ValueError('no <good>')", "2 + 2"],
    "endless": ["import time\ntime.sleep(60)", "2 + 2"],
    "slow": [("import time\ntime.sleep(2.6)", "slow")],
    "overtime": [
        "import os, time, pathlib\n"
        "pathlib.Path(os.environ['LABKIT_RESULTS']).mkdir(parents=True, exist_ok=True)\n"
        "pathlib.Path(os.environ['LABKIT_RESULTS'], 'pid').write_text(str(os.getpid()))\n"
        "[time.sleep(1.5) for _ in range(60)]"
    ],
    "dead": ["import os\nos._exit(9)", "2 + 2"],
    "claim-good": [RECORD],
    "claim-bad": [RECORD],
}
NUMBERS = {name: f"{index:02}" for index, name in enumerate(NOTEBOOKS)}


def write_notebook(path, cells, kernel="no-such-kernel"):
    notebook = new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": "x", "language": "python"}})
    notebook.cells = [new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]})]
    for index, cell in enumerate(cells):
        source, tags = cell if isinstance(cell, tuple) else (cell, None)
        metadata = {"tags": [tags]} if tags else {}
        notebook.cells.append(new_code_cell(source, id=f"cell-{index}", metadata=metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def make_project(root):
    for name, number in NUMBERS.items():
        folder = root / "labkit" / "course" / "lessons" / f"l{number}"
        folder.mkdir(parents=True)
        (folder / "lesson.yaml").write_text(LESSON.format(number=number), encoding="utf-8")
        if name.startswith("claim"):
            (folder / "claims.yaml").write_text(CLAIMS, encoding="utf-8")
    return Project(root)


def make_row(root, name, **changes):
    value = {"claim-good": 0.5, "claim-bad": -0.5}.get(name)
    cells = [
        cell.format(number=NUMBERS[name], root=str(root), value=value) if cell is RECORD else cell
        for cell in NOTEBOOKS[name]
    ]
    source = write_notebook(root / "source" / f"{NUMBERS[name]}_{name}.ipynb", cells)
    titles = {"en": name, "ja": name}
    row = Row(NUMBERS[name], f"{NUMBERS[name]}_{name}", titles, "en", "solution", "smoke", str(source))
    for key, changed in changes.items():
        setattr(row, key, changed)
    return row


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """All notebooks above, executed once, two at a time: (rows by name, options, project)."""
    root = tmp_path_factory.mktemp("batch")
    project = make_project(root)
    rows = {name: make_row(root, name) for name in NOTEBOOKS}
    options = Options(output=root / "out", jobs=2, cell_timeout=300, notebook_timeout=900)
    patch = pytest.MonkeyPatch()
    patch.setattr(run, "_task", _with_limits(run._task))
    patch.setenv("LABKIT_HOME", "/learner/home")
    assert run.execute(list(rows.values()), options, project) is True
    patch.undo()
    return rows, options, project


def _with_limits(make_task):
    """Two seconds for the cells of some notebooks; one notebook's own limit strikes as soon as its cell runs."""

    def task_of(row, options):
        task = make_task(row, options)
        name = row.stem[3:]
        if name in ("endless", "slow"):
            task.job.cell_timeout, task.job.slow_timeout = 2, 300
        if name == "overtime":
            threading.Thread(target=_strike, args=(task,), daemon=True).start()
        return task

    return task_of


def _strike(task):
    told = Path(task.env["LABKIT_RESULTS"]) / "pid"
    _until(lambda: told.exists() and told.read_text(), 600)
    task.limit = 0.5


def executed(batch, name):
    rows, options, _ = batch
    return nbformat.read(options.output / f"{rows[name].name}.ipynb", as_version=4)


class TestExecution:
    def test_a_good_notebook_passes_with_every_cell_executed(self, batch):
        outcome = batch[0]["good"].outcome
        assert (outcome.status, outcome.error, outcome.kernel_starts) == ("passed", "", 1)
        code = [cell for cell in executed(batch, "good").cells if cell.cell_type == "code"]
        skipped = [cell for cell in code if "skip-execution" in cell.metadata.tags]
        assert [cell.execution_count for cell in skipped] == [None]  # the one kind of cell that may stay unexecuted
        assert all(cell.execution_count for cell in code if cell not in skipped)

    def test_parameters_are_those_of_a_batch_run(self, batch):
        told = json.loads(executed(batch, "good").cells[2].outputs[0].text)
        assert told["parameters"] == ["smoke", "en", 0, True, False]

    def test_the_kernel_is_this_python_over_ipc_whatever_the_notebook_names(self, batch):
        told = json.loads(executed(batch, "good").cells[2].outputs[0].text)
        assert told["python"] == sys.executable
        assert told["transport"] == ("tcp" if os.name == "nt" else "ipc")

    def test_it_works_in_a_temporary_folder_with_its_own_results_and_home(self, batch):
        rows, options, _ = batch
        told = json.loads(executed(batch, "good").cells[2].outputs[0].text)
        assert not Path(told["cwd"]).exists()
        assert told["results"] == str(options.output / rows["good"].lane / "results")
        assert told["home"] != "/learner/home" and not Path(told["home"]).exists()

    def test_memory_time_and_warnings_are_measured(self, batch):
        outcome = batch[0]["good"].outcome
        assert 200e6 < outcome.peak_rss < 2e9
        assert outcome.warnings == 1
        assert outcome.seconds > sum(cell["seconds"] for cell in outcome.cells)
        slow = batch[0]["slow"].outcome
        assert slow.cells[0]["id"] == "cell-0" and slow.cells[0]["seconds"] > 2.5

    def test_an_error_fails_the_notebook_and_names_the_cell(self, batch):
        outcome = batch[0]["broken"].outcome
        assert (outcome.status, outcome.error, outcome.where) == ("failed", "ValueError: no <good>", "cell-1")
        assert "\x1b" not in outcome.traceback and "ValueError" in outcome.traceback
        assert executed(batch, "broken").cells[-1].execution_count is None

    def test_a_cell_past_its_limit_is_a_timeout_and_slow_cells_have_a_larger_one(self, batch):
        outcome = batch[0]["endless"].outcome
        assert outcome.status == "timeout" and "limit of 2 s" in outcome.error and outcome.where == "cell-0"
        assert batch[0]["slow"].outcome.status == "passed"

    def test_a_notebook_past_its_limit_is_killed_with_its_kernel(self, batch):
        rows, options, _ = batch
        outcome = rows["overtime"].outcome
        assert outcome.status == "timeout" and "limit of 0.5 s" in outcome.error and outcome.where == "cell-0"
        pid = int((options.output / rows["overtime"].lane / "results" / "pid").read_text())
        assert not psutil.pid_exists(pid)
        assert (options.output / f"{rows['overtime'].name}.html").exists()

    def test_a_dead_kernel_is_told_apart(self, batch):
        outcome = batch[0]["dead"].outcome
        assert outcome.status == "kernel-died" and "memory" in outcome.error and outcome.kernel_starts == 1

    def test_no_process_of_a_run_is_left(self, batch):
        for process in psutil.process_iter(["cmdline"]):
            assert "ipykernel_launcher" not in " ".join(process.info["cmdline"] or []) or not _ours(process)

    def test_a_notebook_with_unexecuted_cells_never_passes(self, tmp_path):
        notebook = new_notebook(cells=[new_code_cell("1", execution_count=1), new_code_cell("2", id="never")])
        nbformat.write(notebook, tmp_path / "n.ipynb")
        outcome = Outcome("passed")
        inspect(Job("", str(tmp_path / "n.ipynb"), ""), outcome)
        assert (outcome.status, outcome.where) == ("failed", "never")

    def test_an_error_output_never_passes(self, tmp_path):
        error = new_output("error", ename="E", evalue="v", traceback=["t"])
        notebook = new_notebook(cells=[new_code_cell("1", execution_count=1, outputs=[error], id="bad")])
        nbformat.write(notebook, tmp_path / "n.ipynb")
        outcome = Outcome("passed")
        inspect(Job("", str(tmp_path / "n.ipynb"), ""), outcome)
        assert (outcome.status, outcome.error, outcome.where) == ("failed", "E: v", "bad")

    def test_a_minute_without_a_bar_is_noted_a_minute_with_one_is_not(self, tmp_path, capsys):
        def cell(name, seconds, text):
            outputs = [new_output("stream", name="stdout", text=text)]
            return new_code_cell("1", id=name, execution_count=1, outputs=outputs, metadata={"papermill": seconds})

        printed = {}
        for lang in ("en", "ja"):
            set_language(lang)
            ticks = iter(range(0, 1000, 10))
            list(progress_bar(range(4), "training", interactive=False, clock=lambda ticks=ticks: next(ticks)))
            printed[lang] = capsys.readouterr().out
        set_language("en")
        long, short = {"duration": 60.5}, {"duration": 59.5}
        cells = [cell("silent", long, "4 of 4 done"), cell("quick", short, "")]
        cells += [cell(lang, long, text) for lang, text in printed.items()]
        nbformat.write(new_notebook(cells=cells), tmp_path / "n.ipynb")
        outcome = Outcome("passed")
        inspect(Job("", str(tmp_path / "n.ipynb"), ""), outcome)
        assert [one["id"] for one in outcome.silent] == ["silent"] and outcome.status == "passed"

        row = Row("01", "01_x", {"en": "X"}, "en", "solution", "cpu", "", outcome=outcome)
        text = write_reports([row], tmp_path, {"seconds": 1.0})
        assert "cell silent took 60 s and showed no bar" in text
        assert "cell silent took 60 s" in (tmp_path / "report.html").read_text("utf-8")


def _ours(process):
    return psutil.Process() in process.parents()


class TestKernelStart:
    def test_only_a_kernel_that_does_not_start_is_tried_again_and_once(self, tmp_path, monkeypatch):
        starts = []

        def fail(folder, timeout):
            starts.append(folder.name)
            raise run_job.KernelStartError("the kernel did not start: no")

        monkeypatch.setattr(run_job, "start_kernel", fail)
        outcome = run_job.execute(Job("", "", str(tmp_path)))
        assert (outcome.status, outcome.kernel_starts, starts) == ("no-kernel", 2, ["kernel1", "kernel2"])

    def test_a_kernel_that_comes_up_at_the_second_try_runs_the_notebook(self, tmp_path, monkeypatch):
        start, tries = run_job.start_kernel, []

        def flaky(folder, timeout):
            tries.append(folder)
            if len(tries) == 1:
                raise run_job.KernelStartError("the kernel did not start: no")
            return start(folder, timeout)

        monkeypatch.setattr(run_job, "start_kernel", flaky)
        source = write_notebook(tmp_path / "n.ipynb", ["1 + 1"])
        outcome = run_job.execute(Job(str(source), str(tmp_path / "out.ipynb"), str(tmp_path)))
        assert (outcome.status, outcome.kernel_starts) == ("passed", 2)

    def test_a_job_that_ends_without_a_word_is_reported_with_its_last_line(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run_pool.sys, "executable", "/bin/false" if Path("/bin/false").exists() else "false")
        job = Job("", str(tmp_path / "n.ipynb"), "")
        outcome = run_pool.run_task(run_pool.Task("n", job, 10, {}), run_pool.threading.Event(), {})
        assert outcome.status == "crashed" and "exit code 1" in outcome.error


class TestSaving:
    @pytest.mark.parametrize("fails", [False, True])
    def test_a_notebook_is_written_at_its_ends_when_a_cell_fails_and_every_ten_seconds(self, fails, monkeypatch):
        import papermill.engines

        from labkit.authoring.run.engine import SparingManager

        written, clock = [], [datetime(2026, 1, 1, tzinfo=UTC)]
        monkeypatch.setattr(SparingManager, "now", lambda self: clock[0])
        monkeypatch.setattr(papermill.engines, "write_ipynb", lambda nb, path: written.append(path))
        notebook = new_notebook(cells=[new_code_cell(text) for text in "abc"], metadata={"papermill": {}})
        manager = SparingManager(notebook, output_path="out.ipynb", progress_bar=False)

        def writes(step, *arguments, **options):
            before = len(written)
            step(*arguments, **options)
            return len(written) - before

        assert writes(manager.notebook_start) == 1
        first, second, third = notebook.cells
        assert writes(manager.cell_start, first, 0) == writes(manager.cell_complete, first, cell_index=0) == 0
        clock[0] += timedelta(seconds=9)
        assert writes(manager.cell_start, second, 1) == 0
        clock[0] += timedelta(seconds=2)
        assert writes(manager.cell_complete, second, cell_index=1) == 1
        assert writes(manager.cell_start, third, 2) == 0
        if fails:
            manager.cell_exception(third, cell_index=2)
        assert writes(manager.cell_complete, third, cell_index=2) == fails
        assert writes(manager.notebook_complete) == 1


class TestClaims:
    def test_a_gated_claim_in_its_band_passes(self, batch):
        row = batch[0]["claim-good"]
        assert (row.outcome.status, row.claims, row.gate) == ("passed", {"reproduced": 1}, [])

    def test_a_gated_claim_outside_its_band_fails_a_notebook_without_errors(self, batch):
        row = batch[0]["claim-bad"]
        assert row.outcome.status == "claim" and "l07.rises" in row.outcome.error
        assert row.claims == {"not_reproduced": 1}

    def test_a_gated_claim_that_is_not_recorded_fails(self, batch, tmp_path):
        project = batch[2]
        row = make_row(project.root, "claim-good", outcome=Outcome("passed"))
        run._judge_claims(row, tmp_path, project)
        assert row.outcome.status == "claim" and "recorded nothing" in row.outcome.error

    def test_records_of_an_earlier_run_do_not_count(self, batch, tmp_path):
        rows, options, project = batch
        kept = options.output / rows["claim-good"].lane / "results" / "claims" / "l06.smoke.en.jsonl"
        row = make_row(project.root, "claim-good")
        other = Options(output=tmp_path)
        stale = tmp_path / row.lane / "results" / "claims" / kept.name
        stale.parent.mkdir(parents=True)
        stale.write_bytes(kept.read_bytes())
        run._task(row, other)
        assert not stale.exists()

    def test_student_editions_are_not_gated(self, batch, tmp_path):
        rows, options, project = batch
        row = make_row(project.root, "claim-good", edition="student", outcome=Outcome("passed"))
        run._judge_claims(row, tmp_path, project)
        assert row.outcome.status == "passed"


class TestCache:
    def again(self, batch, monkeypatch, changes=(), **options):
        """Names of the notebooks that a second run would execute."""
        rows, before, project = batch
        started = []

        def record(tasks, workers, **_):
            started.extend(Path(task.name).name[3:] for task in tasks)
            return True

        monkeypatch.setattr(run, "run_all", record)
        monkeypatch.setattr(run, "_task", lambda row, options: run_pool.Task(row.name, None, 0, {}))
        fresh = [make_row(project.root, name) for name in ("good", "broken", "claim-good", "claim-bad")]
        for row in fresh:
            for key, value in dict(changes).items():
                setattr(row, key, value)
        run.execute(fresh, Options(**{"output": before.output, "jobs": 1, **options}), project)
        assert all(row.cached == (row.stem[3:] not in started) for row in fresh)
        return started, fresh

    def test_what_passed_and_has_not_changed_is_not_run_again(self, batch, monkeypatch, capsys):
        started, fresh = self.again(batch, monkeypatch)
        assert started == ["broken", "claim-bad"]
        assert fresh[0].outcome == batch[0]["good"].outcome and fresh[2].claims == {"reproduced": 1}
        assert "cached" in capsys.readouterr().out

    def test_force_runs_everything(self, batch, monkeypatch):
        assert len(self.again(batch, monkeypatch, force=True)[0]) == 4

    def test_other_parameters_run_again(self, batch, monkeypatch):
        assert len(self.again(batch, monkeypatch, parameters={"seed": 1})[0]) == 4
        assert len(self.again(batch, monkeypatch, strict=False)[0]) == 4

    def test_another_tier_or_language_runs_again(self, batch, monkeypatch):
        assert len(self.again(batch, monkeypatch, changes={"lang": "ja"})[0]) == 4
        assert len(self.again(batch, monkeypatch, changes={"tier": "cpu"})[0]) == 4

    def test_a_changed_lesson_file_or_notebook_runs_again(self, batch, monkeypatch):
        rows, options, project = batch
        note = project.folder(NUMBERS["good"]) / "messages.yaml"
        note.write_text("a: {en: b, ja: c}\n", encoding="utf-8")
        try:
            assert self.again(batch, monkeypatch)[0] == ["good", "broken", "claim-bad"]
        finally:
            note.unlink()
        monkeypatch.setitem(NOTEBOOKS, "good", [*NOTEBOOKS["good"], "3"])
        assert self.again(batch, monkeypatch)[0] == ["good", "broken", "claim-bad"]
        monkeypatch.undo()
        make_row(project.root, "good")

    def test_changed_code_pins_or_data_change_every_key(self, tmp_path):
        from labkit.authoring.run import cache as run_cache

        (tmp_path / "labkit").mkdir()
        (tmp_path / "data").mkdir()
        notebook = write_notebook(tmp_path / "n.ipynb", ["1"])
        keys = set()
        for name in ("labkit/a.py", "labkit/b.yaml", "constraints.txt", "data/checksums.json"):
            (tmp_path / name).write_text("1")
            run_cache._common.cache_clear()
            keys.add(run_cache.run_key(Project(tmp_path), "00", notebook, tier="cpu"))
        assert len(keys) == 4
        other = tmp_path / "labkit" / "course" / "lessons" / "l01"
        other.mkdir(parents=True)
        (other / "lesson.yaml").write_text("1")
        run_cache._common.cache_clear()
        assert (
            run_cache.run_key(Project(tmp_path), "00", notebook, tier="cpu") in keys
        )  # another lesson does not matter

    def test_lost_files_run_again(self, batch, monkeypatch):
        rows, options, _ = batch
        page = options.output / f"{rows['good'].name}.html"
        kept = page.read_bytes()
        page.unlink()
        try:
            assert "good" in self.again(batch, monkeypatch)[0]
        finally:
            page.write_bytes(kept)


class TestBeforeRunning:
    def test_unknown_parameters_are_refused(self, tmp_path):
        notebook = write_notebook(tmp_path / "n.ipynb", [])
        check_parameters(notebook, ["tier", "seed"])
        with pytest.raises(RunError, match=r"unknown parameter sed; it has interactive, lang, seed, strict, tier"):
            check_parameters(notebook, ["tier", "sed"])

    @pytest.mark.parametrize("copies", [0, 2])
    def test_exactly_one_parameters_cell(self, tmp_path, copies):
        path = write_notebook(tmp_path / "n.ipynb", ["1"])
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [new_code_cell("tier = 1", metadata={"tags": ["parameters"]}) for _ in range(copies)]
        nbformat.write(notebook, path)
        with pytest.raises(RunError, match=f"{copies} cells are tagged"):
            check_parameters(path, ["tier"])

    def test_nothing_starts_when_a_parameter_is_unknown(self, batch, monkeypatch):
        rows, options, project = batch
        monkeypatch.setattr(run, "run_all", lambda *_, **__: pytest.fail("a notebook was started"))
        with pytest.raises(RunError, match="unknown parameter sed"):
            run.execute([rows["good"]], Options(options.output, parameters={"sed": 1}), project)

    def test_parameters_are_read_as_simple_values(self):
        given = ["seed=3", "rate=0.5", "strict=true", "note=a b"]
        assert parse_parameters(given) == {"seed": 3, "rate": 0.5, "strict": True, "note": "a b"}
        for bad in ("seed", "1a=2", "x=[1]"):
            with pytest.raises(RunError, match="expected"):
                parse_parameters([bad])

    def test_unknown_lessons_are_refused_with_the_known_ones(self, tmp_path):
        (tmp_path / "notebooks" / "src").mkdir(parents=True)
        (tmp_path / "notebooks" / "src" / "03_x.py").write_text("")
        with pytest.raises(ManifestError, match=r"'77'.*03"):
            plan(Project(tmp_path), ["77"], "smoke", ["en"], ["solution"], tmp_path)


class TestReports:
    @pytest.fixture
    def reports(self, batch):
        rows, options, project = batch
        about = {"started": "2026-11-22T10:00:00+00:00", "seconds": 12.3, "interrupted": False, "python": "3.11"}
        return write_reports(list(rows.values()), options.output, about, project), options.output

    def test_the_table_has_a_line_per_notebook(self, reports):
        lines = reports[0].splitlines()
        for name in NOTEBOOKS:
            assert sum(f"_{name} " in line for line in lines) == 1
        assert "3 of 8 notebooks passed" in reports[0]

    def test_summary_json_holds_every_row(self, reports):
        summary = json.loads((reports[1] / "summary.json").read_text(encoding="utf-8"))
        assert summary["passed"] is False and len(summary["rows"]) == len(NOTEBOOKS)
        passed = [row["stem"][3:] for row in summary["rows"] if row["outcome"]["status"] == "passed"]
        assert passed == ["good", "slow", "claim-good"]
        assert summary["counts"]["passed"] == 3

    def test_junit_counts_failures_and_errors(self, reports):
        suite = ElementTree.parse(reports[1] / "junit.xml").getroot().find("testsuite")
        counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
        assert counts == {"tests": 8, "failures": 4, "errors": 1, "skipped": 0}
        broken = next(case for case in suite if case.get("name").endswith("broken"))
        assert broken.get("classname") == "smoke-solution-en"
        assert "no <good>" in broken.find("failure").get("message")

    def test_junit_survives_control_characters_and_marks_what_did_not_run(self):
        titles = {"en": "x", "ja": "x"}
        bad = Row("00", "00_x", titles, "en", "solution", "smoke", "", outcome=Outcome("failed", error="a\x00b\x1b[0m"))
        unfinished = Row("01", "01_y", titles, "en", "solution", "smoke", "")
        root = ElementTree.fromstring(junit([bad, unfinished], {"seconds": 1}))
        assert root.find("testsuite").get("skipped") == "1"

    def test_the_html_report_shows_pictures_failures_and_claims_offline(self, reports):
        page = (reports[1] / "report.html").read_text(encoding="utf-8")
        assert page.count('<img src="data:image/png') == 1  # one notebook has a picture
        assert "no &lt;good&gt;" in page and "l06.rises" in page
        assert not re.search(r'(src|href)="(https?:)?//', page) and "<script" not in page
        for link in re.findall(r'href="([^"]+)"', page):
            assert (reports[1] / link).exists()

    def test_the_report_speaks_japanese(self, batch):
        rows, options, _ = batch
        before = get_language()
        set_language("ja")
        try:
            text = write_reports(list(rows.values()), options.output, {"seconds": 1.0})
        finally:
            set_language(before)
        assert "合格" in text and 'lang="ja"' in (options.output / "report.html").read_text(encoding="utf-8")

    def test_the_thumbnail_is_small_and_has_the_colour_of_the_picture(self, batch):
        import base64
        import io

        from PIL import Image

        rows, options, _ = batch
        address = thumbnail(options.output / f"{rows['good'].name}.ipynb")
        picture = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
        assert picture.size == (360, 120) and picture.getpixel((5, 5)) == (0, 0x72, 0xB2)
        assert thumbnail(options.output / f"{rows['slow'].name}.ipynb") is None


class TestHtml:
    def test_formulas_become_mathml_also_in_outputs_but_not_in_code(self):
        cell = new_code_cell(
            "cost = '$x$'", outputs=[new_output("display_data", {"text/html": "<p>$y_t$ costs $5</p>"})]
        )
        text = "Inline $\\epsilon_\\theta$.\n\n$$\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}$$\n\n`$z$`"
        page = notebook_html(new_notebook(cells=[new_markdown_cell(text), cell]), title="t")
        assert page.count("<math") == 3 and page.count('display="block"') == 1 and "<mtable" in page
        assert "costs $5" in page and "<code>$z$</code>" in page

    def test_tex_beyond_reach_stays_readable(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
        assert mathml("a < b") == "<code>a &lt; b</code>"

    def test_nothing_is_loaded_from_elsewhere(self):
        markup = '<img src="https://example.org/b.svg" alt="badge"><script src="x.js"></script><img src="data:,">'
        cleaned = offline(markup)
        assert cleaned == 'badge<img src="data:,">'

    def test_widget_views_and_state_are_left_out_and_pictures_stay(self):
        view = {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "HBox(children=())"}
        png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
        picture = new_output("display_data", {"image/png": png}, metadata={"image/png": {"alt": "four portraits"}})
        cell = new_code_cell("explore()", outputs=[picture, new_output("display_data", view)])
        page = notebook_html(new_notebook(cells=[cell], metadata={"widgets": {"state": {"secret": 1}}}), title="t")
        assert "HBox" not in page and "secret" not in page
        assert png in page and 'alt="four portraits"' in page

    def test_executed_notebooks_are_readable_offline(self, batch):
        rows, options, _ = batch
        page = (options.output / f"{rows['good'].name}.html").read_text(encoding="utf-8")
        assert not re.search(r'(src|href)="(https?:)?//', page) and "<script" not in page
        assert "data:image/png" in page and "beware" in page


SOURCE = """
# %% [markdown] lang="en" uid="intro"
# ## Title $x^2$

# %% [markdown] lang="ja" uid="intro"
# ## 題名 $x^2$

# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"  # "en" or "ja"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
import os
import pathlib
import time
import types

folder = pathlib.Path(os.environ["LABKIT_RESULTS"])
folder.mkdir(parents=True, exist_ok=True)
(folder / f"pid.{lang}").write_text(str(os.getpid()))
lab = types.SimpleNamespace(summary=lambda: "done")  # the last cell, which the builder adds, calls it

# %% uid="wait" tags=["slow"]
time.sleep(seed)
"""


@pytest.fixture
def course(tmp_path):
    """A course of one lesson that sleeps for `seed` seconds."""
    sample = ROOT / "tests" / "data" / "course"
    (tmp_path / "labkit" / "course" / "lessons" / "l00").mkdir(parents=True)
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_bytes((sample / "pyproject.toml").read_bytes())
    (tmp_path / "labkit/authoring").mkdir(parents=True)
    (tmp_path / "labkit/authoring/stamp.yaml").write_bytes((sample / "labkit/authoring/stamp.yaml").read_bytes())
    (tmp_path / "labkit/course/lessons/l00/lesson.yaml").write_text(LESSON.format(number="00"), encoding="utf-8")
    (tmp_path / "notebooks/src/00_lesson.py").write_text(SOURCE.lstrip(), encoding="utf-8")
    return tmp_path


def everything_but(left_out, folder):
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(left_out)]
    return {path: path.read_bytes() for path in files}


def labkit(*arguments):
    return [sys.executable, "-m", "labkit.cli", *map(str, arguments)]


class TestCommand:
    def test_builds_runs_and_reports_both_languages_then_finds_nothing_changed(self, course):
        for name in ("notebooks/en/00_lesson.ipynb", "notebooks/ja/00_lesson.ipynb", "work/en/00_lesson.ipynb"):
            (course / name).parent.mkdir(parents=True)
            (course / name).write_text(f"somebody's work in {name}", encoding="utf-8")
        before = everything_but(course / "build", course)
        command = labkit("run", "--root", course, "--tier", "smoke", "--lang", "both", "--jobs", "2")
        command += ["--edition", "both"]
        first = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert first.returncode == 0, first.stdout + first.stderr
        assert "4 of 4 notebooks passed (0 unchanged" in first.stdout
        assert (course / "build/run/smoke-solution-ja/00_lesson.html").exists()
        second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert second.returncode == 0 and "4 of 4 notebooks passed (4 unchanged" in second.stdout
        assert everything_but(course / "build", course) == before
        assert sorted(path.name for path in (course / "build").iterdir()) == ["run"]

    @pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_an_interruption_ends_the_kernels_and_leaves_a_report(self, course, sent):
        command = labkit("run", "00", "--root", course, "--tier", "smoke", "-p", "seed=300")
        scratch = Path(tempfile.mkdtemp(prefix="lkt"))
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch)},
            # a job in the background of a script inherits an ignored SIGINT
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            told = course / "build/run/smoke-solution-en/results/pid.en"
            _until(lambda: told.exists() and told.read_text(), 300)
            process.send_signal(sent)
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
        _until(lambda: not psutil.pid_exists(int(told.read_text())), 60)
        _until(lambda: not list(scratch.glob("lk-*")), 30)
        scratch.rmdir()
        if sent != signal.SIGKILL:
            assert process.returncode == 130 and "interrupted: 0 of 1" in output
            summary = json.loads((course / "build/run/summary.json").read_text(encoding="utf-8"))
            assert summary["about"]["interrupted"] and summary["rows"][0]["outcome"]["status"] == "interrupted"
            assert "not finished" in (course / "build/run/report.html").read_text(encoding="utf-8")

    def test_an_unknown_lesson_is_named_with_the_known_ones(self, course):
        done = subprocess.run(labkit("run", "77", "--root", course), capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and "'77'" in done.stderr and "00" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1

    def test_a_folder_that_cannot_be_written_is_one_line_before_anything_runs(self, course, monkeypatch, capsys):
        from labkit.cli import main

        (course / "build").write_text("a file is in the way")
        assert main(["run", "--root", str(course)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(course / "build" / "run") in said and "--output FOLDER" in said

        def read_only(path, content):
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        monkeypatch.setattr(sys.modules["labkit.authoring.run.plan"], "write_atomically", read_only)
        assert main(["run", "--root", str(course)]) == 2
        assert "cannot be written (Read-only file system)" in capsys.readouterr().err

    def test_tier_gpu_without_a_gpu_stops_at_once_in_one_line(self, course, monkeypatch, capsys):
        from labkit.cli import main

        monkeypatch.setattr(run, "build_rows", lambda *_: pytest.fail("notebooks were built"))
        monkeypatch.setattr(run, "has_gpu", lambda: False)
        assert main(["run", "--tier", "gpu", "--root", str(course)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("labkit run: tier gpu needs a GPU, and none was found") and said.count("\n") == 1
        assert not (course / "build").exists()

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("-p", "sed=1"), "unknown parameter sed"),
            (("--jobs", "0"), "expected 1 or more"),
            (("-p", "x"), "NAME=VALUE"),
        ],
    )
    def test_wrong_use_is_one_line(self, course, arguments, says, capsys):
        from labkit.cli import main

        assert main(["run", "--root", str(course), *arguments]) == 2
        assert says in capsys.readouterr().err


def _until(holds, seconds):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"still waiting after {seconds} s"
        time.sleep(0.1)
