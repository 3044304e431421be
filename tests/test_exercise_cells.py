"""The check cells of the real student notebooks, run as a learner runs them: twice, after stubs, mistakes and errors.

Only an answer of the learner's own passes and is recorded, whatever the reference was bound to in between.
"""

import ast
import inspect
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from types import FunctionType

import pytest
from IPython.core.interactiveshell import InteractiveShell

from labkit.authoring.regions import solution_code, student_code
from labkit.authoring.source import read_source
from labkit.course import lab as session
from labkit.course.checks import load_exercises
from labkit.course.i18n import set_language, use_lesson
from labkit.course.lesson_files import full_id
from labkit.course.manifest import Project, lesson_numbers

PROJECT = Project()


class Notebook:
    """A shell with a lesson's set-up and imports, and the exercise cells of its source."""

    def __init__(self, number, home):
        [path] = PROJECT.sources.glob(f"{number}_*.py")
        self.cells = read_source(path).code_cells
        self.number, self.home = number, home
        self.exercises = load_exercises(PROJECT.folder(number))
        self.shell = InteractiveShell.instance()
        self.run(f"from labkit.course import start, t\nlab = start({number!r}, tier='smoke', home={str(home)!r})")

    def run(self, code):
        """Run a cell as a notebook does, errors and all; what it showed."""
        shown = io.StringIO()
        with redirect_stdout(shown), redirect_stderr(shown):
            self.last = self.shell.run_cell(code, store_history=True)
        return shown.getvalue()

    def cell(self, id):
        """(exercise cell, check cell) of an exercise."""
        [exercise] = [cell for cell in self.cells if cell.exercise and full_id(self.number, cell.exercise) == id]
        short = id.split(".", 1)[1]
        [check] = [cell for cell in self.cells if f'lab.check("{short}"' in cell.source]
        return exercise, check

    def imports(self):
        """The import statements of all cells, so that a solution finds its names."""
        nodes = [node for cell in self.cells for node in ast.parse(cell.source).body]
        return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))

    def recorded(self, id):
        path = self.home / "progress.json"
        lessons = json.loads(path.read_text(encoding="utf-8"))["lessons"] if path.exists() else {}
        return lessons.get(self.number, {}).get("exercises", {}).get(id, {})


@pytest.fixture(scope="module", params=lesson_numbers(PROJECT))
def notebook(request, tmp_path_factory):
    InteractiveShell.clear_instance()
    yield Notebook(request.param, tmp_path_factory.mktemp("home"))
    InteractiveShell.instance().restore_sys_module_state()
    InteractiveShell.clear_instance()
    session._current = None
    use_lesson(None)
    set_language("en")


def as_the_learners(function, name):
    """A copy of a stored answer as if a cell of the notebook had defined it."""
    copy = FunctionType(function.__code__, function.__globals__, name, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__module__ = function.__kwdefaults__, "__main__"
    return copy


def test_nothing_but_the_learners_own_answer_passes_on_any_run(notebook):
    for id, exercise in notebook.exercises.items():
        cell, check = notebook.cell(id)
        name, stub = exercise.name, student_code(cell.source, "en", "Your code here.")

        def twice(what, id=id, name=name, check=check):
            """Run the check cell twice: never passed, nothing recorded, and the lesson goes on with a reference."""
            for _ in range(2):
                shown = notebook.run(check.source)
                assert notebook.last.success, (id, what, shown)
                assert "passed (" not in shown and "reference solution" in shown, (id, what, shown)
                assert not notebook.recorded(id).get("passed"), (id, what)
                assert callable(notebook.shell.user_ns[name])
            return shown

        notebook.shell.user_ns.pop(name, None)
        assert "is not defined" in notebook.run(check.source), id
        twice("the cell was not run")
        notebook.run(stub)
        twice("stub")
        assert not notebook.recorded(id).get("attempts")
        for number, (_, wrong) in enumerate(exercise.wrong_answers, start=1):
            notebook.shell.user_ns["theirs"] = as_the_learners(wrong, name)
            notebook.run(f"{name} = theirs")
            assert "lent so that the lesson can go on" in twice(f"wrong answer {number}")
            assert notebook.recorded(id)["attempts"] == number, id  # the second runs are no attempts
        broken = stub.replace(f"def {name}(", f"def {name}(self self, ", 1)
        notebook.run(broken)
        assert isinstance(notebook.last.error_before_exec, SyntaxError)
        assert "stopped with an error" in twice("SyntaxError")
        notebook.run(f"{name} = lab.exercise({exercise.short!r}).reference")
        twice("the reference itself")
        dug = f"dug = lab.exercise({exercise.short!r}).reference\n"
        notebook.run(f"{dug}def {name}(*args, **kwargs):\n    return dug(*args, **kwargs)")
        assert "lent so that" in twice("a function that calls the reference, dug out on purpose")
        notebook.run(f"lent = {name}\ndef {name}(*args, **kwargs):\n    return lent(*args, **kwargs)")
        assert "lent so that" in twice("a function that calls the reference")
        again = f"lent = lab.use({exercise.short!r})\ndef {name}(*args, **kwargs):\n    return lent(*args, **kwargs)"
        notebook.run(again)
        assert "lent so that" in twice("the same, lent in one cell with it")


def test_the_solution_cell_passes_and_an_error_in_it_later_lets_nothing_older_pass(notebook):
    notebook.run(notebook.imports())
    for id, exercise in notebook.exercises.items():
        cell, check = notebook.cell(id)
        solution = solution_code(cell.source, "en")
        notebook.run(solution)
        shown = notebook.run(check.source)
        assert "passed (" in shown and "your own" in shown, (id, shown)
        assert notebook.recorded(id)["passed"]
        mine = notebook.shell.user_ns[exercise.name]
        assert "passed (" in notebook.run(check.source) and notebook.shell.user_ns[exercise.name] is mine
        notebook.run(solution.replace(f"def {exercise.name}(", f"def {exercise.name}(self self, ", 1))
        for _ in range(2):
            assert "older version" in notebook.run(check.source), id
        notebook.run(solution)
        assert "passed (" in notebook.run(check.source), id


@pytest.mark.parametrize("project", [PROJECT, Project(PROJECT.root / "tests" / "data" / "course")])
def test_what_is_lent_for_a_value_has_a_name_of_its_own(project):
    """A value cannot be told from an equal one, so the notebook must not put the lent one in the learner's place."""
    seen = 0
    for path in project.sources.glob("*.py"):
        exercises = load_exercises(project.folder(path.name[:2]))
        for cell in read_source(path).code_cells:
            for target, id in re.findall(r'^(\w+) = lab\.use\("(\w+)"\)', cell.source, re.MULTILINE):
                exercise = exercises[full_id(path.name[:2], id)]
                assert (target != exercise.name) is exercise.value, (path.name, id)
                seen += 1
    assert seen >= len(list(project.sources.glob("*.py")))


@pytest.fixture
def lesson01(tmp_path):
    InteractiveShell.clear_instance()
    notebook = Notebook("01", tmp_path)
    notebook.run(notebook.imports())
    cell, check = notebook.cell("l01.add_noise")
    notebook.right, notebook.check = solution_code(cell.source, "en"), check.source
    yield notebook
    notebook.shell.restore_sys_module_state()
    InteractiveShell.clear_instance()
    session._current = None
    use_lesson(None)
    set_language("en")


@pytest.mark.parametrize(
    "scratch",
    [
        "class Mine:\n    def add_noise(self):\n        return 1",
        "text = '''\ndef add_noise(x):\n    return x\n'''",
        "def other():\n    def add_noise(x):\n        return x\n    return add_noise",
        "# add_noise = nothing\nlater = 3",
    ],
)
def test_a_right_answer_stays_right_after_a_cell_that_only_mentions_its_name(lesson01, scratch):
    lesson01.run(lesson01.right)
    lesson01.run(scratch)
    assert "passed (" in lesson01.run(lesson01.check)


@pytest.mark.parametrize(
    "broken",
    [
        "add_noise = lambda *a: (a[0]",
        "class add_noise(:\n    pass",
        "add_noise = not_there(3)",
        "add_noise: int = 1 / 0",
    ],
)
def test_an_older_answer_does_not_pass_for_a_later_one_that_stopped_with_an_error(lesson01, broken):
    lesson01.run(lesson01.right)
    lesson01.run(broken)
    assert not lesson01.last.success
    assert "older version" in lesson01.run(lesson01.check)
    lesson01.run(lesson01.right)
    assert "passed (" in lesson01.run(lesson01.check)


def test_what_is_lent_does_not_give_the_reference_away(lesson01):
    lesson01.run(lesson01.check)
    lent = lesson01.shell.user_ns["add_noise"]
    reference = lesson01.exercises["l01.add_noise"].reference
    assert inspect.unwrap(lent) is lent
    assert inspect.signature(lent) == inspect.signature(reference)


def test_an_answer_that_leaves_the_program_is_a_failed_answer(lesson01):
    lesson01.run("import sys\ndef add_noise(*args, **kwargs):\n    sys.exit(3)")
    shown = lesson01.run(lesson01.check)
    assert lesson01.last.success
    assert "SystemExit" in shown
