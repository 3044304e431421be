"""Single sampling plans by lot size and AQL, as the tables of MIL-STD-105E (1989) and ISO 2859-1:1999 give them:
general inspection level II, normal and tightened inspection, AQL 0.25 % to 6.5 %.

The tables are diagonals: along one acceptance number, n times the AQL stays about the same. Written down here are the
steps of a diagonal and where each column's 0 stands; the tests compare it with plans of the table. The two standards
differ for *reduced* inspection; `reduced_plan` is a rule of this course. For a contract, use the standard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.inspection.equations import acceptance, check_count

LOT_ENDS = (8, 15, 25, 50, 90, 150, 280, 500, 1200, 3200, 10_000, 35_000, 150_000, 500_000)  # level II
LETTERS = "ABCDEFGHJKLMNPQ"  # I and O are left out
SIZES = (2, 3, 5, 8, 13, 20, 32, 50, 80, 125, 200, 315, 500, 800, 1250)
# AQL in percent -> letter of the plan with Ac = 0
NORMAL_ZERO = {0.25: "H", 0.4: "G", 0.65: "F", 1.0: "E", 1.5: "D", 2.5: "C", 4.0: "B", 6.5: "A"}
NORMAL_STEPS = (1, 2, 3, 5, 7, 10, 14, 21)  # Ac from three letters below the 0 on
TIGHTENED_STEPS = (1, 2, 3, 5, 8, 12, 18)


@dataclass(frozen=True)
class Plan:
    """Look at n pictures of a lot; accept it if at most c are defective.

    Attributes:
        n: sample size. c: acceptance number for major defects. minor: the same for minor ones; None: as c. No plan lets
            a critical defect pass.
        source: where the plan comes from; goes into the record.
    """

    n: int
    c: int
    minor: int | None = None
    source: str = "own choice"

    def __post_init__(self) -> None:
        check_count("n", self.n, 1, 10**9, "pictures")
        check_count("c", self.c, 0, self.n - 1, "below n: c = n accepts everything")
        if self.minor is not None:
            check_count("minor", self.minor, 0, self.n, "the sample")


def code_letter(lot: int) -> str:
    """Sample size code letter of a lot at general inspection level II."""
    lot = check_count("lot", lot, 2, 10**12, "pictures")
    return LETTERS[sum(lot > end for end in LOT_ENDS)]


def aql_plan(lot: int, aql: float, *, severity: str = "normal") -> Plan:
    """The single plan of the table for a lot; arrows are followed to the plan they point at.

    Args:
        lot: pictures in the lot, at least 2.
        aql: in percent, a column of the table: 0.25, 0.4, 0.65, 1.0, 1.5, 2.5, 4.0 or 6.5.
        severity: "normal", "tightened", or "reduced" (see `reduced_plan`).

    Returns:
        The plan; where it asks for the whole lot or more, n is the lot (the standard: inspect every picture).

    Raises:
        ValueError: an AQL without a column here, or an unknown severity.
    """
    if aql not in NORMAL_ZERO:
        raise ValueError(f"aql = {aql} has no column here: use one of {', '.join(map(str, NORMAL_ZERO))} (percent)")
    if severity == "reduced":
        return reduced_plan(aql_plan(lot, aql), aql)
    if severity not in ("normal", "tightened"):
        raise ValueError(f'severity = {severity!r} must be "normal", "tightened" or "reduced"')
    row, zero = LETTERS.index(code_letter(lot)), LETTERS.index(NORMAL_ZERO[aql])
    if severity == "normal":
        row, c = _normal(row, zero)
    else:
        row, c = _tightened(row, zero + 1)
    n = SIZES[row]
    source = f"AQL {aql:g} %, level II, {severity}, code letter {LETTERS[row]} (MIL-STD-105E / ISO 2859-1)"
    return Plan(n=min(n, lot), c=min(c, min(n, lot) - 1), source=source)


def _normal(row: int, zero: int) -> tuple[int, int]:
    """(row, Ac) of a cell of the normal table: 0, an arrow up, an arrow down, then 1, 2, 3, 5, ..."""
    if row <= zero + 1:  # arrows down above the 0; the arrow up below it
        return zero, 0
    return _along(row, zero + 3, NORMAL_STEPS)


def _tightened(row: int, zero: int) -> tuple[int, int]:
    """(row, Ac) of a cell of the tightened table: 0, two arrows down, then 1, 2, 3, 5, 8, ..."""
    if row <= zero:
        return zero, 0
    return _along(row, zero + 3, TIGHTENED_STEPS)


def _along(row: int, first: int, steps: tuple[int, ...]) -> tuple[int, int]:
    row = max(row, first)
    return first + min(row - first, len(steps) - 1), steps[min(row - first, len(steps) - 1)]


def reduced_plan(normal: Plan, aql: float) -> Plan:
    """Two fifths of the normal sample, and the smallest c with which a lot of AQL quality passes at least as often.

    The sample is the standard's; the acceptance number is a rule of this course.
    """
    n = max(2, math.ceil(0.4 * normal.n))
    wanted = acceptance(aql / 100, n=normal.n, c=normal.c)
    c = next(c for c in range(n) if acceptance(aql / 100, n=n, c=c) >= wanted or c == n - 1)
    return Plan(n=n, c=c, source=f"AQL {aql:g} %, reduced (rule of the course)")


def passes_one_step_tighter(d: int, lot: int, aql: float) -> bool:
    """Whether a lot with d defectives in its normal sample would have passed the normal plan's n with the acceptance
    number of the next smaller AQL; the switching score of ISO 2859-1 asks for it where c >= 2.

    Raises:
        ValueError: there is no smaller AQL in the table here.
    """
    columns = sorted(NORMAL_ZERO)
    if aql not in columns[1:]:
        raise ValueError(f"aql = {aql} has no smaller column here: use one of {', '.join(map(str, columns[1:]))}")
    row = LETTERS.index(code_letter(lot))
    tighter = LETTERS.index(NORMAL_ZERO[columns[columns.index(aql) - 1]])
    return bool(d <= _normal(row, tighter)[1])
