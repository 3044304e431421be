"""The command `labkit study`: record the studies, say what is recorded, compute a unit again, merge, check."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register `labkit study`."""
    parser = subparsers.add_parser("study", help="record the studies behind the claims", description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of recorded studies (default: studies in the data folder)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    run = actions.add_parser("run", help="record the units that are missing (resumes)")
    run.add_argument("numbers", nargs="*", metavar="NN", help="lessons (default: all that have a study)")
    run.add_argument("--jobs", type=_at_least_one, default=1, help="processes of one thread each (default: 1)")
    run.add_argument("--hours", type=_hours, help="begin no unit after this time, over all lessons asked for")
    run.add_argument("--arms", nargs="+", default=(), help="only these arms")
    run.add_argument(
        "--anew", action="store_true", help="drop units recorded with other code, weights or sizes, or not planned"
    )

    status = actions.add_parser("status", help="what is recorded, stale, missing")
    status.add_argument("numbers", nargs="*", metavar="NN")

    verify = actions.add_parser("verify", help="compute one recorded unit again and compare")
    verify.add_argument("numbers", nargs="*", metavar="NN")
    verify.add_argument("--cheap", action="store_true", help="a unit of the study's cheap arm")
    verify.add_argument(
        "--reach",
        action="store_true",
        help="one unit of each arm that the study covers, if code further away has changed since",
    )
    verify.add_argument("--draw", type=_seed, default=None, help="seed of the draw (default: another one every time)")

    adopt = actions.add_parser(
        "adopt", help="keep the units under rewritten code, if one of every arm comes out the same"
    )
    adopt.add_argument("numbers", nargs="+", metavar="NN")
    adopt.add_argument("--draw", type=_seed, default=None, help="seed of the draw (default: another one every time)")

    merge = actions.add_parser("merge", help="add the units that another machine recorded")
    merge.add_argument("number", metavar="NN")
    merge.add_argument("other", type=Path, help="the other machine's folder of studies")

    check = actions.add_parser(
        "check",
        help="fail if a study is stale, a declared verdict has changed, or a text states an interval it does not give",
    )
    check.add_argument("numbers", nargs="*", metavar="NN")
    parser.set_defaults(func=run_study)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a seed from 0 on, got {text}")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours < float("inf"):
        raise argparse.ArgumentTypeError(f"expected hours from 0 on, got {text}")
    return hours


def run_study(args: argparse.Namespace) -> int:
    """0 done, 1 something is missing, stale or different, 2 a request or a file that does not fit."""
    try:
        return ACTIONS[args.action](args)
    except LabkitError as error:
        print(f"labkit study: {error}", file=sys.stderr)
        return 2


def _studies(args: argparse.Namespace) -> list:
    from labkit.studies import load_study, studies

    return [load_study(number) for number in args.numbers or studies()]


def _run(args: argparse.Namespace) -> int:
    import time

    import torch

    from labkit.studies.recorder import run

    torch.set_num_threads(1)  # as in every worker: the same bits with any number of jobs
    begun, missing = time.monotonic(), 0
    loaded = {study.lesson: study.fingerprint() for study in _studies(args)}  # they compute what was imported here
    for study in _studies(args):
        left = None if args.hours is None else args.hours - (time.monotonic() - begun) / 3600
        missing += run(
            study,
            folder=args.folder,
            jobs=args.jobs,
            hours=left,
            arms=tuple(args.arms),
            anew=args.anew,
            loaded=loaded[study.lesson],
            report=lambda line: print(line, flush=True),
        )
    return 1 if missing else 0


def _status(args: argparse.Namespace) -> int:
    from labkit.course.evidence import BUDGET, undecided
    from labkit.studies import read_record
    from labkit.studies.store import status

    worst = 0
    for study in _studies(args):
        found = status(study, read_record(study.lesson, args.folder))
        line = f"{study.lesson}  recorded {found['recorded']}  stale {found['stale']}  missing {found['missing']}"
        line += f"  of {found['planned']} units, {found['cpu_hours']:.2f} CPU hours"
        notes = [f"changed: {', '.join(found['changed'])}"] * bool(found["changed"])
        notes += [f"{name}: {found[name]}" for name in ("damaged", "unplanned") if found[name]]
        print(line + (f"  ({'; '.join(notes)})" if notes else ""))
        if args.folder is None:
            within, beyond = undecided(study.lesson)
            print(f"    to be decided within {BUDGET:g} CPU hours: {', '.join(within)}\n" * bool(within), end="")
            print(f"    undecided, for a verdict takes more: {', '.join(beyond)}\n" * bool(beyond), end="")
        worst = max(worst, int(found["stale"] > 0 or found["missing"] > 0))
    return worst


def _verify(args: argparse.Namespace) -> int:
    import torch

    from labkit.studies.reach import unverified, verify_reach
    from labkit.studies.recorder import verify

    torch.set_num_threads(1)
    wrong = 0
    for study in _studies(args):
        if args.reach:
            if unverified(study, args.folder):
                wrong += bool(verify_reach(study, np.random.default_rng(args.draw), folder=args.folder))
            else:
                print(f"{study.lesson}  verified")
            continue
        arm = study.cheap if args.cheap else ""
        (arm, seed), lines = verify(study, folder=args.folder, arm=arm, rng=np.random.default_rng(args.draw))
        print(f"{study.lesson}  {arm}/{seed}: {'agrees' if not lines else '; '.join(lines)}")
        wrong += bool(lines)
    return 1 if wrong else 0


def _adopt(args: argparse.Namespace) -> int:
    import torch

    from labkit.studies.recorder import adopt

    torch.set_num_threads(1)
    wrong = 0
    loaded = {study.lesson: study.fingerprint() for study in _studies(args)}
    for study in _studies(args):
        rng = np.random.default_rng(args.draw)
        differ = adopt(study, folder=args.folder, rng=rng, loaded=loaded[study.lesson])
        for (arm, seed), lines in differ.items():
            print(f"{study.lesson}  {arm}/{seed}: {'; '.join(lines)}: not adopted, record anew")
        wrong += bool(differ)
    return 1 if wrong else 0


def _merge(args: argparse.Namespace) -> int:
    from labkit.studies import load_study
    from labkit.studies.store import merge

    print(f"{merge(load_study(args.number), args.other, args.folder)} units added")
    return 0


def _check(args: argparse.Namespace) -> int:
    from labkit.authoring.readings import outgrown, unstated
    from labkit.course.evidence import BUDGET, changed_verdicts, undecided
    from labkit.studies import read_record
    from labkit.studies.reach import unverified
    from labkit.studies.shipped import check_tensors
    from labkit.studies.store import status

    problems = []
    if args.folder is None:
        try:
            check_tensors()
        except LabkitError as error:
            problems.append(str(error))
    for study in _studies(args):
        found = status(study, read_record(study.lesson, args.folder))
        if found["stale"] or found["damaged"]:
            cause = f"other {' and '.join(found['changed'])}" if found["stale"] else "damaged numbers"
            problems.append(f"study {study.lesson}: {found['stale'] or found['damaged']} units with {cause}")
        elif found["unplanned"]:
            problems.append(
                f"study {study.lesson}: {found['unplanned']} units that it does not plan: plan them, or drop them with "
                f"`labkit study run {study.lesson} --anew`"
            )
        else:
            problems += changed_verdicts(study.lesson, args.folder)
            problems += [line] if (line := unverified(study, args.folder)) else []
            problems += outgrown(study.lesson, folder=args.folder) + unstated(study.lesson, folder=args.folder)
            if args.folder is None and not found["missing"]:  # nothing planned is left that could decide them
                within, _ = undecided(study.lesson)
                problems += [f"l{study.lesson}.{one}: undecided within {BUDGET:g} CPU hours: plan it" for one in within]
    print("\n".join(problems) or "recorded studies are up to date and say what the claims declare and the texts state")
    return 1 if problems else 0


ACTIONS = {"run": _run, "status": _status, "verify": _verify, "adopt": _adopt, "merge": _merge, "check": _check}
