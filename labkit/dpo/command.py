"""Train a LoRA on your own pairs of pictures: who won, against whom, for which prompt.

labkit dpo PAIRS --check                          reads the table and every picture, trains nothing
labkit dpo PAIRS --out runs/mine --model FOLDER   encodes, trains, saves, draws before and after, counts wins

PAIRS is a table (.csv, .tsv, .jsonl, .json, .parquet), the folder that holds it, or a folder with winner/ and loser/.
Columns: winner, loser, caption; or Pick-a-Pic's jpg_0, jpg_1, label_0, caption; or HPDv2's image_path,
human_preference or rank, prompt. Optional: margin, split (train, valid, test). Run it again to go on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, in_options
from labkit.files import read_text

JUDGES = ("portraits", "clip", "pickscore", "hpsv2.1", "imagereward", "aesthetic", "clip-iqa")
OPTIONS = {
    "value_range": "save it with 8 or 16 bits",
    "tier": "use --tier cpu, or --device cpu to run this tier slowly on the CPU",
    "folder": "give --model FOLDER",
    "precision": "use --set precision=bf16 or --set precision=fp32",
}
EXAMPLES = {"micro_batch": 2, "t_window": "[0, 1000]"}  # of the fields of DPOConfig whose default says too little


def add_parser(subparsers: Any) -> None:
    """Register `labkit dpo`."""
    parser = subparsers.add_parser(
        "dpo",
        help="train a LoRA on your own pairs of pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pairs", type=Path, help="table or folder of pairs")
    parser.add_argument("--out", type=Path, default=Path("dpo"), help="folder of the results (default: dpo)")
    parser.add_argument("--check", action="store_true", help="read the table and every picture, train nothing")
    parser.add_argument("--tier", choices=("cpu", "gpu"), default="gpu", help="whose pipeline (default: gpu, SD 1.5)")
    parser.add_argument("--model", type=Path, help="local folder of a Stable Diffusion or SDXL pipeline instead")
    parser.add_argument("--device", help="default: that of the tier")
    parser.add_argument(
        "--size", type=_size, action="append", metavar="WxH", help="repeat for several (default: native)"
    )
    parser.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help="of the prompts (default: 0.1)")
    parser.add_argument("--kappa", type=float, default=2500.0, help="strength of the reference (default: 2500)")
    parser.add_argument("--anchor", type=float, default=0.0, metavar="WEIGHT", help="of an SFT term on the winners")
    parser.add_argument("--start", type=Path, metavar="LORA", help="a LoRA file to go on with, with its own rank")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a field of DPOConfig: lr=1e-5"
    )
    parser.add_argument("--prompts", type=Path, help="text file, one prompt a line, for the pictures before and after")
    parser.add_argument("--pictures", type=int, default=16, metavar="N", help="pictures before and after (default: 16)")
    parser.add_argument("--judge", choices=JUDGES, help="who compares them (default: nobody; never who made the pairs)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """`labkit dpo`: 0 done, 1 `--check` found pictures that cannot be read, 2 something does not fit."""
    try:
        return check(args.pairs) if args.check else train(args)
    except (LabkitError, ValueError, OSError) as error:
        print(f"labkit dpo: {in_options(error, OPTIONS)}", file=sys.stderr)
        return 2


SHOWN = 20  # problems that are printed; the others are counted


def check(source: Path) -> int:
    """Say what a table holds, name what is wrong with it, row by row, and count what would teach nothing or both."""
    import hashlib
    from collections import Counter

    from labkit.dpo.folders import PairsError, find_pairs, read_picture
    from labkit.images import ImageError, read_levels

    problems: list[str] = []
    try:
        found = find_pairs(source, on_problem=lambda error: problems.append(str(error)))
    except PairsError:
        _tell(problems)
        raise
    prompts = Counter(pair.prompt for pair in found.pairs)
    print(f"{len(found)} pairs, {len(prompts)} prompts")
    if prompts[""]:
        print(f"{prompts['']} pairs have an empty caption: they train without a prompt")
    for reason, n in found.left_out.items():
        print(f"{n} {reason}, left out")
    shapes: Counter[str] = Counter()
    seen: Counter[tuple[str, str, str]] = Counter()
    equal = 0
    for pair in found.pairs:
        contents = []
        for picture in (pair.winner, pair.loser):
            try:
                levels = read_levels(read_picture(picture, pair.where), what=f"a picture of {pair.where}")
            except (ImageError, PairsError) as error:
                problems.append(str(error))
                continue
            shapes[f"{levels.shape[1]}x{levels.shape[0]}"] += 1
            contents.append(hashlib.sha256(str(levels.shape).encode() + levels.tobytes()).hexdigest())
        if len(contents) == 2:
            equal += contents[0] == contents[1]
            seen[pair.prompt, contents[0], contents[1]] += contents[0] != contents[1]
    further = f" and {len(shapes) - 5} more" if len(shapes) > 5 else ""
    print("sizes: " + ", ".join(f"{shape} ({n})" for shape, n in shapes.most_common(5)) + further)
    repeated = sum(n - 1 for n in seen.values() if n > 1)
    both = sum(1 for prompt, winner, loser in seen if winner < loser and seen[prompt, loser, winner])
    for n, what in (
        (equal, "have two equal pictures: they are left out of the training"),
        (repeated, "repeat another pair"),
        (both, "occur in both orders: they cancel each other, unless people really disagree"),
    ):
        if n:
            print(f"{n} pairs {what}")
    _tell(problems)
    return 1 if problems else 0


def _tell(problems: list[str]) -> None:
    """The first problems, one a line, on stderr."""
    for line in problems[:SHOWN]:
        print(f"labkit dpo: {in_options(line, OPTIONS)}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"labkit dpo: and {len(problems) - SHOWN} more", file=sys.stderr)


def train(args: argparse.Namespace) -> int:
    """Load the pipeline and run `align_own`."""
    from labkit.dpo.folders import find_pairs
    from labkit.dpo.own import align_own, default_config
    from labkit.models import load_pipeline

    found = find_pairs(args.pairs)  # whatever is wrong with the arguments is said before the weights are read
    changes = settings(args.set)
    if args.start is not None:
        changes = of_start(args.start) | changes
    prompts = None
    if args.prompts is not None:
        prompts = [line.strip() for line in read_text(args.prompts).splitlines() if line.strip()]
    pipe = load_pipeline(args.tier, args.device, folder=args.model)
    config = replace(default_config(pipe), **changes)
    report = align_own(
        pipe, found, args.out, config=config, kappa=args.kappa, anchor=args.anchor, sizes=args.size,
        held_out=args.held_out, prompts=prompts, pictures=args.pictures, start=args.start,
        judge=load_judge(args.judge, args.device), say=lambda line: print(line, flush=True),
    )  # fmt: skip
    print("\n".join(report.lines))
    print(f"pictures: {args.out / 'before_after.png'}")
    return 0


def of_start(path: Path) -> dict[str, Any]:
    """Rank, targets and model of a LoRA file, as fields of DPOConfig: a run that goes on with it needs the same.

    Raises:
        AdapterError: no such file, another layout, or several ranks.
    """
    from labkit.diffusion import AdapterError
    from labkit.diffusion.lora_adapters import ATTENTION_LINEARS
    from labkit.diffusion.lora_files import read_lora

    models, _ = read_lora(path)
    ranks = {len(value) for tensors in models.values() for key, value in tensors.items() if ".lora_A." in key}
    if len(ranks) != 1:
        raise AdapterError(f"{path} has {len(ranks)} ranks: a run has one")
    layers = {key.rpartition(".lora_")[0] for tensors in models.values() for key in tensors}
    attention = all(layer.endswith(tuple(f".{suffix}" for suffix in ATTENTION_LINEARS)) for layer in layers)
    both = set(models) == {"text_encoder", "text_encoder_2"}
    model = "text_encoders" if both else sorted(models)[-1]  # a U-Net with encoders is refused by the run
    return {"rank": ranks.pop(), "targets": "attention" if attention else "all", "model": model}


def settings(words: list[str]) -> dict[str, Any]:
    """NAME=VALUE words as fields of DPOConfig. Raises ValueError for unknown names."""
    import yaml

    from labkit.dpo.config import DPOConfig

    known, found = {field.name: field for field in fields(DPOConfig)}, {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in known or not equals:
            raise ValueError(f"--set {word}: expected NAME=VALUE with one of {', '.join(known)}")
        default = known[name].default
        try:
            read = float(value) if isinstance(default, float) else yaml.safe_load(value)  # YAML reads 1e-5 as text
        except (ValueError, yaml.YAMLError):
            read = None
        kinds = {"micro_batch": int, "t_window": list}.get(name, type(default))
        if type(read) is not kinds:
            raise ValueError(f"--set {word}: expected a value such as {name}={EXAMPLES.get(name, default)}")
        found[name] = read
    return found


def load_judge(name: str | None, device: str | None) -> Any:
    """The judge of that name, or None."""
    if name is None:
        return None
    if name in ("portraits", "clip"):
        from labkit.dpo.scorers import clip_scorer, faithfulness
        from labkit.models import load_clip

        return faithfulness(*load_clip("cpu")) if name == "portraits" else clip_scorer(*load_clip("gpu", device))
    from labkit.dpo.gpu_scorers import load_scorer

    return load_scorer(name, device or "cuda")


def _size(text: str) -> tuple[int, int]:
    """WxH in pixels -> (height, width)."""
    width, _, height = text.lower().partition("x")
    if not width.isdigit() or not height.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512x512")
    return int(height), int(width)
