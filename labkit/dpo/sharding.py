"""FSDP for LoRA training: every process keeps its part of the frozen base, and all of the small adapter.

What fills a GPU when a LoRA trains is the base. `shard_base` spreads it over the processes with PyTorch's
`fully_shard` (FSDP2, arXiv 2304.11277): a block's weights are gathered where its forward or backward pass begins and
dropped where it ends. The adapter is no part of that: it stays whole on every process, its gradients are averaged as
without sharding, and checkpoints and LoRA files are the same. So a run gives the same numbers with and without.

accelerate turns its own FSDP on for accelerators only (`AcceleratorState` passes over `MULTI_CPU`), and its plugin
would shard the adapter too; so this calls torch, in the processes that `accelerate launch` started.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import nn

from labkit.diffusion.guards import local_part

__all__ = ["blocks_of", "local_part", "shard_base"]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The parts of a network that are gathered one after the other: its down, mid and up blocks, or its transformer
    blocks. The rest is gathered with the whole."""
    lists = [child for child in model.children() if isinstance(child, nn.ModuleList)]
    blocks = [block for one in lists for block in one if any(True for _ in block.parameters())]
    middle = getattr(model, "mid_block", None)
    return [*blocks, *([middle] if middle is not None else [])]


def shard_base(model: nn.Module, adapter: Iterable[nn.Parameter]) -> None:
    """Spread all parameters of a model but `adapter` over the processes, for good; every process calls it.

    From then on a forward pass needs all processes at once: one that samples alone waits for ever.

    Raises:
        ValueError: there are no processes to share with.
    """
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        raise ValueError("sharded needs several processes: start them with accelerate launch, or leave it out")
    whole = set(adapter)
    for block in blocks_of(model):
        fully_shard(block, ignored_params=whole & set(block.parameters()))
    fully_shard(model, ignored_params=whole)
