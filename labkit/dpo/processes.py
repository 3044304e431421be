"""Several processes: rank, averaged gradients, gathered logs. Without torch.distributed there is one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes."""
    if world_size() == 1:
        return
    for p in parameters:
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= world_size()


def gathered(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per-pair numbers [B] of all processes [world * B], for the log."""
    if world_size() == 1:
        return numbers
    parts: list[object] = [None] * world_size()
    dist.all_gather_object(parts, numbers)
    return {k: torch.cat([part[k] for part in parts]) for k in numbers}
