"""Looking at objects that somebody else wrote: is there an answer, what kind, in one line, and what is wrong with it.

The helpers behind `labkit.course.checker.Checker`; none of them imports torch where nobody has.
"""

from __future__ import annotations

import inspect
import linecache
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

_NOT_THE_LEARNERS = ("<frozen", str(Path(__file__).parents[1]), sysconfig.get_paths()["stdlib"])
_DIGITS = {"float_kind": lambda number: f"{number:.4g}"}


def is_todo(obj: Any) -> bool:
    """None, `...`, NotImplemented, or a tuple, list or dict of nothing else: what an untouched stub leaves behind."""
    if obj is None or obj is Ellipsis or obj is NotImplemented:
        return True
    items = list(obj.values()) if isinstance(obj, dict) else obj if isinstance(obj, (tuple, list)) else ()
    return len(items) > 0 and all(is_todo(item) for item in items)


def is_tensor(obj: Any) -> bool:
    """True for torch tensors, without importing torch where nobody has."""
    return "torch" in sys.modules and isinstance(obj, sys.modules["torch"].Tensor)


def is_number(obj: Any) -> bool:
    """True for int, float, numpy scalars and tensors or arrays without dimensions; not for bool."""
    if isinstance(obj, (bool, np.bool_)):
        return False
    if is_tensor(obj) or isinstance(obj, np.ndarray):
        return obj.ndim == 0 and "bool" not in str(obj.dtype)
    return isinstance(obj, (int, float, np.integer, np.floating))


def as_array(obj: Any) -> np.ndarray:
    """A numpy copy for comparing: floats as float64, whole numbers and bools as they are, graph and device dropped."""
    if is_tensor(obj):
        obj = obj.detach().cpu()
        obj = obj.double().numpy() if obj.is_floating_point() else obj.numpy()
    array = np.asarray(obj)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def brief(obj: Any, limit: int = 90) -> str:
    """The object in one short line, for messages: numbers with 4 digits, arrays as nested lists."""
    if is_tensor(obj) or isinstance(obj, (np.ndarray, np.generic)):
        text = np.array2string(as_array(obj), separator=", ", threshold=12, edgeitems=2, formatter=_DIGITS)
    else:
        text = f"{obj:.4g}" if isinstance(obj, float) else repr(obj)
    if type(obj) in (list, tuple):
        text = f"{text[0]}{', '.join(brief(item, limit) for item in obj)}{text[-1]}"
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def call_text(name: str, fn: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> str:
    """'add_noise([1], [2], 0.64) = [2]' on one line, long arguments as '…'; '' where the result is too long to read."""
    name = f"{name}().{fn.__name__}" if inspect.ismethod(fn) else name
    given = [brief(value, 60) for value in args] + [f"{key}={brief(value, 60)}" for key, value in kwargs.items()]
    arguments, answer = ", ".join(given), brief(result, 60)
    short = len(arguments) <= 90 and "…" not in arguments
    return "" if "…" in answer or "..." in answer else f"{name}({arguments if short else '…'}) = {answer}"


def error_line(error: Exception) -> str:
    """'TypeError: first line of the message'."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300].rstrip(": ")


def signature_of(fn: Any) -> inspect.Signature | None:
    """The signature, or None for built-ins that have none."""
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):
        return None


def diagnose(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> tuple[str, dict[str, Any]] | None:
    """A frequent mistake, recognised from the numbers alone: sign, constant factor or offset, transposed."""
    if got.dtype.kind not in "fi" or not np.abs(want).max() > atol:
        return None
    close = {"rtol": max(rtol, 1e-4), "atol": max(atol, 1e-6)}
    if np.allclose(got, -want, **close):
        return "check.sign", {}
    if got.ndim == 2 and got.shape[0] == got.shape[1] and np.allclose(got.T, want, **close):
        return "check.transposed", {}
    if got.size < 2:
        return None
    factor = float((got * want).sum() / (want * want).sum())
    if abs(factor) > 1e-3 and abs(factor - 1) > 1e-3 and np.allclose(got, factor * want, **close):
        return "check.factor", {"factor": f"{factor:.4g}"}
    offset = float((got - want).mean())
    if np.ptp(want) > 1e-3 and np.allclose(got - offset, want, **close):
        return "check.offset", {"offset": f"{offset:+.4g}"}
    return None


def worst_difference(got: np.ndarray, want: np.ndarray, wrong: np.ndarray, stage: str) -> dict[str, Any]:
    """Placeholders about a difference: the element that is furthest off, and for hand values everything."""
    off = np.where(wrong, np.abs(got.astype(np.float64) - want.astype(np.float64)), -1.0)
    index = np.unravel_index(int(off.argmax()), off.shape)
    whole = stage == "hand" and got.size <= 12
    return {
        "got": brief(got if whole else got[index]),
        "want": brief(want if whole else want[index]),
        "index": f"[{', '.join(str(int(i)) for i in index)}]" if got.ndim else "",
        "diff": f"{off.max():.3g}",
        "wrong": f"{int(wrong.sum())}/{wrong.size}",
    }


def dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def kind_name(obj: Any) -> str:
    return dtype_name(getattr(obj, "dtype", type(obj).__name__))


def snapshot(value: Any) -> Any:
    """A copy deep enough to notice later that an argument was changed."""
    if is_tensor(value):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(snapshot(item) for item in value)
    if type(value) is dict:
        return {k: snapshot(item) for k, item in value.items()}
    return value


def unchanged(old: Any, new: Any) -> bool:
    if is_tensor(old) or isinstance(old, np.ndarray):
        a, b = as_array(old), as_array(new)
        return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if isinstance(old, (list, tuple)):
        return len(old) == len(new) and all(unchanged(a, b) for a, b in zip(old, new, strict=True))
    if type(old) is dict:
        return list(old) == list(new) and all(unchanged(old[k], new[k]) for k in old)
    if isinstance(old, int | float | str | None):
        return type(old) is type(new) and (old == new or old != old)  # NaN differs from itself
    return True  # other objects are passed through uncopied: nothing to compare with


def where(error: Exception) -> str:
    """' (L3: `y = x @ w`)' of the learner's own code: the innermost frame outside labkit and installed packages."""
    place, trace = "", error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith(_NOT_THE_LEARNERS) and "site-packages" not in filename:
            line = linecache.getline(filename, trace.tb_lineno).strip()
            place = f" (L{trace.tb_lineno}: `{line.replace('`', chr(39))}`)" if line else ""
        trace = trace.tb_next
    return place
