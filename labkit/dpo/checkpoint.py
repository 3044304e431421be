"""Checkpoints of a run: one safetensors file that resumes it bit for bit, also after kill -9.

Everything random is a function of (seed, step), so weights, optimizer state, cached reference errors and the step count
are all there is. A file is written beside the old one and renamed: a kill or a full disk leaves the old one intact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.files import write_atomically

FILE, LOG = "checkpoint.safetensors", "log.jsonl"


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


def save(
    folder: Path,
    step: int,
    identity: Mapping[str, object],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Tensor],
) -> None:
    """Write the state after `step` steps. identity: what must be equal for a resume (configuration, hashes).

    Raises CheckpointError if the disk does not take it.
    """
    tensors = {f"weight.{k}": p.detach() for k, p in parameters.items()}
    tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(optimizer).items()}
    tensors |= {f"extra.{k}": v for k, v in extra.items()}
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    metadata = {"step": str(step), "identity": json.dumps(identity, sort_keys=True)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, lambda path: save_file(tensors, str(path), metadata=metadata))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint of step {step} not written to {folder} ({error}): free some space; the previous one is intact"
        ) from error


def load(
    folder: Path,
    identity: Mapping[str, object],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, dict[str, Tensor]]:
    """Restore weights and optimizer in place; returns (steps done, extra tensors), (0, {}) without a checkpoint.

    Raises CheckpointError if the checkpoint is of another run; names what differs.
    """
    path = folder / FILE
    if not path.exists():
        return 0, {}
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored, present = json.loads(metadata["identity"]), json.loads(json.dumps(identity, sort_keys=True))
    differing = sorted(k for k in stored | present if stored.get(k) != present.get(k))
    if differing:
        raise CheckpointError(
            f"{path} belongs to another run, which differs in {', '.join(differing)}: choose a new folder"
        )
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"weight.{name}"])
    groups: dict[str, dict[str, Tensor]] = {"optimizer": {}, "extra": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind in groups:
            groups[kind][rest] = value
    load_optimizer(optimizer, groups["optimizer"])
    return int(metadata["step"]), groups["extra"]


def trim_log(folder: Path, step: int) -> list[dict[str, float]]:
    """The log's records up to `step`; later ones, which a killed run wrote beyond its checkpoint, leave the file."""
    path = folder / LOG
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    records = [record for record in records if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(r) + "\n" for r in records))
    return records


def append_log(folder: Path, record: Mapping[str, float]) -> None:
    """One record as one line of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
