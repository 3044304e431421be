"""Race the survey's families on Stable Diffusion: one budget, one published judge as reward, another one that watches.

labkit arena PROMPTS --reward pickscore --judge clip --out runs/arena --nfe 20000
labkit arena PROMPTS --contenders draft,dpo --seeds 0,1,2 --set k=2 --set lr=1e-4 --out runs/arena2
accelerate launch --num_processes 4 -m labkit.cli arena PROMPTS ...              entries shared out over processes
accelerate launch --num_processes 4 -m labkit.cli arena PROMPTS ... --together   processes train each entry together

PROMPTS is PartiPrompts.tsv, any .tsv or .csv with a column prompt, caption or text, or a text file with one prompt a
line. Some prompts are held out and judge; none trains. Entries that are in --out are not made again: run the command
once more to go on, or to see the table.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError

DEFAULT = "best_of_n,raft,ddpo,draft,dpo,nft"


def add_parser(subparsers: Any) -> None:
    """Register `labkit arena`."""
    from labkit.dpo.command import JUDGES

    parser = subparsers.add_parser(
        "arena",
        help="race the survey's families on Stable Diffusion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", type=Path, help="table or text file of prompts, for instance PartiPrompts.tsv")
    parser.add_argument("--out", type=Path, default=Path("arena"), help="folder of the entries (default: arena)")
    parser.add_argument("--contenders", default=DEFAULT, metavar="NAMES", help=f"default: {DEFAULT}")
    parser.add_argument("--seeds", default="0", metavar="NUMBERS", help="separated by commas (default: 0)")
    parser.add_argument("--nfe", type=float, default=20_000, help="budget of an entry (default: 20000)")
    parser.add_argument("--reward", choices=JUDGES, default="pickscore", help="what contenders climb")
    parser.add_argument("--judge", choices=JUDGES, action="append", default=[], help="who else looks (repeat)")
    parser.add_argument("--held-out", type=int, default=64, metavar="N", help="prompts that judge (default: 64)")
    parser.add_argument("--most", type=int, metavar="N", help="only so many prompts of the file")
    parser.add_argument("--tier", choices=("cpu", "gpu"), default="gpu", help="whose pipeline (default: gpu, SD 1.5)")
    parser.add_argument("--model", type=Path, help="local folder of a Stable Diffusion or SDXL pipeline instead")
    parser.add_argument("--device", help="default: the GPU of this process, or that of the tier")
    parser.add_argument("--together", action="store_true", help="under accelerate launch: train each entry together")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of ArenaSettings")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """`labkit arena`: 0 done, 2 something does not fit."""
    state = None
    if args.together:
        from accelerate import PartialState  # joins the other processes of `accelerate launch`

        state = PartialState(cpu=args.tier == "cpu")
    try:
        return race(args, state)
    except (LabkitError, ValueError, OSError) as error:
        print(f"labkit arena: {error}", file=sys.stderr)
        return 2
    finally:
        if state is not None:
            state.destroy_process_group()


def race(args: argparse.Namespace, state: Any) -> int:
    """Read what was asked for, load the models, make the missing entries, print the table."""
    from labkit.dpo.command import load_judge
    from labkit.models import load_pipeline
    from labkit.optim import rank
    from labkit.survey.sweep import PHOTOGRAPHS, Race, read_prompts, split_prompts, sweep, table

    prompts = read_prompts(args.prompts)[: args.most]
    train, test = split_prompts(prompts, args.held_out)
    seeds = numbers(args.seeds)
    settings = replace(PHOTOGRAPHS, **changes(args.set))
    device = args.device or own_device(args.tier) if state is None else str(state.device)
    pipe = load_pipeline(args.tier, device, folder=args.model)
    judges = {name: load_judge(name, device) for name in dict.fromkeys(args.judge) if name != args.reward}
    entered = Race(pipe, train, test, load_judge(args.reward, device), judges, args.nfe, settings, args.together)
    say = lambda line: print(line, flush=True)  # noqa: E731
    found = sweep(entered, [name for name in args.contenders.split(",") if name], seeds, args.out, say=say)
    if rank() == 0:
        print("\n".join(table(found)))
        if not judges:
            print("only the reward has judged: a gain by it alone proves nothing, add --judge")
    return 0


def own_device(tier: str) -> str | None:
    """The GPU of this process under `accelerate launch`; None leaves it to the tier."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if tier == "gpu" and local is not None else None


def numbers(text: str) -> list[int]:
    """Seeds separated by commas. Raises ValueError for anything else."""
    try:
        return list(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds {text}: expected whole numbers separated by commas") from None


def changes(words: list[str]) -> dict[str, Any]:
    """NAME=VALUE words as fields of ArenaSettings. Raises ValueError for unknown names and values of another kind."""
    import yaml

    from labkit.survey.policy import ArenaSettings

    known, found = {field.name: field for field in fields(ArenaSettings)}, {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in known or not equals:
            raise ValueError(f"--set {word}: expected NAME=VALUE with one of {', '.join(known)}")
        kind = type(known[name].default)
        try:
            found[name] = float(value) if kind is float else yaml.safe_load(value)  # YAML reads 1e-5 as text
        except ValueError:
            raise ValueError(f"--set {word}: {name} is a number") from None
        if not isinstance(found[name], kind):
            raise ValueError(f"--set {word}: {name} is {kind.__name__}")
    return found
