"""Teach a CLIP to read differences of your own pictures (PC-CLIP), and set an alarm on photographs of good parts.

labkit pcclip probe PICTURES --table labels.csv --clip FOLDER      what the frozen tower sees; nothing is trained
labkit pcclip train PICTURES --table labels.csv --clip FOLDER --out tuned
labkit pcclip train PICTURES --clip FOLDER --out tuned --endpoint http://localhost:11434/v1 --model llama3.2
labkit pcclip alarm GOOD --bad BAD --clip FOLDER --rate 0.02

The table has a column file_name; a column caption if there are captions; every other column is an attribute.
Without --clip it is the course's PortraitCLIP.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, in_options
from labkit.files import write_atomically

OPTIONS = {
    "value_range": "save it with 8 or 16 bits",
    "truncate": "give --truncate",
    "folder": "give --clip FOLDER",
}


def add_parser(subparsers: Any) -> None:
    """Register `labkit pcclip`."""
    parser = subparsers.add_parser(
        "pcclip",
        help="differences of your own pictures in words",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(title="steps", metavar="STEP", required=True)

    probe = steps.add_parser("probe", help="which attributes the frozen image tower sees")
    _pictures(probe)
    probe.set_defaults(func=_guarded(run_probe))

    train = steps.add_parser("train", help="probe, write sentences, train, save the model")
    _pictures(train)
    train.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the tuned model goes")
    train.add_argument("--preset", choices=("robust", "paper"), default="robust", help="see labkit.pairwise.config")
    train.add_argument("--steps", type=int, default=300)
    train.add_argument("--lr", type=float, help="learning rate (default: the preset's)")
    train.add_argument("--pairs", type=int, default=2000, help="pairs that are written about (default: 2000)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--endpoint", metavar="URL", help="a language model writes: http://host:port/v1")
    train.add_argument("--model", default="", help="its name there")
    train.add_argument("--time-limit", type=float, metavar="SECONDS", help="for all of its answers together")
    train.add_argument("--key-variable", metavar="NAME", help="environment variable that holds its API key")
    train.add_argument("--anyway", action="store_true", help="train although the tower sees no attribute")
    train.set_defaults(func=_guarded(run_train))

    alarm = steps.add_parser("alarm", help="threshold on good photographs, rates, and how many it takes")
    alarm.add_argument("good", type=Path, metavar="GOOD", help="folder of good parts")
    alarm.add_argument("--bad", type=Path, help="folder of defective parts")
    alarm.add_argument("--clip", type=Path, metavar="FOLDER")
    alarm.add_argument("--fit", choices=("clip", "crop", "squash"), default="clip")
    alarm.add_argument("--rate", type=float, default=0.02, help="share of false alarms (default: 0.02)")
    alarm.add_argument("--seed", type=int, default=0, help="of the draw that divides the good photographs (default: 0)")
    alarm.set_defaults(func=_guarded(run_alarm))


def _pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="folder of the pictures")
    parser.add_argument("--table", type=Path, help=".csv or .jsonl (default: metadata.csv of the folder)")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="a CLIP of transformers (default: PortraitCLIP)")
    parser.add_argument("--fit", choices=("clip", "crop", "squash"), default="clip", help="default: as CLIP does")
    parser.add_argument("--truncate", action="store_true", help="cut captions of which two do not fit into a sentence")


def _prepared(args: argparse.Namespace):
    """(clip, inputs, own pictures, unit embeddings [N, d])."""
    from labkit.models import load_clip
    from labkit.pairwise.own import cut_captions, read_pictures
    from labkit.pairwise.towers import cache_embeddings

    own = read_pictures(args.pictures, args.table)
    clip, inputs = load_clip("cpu", folder=args.clip)
    if args.truncate:
        own, cut = cut_captions(own, inputs)
        if cut:
            print(f"{cut} captions are cut, so that a sentence about two of them fits into {inputs.context} tokens")
    return clip, inputs, own, cache_embeddings(clip, inputs, inputs.pictures(own.folder, fit=args.fit))


def _probed(clip, inputs, own, images) -> tuple[bool, list[str]]:
    """Print what the tower sees; whether it sees anything, and the attributes that it sees."""
    from labkit.metrics import wilson_interval
    from labkit.pairwise.own import caption_visibility, visibility
    from labkit.pairwise.towers import TextTower
    from labkit.pairwise.train import PairwiseError
    from labkit.pairwise.writers import CAPTION

    told = sum(bool(row.get(CAPTION)) for row in own.values)
    if 0 < told < len(own):
        print(f"{len(own) - told} of {len(own)} pictures have no caption: no caption is used, write the others too")
    if not own.wording and own.captions is None:
        raise PairwiseError("nothing to ask: no attribute has two values, and not every picture has a caption")
    found = visibility(images, own.values, list(own.wording))
    print(f"{len(own)} pictures. What the frozen image tower sees, before any training:")
    for attribute, seen in found.items():
        print(f"  {attribute:20} {seen.verdict:9} {seen.accuracy:.2f} [{seen.low:.2f}, {seen.high:.2f}], "
              f"chance {seen.chance:.2f}, {seen.pictures} pictures")  # fmt: skip
    if found and all(seen.verdict == "too few" for seen in found.values()) and own.captions is None:
        raise PairwiseError("too few pictures to ask: every attribute needs 10, and 2 of each value")
    known = [attribute for attribute, seen in found.items() if seen.verdict == "seen"]
    if own.captions is None:
        return bool(known), known
    share, chance = caption_visibility(images, TextTower(clip, inputs)([text for text, _ in own.captions]))
    low, high = wilson_interval(round(share * len(own)), len(own))
    print(f"  own caption among ten {share:.2f} [{low:.2f}, {high:.2f}], chance {chance:.2f}")
    return low > chance or bool(known), known


def run_probe(args: argparse.Namespace) -> int:
    """`labkit pcclip probe`: 0 if the tower sees something, else 1."""
    if _probed(*_prepared(args))[0]:
        return 0
    print("the tower sees none of this: training the text tower cannot help, take a larger CLIP or closer photographs")
    return 1


def run_train(args: argparse.Namespace) -> int:
    """`labkit pcclip train`."""
    import torch

    from labkit.models.load import quiet
    from labkit.pairwise.config import preset
    from labkit.pairwise.endpoint import HttpWriter
    from labkit.pairwise.evaluate import mirrored_choice
    from labkit.pairwise.own import caption_pairs
    from labkit.pairwise.pairs import natural_pairs
    from labkit.pairwise.records import AnswerCache
    from labkit.pairwise.towers import TextTower
    from labkit.pairwise.train import PairwiseError, train_pairwise
    from labkit.pairwise.writers import CAPTION, TemplateWriter

    changes = {} if args.lr is None else {"lr": args.lr}
    preset(args.preset, steps=args.steps, **changes)  # what does not fit is said before anything is read or written
    if args.pairs < 1:
        raise PairwiseError(f"--pairs {args.pairs}: expected at least 1")
    if args.out.exists() and not args.out.is_dir():
        raise PairwiseError(f"--out {args.out} is a file: give the name of a folder")
    _refuse_foreign(args.out, args.clip)
    key = None if args.key_variable is None else os.environ.get(args.key_variable)
    if args.key_variable is not None and not key:
        raise PairwiseError(f"--key-variable {args.key_variable}: that environment variable is not set")
    clip, inputs, own, images = _prepared(args)
    anything, seen = _probed(clip, inputs, own, images)
    if not anything and not args.anyway:
        raise PairwiseError("the frozen tower sees none of this: training cannot help (--anyway trains nevertheless)")
    wording = {a: words for a, words in own.wording.items() if args.anyway or a in seen}
    generator = torch.Generator().manual_seed(args.seed)
    values = [{a: row.get(a, "") for a in wording} | {CAPTION: row.get(CAPTION, "")} for row in own.values]
    if wording:
        pairs = natural_pairs(values, args.pairs, wording, generator)
    else:
        pairs = caption_pairs(values, args.pairs, generator)
    if args.endpoint:
        cache = AnswerCache(args.out / "answers.jsonl")
        writer = HttpWriter(
            args.endpoint, args.model, wording, _describe, cache=cache, inputs=inputs,
            api_key=key, time_limit=args.time_limit,
        )  # fmt: skip
    else:
        writer = TemplateWriter(wording)
    written = writer(pairs, values)
    print(f"{written.report.accepted} of {written.report.asked} sentences accepted; rejected: "
          f"{dict(written.report.rejected) or 'none'}")  # fmt: skip
    if own.captions is None:
        print("without captions nothing is rehearsed: what CLIP knew may fade")
        changes["rehearsal"] = 0.0
    config = preset(args.preset, steps=args.steps, **changes)
    tuned, card = train_pairwise(
        clip, inputs, images, values, written.records, config,
        wording=wording, generator=generator, captions=own.captions,
    )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    with quiet():
        tuned.save_pretrained(args.out)
    inputs.tokenizer.save_pretrained(args.out)
    processor = {"image_mean": inputs.mean, "image_std": inputs.std, "size": {"shortest_edge": inputs.image_size},
                 "crop_size": {"height": inputs.image_size, "width": inputs.image_size}}  # fmt: skip
    write_atomically(args.out / "preprocessor_config.json", json.dumps(processor, indent=1) + "\n")
    write_atomically(args.out / "run.json", json.dumps(asdict(card), indent=1) + "\n")
    loss = f"{card.loss[0]:.3f} -> {card.loss[-1]:.3f}" if card.loss else "none"
    print(f"loss {loss}, weights moved by {card.drift:.2%}")
    if wording:
        asked = natural_pairs(values, min(500, args.pairs), wording, torch.Generator().manual_seed(args.seed + 1))
        rates = [
            float(mirrored_choice(TextTower(model, inputs), images, asked, wording).mean()) for model in (clip, tuned)
        ]
        print(f"right side of a sentence and its mirror: {rates[0]:.1%} -> {rates[1]:.1%} (chance 50%; own pictures)")
    print(f"wrote {args.out}")
    return 0


def _refuse_foreign(out: Path, clip: Path | None) -> None:
    """Raise a PairwiseError if the files of a run would replace somebody else's: the CLIP itself, another model."""
    from labkit.pairwise.train import PairwiseError

    if clip is not None and out.resolve() == Path(clip).resolve():
        raise PairwiseError(f"--out {out} is the folder of the CLIP that is trained: give another one")
    try:
        ours = {"loss", "drift"} <= set(json.loads((out / "run.json").read_text("utf-8-sig")))
    except (OSError, ValueError, TypeError):
        ours = False
    there = [name for name in ("run.json", "config.json", "model.safetensors") if (out / name).exists()]
    if there and not ours:
        raise PairwiseError(f"--out {out} holds a {there[0]} of something else: give another folder")


def _describe(values: Any) -> str:
    from labkit.pairwise.writers import CAPTION

    return values.get(CAPTION) or ", ".join(f"{a.replace('_', ' ')}: {v}" for a, v in values.items() if v)


def run_alarm(args: argparse.Namespace) -> int:
    """`labkit pcclip alarm`: 0 if there are enough good photographs, else 1."""
    import torch

    from labkit.images import read_folder
    from labkit.models import load_clip
    from labkit.pairwise.inspection import alarm_report, embedding_distance
    from labkit.pairwise.towers import cache_embeddings

    clip, inputs = load_clip("cpu", folder=args.clip)

    def embed(folder: Path) -> torch.Tensor:
        return cache_embeddings(clip, inputs, inputs.pictures(read_folder(folder), fit=args.fit))

    good = embed(args.good)
    bad = embed(args.bad) if args.bad else good[:0]
    if len(good) < 3:
        raise ValueError(f"{len(good)} good photographs: at least 3 are needed, for reference, threshold and counting")
    # one part is the reference, one sets the threshold, one is counted; file names may be in the order of a shift
    good, third = good[torch.randperm(len(good), generator=torch.Generator().manual_seed(args.seed))], len(good) // 3
    reference = good[:third].mean(dim=0)
    scores = [embedding_distance(x, reference) for x in (good[third : 2 * third], good[2 * third :], bad)]
    report = alarm_report(calibration=scores[0], good=scores[1], bad=scores[2], rate=args.rate)
    print(f"threshold {report.threshold:.4g}, set on {report.set_on} good photographs")
    for name, share, n in (("false alarms", report.false_alarms, report.good), ("missed", report.missed, report.bad)):
        if share:
            print(f"  {name:13} {share[0]:.1%} [{share[1]:.1%}, {share[2]:.1%}] of {n}")
    print(
        f"for at most {report.rate:.1%} false alarms with 95% confidence: {report.needed} good photographs to set it on"
    )
    if not report.enough:
        print(f"{3 * report.needed - len(good)} more are needed: a third each is reference, threshold and count")
    return 0 if report.enough else 1


def _guarded(step: Any) -> Any:
    """The step, with labkit's own errors and wrong values as one line and exit code 2."""

    def run(args: argparse.Namespace) -> int:
        try:
            return step(args)
        except (LabkitError, ValueError, OSError) as error:
            print(f"labkit pcclip: {in_options(error, OPTIONS)}", file=sys.stderr)
            return 2

    return run
