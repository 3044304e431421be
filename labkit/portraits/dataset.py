"""Portrait data sets on disk: parquet shards of PNG bytes, specs and captions, written by several processes and
resumable.

The columns of a shard: `png` (bytes) and one string column per attribute. `dataset.json` beside the shards
records how the specs were
drawn; building again into the same folder with the same record goes on where it stopped, with another one it is an
error.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from labkit.files import write_atomically
from labkit.portraits.attributes import ATTRIBUTES
from labkit.portraits.render import check_size, render
from labkit.portraits.spec import PortraitSpec

SHARD = 1024


def _write_shard(path: Path, specs: Sequence[PortraitSpec], size: int) -> None:
    pngs = []
    for spec in specs:
        buffer = io.BytesIO()
        render(spec, size).save(buffer, format="PNG")
        pngs.append(buffer.getvalue())
    columns = {"png": pa.array(pngs, pa.binary())} | {a: pa.array([getattr(s, a) for s in specs]) for a in ATTRIBUTES}
    write_atomically(path, lambda p: pq.write_table(pa.table(columns), p, compression="none"))


def build_dataset(
    folder: str | Path,
    specs: Sequence[PortraitSpec],
    *,
    size: int = 64,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Render `specs` into `folder`; shards that are already there are kept.

    Raises:
        FileExistsError: the folder holds something else than this data set.
        ValueError: no specs, or a size that `render` does not take; nothing is written then.
    """
    folder = Path(folder)
    if not specs:
        raise ValueError("specs is empty: a data set needs at least one portrait")
    check_size(size)
    record = {"n": len(specs), "size": size, "first": specs[0].to_dict(), "last": specs[-1].to_dict(), "shard": SHARD}
    record_file = folder / "dataset.json"
    foreign = FileExistsError(
        f"{folder} is not empty and holds another data set: choose a new folder or delete this one"
    )
    if folder.exists() and any(folder.iterdir()):
        if not record_file.exists() or json.loads(record_file.read_text("utf-8")) != record:
            raise foreign
    jobs = []
    for start in range(0, len(specs), SHARD):
        path, part = folder / f"shard-{start // SHARD:05d}.parquet", specs[start : start + SHARD]
        if not path.exists():
            jobs.append((path, part))
        elif pq.read_table(path, columns=list(ATTRIBUTES)).to_pylist() != [spec.to_dict() for spec in part]:
            raise foreign  # same ends, other middle: drawn with other conditions
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(record_file, json.dumps(record, indent=1))
    if not jobs:
        return folder
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        futures = [pool.submit(_write_shard, path, part, size) for path, part in jobs]
        for future in tqdm(futures, desc="portraits", unit="shard", disable=not progress):
            future.result()
    return folder


def load_dataset(folder: str | Path, limit: int | None = None) -> tuple[np.ndarray, list[PortraitSpec]]:
    """Images as uint8 [N, H, W, 3] and their specs.

    Raises:
        FileNotFoundError: no shards in `folder`.
    """
    shards = sorted(Path(folder).glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"no portrait shards in {folder}: build them with `python -m labkit.training data`")
    images: list[np.ndarray] = []
    specs: list[PortraitSpec] = []
    for shard in shards:
        table = pq.read_table(shard).to_pydict()
        images.extend(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in table["png"])
        specs.extend(PortraitSpec(**{a: table[a][i] for a in ATTRIBUTES}) for i in range(len(table["png"])))
        if limit is not None and len(specs) >= limit:
            break
    return np.stack(images[:limit]), specs[:limit]
