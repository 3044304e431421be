"""The `labkit` command: every subcommand is there, loads only what it needs, and the environment check tells cures."""

import codecs
import json
import os
import re
import subprocess
import sys

import pytest

from labkit import __version__, cli, envcheck
from labkit.course.i18n import get_language, set_language
from labkit.course.manifest import ROOT
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


class TestEncodings:
    """Windows writes to files and pipes in cp932 (Japan) or cp1252; a bare Linux container writes ASCII."""

    RUN = """
import json, sys
from labkit.cli import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    print(f"== {code}")
"""

    @classmethod
    def labkit(cls, *commands, encoding, home):
        """(exit code, output) of each command, called one after the other in a Python that writes in `encoding`."""
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LABKIT_HOME": str(home)}
        arguments = [sys.executable, "-c", cls.RUN, json.dumps(commands)]
        done = subprocess.run(arguments, capture_output=True, cwd=ROOT, env=environment)
        assert done.returncode == 0 and b"UnicodeEncodeError" not in done.stderr, done.stderr.decode("ascii", "replace")
        parts = re.split(r"== (\S+)\r?\n", done.stdout.decode(encoding))
        assert len(parts) == 2 * len(commands) + 1
        return list(zip(map(int, parts[1::2]), parts[::2], strict=False))

    @pytest.mark.parametrize("encoding", ["cp932", "cp1252", "ascii"])
    def test_every_command_that_shows_signs_writes_in_every_encoding(self, encoding, tmp_path):
        languages = [["--lang", lang] for lang in ("en", "ja")]
        commands = [["progress", *lang] for lang in languages]
        commands += [["claims", *lang, "--results", str(tmp_path)] for lang in languages]
        commands += [["env", "--lang", "ja"], ["--help"]]  # its description is in both languages
        commands += [["claims", "--json", "--results", str(tmp_path)]]
        found = self.labkit(*commands, encoding=encoding, home=tmp_path)
        assert [code for code, _ in found[:4]] == [0] * 4
        assert all("l01.add_noise" in out for _, out in found[:2]) and all("l04." in out for _, out in found[2:4])
        assert found[0][1] != found[1][1] and found[2][1] != found[3][1]
        (code, out), (help_code, help_text), (json_code, written) = found[4:]
        assert code in (0, 1) and "+ Python" in out
        assert help_code == 0 and "stamp" in help_text
        assert "拡散モデル" in help_text if encoding == "cp932" else "????" in help_text
        rows = json.loads(written)  # keeps every text in every encoding
        assert json_code == 0 and rows and all("???" not in row["statement"]["ja"] for row in rows)

    @pytest.mark.parametrize(
        ("encoding", "text"), [("cp932", "+ 眼鏡 … ●○"), ("cp1252", "+ ?? … *."), ("ascii", "+ ?? ... *.")]
    )
    def test_signs_have_substitutes_where_they_are_missing_only(self, encoding, text):
        codecs.register_error("labkit", cli.substitute)
        assert "✓ 眼鏡 … ●○".encode(encoding, "labkit").decode(encoding) == text


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
            assert cli.main(["env", "--lang", "ja"]) == code
        assert "項目" in capsys.readouterr().out
        assert os.environ.get("LABKIT_LANG") is None
