"""An install without a clone is complete: the wheel finds its data, and on Colab a notebook alone in a folder runs.

Colab is played by an environment of its own, a kernel that has loaded `google.colab`, and a repository on this disk
that git takes for GitHub's. The install cell runs verbatim. In the quick tests the packages are those of the tests'
environment, without network. `pytest --optin tests/test_install.py` installs Colab's whole list as far as the package
index has it (by uv, Python 3.13, network, 13 GB on the disk with the CUDA build of torch) and runs every lesson on it.
LABKIT_COLAB_PYTHON names the interpreter, LABKIT_COLAB_ENV a folder that keeps this environment from run to run,
LABKIT_PIP_ARGS arguments in place of `--torch-backend cpu`.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from labkit.authoring.install import install_cell
from labkit.authoring.stamp import Stamp
from labkit.camp import bundle
from labkit.course.i18n import Catalogue, common_messages
from labkit.course.manifest import lesson_numbers
from tests.test_colab import shipped
from tests.test_repository import repository_files

ROOT = Path(__file__).resolve().parents[1]
REPO = "octocat/course"

pytestmark = pytest.mark.slow


def outside(**changes: str) -> dict[str, str]:
    """The environment variables of a learner: nothing of the clone is on the path."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LABKIT_DATA")} | changes


def bare_environment(folder: Path) -> tuple[Path, Path]:
    """(Python, site-packages) of an environment with every package of the tests' environment but labkit."""
    venv.create(folder, symlinks=os.name != "nt")
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    # Folders that a .pth file names come later on the path; .pth files in them (the editable labkit) are not read.
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "the_other_packages.pth").write_text("\n".join(sorted(ours)) + "\n", encoding="utf-8")
    return Path(sysconfig.get_path("scripts", "venv", scheme)) / Path(sys.executable).name, packages


# ---- the wheel -----------------------------------------------------------------------------------------------------


def test_the_wheels_labkit_finds_its_own_data_notebooks_and_intact_models(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "wheel"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("diffusion_labkit-*.whl")
    python, packages = bare_environment(tmp_path / "env")
    command = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(command, cwd=tmp_path, env=outside(), check=True, capture_output=True)
    code = (
        "import json, labkit\nfrom labkit.course.manifest import Project, lesson_numbers\n"
        "from labkit.models import data_dir\nfrom labkit.models.checksums import read_checksums, verify\n"
        "folders = sorted({path.split('/')[0] for path in read_checksums() if '/' in path})\n"
        "print(json.dumps([labkit.__file__, str(data_dir()), str(Project().notebook('00_start_here', 'ja')),"
        " lesson_numbers(), {folder: verify(folder) for folder in folders}]))"
    )
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=outside(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    file, data, notebook, numbers, verified = json.loads(done.stdout)
    package = packages / "labkit"
    assert Path(file) == package / "__init__.py"
    assert Path(data) == package / "_data"
    assert Path(notebook) == package / "_notebooks/ja/00_start_here.ipynb"
    for lang in ("en", "ja"):
        packed = sorted(path.name for path in (package / "_notebooks" / lang).iterdir())
        assert packed == sorted(path.name for path in (ROOT / "notebooks" / lang).glob("*.ipynb"))
        assert [name[:2] for name in packed] == numbers
    table = json.loads((ROOT / "data/checksums.json").read_text("utf-8"))
    assert {"portraits", "portrait-sd", "portrait-clip"} <= set(verified)
    assert sum(verified.values()) == sum("/" in name for name in table)


# ---- a notebook alone in a folder ----------------------------------------------------------------------------------

EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
try:
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
except nbclient.exceptions.CellExecutionError:
    pass
nbformat.write(notebook, sys.argv[1])
"""
ON_COLAB = """
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
colab = sys.modules["google.colab"] = ModuleType("google.colab")
colab.__spec__ = ModuleSpec("google.colab", None)
colab.output, colab.userdata = ModuleType("output"), ModuleType("userdata")  # jax and the hub import them there
"""


def put_notebook(lesson: str, lang: str, repo: str, folder: Path, last: str | None = None) -> Path:
    """The student edition as `labkit stamp` would write it (repo "": as it is without), at its smallest; up to the cell
    `last` where one is named."""
    (source,) = (ROOT / "notebooks" / lang).glob(f"{lesson}_*.ipynb")
    notebook = json.loads(source.read_text("utf-8"))
    ids = [cell["id"] for cell in notebook["cells"]]
    notebook["cells"] = notebook["cells"][: ids.index(last or ids[-1]) + 1]
    cells = {"".join(cell["source"]).split("\n")[0]: cell for cell in notebook["cells"]}
    stamped = install_cell(ROOT / "pyproject.toml", Stamp(repo), lang, Catalogue(common_messages()))
    cells[stamped.split("\n")[0]]["source"] = stamped
    parameters = cells['tier = "cpu"']
    parameters["source"] = "".join(parameters["source"]).replace('"cpu"', '"smoke"')
    (folder / source.name).write_text(json.dumps(notebook), encoding="utf-8")
    return folder / source.name


def execute(python: Path, notebook: Path, folder: Path, *, colab: bool, **env: str) -> tuple[list[dict], str]:
    """(outputs, their text) of a notebook that runs where it lies; `folder` takes what the machine keeps elsewhere."""
    startup = folder / "ipython/profile_default/startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "machine.py").write_text(ON_COLAB if colab else "", encoding="utf-8")
    (folder / "tmp").mkdir(exist_ok=True)
    env = outside(IPYTHONDIR=str(folder / "ipython"), TMPDIR=str(folder / "tmp"), **env)
    command = [python, "-c", EXECUTE, notebook.name]
    done = subprocess.run(command, cwd=notebook.parent, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    return outputs, "".join(json.dumps(output, ensure_ascii=False) for output in outputs)


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables that make git find this working tree, as one commit on main, at the address of REPO on GitHub."""
    folder = tmp_path_factory.mktemp("github")
    for path in repository_files():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], [*who, "commit", "-q", "-m", "The course"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    key = f"url.{folder.as_uri()}.insteadOf"
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": key, "GIT_CONFIG_VALUE_0": f"https://github.com/{REPO}"}


def test_on_colab_a_lesson_runs_from_its_install_cell_with_the_notebook_alone_in_a_folder(github, tmp_path):
    """Lesson 00 as a learner gets it: it installs the course, checks the machine, loads models and makes pictures.

    What comes after the first pictures runs on what is loaded by then, and smoke runs run it.
    """
    pytest.importorskip("hatchling")
    python, packages = bare_environment(tmp_path / "env")
    (tmp_path / "content").mkdir()
    notebook = put_notebook("00", "ja", REPO, tmp_path / "content", last="generate")
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # pip's variable says the opposite of its name
    outputs, text = execute(python, notebook, tmp_path, colab=True, **offline, **github)
    assert not [output for output in outputs if output["output_type"] == "error"], text[:3000]
    assert "教材をインストールしました" in text and "✗" not in text and "未インストール" not in text
    assert text.count("data:image/png;base64,") >= 2
    assert (packages / "labkit/_data/portrait-sd").is_dir()
    assert [path.name for path in (tmp_path / "tmp").glob("course")] == ["course"]
    assert not {"data", "notebooks", "labkit", "course"} & {path.name for path in (tmp_path / "content").iterdir()}


@pytest.mark.parametrize(
    ("lang", "colab", "words"),
    [("ja", True, "OWNER/NAME の形で入力"), ("en", False, "open the lesson with `make lab`")],
)
def test_a_copy_without_stamp_and_course_stops_at_once_with_one_line_that_says_what_to_do(lang, colab, words, tmp_path):
    python, _ = bare_environment(tmp_path / "env")
    outputs, text = execute(python, put_notebook("00", lang, "", tmp_path), tmp_path, colab=colab)
    (output,) = outputs
    assert output["output_type"] == "error"
    (line,) = output["traceback"]
    assert words in line and "\n" not in line
    assert "No module named" not in text


# ---- the same on Colab's own versions ------------------------------------------------------------------------------

# What the list names and the index cannot give: packages of the runtime itself, of Debian and of other indexes; sources
# that want libraries or compilers of the system; and pyspark, whose source alone has 400 MB.
NOT_ON_THE_INDEX = {"cucim-cu12", "cuvs-cu12", "en-core-web-sm", "google-colab", "nx-cugraph-cu12", "python-apt"}
OF_THE_SYSTEM = {"cyipopt", "dbus-python", "dlib", "gdal", "psycopg2", "pycairo", "pygobject", "rpy2", "pyspark"}
OF_ANOTHER_BUILD = re.compile(r"nvidia-|cuda-|triton|.*-cu1\d$")  # they follow the build of torch


def versions(python: Path) -> dict[str, str]:
    """Canonical name -> version of every package that this interpreter finds."""
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format", "json"], env=outside())
    return {canonicalize_name(one["name"]): one["version"] for one in json.loads(listed)}


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """(Python, folder, versions) of an environment with Colab's whole list, as far as the package index has it."""
    folder = tmp_path_factory.mktemp("colab")
    kept = os.environ.get("LABKIT_COLAB_ENV")
    environment = Path(kept) if kept else folder / "env"
    python = environment / "bin/python"
    have = {name: version.partition("+")[0] for name, version in shipped().items() if not OF_ANOTHER_BUILD.match(name)}
    have = {name: version for name, version in have.items() if name not in NOT_ON_THE_INDEX | OF_THE_SYSTEM}
    if not python.exists():
        interpreter = os.environ.get("LABKIT_COLAB_PYTHON") or shutil.which("python3.13")
        if not interpreter or subprocess.run([interpreter, "-c", ""]).returncode:
            pytest.skip("Colab has Python 3.13, here is none: name one in LABKIT_COLAB_PYTHON")
        try:
            uv = bundle.uv()
        except bundle.BundleError as error:
            pytest.skip(f"pip takes hours for the whole list: {error}")
        (folder / "list.txt").write_text("".join(f"{name}=={version}\n" for name, version in have.items()))
        subprocess.run([*uv, "venv", "--python", interpreter, environment], check=True)
        more = shlex.split(os.environ.get("LABKIT_PIP_ARGS", "")) or ["--torch-backend", "cpu"]
        install = [*uv, "pip", "install", "--quiet", "--python", python, *more]
        # These packages do not all agree with each other, so none brings another; torch brings what its build needs.
        subprocess.run([*install, "--no-deps", "-r", folder / "list.txt"], check=True)
        subprocess.run([*install, "-c", folder / "list.txt", f"torch=={have['torch']}"], check=True)
    before = versions(python)
    assert len(have) > 600 and {name: before.get(name, "").partition("+")[0] for name in have} == have
    return python, folder, before


@pytest.mark.optin
@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("lesson", lesson_numbers())
def test_every_lesson_runs_on_colabs_versions_from_its_install_cell(lesson, lang, colab, github, tmp_path):
    python, folder, before = colab
    notebook = put_notebook(lesson, lang, REPO, tmp_path)
    outputs, text = execute(python, notebook, folder, colab=True, **github)
    assert not [output for output in outputs if output["output_type"] == "error"], text[-5000:]
    after = versions(python)
    assert "diffusion-labkit" in after
    moved = {name: (was, after.get(name)) for name, was in before.items() if after.get(name) != was}
    assert not moved  # nothing that Colab ships is uninstalled or replaced
