"""The stamp, and the install cell: computed, harmless elsewhere, and unable to touch what Colab depends on."""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from labkit.authoring import build, colab, commands
from labkit.authoring.install import install_cell, requirements
from labkit.authoring.stamp import Stamp, StampError, git_repository, read_stamp, repository, with_stamp, write_stamp
from labkit.course.i18n import Catalogue, common_messages
from labkit.course.manifest import ROOT, Project

SAMPLE = Path(__file__).parent / "data" / "course"
COLAB = Path(__file__).parent / "data" / "colab-2026-08-19.txt"
PROTECTED = {"torch", "numpy", "ipython", "ipykernel", "ipywidgets"}


def on_colab() -> dict[str, str]:
    """Name -> version of Colab's published list."""
    lines = [line for line in COLAB.read_text().splitlines() if "==" in line and line[0] != "#"]
    return {colab.canonical(line): line.split("==")[1].strip() for line in lines}


def say(key: str, **values: str) -> str:
    return common_messages()[f"install.{key}"]["en"].format(**values)


def cell(repo: str = "", lang: str = "en", pyproject: Path = SAMPLE / "pyproject.toml") -> str:
    return install_cell(pyproject, Stamp(repo), lang, Catalogue(common_messages()))


# ---- the list ------------------------------------------------------------------------------------------------------


def test_requirements_come_from_pyproject_without_the_protected_packages():
    needs, built_in = requirements(SAMPLE / "pyproject.toml")
    assert needs == ["diffusers>=0.39,<1", "matplotlib-fontja>=1.1,<2", "Resvg_py>=0.5,<0.6"]
    assert [colab.canonical(line) for line in built_in] == ["ipykernel", "ipywidgets", "numpy", "torch"]


def test_on_colab_only_the_small_missing_packages_are_installed():
    """With the real pyproject.toml and Colab's real list: nothing protected, nothing that Colab ships, nothing big."""
    needs, built_in = requirements(ROOT / "pyproject.toml")
    have = on_colab()
    missing = {colab.canonical(line) for line in needs if not colab.satisfied(line, have)}
    assert missing == {"budoux", "dicebear-core", "dicebear-styles", "matplotlib-fontja", "resvg-py"}
    assert not missing & (PROTECTED | have.keys())
    assert all(colab.satisfied(line, have) for line in built_in)
    assert {colab.canonical(line) for line in built_in} == PROTECTED
    assert not {colab.canonical(line) for line in needs} & PROTECTED


@pytest.mark.parametrize(
    ("line", "ok"),
    [
        ("torch>=2.11,<3", True),  # 2.11.0+cu128: a local version is that version
        ("torch>=2.12", False),
        ("absent>=1", False),
        ("absent>=1; python_version < '3'", True),
        ("huggingface_hub>=1.20,<3", True),
    ],
)
def test_satisfied_follows_versions_and_markers(line, ok):
    assert colab.satisfied(line, on_colab()) is ok


# ---- the installer -------------------------------------------------------------------------------------------------


class FakePip:
    """Stands for pip: records command lines and constraint files, and changes the list of installed packages."""

    def __init__(self, have: dict[str, str], changes: dict[str, str] | None = None):
        self.have, self.changes, self.commands, self.constraints = dict(have), changes or {}, [], []

    def __call__(self, command):
        self.commands.append(list(command))
        if "--constraint" in command:
            self.constraints += Path(command[command.index("--constraint") + 1]).read_text().splitlines()
        self.have |= self.changes


def install(monkeypatch, pip: FakePip, pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    monkeypatch.setattr(colab, "installed", lambda: dict(pip.have))
    return colab.install(*requirements(pyproject), say, pip)


def test_no_pip_command_can_upgrade_what_is_installed(monkeypatch):
    pip = FakePip(on_colab())
    added = install(monkeypatch, pip)
    assert added and len(pip.commands) == 2
    for command in pip.commands:
        assert command[0] == "install" and ("--constraint" in command) != ("--no-deps" in command)
        assert not {"--upgrade", "-U", "--force-reinstall"} & set(command)
        named = {colab.canonical(arg) for arg in command if re.match(r"[A-Za-z]", arg) and arg != "install"}
        assert not named & (PROTECTED | pip.have.keys())
    assert pip.commands[-1][-1] == str(ROOT)
    pins = dict(line.split("==") for line in pip.constraints)
    assert pins == on_colab()  # every package, protected ones included, is pinned to the version that is there


def test_a_package_that_is_too_old_may_move_but_nothing_else(monkeypatch):
    pip = FakePip(on_colab() | {"diffusers": "0.30.0"})
    added = install(monkeypatch, pip)
    pins = dict(line.split("==") for line in pip.constraints)
    assert any(line.startswith("diffusers") for line in added)
    assert pip.have.keys() - pins.keys() == {"diffusers"}


def test_versions_that_pip_cannot_read_are_left_out_of_the_constraints():
    assert colab.constraints({"a": "1.0", "odd": "1.36ubuntu1-x", "b": "2.0+cu1"}, ["b>=3"]) == ["a==1.0"]


@pytest.mark.parametrize("name", sorted(PROTECTED))
def test_a_changed_protected_package_is_reported(monkeypatch, name):
    with pytest.raises(colab.InstallError, match=name):
        install(monkeypatch, FakePip(on_colab(), {name: "99.0"}))


def test_a_runtime_that_is_too_old_is_refused_before_anything_is_installed(monkeypatch):
    pip = FakePip(on_colab() | {"torch": "2.5.0"})
    with pytest.raises(colab.InstallError, match=r"torch>=2\.\d+.*2\.5\.0"):
        install(monkeypatch, pip)
    assert pip.commands == []


def test_a_protected_requirement_is_never_installed_even_if_asked_for(monkeypatch):
    pip = FakePip({})
    monkeypatch.setattr(colab, "installed", lambda: {})
    with pytest.raises(colab.InstallError, match="numpy"):
        colab.install(["numpy>=2"], [], say, pip)
    assert pip.commands == []


@pytest.mark.parametrize(("lang", "text"), [("en", "The course is installed"), ("ja", "教材をインストールしました")])
def test_the_script_runs_without_labkit_and_speaks_the_language(monkeypatch, capsys, lang, text):
    """It is loaded by path, as on Colab; `pip` is replaced by something that does nothing."""
    source = (ROOT / "labkit/authoring/colab.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) labkit", source, re.M)
    commands = []
    done = SimpleNamespace(returncode=0, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
    assert colab.main([lang, "pyyaml>=5", "--", "no-such-distribution>=1"]) == 0
    assert text in capsys.readouterr().out
    assert [command[1:4] for command in commands] == [["-m", "pip", "install"]] * 2


def test_the_script_says_why_pip_failed(monkeypatch, capsys):
    failed = SimpleNamespace(returncode=1, stdout="", stderr="no network")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: failed)
    assert colab.main(["en", "--", "no-such-distribution>=1"]) == 1
    assert "no network" in capsys.readouterr().out


def test_an_unreadable_pyproject_is_a_clear_error(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(colab.InstallError, match="dependencies"):
        requirements(tmp_path / "pyproject.toml")


# ---- the cell ------------------------------------------------------------------------------------------------------


def run_cell(
    monkeypatch, code: str, *, colab_kernel: bool, returncode: int = 0, absent: str = "labkit"
) -> list[list[str]]:
    """Execute the cell, with one module absent and a subprocess that only records; returns its command lines."""
    commands = []
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    done = SimpleNamespace(returncode=returncode, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if colab_kernel:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(compile(code, "install cell", "exec"), {})
    return commands


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("repo", ["", "octocat/course"])
def test_where_the_course_is_installed_the_cell_does_nothing_elsewhere(monkeypatch, capsys, repo, lang):
    assert run_cell(monkeypatch, cell(repo, lang), colab_kernel=False, absent="nothing") == []
    assert capsys.readouterr().out == ""


def test_an_unstamped_copy_whose_course_was_installed_by_hand_goes_on_on_colab(monkeypatch):
    assert run_cell(monkeypatch, cell(""), colab_kernel=True, absent="nothing") == []


@pytest.mark.parametrize(("lang", "text"), [("en", "write OWNER/NAME"), ("ja", "OWNER/NAME の形で入力")])
def test_unstamped_on_colab_the_cell_stops_the_notebook_and_says_what_to_do(monkeypatch, lang, text):
    for written in ("", "octocat", "https://github.com/octocat/course"):
        code = cell("", lang).replace('repo = ""', f'repo = "{written}"')
        with pytest.raises(RuntimeError, match=text) as stop:
            run_cell(monkeypatch, code, colab_kernel=True)
        assert "\n" not in str(stop.value)


@pytest.mark.parametrize("absent", ["labkit", "labkit.course"])  # the second: another project's labkit is installed
@pytest.mark.parametrize("repo", ["", "octocat/course"])
@pytest.mark.parametrize(("lang", "text"), [("en", "is not installed"), ("ja", "入っていません")])
def test_without_the_course_the_cell_stops_the_notebook_elsewhere(monkeypatch, lang, text, repo, absent):
    with pytest.raises(RuntimeError, match=text) as stop:
        run_cell(monkeypatch, cell(repo, lang), colab_kernel=False, absent=absent)
    assert "make lab" in str(stop.value) and "\n" not in str(stop.value)


def test_stamped_on_colab_the_cell_clones_and_runs_the_installer(monkeypatch):
    clone, script = run_cell(monkeypatch, cell("octocat/course", "ja"), colab_kernel=True)
    assert clone[:5] == ["git", "clone", "--quiet", "--depth", "1"]
    folder = f"{tempfile.gettempdir()}/course"
    assert clone[-2:] == ["https://github.com/octocat/course", folder]
    assert script[1:3] == [f"{folder}/labkit/authoring/colab.py", "ja"]
    needs, built_in = requirements(SAMPLE / "pyproject.toml")
    assert script[3:] == [*built_in, "--", *needs]


def test_a_failing_command_stops_the_notebook(monkeypatch):
    with pytest.raises(RuntimeError, match="git clone"):
        run_cell(monkeypatch, cell("octocat/course"), colab_kernel=True, returncode=128)


def test_the_cell_installs_nothing_by_itself():
    assert not re.search(r"[\"'!%]pip\b|\binstall\b.*torch", cell("octocat/course").split("\n", 2)[2])


# ---- the stamp -----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    shutil.copytree(SAMPLE, tmp_path / "course", ignore=shutil.ignore_patterns("build"))
    return Project(tmp_path / "course")


def labkit_stamp(project: Project, *args: str) -> int:
    parser = argparse.ArgumentParser()
    commands.add_stamp_parser(parser.add_subparsers())
    namespace = parser.parse_args(["stamp", *args, "--root", str(project.root)])
    return namespace.func(namespace)


def test_stamping_writes_badges_and_install_cells_and_clearing_restores_every_byte(project, capsys):
    before = {path: path.read_bytes() for path in sorted(project.root.rglob("*.*")) if path.is_file()}
    assert all(b"colab.research.google.com" not in data for path, data in before.items() if path.suffix == ".ipynb")
    assert labkit_stamp(project, "--repo", "https://github.com/octocat/course.git", "--branch", "release") == 0
    for lang in ("en", "ja"):
        text = project.notebook("00_hello", lang).read_text(encoding="utf-8")
        address = (
            f"https://colab.research.google.com/github/octocat/course/blob/release/notebooks/{lang}/00_hello.ipynb"
        )
        assert address in text and 'repo = \\"octocat/course\\"' in text
        assert "https://github.com/octocat/course/issues" in text
    assert read_stamp(project.stamp) == Stamp("octocat/course", "release")
    assert build.drift(project) == []
    assert labkit_stamp(project, "--clear", "--branch", "main") == 0
    assert {path: path.read_bytes() for path in before} == before


def test_without_options_the_stamp_is_shown(project, capsys):
    assert labkit_stamp(project) == 0
    assert "not stamped" in capsys.readouterr().out


@pytest.mark.parametrize("repo", ["octocat", "octocat/course/tree", "-x/course", "octo cat/course", "a/b;rm"])
def test_what_is_no_repository_is_refused_and_changes_nothing(project, capsys, repo):
    before = project.stamp.read_bytes()
    assert labkit_stamp(project, f"--repo={repo}") == 2
    assert "OWNER/NAME" in capsys.readouterr().err
    assert project.stamp.read_bytes() == before


@pytest.mark.parametrize(
    "address",
    ["o/n", "https://github.com/o/n", "https://github.com/o/n/", "git@github.com:o/n.git", "github.com/o/n", " o/n "],
)
def test_pasted_addresses_are_understood(address):
    assert repository(address) == "o/n"


def test_a_stamp_file_is_checked(tmp_path):
    path = tmp_path / "stamp.yaml"
    assert read_stamp(path) == Stamp()
    write_stamp(path, Stamp("o/n", "dev"))
    assert read_stamp(path) == Stamp("o/n", "dev")
    for text in ("repo: [1", "repository: o/n\n", "repo: nonsense\n", "- a\n"):
        path.write_text(text)
        with pytest.raises(StampError):
            read_stamp(path)


def test_the_committed_stamp_of_the_course_can_be_read():
    assert isinstance(read_stamp(Project().stamp), Stamp)


# ---- clones, forks, READMEs ------------------------------------------------------------------------------------------


def clone_of(address: str, project: Project) -> None:
    for command in (["init", "-q"], ["remote", "add", "origin", address]):
        subprocess.run(["git", *command], cwd=project.root, check=True)


@pytest.mark.parametrize(
    ("address", "repo"),
    [
        ("https://github.com/octocat/course.git", "octocat/course"),
        ("git@github.com:octocat/course.git", "octocat/course"),
        ("ssh://git@github.com/octocat/course", "octocat/course"),
        ("https://user@github.com/octocat/course", "octocat/course"),
        ("https://gitlab.com/octocat/course.git", ""),
        ("/srv/github.com.git", ""),
    ],
)
def test_the_address_comes_from_the_clones_remote(project, address, repo):
    clone_of(address, project)
    assert git_repository(project.root) == repo


def test_a_fork_is_told_so_and_stamped_from_git(project, capsys):
    (project.root / "README.md").write_text(
        "<!-- stamp --><!-- /stamp -->\n| 00 | [a](notebooks/en/00_hello.ipynb) | b |\n"
    )
    assert labkit_stamp(project, "--from-git") == 2
    assert "no remote origin on GitHub" in capsys.readouterr().err
    assert labkit_stamp(project, "--repo", "octocat/course") == 0
    clone_of("https://github.com/Somebody/course.git", project)
    assert labkit_stamp(project) == 0
    assert "clone is of Somebody/course, but its notebooks open octocat/course" in capsys.readouterr().out
    assert labkit_stamp(project, "--from-git") == 0
    shown = capsys.readouterr()
    assert "wrote README.md" in shown.out and "stamp --from-git" not in shown.err
    assert read_stamp(project.stamp).repo == "Somebody/course"
    page = "https://somebody.github.io/course/en/lessons/00_hello.html"
    text = (project.root / "README.md").read_text("utf-8")
    assert page in text and "octocat" not in text
    assert labkit_stamp(project) == 0
    assert "notebooks open" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_both_readmes_take_the_address_and_give_it_back(name):
    before = (ROOT / name).read_text(encoding="utf-8")
    words = {"executed": "figures", "stamped": "see {site}", "unstamped": "labkit stamp --from-git"}
    bare, stamped = with_stamp(before, Stamp(), words), with_stamp(before, Stamp("o/n"), words)
    lang = "ja" if ".ja." in name else "en"
    lessons = len(list((ROOT / "notebooks" / lang).glob("*.ipynb")))
    assert (
        stamped.count(f"https://o.github.io/n/{lang}/lessons/") == stamped.count(f"notebooks/{lang}/0") // 2 == lessons
    )
    assert "see https://o.github.io/n\n" in stamped and "--from-git" in bare
    assert with_stamp(stamped, Stamp(), words) == bare and with_stamp(stamped, Stamp("o/n"), words) == stamped
    assert Stamp("O/o.github.io").site == "https://o.github.io"
