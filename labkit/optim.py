"""What training loops share: one update of the weights, and several processes that train together."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn


def update(optimizer: torch.optim.Optimizer, *, lr: float | None = None, clip: float = math.inf) -> Tensor:
    """One step with the gradients that `backward` left, which are freed afterwards.

    Args:
        optimizer: of all weights that are trained.
        lr: the learning rate of this step; None leaves what the optimizer has.
        clip: longest gradient, over all weights together; longer ones are scaled down to it.

    Returns:
        The length of the gradient before clipping, [].
    """
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] if lr is None else lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


# ---- several processes; without torch.distributed there is one ------------------------------------------------------


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes (in one message: small models wait for each)."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def gathered(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per-row numbers [B] of all processes [world * B], for the log."""
    if world_size() == 1:
        return numbers
    parts: list[object] = [None] * world_size()
    dist.all_gather_object(parts, numbers)
    return {k: torch.cat([part[k] for part in parts]) for k in numbers}
