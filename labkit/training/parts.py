"""The recipe: seeds, sizes and steps of every shipped model, in the order in which they are trained."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from labkit.files import write_atomically
from labkit.portraits import (
    ATTRIBUTES,
    HELD_OUT_COMBINATIONS,
    Caption,
    PortraitSpec,
    build_dataset,
    load_dataset,
    mislabelled,
    render_array,
    render_tensor,
    sample_specs,
)
from labkit.portraits.attributes import HELD_OUT_STYLES, TRAINING_STYLES
from labkit.portraits.captions import random_caption
from labkit.portraits.render import BALD_BEARD, HAIR, SKIN
from labkit.training.loop import LoopConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from labkit.training.unet import CaptionGroups

TRAIN_SIZE, READER_SIZE, VALIDATION_SIZE = 32_768, 6_144, 512
TRAIN_SEED, READER_SEED, VALIDATION_SEED = 1, 3, 2026
CAPTIONS_PER_IMAGE = 3
VAE_STEPS, DECODER_STEPS, READER_STEPS = 4000, 6000, 4000
CLIP_STEPS, CLIP_IMAGE_STEPS, CLIP_BOTH_STEPS = 2600, 2100, 350
UNET_STEPS = 13_200

# portrait-sd-base goes on from portrait-sd on captions as the web has them: each attribute but the style is wrong with
# probability MISLABELLED. The portraits are drawn from a skewed world. So it is as sharp as portrait-sd, and its flaws
# come from data alone.
BASE_STEPS, BASE_BATCH, BASE_SIZE, BASE_SEED, BASE_CAPTIONS = 600, 32, 6_000, 5, 2
MISLABELLED = 0.4

# portrait-flow: a transformer that predicts the velocity of rectified flow, on latents and texts of portrait-sd. Its
# learning rate is constant, the shipped weights are an average over the last steps: training may end at any of them.
FLOW_STEPS, FLOW_BATCH, FLOW_SIZE = 6_000, 32, 8_192

# Small shapes count for little in a mean over latent cells: this share of the loss weight goes where they show.
FINE_ATTRIBUTES, FINE_SHARE = ("beard", "mood"), 0.7

# The U-Net makes faint shapes less often than it is shown them: with every portrait drawn equally often two thirds of
# the faces of prompts that leave the beard open had none, where it is half of the world.
BEARD_WEIGHT = 2.0

# A beard in nearly the colour of the skin is worth next to nothing in the decoder's loss: the fainter the beards of a
# portrait are (`faintness`), the more often it is drawn, and this share of the loss weight goes where beards show.
DECODER_BEARD_SHARE = 0.5

BASE_SKEW: dict[str, dict[str, float]] = {
    "mood": {"happy": 6.0},
    "hair_color": {"brown": 3.0},
    "skin": {"light": 3.0},
    "glasses": {"none": 3.0},
}


@dataclass(frozen=True)
class Folders:
    work: Path
    out: Path

    @classmethod
    def of(cls, work: Path, out: Path | None) -> Folders:
        from labkit.models.paths import data_dir

        return cls(work, out or data_dir())


def validation_specs() -> list[PortraitSpec]:
    """The 512 frozen specs; none of them is in any training set."""
    return sample_specs(VALIDATION_SIZE, seed=VALIDATION_SEED, exclude=HELD_OUT_COMBINATIONS)


def data(folders: Folders) -> None:
    held_out = validation_specs()
    train = sample_specs(TRAIN_SIZE, seed=TRAIN_SEED, exclude=HELD_OUT_COMBINATIONS, avoid=held_out)
    build_dataset(folders.work / "portraits", train)
    every_style = (
        TRAINING_STYLES + HELD_OUT_STYLES
    )  # the judge must know combinations and styles that the models never see
    build_dataset(
        folders.work / "reader-portraits",
        sample_specs(READER_SIZE, seed=READER_SEED, styles=every_style, avoid=held_out),
    )
    build_dataset(folders.out / "portraits", held_out)


def restore(folders: Folders) -> None:
    """Rebuild checkpoints from the weights that are shipped, so that training goes on where their steps ended.

    Shipped weights are EMA weights in half precision without optimizer state: a run that is continued from them does
    not end with the same bits as one that was never interrupted, and its model card says so.
    """
    from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTokenizer

    from labkit.models.reader import AttributeReader
    from labkit.training.loop import save_checkpoint

    record = json.loads((folders.out / "training.json").read_text("utf-8"))
    steps = {part: entry["steps"] for part, entry in record.items()}
    shipped = folders.out / "portrait-sd"
    parts = {
        "vae": AutoencoderKL.from_pretrained(shipped / "vae"),
        "clip-both": CLIPModel.from_pretrained(folders.out / "portrait-clip"),
        "decoder": AutoencoderKL.from_pretrained(shipped / "vae"),
        "reader": AttributeReader.from_pretrained(folders.out / "attribute-reader"),
        "unet": UNet2DConditionModel.from_pretrained(shipped / "unet"),
        "base": UNet2DConditionModel.from_pretrained(folders.out / "portrait-sd-base" / "unet"),
    }
    if (folders.out / "portrait-flow").is_dir():
        parts["flow"] = SD3Transformer2DModel.from_pretrained(folders.out / "portrait-flow" / "transformer")
    for name, model in parts.items():
        checkpoint = folders.work / name / "checkpoint.safetensors"
        if checkpoint.exists():
            continue  # it knows more than the shipped weights
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        weights = {k: v.float() if v.is_floating_point() else v for k, v in model.state_dict().items()}
        model.load_state_dict(weights)
        save_checkpoint(checkpoint, model.float(), weights, None, steps[name], fresh=steps[name])
        model.save_pretrained(folders.work / name / "model")
    CLIPTokenizer.from_pretrained(folders.out / "portrait-clip").save_pretrained(clip_folder(folders))


def vae(folders: Folders) -> None:
    from labkit.training.vae import train_vae

    images, _ = load_dataset(folders.work / "portraits")
    model = train_vae(
        images, render_tensor(validation_specs()[:128]), folders.work / "vae", steps=VAE_STEPS, batch=8, lr=1e-3
    )
    model.save_pretrained(folders.work / "vae" / "model")


def clip(folders: Folders) -> None:
    from labkit.models.clip import train_tokenizer
    from labkit.training.clip import train_clip

    images, specs = load_dataset(folders.work / "portraits")
    rng = np.random.default_rng(5)
    tokenizer = train_tokenizer([random_caption(s, rng, full_share=0.5).text for s in specs[:20_000]])
    validation = validation_specs()
    model = train_clip(
        images, specs, (render_tensor(validation), validation), tokenizer, folders.work / "clip", steps=CLIP_STEPS
    )
    model.save_pretrained(folders.work / "clip" / "model")
    tokenizer.save_pretrained(folders.work / "clip" / "model")


def clip_images(folders: Folders) -> None:
    """The image tower and the projections alone."""
    from transformers import CLIPModel, CLIPTokenizer

    from labkit.training.clip import train_image_tower

    images, specs = load_dataset(folders.work / "portraits")
    source, target, validation = folders.work / "clip" / "model", folders.work / "clip-images", validation_specs()
    model, tokenizer = CLIPModel.from_pretrained(source), CLIPTokenizer.from_pretrained(source)
    model = train_image_tower(
        model, images, specs, (render_tensor(validation), validation), tokenizer, target, steps=CLIP_IMAGE_STEPS
    )
    model.save_pretrained(target / "model")
    tokenizer.save_pretrained(target / "model")


def clip_both(folders: Folders) -> None:
    """Both towers again: now that the images show moods and beards, the words for them move apart in the text
    transformer too. The U-Net is trained on its states."""
    from transformers import CLIPModel, CLIPTokenizer

    from labkit.training.clip import train_clip

    images, specs = load_dataset(folders.work / "portraits")
    source, target, validation = folders.work / "clip-images" / "model", clip_folder(folders), validation_specs()
    model, tokenizer = CLIPModel.from_pretrained(source), CLIPTokenizer.from_pretrained(source)
    model = train_clip(
        images,
        specs,
        (render_tensor(validation), validation),
        tokenizer,
        target.parent,
        steps=CLIP_BOTH_STEPS,
        lr=5e-4,
        start=model,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def clip_folder(folders: Folders) -> Path:
    """The final PortraitCLIP."""
    return folders.work / "clip-both" / "model"


def reader(folders: Folders) -> None:
    from diffusers import AutoencoderKL

    from labkit.training.reader import train_reader
    from labkit.training.unet import encode_images

    a_images, a_specs = load_dataset(folders.work / "portraits", limit=16_384)
    b_images, b_specs = load_dataset(folders.work / "reader-portraits")
    images = np.concatenate([a_images, b_images])
    autoencoder = AutoencoderKL.from_pretrained(folders.work / "decoder" / "model")
    cache = folders.work / "reader" / "reconstructions.safetensors"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        latents = encode_images(autoencoder, images)
        with torch.no_grad():
            decoded = [
                autoencoder.decode(z.float()).sample.clamp(-1, 1).add(1).mul(127.5).round().byte()
                for z in latents.split(128)
            ]
        stacked = torch.cat(decoded).permute(0, 2, 3, 1).contiguous()
        write_atomically(cache, lambda p: save_file({"images": stacked}, str(p)))
    reconstructions = load_file(cache)["images"].numpy()
    model = train_reader(images, [*a_specs, *b_specs], reconstructions, folders.work / "reader", steps=READER_STEPS)
    model.save_pretrained(folders.work / "reader" / "model")


def latents_of(images: np.ndarray, folders: Folders) -> torch.Tensor:
    """Scaled latent means [N, 8, 8, 8] in fp16, computed once."""
    from diffusers import AutoencoderKL

    from labkit.training.unet import encode_images

    cache = folders.work / "unet" / f"latents-{len(images)}.safetensors"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        latents = encode_images(AutoencoderKL.from_pretrained(folders.work / "vae" / "model"), images)
        write_atomically(cache, lambda p: save_file({"latents": latents}, str(p)))
    return load_file(cache)["latents"]


def captions_of(specs: list[PortraitSpec]) -> list[Caption]:
    """`CAPTIONS_PER_IMAGE` captions per portrait, the same ones in every run."""
    rng = np.random.default_rng(7)
    return [random_caption(s, rng) for s in specs for _ in range(CAPTIONS_PER_IMAGE)]


def texts_of(captions: list[Caption], folders: Folders) -> dict[str, torch.Tensor]:
    """Text states of the captions and of the empty prompt in fp16, computed once."""
    from transformers import CLIPTextModel, CLIPTokenizer

    from labkit.models.clip import tokenize
    from labkit.training.unet import encode_texts

    cache = folders.work / "unet" / f"texts-{len(captions)}.safetensors"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        tokenizer = CLIPTokenizer.from_pretrained(clip_folder(folders))
        text_encoder = CLIPTextModel.from_pretrained(clip_folder(folders)).eval()
        inputs = {
            "states": encode_texts(text_encoder, tokenize(tokenizer, [c.text for c in captions])),
            "empty": encode_texts(text_encoder, tokenize(tokenizer, [""]))[0],
        }
        write_atomically(cache, lambda p: save_file(inputs, str(p)))
    return load_file(cache)


def caption_groups(specs: list[PortraitSpec], captions: list[Caption], beard_weight: float) -> CaptionGroups:
    """Groups by what the captions name, and by whether a head is bald: bald heads have no hair colour to name, so
    captions without one are theirs more often than their share."""
    from labkit.training.unet import CaptionGroups

    names = list(ATTRIBUTES)
    values = [[ATTRIBUTES[a].index(getattr(s, a)) for a in names] + [int(s.hair_style == "bald")] for s in specs]
    fixed = [[a in c.named for a in names] + [True] for c in captions]
    weights = torch.tensor([1.0 if s.beard == "none" else beard_weight for s in specs])
    spread = [names.index(a) for a in FINE_ATTRIBUTES]
    return CaptionGroups(torch.tensor(values), torch.tensor(fixed), spread, weights)


def unet(folders: Folders) -> None:
    from diffusers import AutoencoderKL

    from labkit.training import unet as U

    images, specs = load_dataset(folders.work / "portraits")
    captions = captions_of(specs)
    latents, inputs = latents_of(images, folders), texts_of(captions, folders)
    conditions = U.Conditions(inputs["states"], CAPTIONS_PER_IMAGE, inputs["empty"].float())
    vae = AutoencoderKL.from_pretrained(folders.work / "vae" / "model")
    torch.manual_seed(0)  # the initial weights
    model = U.train_unet(
        U.new_unet(),
        latents,
        conditions,
        folders.work / "unet",
        config=LoopConfig(steps=UNET_STEPS, lr=1e-3, ema=0.999, weight_decay=0.01, warmup=200, decay=0.2, seed=11),
        batch=48,  # per process
        groups=caption_groups(specs, captions, BEARD_WEIGHT),
        cell_weight=fine_cells(vae, specs),
    )
    model.save_pretrained(folders.work / "unet" / "model")


def fine_cells(vae: AutoencoderKL, specs: list[PortraitSpec]) -> torch.Tensor:
    """Loss weights [8, 8] of the latent cells, mean 1: `FINE_SHARE` goes where `FINE_ATTRIBUTES` show."""
    from labkit.training.unet import encode_images, evidence

    return (1 - FINE_SHARE) + FINE_SHARE * evidence(partial(encode_images, vae), specs[:400], FINE_ATTRIBUTES)


def base_data() -> tuple[list[PortraitSpec], list[str]]:
    """Portraits of the skewed world [N] and what careless captions say about them [N * BASE_CAPTIONS]."""
    specs = sample_specs(
        BASE_SIZE, seed=BASE_SEED, marginals=BASE_SKEW, exclude=HELD_OUT_COMBINATIONS, avoid=validation_specs()
    )
    rng = np.random.default_rng(BASE_SEED)
    texts = [random_caption(mislabelled(s, rng, MISLABELLED), rng).text for s in specs for _ in range(BASE_CAPTIONS)]
    return specs, texts


def base(folders: Folders) -> None:
    """portrait-sd-base: the U-Net of portrait-sd, trained on with the portraits and captions of `base_data`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from labkit.models.clip import tokenize
    from labkit.training import unet as U

    vae = AutoencoderKL.from_pretrained(folders.work / "vae" / "model")
    specs, texts = base_data()
    tokens = tokenize(CLIPTokenizer.from_pretrained(clip_folder(folders)), [*texts, ""])
    states = U.encode_texts(CLIPTextModel.from_pretrained(clip_folder(folders)).eval(), tokens)
    model = U.train_unet(
        UNet2DConditionModel.from_pretrained(folders.work / "unet" / "model"),
        U.encode_images(vae, np.stack([render_array(spec) for spec in specs])),
        U.Conditions(states[:-1], BASE_CAPTIONS, states[-1].float()),
        folders.work / "base",
        config=LoopConfig(steps=BASE_STEPS, lr=3e-4, ema=0.99, weight_decay=0.01, warmup=30, decay=0.3, seed=17),
        batch=BASE_BATCH,
        cell_weight=fine_cells(vae, specs),
    )
    model.save_pretrained(folders.work / "base" / "model")


def flow(folders: Folders) -> None:
    """portrait-flow, from nothing."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    from labkit.models.clip import tokenize
    from labkit.training import flow as F

    images, specs = load_dataset(folders.work / "portraits", limit=FLOW_SIZE)
    captions = captions_of(specs)
    latents, inputs = latents_of(images, folders), texts_of(captions, folders)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder(folders))
    ids = tokenize(tokenizer, [*(c.text for c in captions), ""])
    ends = (ids == tokenizer.eos_token_id).int().argmax(1)  # [N * variants + 1], where each text ends
    conditions = F.FlowConditions(inputs["states"], ends[:-1], CAPTIONS_PER_IMAGE, inputs["empty"], int(ends[-1]))
    vae = AutoencoderKL.from_pretrained(folders.work / "vae" / "model")
    torch.manual_seed(0)  # the initial weights
    model = F.train_flow(
        F.new_transformer(),
        latents,
        conditions,
        folders.work / "flow",
        config=LoopConfig(steps=FLOW_STEPS, lr=1e-3, ema=0.998, weight_decay=0.01, warmup=100, decay=0.0, seed=23),
        batch=FLOW_BATCH,
        cell_weight=fine_cells(vae, specs),
    )
    model.save_pretrained(folders.work / "flow" / "model")


def faintness(spec: PortraitSpec) -> float:
    """How much harder than usual it is to tell hair from skin: 150 over the distance of their colours in RGB, at least
    1 (half of the pairs are further apart)."""
    hair, skin = (
        np.frombuffer(bytes.fromhex(color), np.uint8).astype(float)
        for color in (HAIR.get(spec.hair_color, BALD_BEARD), SKIN[spec.skin])
    )
    return max(1.0, 150.0 / float(np.linalg.norm(hair - skin)))


def decoder(folders: Folders) -> None:
    """The decoder alone: the encoder, and so every latent, stays as it is."""
    from diffusers import AutoencoderKL

    from labkit.training.unet import evidence
    from labkit.training.vae import train_decoder

    images, specs = load_dataset(folders.work / "portraits")
    fine = evidence(lambda x: torch.from_numpy(x).permute(0, 3, 1, 2), specs[:400], ["beard"])
    model = train_decoder(
        AutoencoderKL.from_pretrained(folders.work / "vae" / "model"),
        images,
        latents_of(images, folders),
        render_tensor(validation_specs()[:128]),
        folders.work / "decoder",
        steps=DECODER_STEPS,
        batch=8,
        weights=torch.tensor([faintness(s) for s in specs]),
        pixel_weight=(1 - DECODER_BEARD_SHARE) + DECODER_BEARD_SHARE * fine,
    )
    model.save_pretrained(folders.work / "decoder" / "model")


def export(folders: Folders) -> None:
    from labkit.training.export import export_all

    record_file = folders.out / "training.json"
    record = json.loads(record_file.read_text("utf-8")) if record_file.exists() else {}
    for part in ("vae", "decoder", "clip", "clip-images", "clip-both", "reader", "unet", "base", "flow"):
        log = folders.work / part / "log.jsonl"
        if log.exists():  # restored parts that were not trained further have none
            record.setdefault(part, {"note": ""})["steps"] = json.loads(log.read_text("utf-8").splitlines()[-1])["step"]
    write_atomically(record_file, json.dumps(record, indent=1) + "\n")
    export_all(folders.work, folders.out)


def evaluate(folders: Folders) -> None:
    from labkit.models.checksums import write_checksums
    from labkit.training import evaluate as E

    results = {"parts": E.evaluate_parts()}
    for variant, n in (("portrait-sd", VALIDATION_SIZE), ("portrait-sd-base", 128), ("portrait-flow", 128)):
        if not (folders.out / variant).is_dir():
            continue
        results[variant] = E.evaluate_pipeline(variant, n)
    if "portrait-sd-base" in results:
        results["portrait-sd-base"]["flaws"] = E.evaluate_flaws()
    record = json.loads((folders.out / "training.json").read_text("utf-8"))
    E.write_cards(results, folders.out, folders.work, record)
    write_checksums(folders.out)


def flow_export(folders: Folders) -> None:
    """Export, measure and describe portrait-flow; the other folders stay as they are. A training that has not ended
    gives the averaged weights of its checkpoint: the learning rate is constant, so that no step is a better end."""
    from diffusers import SD3Transformer2DModel

    from labkit.checkpoint import read_checkpoint
    from labkit.models.checksums import write_checksums
    from labkit.training import evaluate as E
    from labkit.training.export import export_flow
    from labkit.training.flow import new_transformer

    trained = folders.work / "flow"
    if (trained / "model").is_dir():
        model = SD3Transformer2DModel.from_pretrained(trained / "model")
        steps = json.loads((trained / "log.jsonl").read_text("utf-8").splitlines()[-1])["step"]
    else:
        groups, state = read_checkpoint(trained / "checkpoint.safetensors")
        model, steps = new_transformer(), state["step"]
        model.load_state_dict(groups["ema"])
    export_flow(model.eval(), folders.out / "portrait-flow")
    write_checksums(folders.out, ["portrait-flow"])
    record_file, measured = folders.out / "training.json", folders.out / "evaluation.json"
    record, results = (json.loads(path.read_text("utf-8")) for path in (record_file, measured))
    record.setdefault("flow", {"note": ""})["steps"] = steps
    write_atomically(record_file, json.dumps(record, indent=1) + "\n")
    results["portrait-flow"] = E.evaluate_pipeline("portrait-flow", 128)
    E.write_cards(results, folders.out, folders.work, record, only=("portrait-flow",))
    write_checksums(folders.out)


CONTINUE = {"restore": restore, "flow-export": flow_export}
PARTS = {
    "data": data,
    "vae": vae,
    "decoder": decoder,
    "clip": clip,
    "clip-images": clip_images,
    "clip-both": clip_both,
    "reader": reader,
    "unet": unet,
    "base": base,
    "flow": flow,
    "export": export,
    "evaluate": evaluate,
}
PARALLEL = {"unet": 2}  # part -> number of single-threaded processes that average their gradients


def run_worker(rank: int, processes: int, rendezvous: str, part: str, folders: Folders) -> None:
    """One single-threaded process of a parallel part; it meets the others at the file `rendezvous`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    try:
        PARTS[part](folders)
    finally:
        dist.destroy_process_group()
