"""The progress file survives what happens to files: damage, two notebooks at once, a home that cannot be written."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import files
from labkit.course import progress as module
from labkit.course.manifest import Project
from labkit.course.progress import Progress, add_parser, home_folder, overview, report
from labkit.course.render import language, width

FIXTURE = Project(Path(__file__).parent / "data" / "lesson_fixture")


@pytest.fixture
def notes():
    return []


@pytest.fixture
def progress(tmp_path, notes):
    return Progress(tmp_path, notify=notes.append)


def cli(*arguments) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["progress", "--root", str(FIXTURE.root), *map(str, arguments)])
    return args.func(args)


def test_attempts_count_until_the_first_pass(progress, tmp_path):
    for status in ("failed", "failed", "passed", "failed"):
        progress.record_check("90", "l90.answer", status)
    entry = Progress(tmp_path).entry("90", "exercises", "l90.answer")
    assert entry["attempts"] == 3
    assert entry["passed"][:2] == "20" and "T" in entry["passed"]


def test_untouched_stubs_leave_no_trace(progress):
    progress.record_check("90", "l90.answer", "todo")
    assert not progress.path.exists() and progress.entry("90", "exercises", "l90.answer") == {}


def test_hints_solutions_quizzes_and_predictions_are_kept(progress, tmp_path):
    progress.record_help("90", "l90.answer", hint=2)
    progress.record_help("90", "l90.answer", hint=1, solution=True)
    progress.record_quiz("90", "l90.snr", False)
    progress.record_prediction("90", "l90.norm", 0.5)
    again = Progress(tmp_path)
    assert again.entry("90", "exercises", "l90.answer") == {"hints": 2, "solution_seen": True}
    assert again.entry("90", "quizzes", "l90.snr") == {"attempts": 1}
    assert again.entry("90", "predictions", "l90.norm")["prediction"] == 0.5


def test_entries_are_copies(progress):
    progress.record_quiz("90", "l90.snr", True)
    progress.entry("90", "quizzes", "l90.snr")["attempts"] = 99
    assert progress.entry("90", "quizzes", "l90.snr")["attempts"] == 1


def test_two_notebooks_do_not_overwrite_each_other(tmp_path):
    first, second = Progress(tmp_path), Progress(tmp_path)
    first.record_quiz("90", "l90.snr", True)
    second.record_quiz("90", "l90.steps", True)
    first.record_check("90", "l90.answer", "passed")
    assert set(Progress(tmp_path).data["lessons"]["90"]["quizzes"]) == {"l90.snr", "l90.steps"}


@pytest.mark.parametrize(
    "content",
    [
        b"{half a fi",
        b"\xff\xfe\x00",
        b"[]",
        b'{"version": 99, "lessons": {}}',
        b'{"version": 1, "lessons": {"90": {"quizzes": 3}}}',
    ],
    ids=["cut off", "not text", "not a mapping", "other version", "wrong nesting"],
)
def test_damaged_file_is_kept_aside_and_a_new_one_begun(tmp_path, notes, content):
    (tmp_path / "progress.json").write_bytes(content)
    progress = Progress(tmp_path, notify=notes.append)
    progress.record_quiz("90", "l90.snr", True)
    assert (tmp_path / "progress.damaged-1.json").read_bytes() == content
    assert Progress(tmp_path).entry("90", "quizzes", "l90.snr")["right"]
    assert len(notes) == 1 and "progress.damaged-1.json" in notes[0]


def test_second_damage_does_not_overwrite_the_first(tmp_path, notes):
    for content in ("first", "second"):
        (tmp_path / "progress.json").write_text(content)
        Progress(tmp_path, notify=notes.append)
    assert (tmp_path / "progress.damaged-1.json").read_text() == "first"
    assert (tmp_path / "progress.damaged-2.json").read_text() == "second"


def test_home_that_is_no_folder_falls_back_to_memory_with_one_note(tmp_path, notes):
    (tmp_path / "file").write_text("")
    progress = Progress(tmp_path / "file" / "home", notify=notes.append)
    for id in ("l90.snr", "l90.steps"):
        progress.record_quiz("90", id, True)
    assert progress.in_memory and len(notes) == 1 and "LABKIT_HOME" in notes[0]
    assert progress.entry("90", "quizzes", "l90.steps")["right"]


def test_read_only_home_falls_back_to_memory_with_one_note(tmp_path, notes, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", refuse)
    progress = Progress(tmp_path, notify=notes.append)
    progress.record_quiz("90", "l90.snr", True)
    progress.record_quiz("90", "l90.snr", True)
    assert notes == [note for note in notes if "Permission denied" in note] and len(notes) == 1
    assert progress.entry("90", "quizzes", "l90.snr")["right"] and not progress.path.exists()


def test_interrupted_write_leaves_the_old_file_whole(progress, tmp_path, monkeypatch):
    progress.record_quiz("90", "l90.snr", True)
    before = progress.path.read_bytes()

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        progress.record_quiz("90", "l90.steps", True)
    assert progress.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"progress.json", ".progress.lock"}


def test_unknown_part_is_refused(progress):
    with pytest.raises(ValueError, match="choose one of exercises, quizzes, predictions"):
        progress.update("90", "exams", "x", lambda entry: None)


def test_home_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    assert home_folder() == tmp_path
    monkeypatch.delenv("LABKIT_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert home_folder() == tmp_path / ".labkit"


def test_overview_lists_everything_done_or_not(progress):
    progress.record_check("90", "l90.answer", "passed")
    progress.record_check("90", "l90.add_noise", "failed")
    progress.record_quiz("90", "l90.snr", True)
    states = {row["id"]: row["state"] for row in overview(progress, FIXTURE)}
    assert states == {
        "l90.add_noise": "tried",
        "l90.margin_loss": "open",
        "l90.answer": "passed",
        "l90.running_mean": "open",
        "l90.snr": "right",
        "l90.steps": "open",
    }


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_table_columns_line_up_in_both_languages(progress, lang):
    with language(lang):
        lines = report(overview(progress, FIXTURE), progress.path)[1].splitlines()
    rows = [line for line in lines if "l90." in line]
    assert len(rows) == 6
    assert {width(line[: line.index("l90.")]) for line in rows} == {width(rows[0][: rows[0].index("l90.")])}
    assert len({width(line[: line.index("●")]) for line in rows if "●" in line}) == 1


def test_labkit_progress_prints_the_state(tmp_path, capsys):
    Progress(tmp_path).record_check("90", "l90.answer", "passed")
    assert cli("--home", tmp_path) == 0
    out = capsys.readouterr().out
    assert "1 of 4 exercises passed, 0 of 2 questions" in out and str(tmp_path) in out
    assert cli("--home", tmp_path, "--lang", "ja") == 0
    assert "課題 1/4 合格" in capsys.readouterr().out


def test_labkit_progress_as_json_and_for_one_lesson(tmp_path, capsys):
    assert cli("--home", tmp_path, "--json", "--lesson", "90") == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    assert cli("--home", tmp_path, "--lesson", "12") == 2
    assert "the lessons are: 90" in capsys.readouterr().err


def test_nothing_done_yet_says_how_to_begin(tmp_path, capsys):
    cli("--home", tmp_path)
    assert "Nothing done yet" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path):
    code = (
        "import sys; from labkit.course.progress import Progress; progress = Progress(sys.argv[1])\n"
        "for k in range(25): progress.record_quiz('90', f'l90.{sys.argv[2]}{k}', True)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(module.Progress(tmp_path).data["lessons"]["90"]["quizzes"]) == 75


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError()])
def test_writing_works_without_file_locks(progress, tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(module.FileLock, "acquire", refuse)
    progress.record_quiz("90", "l90.snr", True)
    assert module.Progress(tmp_path).entry("90", "quizzes", "l90.snr")["right"]
