"""What Colab ships (its whole published list, tests/data) and what the course needs there fit each other."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from labkit import envcheck
from labkit.authoring import colab
from labkit.authoring.install import requirements

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests/data/colab-2026-08-19.txt"
PYTHON = "3.13.0"  # of that runtime
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Packages of the list that a library of ours refuses as soon as it asks for them, and who copes with that.
HANDLED = {
    "peft.import_utils.is_torchao_available": "labkit/diffusion/lora_adapters.py passes over torchao",
}


def shipped() -> dict[str, str]:
    """Canonical name -> version of everything on Colab."""
    lines = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def missing() -> list[str]:
    """Requirements that the install cell has to install on Colab."""
    return [line for line in requirements(ROOT / "pyproject.toml")[0] if not colab.satisfied(line, shipped())]


def test_the_list_is_whole_and_holds_names_and_versions_alone():
    have = shipped()
    assert len(have) > 700
    assert {"torch", "torchao", "tensorflow", "google-colab", "zstandard"} <= set(have)
    assert not [version for version in have.values() if "/" in version or "@" in version]


def test_every_declared_range_admits_what_colab_ships():
    have = shipped()
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    declared = [need for need in map(Requirement, lines) if canonicalize_name(need.name) in have]
    assert len(declared) > 30
    refused = [str(need) for need in declared if not need.specifier.contains(have[canonicalize_name(need.name)])]
    assert not refused, f"Colab would have to change {refused}"
    assert SpecifierSet(PROJECT["requires-python"]).contains(PYTHON)


def test_what_colab_lacks_is_content_with_what_it_ships():
    """The install cell may move nothing that is there: what it installs, and what that needs, has to fit."""
    have, todo, seen, refused = shipped(), [Requirement(line) for line in missing()], set(), []
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        if name in have:
            if not need.specifier.contains(have[name]):
                refused.append(f"{need}, Colab has {have[name]}")
        elif name not in seen:
            seen.add(name)
            lines = map(Requirement, importlib.metadata.requires(name) or [])
            context = {"extra": "", "python_version": "3.13", "python_full_version": PYTHON, "sys_platform": "linux"}
            todo += [line for line in lines if line.marker is None or line.marker.evaluate(context)]
    assert {"budoux", "dicebear-core", "dicebear-schema"} <= seen
    assert refused == []


def test_the_environment_check_asks_on_colab_for_what_the_install_cell_installs(monkeypatch):
    """A package that only the check knows would be reported as missing for ever."""

    def not_installed(name):
        raise PackageNotFoundError(name)

    def after_the_install_cell(name):
        found = after.get(canonicalize_name(name))
        return found or not_installed(name)

    needs, built_in = requirements(ROOT / "pyproject.toml")
    after = {colab.canonical(line): Requirement(line).specifier for line in missing()}
    after = {name: next(s.version for s in span if s.operator == ">=") for name, span in after.items()} | shipped()
    monkeypatch.setattr(envcheck, "on_colab", lambda: True)
    monkeypatch.setattr(envcheck, "requires", not_installed)  # so that it reads pyproject.toml
    monkeypatch.setattr(envcheck, "version", after_the_install_cell)
    asked = {colab.canonical(name) for name in envcheck.requirements()}
    assert asked <= {colab.canonical(line) for line in [*needs, *built_in]}
    assert len(asked) > 20
    (found,) = envcheck._packages("cpu")
    assert found.status == envcheck.OK, found
    monkeypatch.setattr(envcheck, "on_colab", lambda: False)
    assert "latex2mathml" in {one.name for one in envcheck._packages("cpu")}  # Colab has none, and needs none


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("ticked", [True, False])
def test_what_is_kept_on_drive_is_found_again_by_the_next_session(lang, ticked, tmp_path, monkeypatch, capsys):
    """The install cell, with the box ticked or not, in two runtimes that share nothing but the Drive."""
    from types import ModuleType

    from labkit.authoring.install import install_cell
    from labkit.authoring.stamp import Stamp
    from labkit.course.i18n import Catalogue, common_messages
    from labkit.course.keep import Store
    from labkit.course.progress import Progress

    cell = install_cell(ROOT / "pyproject.toml", Stamp(""), lang, Catalogue(common_messages()))
    assert "keep_on_drive = False  # @param" in cell
    part = cell.split('if "google.colab" in sys.modules and repo.count')[0]
    part = part.replace("/content/drive", (tmp_path / "drive").as_posix())
    part = part.replace("keep_on_drive = False", f"keep_on_drive = {ticked}")
    google, colab_, drive = ModuleType("google"), ModuleType("google.colab"), ModuleType("google.colab.drive")
    mounted = []
    drive.mount = lambda folder: (mounted.append(folder), Path(folder, "MyDrive").mkdir(parents=True, exist_ok=True))
    google.colab, colab_.drive = colab_, drive
    for name, module in (("google", google), ("google.colab", colab_), ("google.colab.drive", drive)):
        monkeypatch.setitem(sys.modules, name, module)
    for session in ("first", "second"):
        monkeypatch.setenv("LABKIT_HOME", str(tmp_path / session))  # the disk of this runtime
        monkeypatch.setenv("LABKIT_RESULTS", str(tmp_path / session / "results"))
        exec(compile(part, "install cell", "exec"), {})
        progress = Progress()
        store = Store(progress.path.parent, "05", "cpu", sizes={}, seed=0)
        path = store.path("scores", len, ([1, 2],), {})
        if session == "first":
            progress.record_check("05", "l05.dpo_loss", "passed")
            store.write(path, {"score": 0.5}, 3.0)
    assert bool(progress.entry("05", "exercises", "l05.dpo_loss")) is ticked
    kept = store.read(path, "cpu")
    assert (kept is not None and kept.value == {"score": 0.5}) is ticked
    assert mounted == [(tmp_path / "drive").as_posix()] * 2 * ticked
    results = Path(os.environ["LABKIT_RESULTS"])
    assert results.is_relative_to(tmp_path / "drive") is ticked

    def refused(folder):
        raise ValueError("mount failed")

    drive.mount = refused
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "third"))
    capsys.readouterr()
    exec(compile(part, "install cell", "exec"), {})
    assert Progress().path == tmp_path / "third" / "progress.json"
    assert ("mount failed" in capsys.readouterr().out) is ticked


ASK_FOR_EVERY_INTEGRATION = """
import importlib, importlib.util, inspect, json, os, sys
from pathlib import Path

libraries = ("accelerate.utils.imports", "diffusers.utils.import_utils", "peft.import_utils")
modules = [importlib.import_module(name) for name in (*libraries, "transformers.utils.import_utils")]
folder, shipped = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, version in shipped.items():  # from here on every package of Colab seems to be installed
    module = name.replace("-", "_").replace(".", "_")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    (info / "top_level.txt").write_text(module)
    if importlib.util.find_spec(module) is None:
        (folder / module).mkdir()
        (folder / module / "__init__.py").write_text(f"__version__ = {version!r}")
sys.path.insert(0, str(folder))
importlib.invalidate_caches()
asked, refused = 0, {}
for module in map(importlib.reload, modules):
    for name, function in list(vars(module).items()):
        if name.startswith("is_") and "_available" in name and callable(function):
            parameters = inspect.signature(function).parameters.values()
            if all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
                asked += 1
                try:
                    function()
                except Exception as error:
                    refused[f"{module.__name__}.{name}"] = f"{type(error).__name__}: {error}"
print(json.dumps([asked, refused]), flush=True)
os._exit(0)  # libraries' farewells would use what only seems to be there
"""


@pytest.mark.slow
def test_no_library_refuses_a_package_of_colab_but_those_that_are_handled(tmp_path):
    """PEFT raises ImportError for torchao 0.10 when it is asked for any LoRA. Whatever else its kind: named here."""
    arguments = [str(tmp_path), json.dumps(shipped())]
    done = subprocess.run(
        [sys.executable, "-c", ASK_FOR_EVERY_INTEGRATION, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    asked, refused = json.loads(done.stdout.splitlines()[-1])
    assert asked > 200
    assert refused.keys() == HANDLED.keys(), refused
