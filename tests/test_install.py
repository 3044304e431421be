"""An install without a clone is complete: the wheel in an environment of its own runs a lesson, and finds its data."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


class Installed:
    """An environment outside the clone: labkit from its wheel, everything else from the environment of the tests."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.wheel = self._build()
        venv.create(folder / "env", symlinks=os.name != "nt")
        scheme = {"base": str(folder / "env"), "platbase": str(folder / "env")}
        self.python = Path(sysconfig.get_path("scripts", "venv", scheme)) / Path(sys.executable).name
        self.packages = Path(sysconfig.get_path("purelib", "venv", scheme))
        self._pip("install", "--quiet", "--no-index", "--no-deps", str(self.wheel))
        # Folders that a .pth file names come later on the path; .pth files in them (the editable labkit) are not read.
        ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.packages / "the_other_packages.pth").write_text("\n".join(sorted(ours)) + "\n", encoding="utf-8")

    def _build(self) -> Path:
        pytest.importorskip("hatchling")
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", self.folder / "wheel"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (wheel,) = (self.folder / "wheel").glob("diffusion_labkit-*.whl")
        return wheel

    def _pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: str | Path, cwd: Path, code: int = 0) -> str:
        """Run the environment's Python as a learner would: nothing of the clone is on its path. Returns stdout."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LABKIT_DATA")}
        done = subprocess.run(
            [self.python, *map(str, arguments)], cwd=cwd, env=kept, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == code, (done.stdout + done.stderr)[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("install"))


def test_the_wheels_labkit_finds_its_own_data_notebooks_and_intact_models(installed, tmp_path):
    code = (
        "import json, labkit\nfrom labkit.course.manifest import Project, lesson_numbers\n"
        "from labkit.models import data_dir\nfrom labkit.models.checksums import read_checksums, verify\n"
        "folders = sorted({path.split('/')[0] for path in read_checksums() if '/' in path})\n"
        "print(json.dumps([labkit.__file__, str(data_dir()), str(Project().notebook('00_start_here', 'ja')),"
        " lesson_numbers(), {folder: verify(folder) for folder in folders}]))"
    )
    file, data, notebook, numbers, verified = json.loads(installed.run("-c", code, cwd=tmp_path))
    package = installed.packages / "labkit"
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


def test_a_lesson_runs_from_the_wheel_with_the_notebook_alone_in_a_folder(installed, tmp_path):
    """Lesson 00 as a learner gets it: it checks the machine, loads the models and makes pictures."""
    code = (
        "import papermill\nfrom labkit.course.manifest import Project\n"
        "papermill.execute_notebook(str(Project().notebook('00_start_here', 'en')), 'done.ipynb',"
        " parameters={'tier': 'smoke'}, progress_bar=False)"
    )
    installed.run("-c", code, cwd=tmp_path)
    cells = json.loads((tmp_path / "done.ipynb").read_text("utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "".join(json.dumps(output.get("data", {})) for output in outputs).count("data:image/png;base64,") >= 2
    written = {path.name for path in tmp_path.iterdir()}
    assert "done.ipynb" in written and not {"data", "notebooks", "labkit"} & written
