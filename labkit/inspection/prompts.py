"""What was ordered: a table of file names and prompts, shown beside each picture and hashed into the record."""

from __future__ import annotations

from pathlib import Path

from labkit.inspection.lot import InspectionError
from labkit.tables import read_table

COLUMNS = ("prompt", "caption", "text")  # the first that is there counts


def read_prompts(path: Path | str) -> dict[str, str]:
    """File name (inside the lot, with "/") -> prompt, from a .csv or .jsonl with file_name and prompt (or caption).

    Raises:
        InspectionError: no such file, a row without a name or a prompt, or a name twice; says which row.
    """
    path = Path(path)
    try:
        rows = read_table(path, error=InspectionError)
    except OSError as error:
        raise InspectionError(f"{path} is no table of prompts ({error}): a .csv or .jsonl is expected") from None
    if not rows:
        raise InspectionError(f"{path.name} has no rows: expected one per picture")
    found: dict[str, str] = {}
    for number, row in rows:
        name, column = row.get("file_name"), next((column for column in COLUMNS if row.get(column)), None)
        if not isinstance(name, str) or not name.strip() or column is None:
            raise InspectionError(f"{path.name}, row {number}: expected file_name and prompt (or caption)")
        if name in found:
            raise InspectionError(f"{path.name}, row {number}: {name!r} has a row already")
        found[name] = str(row[column])
    return found
