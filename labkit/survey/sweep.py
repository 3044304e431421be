"""The race on photographs: every contender and seed is one entry in a folder, judged by who did not train it.

    labkit arena PROMPTS --out runs/arena                                    one process
    accelerate launch --num_processes 4 -m labkit.cli arena PROMPTS ...      entries are shared out, one GPU each
    accelerate launch --num_processes 4 -m labkit.cli arena ... --together   all processes train every entry

An entry is two files, NAME-SEED.json (costs, log, scores by prompt) and NAME-SEED.png (the first held-out prompts).
What is there is not made again; trained contenders go on from their checkpoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from labkit.diffusion import decode_latents, to_pil
from labkit.dpo.scorers import Scorer
from labkit.errors import LabkitError
from labkit.files import read_text, write_atomically
from labkit.optim import rank, world_size
from labkit.survey.arena import CONTENDERS, METHODS, Entry, enter
from labkit.survey.policy import ArenaSettings, precision, rewarded
from labkit.tables import read_columns

PHOTOGRAPHS = ArenaSettings(steps=20, guidance_scale=5.0, lr=3e-4, rank=8, prompts=4, group=8, kappa=2500.0)
COLUMNS = ("prompt", "caption", "text")  # of a table, in any case: PartiPrompts has Prompt


class SweepError(LabkitError, ValueError):
    """Prompts, a folder or names that do not fit; one line with the cure."""


def read_prompts(path: Path) -> list[str]:
    """Distinct prompts of a .tsv or .csv with a column prompt, caption or text, or of a text file with one a line.

    Raises:
        SweepError: no such column, or nothing in it.
    """
    if path.suffix.lower() in (".tsv", ".csv"):
        names, rows = read_columns(path, error=SweepError)
        column = next((wanted for wanted in COLUMNS if wanted in names), None)
        if column is None:
            raise SweepError(f"{path} has columns {', '.join(names) or 'none'}: expected one of {', '.join(COLUMNS)}")
        lines = [" ".join(row[column].split()) for _, row in rows]
    else:
        lines = read_text(path).splitlines()
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise SweepError(f"{path} holds no prompts")
    return found


def split_prompts(prompts: Sequence[str], held_out: int) -> tuple[list[str], list[str]]:
    """(to train on, held out): a shuffle that is always the same.

    Raises:
        SweepError: no prompt would be left to train on.
    """
    if not 1 <= held_out < len(prompts):
        raise SweepError(f"{held_out} of {len(prompts)} prompts cannot be held out: expected 1 .. {len(prompts) - 1}")
    order = np.random.default_rng(8).permutation(len(prompts))
    chosen = [prompts[i] for i in order]
    return chosen[held_out:], chosen[:held_out]


@dataclass(frozen=True)
class Race:
    """What all entries share.

    reward: what contenders are told, differentiable if the judge is; judges: who else looks, by name.
    train, test: prompts. nfe: budget of each entry. together: all processes train one entry.
    """

    pipe: object
    train: list[str]
    test: list[str]
    reward: Scorer
    judges: Mapping[str, Scorer]
    nfe: float
    settings: ArenaSettings = PHOTOGRAPHS
    together: bool = False

    def identity(self) -> dict[str, object]:
        """What must be the same for entries to be compared."""
        prompts = {"train": self.train, "test": self.test}
        judged = {"reward": self.reward.name, "judges": {name: one.name for name, one in self.judges.items()}}
        trained_by = {"processes": world_size() if self.together else 1}
        return {**prompts, **judged, "nfe": self.nfe, "settings": asdict(self.settings), **trained_by}


def gradient_of(judge: Scorer) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """A judge as a reward: called as it is, gradients flow where its own function lets them."""
    return lambda images, prompts: judge.function(images, prompts)


def sweep(
    race: Race, names: Sequence[str], seeds: Sequence[int], out: Path, *, say: Callable[[str], object] = print
) -> list[dict]:
    """Make the entries that are missing, this process's share of them; returns all that are there, best first.

    The base runs for every seed: gains are those over it, with the same noise.

    Raises:
        SweepError: an unknown contender, one that processes cannot train together, entries of another race.
        BudgetError: the budget does not pay for one update of a contender.
    """
    if unknown := sorted(set(names) - set(CONTENDERS)):
        raise SweepError(f"no contender {unknown[0]!r}: expected some of {', '.join(CONTENDERS)}")
    if race.together and (alone := sorted(set(names) - set(METHODS) - {"base"})):
        raise SweepError(f"{alone[0]} is not trained by processes together: expected some of {', '.join(METHODS)}")
    wanted = [(name, seed) for seed in seeds for name in dict.fromkeys(("base", *names))]
    identity = json.loads(json.dumps(race.identity()))
    known = read_entries(out)
    if changed := sorted({key for one in known for key in identity if one["race"].get(key) != identity[key]}):
        raise SweepError(f"{out} holds entries of another race ({', '.join(changed)} differ): choose a new folder")
    there = {(one["name"], one["seed"]) for one in known}
    todo = [entry for entry in wanted if entry not in there]
    process, processes = (0, 1) if race.together else launched()
    for name, seed in todo[process::processes]:
        made, pictures = run_entry(race, name, seed, out / "checkpoints" / f"{name}-{seed}")
        if rank() == 0:
            write_atomically(out / f"{name}-{seed}.png", lambda p, row=pictures: row.save(p, format="PNG"))
            text = json.dumps({**made, "race": identity}, indent=1, ensure_ascii=False)
            write_atomically(out / f"{name}-{seed}.json", text + "\n")
            say(f"{name}, seed {seed}: reward {np.mean(made['scores']['reward']):.3f}, {made['nfe']:.0f} NFE")
    return ranked(read_entries(out))


def launched() -> tuple[int, int]:
    """Number of this process and how many `accelerate launch` (or torchrun) started; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def run_entry(race: Race, name: str, seed: int, folder: Path) -> tuple[dict, Image.Image]:
    """One contender: its record, and the pictures of the first held-out prompts in a row."""
    entry: Entry = enter(
        name, race.pipe, race.train, gradient_of(race.reward), nfe=race.nfe, seed=seed, delivered=len(race.test),
        settings=race.settings, folder=folder, save_every=10,
    )  # fmt: skip
    latents = entry.deliver(race.test, 1000 + seed)
    with torch.no_grad(), precision(race.pipe, race.settings):
        images = torch.cat([decode_latents(race.pipe, part).float().clamp(-1, 1).cpu() for part in latents.split(8)])
    scores = {"reward": by_prompt(race.reward, images, race.test)}
    scores |= {judge: by_prompt(one, images, race.test) for judge, one in race.judges.items()}
    asked = entry.queries + entry.ledger.counts.reward_rows
    costs = {"nfe": entry.training, "per_image": entry.per_image, "queries": asked, "seen": entry.seen}
    row = to_pil(images[:6])
    sheet = Image.new("RGB", (sum(p.width for p in row), row[0].height))
    for i, picture in enumerate(row):
        sheet.paste(picture, (i * row[0].width, 0))
    return {"name": name, "seed": seed, **costs, "scores": scores, "log": entry.log}, sheet


def by_prompt(judge: Scorer, images: Tensor, prompts: Sequence[str]) -> list[float]:
    """A judge's score of every picture."""
    parts = [rewarded(judge, images[i : i + 8], prompts[i : i + 8]) for i in range(0, len(prompts), 8)]
    return [round(float(x), 6) for x in torch.cat(parts)]


def read_entries(out: Path) -> list[dict]:
    """The entries in a folder, in order of their names.

    Raises:
        SweepError: a file that cannot be read.
    """
    found = []
    for path in sorted(out.glob("*-*.json")):
        try:
            one = json.loads(path.read_text("utf-8"))
            found.append({key: one[key] for key in (*FIELDS, "race")})
        except (ValueError, KeyError, TypeError) as error:
            raise SweepError(f"{path} cannot be read ({error}): delete it, and it is made again") from None
    return found


FIELDS = ("name", "seed", "nfe", "per_image", "queries", "seen", "scores", "log")


def ranked(entries: Sequence[dict]) -> list[dict]:
    """Entries with "gain" (judge -> mean over the base of the same seed) and "wins" (share of prompts, ties half), by
    the gain of the first judge beside the reward, of the reward if there is none."""
    base = {one["seed"]: one["scores"] for one in entries if one["name"] == "base"}
    found = []
    for one in entries:
        against = base.get(one["seed"])
        if against is None:
            continue
        gap = {k: np.array(v) - np.array(against[k]) for k, v in one["scores"].items()}
        gain = {k: float(v.mean()) for k, v in gap.items()}
        wins = {k: float(np.mean((v > 0) + 0.5 * (v == 0))) for k, v in gap.items()}
        found.append({**one, "gain": gain, "wins": wins})
    return sorted(found, key=lambda one: -list(one["gain"].values())[min(1, len(one["gain"]) - 1)])


def table(entries: Sequence[dict]) -> list[str]:
    """The ranking as lines of text."""
    if not entries:
        return ["no entries beside a base yet"]
    judges = list(entries[0]["gain"])
    lines = [f"{'contender':<12} {'seed':>4} {'NFE':>8} {'a picture':>9} {'queries':>8}  gain over the base (wins)"]
    for one in entries:
        told = ", ".join(f"{k} {one['gain'][k]:+.3f} ({one['wins'][k]:.0%})" for k in judges)
        costs = f"{one['nfe']:>8.0f} {one['per_image']:>9.1f} {one['queries']:>8.0f}"
        lines.append(f"{one['name']:<12} {one['seed']:>4} {costs}  {told}")
    return lines
