"""Writing the trained parts to ``data/`` as fp16 safetensors, with checksums."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from labkit.files import write_atomically
from labkit.models.checksums import write_checksums
from labkit.models.load import quiet
from labkit.models.reader import AttributeReader
from labkit.training.unet import new_scheduler, new_unet


def export_pipeline(unet: UNet2DConditionModel, work: Path, folder: Path) -> None:
    """Assemble a ``StableDiffusionPipeline`` from the trained parts and save it in diffusers layout."""
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


def clean_config(config_file: Path) -> None:
    """Drop what tells how a part was loaded (its folder, hub or not), and ask for single precision.

    The weights are stored in half and computed in single precision: transformers takes the dtype to load from
    ``config.json``; otherwise plain ``from_pretrained`` gives a half-precision text encoder beside a single-precision
    U-Net.
    """
    config = json.loads(config_file.read_text("utf-8"))
    for key in ("_name_or_path", "local_files_only"):
        config.pop(key, None)
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = "float32"
    write_atomically(config_file, json.dumps(config, indent=2) + "\n")


def export_all(work: Path, out: Path, base_checkpoint: Path, final: Path) -> None:
    """The four model folders under ``out``, then ``checksums.json``.

    Args:
        base_checkpoint, final: EMA weights of the U-Net (safetensors). A training run that was restored from shipped
            weights has no early checkpoint: portrait-sd-base then stays what it is, but for the VAE, which both share.
    """
    for name, weights in (("portrait-sd", final), ("portrait-sd-base", base_checkpoint)):
        if weights == base_checkpoint and not weights.exists():
            if (out / name).exists():
                shutil.copytree(out / "portrait-sd" / "vae", out / name / "vae", dirs_exist_ok=True)
            continue
        unet = new_unet()
        unet.load_state_dict(load_file(weights))
        export_pipeline(unet, work, out / name)
    with quiet():
        CLIPModel.from_pretrained(work / "clip-both" / "model").half().save_pretrained(out / "portrait-clip")
        CLIPTokenizer.from_pretrained(work / "clip-both" / "model").save_pretrained(out / "portrait-clip")
    for config_file in (out / "portrait-clip").glob("*config.json"):
        clean_config(config_file)
    AttributeReader.from_pretrained(work / "reader" / "model").save_pretrained(out / "attribute-reader")
    write_checksums(out)
