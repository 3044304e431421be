"""The record of a preference: which image won, by whose judgement, and where both came from.

On disk a folder with `pairs.parquet`, one row per pair with the columns of COLUMNS, and `latents.safetensors` with one
tensor "latents" [M, C, h, w] that `winner` and `loser` index, so that an image shared by several pairs is stored once.
Hashes of the models that made the latents are in the parquet file's metadata. What trains is `PairSet.training()`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit.dpo.data import PreferencePairs
from labkit.dpo.pool import Pool, agreement, best_and_worst, check_scores, consensus
from labkit.files import write_atomically

_VOTE = pa.struct([("id", pa.string()), ("choice", pa.string()), ("left", pa.string()), ("ms", pa.int64())])
COLUMNS = pa.schema(
    [
        ("pair_id", pa.string()),  # stage and prompt number, unique in the set
        ("prompt", pa.string()),
        ("prompt_id", pa.int64()),  # number of the prompt in its pool
        ("winner", pa.int64()),  # row of latents.safetensors
        ("loser", pa.int64()),
        ("score_w", pa.float64()),  # null where no scorer chose (hard stage, human votes)
        ("score_l", pa.float64()),
        ("margin", pa.float64()),
        ("scorer", pa.string()),  # name and version
        ("agreement", pa.float64()),  # share of the judges who prefer the winner
        ("source_w", pa.string()),  # "candidate 3", "render", "sdrecon t=400", ...
        ("source_l", pa.string()),
        ("stage", pa.string()),
        ("tie", pa.bool_()),  # kept for statistics, never trains
        ("votes", pa.list_(_VOTE)),  # people: who, winner | loser | tie, which of the two stood left, milliseconds
        ("split", pa.string()),  # train | valid | test
    ]
)


@dataclass(frozen=True)
class PairSet:
    """n recorded pairs. rows: dicts with the keys of COLUMNS. latents: [M, C, h, w] as the U-Net sees them.

    hashes: see `labkit.dpo.fingerprints`. Raises ValueError for unknown columns and rows of latents that do not exist.
    """

    rows: tuple[dict, ...]
    latents: Tensor
    hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if set(row) != set(COLUMNS.names):
                odd = sorted(set(row) ^ set(COLUMNS.names))
                raise ValueError(f"pair {row.get('pair_id')!r} has missing or unknown columns {odd}: see make_row")
            missing = [row[k] for k in ("winner", "loser") if not 0 <= row[k] < len(self.latents)]
            if missing:
                raise ValueError(
                    f"pair {row['pair_id']!r} needs latents {missing} but {len(self.latents)} are stored: build again"
                )
        if len({row["pair_id"] for row in self.rows}) != len(self.rows):
            raise ValueError("pair_id is not unique: two stages or pools were mixed, rename one")

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list:
        """One column of all pairs."""
        return [row[name] for row in self.rows]

    def training(self, split: str | None = "train") -> PreferencePairs:
        """What trains: the pairs of a split (None: all) that are no ties. Raises ValueError if none is left."""
        rows = [r for r in self.rows if not r["tie"] and split in (None, r["split"])]
        margins = [r["margin"] for r in rows]
        return PreferencePairs(
            prompts=tuple(r["prompt"] for r in rows),
            winner=self.latents[[r["winner"] for r in rows]],
            loser=self.latents[[r["loser"] for r in rows]],
            margin=None if None in margins or not rows else torch.tensor(margins, dtype=torch.float32),
            hashes=self.hashes,
        )

    def save(self, folder: str | Path) -> Path:
        """Write both files, each renamed into place: a full disk leaves the old ones untouched."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        schema = COLUMNS.with_metadata({"hashes": json.dumps(dict(self.hashes)), "version": "1"})
        table = pa.Table.from_pylist(list(self.rows), schema=schema)
        latents = {"latents": self.latents.detach().cpu().contiguous()}
        write_atomically(folder / "latents.safetensors", lambda p: save_file(latents, str(p)))
        write_atomically(folder / "pairs.parquet", lambda p: pq.write_table(table, p))
        return folder


def load_pairs(folder: str | Path) -> PairSet:
    """Read a folder written by `PairSet.save`. Raises FileNotFoundError if a file is missing, ValueError if damaged."""
    folder = Path(folder)
    for name in ("pairs.parquet", "latents.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: a pair set is both files, copy or build it again")
    try:
        table = pq.read_table(folder / "pairs.parquet")
        latents = load_file(folder / "latents.safetensors")["latents"].float()
    except Exception as error:
        raise ValueError(f"{folder} is damaged ({type(error).__name__}): copy or build it again") from error
    hashes = json.loads((table.schema.metadata or {}).get(b"hashes", b"{}"))
    return PairSet(tuple(table.to_pylist()), latents, hashes)


def make_row(pair_id: str, prompt: str, prompt_id: int, winner: int, loser: int, **columns) -> dict:
    """One row with every column: those not given are null, tie False, split "train"."""
    row = dict.fromkeys(COLUMNS.names) | {"tie": False, "votes": [], "split": "train"}
    row |= {"pair_id": pair_id, "prompt": prompt, "prompt_id": prompt_id, "winner": winner, "loser": loser}
    unknown = sorted(set(columns) - set(COLUMNS.names))
    if unknown:
        raise ValueError(f"unknown columns {unknown}: expected some of {', '.join(COLUMNS.names)}")
    return row | columns


def best_vs_worst(
    pool: Pool,
    scorers: str | Sequence[str] | None = None,
    *,
    min_margin: float = 0.0,
    min_agreement: float = 0.0,
    stage: str = "easy",
) -> PairSet:
    """The highest against the lowest scored candidate of every prompt.

    scorers        one name: its scores decide. Several, or None for all of the pool's: they vote (`consensus`).
    min_margin     gaps up to this count as ties. min_agreement: share of the judges who must prefer the winner.

    Every prompt gets a row; ties keep theirs for the statistics and never train.
    """
    names = [scorers] if isinstance(scorers, str) else list(scorers or pool.scores)
    unknown = [name for name in names if name not in pool.scores]
    if unknown:
        raise ValueError(f"the pool has no scores by {unknown}: it has {list(pool.scores)}")
    if min_margin < 0:
        raise ValueError(f"min_margin is {min_margin}, expected 0 or more")
    judged = {name: pool.scores[name] for name in names}
    scores = judged[names[0]] if len(names) == 1 else consensus(judged)
    check_scores(scores)
    best, worst = best_and_worst(scores)
    agreed = agreement(judged, best, worst)
    rows, latents = [], []
    for p, prompt in enumerate(pool.prompts):
        w, lo = int(best[p]), int(worst[p])
        gap = float(scores[p, w] - scores[p, lo])
        rows.append(
            make_row(
                f"{stage}-{p:06d}",
                prompt,
                p,
                2 * p,
                2 * p + 1,
                score_w=float(scores[p, w]),
                score_l=float(scores[p, lo]),
                margin=gap,
                scorer=names[0] if len(names) == 1 else "vote of " + ", ".join(names),
                agreement=float(agreed[p]),
                source_w=f"candidate {w}",
                source_l=f"candidate {lo}",
                stage=stage,
                tie=not (gap > min_margin and float(agreed[p]) >= min_agreement),
            )
        )
        latents += [pool.latents[p, w], pool.latents[p, lo]]
    return PairSet(tuple(rows), torch.stack(latents), dict(pool.record.get("hashes", {})))


def channel_gap(pairs: PreferencePairs) -> Tensor:
    """Mean latent of the winners minus that of the losers, per channel [C], in units of the latents.

    What HG-DPO found behind its colour shift: the judge's taste in colour, visible before any training.
    """
    return (pairs.winner.mean((2, 3)) - pairs.loser.mean((2, 3))).mean(0)
