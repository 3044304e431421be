"""Diffusion-DPO from a configuration file, on one or many processes.

    python -m labkit.dpo.train config.yaml
    accelerate launch --num_processes 2 -m labkit.dpo.train config.yaml

    pairs: pairs/                                     # a folder written by PairSet.save
    output: runs/dpo            # checkpoint, log.jsonl, grids, adapter.safetensors for `pipe.load_lora_weights`
    pipeline: {tier: gpu, folder: /models/sd15}       # options of labkit.models.load_pipeline
    terms: [{name: dpo, kappa: 2500}, {name: sft, weight: 1000}]
    config: {steps: 2000, batch_size: 4, lr: 1.0e-5, save_every: 100}      # DPOConfig
    grid: {prompts: [a portrait], every: 100, steps: 20, seed: 0}          # optional: fixed-seed pictures
    stop: {winner_worse: 5}                           # optional: stop after 5 records in a row with d_w > 0

With `evaluate_every` in the config, the pairs whose split is "valid" are held out.

Run it again to go on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from PIL import Image

from labkit.diffusion import image_generators, sample, save_lora, to_pil
from labkit.dpo.config import DPOConfig
from labkit.dpo.pairs import load_pairs
from labkit.dpo.terms import terms_from
from labkit.dpo.trainer import DPOTrainer, Record
from labkit.files import write_atomically
from labkit.models import load_pipeline
from labkit.optim import rank

REQUIRED, OPTIONAL = ("pairs", "output", "terms"), ("pipeline", "config", "grid", "stop")


def read_config(path: str | Path) -> dict:
    """The configuration as a dict. Raises ValueError for keys that are missing or unknown."""
    content = yaml.safe_load(Path(path).read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no mapping: expected the keys {', '.join(REQUIRED)}")
    missing = [key for key in REQUIRED if key not in content]
    unknown = sorted(set(content) - {*REQUIRED, *OPTIONAL})
    known = {field.name for field in fields(DPOConfig)}
    unknown += sorted(f"config.{key}" for key in set(content.get("config", {})) - known)
    if missing or unknown:
        raise ValueError(f"{path}: missing {missing}, unknown {unknown}: see the top of labkit/dpo/train.py")
    if content.get("config", {}).get("sharded") and "grid" in content:
        raise ValueError(
            f"{path}: one process draws the grid, but with sharded each has a part of the model: leave out"
        )
    return content


def run(content: Mapping, device: torch.device | str = "cpu") -> list[Record]:
    """One run from a configuration (see the module); every process calls it. Returns the log."""
    options = {"tier": "cpu", **content.get("pipeline", {})}
    pipe = load_pipeline(options.pop("tier"), device, **options)
    recorded, config = load_pairs(content["pairs"]), DPOConfig(**content.get("config", {}))
    pairs = recorded.training()
    held_out = recorded.training("valid") if config.evaluate_every else None
    terms = terms_from(content["terms"], pairs.winner[0].numel())
    output = Path(content["output"])
    with DPOTrainer(pipe, pairs, config, terms, folder=output, held_out=held_out) as trainer:
        worse = winner_worse(content.get("stop", {}).get("winner_worse", 0))
        grid = content.get("grid")

        def after(record: Record) -> bool:
            if rank() == 0:
                print(" ".join(f"{key} {value:.4g}" for key, value in record.items()), flush=True)
                if grid and record["step"] % grid.get("every", config.log_every) == 0:
                    save_grid(pipe, grid, output / f"grid-{record['step']:06d}.png")
            return worse(record)

        log = trainer.run(after)
        if rank() == 0 and config.trainable == "lora":
            with trainer.averaged():
                save_lora(output / "adapter.safetensors", pipe, config.adapter)
        elif rank() == 0:
            for name, model in trainer.models.items():
                model.save_pretrained(str(output / name), safe_serialization=True)
    return log


def winner_worse(limit: int) -> Callable[[Record], bool]:
    """True once d_w was positive in `limit` records in a row (0: never): winners have become unlikelier."""
    row = 0

    def stop(record: Record) -> bool:
        nonlocal row
        row = row + 1 if record.get("d_w", 0.0) > 0 else 0
        return bool(limit) and row >= limit

    return stop


def save_grid(pipe, grid: Mapping, path: Path) -> None:
    """One picture per prompt in a row; prompts and seeds stay the same during a run."""
    prompts = list(grid["prompts"])
    generators = image_generators(len(prompts), grid.get("seed", 0))
    pictures = to_pil(sample(pipe, prompts, generators=generators, steps=grid.get("steps", 20)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * width, 0))
    write_atomically(path, lambda p: sheet.save(p, format="PNG"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.dpo.train", description="Diffusion-DPO from a YAML file")
    parser.add_argument("config", type=Path)
    arguments = parser.parse_args(argv)
    from accelerate import PartialState  # joins the other processes of `accelerate launch`

    state = PartialState()
    try:
        run(read_config(arguments.config), state.device)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"labkit.dpo.train: {error}", file=sys.stderr)
        return 1
    finally:
        state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
