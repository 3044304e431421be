"""What was ordered: a table of file names and prompts, shown beside each picture and hashed into the record."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from labkit.inspection.lot import InspectionError

COLUMNS = ("prompt", "caption", "text")  # the first that is there counts


def read_prompts(path: Path | str) -> dict[str, str]:
    """File name (inside the lot, with "/") -> prompt, from a .csv or .jsonl with file_name and prompt (or caption).

    Raises:
        InspectionError: no such file, a row without a name or a prompt, or a name twice; says which row.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            list(csv.DictReader(io.StringIO(text)))
            if path.suffix.lower() == ".csv"
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except UnicodeDecodeError:
        raise InspectionError(f"{path} is no text in UTF-8: save the table as UTF-8") from None
    except (OSError, ValueError) as error:
        raise InspectionError(f"{path} is no table of prompts ({error}): a .csv or .jsonl is expected") from None
    found: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        name = row.get("file_name") if isinstance(row, dict) else None
        column = next((column for column in COLUMNS if isinstance(row, dict) and row.get(column)), None)
        if not isinstance(name, str) or column is None:
            raise InspectionError(f"{path.name}, row {number}: expected file_name and prompt (or caption)")
        if name in found:
            raise InspectionError(f"{path.name}, row {number}: {name!r} has a row already")
        found[name] = str(row[column])
    return found
