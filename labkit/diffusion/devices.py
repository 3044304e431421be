"""Where a model computes, which need not be where its weights are."""

from __future__ import annotations

import torch
from torch import nn


def execution_device(model: nn.Module) -> torch.device:
    """The device on which a call of the model runs, and to which its inputs belong.

    For a model that is offloaded (`enable_model_cpu_offload`, `enable_sequential_cpu_offload`, `enable_group_offload`)
    this is what the hooks say; `model.device` is then where the weights wait: "cpu", or "meta", which holds nothing.
    """
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)  # accelerate's
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
        registry = getattr(module, "_diffusers_hook", None)  # diffusers'
        group = None if registry is None else registry.get_hook("group_offloading")
        if group is not None:
            return torch.device(group.config.onload_device)
    return next(model.parameters()).device
