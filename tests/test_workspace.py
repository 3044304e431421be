"""Learners' own copies: what is handed out, what is never written again, and that nothing of the course gets in."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import cli
from labkit.course import workspace
from labkit.course.i18n import get_language
from labkit.course.manifest import ROOT, Project
from labkit.course.workspace import (
    RECORD,
    Change,
    WorkspaceError,
    cells_digest,
    default_folder,
    hand_out,
    lab_command,
    lab_environment,
    locale_language,
)

NAME = "en/01_noise.ipynb"


def notebook(*sources, outputs=(), ids=False, **metadata):
    cells = [
        {"cell_type": "code", "source": text, "metadata": {}, "outputs": list(outputs), "execution_count": None}
        for text in sources
    ]
    for index, cell in enumerate(cells if ids else []):
        cell["id"] = f"id{index}"
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}).encode()


@pytest.fixture
def course(tmp_path):
    """A clone with one lesson in two languages, and the folder for the copies."""
    root = tmp_path / "clone"
    (root / "notebooks" / "src").mkdir(parents=True)
    publish(root, "first")
    return Project(root), root / "work"


def publish(root, text, **changes):
    for lang in ("en", "ja"):
        (root / "notebooks" / lang).mkdir(exist_ok=True)
        (root / "notebooks" / lang / "01_noise.ipynb").write_bytes(notebook(f"{text} {lang}", **changes))


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestHandingOut:
    def test_a_new_folder_gets_both_languages_as_they_are(self, course):
        project, folder = course
        assert hand_out(project, folder) == [Change("new", NAME), Change("new", "ja/01_noise.ipynb")]
        for lang in ("en", "ja"):
            copy = folder / lang / "01_noise.ipynb"
            assert copy.read_bytes() == (project.notebooks / lang / "01_noise.ipynb").read_bytes()

    def test_handing_out_twice_changes_nothing(self, course):
        project, folder = course
        hand_out(project, folder)
        before = everything(folder)
        assert hand_out(project, folder) == []
        assert everything(folder) == before

    def test_an_untouched_copy_follows_the_course(self, course):
        project, folder = course
        hand_out(project, folder)
        publish(project.root, "second")
        assert hand_out(project, folder)[0] == Change("updated", NAME)
        assert (folder / NAME).read_bytes() == notebook("second en")
        publish(project.root, "third")
        assert hand_out(project, folder)[0] == Change("updated", NAME)

    def test_work_is_kept_and_the_new_version_lies_beside_it_once(self, course):
        project, folder = course
        hand_out(project, folder)
        mine = notebook("my answer")
        (folder / NAME).write_bytes(mine)
        assert hand_out(project, folder) == []  # the course has nothing new for it
        publish(project.root, "second")
        assert hand_out(project, folder)[0] == Change("kept", NAME, "en/01_noise.new.ipynb")
        assert (folder / NAME).read_bytes() == mine
        assert (folder / "en/01_noise.new.ipynb").read_bytes() == notebook("second en")
        assert hand_out(project, folder) == []

    def test_without_its_record_a_new_version_is_put_beside_once(self, course):
        project, folder = course
        hand_out(project, folder)
        (folder / NAME).write_bytes(notebook("my answer"))
        publish(project.root, "second")
        for _ in range(3):
            (folder / RECORD).unlink()
            hand_out(project, folder)
        assert sorted(p.name for p in (folder / "en").iterdir()) == ["01_noise.ipynb", "01_noise.new.ipynb"]

    @pytest.mark.parametrize("name", ["labkit", "data"])
    def test_a_folder_of_the_clone_that_holds_other_files_is_no_workspace(self, course, name):
        project, _ = course
        (project.root / name).mkdir()
        (project.root / name / "ours.py").write_text("x = 1", encoding="utf-8")
        with pytest.raises(WorkspaceError, match="holds other files"):
            hand_out(project, project.root / name)
        assert [p.name for p in (project.root / name).iterdir()] == ["ours.py"]

    def test_outputs_alone_make_a_copy_the_learners(self, course):
        project, folder = course
        hand_out(project, folder)
        ran = notebook("first en", outputs=[{"output_type": "stream", "name": "stdout", "text": "an hour of training"}])
        (folder / NAME).write_bytes(ran)
        publish(project.root, "second")
        assert hand_out(project, folder)[0].kind == "kept"
        assert (folder / NAME).read_bytes() == ran

    def test_mere_metadata_of_the_course_is_no_news_for_the_learners_copy(self, course):
        project, folder = course
        hand_out(project, folder)
        (folder / NAME).write_bytes(notebook("my answer"))
        publish(project.root, "first", title="renamed", ids=True)
        assert [change.name for change in hand_out(project, folder)] == ["ja/01_noise.ipynb"]
        assert not list(folder.rglob("*.new*"))

    def test_a_copy_that_has_the_new_text_already_gets_none_beside_it(self, course):
        project, folder = course
        hand_out(project, folder)
        (folder / NAME).write_bytes(notebook("second en", outputs=[{"output_type": "stream", "text": "x"}]))
        publish(project.root, "second")
        assert [change.name for change in hand_out(project, folder)] == ["ja/01_noise.ipynb"]

    def test_a_new_version_that_the_learner_worked_in_is_theirs_too(self, course):
        project, folder = course
        hand_out(project, folder)
        (folder / NAME).write_bytes(notebook("my answer"))
        publish(project.root, "second")
        hand_out(project, folder)
        publish(project.root, "third")
        assert hand_out(project, folder)[0].beside == "en/01_noise.new.ipynb"  # untouched: the newest takes its place
        (folder / "en/01_noise.new.ipynb").write_bytes(notebook("my second answer"))
        publish(project.root, "fourth")
        assert hand_out(project, folder)[0].beside == "en/01_noise.new-2.ipynb"
        found = [(folder / f"en/01_noise{end}.ipynb").read_bytes() for end in ("", ".new", ".new-2")]
        assert found == [notebook("my answer"), notebook("my second answer"), notebook("fourth en")]

    @pytest.mark.parametrize(
        "record", [None, b"", b"\xff{", b"[]", b'{"version": 1, "given": {"en/01_noise.ipynb": 3}}']
    )
    def test_without_a_usable_record_every_different_copy_counts_as_the_learners(self, course, record):
        project, folder = course
        hand_out(project, folder)
        (folder / RECORD).unlink() if record is None else (folder / RECORD).write_bytes(record)
        publish(project.root, "second")
        assert {change.kind for change in hand_out(project, folder)} == {"kept"}
        assert (folder / NAME).read_bytes() == notebook("first en")

    def test_a_stop_before_the_record_is_written_loses_nothing(self, course, monkeypatch):
        project, folder = course
        write = workspace.write_atomically

        def stopped(path, content):
            if path.name == RECORD:
                raise KeyboardInterrupt
            return write(path, content)

        monkeypatch.setattr(workspace, "write_atomically", stopped)
        with pytest.raises(KeyboardInterrupt):
            hand_out(project, folder)
        monkeypatch.undo()
        assert hand_out(project, folder) == []
        publish(project.root, "second")
        assert hand_out(project, folder)[0].kind == "updated"

    def test_a_deleted_copy_comes_back_fresh(self, course):
        project, folder = course
        hand_out(project, folder)
        (folder / NAME).unlink()
        assert hand_out(project, folder) == [Change("new", NAME)]

    def test_a_copy_that_is_no_notebook_any_more_is_kept(self, course):
        project, folder = course
        hand_out(project, folder)
        (folder / NAME).write_bytes(b"<<<<<<< half a merge")
        publish(project.root, "second")
        assert hand_out(project, folder)[0].kind == "kept"
        assert cells_digest(b"{}") == hashlib.sha256(b"{}").hexdigest()

    def test_folders_of_the_course_are_refused(self, course, tmp_path):
        project, _ = course
        before = everything(tmp_path)
        for folder in (project.root, project.root.parent, project.notebooks, project.notebooks / "en"):
            with pytest.raises(WorkspaceError, match="belongs to the course"):
                hand_out(project, folder)
        assert everything(tmp_path) == before

    def test_solutions_and_sources_are_not_in_the_copies(self, tmp_path):
        hand_out(Project(), tmp_path / "work")
        names = {path.name for path in (tmp_path / "work").rglob("*") if path.is_file()}
        assert names == {RECORD, *(path.name for path in (ROOT / "notebooks").glob("[ej][na]/*.ipynb"))}
        assert not any(path.is_symlink() for path in (tmp_path / "work").rglob("*"))

    def test_a_wheel_hands_out_what_is_packed_in_it_beside_the_current_folder(self, tmp_path, monkeypatch):
        packed = tmp_path / "site-packages" / "labkit" / "_notebooks" / "ja"
        packed.mkdir(parents=True)
        (packed / "01_noise.ipynb").write_bytes(notebook("packed"))
        project = Project(tmp_path / "site-packages")
        monkeypatch.chdir(tmp_path)
        folder = default_folder(project)
        assert folder == tmp_path / "labkit-work"
        assert hand_out(project, folder) == [Change("new", "ja/01_noise.ipynb")]

    def test_an_installation_without_notebooks_says_so(self, tmp_path):
        with pytest.raises(WorkspaceError, match="no notebooks in"):
            hand_out(Project(tmp_path), tmp_path / "work")


class TestGit:
    @pytest.fixture
    def camp(self, course, tmp_path):
        """(git in a folder, the teacher's repository, the learner's clone of it)."""
        teacher, learner = course[0].root, tmp_path / "learner"
        if shutil.which("git") is None:
            pytest.skip("git is not installed")

        def git(folder, *arguments):
            names = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.file.allow=always"]
            command = ["git", *names, "-C", str(folder), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return done.stdout.strip()

        shutil.copy(ROOT / ".gitignore", teacher)
        (teacher / "notebooks" / "src" / "01_noise.py").write_text("source")
        git(teacher, "init", "-q")
        git(teacher, "add", ".")
        git(teacher, "commit", "-qm", "first")
        git(tmp_path, "clone", "-q", str(teacher), str(learner))
        return git, teacher, learner

    def test_a_pull_of_a_changed_lesson_meets_no_work_and_update_brings_it_in(self, camp):
        git, teacher, learner = camp
        project, folder = Project(learner), learner / "work"
        hand_out(project, folder)
        (folder / NAME).write_bytes(notebook("my answer"))
        assert git(learner, "status", "--porcelain", "--untracked-files=all") == ""
        publish(teacher, "second")
        git(teacher, "commit", "-qam", "second")
        git(learner, "pull", "-q", "--ff-only")
        assert hand_out(project, folder) == [
            Change("kept", NAME, "en/01_noise.new.ipynb"),
            Change("updated", "ja/01_noise.ipynb"),
        ]
        assert (folder / NAME).read_bytes() == notebook("my answer")
        assert git(learner, "status", "--porcelain", "--untracked-files=all") == ""

    def test_a_folder_of_another_name_in_the_clone_is_not_tracked_either(self, camp):
        git, _, learner = camp
        hand_out(Project(learner), learner / "mine" / "deeper")
        assert git(learner, "status", "--porcelain", "--untracked-files=all") == ""


class TestJupyterLab:
    def test_it_opens_the_first_lesson_of_the_language_on_this_machine_alone_with_a_token(self, course):
        project, folder = course
        hand_out(project, folder)
        command = lab_command(folder, "ja", ["--port=8890"])
        assert command[:3] == [sys.executable, "-m", "jupyterlab"] and command[-1] == "--port=8890"
        assert "--ServerApp.ip=127.0.0.1" in command and f"--ServerApp.root_dir={folder}" in command
        assert "--LabApp.default_url=/lab/tree/ja/01_noise.ipynb" in command
        assert not any("token" in word or "password" in word for word in command)

    def test_settings_are_its_own_and_follow_the_language(self, course, monkeypatch):
        project, folder = course
        monkeypatch.delenv("LABKIT_RESULTS")
        kept = folder / ".jupyter/settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        for lang, locale in (("ja", "ja_JP"), ("en", "en")):
            environment = lab_environment(project, folder, lang)
            settings = Path(environment["JUPYTERLAB_SETTINGS_DIR"])
            assert settings.is_relative_to(folder)
            speech = settings / "@jupyterlab/translation-extension/plugin.jupyterlab-settings"
            assert json.loads(speech.read_text()) == {"locale": locale}
            if lang == "ja":
                kept.write_text('{"fetchNews": "true"}')
        assert kept.read_text() == '{"fetchNews": "true"}'  # what the learner chose since stays
        assert Path(environment["JUPYTERLAB_WORKSPACES_DIR"]).is_relative_to(folder)
        assert environment["LABKIT_RESULTS"] == str(project.root / "build" / "results")
        assert {name for name in environment if environment[name] != os.environ.get(name)} == {
            "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "LABKIT_RESULTS",
        }  # fmt: skip
        monkeypatch.setenv("LABKIT_RESULTS", "/mine")
        assert lab_environment(project, folder, "en")["LABKIT_RESULTS"] == "/mine"

    @pytest.mark.parametrize(
        ("environment", "lang"),
        [
            ({"LANG": "ja_JP.UTF-8"}, "ja"),
            ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
            ({"LANG": "en_US.UTF-8", "LC_ALL": "ja_JP"}, "ja"),
            ({"LANG": "de_DE", "LC_ALL": "", "LC_MESSAGES": "ja"}, "ja"),
            ({"LANG": "C"}, "en"),
        ],
    )
    def test_the_locale_chooses_the_language(self, environment, lang):
        assert locale_language(environment) == lang


class TestCommands:
    @pytest.fixture
    def started(self, monkeypatch):
        """What `labkit lab` would have become: [(command, environment)]."""
        calls = []
        monkeypatch.setattr(workspace, "become", lambda *call: calls.append(call) or 0)
        for name in ("LC_ALL", "LC_MESSAGES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("LANG", "ja_JP.UTF-8")
        return calls

    def test_lab_hands_out_says_the_language_and_passes_on_what_it_does_not_know(self, course, started, capsys):
        project, _ = course
        assert cli.main(["lab", "--root", str(project.root), "--no-browser", "--port", "8890"]) == 0
        ((command, environment),) = started
        assert command[-3:] == ["--no-browser", "--port", "8890"]
        assert f"--ServerApp.root_dir={project.root / 'work'}" in command
        assert "--LabApp.default_url=/lab/tree/ja/01_noise.ipynb" in command
        said = capsys.readouterr().out
        assert "レッスンを日本語で開きます" in said and "--lang en" in said and str(project.root / "work") in said
        assert get_language() == "en"

    def test_an_asked_language_wins_over_the_locale(self, course, started, capsys):
        project, _ = course
        assert cli.main(["lab", "--root", str(project.root), "--lang", "en"]) == 0
        assert "--LabApp.default_url=/lab/tree/en/01_noise.ipynb" in started[0][0]
        assert "as asked" in capsys.readouterr().out

    def test_update_names_what_was_kept_and_starts_nothing(self, course, started, capsys):
        project, folder = course
        hand_out(project, folder)
        (folder / NAME).write_bytes(notebook("my answer"))
        publish(project.root, "second")
        assert cli.main(["update", "--root", str(project.root), "--lang", "en"]) == 0
        said = capsys.readouterr().out
        assert "en/01_noise.ipynb is your own work" in said and "en/01_noise.new.ipynb" in said and not started
        assert cli.main(["update", "--root", str(project.root), "--lang", "ja"]) == 0
        assert "すべて最新" in capsys.readouterr().out

    @pytest.mark.parametrize("command", ["lab", "update"])
    def test_a_folder_that_cannot_be_written_is_one_line(self, course, started, capsys, command):
        project, folder = course
        folder.write_text("a file is in the way")
        assert cli.main([command, "--root", str(project.root)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith(f"labkit {command}: ") and "--folder FOLDER" in said
        assert cli.main([command, "--root", str(project.root), "--folder", str(project.notebooks)]) == 2
        assert "belongs to the course" in capsys.readouterr().err and not started

    def test_update_refuses_options_that_it_does_not_know(self, course, capsys):
        with pytest.raises(SystemExit):
            cli.main(["update", "--no-browser"])
        assert "unrecognized arguments: --no-browser" in capsys.readouterr().err
