"""More pairs than one pool holds in memory: slices of the prompts, shared out over processes, of which pairs remain.

    make_slices(pipe, prompts, 8, "pairs", scorers=[judge], seed=0)     # every process of accelerate launch calls it
    pairs = read_slices("pairs")                                        # latents stay on disk

A slice is the unit of work and of a restart: its candidates live in memory only, its best and worst ones are written to
one file. A slice has a seed of its own, so the pairs are the same for any number of processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from labkit.checkpoint import CheckpointError
from labkit.dpo.data import PreferencePairs, fingerprints
from labkit.dpo.pairs import best_vs_worst
from labkit.dpo.pool import build_pool
from labkit.dpo.scorers import Scorer
from labkit.dpo.shards import Shards
from labkit.files import write_atomically, write_tensors
from labkit.optim import rank, world_size

RECORD = "slices.json"


def make_slices(
    pipe,
    prompts: Sequence[str],
    n: int,
    folder: str | Path,
    *,
    scorers: Sequence[Scorer],
    seed: int,
    size: int = 256,
    **options,
) -> None:
    """Best against worst of n candidates for each prompt, as the scorers' vote has them; ties are left out.

    Process r of w makes slices r, r + w, ... of `size` prompts and waits for the others; what is there is not made
    again. options: of `build_pool` (steps, guidance_scale, batch_size).

    Raises:
        FileExistsError: the folder holds slices of other prompts, models or settings.
    """  # fmt: skip
    folder, prompts = Path(folder), [str(p) for p in prompts]
    record = {
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "count": -(-len(prompts) // size),
        "scorers": [s.name for s in scorers],
        **{"n": n, "seed": seed, "size": size, "options": options, "hashes": fingerprints(pipe)},
    }
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).exists():
            write_atomically(folder / RECORD, json.dumps(record, indent=1))
    _wait()
    stored = json.loads((folder / RECORD).read_text("utf-8"))
    if odd := sorted(k for k in {*stored, *record} if stored.get(k) != record.get(k)):
        raise FileExistsError(f"{folder} holds other slices ({', '.join(odd)} differ): choose a new folder")
    for number in range(rank(), record["count"], world_size()):
        path = folder / f"slice-{number:06d}.safetensors"
        if path.exists():
            continue
        own = prompts[number * size : (number + 1) * size]
        pool = build_pool(pipe, own, n, scorers=scorers, seed=seed * 1_000_003 + number, **options)
        pairs = best_vs_worst(pool).training(None)
        tensors = {"winner": pairs.winner.contiguous(), "loser": pairs.loser.contiguous(), "margin": pairs.margin}
        write_tensors(path, tensors, {"prompts": json.dumps(list(pairs.prompts))})
    _wait()


def read_slices(folder: str | Path) -> PreferencePairs:
    """All pairs of a folder of slices, in their order; the latents stay on disk.

    Raises:
        FileNotFoundError: slices are missing (make them), or there are none.
        CheckpointError: a file is damaged.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder} holds no slices: make_slices writes {RECORD}")
    record = json.loads((folder / RECORD).read_text("utf-8"))
    files = [folder / f"slice-{number:06d}.safetensors" for number in range(record["count"])]
    if missing := [path.name for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} slices (first: {missing[0]}): call make_slices again")
    prompts, margins = [], []
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                prompts += json.loads(file.metadata()["prompts"])
                margins.append(file.get_tensor("margin"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): delete it and call make_slices again") from error
    winner, loser = Shards(files, "winner"), Shards(files, "loser")
    return PreferencePairs(tuple(prompts), winner, loser, torch.cat(margins), record["hashes"])


def _wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()
