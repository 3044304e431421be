"""Guards of a training loop: the base stays what it was, and whatever should be trained is trained."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from labkit.diffusion.adapters import AdapterError, adapter_layers

_fingerprints: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, str]] = weakref.WeakKeyDictionary()


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameter path -> parameter, for everything that belongs to no adapter; paths as before adapters were added."""
    layers = adapter_layers(model).values()
    in_adapters = {
        id(p)
        for layer in layers
        for attribute in layer.adapter_layer_names
        for p in getattr(layer, attribute).parameters()
    }
    found = {name: p for name, p in model.named_parameters() if id(p) not in in_adapters}
    return {name.replace(".base_layer.", "."): p for name, p in found.items()}


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that FSDP has spread over several; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the base weights: equal before and after training an adapter.

    Remembered until the weights change (`base_sums`): hashing Stable Diffusion's U-Net takes seconds.
    """
    sums = base_sums(model)
    known = _fingerprints.get(model)
    if known is not None and torch.equal(known[0], sums):
        return known[1]
    digest = hashlib.sha256()
    for name, parameter in sorted(base_parameters(model).items()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        if hasattr(parameter, "full_tensor"):  # in parts: every process has to ask
            parameter = parameter.full_tensor()
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    _fingerprints[model] = sums, digest.hexdigest()
    return _fingerprints[model][1]


def base_sums(model: nn.Module) -> Tensor:
    """Sum of position times bit pattern of each base weight tensor, int64 [number of tensors], in name order, on the
    CPU; of a model that is spread over processes, of this one's part.

    Notices within one process that training has touched the base, without moving the weights off their device: one
    changed element, or two that change places, always change the sum; other changes miss it by rare accident only.
    """
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes per element -> type
    sums = []
    for _, parameter in sorted(base_parameters(model).items()):
        bits = local_part(parameter).detach().contiguous().flatten().view(whole[parameter.element_size()])
        places = torch.arange(1, len(bits) + 1, device=bits.device)
        sums.append((places * bits).sum().cpu())  # int64, wraps around
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


def check_gradients(parameters: Mapping[str, nn.Parameter] | Sequence[nn.Parameter]) -> int:
    """After backward: every trainable parameter must have a finite gradient. Returns how many there are.

    Catches adapters left disabled during the policy forward, which gives no gradient and no error.
    """
    values = list(parameters.values()) if isinstance(parameters, Mapping) else list(parameters)
    trainable = [p for p in values if p.requires_grad]
    if not trainable:
        raise AdapterError(f"none of {len(values)} tensors needs a gradient: unfreeze those to train")
    with_gradient = [p for p in trainable if p.grad is not None]
    if len(with_gradient) < len(trainable):
        raise AdapterError(
            f"only {len(with_gradient)} of {len(trainable)} trainable tensors have a gradient: adapters were off in "
            "the forward pass or backward did not run; compute the reference first, inside disabled_adapters"
        )
    bad = sum(not bool(torch.isfinite(p.grad).all()) for p in with_gradient)
    if bad:
        raise AdapterError(f"{bad} of {len(trainable)} gradients are not finite: lower the learning rate")
    return len(trainable)
