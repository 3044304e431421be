"""The state of a training run on disk: one safetensors file that resumes it bit for bit, also after kill -9, and a log.

Everything random is a function of (seed, step) in every loop of labkit, so weights, optimizer state, the step count and
what a loop keeps beside them are all there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from labkit.errors import LabkitError
from labkit.files import write_atomically


class CheckpointError(LabkitError, RuntimeError):
    """A checkpoint cannot be written, or does not belong to this run."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, in place."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value.clone()
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
    try:
        write_atomically(path, lambda p: save_file(tensors, str(p), metadata=metadata))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} not written ({error}): free some space; the previous one is intact") from error


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """The groups of tensors and the state that `save_checkpoint` was given; a group without tensors is missing."""
    groups: dict[str, dict[str, Tensor]] = {}
    with safe_open(str(path), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = file.get_tensor(key)
        return groups, {key: json.loads(value) for key, value in file.metadata().items()}


def append_log(path: Path, record: Mapping[str, float]) -> None:
    """One record as one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def trim_log(path: Path, step: int) -> list[dict[str, float]]:
    """The log's records up to `step`; later ones, which a killed run wrote beyond its checkpoint, leave the file."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    records = [record for record in records if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(r) + "\n" for r in records))
    return records
