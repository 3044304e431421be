"""The `labkit` command: every subcommand is there, loads only what it needs, and the environment check tells cures."""

import argparse
import codecs
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from labkit import __version__, cli, envcheck
from labkit.authoring.run.job import Outcome
from labkit.course.i18n import MESSAGES, flatten, get_language, set_language
from labkit.course.manifest import ROOT, Project
from labkit.envcheck import FAIL, OK, WARN, Finding, check_environment, report, requirements


@pytest.fixture(params=["en", "ja"])
def lang(request):
    before = get_language()
    set_language(request.param)
    yield request.param
    set_language(before)


class TestCommands:
    @pytest.mark.parametrize("name", list(cli.COMMANDS))
    def test_every_command_explains_itself(self, name, capsys):
        with pytest.raises(SystemExit) as end:
            cli.main([name, "--help"])
        assert end.value.code == 0
        assert f"usage: labkit {name}" in capsys.readouterr().out

    def test_the_overview_names_every_command(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["--help"])
        out = capsys.readouterr().out
        assert all(f"    {name} " in out for name in cli.COMMANDS)

    def test_the_overview_imports_no_command_and_nothing_heavy(self):
        code = (
            "import sys\nfrom labkit import cli\n"
            "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
            "print([name for name in sys.modules if name.startswith(('labkit.course', 'torch', 'yaml', 'numpy'))])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.strip().splitlines()[-1] == "[]"

    def test_version(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["--version"])
        assert __version__ in capsys.readouterr().out

    def test_unknown_and_missing_commands_are_refused(self, capsys):
        for argv in (["rnu"], []):
            with pytest.raises(SystemExit) as end:
                cli.main(argv)
            assert end.value.code == 2
        assert "invalid choice: 'rnu'" in capsys.readouterr().err

    def test_an_interrupt_ends_with_130(self, monkeypatch, capsys):
        def interrupted(args):
            raise KeyboardInterrupt

        monkeypatch.setattr(envcheck, "main", interrupted)
        assert cli.main(["env"]) == 130

    @pytest.mark.parametrize(
        "words", [["study", "--folder", "file/x", "run", "05", "--hours", "0"], ["env", "--quick"]]
    )
    def test_what_cannot_be_written_is_one_line(self, words, monkeypatch, tmp_path, capsys):
        def full(args):
            raise OSError(28, "No space left on device", "file/x")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(envcheck, "main", full)
        Path("file").write_text("in the way of a folder")
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"labkit {words[0]}: file") and said.count("\n") == 1


COURSE = Project(ROOT / "tests" / "data" / "course")
ROOM = ["--root", str(COURSE.root)]
# command -> what a test asks of it, in a folder of its own with a folder `lot` of two pictures
ASKED = {
    "lab": [[*ROOM, "--folder", "work", "--lang", "ja"], [*ROOM, "--folder", "work", "--lang", "en"]],
    "update": [[*ROOM, "--folder", "new", "--lang", "ja"], [*ROOM, "--folder", "new", "--lang", "en"]],
    "env": [["--quick", "--lang", "ja"], ["--quick", "--lang", "en"]],
    "fetch": [
        ["--tier", "cpu", "--lang", "ja"],
        ["--folder", "models", "--dry-run", "--lang", "ja"],
        ["--folder", "models", "--model", "é"],
    ],
    "run": [[*ROOM, "--lang", "ja", "--output", "run"], ["--tier", "smoke", "--output", "run", "99"]],
    "build": [[*ROOM, "--check"]],
    "lint": [[*ROOM], ["--list"]],
    "stamp": [[*ROOM]],
    "dpo": [["é.csv"], ["none", "--check"]],
    "plan": [["--pairs", "1e6", "--gpus", "8"], ["--pairs", "é"]],
    "arena": [["é.tsv"], ["none", "--contenders", "draft", "--out", "é"]],
    "inspect": [
        ["plan", "--lot", "500", "--good", "0.01", "--bad", "0.05"],
        ["draw", "lot", "--n", "1", "--seed", "5", "--size", "9x9"],
        ["draw", "lot", "--n", "1", "--seed", "5", "--lang", "ja"],
        ["sign", "lot", "verdicts.jsonl", "--maker", "é", "--checker", "日"],
        ["verify", "record.json"],
        ["run", "none", "--plan", "bad=0.02", "--maker", "é", "--checker", "日", "--no-browser"],
        ["certify", "none", "verdicts.jsonl", "--scores", "é.jsonl", "--alpha", "0.02"],
    ],
    "measure": [["lot", "é"], ["é.npz", "lot", "--fid"]],
    "pcclip": [["probe", "é"], ["train", "lot", "--table", "é.csv", "--out", "work"], ["alarm", "é"]],
    "progress": [[*ROOM, "--lang", "ja"], [*ROOM, "--lang", "en"], [*ROOM, "--lang", "ja", "--json"]],
    "camp": [
        ["bundle", "--platform", "é"],
        ["learners", "camp", "é"],
        ["serve", "none"],
        ["board", "none"],
        ["board", "lot", *ROOM, "--lang", "ja"],
    ],
    "site": [[*ROOM, "--run", "none", "--output", "site"]],
    "study": [
        ["--folder", "studies", "run", "05", "--hours", "0"],
        ["--folder", "studies", "status", "05"],
        ["--folder", "studies", "verify", "05"],
        ["--folder", "studies", "adopt", "05"],
        ["--folder", "studies", "merge", "05", "é"],
        ["--folder", "studies", "check", "05"],
    ],
    "claims": [[*ROOM, "--lang", "ja"], [*ROOM, "--lang", "en"], [*ROOM, "--json"]],
}


STEPS = {
    "camp": ["bundle", "learners", "serve", "board"],
    "inspect": ["plan", "run", "draw", "sign", "verify", "certify"],
    "pcclip": ["probe", "train", "alarm"],
    "study": ["run", "status", "verify", "adopt", "merge", "check"],
}


def entries(path):
    """The texts of a catalogue file in both languages; nothing of other files."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [entry for _, entry in flatten(data) if isinstance(entry, dict) and isinstance(entry.get("en"), str)]


class TestEncodings:
    """Windows writes to files and pipes in cp932 (Japan) or cp1252; a bare Linux container writes ASCII."""

    @pytest.fixture
    def printed(self, tmp_path, monkeypatch):
        """printed(encoding, *words): (exit code, what a terminal of that encoding shows)."""
        from PIL import Image

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
        monkeypatch.setattr("labkit.course.workspace.become", lambda *call: 0)
        monkeypatch.setattr(
            "labkit.models.checksums.verify", lambda folder: 1
        )  # hashing the models has tests of its own
        monkeypatch.setattr("labkit.authoring.run.run_all", self.run_nothing)
        (tmp_path / "lot").mkdir()
        for side, name in enumerate(("é", "日"), start=8):
            Image.new("RGB", (side, 9)).save(tmp_path / "lot" / f"{name}.png")

        def run(encoding, *words, japanese=True):
            for name in ("work", "new", "run", "inspection"):
                shutil.rmtree(tmp_path / name, ignore_errors=True)
            streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="") for _ in range(2)]
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", streams[0])
                patch.setattr(sys, "stderr", streams[1])
                for module in ("labkit.cli", "labkit.course.render", "labkit.course.workspace"):
                    if not japanese:
                        patch.setattr(f"{module}.can_print", lambda text: False)
                try:
                    code = cli.main(list(words))
                except SystemExit as end:
                    code = end.code
            for stream in streams:
                stream.flush()
            return code, "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)

        before = get_language()
        yield run
        set_language(before)

    @staticmethod
    def run_nothing(tasks, jobs, done, tick):
        """As if a lesson had stopped with an error in Japanese and the others had passed."""
        tick({tasks[0].name: (3.0, 2)})
        for task in tasks:
            Path(task.job.html).write_text("<p>", encoding="utf-8")
            done(task, Outcome("failed", 1.0, error="ValueError: é 値 κ"))
        return True

    @staticmethod
    def normal(text):
        """Without what differs from run to run."""
        text = re.sub(r"labkit: the encoding .*\n", "", text)
        return re.sub(r"[\d.]+ (s|MB|GB)\b|\d+秒|\d{2,}[\d.:T+-]*|[0-9a-f]{8,}|\s+|-{2,}", " ", text)

    @pytest.mark.parametrize("name", list(cli.COMMANDS))
    def test_every_command_writes_readable_text_in_every_encoding(self, name, printed):
        helps = [[name, "--help"], *([name, step, "--help"] for step in STEPS.get(name, []))]
        for words in [*helps, *([name, *words] for words in ASKED[name])]:
            for encoding in ("cp932", "cp1252", "ascii"):
                japanese = encoding == "cp932"
                if encoding != "ascii":  # as cp1252
                    want_code, want = printed("utf-8", *words, japanese=japanese)
                code, text = printed(encoding, *words)
                assert code == want_code, (words, text)
                assert ("has no Japanese" in text) <= ("ja" in words and not japanese), (words, text)
                assert self.normal(text) == self.normal(want.encode(encoding, "labkit").decode(encoding)), words
                assert "??" not in text and "Traceback" not in text, (words, encoding, text)

    def test_the_steps_of_commands_are_all_tried(self):
        for name, (where, _) in cli.COMMANDS.items():
            subparsers = argparse.ArgumentParser().add_subparsers()
            module, _, register = where.partition(":")
            getattr(importlib.import_module(module), register)(subparsers)
            [steps] = [
                list(action._name_parser_map)  # `choices` is None where a step may be left out
                for action in subparsers.choices[name]._actions
                if isinstance(action, argparse._SubParsersAction)
            ] or [[]]
            assert STEPS.get(name, []) == steps and {*steps} <= {word for words in ASKED[name] for word in words}

    def test_a_process_of_its_own_follows_the_environment(self, tmp_path):
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "LABKIT_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "labkit.cli", "progress", "--lang", "ja", *ROOM]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment)
        assert done.returncode == 0 and b"Your progress" in done.stdout, done
        assert done.stderr.decode("cp1252").splitlines() == [
            "labkit: the encoding cp1252 has no Japanese; set PYTHONUTF8=1 to read Japanese here"
        ]

    @pytest.mark.parametrize(
        ("encoding", "text"),
        [
            ("cp932", "+ 眼鏡 … ●○ e2 β"),
            ("cp1252", "+ ?? … *. é² beta"),
            ("ascii", "+ ?? ... *. e2 beta"),
        ],
    )
    def test_signs_have_substitutes_where_they_are_missing_only(self, encoding, text):
        codecs.register_error("labkit", cli.substitute)
        assert "✓ 眼鏡 … ●○ é² β".encode(encoding, "labkit").decode(encoding) == text

    def test_every_sign_of_our_english_texts_can_be_written_in_ascii(self):
        texts = [entry["en"] for path in MESSAGES.parent.rglob("*.yaml") for entry in entries(path)]
        assert len(texts) > 500
        texts = [
            text for text in texts if not re.search("[\u3040-\u30ff\u4e00-\u9fff]", text)
        ]  # a word to Japanese readers
        signs = {sign for text in texts for sign in text if not sign.isascii()}
        assert len(signs) > 10 and not [sign for sign in signs if "?" in cli.in_ascii(sign)]


class TestEnvironment:
    def test_requirements_cover_dependencies_and_the_course_extra_only(self):
        found = requirements("course")
        assert {"torch", "matplotlib-fontja", "ipywidgets", "papermill"} <= set(found)
        assert "pytest" not in found and "torch-fidelity" not in found
        assert ">=" in found["torch"]
        assert "torch" in requirements() and "papermill" not in requirements()

    def test_requirements_are_the_same_from_the_installed_package_and_from_pyproject(self, monkeypatch):
        from importlib.metadata import PackageNotFoundError

        lines = ["torch<3,>=2.11", "ipywidgets!=8.1.9,<9,>=7.7.1; extra == 'course'", "pytest>=8; extra == 'dev'"]
        monkeypatch.setattr(envcheck, "requires", lambda name: lines)
        assert requirements("course") == {"torch": "<3,>=2.11", "ipywidgets": "!=8.1.9,<9,>=7.7.1"}
        assert requirements() == {"torch": "<3,>=2.11"}

        def missing(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr(envcheck, "requires", missing)
        assert "torch" in requirements() and "papermill" in requirements("course")

    def test_old_and_missing_packages_are_named_with_the_cure(self, monkeypatch, lang):
        monkeypatch.setattr(
            envcheck, "requirements", lambda *_: {"numpy": ">=99", "no-such-package": "", "pillow": ">=1"}
        )
        found = {one.name: one for one in envcheck._packages("cpu")}
        assert (
            found["numpy"].status == FAIL and ">=99" in found["numpy"].advice and "pip install" in found["numpy"].advice
        )
        assert found["no-such-package"].status == FAIL and "pip install" in found["no-such-package"].advice
        assert any(one.status == OK and "1" in one.found for one in found.values())

    @pytest.mark.parametrize(("release", "status"), [((3, 10), FAIL), ((3, 11), OK), ((3, 13), OK), ((3, 14), FAIL)])
    def test_supported_python_versions(self, monkeypatch, release, status):
        monkeypatch.setattr(envcheck.sys, "version_info", (*release, 0))
        (found,) = envcheck._python("cpu")
        assert found.status == status and bool(found.advice) == (status == FAIL)

    def test_the_trials_do_what_lessons_do_and_name_the_package_that_breaks(self, monkeypatch):
        def broken(*_):
            raise RuntimeError("operator torchvision::nms does not exist")

        monkeypatch.setattr("labkit.models.load_clip", broken)
        *good, clip, title = envcheck.try_out()
        assert [one.status for one in (*good, clip, title)] == [OK, OK, FAIL, OK]
        assert "torchvision::nms" in clip.found and "pip uninstall torchvision" in clip.advice
        monkeypatch.setattr("labkit.models.load_pipeline", broken)
        (picture,) = envcheck.try_out()  # nothing goes on without it
        assert picture.status == FAIL and "constraints.txt" in picture.advice

    def test_widgets_that_vs_code_cannot_show(self, monkeypatch):
        monkeypatch.setattr(envcheck, "version", lambda name: "8.1.9")
        monkeypatch.setattr(envcheck, "in_vscode", lambda: True)
        (found,) = envcheck._widgets("cpu")
        assert found.status == WARN and "8.1.8" in found.advice
        monkeypatch.setattr(envcheck, "in_vscode", lambda: False)
        (found,) = envcheck._widgets("cpu")
        assert found.status == OK

    def test_a_missing_japanese_font_is_a_warning(self, monkeypatch):
        monkeypatch.setattr("labkit.figures.style.japanese_font", lambda: None)
        (found,) = envcheck._font("cpu")
        assert found.status == WARN and "matplotlib-fontja" in found.advice

    def test_a_full_or_read_only_disk_is_told(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LABKIT_RESULTS", str(tmp_path / "not" / "yet"))
        usage = type("Usage", (), {"free": 2**28})
        monkeypatch.setattr(envcheck.shutil, "disk_usage", lambda folder: usage)
        (found,) = envcheck._disk("cpu")
        assert found.status == FAIL and "0.2 GB" in found.found

        def refuse(dir):
            raise PermissionError(dir)

        monkeypatch.setattr(envcheck.tempfile, "TemporaryFile", refuse)
        (found,) = envcheck._disk("cpu")
        assert found.status == WARN and "LABKIT_RESULTS" in found.advice

    def test_missing_and_damaged_model_files_are_told(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LABKIT_DATA", str(tmp_path))
        (found,) = envcheck._models("cpu")
        assert found.status == FAIL and "git checkout" in found.advice
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "w").write_bytes(b"1")
        (tmp_path / "checksums.json").write_text('{"m/w": "00"}')
        (found,) = envcheck._models("cpu")
        assert found.status == FAIL and "damaged" in found.found

    def test_the_gpu_tier_without_a_gpu_fails_and_the_cpu_tier_does_not(self, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        (found,) = envcheck._device("gpu")
        assert found.status == FAIL and found.advice
        (found,) = envcheck._device("cpu")
        assert found.status == OK

    def test_every_problem_has_a_cure_and_the_report_shows_all(self, lang):
        findings = check_environment("cpu")
        assert all(one.advice for one in findings if one.status != OK)
        html, text = report(findings)
        assert all(one.name in text for one in findings) and "<table" in html

    def test_the_last_line_tells_the_worst(self):
        set_language("en")
        fine, odd, bad = Finding("a", OK, "x"), Finding("b", WARN, "x", "y"), Finding("c", FAIL, "x", "y")
        assert report([fine])[1].endswith("Everything is ready.")
        assert "You can start" in report([fine, odd])[1] and "mend" in report([odd, bad])[1]

    def test_unknown_tiers_are_refused(self):
        with pytest.raises(ValueError, match="'huge'"):
            check_environment("huge")

    def test_the_command_fails_only_when_something_is_in_the_way(self, monkeypatch, capsys):
        for status, code in ((OK, 0), (WARN, 0), (FAIL, 1)):
            monkeypatch.setattr(envcheck, "check_environment", lambda tier, s=status: [Finding("a", s, "x", "y")])
            monkeypatch.setattr(envcheck, "try_out", lambda: [Finding("b", OK, "x")])
            assert cli.main(["env", "--lang", "ja"]) == code
        assert "項目" in capsys.readouterr().out
        monkeypatch.setattr(envcheck, "check_environment", lambda tier: [])
        monkeypatch.setattr(envcheck, "try_out", lambda: [Finding("b", FAIL, "x", "y")])
        assert cli.main(["env"]) == 1 and cli.main(["env", "--quick"]) == 0
        assert os.environ.get("LABKIT_LANG") is None
