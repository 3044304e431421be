"""Tables that people bring: .csv, .tsv and .jsonl read by one rule, so that no row is lost or cut in silence."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError

Row = tuple[int, dict[str, Any]]  # its number in the table, from 1, and column -> value


def read_table(path: Path | str, *, error: type[LabkitError] = LabkitError) -> list[Row]:
    """The rows of a table, see `read_columns`."""
    return read_columns(path, error=error)[1]


def read_columns(path: Path | str, *, error: type[LabkitError] = LabkitError) -> tuple[list[str], list[Row]]:
    """Column names (of a .jsonl: none) and rows; names in small letters and without spaces around them.

    .csv: cells are separated by the mark that is commonest in the header, of `,` `;` and tab (a spreadsheet's depends
    on the country); cells with such a mark, a quote or a line break stand in quotes. .tsv: tabs; quotes as in .csv
    where they pair, else they are letters. Any other ending: one JSON object a line.

    Raises:
        error: not UTF-8, a quote that is not closed, a row with more cells than columns, a column twice, a line that is
            no JSON object; names the file and, where there is one, the row. OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")  # a spreadsheet's mark at the start is no letter
    except UnicodeDecodeError:
        raise error(f'{path.name} is not in UTF-8: save it as "CSV UTF-8" (Excel), or convert it') from None
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv"):
        return [], [(n, _json(path, n, line, error)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    mark = "\t" if kind == ".tsv" else max(",;\t", key=text.split("\n")[0].count)
    try:
        cells = _cells(text, mark, csv.QUOTE_MINIMAL)
    except csv.Error as reason:
        if kind == ".csv":
            raise error(f"{path.name} has a quote that is not closed or not at the end of a cell ({reason})") from None
        cells = _cells(text, mark, csv.QUOTE_NONE)
    if not cells:
        return [], []
    names = [name.strip().lower() for name in cells[0]]
    if twice := [name for name, times in Counter(filter(None, names)).items() if times > 1]:
        raise error(f"{path.name} has the column {twice[0]} twice: keep one")
    rows: list[Row] = []
    for number, row in enumerate(cells[1:], 1):
        if any(cell.strip() for cell in row[len(names) :]):
            raise error(f"{path.name}, row {number} has more cells than columns: put commas into quotes")
        if any(cell.strip() for cell in row):
            rows.append((number, dict(zip(names, row + [""] * (len(names) - len(row)), strict=False))))
    return names, rows


def _cells(text: str, mark: str, quoting: int) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=mark, quoting=quoting, strict=True))


def _json(path: Path, number: int, line: str, error: type[LabkitError]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise error(f"{path.name}, row {number} is no JSON: mend or delete that line") from None
    if not isinstance(row, dict):
        raise error(f"{path.name}, row {number} is no JSON object: expected one with a name for each value")
    return {str(name).strip().lower(): value for name, value in row.items()}
