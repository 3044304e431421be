"""The state of a training run on disk: one safetensors file that resumes it bit for bit, also after kill -9, and a log.

Everything random is a function of (seed, step) in every loop of labkit, so weights, optimizer state, the step count and
what a loop keeps beside them are all there is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from labkit.errors import LabkitError
from labkit.files import write_atomically, write_tensors

CHECKSUM = "sha256"  # of all tensors, in the metadata of every checkpoint


class CheckpointError(LabkitError, RuntimeError):
    """A checkpoint cannot be written or read, does not belong to this run, or its folder is another run's."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of named tensors, in the order of their names.

    A tensor may lie in parts on disk (anything with `dtype`, `shape` and `parts()`): the digest is that of the whole.
    """
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        for part in value.parts() if hasattr(value, "parts") else (value,):
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def differing(stored: Mapping[str, object], present: Mapping[str, object]) -> list[str]:
    """Names under which two identities differ, sorted; `present` is compared as JSON keeps it."""
    present = json.loads(json.dumps(present))
    return sorted(k for k in {*stored, *present} if stored.get(k) != present.get(k))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state as named tensors: "parameter.key", with further keys for dictionaries inside.

    Whole numbers become int64 tensors without an axis (8-bit optimizers count their steps so, torch's own with floats).
    """

    def flat(prefix: str, value: object) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(f"{prefix}.{key}", inner)
        else:
            yield prefix, torch.as_tensor(value)

    return dict(pair for i, entry in optimizer.state_dict()["state"].items() for pair in flat(str(i), entry))


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, in place."""
    state: dict = {}
    for name, value in tensors.items():
        index, *parents, key = name.split(".")
        entry = state.setdefault(int(index), {})
        for parent in parents:
            entry = entry.setdefault(parent, {})
        whole = value.dtype == torch.int64 and value.ndim == 0
        entry[key] = int(value) if whole else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, Tensor]], **state: object) -> None:
    """Write a checkpoint beside the old one and rename it.

    Args:
        path: the file; missing folders are made.
        groups: tensors by group and name, for example {"model": state_dict, "optimizer": optimizer_tensors(...)}.
        **state: what JSON can hold, for example step=12.

    Raises:
        CheckpointError: the disk does not take it; the old file is intact.
    """
    tensors = {
        f"{group}.{name}": value.detach().cpu().clone().contiguous()
        for group, named in groups.items()
        for name, value in named.items()
    }
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in state.items()}
    metadata[CHECKSUM] = digest(tensors)
    try:
        write_tensors(path, tensors, metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} not written ({error}): free some space; the previous one is intact") from error


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """The groups of tensors and the state that `save_checkpoint` was given; a group without tensors is missing.

    Raises:
        CheckpointError: the file is cut short, has changed since it was written, or is no checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118
                tensors[key] = file.get_tensor(key)
        checksum = metadata.pop(CHECKSUM, None)  # checkpoints of older versions have none
        state = {key: json.loads(value) for key, value in metadata.items() if key != "format"}
    except (SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{path} cannot be read ({reason}): restore a copy, or delete it to start anew"
        ) from error
    if checksum is not None and checksum != digest(tensors):
        raise CheckpointError(f"{path} has changed since it was written: restore a copy, or delete it to start anew")
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = value
    return groups, state


def append_log(path: Path, record: Mapping[str, float]) -> None:
    """One record as one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def trim_log(path: Path, step: int) -> list[dict[str, float]]:
    """The log's records up to `step`; later ones, which a killed run wrote beyond its checkpoint, leave the file.

    So does a last line that was cut off while it was written. Raises CheckpointError for any other line that is no
    record.
    """
    if not path.exists():
        return []
    lines = path.read_text("utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            record["step"] + 0  # a number
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                continue  # no line end: the run was killed while it wrote this
            raise CheckpointError(f"{path}, line {number} is no record of a log: delete that line") from error
        records.append(record)
    records = [record for record in records if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(r) + "\n" for r in records))
    return records


# ---- one run per folder ---------------------------------------------------------------------------------------------

LOCK = ".lock"
_held: dict[tuple[int, str], list] = {}  # (process, file) -> [open file, how often this process holds it]


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """`lock` on entry, `unlock` on exit."""
    lock(folder)
    try:
        yield
    finally:
        unlock(folder)


def lock(folder: str | Path) -> None:
    """Claim a folder for this process, until `unlock` or the end of the process, however it ends.

    Claims of one process count: as many `unlock` give the folder free. File systems without locks are not guarded.

    Raises:
        CheckpointError: another process has it.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    key = os.getpid(), str(path.resolve())
    if key in _held:
        _held[key][1] += 1
        return
    for _ in range(3):
        file = path.open("a+b")
        if not _take(file):
            file.seek(0)
            owner = file.read(20).decode("ascii", "ignore").strip() or "unknown"
            file.close()
            raise CheckpointError(
                f"{folder} is in use by another run (process {owner}): wait for it, or choose a new folder"
            )
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()  # its last owner removed the file between our opening and claiming it
    else:
        raise CheckpointError(f"{folder}: another run begins there and ends at once, again and again: choose another")
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    _held[key] = [file, 1]


def unlock(folder: str | Path) -> None:
    """Give a claim up; nothing happens if this process has none."""
    path = Path(folder) / LOCK
    key = os.getpid(), str(path.resolve())
    if key not in _held:
        return
    _held[key][1] -= 1
    if _held[key][1] == 0:
        file = _held.pop(key)[0]
        with contextlib.suppress(OSError):
            path.unlink()  # before the claim ends; Windows refuses and keeps the file, which does no harm
        file.close()


def _take(file: BinaryIO) -> bool:
    """Claim an open file without waiting; False if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(1000)  # beyond the number of the process, which others want to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
