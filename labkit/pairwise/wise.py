"""Mixing the weights of a base and a finetuned model."""

from __future__ import annotations

import copy

import torch
from transformers import CLIPModel


@torch.no_grad()
def interpolate(base: CLIPModel, tuned: CLIPModel, a: float) -> CLIPModel:
    """WiSE-FT (arXiv 2109.01903): weights (1 - a) base + a tuned. Floating tensors alone are mixed; a = 0 is the base
    and a = 1 the tuned model, bit for bit.

    Raises:
        ValueError: a outside [0, 1], or models of different shape (merge LoRA adapters first).
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a is {a}, expected a number from 0 (base) to 1 (tuned)")
    mixed = copy.deepcopy(base)
    old, new = base.state_dict(), tuned.state_dict()
    if {k: v.shape for k, v in old.items()} != {k: v.shape for k, v in new.items()}:
        raise ValueError("the models have different weights: pass two of one shape (merge a LoRA adapter first)")
    for name, tensor in mixed.state_dict().items():
        if a in (0, 1):
            tensor.copy_(new[name] if a else old[name])
        elif tensor.is_floating_point() and not torch.equal(old[name], new[name]):
            tensor.copy_(torch.lerp(old[name], new[name], a))
    return mixed
