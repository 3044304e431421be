"""One hash for everything that a function call reads: its code, its arguments, and the names of the notebook it uses.

Two calls with the same fingerprint compute the same thing, so a result kept on disk may stand for the second one.
Code of labkit and of installed packages counts by name (`labkit.course.keep` adds a hash of labkit as a whole).
"""

from __future__ import annotations

import dis
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from labkit.course.lesson_files import CourseError
from labkit.course.values import is_tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, np.generic)


def fingerprint(*values: Any) -> str:
    """Hex digest of values; a CourseError for a random generator, whose state a loaded result would not advance."""
    return _digest(values, [], {}).hex()


def _digest(value: Any, inside: list[int], known: dict[int, tuple[Any, bytes]]) -> bytes:
    """Digest of one value. inside: ids of what contains it, to end cycles; known: digests, with what they belong to."""
    if id(value) in known:
        return known[id(value)][1]
    digest = hashlib.blake2b(f"{type(value).__module__}.{type(value).__qualname__}".encode(), digest_size=16)
    if id(value) in inside:
        digest.update(f"{len(inside) - inside.index(id(value))} levels up".encode())
        return digest.digest()
    inside.append(id(value))
    for part in _parts(value):
        digest.update(part if isinstance(part, bytes) else _digest(part, inside, known))
    inside.pop()
    known[id(value)] = (value, digest.digest())
    return digest.digest()


def _parts(value: Any) -> Iterator[Any]:
    """What tells `value` from others of its type: bytes as they are, and values with parts of their own."""
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif is_tensor(value) or isinstance(value, np.ndarray):
        yield from _array_parts(value)
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from pair
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, (set, frozenset)):
        yield from sorted(fingerprint(item) for item in value)
    elif isinstance(value, types.CodeType):
        # instructions, names and constants: comments and line numbers do not count
        yield from (value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_consts)
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
        if value.__module__ == "__main__":
            yield {name: item for name, item in vars(value).items() if callable(item)}
    elif isinstance(value, types.ModuleType | types.BuiltinFunctionType):
        yield value.__name__
    else:
        yield from _object_parts(value)


def _array_parts(value: Any) -> Iterator[Any]:
    yield f"{value.dtype} {tuple(value.shape)}"
    if not isinstance(value, np.ndarray):
        import torch

        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    yield value.tolist() if value.dtype == object else value.tobytes()


def _function_parts(function: types.FunctionType) -> Iterator[Any]:
    """Name, defaults and closure; of a notebook's function also the code, and the notebook's names that it reads."""
    yield f"{function.__module__}.{function.__qualname__}"
    yield from (function.__defaults__, function.__kwdefaults__)
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    yield {name: cell.cell_contents for name, cell in closure if cell != types.CellType()}  # not those yet empty
    if function.__module__ == "__main__":
        yield function.__code__
        names = sorted(_global_names(function.__code__) & set(function.__globals__))
        yield {name: function.__globals__[name] for name in names}


def _global_names(code: types.CodeType) -> set[str]:
    names = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_global_names(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _object_parts(value: Any) -> Iterator[Any]:
    """Networks by their weights, objects of labkit and of the notebook by their attributes, others by their parts."""
    import torch

    from labkit.course.lab import Lab

    attributes = getattr(value, "__dict__", {})
    if isinstance(value, (torch.Generator, np.random.Generator)):
        raise CourseError(
            "a kept call uses a random generator made outside of it: make one inside, for example lab.generator(1)"
        )
    if isinstance(value, torch.nn.Module):
        with torch.no_grad():
            for name, weight in value.state_dict().items():
                exact = weight.double()
                yield f"{name} {tuple(weight.shape)} {exact.sum().item()} {exact.norm().item()}"
    elif type(value).__module__.startswith("PIL."):
        yield from (value.mode, value.size, value.tobytes())
    elif isinstance(value, Lab):
        return  # tier, sizes and seed are in the key of what is kept
    elif type(value).__module__.split(".")[0] in ("labkit", "__main__"):
        yield attributes
        yield [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    else:  # a pipeline: its networks, and the settings of its scheduler
        yield {name: item for name, item in attributes.items() if isinstance(item, torch.nn.Module)}
        for item in attributes.values():
            if isinstance(config := getattr(item, "config", None), Mapping):  # "_..." are notes, in no fixed order
                yield type(item)
                yield {name: setting for name, setting in config.items() if not name.startswith("_")}
