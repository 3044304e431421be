"""What a local model folder has, checked before anything is loaded from it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from labkit.errors import LabkitWarning, ModelLoadError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
PORTRAIT_SIZE = 64  # PortraitCLIP and what is trained from it take [-1, 1] and have no processor file


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
        if component in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            need(folder / component / "config.json", folder)
            need_weights(folder / component, folder)
        elif not (folder / component).is_dir():
            raise ModelLoadError(f"{folder} is incomplete: {component}/ is missing, copy the model again")
    return name


def absent_parts(folder: Path) -> list[str]:
    """Components that a pipeline folder was saved without (T5, which takes most of Stable Diffusion 3's memory)."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    return [name for name, entry in index.items() if isinstance(entry, list) and entry[0] is None]


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
    weights = [path.name for part in ("unet", "transformer") for path in (source / part).glob("*.safetensors")]
    half = any(".fp16" in name for name in weights)
    full = any(".fp16" not in name for name in weights)
    return {"variant": "fp16"} if half and (dtype == torch.float16 or not full) else {}


def pixel_statistics(source: Path | str) -> dict[str, tuple[float, ...]]:
    """Mean and std by which a CLIP wants pixels of [0, 1] scaled: the folder's own, 0.5 if it has none; OpenAI's."""
    if not isinstance(source, Path):
        return {"mean": OPENAI_MEAN, "std": OPENAI_STD}
    for name in ("processor_config.json", "preprocessor_config.json"):  # transformers 5 writes the first, 4 the second
        path = source / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text("utf-8"))
            config = config.get("image_processor", config)
            if name == "processor_config.json" and "image_mean" not in config:
                continue  # transformers 4 wrote other things into it
            return {"mean": tuple(config["image_mean"]), "std": tuple(config["image_std"])}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelLoadError(f"{path} is damaged: copy the model again") from None
    if (source / "config.json").is_file() and _image_size(source) > PORTRAIT_SIZE:
        warnings.warn(
            f"{source} has no processor_config.json, so its pixels are scaled with mean and std 0.5: "
            "copy the file of the original model into the folder",
            LabkitWarning,
            stacklevel=3,
        )
    return {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _image_size(source: Path) -> int:
    try:
        return int(json.loads((source / "config.json").read_text("utf-8"))["vision_config"].get("image_size", 224))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def check_clip(source: Path) -> None:
    """Check that a local folder holds a CLIP of transformers with its tokenizer, before anything is loaded.

    Raises:
        ModelLoadError: an open_clip checkpoint, another kind of model (SigLIP, ...), or missing files.
    """
    if (source / "open_clip_config.json").is_file() and not (source / "config.json").is_file():
        raise ModelLoadError(
            f"{source} holds an open_clip checkpoint: convert it to transformers' CLIPModel "
            "(convert_clip_original_pytorch_to_hf) and give that folder"
        )
    need(source / "config.json", source)
    try:
        kind = json.loads((source / "config.json").read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise ModelLoadError(f"{source / 'config.json'} is damaged: copy the model again") from None
    if kind != "clip":
        raise ModelLoadError(f"{source} holds a {kind!r} model, expected 'clip': SigLIP and others are not supported")
    need_weights(source, source)
    if not (source / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (source / name).is_file():
                raise ModelLoadError(
                    f"{source} has no tokenizer (tokenizer.json, or vocab.json and merges.txt): "
                    "save it there with tokenizer.save_pretrained"
                )
