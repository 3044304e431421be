"""Your own pictures: read them with their captions or attributes, ask what the frozen tower sees, make pairs.

The order matters: what the image tower does not see, no sentence can teach it, because the tower stays frozen. So the
probe comes before training, and says for each attribute whether its values can be told apart at all.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from labkit.files import read_text
from labkit.images import ImageFolder, read_folder
from labkit.metrics import wilson_interval
from labkit.models.clip_inputs import ClipInputs
from labkit.pairwise.pairs import Pair, Values
from labkit.pairwise.train import PairwiseError
from labkit.pairwise.wording import Statement
from labkit.pairwise.writers import CAPTION, caption_sentences
from labkit.tables import read_table

FILE_COLUMNS = ("file_name", "file", "image", "path", "filename")
CAPTION_COLUMNS = ("caption", "text", "prompt")
FOLDS = 5


@dataclass(frozen=True)
class OwnPictures:
    """Pictures and what is known of them, in one order.

    Attributes:
        folder: the files. values: per picture attribute -> value, with its caption under "caption" if it has one.
        wording: attribute -> value -> words, from the values that occur ("red hair color"); edit it before training.
    """

    folder: ImageFolder
    values: list[dict[str, str]]
    wording: dict[str, dict[str, str]]

    def __len__(self) -> int:
        return len(self.folder)

    @property
    def captions(self) -> list[tuple[str, None]] | None:
        """For rehearsal: (caption, None), each true of its own picture alone; None if a picture has no caption."""
        told = [row.get(CAPTION, "") for row in self.values]
        return [(text, None) for text in told] if all(told) else None


def read_pictures(folder: str | Path, table: str | Path | None = None) -> OwnPictures:
    """Pictures of a folder with captions and attributes from a table.

    Args:
        folder: the pictures. table: .csv, .tsv or .jsonl with one row per picture: a column "file_name" (or file,
            image, path) relative to the folder, "caption" (or text, prompt) if there are captions, and every other
            column an attribute. None: metadata.csv or metadata.jsonl of the folder, or a .txt beside each picture, or
            nothing.

    Raises:
        ImageError: no folder or no pictures. PairwiseError: a table that does not fit, with its line.
    """
    pictures = read_folder(folder)
    table = Path(table) if table is not None else _metadata(pictures.root)
    if table is None:
        texts = [pictures.path(i).with_suffix(".txt") for i in range(len(pictures))]
        rows = [{CAPTION: read_text(text).strip()} if text.is_file() else {} for text in texts]
        return OwnPictures(pictures, rows, {})
    known = {as_listed(name): name for name in pictures.names}
    rows = _rows(table)
    if missing := [name for name in rows if name not in known]:
        raise PairwiseError(
            f"{table.name} names {missing[0]!r}, which is no picture in {pictures.root}: check the column"
        )
    by_name = {known[name]: row for name, row in rows.items()}
    names = tuple(name for name in pictures.names if name in by_name)
    values = [by_name[name] for name in names]
    attributes = {a for row in values for a, v in row.items() if a != CAPTION and v}
    wording = {
        a: {v: f"{v} {a.replace('_', ' ')}" for v in sorted({row[a] for row in values if row.get(a)})}
        for a in sorted(attributes)
    }
    return OwnPictures(pictures.only(names), values, {a: w for a, w in wording.items() if len(w) > 1})


def as_listed(name: str) -> str:
    """A file's name as tables and folders may agree on it: "/" between folders, no "./", composed letters (a folder
    from a Mac has "か" and its mark apart)."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))


def _metadata(root: Path) -> Path | None:
    return next((root / n for n in ("metadata.csv", "metadata.jsonl") if (root / n).is_file()), None)


def _rows(table: Path) -> dict[str, dict[str, str]]:
    """File name -> what the table says of it."""
    if not table.is_file():
        raise PairwiseError(f"no table {table}: check the path")
    if table.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        raise PairwiseError(f"{table.name}: expected a .csv, .tsv or .jsonl table")
    found: dict[str, dict[str, str]] = {}
    for number, line in read_table(table, error=PairwiseError):
        file = next((as_listed(str(line[c])) for c in FILE_COLUMNS if line.get(c)), None)
        if file is None:
            raise PairwiseError(
                f"{table.name}, row {number} names no file: expected a column {' or '.join(FILE_COLUMNS)}"
            )
        if file in found:
            raise PairwiseError(f"{table.name}, row {number} names {file!r} again: one row per picture")
        row = {str(a): "" if v is None else str(v).strip() for a, v in line.items() if a not in FILE_COLUMNS}
        caption = next((row.pop(c) for c in CAPTION_COLUMNS if row.get(c)), "")
        found[file] = {a: v for a, v in row.items() if a not in CAPTION_COLUMNS} | (
            {CAPTION: caption} if caption else {}
        )
    if not found:
        raise PairwiseError(f"{table.name} has no rows: expected one per picture")
    return found


# ---- what the frozen tower sees -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visibility:
    """Whether the values of an attribute can be told apart in the frozen embeddings.

    Attributes:
        accuracy: of a linear probe on pictures that it was not fitted to. low, high: its 95% interval.
        chance: share of the most frequent value. pictures: that have the attribute.
        verdict: "seen" (low above chance), "not seen", or "too few" (under two folds of every value).
    """

    accuracy: float
    low: float
    high: float
    chance: float
    pictures: int
    verdict: str


def visibility(
    images: Tensor, values: Sequence[Values], attributes: Sequence[str], *, ridge: float = 1e-2
) -> dict[str, Visibility]:
    """Probe every attribute before training: ridge regression to one-hot values, five folds, all of it in float64.

    Args:
        images: unit embeddings [N, d] of the frozen image tower. values: attribute -> value per picture.
        ridge: weight of the penalty, relative to the mean eigenvalue of the covariance.
    """
    found = {}
    for attribute in attributes:
        rows = [i for i, row in enumerate(values) if row.get(attribute)]
        counts = Counter(values[i][attribute] for i in rows)
        names = sorted(name for name, count in counts.items() if count >= 2)
        rows = [i for i in rows if values[i][attribute] in names]
        n = len(rows)
        if len(names) < 2 or n < 2 * FOLDS:
            found[attribute] = Visibility(0.0, 0.0, 1.0, 1.0, n, "too few")
            continue
        x = images[rows].double().cpu()
        y = torch.tensor([names.index(values[i][attribute]) for i in rows])
        fold = torch.empty(n, dtype=torch.int64)
        for k in range(len(names)):  # every value is spread over all folds
            own = (y == k).nonzero().squeeze(-1)
            fold[own] = (torch.arange(len(own)) + k) % FOLDS
        right = sum(int((_probe(x[fold != f], y[fold != f], x[fold == f], len(names), ridge) == y[fold == f]).sum())
                    for f in range(FOLDS))  # fmt: skip
        chance = float(y.bincount().max()) / n
        low, high = wilson_interval(right, n)
        found[attribute] = Visibility(right / n, low, high, chance, n, "seen" if low > chance else "not seen")
    return found


def _probe(x: Tensor, y: Tensor, new: Tensor, classes: int, ridge: float) -> Tensor:
    """Predicted classes [M] of new [M, d] by ridge regression of one-hot y [N] on x [N, d]."""
    mean, targets = x.mean(dim=0), torch.nn.functional.one_hot(y, classes).double()
    centred = x - mean  # [N, d]
    cov = centred.T @ centred
    cov += ridge * cov.trace() / len(cov) * torch.eye(len(cov), dtype=cov.dtype)
    weight = torch.linalg.solve(cov, centred.T @ (targets - targets.mean(dim=0)))  # [d, K]
    return ((new - mean) @ weight + targets.mean(dim=0)).argmax(dim=1)


def caption_visibility(images: Tensor, texts: Tensor) -> tuple[float, float]:
    """For captions alone: share of pictures whose own caption is the nearest of ten, and what chance gives.

    Each picture is compared with its caption and nine others, the next ones in the list, so no draw is needed. Captions
    that fit equally well share the picture: the same caption everywhere is found by chance only.

    Args:
        images, texts: unit embeddings [N, d] each.
    """
    n = len(images)
    others = min(9, n - 1)
    scores = torch.stack([(images * texts.roll(-k, 0)).sum(dim=1) for k in range(others + 1)], dim=1)  # [N, 10]
    best = (scores == scores.amax(dim=1, keepdim=True)).double()
    return float((best[:, 0] / best.sum(dim=1)).mean()), 1 / (others + 1)


# ---- captions that are too long --------------------------------------------------------------------------------------


def cut_captions(own: OwnPictures, inputs: ClipInputs) -> tuple[OwnPictures, int]:
    """(The same pictures with captions of which two fit into one sentence about both, how many captions were cut).

    Words are taken off at the end, letters where a caption has no spaces.
    """

    def tokens(text: str) -> int:
        return len(inputs.tokenizer(text, verbose=False)["input_ids"])

    room = (inputs.context - tokens(caption_sentences("", "")[0])) // 2
    rows = [dict(row) for row in own.values]
    empty = tokens("")  # start and end of a text
    short: dict[str, str] = {}
    for text in {row[CAPTION] for row in rows if row.get(CAPTION)}:
        mark = " " if len(text.split()) > 1 else ""
        parts = text.split() if mark else list(text)
        low, high = 0, len(parts)
        while low < high:  # the most parts that fit
            middle = (low + high + 1) // 2
            low, high = (middle, high) if tokens(mark.join(parts[:middle])) - empty <= room else (low, middle - 1)
        if low < len(parts):
            short[text] = mark.join(parts[: max(1, low)])
    cut = sum(row.get(CAPTION) in short for row in rows)
    for row in rows:
        if row.get(CAPTION) in short:
            row[CAPTION] = short[row[CAPTION]]
    return replace(own, values=rows), cut


# ---- pairs from captions alone --------------------------------------------------------------------------------------


def caption_pairs(values: Sequence[Mapping[str, str]], n: int, generator: torch.Generator) -> list[Pair]:
    """`n` pairs of pictures with different captions, about which nothing else is known: the paper's case.

    Their statements name no attribute; sentences come from a language model or from the two captions.

    Raises:
        PairwiseError: fewer than two different captions, or none in a row.
    """
    told = [row.get(CAPTION, "") for row in values]
    if not all(told) or len(set(told)) < 2:
        raise PairwiseError(
            f"{len(set(told) - {''})} different captions for {len(told)} pictures: expected one for each"
        )
    pairs: list[Pair] = []
    while len(pairs) < n:
        i, j = torch.randint(len(told), (2, n), generator=generator).tolist()
        pairs += [Pair(a, b, Statement({}, {})) for a, b in zip(i, j, strict=True) if told[a] != told[b]]
    return pairs[:n]
