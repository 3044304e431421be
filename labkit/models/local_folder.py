"""What a local model folder has, checked before anything is loaded from it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from labkit.errors import ModelLoadError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def check_layout(folder: Path) -> str:
    """Check that a local pipeline folder is complete before anything is loaded; returns its pipeline class name."""
    need(folder / "model_index.json", folder)
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        name = index["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise ModelLoadError(f"{folder / 'model_index.json'} is damaged: copy the model again") from None
    for component, entry in index.items():
        if not isinstance(entry, list) or entry[0] is None or component in ("safety_checker", "feature_extractor"):
            continue
        if component in ("unet", "vae", "text_encoder", "text_encoder_2"):
            need(folder / component / "config.json", folder)
            need_weights(folder / component, folder)
        elif not (folder / component).is_dir():
            raise ModelLoadError(f"{folder} is incomplete: {component}/ is missing, copy the model again")
    return name


def need(path: Path, folder: Path) -> None:
    """Raise ModelLoadError unless the file `path` of a model folder is there."""
    if not path.is_file():
        raise ModelLoadError(f"{folder} is incomplete: {path.relative_to(folder)} is missing, copy the model again")


def need_weights(path: Path, folder: Path) -> None:
    """At least one safetensors file; pickled weights are never opened."""
    if any(path.glob("*.safetensors")):
        return
    where = path.relative_to(folder).as_posix()
    if any(path.glob("*.bin")) or any(path.glob("*.ckpt")):
        raise ModelLoadError(f"{folder} has only pickled weights in {where}: get the safetensors version of this model")
    raise ModelLoadError(f"{folder} is incomplete: no *.safetensors in {where}, copy the model again")


def file_variant(source: Path | str, dtype: torch.dtype) -> dict[str, str]:
    """Take the fp16 files (half the download) where they exist and either fp16 is wanted or nothing else is there."""
    if not isinstance(source, Path):
        return {"variant": "fp16"} if dtype == torch.float16 else {}
    half = any((source / "unet").glob("*.fp16*.safetensors"))
    full = any(".fp16" not in path.name for path in (source / "unet").glob("*.safetensors"))
    return {"variant": "fp16"} if half and (dtype == torch.float16 or not full) else {}


def pixel_statistics(source: Path | str) -> dict[str, tuple[float, ...]]:
    """Mean and std by which a CLIP wants pixels of [0, 1] scaled: the folder's own, 0.5 if it has none; OpenAI's."""
    if not isinstance(source, Path):
        return {"mean": OPENAI_MEAN, "std": OPENAI_STD}
    path = source / "preprocessor_config.json"
    if not path.is_file():
        return {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    try:
        config = json.loads(path.read_text("utf-8"))
        return {"mean": tuple(config["image_mean"]), "std": tuple(config["image_std"])}
    except (ValueError, KeyError, TypeError):
        raise ModelLoadError(f"{path} is damaged: copy the model again") from None
