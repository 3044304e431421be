"""The steps a check is made of. Lesson authors get a `Checker`; their guide is `labkit.course.checks`.

Every step either passes silently or ends the check with a message key (never with English or Japanese text: the text is
looked up when the result is shown, so one result can be shown in both languages).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from labkit.course.lesson_files import stable_seed
from labkit.course.values import (
    as_array,
    brief,
    call_text,
    diagnose,
    dtype_name,
    error_line,
    is_number,
    is_tensor,
    is_todo,
    kind_name,
    signature_of,
    snapshot,
    unchanged,
    where,
    worst_difference,
)

if TYPE_CHECKING:
    import torch

    from labkit.course.checks import Exercise

TODO = "check.todo"
PASSED = "check.passed"
MISSING_CELL = "check.missing_cell"
LENT, NOT_YOURS, STALE = "check.lent", "check.not_yours", "check.stale"
NOT_CHECKED = (MISSING_CELL, LENT, NOT_YOURS, STALE)  # there was no answer of the learner's to look at


@dataclass(frozen=True)
class Result:
    """Outcome of one check. `key` and `details` make the message; `bool(result)` is True when it passed."""

    exercise: str
    ok: bool
    key: str
    details: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""

    def __bool__(self) -> bool:
        return self.ok

    @property
    def status(self) -> str:
        """'passed', 'failed', 'todo' (nothing written yet) or 'unchecked' (nothing of the learner's to look at)."""
        if self.ok:
            return "passed"
        return "todo" if self.key == TODO else "unchecked" if self.key in NOT_CHECKED else "failed"

    def _ipython_display_(self) -> None:
        """Nothing: `check` has already shown the result, a cell that ends in it must not show it twice."""


class Stop(Exception):
    """Ends a check; carries message key, details and stage."""

    def __init__(self, key: str, stage: str, details: dict[str, Any]) -> None:
        super().__init__(key)
        self.key, self.stage, self.details = key, stage, details


class Checker:
    """Steps of one check, in the order type -> shape -> dtype -> finite -> hand value -> reference -> property.

    Steps that compare take `key=`, the message for this particular failure; without it a general diagnosis is made
    (wrong sign, constant factor, transposed, ...). `name=` is how messages call the thing (default: the exercise's
    name). Lesson messages may use {name}, {got}, {want}, {index}, {diff}, {factor} and any keyword given to the step.
    """

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        self.name = exercise.name
        self.seed = stable_seed(exercise.id)
        self.steps = 0
        self.example = ""  # one small call of the learner's own and what it gave, for the message after a pass
        self._last_call = ""
        self._generator: torch.Generator | None = None

    # ---- inputs -------------------------------------------------------------------------------------------------

    @property
    def generator(self) -> torch.Generator:
        """CPU generator seeded from the exercise's id: the same draws on every run."""
        if self._generator is None:
            import torch

            self._generator = torch.Generator().manual_seed(self.seed)
        return self._generator

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Standard normal CPU tensor (float32 unless said)."""
        import torch

        return torch.randn(*shape, generator=self.generator, device="cpu", dtype=dtype or torch.float32)

    def rand(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Uniform CPU tensor in [0, 1)."""
        import torch

        return torch.rand(*shape, generator=self.generator, device="cpu", dtype=dtype or torch.float32)

    def randint(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Whole numbers in [low, high), int64, on the CPU."""
        import torch

        return torch.randint(low, high, shape, generator=self.generator, device="cpu")

    # ---- the learner's object -----------------------------------------------------------------------------------

    def callable(self, fn: Any, *, name: str | None = None) -> None:
        """It is a function (or class) that can be called with as many arguments as the reference."""
        name = name or self.name
        if not callable(fn):
            self.fail("check.not_callable", "type", name=name, got=type(fn).__name__)
        want, got = signature_of(self.exercise._reference), signature_of(fn)
        if want is not None and got is not None and not self.exercise.value:
            needed = [p for p in want.parameters.values() if p.default is p.empty]
            positional = [p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            keywords = {p.name: None for p in needed if p.kind is p.KEYWORD_ONLY}
            try:
                got.bind(*positional, **keywords)
            except TypeError:
                expected = ", ".join([*(p.name for p in positional), *(f"{k}=" for k in keywords)])
                self.fail("check.signature", "type", name=name, want=f"{name}({expected})", got=f"{name}{got}")
        self.steps += 1

    def call(self, fn: Callable, *args: Any, may_mutate: bool = False, none_ok: bool = False, **kwargs: Any) -> Any:
        """fn(*args, **kwargs); an exception, a changed argument or a stub's None ends the check clearly."""
        before = [snapshot(value) for value in (*args, *kwargs.values())]
        try:
            result = fn(*args, **kwargs)
        except NotImplementedError:
            self.fail(TODO, "type", name=self.name)
        except Stop:
            raise
        except (Exception, SystemExit) as error:
            self.fail("check.raised", "call", name=self.name, error=error_line(error), where=where(error))
        if not none_ok:
            self._written(result)
        if not may_mutate:
            for old, new in zip(before, (*args, *kwargs.values()), strict=True):
                if not unchanged(old, new):
                    self.fail("check.mutated", "call", name=self.name, want=brief(old, 50), got=brief(new, 50))
        self._last_call = call_text(self.name, fn, args, kwargs, result)
        self.steps += 1
        return result

    def raises(
        self, error: type[Exception], fn: Callable, *args: Any, key: str = "check.no_error", **kwargs: Any
    ) -> None:
        """The learner's function must refuse these arguments with `error`."""
        try:
            fn(*args, **kwargs)
        except error:
            self.steps += 1
        except NotImplementedError:
            self.fail(TODO, "type", name=self.name)
        except (Exception, SystemExit) as other:
            self.fail(key, "property", name=self.name, want=error.__name__, got=error_line(other))
        else:
            self.fail(key, "property", name=self.name, want=error.__name__, got="-")

    # ---- type, shape, dtype, finite -----------------------------------------------------------------------------

    def instance(
        self, got: Any, kinds: type | tuple[type, ...], *, name: str | None = None, key: str = "check.type"
    ) -> None:
        """isinstance(got, kinds)."""
        self._written(got)
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(got, kinds):
            want = " | ".join(kind.__name__ for kind in kinds)
            self.fail(key, "type", name=name or self.name, want=want, got=type(got).__name__)
        self.steps += 1

    def shape(self, got: Any, want: Sequence[int], *, name: str | None = None, key: str | None = None) -> None:
        """Shape of a tensor or array; -1 in `want` stands for any length."""
        self._written(got)
        if not hasattr(got, "shape"):
            self.fail("check.type", "type", name=name or self.name, want="Tensor | ndarray", got=type(got).__name__)
        want, have = tuple(want), tuple(got.shape)
        if len(have) != len(want) or any(w not in (-1, h) for h, w in zip(have, want, strict=True)):
            general = "check.shape"
            if not have and want:
                general = "check.shape_scalar"
            elif len(want) > 1 and have == want[::-1]:
                general = "check.shape_transposed"
            self.fail(key or general, "shape", name=name or self.name, want=str(want), got=str(have))
        self.steps += 1

    def finite(self, got: Any, *, name: str | None = None, key: str = "check.not_finite") -> None:
        """No NaN and no infinity."""
        self._written(got)
        array = as_array(got)
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            bad = f"{int((~np.isfinite(array)).sum())}/{array.size}"
            self.fail(key, "finite", name=name or self.name, got=bad)
        self.steps += 1

    def tensor(
        self,
        got: Any,
        shape: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        finite: bool = True,
        name: str | None = None,
    ) -> None:
        """A torch tensor with this shape, exactly this dtype (if given), on this device, without NaN."""
        import torch

        name = name or self.name
        self.instance(got, torch.Tensor, name=name)
        if shape is not None:
            self.shape(got, shape, name=name)
        if dtype is not None and got.dtype != dtype:
            self.fail("check.dtype", "dtype", name=name, want=dtype_name(dtype), got=dtype_name(got.dtype))
        self._device(got, device, name)
        if finite:
            self.finite(got, name=name)

    def array(
        self, got: Any, shape: Sequence[int] | None = None, *, dtype: Any = None, name: str | None = None
    ) -> None:
        """A numpy array with this shape, exactly this dtype (if given), without NaN."""
        name = name or self.name
        self.instance(got, np.ndarray, name=name)
        if shape is not None:
            self.shape(got, shape, name=name)
        if dtype is not None and got.dtype != np.dtype(dtype):
            self.fail("check.dtype", "dtype", name=name, want=str(np.dtype(dtype)), got=str(got.dtype))
        self.finite(got, name=name)

    def number(self, got: Any, lo: float = -np.inf, hi: float = np.inf, *, name: str | None = None) -> float:
        """One finite number in [lo, hi]; a tensor without dimensions counts. Returns it as a float."""
        name = name or self.name
        self._written(got)
        if not is_number(got):
            kind = type(got).__name__ + (str(tuple(got.shape)) if hasattr(got, "shape") else "")
            self.fail("check.not_number", "type", name=name, got=kind)
        self.finite(got, name=name)
        value = float(as_array(got))
        if not lo <= value <= hi:
            self.fail("check.range", "property", name=name, got=brief(value), want=f"[{lo:g}, {hi:g}]")
        self.steps += 1
        return value

    def length(self, got: Any, want: int, *, name: str | None = None, key: str = "check.length") -> None:
        """len(got) == want."""
        self._written(got)
        have = len(got) if hasattr(got, "__len__") else type(got).__name__
        if have != want:
            self.fail(key, "shape", name=name or self.name, want=want, got=have)
        self.steps += 1

    def keys(self, got: Any, want: Sequence[str], *, name: str | None = None, key: str = "check.keys") -> None:
        """A dict that has (at least) these keys."""
        self.instance(got, dict, name=name)
        missing = [k for k in want if k not in got]
        if missing:
            self.fail(
                key, "type", name=name or self.name, want=", ".join(map(str, missing)), got=", ".join(map(str, got))
            )
        self.steps += 1

    # ---- values -------------------------------------------------------------------------------------------------

    def hand(self, got: Any, want: Any, *, key: str | None = None, name: str | None = None, **options: Any) -> None:
        """Like `close`, for a value worked out by hand: the general message shows got and want in full."""
        self._compare(got, want, "hand", key, name or self.name, **options)
        self._keep_example()

    def close(self, got: Any, want: Any, *, key: str | None = None, name: str | None = None, **options: Any) -> None:
        """got equals want (numbers, tensors, arrays, or tuples/lists/dicts of them) within rtol=1e-4, atol=1e-5.

        Type, shape, device, dtype kind and NaN are checked first, each with its own message. Options: rtol, atol, and
        further placeholders for the message of `key`.
        """
        self._compare(got, want, "reference", key, name or self.name, **options)
        self._keep_example()

    def equal(self, got: Any, want: Any, *, key: str | None = None, name: str | None = None, **details: Any) -> None:
        """got == want exactly (strings, whole numbers, bools, bit-identical tensors)."""
        self._compare(got, want, "reference", key, name or self.name, rtol=0.0, atol=0.0, **details)
        self._keep_example()

    def is_close(self, a: Any, b: Any, *, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
        """True if the two agree in shape and value; for the `when=` of `mistake`. Never ends the check."""
        if is_todo(a) or is_todo(b):
            return False
        try:
            x, y = as_array(a), as_array(b)
            return x.shape == y.shape and bool(np.allclose(x, y, rtol=rtol, atol=atol))
        except (TypeError, ValueError):
            return False

    def mistake(
        self, key: str, *, when: bool | None = None, got: Any = None, looks_like: Any = None, **details: Any
    ) -> None:
        """A frequent mistake: `when=` it is recognised, or `got=` equals what the mistake gives (`looks_like=`)."""
        found = bool(when) if when is not None else self.is_close(got, looks_like)
        if found:
            self.fail(key, "mistake", name=self.name, **details)
        self.steps += 1

    def require(self, condition: Any, key: str, **details: Any) -> None:
        """A property that must hold (symmetry, limit case, monotony)."""
        if not bool(condition):
            self.fail(key, "property", name=self.name, **details)
        self.steps += 1

    # ---- gradients ----------------------------------------------------------------------------------------------

    def gradient(self, loss: torch.Tensor, wrt: torch.Tensor) -> torch.Tensor | None:
        """d loss.sum() / d wrt, or None where the loss does not depend on it (for example after detach)."""
        import torch

        if not (is_tensor(loss) and loss.requires_grad):
            return None
        return torch.autograd.grad(loss.sum(), wrt, retain_graph=True, allow_unused=True)[0]

    def has_gradient(
        self, loss: Any, wrt: torch.Tensor, *, key: str = "check.no_gradient", name: str | None = None
    ) -> None:
        """The loss must send a non-zero gradient into `wrt`."""
        self._written(loss)
        grad = self.gradient(loss, wrt)
        if grad is None or not bool(grad.abs().sum() > 0):
            self.fail(key, "property", name=name or self.name)
        self.steps += 1

    def no_gradient(
        self, loss: Any, wrt: torch.Tensor, *, key: str = "check.leaking_gradient", name: str | None = None
    ) -> None:
        """The loss must send no gradient into `wrt` (a forgotten detach or no_grad)."""
        self._written(loss)
        grad = self.gradient(loss, wrt)
        if grad is not None and bool(grad.abs().sum() > 0):
            self.fail(key, "property", name=name or self.name)
        self.steps += 1

    def detached(self, got: Any, *, key: str = "check.not_detached", name: str | None = None) -> None:
        """The result must not carry a graph."""
        self._written(got)
        if is_tensor(got) and got.requires_grad:
            self.fail(key, "property", name=name or self.name)
        self.steps += 1

    # ---- engine -------------------------------------------------------------------------------------------------

    def fail(self, key: str, stage: str = "property", **details: Any) -> NoReturn:
        """End the check with this message."""
        raise Stop(key, stage, {"name": self.name, **details})

    def _written(self, got: Any) -> None:
        if is_todo(got):
            self.fail(TODO, "type", name=self.name)

    def _keep_example(self) -> None:
        """A comparison has held: the call before it, if it is short enough to read, is the example."""
        self.example = self.example or self._last_call

    def _device(self, got: Any, device: str, name: str) -> None:
        if is_tensor(got) and got.device.type != device:
            self.fail("check.device", "dtype", name=name, want=device, got=str(got.device))

    def _compare(
        self,
        got: Any,
        want: Any,
        stage: str,
        key: str | None,
        name: str,
        *,
        rtol: float = 1e-4,
        atol: float = 1e-5,
        **details: Any,
    ) -> None:
        if isinstance(want, dict):
            self.keys(got, list(want), name=name)
            for k, value in want.items():
                self._compare(got[k], value, stage, key, f"{name}[{k!r}]", rtol=rtol, atol=atol, **details)
            return
        if isinstance(want, (list, tuple)):
            self.instance(got, (list, tuple), name=name)
            self.length(got, len(want), name=name)
            for i, value in enumerate(want):
                self._compare(got[i], value, stage, key, f"{name}[{i}]", rtol=rtol, atol=atol, **details)
            return
        self._written(got)
        if is_number(want):
            if is_tensor(want):
                self.instance(got, type(want), name=name)
            self.number(got, name=name)
        elif is_tensor(want) or isinstance(want, np.ndarray):
            self.instance(got, type(want) if isinstance(want, np.ndarray) else sys.modules["torch"].Tensor, name=name)
            self.shape(got, want.shape, name=name)
        else:
            self.instance(got, type(want), name=name)
            if got != want:
                self.fail(
                    key or "check.differs", stage, **{**details, "name": name, "got": brief(got), "want": brief(want)}
                )
            self.steps += 1
            return
        self._device(got, "cpu", name)
        x, y = as_array(got), as_array(want)
        kinds = [array.dtype.kind.replace("u", "i") for array in (x, y)]
        if kinds[0] != kinds[1] and x.ndim:  # a plain number may be 1 instead of 1.0, an array of whole numbers may not
            self.fail("check.dtype", "dtype", name=name, want=kind_name(want), got=kind_name(got))
        self.finite(got, name=name)
        wrong = ~np.isclose(x, y, rtol=rtol, atol=atol)
        if wrong.any():
            general, found = diagnose(x, y, rtol, atol) or ("check.hand" if stage == "hand" else "check.value", {})
            self.fail(
                key or general, stage, **{**details, **worst_difference(x, y, wrong, stage), **found, "name": name}
            )
        self.steps += 1
