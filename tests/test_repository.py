"""The repository itself: what is declared, pinned, allowed at the top, and shipped in a wheel."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from labkit.course.manifest import lesson_numbers, load_lesson

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTION = "diffusion-labkit"

TOP_LEVEL = {
    *(".ci", ".gitattributes", ".github", ".gitignore", "DEVELOPERS.md", "LICENSE", "LICENSE-text", "Makefile"),
    *("README.ja.md", "README.md", "constraints.txt", "data", "docs", "environment.yml", "labkit", "notebooks"),
    *("pyproject.toml", "tests"),
}

# The name labkit on the package index is somebody else's project.
INSTALLS_SOMEBODY_ELSES_LABKIT = re.compile(
    r"(?:pip3?|conda|mamba|pipx|uv|poetry)[ \t]+(?:install|add)[ \t]+(?:-{1,2}[\w-]+[ \t]+)*[\"']?labkit(?![\w./-])"
)
FORBIDDEN = {
    "a command that installs an unrelated project": INSTALLS_SOMEBODY_ELSES_LABKIT,
    "a path of somebody's machine": re.compile(r"(?<![\w.])/(?:work|root|farm)/|/tmp/prot[o]"),
    "a package registry's host": re.compile(
        r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org|conda\.anaconda\.org|deb\.debian\.org"
    ),
    "an unresolved merge": re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE),
}


def repository_files() -> list[Path]:
    """Files that are in the repository or would be with the next commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in sorted(set(listed.stdout.split("\0"))) if name and (ROOT / name).is_file()]


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    """Top-level names that the file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def requirements(*extras: str) -> dict[str, Requirement]:
    """The declared requirements, the base ones included, by canonical name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pins(path: Path) -> dict[str, str]:
    """Canonical name -> version, from a file of ``name==version`` lines."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line), f"{path.name}: not an exact pin: {line}"
    pairs = [line.split("==") for line in lines]
    assert len({canonicalize_name(name) for name, _ in pairs}) == len(pairs), f"{path.name}: a package is pinned twice"
    return {canonicalize_name(name): version for name, version in pairs}


def test_constraints_lie_in_the_declared_ranges():
    pinned = pins(ROOT / "constraints.txt")
    for name, requirement in requirements("course", "bench", "site", "camp", "dev").items():
        assert name in pinned, f"constraints.txt has no pin for {name}"
        assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]} is not {requirement}"


def test_constraints_name_the_versions_that_draw_the_world():
    pinned = pins(ROOT / "constraints.txt")
    wanted = {"dicebear-core": "10.7.0", "dicebear-styles": "10.6.0", "resvg-py": "0.5.0", "torch": "2.13.0"}
    assert {name: pinned[name] for name in wanted} == wanted


OLDEST_PYTHONS = ["3.11.0", "3.12.0", "3.13.0"]


@pytest.mark.parametrize("readme", ["README.md", "README.ja.md"])
def test_the_readme_names_the_oldest_release_of_each_supported_python(readme):
    supported = SpecifierSet(PROJECT["requires-python"])
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert re.findall(r"(?<![\d.])3\.\d+\.\d+", text) == OLDEST_PYTHONS
    assert supported.contains("3.11.0") and not supported.contains("3.10.99")
    minors = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert {python.rpartition(".")[0] for python in OLDEST_PYTHONS} == minors


@pytest.mark.parametrize("python", OLDEST_PYTHONS)
def test_every_pin_admits_the_oldest_patch_release_of_each_python(python):
    """Debian 12 has Python 3.11.2: a pin that asks for 3.11.5 stops `make course` there."""
    refused = []
    for name, pinned in pins(ROOT / "constraints.txt").items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another extra or system
        needs = found.metadata["Requires-Python"] or ""
        if found.version == str(pinned) and not SpecifierSet(needs).contains(python):
            refused.append(f"{name}=={pinned} needs Python {needs}")
    assert refused == []


def test_constraints_bring_neither_torchvision_nor_this_package_nor_a_build_tag():
    pinned = pins(ROOT / "constraints.txt")
    assert not {"torchvision", "torchaudio", "labkit", DISTRIBUTION} & set(pinned)
    assert not [name for name, version in pinned.items() if "+" in version]


@pytest.mark.skipif(sys.platform != "linux", reason="the pins were taken on Linux")
def test_constraints_pin_everything_that_the_declared_packages_need():
    pinned = pins(ROOT / "constraints.txt")
    accelerator = re.compile(r"nvidia-|cuda-|triton|pytorch-triton|setuptools$")  # they come with the build of torch
    todo = [(name, frozenset(requirement.extras)) for name, requirement in requirements("course", "dev").items()]
    seen, unpinned = set(todo), set()
    while todo:
        name, extras = todo.pop()
        if name not in pinned and not accelerator.match(name):
            unpinned.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            contexts = [{"extra": extra} for extra in extras or {""}]
            if requirement.marker is None or any(requirement.marker.evaluate(context) for context in contexts):
                entry = (canonicalize_name(requirement.name), frozenset(requirement.extras))
                if entry not in seen:
                    seen.add(entry)
                    todo.append(entry)
    assert len(seen) > 100, "the walk stopped early: run this test where course and dev are installed"
    assert not unpinned, f"constraints.txt lacks {sorted(unpinned)}"


def test_environment_yml_repeats_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    python = Requirement(next(entry for entry in conda if entry.startswith("python")))
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])
    assert conda[1:] == ["pip"], "conda brings Python and pip alone: everything else must come from one resolver"
    assert pip[:2] == ["-c constraints.txt", "-e ."]
    assert pip[2:] == [*PROJECT["dependencies"], *EXTRAS["course"], *EXTRAS["dev"]]


def test_the_widget_release_that_breaks_vs_code_is_excluded():
    widgets = requirements("course")["ipywidgets"].specifier
    assert not widgets.contains("8.1.9")
    assert widgets.contains("7.7.1")
    assert widgets.contains("8.1.8")


def test_supported_pythons_are_the_same_everywhere():
    supported = SpecifierSet(PROJECT["requires-python"])
    minors = [minor for minor in range(8, 20) if supported.contains(f"3.{minor}.1")]
    classified = [int(c.rsplit(".", 1)[1]) for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = ci["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert minors == [11, 12, 13]
    assert classified == minors
    assert matrix == [f"3.{minor}" for minor in minors]


def test_every_package_that_labkit_imports_is_declared():
    providers = importlib.metadata.packages_distributions()
    declared = set(requirements(*EXTRAS))
    undeclared = {}
    for path in python_files("labkit"):
        for package in imported_packages(path) - set(sys.stdlib_module_names) - {"labkit"}:
            names = {canonicalize_name(name) for name in providers.get(package, [package])}
            if not names & declared:
                undeclared.setdefault(package, str(path.relative_to(ROOT)))
    assert not undeclared, f"declare these in pyproject.toml: {undeclared}"


def test_what_a_lesson_imports_is_a_dependency_so_that_colabs_install_cell_installs_it():
    """The extra `course` (JupyterLab, papermill, latex2mathml) is not installed on Colab: no lesson may need it."""
    tools = {"authoring", "camp", "training", "cli"}  # an author's command line
    # imported where they are asked for, and named when they are missing
    optional = {"torch-fidelity", "torchmetrics", "bitsandbytes"}
    files = [path for path in python_files("labkit") if room_of(path) not in tools] + python_files("notebooks/src")
    providers, declared, undeclared = importlib.metadata.packages_distributions(), set(requirements()), {}
    for path in files:
        for package in imported_packages(path) - set(sys.stdlib_module_names) - {"labkit"}:
            names = {canonicalize_name(name) for name in providers.get(package, [package])}
            if not names & (declared | optional):
                undeclared.setdefault(package, str(path.relative_to(ROOT)))
    assert {"pydantic", "budoux", "ipywidgets"} <= declared
    assert not undeclared, f"move these from an extra to the dependencies in pyproject.toml: {undeclared}"


def test_no_file_imports_torchvision():
    files = python_files("labkit", "notebooks/src", "tests")
    assert len(files) > 2
    assert not [path for path in files if "torchvision" in imported_packages(path)]


def public_names() -> dict[str, dict[str, str]]:
    """Name in the `__all__` of a package of labkit -> {package: module that it comes from}."""
    names: dict[str, dict[str, str]] = {}
    for path in sorted((ROOT / "labkit").rglob("__init__.py")):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        listed, origin = [], {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                origin |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                listed = ast.literal_eval(node.value)
        assert len(set(listed)) == len(listed), f"{package}.__all__ names something twice"
        for name in listed:
            names.setdefault(name, {})[package] = origin.get(name, f"{package}.{name}")
    return names


def test_no_public_name_has_two_meanings():
    names = public_names()
    assert {"pseudo_density", "frechet_distance", "ddim_step"} <= set(names)
    double = {name: origins for name, origins in names.items() if len(set(origins.values())) > 1}
    assert not double, f"rename one of each, or make them one function in the shared ground: {double}"


def test_the_maps_of_the_package_name_every_folder_and_module():
    rooms = [path for path in (ROOT / "labkit").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    there = {path.name for path in rooms} - {"__init__.py"}
    assert {"dpo", "images.py"} <= there
    for readme in ("README.md", "README.ja.md"):
        rows = re.findall(r"^\| ((?:`[\w.]+(?:/|\.py)` ?)+) \|", (ROOT / readme).read_text(encoding="utf-8"), re.M)
        mapped = [name.rstrip("/") for row in rows for name in re.findall(r"`(.+?)`", row)]
        assert sorted(mapped) == sorted(there), f"{readme}: the table of the package and the folders of labkit differ"
    for room in (path for path in rooms if path.is_dir()):
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        modules = {path.stem for path in room.glob("*.py")} - {"__init__", "__main__"}
        unnamed = {name for name in modules if not re.search(rf"\b{name}\b", text) and not re.fullmatch(r"l\d\d", name)}
        assert not unnamed, f"labkit/{room.name}/__init__.py: its docstring does not say what {unnamed} are for"


def test_every_file_of_equations_is_changed_by_make_mutants():
    tree = ast.parse((ROOT / "tests" / "mutants.py").read_text(encoding="utf-8"))
    tests = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "TESTS")
    named = ast.literal_eval(tests)
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "labkit").glob("*/equations.py"))
    for package, file in named.items():
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"labkit.{package}" in text, f"{file} does not test labkit.{package}"


# Imports point one way. Each room of labkit, and the rooms that it may import.
GROUND = {"errors", "files", "offline", "images", "tables"}
SHARED = {*GROUND, "portraits", "models", "diffusion", "metrics", "worlds", "checkpoint", "optim"}
PAPERS = {"density", "fabric", "dpo", "pairwise"}
LAYERS = {
    "__init__": set(),
    "errors": set(),
    "files": {"errors"},
    "tables": {"errors"},
    "offline": {"errors"},
    "images": {"errors"},
    "checkpoint": GROUND,
    "optim": GROUND,
    "portraits": GROUND,
    "models": {*GROUND, "portraits"},  # never metrics: its extractors load the shipped models
    "diffusion": GROUND,
    "metrics": {*GROUND, "models"},
    "worlds": {*GROUND, "diffusion"},
    **{paper: SHARED for paper in PAPERS},  # what two papers need moves down
    "survey": {*SHARED, *PAPERS},  # the one that races the others
    "real": {*SHARED, "dpo", "pairwise", "survey"},  # Stable Diffusion and its judges, for the last section of a lesson
    "measuring": {*SHARED, "density"},  # two folders of anybody's pictures
    "inspection": {*GROUND, "metrics"},  # works on any folder of pictures
    "training": SHARED,
    "studies": {*SHARED, *PAPERS, "inspection", "survey"},
    "figures": GROUND,
    # models: what is kept holds for the weights in their list of checksums; studies: verdicts of claims; real: lab.real
    "course": {*GROUND, "figures", "models", "studies", "real"},
    # checks hold answers against the papers' functions
    "course.lessons": {*SHARED, *PAPERS, "survey", "inspection", "course", "figures", "studies"},
    "authoring": {*GROUND, "course", "studies"},
    "camp": {*GROUND, "course"},  # a room of learners: bundle, hub, board
    "envcheck": {*GROUND, "course", "diffusion", "figures", "models"},  # tries out what lessons do
    "cli": {*GROUND, "course", "authoring", "camp", "envcheck", "inspection", "measuring", "pairwise"},
}
# Modules that a room may import although the room around them is closed to it, and why.
DOORS = {
    "figures": {
        "labkit.course.i18n",  # axis labels in the learner's language
        "labkit.course.render",  # tables and boxes beside a figure
    },
}


def labkit_imports(path: Path) -> set[str]:
    """Modules of labkit that the file imports, at any depth, also inside functions; `labkit` itself is its version."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"labkit.{alias.name}" for alias in node.names} if node.module == "labkit" else {node.module}
    return {name for name in found if name.startswith("labkit.") and name != "labkit.__version__"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "labkit").with_suffix("").parts
    return "course.lessons" if parts[:2] == ("course", "lessons") else parts[0]


def test_imports_point_one_way():
    wrong, seen = [], set()
    for path in python_files("labkit"):
        room = room_of(path)
        assert room in LAYERS, f"labkit/{room} is a new room: say in LAYERS what it may import"
        for module in labkit_imports(path):
            target = module.split(".")[1]
            seen.add((room, target))
            own = target == room.split(".")[0]
            door = any(module == d or module.startswith(f"{d}.") for d in DOORS.get(room, ()))
            if not own and not door and target not in LAYERS[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, f"move what is shared down, or turn the dependency round: {wrong}"
    assert {("density", "metrics"), ("metrics", "models"), ("figures", "course")} <= seen


def test_the_layers_have_no_cycle_except_the_doors():
    done: set[str] = set()
    while left := set(LAYERS) - done:
        free = {room for room in left if {*LAYERS[room]} - {room} <= done}
        assert free, f"these rooms import one another: {sorted(left)}"
        done |= free


@pytest.mark.slow
def test_importing_labkit_loads_no_torchvision():
    papers = ("density", "fabric", "dpo", "pairwise", "survey", "inspection")
    candidates = ("portraits", "models", "diffusion", "metrics", *papers, "course")
    present = [f"labkit.{name}" for name in candidates if (ROOT / "labkit" / name / "__init__.py").exists()]
    assert present
    code = f"import sys, {', '.join(present)}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = done.stdout.splitlines()[-1].split()
    assert "labkit" in loaded
    assert "torchvision" not in loaded


def test_drawing_a_portrait_compiles_no_grammars_of_addresses_and_hides_them_from_nobody_else():
    """They take longer than torch to import, and come into every environment with Jupyter."""
    if importlib.util.find_spec("rfc3987_syntax") is None:
        pytest.skip("rfc3987_syntax is not installed")
    code = (
        "import sys\nfrom labkit.portraits import render, sample_specs\nrender(sample_specs(1, seed=0)[0])\n"
        "print('lark' in sys.modules)\nimport rfc3987_syntax\nprint('lark' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "True"], done.stderr[-2000:]


def test_importing_labkit_alone_is_cheap():
    code = "import sys, labkit; print(labkit.__version__, *sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    version, *loaded = done.stdout.split()
    assert Version(version) >= Version("0.1")
    assert not {"torch", "numpy", "diffusers", "transformers", "matplotlib", "IPython"} & set(loaded)


@pytest.mark.parametrize(
    ("asked", "spins"), [({}, "3000"), ({"OMP_WAIT_POLICY": "passive"}, "0"), ({"GOMP_SPINCOUNT": "77"}, "77")]
)
def test_openmp_threads_that_wait_spin_for_a_while_unless_the_user_says_otherwise(asked: dict[str, str], spins: str):
    """What GNU's runtime read when torch loaded it, as it says itself."""
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", "import labkit, torch"],
        cwd=ROOT,
        env=environment | asked | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
    )
    said = dict(re.findall(r"(GOMP_SPINCOUNT)\s*=\s*'(\w+)'", done.stderr))
    if not said:
        pytest.skip("this build of torch has no OpenMP runtime that shows its settings")
    assert said["GOMP_SPINCOUNT"] == spins


def test_top_level_holds_only_what_belongs_there():
    found = {path.relative_to(ROOT).parts[0] for path in repository_files()}
    assert found <= TOP_LEVEL, f"move or ignore: {sorted(found - TOP_LEVEL)}"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_contains(what: str):
    found = []
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        for match in FORBIDDEN[what].finditer(content.decode("utf-8")):
            found.append(f"{path.relative_to(ROOT)}: {match.group()!r}")
    assert not found, f"{what}: {found}"


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("pip", "install", "labkit"), True),
        (("!pip", "install", "-q", "labkit"), True),
        (("pip3", "install", "-U", "'labkit[course]'"), True),
        (("uv", "add", "labkit"), True),
        (("pip", "install", "diffusion-labkit"), False),
        (("pip", "install", "-e", "."), False),
        (("pip", "install", "labkit-tools"), False),
        (("pip", "install", "labkit/"), False),
    ],
)
def test_the_search_for_the_wrong_install_command_finds_it(words: tuple[str, ...], wrong: bool):
    assert bool(INSTALLS_SOMEBODY_ELSES_LABKIT.search(" ".join(words))) is wrong


def test_nothing_is_unpickled():
    pattern = re.compile(r"\bpickle\.loads?\(|\btorch\.load\(|allow_pickle\s*=\s*True|weights_only\s*=\s*False")
    files = python_files("labkit", "notebooks/src")
    assert files
    assert not [path for path in files if pattern.search(path.read_text(encoding="utf-8"))]


def test_licences_are_the_full_texts():
    code = (ROOT / "LICENSE").read_text(encoding="utf-8")
    text = (ROOT / "LICENSE-text").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in code
    assert "END OF TERMS AND CONDITIONS" in code
    assert text.startswith("Attribution 4.0 International")
    assert [f"Section {n} --" in text for n in range(1, 9)] == [True] * 8


def test_attribution_quotes_the_licence_of_each_style():
    from labkit.portraits.attributes import HELD_OUT_STYLES, TRAINING_STYLES

    rows = {}
    for line in (ROOT / "data/ATTRIBUTION.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and line.count("|") == 6:
            style, artist, source, licence, use = (cell.strip() for cell in line.strip("|").split("|"))
            rows[style] = (artist, source, licence, use)
    assert {*TRAINING_STYLES, *HELD_OUT_STYLES, "bottts"} <= set(rows)
    folder = Path(importlib.util.find_spec("dicebear_styles").submodule_search_locations[0])
    for style in (*TRAINING_STYLES, *HELD_OUT_STYLES, "bottts"):
        meta = json.loads((folder / f"{style}.json").read_text(encoding="utf-8"))["meta"]
        quoted = tuple(f"[{meta[key]['name']}]({meta[key]['url']})" for key in ("creator", "source", "license"))
        assert rows[style][:3] == quoted
        assert rows[style][3].startswith("training") == (style in TRAINING_STYLES)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("hatchling")
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target], cwd=ROOT, check=True)
    (wheel,) = target.glob("diffusion_labkit-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_a_wheel_holds_every_file_of_the_package_the_data_and_the_student_editions(wheel_names: list[str]):
    expected = set()
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("labkit/"):
            expected.add(name)
        elif name.startswith("data/"):
            expected.add(f"labkit/_data/{name.removeprefix('data/')}")
        elif name.startswith(("notebooks/en/", "notebooks/ja/")):
            expected.add(f"labkit/_notebooks/{name.removeprefix('notebooks/')}")
    wanted = ("__init__.py", "_data/ATTRIBUTION.md", "_notebooks/en/00_start_here.ipynb")
    assert {f"labkit/{name}" for name in wanted} <= expected
    assert expected <= set(wheel_names)


def test_a_wheel_holds_nothing_else(wheel_names: list[str]):
    others = [name for name in wheel_names if not name.startswith("labkit/") and ".dist-info/" not in name]
    assert not others
    assert not [name for name in wheel_names if "__pycache__" in name or name.endswith(".tmp")]
    notebooks = [name for name in wheel_names if name.endswith(".ipynb")]
    assert all(name.startswith(("labkit/_notebooks/en/", "labkit/_notebooks/ja/")) for name in notebooks)
    licences = {Path(name).name for name in wheel_names if ".dist-info/licenses/" in name}
    assert {"LICENSE", "LICENSE-text", "ATTRIBUTION.md"} <= licences


@pytest.mark.parametrize("readme", ["README.md", "README.ja.md"])
def test_the_lesson_table_gives_the_measured_minutes_of_each_lesson(readme):
    text = (ROOT / readme).read_text("utf-8")
    for number in lesson_numbers():
        minutes = load_lesson(number).minutes
        times = " / ".join("–" if minutes[tier] is None else f"{minutes[tier]:g}" for tier in ("smoke", "cpu", "gpu"))
        row = next(line for line in text.splitlines() if line.startswith(f"| {number} |"))
        assert row.endswith(f"| {times} |"), row
