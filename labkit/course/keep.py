"""Results of slow cells on the learner's disk, so that a kernel restart late in a lesson costs seconds.

One file per result, in the folder `kept` beside progress.json (LABKIT_HOME or ~/.labkit): the SHA-256 of the rest, then
a safetensors file whose entry `layout` is JSON that says how the others go together. Nothing is unpickled. A result may
be made of None, bools, numbers, strings, tensors, numpy arrays, PIL images, lists, tuples, dicts, and dataclasses and
named tuples of labkit.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import labkit
from labkit.course.fingerprint import fingerprint
from labkit.course.lesson_files import CourseError
from labkit.course.values import brief, is_tensor
from labkit.errors import LabkitError
from labkit.files import write_atomically
from labkit.models.checksums import read_checksums

SUFFIX = ".kept"


class DamagedResult(LabkitError, ValueError):
    """A kept file that is not as it was written."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """A result from the disk: the value, when it was computed, and how many seconds that took."""

    value: Any
    at: float
    seconds: float


@functools.cache
def code_key() -> str:
    """Hash of labkit's own code and of the checksums of the weights it ships."""
    digest = hashlib.sha256()
    folder = Path(labkit.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    digest.update(json.dumps(read_checksums(), sort_keys=True).encode())
    return digest.hexdigest()


class Store:
    """The kept results of one lesson and tier; `run` holds what else a result depends on (sizes, seed)."""

    def __init__(self, home: Path, lesson: str, tier: str, **run: Any) -> None:
        self.folder, self.prefix = Path(home) / "kept", f"{lesson}-{tier}-"
        self.run = run

    def path(self, name: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Path:
        """Where the result of this very call is, or would be."""
        import torch

        readable = re.sub(r"\W+", "-", name).strip("-")[:40]
        key = fingerprint(name, function, args, kwargs, self.run, code_key(), torch.__version__)
        return self.folder / f"{self.prefix}{readable}-{key}{SUFFIX}"

    def read(self, path: Path, device: Any) -> Kept | None:
        """The result in this file, None if there is none; tensors of an accelerator go to `device`.

        Raises DamagedResult for a file that is not as it was written.
        """
        try:
            data = path.read_bytes()
        except OSError:
            return None
        return unpack(data, device)

    def write(self, path: Path, value: Any, seconds: float) -> None:
        """Keep a result. Raises CourseError for a value that cannot be kept, OSError where nothing can be written."""
        write_atomically(path, pack(value, time.time(), seconds))

    def forget(self) -> int:
        """Delete the results of this lesson and tier, and what was cut off while it was written; how many results."""
        paths = list(self.folder.glob(f"{self.prefix}*{SUFFIX}"))
        for path in [*paths, *self.folder.glob(f".{self.prefix}*")]:
            path.unlink(missing_ok=True)
        return len(paths)


def pack(value: Any, at: float, seconds: float) -> bytes:
    """The content of a file for `value`."""
    import torch
    from safetensors.torch import save

    tensors: dict[str, Any] = {}
    layout = {"value": _encode(value, tensors), "at": at, "seconds": seconds}
    tensors["layout"] = torch.frombuffer(bytearray(json.dumps(layout).encode()), dtype=torch.uint8)
    payload = save(tensors)
    return hashlib.sha256(payload).hexdigest().encode() + payload


def unpack(data: bytes, device: Any = "cpu") -> Kept:
    """What `pack` was given. Raises DamagedResult."""
    from safetensors.torch import load

    if hashlib.sha256(data[64:]).hexdigest().encode() != data[:64]:
        raise DamagedResult("its SHA-256 is not the one written with it")
    tensors = load(data[64:])
    layout = json.loads(bytes(tensors.pop("layout").numpy()))
    try:
        value = _decode(layout["value"], tensors, device)
    except (AttributeError, ImportError, TypeError) as error:  # a class of another version of labkit
        raise DamagedResult(f"it was written by another version of labkit ({error})") from None
    return Kept(value, layout["at"], layout["seconds"])


def _encode(value: Any, tensors: dict[str, Any]) -> Any:
    """JSON for a value: [kind, ...]; arrays go into `tensors` and are named by their number."""
    import torch

    def stored(tensor: Any) -> str:
        tensors[name := str(len(tensors))] = tensor.detach().cpu().contiguous().clone()
        return name

    if value is None or type(value) in (bool, int, float, str):
        return ["plain", value]
    if type(value) in (list, tuple):
        return [type(value).__name__, [_encode(item, tensors) for item in value]]
    if type(value) is dict:
        return ["dict", [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]]
    if is_tensor(value) and type(value) in (torch.Tensor, torch.nn.Parameter):
        return ["tensor", stored(value), value.device.type]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return [kind, stored(torch.from_numpy(np.array(value, ndmin=1))), list(value.shape)]
    if type(value).__module__.startswith("PIL."):
        file = io.BytesIO()
        value.save(file, "PNG")
        return ["image", stored(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))]
    if type(value).__module__.split(".")[0] == "labkit":
        place = [type(value).__module__, type(value).__qualname__]
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return ["dataclass", *place, _encode(fields, tensors)]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return ["named", *place, _encode(list(value), tensors)]
    raise CourseError(
        f"a result holds {brief(value, 40)} ({type(value).__name__}), which cannot be kept: return tensors, arrays, "
        "numbers, texts, pictures, or lists, tuples and dicts of them"
    )


def _decode(code: Any, tensors: dict[str, Any], device: Any) -> Any:
    kind, *rest = code
    if kind == "plain":
        return rest[0]
    if kind in ("list", "tuple"):
        items = [_decode(item, tensors, device) for item in rest[0]]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {_decode(k, tensors, device): _decode(v, tensors, device) for k, v in rest[0]}
    if kind == "tensor":
        return tensors[rest[0]].clone() if rest[1] == "cpu" else tensors[rest[0]].to(device)
    if kind in ("array", "scalar"):
        array = tensors[rest[0]].clone().numpy().reshape(rest[1])
        return array if kind == "array" else array[()]
    if kind == "image":
        from PIL import Image

        return Image.open(io.BytesIO(tensors[rest[0]].numpy().tobytes()))
    if not rest[0].startswith("labkit."):
        raise TypeError(rest[0])
    owner = functools.reduce(getattr, rest[1].split("."), importlib.import_module(rest[0]))
    value = _decode(rest[2], tensors, device)
    if kind == "named":
        return owner(*value)
    made = object.__new__(owner)  # as it was, without running __init__ again
    for name, item in value.items():
        object.__setattr__(made, name, item)
    return made
