"""Adding, removing, merging and storing LoRA adapters.

LoRA (arXiv 2106.09685): W x + scale * B A x with A ~ N(0, 1/r^2) and B = 0, so a fresh adapter changes nothing, bit for
bit. Works on any model that diffusers or transformers gives an `add_adapter` method: U-Nets, CLIP text encoders.
The weights are float32 whatever the base model's dtype, and come from the seed given, not from the global random state.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from labkit.diffusion.adapters import (
    AdapterError,
    AdapterSnapshot,
    adapter_layers,
    adapter_names,
    adapter_parameters,
    names_on,
)
from labkit.diffusion.guards import base_parameters

ATTENTION_LINEARS = (
    "to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj",
    "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",  # the text's side of joint attention
)  # fmt: skip


def lora_targets(
    model: nn.Module, suffixes: Sequence[str] | None = ATTENTION_LINEARS, where: Callable[[str], bool] | None = None
) -> list[str]:
    """Full names of the linear layers whose name ends in one of `suffixes` and passes `where`.

    The default is every projection in attention; `where=lambda name: name.startswith("up_blocks")` keeps the decoder.
    suffixes=None: every linear layer and convolution, but those at the top of the model (`conv_in`, `conv_out`).
    """
    names = []
    for name, module in model.named_modules():
        if ".base_layer" in name or ".lora_" in name:
            continue  # the inside of a layer that carries adapters already
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        if suffixes is None:
            matches = "." in name and isinstance(base, nn.Linear | nn.Conv2d)
        else:
            ends = any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
            matches = ends and isinstance(base, nn.Linear)
        if matches and (where is None or where(name)):
            names.append(name)
    return names


def add_lora(
    model: nn.Module,
    name: str,
    *,
    seed: int,
    rank: int = 8,
    alpha: float | None = None,
    suffixes: Sequence[str] | None = ATTENTION_LINEARS,
    where: Callable[[str], bool] | None = None,
    dropout: float = 0.0,
) -> list[nn.Parameter]:
    """Add a LoRA adapter, active beside those already active, and return its parameters (trainable, float32).

    The base weights are frozen; flags of other adapters stay. alpha=None is alpha = rank (scale 1).
    Raises AdapterError if the name is taken, the model takes no adapters, or no layer matches.
    """
    from peft import LoraConfig

    if not hasattr(model, "add_adapter"):
        raise AdapterError(f"{type(model).__name__} takes no adapters: give a diffusers or transformers model")
    if not name or "." in name or name in adapter_names(model):
        raise AdapterError(f"adapter name {name!r} is taken, empty or has a dot: choose another or remove_lora first")
    if rank < 1:
        raise AdapterError(f"rank is {rank}, expected at least 1")
    targets = lora_targets(model, suffixes, where)
    if not targets:
        raise AdapterError(
            f"no layer of {type(model).__name__} matches {suffixes and list(suffixes)}: check suffixes and where"
        )
    state = AdapterSnapshot(model)
    _pass_over_an_old_torchao()
    config = LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=targets, lora_dropout=dropout
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # PEFT draws from the global generator
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        model.add_adapter(config, adapter_name=name)
    state.restore(activate=(name,))
    for parameter in base_parameters(model).values():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    parameters = adapter_parameters(model, name)
    for path, parameter in parameters.items():
        parameter.data = parameter.data.float()
        is_a = ".lora_A." in path
        fresh = torch.randn(parameter.shape, generator=generator) / rank if is_a else torch.zeros(parameter.shape)
        parameter.data.copy_(fresh)
        parameter.requires_grad_(True)
    return list(parameters.values())


def _pass_over_an_old_torchao() -> None:
    """Have PEFT treat a torchao that it refuses as absent. Colab ships 0.10, PEFT wants 0.16 and raises ImportError.

    PEFT asks for torchao before it wraps any layer, of quantized weights or not, and remembers the answer. So it is
    enough to hide the package while it is asked once: nothing is uninstalled, and `import torchao` works as before.
    """
    from peft.import_utils import is_torchao_available

    try:
        is_torchao_available()
    except ImportError:
        loaded = sys.modules.get("torchao")
        sys.modules["torchao"] = None  # importlib reads this as: not installed
        try:
            is_torchao_available()
        finally:
            del sys.modules["torchao"]
            if loaded is not None:
                sys.modules["torchao"] = loaded


def remove_lora(model: nn.Module, name: str) -> None:
    """Remove an adapter. With the last one gone the original layers are put back: the module tree is as before."""
    adapter_parameters(model, name)  # raises if there is none
    state = AdapterSnapshot(model)
    for path, layer in adapter_layers(model).items():
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
            holder = getattr(layer, attribute, None)
            if hasattr(holder, "keys") and name in holder:
                del holder[name]
        if not names_on(layer):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    configs = getattr(model, "peft_config", {})
    configs.pop(name, None)
    if not configs and hasattr(model, "peft_config"):
        del model.peft_config
        model._hf_peft_config_loaded = False  # diffusers and transformers both ask this flag
    state.restore()


def merge_lora(model: nn.Module, name: str) -> None:
    """Add an adapter at its present scale into the base weights and remove it (stage hand-over).

    Merge in float32: a half-precision base weight rounds small updates away.
    """
    adapter_parameters(model, name)  # raises if there is none
    for layer in adapter_layers(model).values():
        if name in names_on(layer):
            layer.merge(adapter_names=[name])
            layer.merged_adapters.remove(name)  # it is base weight now, nothing shall unmerge it
    remove_lora(model, name)


@contextmanager
def lora(model: nn.Module, name: str = "lora", **options) -> Iterator[list[nn.Parameter]]:
    """`add_lora` on entry, `remove_lora` on exit; the base's flags come back. Yields the adapter's parameters."""
    state = AdapterSnapshot(model)
    parameters = add_lora(model, name, **options)
    try:
        yield parameters
    finally:
        if name in adapter_names(model):
            remove_lora(model, name)
        state.restore()


def adapter_state(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Copy of one adapter's tensors on the CPU, ready for safetensors."""
    return {path: p.detach().cpu().clone() for path, p in adapter_parameters(model, name).items()}


def load_adapter_state(model: nn.Module, name: str, state: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors from `adapter_state` into an adapter that was added with the same name, rank and targets."""
    parameters = adapter_parameters(model, name)
    differing = sorted(set(parameters) ^ set(state)) or [k for k, p in parameters.items() if p.shape != state[k].shape]
    if differing:
        raise AdapterError(
            f"{len(differing)} tensors do not fit adapter {name!r} (first: {differing[0]}): same rank and targets?"
        )
    for path, parameter in parameters.items():
        parameter.data.copy_(state[path])
