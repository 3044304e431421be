"""How a plan is said on the command line, and which plan that is for a lot of a given size."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from labkit.inspection.aql import NORMAL_ZERO, Plan, aql_plan
from labkit.inspection.equations import two_point_plan, zero_failure_n
from labkit.inspection.lot import InspectionError

TOO_SMALL = "every picture: the lot is too small for this plan"


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """The options that say a plan."""
    parser.add_argument("--plan", metavar="PLAN", help="bad=0.02, good=0.01,bad=0.05, aql=1.0, 80/2, or all")
    parser.add_argument("--bad", type=float, metavar="RATE", help="refuse lots with this rate of defectives, e.g. 0.02")
    parser.add_argument("--good", type=float, metavar="RATE", help="accept lots with this one (default: c = 0)")
    parser.add_argument("--confidence", type=float, help="of a plan without --good (default: 0.95)")
    parser.add_argument("--aql", type=float, choices=list(NORMAL_ZERO), help="instead: by the AQL table (percent)")
    parser.add_argument("--severity", choices=("tightened", "normal", "reduced"), help="of --aql (default: normal)")
    parser.add_argument("--n", type=int, help="instead: this sample size ...")
    parser.add_argument("--c", type=int, help="... and acceptance number (default: 0)")
    parser.add_argument("--minor", type=int, help="minor defects to accept (default: as many as major ones)")


def parse_plan(text: str) -> dict[str, float | int | bool]:
    """What `--plan` says, by the names of the single options: "80/2" is {"n": 80, "c": 2}.

    Raises:
        InspectionError: a text that is no plan.
    """
    kinds: dict[str, Callable] = {"bad": float, "good": float, "aql": float, "confidence": float, "minor": int}
    text = text.strip()
    if text == "all":
        return {"everything": True}
    try:
        n, slash, c = text.partition("/")
        if slash:
            return {"n": int(n), "c": int(c)}
        told = [part.split("=") for part in text.replace(" ", "").split(",")]
        if len({name for name, *_ in told}) < len(told):
            raise ValueError
        return {name: kinds[name](value) for name, value in told}
    except (ValueError, KeyError):
        raise InspectionError(
            f"{text!r} is no plan: write bad=0.02, good=0.01,bad=0.05, aql=1.0, 80/2, or all"
        ) from None


def choose_plan(args: argparse.Namespace, lot: int | None) -> Plan:
    """The plan that the options describe, for a lot of `lot` pictures (None: very many).

    Raises:
        InspectionError: none or more than one way to say the plan, an option that the plan has no use for, or a lot
        without pictures.
    """
    told = vars(args) | {"everything": False} | (parse_plan(args.plan) if args.plan else {})
    wanted = argparse.Namespace(**told)
    ways = sum(value is not None for value in (wanted.bad, wanted.aql, wanted.n)) + wanted.everything
    if ways != 1:
        raise InspectionError("say which plan: --plan PLAN, or --bad RATE [--good RATE], --aql PERCENT, --n SIZE [--c]")
    belongs = {"good": wanted.bad, "confidence": wanted.bad, "severity": wanted.aql, "c": wanted.n}
    idle = [name for name, owner in belongs.items() if getattr(wanted, name) is not None and owner is None]
    if wanted.confidence is not None and wanted.good is not None:
        idle.append("confidence")
    if idle:
        raise InspectionError(f"{idle[0]} = {getattr(wanted, idle[0])} has no part in this plan: leave it out")
    if lot == 0:
        raise InspectionError("no picture passed the filters: there is nothing to draw from")
    plan = _plan_of(wanted, lot)
    return plan if wanted.minor is None else replace(plan, minor=wanted.minor)


def _plan_of(wanted: argparse.Namespace, lot: int | None) -> Plan:
    if wanted.everything:
        if lot is None:
            raise InspectionError("to look at all pictures the lot's size is needed: add --lot")
        return Plan(lot, 0, source="every picture")
    if wanted.n is not None:
        return Plan(wanted.n, wanted.c or 0)
    if wanted.aql is not None:
        if lot is None:
            raise InspectionError("the AQL table needs the lot's size: add --lot")
        return (
            Plan(1, 0, source=TOO_SMALL) if lot < 2 else aql_plan(lot, wanted.aql, severity=wanted.severity or "normal")
        )
    for name in ("good", "bad"):
        rate = getattr(wanted, name)
        if rate is not None and not 0 < rate < 1:
            raise InspectionError(f"{name} = {rate:g}: a rate is a share between 0 and 1, 2 % is 0.02")
    if wanted.good is None:
        if lot is not None and not 0 < wanted.bad * lot < lot - 1:  # no lot of this size shows more than the rate
            return Plan(lot, 0, source=TOO_SMALL)
        sure = 0.95 if wanted.confidence is None else wanted.confidence
        n = zero_failure_n(wanted.bad, sure, lot=lot)
        return Plan(n, 0, source=f"zero failures: at most {wanted.bad:g} defective, {sure:g} confidence")
    n, c = two_point_plan(wanted.good, wanted.bad, lot=lot)
    return Plan(n, c, source=f"two points: accept {wanted.good:g}, refuse {wanted.bad:g}")
