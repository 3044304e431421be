"""A leaderboard in a file of the learner's own: one line of JSON per try, best first when read."""

from __future__ import annotations

import json
from pathlib import Path

from labkit.checkpoint import append_log

Row = dict[str, object]


def enter_score(path: str | Path, name: str, gold: float, **facts: float | str) -> list[Row]:
    """Add a try and return the board, best gold first; facts: what it cost, its settings."""
    append_log(Path(path), {"name": name, "gold": round(float(gold), 4), **facts})
    return read_board(path)


def read_board(path: str | Path) -> list[Row]:
    """All tries, best gold first; [] if there is no file. Damaged lines are left out."""
    path, rows = Path(path), []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows += [row] if isinstance(row["gold"], int | float) else []
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(rows, key=lambda row: -row["gold"])
