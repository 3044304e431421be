"""What a verification plan costs and what it is worth.

`cost_per_image` adds up what one shipped picture costs, `roi` compares it with making pictures by hand, `tornado` says
which assumption decides. `all_or_none` is Deming's rule, `best_sample_size` and `value_of_one_more` buy information at
the price of inspection, `break_even_images` answers "train or search?".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import betabinom

from labkit.inspection.equations import (
    average_outgoing_quality,
    average_total_inspection,
    check_count,
    check_share,
)


@dataclass(frozen=True)
class Economics:
    """The assumptions of a pilot, in one currency, per picture unless said otherwise.

    Attributes:
        lot: N pictures per lot. lots: how many lots the investment is spread over. n, c: the plan.
        defect_rate: p, of the pictures that passed both filters.
        rule_yield, preference_yield: y1, y2, shares that pass each filter.
        c_generate, c_rule, c_score, c_human: generating, rule filter, preference score, one look by a person.
        escape_loss: L, what a bad picture costs that reaches the customer.
        c_manual: a picture made by hand. fixed: labels + training + calibration + validation, once.
    """

    lot: int
    lots: int
    n: int
    c: int
    defect_rate: float
    rule_yield: float
    preference_yield: float
    c_generate: float
    c_rule: float
    c_score: float
    c_human: float
    escape_loss: float
    c_manual: float
    fixed: float

    def __post_init__(self) -> None:
        check_count("lots", self.lots, 1, 10**9, "lots")
        check_count("n", self.n, 0, self.lot, "the lot")
        check_share("defect_rate", self.defect_rate, ends=True)
        for name in ("rule_yield", "preference_yield"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be in (0, 1]: nothing that passes ships nothing")
        if not self.fixed > 0:
            raise ValueError(f"fixed = {self.fixed} must be positive: a return needs an investment")


def cost_terms(e: Economics) -> dict[str, float]:
    """What one shipped picture costs, by term.

    make     (c_generate + c_rule + y1 c_score) / (y1 y2)
    inspect  c_human ATI / N        the sample, and the rest of every lot that is refused
    escape   L p Pa (N - n) / N     bad pictures that nobody looked at
    """
    make = (e.c_generate + e.c_rule + e.rule_yield * e.c_score) / (e.rule_yield * e.preference_yield)
    if e.n == 0:
        return {"make": make, "inspect": 0.0, "escape": e.escape_loss * e.defect_rate}
    plan = {"n": e.n, "c": e.c, "lot": e.lot}
    return {
        "make": make,
        "inspect": e.c_human * float(average_total_inspection(e.defect_rate, **plan)) / e.lot,
        "escape": e.escape_loss * float(average_outgoing_quality(e.defect_rate, **plan)),
    }


def cost_per_image(e: Economics) -> float:
    """C, the sum of `cost_terms`."""
    return sum(cost_terms(e).values())


def roi(e: Economics) -> float:
    """[N lots (c_manual - C) - fixed] / fixed: 0 is break-even, 1 earns the investment once more."""
    return (e.lot * e.lots * (e.c_manual - cost_per_image(e)) - e.fixed) / e.fixed


@dataclass(frozen=True)
class Swing:
    """One bar of a tornado chart: the return at the two ends of one assumption's range, all others as they are."""

    name: str
    low: float
    high: float
    roi_low: float
    roi_high: float

    @property
    def width(self) -> float:
        return abs(self.roi_high - self.roi_low)


def tornado(e: Economics, ranges: Mapping[str, tuple[float, float]]) -> list[Swing]:
    """Which assumption decides: bars of a tornado chart, the widest first.

    Args:
        e: the best guess. ranges: attribute of `Economics` -> (low, high) that one can believe.

    Raises:
        ValueError: an unknown attribute, or a range that does not contain the best guess.
    """
    bars = []
    for name, (low, high) in ranges.items():
        if not hasattr(e, name):
            raise ValueError(f"{name!r} is no assumption of the model: use one of {', '.join(vars(e))}")
        if not low <= getattr(e, name) <= high:
            raise ValueError(f"{name} = {getattr(e, name)} lies outside its own range {low} to {high}")
        bars.append(Swing(name, low, high, roi(replace(e, **{name: low})), roi(replace(e, **{name: high}))))
    return sorted(bars, key=lambda bar: -bar.width)


def all_or_none(rate: float, *, c_human: float, escape_loss: float) -> str:
    """ "all" or "none": with a stable and known rate p, sampling is never best (Deming's kp rule). Inspect everything
    if p > c_human / escape_loss, else nothing. Samples are for rates that are unknown or move."""
    return "all" if check_share("rate", rate, ends=True) * escape_loss > c_human else "none"


def plan_cost(n: int, *, a: float, b: float, lot: int, c_human: float, escape_loss: float) -> float:
    """Expected cost of a lot when n pictures are looked at first and the rest is then shipped or sorted, whichever is
    cheaper: n c_human + E[ min((N - n) m L, (N - n) c_human) ], with p ~ Beta(a, b) and m its mean after the sample.

    Args:
        n: 0..N. a, b: of the prior, from the shadow phase: 1 + bad and 1 + good pictures seen there.
        lot: N. c_human: one look. escape_loss: L.
    """
    n = check_count("n", n, 0, lot, "the lot")
    if not (a > 0 and b > 0):
        raise ValueError(f"a = {a} and b = {b} must be positive: 1 + bad and 1 + good pictures of the shadow phase")
    d = np.arange(n + 1)
    ship = (a + d) / (a + b + n) * escape_loss  # per picture of the rest
    weights = betabinom.pmf(d, n, a, b) if n else np.ones(1)
    return n * c_human + (lot - n) * float((weights * np.minimum(ship, c_human)).sum())


def best_sample_size(*, a: float, b: float, lot: int, c_human: float, escape_loss: float) -> tuple[int, float]:
    """(n, cost): the sample that makes `plan_cost` smallest; 0 if looking is not worth it."""
    costs = [plan_cost(n, a=a, b=b, lot=lot, c_human=c_human, escape_loss=escape_loss) for n in range(lot + 1)]
    return int(np.argmin(costs)), float(min(costs))


def value_of_one_more(*, a: float, b: float, rest: int, c_human: float, escape_loss: float) -> float:
    """What looking at one more picture saves, before its price: stop when it is below c_human.

    It can be 0 although many more looks together would pay: one picture alone may not be able to turn the decision.

    Args:
        a, b: p ~ Beta(a, b) after what was seen. rest: pictures of the lot nobody has looked at yet.
    """
    rest = check_count("rest", rest, 1, 10**9, "pictures")
    prices = {"a": a, "b": b, "lot": rest, "c_human": c_human, "escape_loss": escape_loss}
    return plan_cost(0, **prices) - (plan_cost(1, **prices) - c_human)


def break_even_images(
    nfe_train: float, *, n: int, steps: int, cost_per_nfe: float = 1.0, saved_per_image: float = 0.0
) -> float:
    """M* = NFE_train / ((N - 1) T): from how many delivered pictures on training is cheaper than best-of-N search.

    76,000 evaluations of training, T = 10: 2,533 pictures against N = 4, 507 against N = 16. All from the NFE ledger.

    Args:
        nfe_train: U-Net evaluations of training. n: N candidates per delivered picture. steps: T per candidate.
        cost_per_nfe, saved_per_image: in money, what one evaluation costs and what the trained model saves besides, for
            example inspection through a lower defect rate; may be negative.

    Returns:
        Pictures; inf if training never pays.
    """
    n, steps = check_count("n", n, 1, 10**9, "candidates"), check_count("steps", steps, 1, 10**9, "steps")
    per_image = (n - 1) * steps * cost_per_nfe + saved_per_image
    return nfe_train * cost_per_nfe / per_image if per_image > 0 else math.inf
