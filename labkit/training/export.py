"""Writing the trained parts to `data/` as fp16 safetensors, with checksums."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from labkit.files import write_atomically
from labkit.models.checksums import write_checksums
from labkit.models.load import quiet
from labkit.models.reader import AttributeReader
from labkit.training.flow import new_flow_scheduler
from labkit.training.unet import new_scheduler


def export_pipeline(unet: UNet2DConditionModel, work: Path, folder: Path) -> None:
    """Assemble a `StableDiffusionPipeline` from the trained parts and save it in diffusers layout."""
    with quiet():
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(work / "decoder" / "model"),
            text_encoder=CLIPTextModel.from_pretrained(work / "clip-both" / "model"),
            tokenizer=CLIPTokenizer.from_pretrained(work / "clip-both" / "model"),
            unet=unet,
            scheduler=new_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        for module in (pipe.vae, pipe.text_encoder, pipe.unet):
            module.half()
        pipe.save_pretrained(folder, safe_serialization=True)
    for config_file in folder.glob("*/*config.json"):
        clean_config(config_file)


def export_flow(transformer: SD3Transformer2DModel, folder: Path) -> None:
    """Save PortraitFlow's transformer and scheduler; the other parts of its pipeline are those of portrait-sd."""
    with quiet():
        transformer.half().save_pretrained(folder / "transformer", safe_serialization=True)
        new_flow_scheduler().save_pretrained(folder / "scheduler")
    for config_file in folder.glob("*/*config.json"):
        clean_config(config_file)


def clean_config(config_file: Path) -> None:
    """Drop what tells how a part was loaded (its folder, hub or not), and ask for single precision.

    The weights are stored in half and computed in single precision: transformers takes the dtype to load from
    `config.json`; otherwise plain `from_pretrained` gives a half-precision text encoder beside a single-precision
    U-Net.
    """
    config = json.loads(config_file.read_text("utf-8"))
    for key in ("_name_or_path", "local_files_only"):
        config.pop(key, None)
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = "float32"
    write_atomically(config_file, json.dumps(config, indent=2) + "\n")


def export_all(work: Path, out: Path) -> None:
    """The model folders under `out`, then `checksums.json`."""
    for name, part in (("portrait-sd", "unet"), ("portrait-sd-base", "base")):
        export_pipeline(UNet2DConditionModel.from_pretrained(work / part / "model"), work, out / name)
    if (work / "flow" / "model").is_dir():
        export_flow(SD3Transformer2DModel.from_pretrained(work / "flow" / "model"), out / "portrait-flow")
    with quiet():
        CLIPModel.from_pretrained(work / "clip-both" / "model").half().save_pretrained(out / "portrait-clip")
        CLIPTokenizer.from_pretrained(work / "clip-both" / "model").save_pretrained(out / "portrait-clip")
    for config_file in (out / "portrait-clip").glob("*config.json"):
        clean_config(config_file)
    AttributeReader.from_pretrained(work / "reader" / "model").save_pretrained(out / "attribute-reader")
    write_checksums(out)
