"""LoRA in files that plain diffusers reads, and pipelines saved with the adapters inside.

    file = save_lora(folder, pipe, "dpo")   then, anywhere:   pipe.load_lora_weights(folder, weight_name=file.name)
    load_lora(pipe, folder, "dpo")        the same file back into a pipeline of labkit, frozen and active
    save_pipeline(pipe, folder)           then, anywhere:   StableDiffusionPipeline.from_pretrained(folder)

The file is PEFT's layout with the pipeline's names in front ("unet.", "transformer.", "text_encoder.",
"text_encoder_2."), and carries ranks and alphas in its metadata, as diffusers' own `save_lora_weights` writes it. It
holds one adapter: stages are one file each, loaded under one name each and switched on together in the same order with
`pipe.set_adapters([...])`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from labkit.diffusion.adapters import (
    AdapterError,
    AdapterSnapshot,
    active_adapters,
    adapter_layers,
    adapter_names,
    adapter_parameters,
    names_on,
)
from labkit.diffusion.lora_adapters import add_lora, remove_lora
from labkit.files import write_tensors

FILE = "pytorch_lora_weights.safetensors"  # what `load_lora_weights` looks for in a folder
METADATA = "lora_adapter_metadata"  # where diffusers keeps ranks and alphas
MODELS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def adapted_models(pipe) -> dict[str, nn.Module]:
    """Name in the pipeline -> model, for those that can carry LoRA: the U-Net or transformer, the text encoders."""
    return {name: model for name in MODELS if (model := getattr(pipe, name, None)) is not None}


def save_lora(path: str | Path, pipe, name: str) -> Path:
    """Write the adapter `name` of a pipeline's U-Net (or transformer) and text encoders for `pipe.load_lora_weights`.

    Args:
        path: a file ending in .safetensors, or a folder, in which it is called `pytorch_lora_weights.safetensors`.

    Returns:
        The file.

    Raises:
        AdapterError: no model of the pipeline has an adapter of that name, or it is no plain LoRA.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / FILE
    tensors: dict[str, Tensor] = {}
    settings: dict[str, object] = {}
    for prefix, model in adapted_models(pipe).items():
        if name in adapter_names(model):
            own, config = peft_state(model, name)
            tensors |= {f"{prefix}.{key}": value for key, value in own.items()}
            settings |= {f"{prefix}.{key}": value for key, value in config.items()}
    if not tensors:
        known = {prefix: list(adapter_names(model)) for prefix, model in adapted_models(pipe).items()}
        raise AdapterError(f"no adapter named {name!r} to save: the pipeline has {known}")
    metadata = {"format": "pt", METADATA: json.dumps(settings, sort_keys=True)}
    return write_tensors(path, tensors, metadata)


def peft_state(model: nn.Module, name: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """One adapter as (PEFT's tensors: "layer.lora_A.weight" [r, in] and "layer.lora_B.weight" [out, r], on the CPU;
    the arguments of its LoraConfig). Alphas are those that it was made with, at scale 1."""
    tensors, ranks, alphas = {}, {}, {}
    layers = adapter_layers(model)
    for key, parameter in adapter_parameters(model, name).items():
        layer, _, rest = key.rpartition(f".{name}.")  # "....lora_A", "weight"
        if rest != "weight" or not layer.endswith((".lora_A", ".lora_B")):
            raise AdapterError(f"adapter {name!r} is no plain LoRA ({key}): only A and B weights can be saved")
        tensors[f"{layer}.weight"] = parameter.detach().cpu().clone().contiguous()
    for path, layer in layers.items():
        if name in names_on(layer):
            ranks[path], alphas[path] = int(layer.r[name]), float(layer.lora_alpha[name])
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return tensors, {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{path}": r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{path}": a for path, a in alphas.items() if a != alpha},
    }


def read_lora(path: str | Path, pipe=None) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """A file of `save_lora`, any LoRA of diffusers, or one of kohya's trainer, whose names diffusers converts.

    Args:
        pipe: the pipeline that the file is meant for; needed for kohya's files for SDXL, which name layers otherwise.

    Returns:
        Model name in the pipeline -> its tensors ("layer.lora_A.weight"), and "model.layer" -> alpha of that layer.
        From a converted file they are float32, and its alphas are multiplied into B.

    Raises:
        AdapterError: the file is missing, damaged, or no plain LoRA (LyCORIS' LoHa, LoKr and LoCon).
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise AdapterError(f"no LoRA file {path}: give the .safetensors file or the folder that holds {FILE}")
    models: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            settings = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise AdapterError(f"{path} is damaged ({error}): copy or save it again") from error
    if not all(map(_plain, state)):
        state, settings = converted(state, path, pipe), {}
    for key, tensor in state.items():
        prefix, _, rest = key.partition(".")
        models.setdefault(prefix, {})[rest] = tensor
    alphas = {}
    for prefix, tensors in models.items():
        pattern = settings.get(f"{prefix}.alpha_pattern", {})
        for key, value in tensors.items():
            if key.endswith(".lora_A.weight"):
                layer = key.removesuffix(".lora_A.weight")
                usual = settings.get(f"{prefix}.lora_alpha", float(value.shape[0]))
                alphas[f"{prefix}.{layer}"] = float(pattern.get(f"^{layer}", usual))
    return models, alphas


def _plain(key: str) -> bool:
    return key.split(".")[0] in MODELS and key.endswith((".lora_A.weight", ".lora_B.weight"))


def converted(state: Mapping[str, Tensor], path: Path, pipe=None) -> dict[str, Tensor]:
    """A LoRA under other names (kohya's, diffusers' older ones) under PEFT's, converted as `load_lora_weights` does.

    Raises:
        AdapterError: something that is no plain LoRA, or names that diffusers does not know.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    marks = ("hada_", "lokr_", "lora_mid", "oft_", "dora_scale", "diff_b")
    if odd := [key for key in state if any(mark in key for mark in marks)]:
        raise AdapterError(f"{path} is no plain LoRA ({odd[0]}): LoHa, LoKr, LoCon and DoRA cannot be trained on")
    out: dict[str, Tensor] = {}
    try:
        scaled = {key: tensor.float() for key, tensor in state.items()}
        for key in [key for key in scaled if key.endswith(".alpha")]:
            layer = key.removesuffix(".alpha")
            up, rank = f"{layer}.lora_up.weight", len(scaled[f"{layer}.lora_down.weight"])
            scaled[up] = scaled[up] * (float(scaled[key]) / rank)
            scaled[key] = torch.tensor(float(rank))
        loader = type(pipe) if hasattr(pipe, "lora_state_dict") else StableDiffusionPipeline
        found, *_ = loader.lora_state_dict(scaled, unet_config=None if pipe is None else denoiser_config(pipe))
        for prefix in MODELS:
            own = {k.removeprefix(f"{prefix}."): v for k, v in found.items() if k.startswith(f"{prefix}.")}
            if own and "encoder" in prefix:
                own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
                if pipe is not None and not hasattr(getattr(pipe, prefix, None), "text_model"):
                    own = {k.removeprefix("text_model."): v for k, v in own.items()}
            elif own:
                own = convert_unet_state_dict_to_peft(own)
            out |= {f"{prefix}.{key}": value.contiguous() for key, value in own.items()}
    except Exception as error:  # whatever diffusers raises, the file is named
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise AdapterError(f"{path} is in a layout that diffusers does not convert ({reason})") from error
    odd = [key for key in out if not _plain(key)]
    if odd or len(out) != sum(not key.endswith(".alpha") for key in state):
        raise AdapterError(
            f"{path} has tensors that are no LoRA of a Stable Diffusion ({(odd or sorted(state))[0]}): convert it with "
            "pipe.load_lora_weights and labkit.diffusion.save_lora"
        )
    return out


def denoiser_config(pipe):
    """The configuration of a pipeline's U-Net, None without one."""
    return getattr(getattr(pipe, "unet", None), "config", None)


def load_lora(pipe, path: str | Path, name: str) -> None:
    """Add the adapter of a file to a pipeline under `name`: active beside the others, float32, frozen.

    Raises:
        AdapterError: see `read_lora`; layers that the pipeline does not have, shapes that differ, a name that is taken.
            No model has the adapter then.
    """
    models, alphas = read_lora(path, pipe)
    present, done = adapted_models(pipe), []
    try:
        for prefix, tensors in models.items():
            if prefix not in present:
                raise AdapterError(f"{path} is for {prefix}, which the pipeline does not have: another base model?")
            own = {k.removeprefix(f"{prefix}."): a for k, a in alphas.items() if k.startswith(f"{prefix}.")}
            add_state(present[prefix], name, tensors, own)
            done.append(present[prefix])
    except BaseException:
        for model in done:
            remove_lora(model, name)
        raise


def add_state(model: nn.Module, name: str, tensors: Mapping[str, Tensor], alphas: Mapping[str, float]) -> None:
    """Add an adapter with the tensors of `peft_state` and one alpha per layer, active and frozen."""
    ranks = {k.removesuffix(".lora_A.weight"): len(v) for k, v in tensors.items() if k.endswith(".lora_A.weight")}
    kinds = {(rank, alphas[layer]) for layer, rank in ranks.items()}
    if len(kinds) != 1:
        raise AdapterError(f"adapter {name!r} has {len(kinds)} ranks and alphas: load it with pipe.load_lora_weights")
    rank, alpha = kinds.pop()
    parameters = add_lora(model, name, seed=0, rank=rank, alpha=alpha, suffixes=None, where=ranks.__contains__)
    own = adapter_parameters(model, name)
    named = {key.replace(f".{name}.weight", ".weight"): parameter for key, parameter in own.items()}
    odd = sorted(set(named) ^ set(tensors)) or [k for k, p in named.items() if p.shape != tensors[k].shape]
    if odd:
        remove_lora(model, name)
        raise AdapterError(f"{len(odd)} tensors do not fit the model (first: {odd[0]}): another base model?")
    for key, parameter in named.items():
        parameter.data.copy_(tensors[key])
    for parameter in parameters:
        parameter.requires_grad_(False)


def save_pipeline(pipe, folder: str | Path) -> Path:
    """`pipe.save_pretrained` of what the pipeline draws now: active adapters are added into the weights.

    Plain `save_pretrained` writes the names of PEFT's wrapped layers, from which nothing can be loaded. Here the folder
    holds an ordinary pipeline; the pipeline in memory stays as it is, adapters apart, bit for bit.

    Returns:
        The folder.
    """
    with ExitStack() as stack:
        for model in adapted_models(pipe).values():
            stack.enter_context(merged(model))
        pipe.save_pretrained(str(folder), safe_serialization=True)
    return Path(folder)


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model is one without adapters whose weights hold the active ones; afterwards it is as before."""
    layers, active = adapter_layers(model), active_adapters(model)
    if not layers:
        yield model
        return
    state, configs, loaded = AdapterSnapshot(model), model.peft_config, model._hf_peft_config_loaded
    before = {path: layer.get_base_layer().weight.detach().clone() for path, layer in layers.items()}
    try:
        with torch.no_grad():
            for path, layer in layers.items():
                base = layer.get_base_layer()
                for name in active:
                    if name in names_on(layer) and name in layer.active_adapters:
                        base.weight += layer.get_delta_weight(name).to(base.weight.dtype)
                _put(model, path, base)
        del model.peft_config
        model._hf_peft_config_loaded = False
        yield model
    finally:
        model.peft_config, model._hf_peft_config_loaded = configs, loaded
        for path, layer in layers.items():
            layer.get_base_layer().weight.data.copy_(before[path])
            _put(model, path, layer)
        state.restore()


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
