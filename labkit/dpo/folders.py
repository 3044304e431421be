"""Pairs of pictures that somebody else collected: a table, or two folders, -> who won, against whom, for which prompt.

    winner, loser (or chosen/rejected, preferred/dispreferred), caption or prompt    a row is a pair
    jpg_0, jpg_1, label_0, caption                                                   Pick-a-Pic; 0.5 is a tie
    image_path [..], human_preference [..] or rank [..], prompt                      HPDv2; best against worst
    winner/NAME.png, loser/NAME.png, NAME.txt beside the winner                      no table: two folders

Tables are .csv, .tsv, .jsonl, .json (a list) or .parquet, also several shards of one kind; pictures are paths (from the
table's folder) or the bytes of a file, as Hugging Face's datasets store them; those inside parquet files stay there
until they are wanted. Ties and rows without a label never train; they are counted. Optional columns: margin (a score
gap > 0), split (train, valid or test).
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from labkit.errors import LabkitError
from labkit.files import read_text

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
WINNERS = ("winner", "chosen", "preferred", "image_w", "win")
LOSERS = ("loser", "rejected", "dispreferred", "image_l", "lose")
PROMPTS = ("caption", "prompt", "text")
LISTS = ("image_path", "file_path", "images")
HELD_OUT = ("valid", "validation", "val", "dev", "eval", "test", "held_out")
TRAIN = ("", "train", "training", "none", "nan")


class PairsError(LabkitError, ValueError):
    """A table or folder of pairs that cannot be read; one line that names the file and the row."""


@dataclass(frozen=True)
class Cell:
    """A picture inside a parquet file; `read_picture` reads it, one row group in memory at a time.

    columns: all columns of the file that hold pictures; they are read together. stamp: size and time of the file.
    """

    table: Path
    stamp: tuple[int, int]
    columns: tuple[str, ...]
    column: str
    group: int
    row: int


Picture = Path | bytes | Cell


@dataclass(frozen=True)
class FoundPair:
    """One preference. winner, loser: a picture, see `read_picture`. where: table and row."""

    prompt: str
    winner: Picture
    loser: Picture
    margin: float | None
    held_out: bool
    where: str


@dataclass(frozen=True)
class FoundPairs:
    """What a table or folder holds. left_out: reason -> number of rows that are no pairs (ties, no label)."""

    pairs: tuple[FoundPair, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)


def read_picture(picture: Picture, where: str) -> Path | bytes:
    """A picture of a pair as `labkit.images.read_levels` takes it: a path, or the bytes of a file.

    Raises:
        PairsError: an empty cell, or a parquet file that has changed.
    """
    if not isinstance(picture, Cell):
        return picture
    try:
        value = _row_group(picture.table, picture.stamp, picture.group, picture.columns)[picture.column][picture.row]
    except Exception as error:  # noqa: BLE001 - whatever the parser raises, the file is named
        raise PairsError(f"{where} cannot be read any more ({type(error).__name__}: {error}): run again") from error
    return _picture(value.as_py(), picture.table.parent, where)


def find_pairs(source: str | Path, *, on_problem: Callable[[PairsError], object] | None = None) -> FoundPairs:
    """Read a table of pairs, a folder with one (or shards of one), or a folder with `winner` and `loser`.

    Args:
        on_problem: called with what is wrong with a row, which is then passed over; None: the first one is raised.

    Raises:
        PairsError: nothing there, several kinds of tables, columns or cells that are missing, pictures that do not
            exist, no pair that is left.
    """
    source = Path(source)
    if not source.exists():
        raise PairsError(f"{source} does not exist: give a table of pairs or the folder that holds it")
    if source.is_file():
        tables, root = [source], source.parent
    else:
        tables, root = _tables(source), source
    left_out: Counter[str] = Counter()
    problems: list[PairsError] = []

    def note(error: PairsError) -> None:
        problems.append(error)
        on_problem(error)

    if tables:
        told = None if on_problem is None else note
        pairs = [pair for table in tables for pair in _pairs_of(table, root, left_out, told)]
    else:
        pairs = list(_two_folders(root))
    if not pairs:
        reason = _counts(left_out) or (f"none of {len(problems)} rows can be used" if problems else "it is empty")
        raise PairsError(f"{source} has no pair that could train ({reason})")
    return FoundPairs(tuple(pairs), dict(left_out))


def _counts(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in left_out.items())


def _tables(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    kinds = sorted({p.suffix.lower() for p in found})
    if len(kinds) > 1:
        raise PairsError(f"{folder} holds tables of several kinds ({', '.join(kinds)}): give the one that is meant")
    if len(found) > 1 and kinds != [".parquet"]:
        raise PairsError(f"{folder} holds {len(found)} tables ({found[0].name}, ...): give the one that is meant")
    return found


def _rows(table: Path) -> Iterator[tuple[int, dict]]:
    """(row number from 1, row) of a table."""
    kind = table.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            with table.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
                head = file.readline()
                file.seek(0)
                mark = "\t" if kind == ".tsv" else max(",;\t", key=head.count)  # Excel's depends on the country
                rows = csv.DictReader(file, delimiter=mark, strict=True)
                names = Counter(name.strip().lower() for name in rows.fieldnames or () if name.strip())
                if twice := [name for name, times in names.items() if times > 1]:
                    raise PairsError(f"{table} has the column {twice[0]} twice: keep one")
                yield from enumerate(rows, 1)
        elif kind == ".jsonl":
            with table.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        try:
                            yield number, json.loads(line)
                        except ValueError:
                            raise PairsError(f"{table}, row {number} is no JSON: mend or delete that line") from None
        elif kind == ".json":
            content = json.loads(table.read_text("utf-8-sig"))
            if not isinstance(content, list):
                raise PairsError(f"{table} holds no list: expected one entry per pair")
            yield from enumerate(content, 1)
        elif kind == ".parquet":
            yield from _parquet_rows(table)
        else:
            raise PairsError(f"{table} is no table of pairs: expected {', '.join(SUFFIXES)}")
    except PairsError:
        raise
    except UnicodeDecodeError as error:
        raise PairsError(f'{table} is not in UTF-8: save it as "CSV UTF-8" (Excel), or convert it') from error
    except Exception as error:  # noqa: BLE001 - whatever the parser raises, the file is named
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise PairsError(f"{table} cannot be read ({reason}): copy or export it again") from error


def _parquet_rows(table: Path) -> Iterator[tuple[int, dict]]:
    """(row number, row); columns that hold the bytes of pictures are not read, a `Cell` stands in for each."""
    import pyarrow.parquet as pq

    info = table.stat()
    with pq.ParquetFile(table) as file:
        schema, number = file.schema_arrow, 0
        held = tuple(column.name for column in schema if _holds_bytes(column.type))
        others = [name for name in schema.names if name not in held]
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            rows = file.read_row_group(group, columns=others).to_pylist() if others else [{} for _ in range(count)]
            for i, row in enumerate(rows):
                number += 1
                stamp = info.st_size, info.st_mtime_ns
                yield number, row | {name: Cell(table, stamp, held, name, group, i) for name in held}


def _holds_bytes(kind) -> bool:
    """Whether a column's type is that of a file's bytes, plain or as Hugging Face's Image feature."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields) if kind.field(i).name == "bytes")
    return types.is_binary(kind) or types.is_large_binary(kind)


@lru_cache(maxsize=1)
def _row_group(table: Path, stamp: tuple[int, int], group: int, columns: tuple[str, ...]):
    """The pictures of a row group; pairs are read in order, so one is enough."""
    import pyarrow.parquet as pq

    info = table.stat()
    if (info.st_size, info.st_mtime_ns) != stamp:
        raise PairsError(f"{table} has changed")
    with pq.ParquetFile(table) as file:
        return file.read_row_group(group, columns=list(columns))


def _pairs_of(
    table: Path, root: Path, left_out: Counter[str], on_problem: Callable[[PairsError], object] | None
) -> Iterator[FoundPair]:
    for number, row in _rows(table):
        try:
            found = _pair_of(row, root, f"{table}, row {number}")
        except PairsError as error:
            if on_problem is None:
                raise
            on_problem(error)
            continue
        if isinstance(found, str):
            left_out[found] += 1
        else:
            yield found


def _pair_of(row: object, root: Path, where: str) -> FoundPair | str:
    """The pair of a row, or why it is none."""
    if not isinstance(row, dict):
        raise PairsError(f"{where} is no record: expected columns with names")
    if any(cell.strip() for cell in row.get(None, ())):  # where csv puts cells beyond the header's
        raise PairsError(f"{where} has more cells than the header: put quotes around a caption that has a comma")
    row = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
    order = _order(row, where)
    if isinstance(order, str):
        return order
    winner, loser = (_picture(value, root, where) for value in order)
    prompt = _first(row, PROMPTS)
    if prompt is None or prompt != prompt:  # NaN is an empty cell
        known = ", ".join(sorted(row))
        raise PairsError(f'{where} has no caption (columns: {known}): write one, or "" in every row for none')
    if not isinstance(prompt, str):
        raise PairsError(f"{where} has a caption that is no text but {type(prompt).__name__}: write it as text")
    return FoundPair(prompt, winner, loser, _margin(row, where), _held_out(row, where), where)


def _order(row: dict, where: str) -> tuple[object, object] | str:
    """(winner, loser) of a row, or why it is no pair."""
    if "jpg_0" in row and "jpg_1" in row:
        given, label = row.get("label_0"), _number(row.get("label_0"))
        if row.get("has_label") in (False, "False", "false") or given in (None, "") or given != given:  # NaN is empty
            return "without a label"
        if label == 0.5:
            return "ties"
        if label not in (0.0, 1.0):
            raise PairsError(f"{where}: label_0 is {given!r}, expected 1 (jpg_0 won), 0 or 0.5")
        return (row["jpg_0"], row["jpg_1"]) if label == 1.0 else (row["jpg_1"], row["jpg_0"])
    images = _first(row, LISTS)
    if isinstance(images, list):
        high, rank = row.get("human_preference"), row.get("rank")
        given = high if high is not None else rank
        if given is None:
            return "without a label"
        scores = [_number(value) for value in given] if isinstance(given, list) else []
        if len(scores) != len(images) or len(images) < 2:
            raise PairsError(f"{where}: {len(images)} pictures but {len(scores)} preferences, expected equal numbers")
        if None in scores:
            return "without a label"
        scores = scores if high is not None else [-score for score in scores]  # rank 1 is the best
        best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
        return "ties" if scores[best] == scores[worst] else (images[best], images[worst])
    winner, loser = _first(row, WINNERS), _first(row, LOSERS)
    if winner is None or loser is None:
        known = ", ".join(sorted(row))
        raise PairsError(
            f"{where} has no winner and loser (columns: {known}): name them winner and loser, or jpg_0, jpg_1, label_0"
        )
    return winner, loser


def _first(row: Mapping[str, object], names: Sequence[str]) -> object | None:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _margin(row: Mapping[str, object], where: str) -> float | None:
    value = row.get("margin")
    if value in (None, ""):
        return None
    number = _number(value)
    if number is None or not 0 < number < math.inf:
        raise PairsError(f"{where}: margin is {value!r}, expected a score gap above 0 (a tie is no pair)")
    return number


def _held_out(row: Mapping[str, object], where: str) -> bool:
    split = str(row.get("split", "")).strip().lower()
    if split not in TRAIN + HELD_OUT:
        raise PairsError(f"{where}: split is {row['split']!r}, expected train, valid or test")
    return split in HELD_OUT


def _picture(value: object, root: Path, where: str) -> Picture:
    """A cell as the bytes of a file, or as a path that exists."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, dict):  # Hugging Face's Image feature
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise PairsError(f"{where}: a picture is {type(value).__name__}, expected a path or the bytes of a file")
    path = Path(value)
    path = path if path.is_absolute() else root / path
    if not path.is_file():
        raise PairsError(f"{where}: no picture {path}: paths start at the folder of the table")
    return path


def _two_folders(root: Path) -> Iterator[FoundPair]:
    from labkit.images import read_folder

    if not (root / "winner").is_dir() or not (root / "loser").is_dir():
        raise PairsError(
            f"{root} has neither a table ({', '.join(SUFFIXES)}) nor folders winner and loser: see labkit dpo --help"
        )
    folders = {side: read_folder(root / side) for side in ("winner", "loser")}
    for side, folder in folders.items():
        for name, fault in folder.faults.items():
            raise PairsError(f"{root / side / name} cannot be used: {fault}")
    names = {side: folder.names for side, folder in folders.items()}
    losers: dict[str, str] = {}
    for name in names["loser"]:
        stem = str(Path(name).with_suffix(""))
        if stem in losers:
            raise PairsError(f"{root / 'loser'} has {losers[stem]} and {name}: one picture per name")
        losers[stem] = name
    for name in names["winner"]:
        stem = str(Path(name).with_suffix(""))
        where = f"{root / 'winner' / name}"
        text = (root / "winner" / name).with_suffix(".txt")
        if stem not in losers:
            raise PairsError(f"{where} has no loser of the same name in {root / 'loser'}")
        if not text.is_file():
            raise PairsError(f"{where} has no caption: write it into {text.name} beside the picture")
        caption = read_text(text).strip()
        yield FoundPair(caption, root / "winner" / name, root / "loser" / losers.pop(stem), None, False, where)
    if losers:
        raise PairsError(f"{root / 'loser' / next(iter(losers.values()))} has no winner of the same name")
