"""Measuring what `data/` ships. `python -m labkit.training evaluate` writes the numbers and the model cards;
`python -m labkit.training.evaluate picture` draws the picture of the README."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from labkit import __version__
from labkit.diffusion import decode_latents, encode_images, image_generators, sample, to_pil
from labkit.files import write_atomically
from labkit.metrics import frechet_distance
from labkit.metrics.images import sharpness_of
from labkit.models import data_dir, load_clip, load_pipeline, load_reader
from labkit.models.checksums import sha256, write_checksums
from labkit.models.clip import retrieval_at_1, zero_shot_accuracy
from labkit.models.load import VARIANTS
from labkit.models.reader import AttributeReader, spec_indices
from labkit.portraits import (
    ATTRIBUTES,
    HELD_OUT_COMBINATIONS,
    Caption,
    PortraitSpec,
    caption,
    random_caption,
    render_tensor,
    sample_specs,
)
from labkit.training import parts
from labkit.training.vae import psnr

STEPS, GUIDANCE = 20, 3.0

_SKEW = ", ".join(f"{a} {value} x{w:g}" for a, weights in parts.BASE_SKEW.items() for value, w in weights.items())
BASE_TEXT = (
    "A base worth aligning: sharp and misaligned, by its data alone. The U-Net of portrait-sd was trained on, on "
    f"portraits of a skewed world ({_SKEW}) "
    f"whose captions are wrong: each attribute but the style with probability {parts.MISLABELLED:g}, where the style "
    "can draw another value. It saw clean renders only, never the grain of the photographs in lesson 06.\n\n"
)


FLOW_TEXT = (
    "A transformer in Stable Diffusion 3's layout that predicts the velocity of rectified flow. Latents and texts are "
    "those of portrait-sd, whose VAE, text encoder and tokenizer `labkit.models.load_flow` adds; here are its "
    "transformer and its scheduler alone.\n\n"
)


def entropy(values: Sequence[str]) -> float:
    """Plug-in entropy in nats."""
    counts = np.unique(np.asarray(values), return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def generate(pipe, prompts: Sequence[str], seed: int, batch: int = 32) -> Tensor:
    """Images [N, 3, 64, 64]; image i has the generator of `seed` and i."""
    generators = image_generators(len(prompts), seed)
    parts = [
        sample(
            pipe,
            list(prompts[i : i + batch]),
            generators=generators[i : i + batch],
            steps=STEPS,
            guidance_scale=GUIDANCE,
        )
        for i in range(0, len(prompts), batch)
    ]
    return torch.cat(parts)


def named_accuracy(
    reader: AttributeReader, images: Tensor, specs: Sequence[PortraitSpec], captions: Sequence[Caption]
) -> dict[str, float]:
    """Accuracy per attribute on the images whose caption names it."""
    return reader.accuracy(images, specs, [c.named for c in captions])


def open_entropy_ratio(
    pipe, reader: AttributeReader, prompts: int, images_per_prompt: int, seed: int
) -> dict[str, float]:
    """Per attribute: entropy among the images of one prompt that leaves it open, over the entropy of as many specs of
    the world that fulfil the prompt; the mean over prompts of the first divided by the mean of the second."""
    rng = np.random.default_rng(seed)
    generated: dict[str, list[float]] = {a: [] for a in ATTRIBUTES}
    world: dict[str, list[float]] = {a: [] for a in ATTRIBUTES}
    for k, spec in enumerate(sample_specs(prompts, seed=seed, exclude=HELD_OUT_COMBINATIONS)):
        drop = [str(a) for a in rng.permutation(list(ATTRIBUTES))[:5]]
        prompt = caption(spec, drop=drop)
        named = {a: v for a, v in spec.items() if a in prompt.named}
        peers = sample_specs(
            images_per_prompt, seed=seed + k, rare=[(named, 1.0)] if named else [], exclude=HELD_OUT_COMBINATIONS
        )
        read = reader.describe(generate(pipe, [prompt.text] * images_per_prompt, seed + 1000 * k))
        for a in drop:
            generated[a].append(entropy([r[a] for r in read]))
            world[a].append(entropy([getattr(s, a) for s in peers]))
    return {a: float(np.mean(generated[a]) / np.mean(world[a])) for a in ATTRIBUTES if np.mean(world[a] or [0]) > 0}


def evaluate_pipeline(variant: str, n: int = 512, seed: int = 99) -> dict:
    """Faithfulness on held-out prompts and combinations, variety of what is left open, Frechet distance, speed."""
    pipe, reader = load_pipeline("cpu", variant=variant), load_reader()
    rng = np.random.default_rng(seed)
    specs = sample_specs(512, seed=2026, exclude=HELD_OUT_COMBINATIONS)[:n]
    captions = [random_caption(s, rng) for s in specs]
    images = generate(pipe, [c.text for c in captions], seed)
    accuracy = named_accuracy(reader, images, specs, captions)
    each = max(1, n // 16)
    unseen = [s for c in HELD_OUT_COMBINATIONS for s in sample_specs(each, seed=seed, rare=[(c, 1.0)])]
    prompts = [caption(s) for s in unseen]
    composed = named_accuracy(reader, generate(pipe, [p.text for p in prompts], seed + 1), unseen, prompts)
    real = reader.features(render_tensor(specs))
    distance = frechet_distance(real=real, fake=reader.features(images))
    start = time.perf_counter()
    generate(pipe, [captions[0].text] * 16, seed + 2)
    seconds = time.perf_counter() - start
    varied = open_entropy_ratio(pipe, reader, prompts=max(4, n // 8), images_per_prompt=24, seed=seed)
    return {
        "prompts": n,
        "accuracy": accuracy,
        "accuracy_mean": float(np.mean(list(accuracy.values()))),
        "held_out_combinations": composed,
        "held_out_combinations_mean": float(np.mean(list(composed.values()))),
        "open_entropy_ratio": varied,
        "frechet": {"value": distance.value, "noise_floor": distance.noise_floor},
        "seconds_16_images": seconds,
    }


@torch.no_grad()
def evaluate_flaws(n: int = 128, seed: int = 99) -> dict:
    """What portrait-sd-base is meant to have: pictures as sharp as its VAE allows, and the taste of its skewed world
    where a prompt leaves everything open.

    Returns:
        "sharpness": mean of `sharpness_of`, in brightness from 0 to 1, of n pictures each. "shares": "attribute value"
        -> share of n pictures without guidance by portrait-sd-base, by portrait-sd, and in each one's world.
    """
    reader, specs = load_reader(), sample_specs(n, seed=2026, exclude=HELD_OUT_COMBINATIONS)
    renders, pipe = render_tensor(specs), load_pipeline("cpu")
    latents = torch.cat([encode_images(pipe, some) for some in renders.split(64)])
    sharp = {"renders": renders, "renders after the VAE": decode_latents(pipe, latents, batch_size=64).clamp(-1, 1)}
    shares: dict[str, dict[str, float]] = {}
    worlds = {"portrait-sd-base": parts.BASE_SKEW, "portrait-sd": None}
    for variant, skew in worlds.items():
        pipe = load_pipeline("cpu", variant=variant)
        sharp[variant] = generate(pipe, [caption(spec).text for spec in specs], seed)
        free = sample(
            pipe, ["a portrait of a person"] * n, generators=image_generators(n, seed), steps=STEPS, guidance_scale=1.0
        )
        read = reader.describe(free)
        world = sample_specs(20 * n, seed=seed, marginals=skew, exclude=HELD_OUT_COMBINATIONS)
        for attribute, weights in parts.BASE_SKEW.items():
            for value in weights:
                row = shares.setdefault(f"{attribute} {value}", {})
                row[variant] = float(np.mean([r[attribute] == value for r in read]))
                row[f"world of {variant}"] = float(np.mean([getattr(s, attribute) == value for s in world]))
    return {"sharpness": {name: float(sharpness_of(x).mean()) for name, x in sharp.items()}, "shares": shares}


@torch.no_grad()
def evaluate_parts() -> dict:
    """VAE, CLIP and reader on the 512 frozen validation portraits."""
    specs = sample_specs(512, seed=2026, exclude=HELD_OUT_COMBINATIONS)
    images = render_tensor(specs)
    pipe, reader = load_pipeline("cpu"), load_reader()
    clip, inputs = load_clip("cpu")
    latents = torch.cat([pipe.vae.encode(x).latent_dist.mode() for x in images.split(64)])
    decoded = decode_latents(pipe, latents * pipe.vae.config.scaling_factor, batch_size=64).clamp(-1, 1)
    targets = spec_indices(specs)
    confusion = {}
    for name, read in reader.read(decoded).items():
        table = torch.zeros(len(ATTRIBUTES[name]), len(ATTRIBUTES[name]), dtype=torch.long)
        table.index_put_((targets[name], read), torch.ones_like(read), accumulate=True)
        confusion[name] = table.tolist()
    return {
        "vae_psnr_db": psnr(pipe.vae, images),
        "latent_std": latents.std((0, 2, 3)).tolist(),
        "clip_retrieval": retrieval_at_1(clip, inputs.tokenizer, images, [caption(s).text for s in specs]),
        "clip_zero_shot": zero_shot_accuracy(clip, inputs.tokenizer, images, specs),
        "reader_clean": reader.accuracy(images, specs),
        "reader_reconstructions": reader.accuracy(decoded, specs),
        "reader_confusion_reconstructions": confusion,
    }


def _table(numbers: dict[str, float]) -> str:
    return (
        "| "
        + " | ".join(numbers)
        + " |\n|"
        + "---|" * len(numbers)
        + "\n| "
        + " | ".join(f"{100 * v:.1f}" for v in numbers.values())
        + " |"
    )


def _flaws(measured: dict) -> str:
    sharp = ", ".join(f"{name} {value:.3f}" for name, value in measured["sharpness"].items())
    rows, shares = list(measured["shares"]), measured["shares"]
    table = ["| % of pictures | " + " | ".join(rows) + " |", "|---|" + "---|" * len(rows)]
    table += [
        f"| {name} | " + " | ".join(f"{100 * shares[row][name]:.0f}" for row in rows) + " |" for name in shares[rows[0]]
    ]
    return (
        "\n\nSharpness (standard deviation of the Laplacian of brightness from 0 to 1; every attribute named, guidance "
        f"{GUIDANCE:g}): {sharp}.\n\n"
        + "What it draws when nothing is named, without guidance, and what its world holds:\n\n"
        + "\n".join(table)
    )


def draw_curve(log: Path, path: Path, part: str) -> None:
    """The logged losses of one part against the step, on logarithmic axes."""
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    names = [k for k in records[0] if k not in ("step", "seconds", "gradient_norm", "psnr") and "." not in k]
    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in names:
        axes.plot([r["step"] for r in records], [r[name] for r in records], label=name)
    axes.set(xlabel="step", ylabel="training loss (mean over 50 steps)", title=part, yscale="log")
    axes.legend()
    figure.savefig(path, dpi=80)


def write_cards(
    results: dict, out: Path, work: Path, record: dict[str, dict], only: Sequence[str] | None = None
) -> None:
    """`README.md` and loss curves in each model folder and `evaluation.json` beside them, from measured numbers.

    Args:
        work: the folder with the logs of the training runs.
        record: part -> its steps and a note on how it was trained, where that differs from the recipe.
        only: write the cards of these folders (None: of all).
    """
    measured = results["parts"]
    day = date.today().isoformat()

    def trained(part: str, folder: str) -> str:
        log, curve = work / part / "log.jsonl", out / folder / f"loss-{part}.png"
        steps, note = record[part]["steps"], record[part]["note"]
        if log.exists():
            draw_curve(log, curve, part)
        text = f"{part}: `python -m labkit.training {part}`, {steps} steps. {note}\n\n"
        return text + (f"![loss]({curve.name})\n\n" if curve.exists() else "")

    def weights(folder: str) -> str:
        files = sorted((out / folder).rglob("*.safetensors"))
        rows = [f"| {f.relative_to(out / folder)} | {f.stat().st_size / 1e6:.1f} | `{sha256(f)}` |" for f in files]
        return "\n".join(
            [f"Measured {day} with labkit {__version__}, torch {torch.__version__}. fp16 safetensors:\n"]
            + ["| file | MB | sha256 |\n|---|---|---|", *rows, ""]
        )

    cards = {
        "portrait-clip": "# PortraitCLIP\n\n"
        + trained("clip", "portrait-clip")
        + trained("clip-images", "portrait-clip")
        + trained("clip-both", "portrait-clip")
        + f"Image->text R@1 among 512 validation captions: {100 * measured['clip_retrieval']:.1f} % (goal 98).\n\n"
        + "Zero-shot accuracy per attribute in % (goal 95):\n\n"
        + _table(measured["clip_zero_shot"])
        + "\n\n"
        + weights("portrait-clip"),
        "attribute-reader": "# AttributeReader\n\n"
        + trained("reader", "attribute-reader")
        + "The gold judge: nothing may be trained against it. Accuracy in % on 512 clean renders (goal 99):\n\n"
        + _table(measured["reader_clean"])
        + "\n\nand on their VAE reconstructions (goal 97; confusion matrices in ../evaluation.json):\n\n"
        + _table(measured["reader_reconstructions"])
        + "\n\n"
        + weights("attribute-reader"),
    }
    for variant in [name for name in VARIANTS if name in results]:
        r, flow = results[variant], variant == "portrait-flow"

        def goal(text: str, variant: str = variant) -> str:
            return "" if variant == "portrait-sd-base" else text  # its errors are there on purpose

        vae = f"VAE: {measured['vae_psnr_db']:.2f} dB PSNR on 512 validation portraits (goal 33).\n\n"
        own = {"portrait-sd": "unet", "portrait-sd-base": "base", "portrait-flow": "flow"}[variant]
        about = {"portrait-sd-base": BASE_TEXT, "portrait-flow": FLOW_TEXT}.get(variant, "")
        cards[variant] = (
            f"# {variant}\n\n"
            + ("" if flow else trained("vae", variant) + trained("decoder", variant))
            + about
            + trained(own, variant)
            + ("" if flow else vae)
            + f"{r['prompts']} held-out prompts, {STEPS} {'Euler' if flow else 'DDIM'} steps, guidance {GUIDANCE:g}. "
            + f"Accuracy of named attributes in % (mean {100 * r['accuracy_mean']:.1f}{goal(', goal 92')}):\n\n"
            + _table(r["accuracy"])
            + "\n\n"
            + "Prompts with combinations held out of training "
            + f"(mean {100 * r['held_out_combinations_mean']:.1f}{goal(', goal 85')}):\n\n"
            + _table(r["held_out_combinations"])
            + "\n\n"
            + f"Entropy of open attributes in % of the world's{goal(' (goal 80)')}:\n\n"
            + _table(r["open_entropy_ratio"])
            + (_flaws(r["flaws"]) if "flaws" in r else "")
            + f"\n\nFrechet distance in reader features {r['frechet']['value']:.2f} "
            + f"(noise floor {r['frechet']['noise_floor']:.2f}). "
            + f"16 images in {r['seconds_16_images']:.1f} s on two cores of the measuring machine (goal 3).\n\n"
            + weights(variant)
        )
    for name, text in cards.items():
        if only is None or name in only:
            write_atomically(out / name / "README.md", text)
    write_atomically(out / "evaluation.json", json.dumps(results, indent=1) + "\n")


def picture(path: Path, columns: int = 9, rows: int = 3, seed: int = 8) -> None:
    """A wall of portraits from prompts that leave attributes open: what the seed gives, nothing chosen by hand."""
    pipe, gap, side = load_pipeline("cpu"), 4, 128
    specs = sample_specs(columns * rows, seed=seed)
    prompts = [random_caption(spec, np.random.default_rng([seed, i])).text for i, spec in enumerate(specs)]
    wall = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), "white")
    for i, image in enumerate(to_pil(generate(pipe, prompts, seed).clamp(-1, 1))):
        place = (i % columns * (side + gap), i // columns * (side + gap))
        wall.paste(image.resize((side, side), Image.Resampling.LANCZOS), place)
    wall.save(path, optimize=True)


if __name__ == "__main__":
    if sys.argv[1:] != ["picture"]:
        raise SystemExit("usage: python -m labkit.training.evaluate picture")
    picture(data_dir() / "readme.png")
    write_checksums(data_dir())
