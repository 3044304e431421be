"""A mistyped `papermill -p` stops the notebook; nothing else that looks like one does."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from labkit.course.injected import check_injected
from labkit.course.lesson_files import CourseError
from labkit.course.manifest import ROOT

OWN = 'tier = "cpu"\nlang = "en"\nseed = 0\nstrict = False\ninteractive = True\n'


def test_a_mistyped_parameter_is_named_with_the_one_that_was_meant():
    said = r"unknown parameter teir: this notebook has tier, lang, seed, strict, interactive; did you mean tier\?"
    with pytest.raises(CourseError, match=said):
        check_injected(["", OWN, '# Parameters\nteir = "smoke"\n'])
    with pytest.raises(CourseError, match="unknown parameter xyzzy: [^;]*$"):
        check_injected([OWN, "# Parameters\nseed = 3\nxyzzy = 1\n"])


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [OWN],
        [OWN, '# Parameters\ntier = "smoke"\nseed = 3\n'],
        [OWN, "seeds = [1, 2]", "# Parameters\nteir = 0\n"],  # a cell of the learner's own, further down
        [OWN, "teir = 0"],
        [OWN, "# Parameters\nnot Python at all"],
        ["%magic", "# Parameters\nteir = 0\n"],
    ],
)
def test_known_parameters_and_cells_of_the_learner_pass(cells):
    check_injected(cells)


def test_papermill_stops_at_the_setup_cell_of_a_lesson(tmp_path, monkeypatch):
    papermill = pytest.importorskip("papermill")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    setup = 'from labkit.course import start\nlab = start("00", tier=tier, lang=lang)'
    cells = [new_code_cell(OWN, metadata={"tags": ["parameters"]}), new_code_cell(setup), new_code_cell("1 + 1")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "n.ipynb")
    run = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter teir.*did you mean tier"):
        papermill.execute_notebook(tmp_path / "n.ipynb", tmp_path / "o.ipynb", {"teir": "smoke"}, **run)
    done = papermill.execute_notebook(tmp_path / "n.ipynb", tmp_path / "o.ipynb", {"tier": "smoke"}, **run)
    assert done.cells[-1].execution_count
