"""The Makefile: installs by itself, explains what is wrong, and runs every lane."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

needs_make = pytest.mark.skipif(shutil.which("make") is None or os.name == "nt", reason="needs make and a POSIX shell")

FAKE_PYTHON = """#!/bin/sh
# Stands in for an interpreter: answers the version question, "makes" a virtual environment, records calls of pip.
case "$1" in
  -V) echo "Python $FAKE_VERSION" ;;
  -c) exec "{python}" -c "import sys
sys.version_info = tuple(map(int, '$FAKE_VERSION'.split('.')))
exec(sys.argv[1])" "$2" ;;
  -m) if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
      elif [ "$3" = config ]; then echo "$FAKE_SOURCES"; else echo "$@" >> "$FAKE_LOG"; fi ;;
esac
"""


@pytest.fixture
def fake_checkout(tmp_path: Path):
    """The Makefile in a folder of its own with a fake interpreter; returns (folder, run) where run calls make."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "fakepython"
    python.write_text(FAKE_PYTHON.format(python=sys.executable), encoding="utf-8")
    python.chmod(0o755)

    def run(*arguments: str, version: str = "3.12.1", **environment: str) -> subprocess.CompletedProcess:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "LABKIT_"))}
        return subprocess.run(
            [shutil.which("make"), f"PYTHON={python}", *arguments],
            cwd=tmp_path,
            env={**inherited, "FAKE_VERSION": version, "FAKE_LOG": str(tmp_path / "pip.log"), **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    return tmp_path, run


@needs_make
def test_make_installs_once_and_again_when_the_pins_change(fake_checkout):
    folder, run = fake_checkout
    log = folder / "pip.log"
    assert run("install", LABKIT_PIP_ARGS="--find-links wheels").returncode == 0
    (call,) = log.read_text().splitlines()
    assert call.startswith("-m pip install")
    assert call.endswith("--find-links wheels -c constraints.txt -e .[course,dev]")
    assert run("install").returncode == 0
    assert len(log.read_text().splitlines()) == 1
    later = (folder / ".venv/.installed-test").stat().st_mtime + 10
    os.utime(folder / "constraints.txt", (later, later))
    assert run("install", LABKIT_PIP_ARGS="--find-links wheels").returncode == 0
    assert len(log.read_text().splitlines()) == 2


@needs_make
@pytest.mark.parametrize("version", ["3.10.13", "3.14.0"])
def test_make_refuses_an_unsupported_python_and_says_what_to_do(fake_checkout, version: str):
    folder, run = fake_checkout
    done = run("install", version=version)
    assert done.returncode != 0
    assert "labkit needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "make install PYTHON=" in done.stderr
    assert version in done.stderr
    assert not (folder / ".venv").exists()


@needs_make
def test_make_says_so_when_there_is_no_python(fake_checkout):
    _, run = fake_checkout
    done = run("install", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no-such-python not found" in done.stderr


@needs_make
def test_make_help_lists_every_target(fake_checkout):
    _, run = fake_checkout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    listed = re.findall(r"^make (\w+) ", run("help").stdout, re.MULTILINE)
    assert sorted(listed) == sorted(phony)
    assert {"course", "test", "lab", "smoke", "check", "bench", "train", "clean"} <= set(listed)


@needs_make
def test_make_test_runs_the_lints_all_lanes_and_last_of_all_pytest(fake_checkout):
    _, run = fake_checkout
    commands = run("--dry-run", "test").stdout.splitlines()
    expected = [
        "ruff check", "ruff format --check", "labkit lint", "labkit build --check", "run --tier smoke --lang en",
        "run --tier smoke --lang ja 00", "run --tier smoke --edition student --lang en", "-m pytest",
    ]  # fmt: skip
    positions = [next(i for i, command in enumerate(commands) if part in command) for part in expected]
    assert positions == sorted(positions)
    assert positions[-1] == len(commands) - 1


@needs_make
def test_make_studies_makes_only_what_is_missing(fake_checkout):
    root, run = fake_checkout
    made = {
        "labkit.studies.l03_shipped": "data/shipped/pools-03.safetensors",
        "labkit.studies.l05_shipped": "data/shipped/pools-05.safetensors",
        "labkit.studies.l06_shipped": "data/shipped/easy-06.safetensors",
        "labkit.studies.l09_catalogue": "data/catalogue/tuned.safetensors",
        "labkit.studies.l08": "data/studies/l08-tuning.json",
    }
    for file in made.values():
        assert (ROOT / file).exists()  # the name that the recipe looks for is the one that is shipped
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    log = root / "pip.log"
    run("studies")
    world = "-m labkit.studies.l06_shipped world"  # looks for itself whether its base is still the one that made it

    def made_now() -> list[str]:
        return [line for line in log.read_text("utf-8").splitlines() if "labkit.studies" in line and line != world]

    assert made_now() == [] and world in log.read_text("utf-8").splitlines()
    for module, file in made.items():
        (root / file).unlink()
        run("studies")
        assert made_now() == [f"-m {module}"]
        (root / file).touch()
        log.unlink()


@needs_make
def test_make_lab_opens_the_learners_copies_with_the_given_arguments(fake_checkout):
    _, run = fake_checkout
    commands = run("--dry-run", "lab", LAB_ARGS="--lang ja --port=8890").stdout.splitlines()
    assert commands[-1] == ".venv/bin/labkit lab --lang ja --port=8890"
    assert run("--dry-run", "update").stdout.splitlines()[-1] == ".venv/bin/labkit update"


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux does the index list a torch with CUDA first")
@pytest.mark.parametrize(
    ("driver", "sources", "arguments", "installer"),
    [
        (False, "", "", "uv"),  # nobody has asked for CUDA, and nothing here could use it
        (True, "", "", "pip"),
        (False, "global.find-links='wheels'", "", "pip"),  # where pip looks has been chosen
        (False, "global.timeout='60'", "", "uv"),
        (False, "", "--find-links wheels", "pip"),
    ],
)
@needs_make
def test_a_machine_without_nvidia_never_downloads_cuda_unasked(fake_checkout, driver, sources, arguments, installer):
    folder, run = fake_checkout
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    programs = folder / "programs"
    programs.mkdir()
    for name in ("uname", "grep", "touch", "mkdir", "cp", "sh"):
        (programs / name).symlink_to(shutil.which(name))
    if driver:
        (programs / "nvidia-smi").symlink_to(shutil.which("true"))
    done = run("install", PATH=str(programs), FAKE_SOURCES=sources, LABKIT_PIP_ARGS=arguments)
    assert done.returncode == 0, done.stderr
    *before, last = (folder / "pip.log").read_text().splitlines()
    assert last.endswith("-c constraints.txt -e .[course,dev]")
    if installer == "uv":
        assert [line.split()[-1] for line in before] == ["uv"]
        assert last.startswith("-m uv pip install") and "--torch-backend cpu" in last
    else:
        assert not before and last.startswith("-m pip install")
