"""Tensors of a .pth or .pt file of torch, read without unpickling it.

A pickle is a program: whoever opens it runs it. What torch saves for a state dict uses a small part of that language,
so here the instructions are walked through one by one (`pickletools.genops` only lists them) and those that build
dicts, lists, tuples, numbers, texts and tensors are followed. Nothing is imported, looked up or called: a name such as
`collections.OrderedDict` stays a text, and any other instruction or name is refused.

Two layouts: since torch 1.6 a zip archive (data.pkl, and one file for each storage); before, four pickles in a row and
then the storages, each behind its length.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from labkit.errors import LabkitError

MAGIC = 0x1950A86A20F9469CFC6C  # what the old layout begins with
LARGEST_PROGRAM = 64 * 2**20  # bytes of instructions; a state dict has a few hundred per tensor
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class TorchFileError(LabkitError, ValueError):
    """A file that is no state dict of tensors, or is damaged."""


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names. It is compared, never looked up."""

    text: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class _View:
    """A tensor before its numbers are read."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = object()


def read_torch_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict, {name: tensor on the CPU}, from a file of `torch.save`. No code of the file runs.

    Raises:
        FileNotFoundError: no such file. TorchFileError: a whole model or another object, a TorchScript program, an
            instruction or a name that no state dict needs, or a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: check the path")
    try:
        if zipfile.is_zipfile(path):
            return _from_zip(path)
        with path.open("rb") as file:
            return _from_stream(file, path.name)
    except TorchFileError as error:
        raise TorchFileError(f"{path.name} {error}: give a state dict of tensors, or a .safetensors file") from None
    except Exception as error:  # pickletools, zipfile and struct raise many kinds for a damaged file
        raise TorchFileError(
            f"{path.name} is no readable file of torch ({type(error).__name__}): copy it again"
        ) from error


def _from_zip(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any("/code/" in f"/{name}" for name in names):
            raise TorchFileError("is a TorchScript program")
        programs = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(programs) != 1:
            raise TorchFileError("has no state dict (data.pkl)")
        root = programs[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise TorchFileError("was written on a big-endian machine")
        if archive.getinfo(programs[0]).file_size > LARGEST_PROGRAM:
            raise TorchFileError("has more instructions than any state dict")
        views = _views(_walk(BytesIO(archive.read(programs[0]))))

        def numbers(storage: _Storage) -> bytes:
            wanted, info = storage.numel * storage.dtype.itemsize, archive.getinfo(f"{root}data/{storage.key}")
            if info.file_size != wanted:
                raise TorchFileError(f"is damaged (storage {storage.key} has {info.file_size} bytes, not {wanted})")
            return archive.read(info)

        return _tensors(views, numbers)


def _from_stream(file: BinaryIO, name: str) -> dict[str, Tensor]:
    if _walk(file) != MAGIC:
        raise TorchFileError("is a pickle, but not of a state dict")
    _walk(file)  # the version
    system = _walk(file)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise TorchFileError("was written on a big-endian machine")
    views = _views(_walk(file))
    wanted = {view.storage.key: view.storage for view in views.values()}
    stored: dict[str, bytes] = {}
    for key in _walk(file):
        if key not in wanted:
            raise TorchFileError(f"has a storage {key!r} that no tensor uses")
        (numel,) = struct.unpack("<q", file.read(8))
        size = wanted[key].numel * wanted[key].dtype.itemsize
        stored[key] = file.read(size)
        if numel != wanted[key].numel or len(stored[key]) != size:
            raise TorchFileError(f"is damaged (storage {key} is cut off)")
    return _tensors(views, lambda storage: stored[storage.key])


def _views(state: object) -> dict[str, _View]:
    """The tensors of {name: tensor}, or of the dict that is kept in it under "state_dict"."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise TorchFileError("holds no dict of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _View):
            raise TorchFileError(f"holds {name!r}, which is no tensor")
    return state


def _tensors(views: dict[str, _View], numbers: Callable[[_Storage], bytes]) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    out = {}
    for name, view in views.items():
        storage = view.storage
        if storage.key not in flat:
            content = bytearray(numbers(storage))
            empty = torch.empty(0, dtype=storage.dtype)
            flat[storage.key] = torch.frombuffer(content, dtype=storage.dtype) if content else empty
        reach = view.offset + sum((n - 1) * step for n, step in zip(view.size, view.stride, strict=True))
        if 0 not in view.size and reach >= len(flat[storage.key]):
            raise TorchFileError(f"is damaged ({name} reaches beyond its storage)")
        out[name] = flat[storage.key].as_strided(view.size, view.stride, view.offset).clone()
    return out


# ---- the instructions -----------------------------------------------------------------------------------------------

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _walk(file: BinaryIO) -> object:
    """What one pickle of plain values and tensors describes; the file then stands behind it."""
    stack: list = []
    memo: dict[int, object] = {}

    def above_mark() -> list:
        at = max(i for i, value in enumerate(stack) if value is _MARK)
        values = stack[at + 1 :]
        del stack[at:]
        return values

    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(_MARK)
        elif name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in _TUPLES:
            values = tuple(stack[-_TUPLES[name] :])
            del stack[-_TUPLES[name] :]
            stack.append(values)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "APPEND":
            value = stack.pop()
            _own(stack[-1], list).append(value)
        elif name == "APPENDS":
            values = above_mark()
            _own(stack[-1], list).extend(values)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _own(stack[-1], dict)[key] = value
        elif name == "SETITEMS":
            values = above_mark()
            _own(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            second, first = stack.pop(), stack.pop()
            stack.append(_Name(f"{first}.{second}"))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_made(called, arguments))
        elif name == "BUILD":  # attributes of a dict: the versions of modules
            stack.pop()
            _own(stack[-1], dict)
        else:
            raise TorchFileError(f"has the instruction {name}, which no state dict needs")
    raise TorchFileError("ends too early")


def _own(value: object, kind: type):
    if type(value) is not kind:
        raise TorchFileError(f"changes a {type(value).__name__} as if it were a {kind.__name__}")
    return value


def _storage(described: object) -> _Storage:
    """("storage", its type, key, device, length, ...) as torch names the numbers of a tensor."""
    if isinstance(described, tuple) and described[:1] == ("module",):
        raise TorchFileError("holds a whole network with its code")
    if not isinstance(described, tuple) or len(described) < 5 or described[0] != "storage":
        raise TorchFileError("refers to something that is no storage")
    kind, key, numel = described[1], described[2], described[4]
    module, _, name = kind.text.rpartition(".") if isinstance(kind, _Name) else ("", "", "")
    if module != "torch" or name not in DTYPES:
        raise TorchFileError(f"has numbers of the kind {getattr(kind, 'text', kind)!r}")
    if not isinstance(key, str) or not isinstance(numel, int) or numel < 0 or any(described[5:]):
        raise TorchFileError("has a storage that cannot be read")
    return _Storage(DTYPES[name], key, numel)


def _made(called: object, arguments: object) -> object:
    """What the three calls of a state dict give; no other is known."""
    name = called.text if isinstance(called, _Name) else repr(called)[:60]
    if name == "collections.OrderedDict" and arguments == ():
        return {}
    if name == "torch._utils._rebuild_parameter" and isinstance(arguments, tuple) and isinstance(arguments[0], _View):
        return arguments[0]
    if name == "torch._utils._rebuild_tensor_v2" and isinstance(arguments, tuple) and len(arguments) >= 4:
        storage, offset, size, stride = arguments[:4]
        whole = (offset, *size, *stride)
        if isinstance(storage, _Storage) and len(size) == len(stride) and all(type(n) is int and n >= 0 for n in whole):
            return _View(storage, offset, size, stride)
        raise TorchFileError("has a tensor that cannot be read")
    raise TorchFileError(f"calls {name}, which no state dict needs")
