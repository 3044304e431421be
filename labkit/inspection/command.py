"""Inspect a folder of pictures: plan, draw, look, sign, verify.

labkit inspect plan --lot 500 --good 0.01 --bad 0.05
labkit inspect draw PICTURES --bad 0.02 --seed 20261128      writes the job and the page on which people look
labkit inspect sign PICTURES verdicts-*.jsonl --maker A --checker B
labkit inspect verify inspection/record-*.json --folder PICTURES
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.files import write_atomically
from labkit.inspection.aql import NORMAL_ZERO, Plan, aql_plan
from labkit.inspection.digest import digest_process
from labkit.inspection.equations import acceptance, two_point_plan, upper_bound, zero_failure_n
from labkit.inspection.gate import Gate
from labkit.inspection.lot import InspectionError, read_lot
from labkit.inspection.page import write_page
from labkit.inspection.record import (
    folder_problems,
    read_sign_off,
    record_problems,
    sign_off,
    write_sign_off,
)
from labkit.inspection.report import record_html
from labkit.inspection.rules import Rule, near_duplicate_rule, provenance_rule, size_rule
from labkit.inspection.texts import LANGUAGES
from labkit.inspection.verdicts import read_verdicts

OUT = "inspection"  # default folder of what the command writes
JOB = "job.json"


def add_parser(subparsers: Any) -> None:
    """Register `labkit inspect`."""
    parser = subparsers.add_parser("inspect", help="inspect a folder of pictures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    steps = parser.add_subparsers(title="steps", metavar="STEP", required=True)

    plan = steps.add_parser("plan", help="show a plan and what it lets through")
    plan.add_argument("--lot", type=int, help="pictures in the lot (default: very many)")
    _plan_options(plan)
    plan.set_defaults(func=_guarded(run_plan))

    draw = steps.add_parser("draw", help="apply the rules, draw the sample, write the inspection page")
    draw.add_argument("folder", type=Path, help="the pictures of the lot")
    draw.add_argument("--seed", help="of the sample; the checker chooses it after the lot is closed (default: random)")
    draw.add_argument("--size", metavar="WxH", type=_size, help="rule: exact size in pixels")
    draw.add_argument("--duplicates", type=float, metavar="LEVELS", help="rule: no two pictures closer than this (2)")
    draw.add_argument("--provenance", action="store_true", help="rule: the PNG carries provenance that fits")
    draw.add_argument("--model", type=Path, help="file or folder that made the pictures: its hash goes into the record")
    draw.add_argument("--out", type=Path, default=Path(OUT), help=f"folder for the job (default: {OUT})")
    draw.add_argument("--lang", choices=LANGUAGES, default="ja", help="language of the page (default: ja)")
    _plan_options(draw)
    draw.set_defaults(func=_guarded(run_draw))

    sign = steps.add_parser("sign", help="count the verdicts, decide, write the record")
    sign.add_argument("folder", type=Path, help="the pictures of the lot")
    sign.add_argument("verdicts", type=Path, nargs="+", help="files that the inspectors saved")
    sign.add_argument("--maker", required=True, help="who made the pictures")
    sign.add_argument("--checker", required=True, help="who decides; another person")
    sign.add_argument("--policy", choices=("any", "majority"), default="any", help="several inspectors (default: any)")
    sign.add_argument("--previous", default="", metavar="SEAL", help="seal of the record before this one")
    sign.add_argument("--out", type=Path, default=Path(OUT), help=f"folder of the job (default: {OUT})")
    sign.set_defaults(func=_guarded(run_sign))

    verify = steps.add_parser("verify", help="check records: edited fields, seal, sample, decision, pictures")
    verify.add_argument("records", type=Path, nargs="+", metavar="RECORD")
    verify.add_argument("--seal", default="", help="the seal of the record that was kept elsewhere")
    verify.add_argument("--folder", type=Path, help="also compare the pictures that passed")
    verify.set_defaults(func=_guarded(run_verify))


def _plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bad", type=float, metavar="RATE", help="refuse lots with this rate of defectives, e.g. 0.02")
    parser.add_argument("--good", type=float, metavar="RATE", help="accept lots with this one (default: c = 0)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of a plan without --good (default: 0.95)")
    parser.add_argument("--aql", type=float, choices=list(NORMAL_ZERO), help="instead: by the AQL table (percent)")
    parser.add_argument("--severity", choices=("tightened", "normal", "reduced"), default="normal", help="of --aql")
    parser.add_argument("--n", type=int, help="instead: this sample size ...")
    parser.add_argument("--c", type=int, default=0, help="... and acceptance number (default: 0)")
    parser.add_argument("--minor", type=int, help="minor defects to accept (default: as many as major ones)")


def choose_plan(args: argparse.Namespace, lot: int | None) -> Plan:
    """The plan that the options describe, for a lot of `lot` pictures.

    Raises:
        InspectionError: none or more than one of --bad, --aql, --n.
    """
    if sum(value is not None for value in (args.bad, args.aql, args.n)) != 1:
        raise InspectionError("say which plan: --bad RATE [--good RATE], --aql PERCENT, or --n SIZE [--c NUMBER]")
    if args.n is not None:
        return Plan(args.n, args.c)
    if args.aql is not None:
        if lot is None:
            raise InspectionError("the AQL table needs the lot's size: add --lot")
        return aql_plan(lot, args.aql, severity=args.severity)
    if args.good is None:
        n = zero_failure_n(args.bad, args.confidence, lot=lot)
        return Plan(n, 0, source=f"zero failures: at most {args.bad:g} defective, {args.confidence:g} confidence")
    n, c = two_point_plan(args.good, args.bad, lot=lot)
    return Plan(n, c, source=f"two points: accept {args.good:g}, refuse {args.bad:g}")


def run_plan(args: argparse.Namespace) -> int:
    """`labkit inspect plan`."""
    plan = replace(choose_plan(args, args.lot), minor=args.minor)
    print(f"n = {plan.n}, c = {plan.c}   {plan.source}")
    worst = upper_bound(plan.c, plan.n, confidence=0.9)
    print(f"a lot with {worst:.1%} of defectives still passes one time in ten")
    for rate in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1):
        print(f"  {rate:6.2%} defective: accepted {acceptance(rate, n=plan.n, c=plan.c, lot=args.lot):6.1%}")
    return 0


def run_draw(args: argparse.Namespace) -> int:
    """`labkit inspect draw`."""
    rules = {
        "size": list(args.size) if args.size else None,
        "duplicates": args.duplicates,
        "provenance": args.provenance or None,
    }
    process = digest_process(model=args.model)
    lot = read_lot(args.folder)
    screening = Gate(process, Plan(1, 0), make_rules(rules)).screen(lot)
    plan = replace(choose_plan(args, len(screening.passed)), minor=args.minor)
    gate = Gate(process, plan, make_rules(rules))
    seed = secrets.token_hex(8) if args.seed is None else args.seed
    sample = gate.sample(screening, seed)
    job = {
        "lot": lot.sha256,
        "plan": asdict(plan),
        "seed": seed,
        "rules": rules,
        "process": process,
    }
    write_atomically(args.out / JOB, json.dumps(job, ensure_ascii=False, indent=2) + "\n")
    page = write_page(args.out / "inspect.html", lot, sample, gate.defects, lang=args.lang)
    for name, count in screening.counts().items():
        print(f"{count:6d} {name}")
    for rejection in screening.rejections:
        print(f"       {rejection.item}: {rejection.rule}, {rejection.value}")
    print(f"n = {plan.n}, c = {plan.c}, seed {seed}\nopen {page}")
    return 0


def run_sign(args: argparse.Namespace) -> int:
    """`labkit inspect sign`: 0 accepted, 1 refused."""
    try:
        job = json.loads((args.out / JOB).read_text(encoding="utf-8"))
        plan, rules = Plan(**job["plan"]), make_rules(job["rules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InspectionError(f"{args.out / JOB} is no job ({error}): run labkit inspect draw first") from None
    lot = read_lot(args.folder)
    if lot.sha256 != job["lot"]:
        raise InspectionError(f"the pictures in {args.folder} are not those of the draw: draw again")
    gate = replace(Gate(job["process"], plan, rules), policy=args.policy)
    screening = gate.screen(lot)
    verdicts = [verdict for path in args.verdicts for verdict in read_verdicts(path)]
    record = sign_off(
        gate,
        screening,
        seed=job["seed"],
        verdicts=verdicts,
        maker=args.maker,
        checker=args.checker,
        signed=datetime.now().astimezone(),
        previous=args.previous,
    )
    name = f"record-{record['seal'][:8]}"  # no record takes the place of another
    print(f"wrote {write_sign_off(args.out / f'{name}.json', record)}")
    for lang in LANGUAGES:
        print(f"wrote {write_atomically(args.out / f'{name}.{lang}.html', record_html(record, lang))}")
    accepted, reasons = (record["content"]["decision"][key] for key in ("accepted", "reasons"))
    print(f"{'accepted' if accepted else 'refused: ' + '; '.join(reasons)}\nseal {record['seal']}")
    return 0 if accepted else 1


def run_verify(args: argparse.Namespace) -> int:
    """`labkit inspect verify`: 0 all records stand, 1 one does not."""
    broken = False
    for path in args.records:
        record = read_sign_off(path)
        problems = record_problems(record, seal=args.seal)
        if args.folder is not None:
            problems += folder_problems(record, args.folder)
        broken |= bool(problems)
        for line in problems or [f"stands; seal {record['seal']}"]:
            print(f"{path.name}: {line}")
    return int(broken)


def make_rules(told: dict) -> tuple[Rule, ...]:
    """The rules that a job describes: {"size": [w, h], "duplicates": levels, "provenance": true}, None for none."""
    rules = []
    if told["size"]:
        rules.append(size_rule(*told["size"]))
    if told["duplicates"] is not None:
        rules.append(near_duplicate_rule(told["duplicates"]))
    if told["provenance"]:
        rules.append(provenance_rule())
    return tuple(rules)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 1024x768")
    return int(width), int(height)


def _guarded(step: Any) -> Any:
    """The step, with labkit's own errors and wrong values as one line and exit code 2."""

    def run(args: argparse.Namespace) -> int:
        try:
            return step(args)
        except (LabkitError, ValueError, OSError) as error:
            print(f"labkit inspect: {error}", file=sys.stderr)
            return 2

    return run
