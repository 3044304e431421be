'''Checks that teach. This docstring is the guide for lesson authors: everything a lesson folder may contain.

One exercise in lessons/lNN/checks.py
-------------------------------------
A reference solution, a check, and two to four stored wrong answers that prove that the check notices them:

    """Exercises of lesson 01."""
    import torch
    from labkit.course.checks import exercise

    def add_noise(x0, noise, alpha_bar):
        """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, eq. 4)."""
        return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise

    @exercise("l01.add_noise", reference=add_noise)
    def check_add_noise(c, fn):
        c.callable(fn)                                          # as many arguments as the reference
        x0, noise = c.randn(2, 3, 4, 4), c.randn(2, 3, 4, 4)    # seeded from the exercise's id
        got = c.call(fn, x0, noise, 0.64)                       # errors, stubs and changed arguments: clear messages
        c.tensor(got, shape=(2, 3, 4, 4), dtype=torch.float32)  # type -> shape -> dtype -> device -> finite
        c.mistake("l01.no_root", got=got, looks_like=0.64 * x0 + 0.36 * noise)
        c.hand(c.call(fn, torch.tensor([1.0]), torch.tensor([2.0]), 0.64), torch.tensor([2.0]))
        c.close(got, 0.8 * x0 + 0.6 * noise)                    # independent of the reference's code
        c.require(c.is_close(c.call(fn, x0, noise, 1.0), x0), "l01.no_noise_left")

    @check_add_noise.wrong("l01.no_root")                       # must fail with this message key
    def _(x0, noise, alpha_bar):
        return alpha_bar * x0 + (1 - alpha_bar) * noise

    @check_add_noise.wrong("check.shape")
    def _(x0, noise, alpha_bar):
        return (alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise).mean()

- Order: type -> shape -> dtype -> finite -> frequent mistakes and hand value -> independent reference -> property.
  `c.close` alone already looks at type, shape, dtype kind, device and NaN. All steps: `labkit.course.checker.Checker`.
- Failing steps without `key=` say something general and still useful: check.sign, check.factor, check.offset,
  check.transposed, check.value, check.hand, check.shape, check.shape_scalar, check.dtype, check.not_finite,
  check.raised, check.mutated, check.signature ... (texts: messages/checks.yaml). Wrong answers may name these keys too,
  and `c.mistake("check.axis", ...)` is there for a mean over the wrong axis.
- A check is pure and quick (well under a second, CPU, float64 where float32 noise would confuse), draws only from
  `c.randn / c.rand / c.randint / c.generator`, and never prints. Choose inputs where a mistake differs from the truth.
- The learner wrote the argument: it may be None, raise, return another type. Let `c.call` and the steps deal with that.
- An exercise whose answer is a value (tensor, number, dict): `@exercise(id, reference=make_answer, value=True)`, where
  `make_answer()` and the wrong answers take no arguments and return it. `wrong={key: obj}` (or `{key: [obj, obj]}`) is
  the other way to store wrong answers. `shows=(helper,)` adds helpers to the source that `lab.solution` shows.
  `stubs=(obj,)` adds what the notebook's stub looks like when it is more than `return None` or
  `raise NotImplementedError`.
- A class as exercise: `reference=MyClass`; build with `c.call(cls, ...)`, call methods with `c.call(obj.method, ...)`.
- The id is "lNN.name", `name` being what the learner defines; lesson.yaml gives difficulty, importance and minutes.
  Ids are lower case; `name="RunningMean"` says what the learner defines where that is another name.

Messages, in lessons/lNN/messages.yaml
--------------------------------------
`key: {en: ..., ja: ...}`, for every key of your own and for three hints per exercise: a question, a direction, nearly
the answer. Texts may use `code`, **bold** and $TeX$, and {name}, {got}, {want}, {index}, {diff} and the keywords you
pass; braces of formulas are doubled.

    l01.no_root: {en: "Take the square roots: `alpha_bar` scales the variance.", ja: "平方根を取ってください。..."}
    hint.l01.add_noise.1: {en: ..., ja: ...}    # and .2, .3

In the notebook
---------------
    # BEGIN SOLUTION / # END SOLUTION region that defines add_noise
    lab.check("add_noise")                  # never raises (unless strict): the notebook runs on
    add_noise = lab.use("add_noise")        # theirs if it passed, else the reference; later cells rely on it

Both look the name up themselves, so that a cell that was not run or was deleted gets an answer instead of a NameError.
What `lab.use` lent is never taken for an answer (`labkit.course.answers`). A value looks like any other value, so what
the lesson goes on with needs a name of its own there: `weights_used = lab.use("weights")`.
`lab.hint()` gives the next hint, `lab.solution()` the reference's source, both for the exercise checked last.

    picture = lab.keep("pictures", draw, 3.0)       # draw(3.0), or what this very call gave before the last restart

For what takes more than a few seconds (`labkit.course.keep`). The function returns all that the lesson needs of it, as
tensors, arrays, numbers, texts and containers of them, makes its random generators inside, and draws nothing. Batch
runs compute; strict ones refuse a result that could not be kept. `lab.fresh()` forgets what was kept.

Quizzes and predict-then-run prompts, in quiz.yaml
--------------------------------------------------
    questions:
      - id: snr
        question: {en: "...", ja: "..."}
        options:                     # two or more, exactly one correct; shown in a fixed shuffled order
          - {text: {en: ..., ja: ...}, explain: {en: ..., ja: ...}, correct: true}
          - {text: {en: ..., ja: ...}, explain: {en: ..., ja: ...}}
        keep_order: true             # optional: for options such as 1, 10, 100
    predictions:
      - id: more_steps               # lab.predict("more_steps") before the run
        question: {en: ..., ja: ...}
        options: [{id: up, text: {en: ..., ja: ...}}, {id: down, text: {en: ..., ja: ...}}]
        explain: {en: ..., ja: ...}  # optional, shown by lab.reveal("more_steps", "down") after the run
      - {id: mean_norm, number: true, tolerance: 0.1, question: {en: ..., ja: ...}}    # lab.reveal("mean_norm", 1.02)
      - {id: why, question: {en: ..., ja: ...}, explain: {en: ..., ja: ...}}           # free text

Claims in claims.yaml and the article map in article.yaml: see `labkit.course.claims`. Run
`pytest tests/test_lesson_checks.py` after every change: it proves all of the above for every lesson.
'''

from __future__ import annotations

import importlib.util
import inspect
import random
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from labkit.course.answers import MISSING, lend, objection, under_check
from labkit.course.checker import MISSING_CELL, PASSED, TODO, Checker, Result, Stop
from labkit.course.lesson_files import CourseError, stable_seed
from labkit.course.values import error_line, is_todo, where

__all__ = [
    "Checker",
    "Exercise",
    "Result",
    "exercise",
    "judge",
    "load_exercises",
    "run_check",
]

_registry: dict[str, dict[str, Exercise]] = {}  # module name -> exercise id -> exercise


class Exercise:
    """One exercise: its check, the reference solution and stored wrong answers. Made by `@exercise`."""

    def __init__(
        self, id: str, check: Callable, reference: Any, value: bool, shows: tuple, stubs: tuple, name: str | None
    ) -> None:
        self.id, self.check, self._reference, self.value = id, check, reference, value
        self.short = id.split(".", 1)[-1]
        self.name = name or self.short  # what the learner defines
        self.shows, self.extra_stubs = shows, stubs
        self.wrong_answers: list[tuple[str, Any]] = []  # (expected message key, object)
        self.lent: list[Any] = []  # what `answers.lend` has handed out

    def wrong(self, key: str) -> Callable[[Any], Any]:
        """Decorator that stores a wrong answer, which must fail with the message `key`."""

        def store(obj: Any) -> Any:
            self.wrong_answers.append((key, obj))
            return obj

        return store

    def make(self, obj: Any) -> Any:
        """The object itself; for `value=True` exercises what the function `obj` returns."""
        return obj() if self.value and callable(obj) else obj

    @property
    def reference(self) -> Any:
        """The reference solution as a notebook gets it: inside its own check a function refuses to work, so that an
        answer that calls it is none."""
        return self._reference if self.value or isinstance(self._reference, type) else lend(self)

    def _reference_object(self) -> Any:
        return self.make(self._reference)

    def source(self) -> str:
        """Source of the helpers in `shows` and of the reference solution."""
        return "\n\n".join(textwrap.dedent(inspect.getsource(obj)).strip() for obj in (*self.shows, self._reference))

    def stubs(self) -> list[Any]:
        """What an untouched exercise looks like: the author's stubs, nothing at all, bodies without an answer."""

        def raising(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        generic: list[Any] = [None, ...]
        if isinstance(self._reference, type):
            methods = {name: raising for name, obj in vars(self._reference).items() if callable(obj)}
            generic.append(type(self.name, (), {**methods, "__init__": raising}))
        elif not self.value:
            generic += [raising, lambda *args, **kwargs: None, lambda *args, **kwargs: ...]
        return [*self.extra_stubs, *generic]


def exercise(
    id: str,
    *,
    reference: Any,
    wrong: Mapping[str, Any] | None = None,
    value: bool = False,
    shows: tuple = (),
    stubs: tuple = (),
    name: str | None = None,
) -> Callable[[Callable[[Checker, Any], None]], Exercise]:
    """Declare an exercise in lessons/lNN/checks.py; see the guide at the top of this module."""
    if not callable(reference):
        raise CourseError(
            f"exercise {id}: reference must be a function or class; for a value give a function and value=True"
        )

    def declare(check: Callable[[Checker, Any], None]) -> Exercise:
        declared = _registry.setdefault(check.__module__, {})
        if id in declared:
            raise CourseError(f"exercise {id} is declared twice in {check.__module__}; rename one")
        declared[id] = Exercise(id, check, reference, value, shows, stubs, name)
        for key, objects in (wrong or {}).items():
            for obj in objects if isinstance(objects, list) else [objects]:
                declared[id].wrong(key)(obj)
        return declared[id]

    return declare


@cache
def load_exercises(folder: Path) -> dict[str, Exercise]:
    """The exercises of lesson folder `folder` by id, in the order of its checks.py; {} where there is none."""
    path = Path(folder) / "checks.py"
    if not path.is_file():
        return {}
    ours = Path(__file__).parent / "lessons"
    prefix = "labkit.course.lessons." if path.is_relative_to(ours) else f"lessons_{stable_seed(str(path)):08x}_"
    module = _load_module(
        f"{prefix}{folder.name}.checks" if path.is_relative_to(ours) else f"{prefix}{folder.name}", path
    )
    declared = _registry.get(module.__name__, {})
    strangers = [id for id in declared if not id.startswith(f"{folder.name}.")]
    if strangers:
        raise CourseError(f"{folder.name}/checks.py: exercise {strangers[0]!r} must be called '{folder.name}.name'")
    return declared


def _load_module(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource of a class looks its module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        _registry.pop(name, None)
        raise
    return module


@contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Fixed global random state inside (learner code may use it), the previous one afterwards; gradients are on."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is exactly what is saved here
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    with ExitStack() as stack:
        if "torch" in sys.modules:
            torch = sys.modules["torch"]
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(torch.enable_grad())
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def run_check(exercise: Exercise, obj: Any) -> Result:
    """Check the learner's object. Pure: same object, same result; whatever the object does, a Result comes back."""
    checker = Checker(exercise)

    def failed(key: str, details: dict[str, Any], stage: str) -> Result:
        return Result(exercise.id, False, key, details, stage)

    if obj is MISSING or is_todo(obj):
        return failed(MISSING_CELL if obj is MISSING else TODO, {"name": exercise.name}, "type")
    try:
        with isolated_random(checker.seed), under_check(exercise.id):
            exercise.check(checker, obj)
    except Stop as stop:
        return failed(stop.key, {"name": exercise.name, **stop.details}, stop.stage)
    except NotImplementedError:
        return failed(TODO, {"name": exercise.name}, "type")
    except (Exception, SystemExit) as error:
        details = {"name": exercise.name, "error": error_line(error), "where": where(error)}
        return failed("check.raised", details, "call")
    if not checker.steps:
        raise CourseError(f"the check of {exercise.id} has no step: call its first argument, e.g. c.close(got, want)")
    return Result(
        exercise.id, True, PASSED, {"name": exercise.name, "steps": checker.steps, "example": checker.example}
    )


def judge(exercise: Exercise, obj: Any) -> Result:
    """`run_check` of an object that is the learner's own; of anything else a Result that says why it does not count."""
    key = None if obj is MISSING else objection(exercise, obj)
    if key is None:
        return run_check(exercise, obj)
    details = {"name": exercise.name, "got": f"{getattr(obj, '__module__', '')}.{getattr(obj, '__qualname__', '')}"}
    return Result(exercise.id, False, key, details, "type")
