"""Inspect a folder of pictures: plan, draw, look, sign, verify.

labkit inspect PICTURES --plan bad=0.02 --maker A --checker B      all in one: draws, opens the page, writes the record

labkit inspect plan --lot 500 --plan good=0.01,bad=0.05
labkit inspect draw PICTURES --plan bad=0.02 --seed 20261128       writes the job and the page on which people look
labkit inspect sign PICTURES verdicts-*.jsonl --maker A --checker B
labkit inspect verify inspection/record-*.json --folder PICTURES
labkit inspect certify CALIBRATION verdicts-*.jsonl --scores scores.jsonl --alpha 0.02

A plan is written bad=RATE, good=RATE,bad=RATE, aql=PERCENT, N/C (look at N, accept up to C), or all.
"""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.files import write_atomically
from labkit.inspection.calibration import certify_lot, read_certificate, write_certificate
from labkit.inspection.digest import digest_process
from labkit.inspection.equations import acceptance, lot_upper_bound, upper_bound
from labkit.inspection.gate import Screening
from labkit.inspection.job import Job, draw, open_job, read_job, write_job
from labkit.inspection.judge import StoredJudge
from labkit.inspection.lot import InspectionError, Lot, read_lot
from labkit.inspection.page import write_page
from labkit.inspection.planning import add_plan_options, choose_plan
from labkit.inspection.record import folder_problems, read_sign_off, record_problems, write_sign_off
from labkit.inspection.report import record_html
from labkit.inspection.serve import Sitting
from labkit.inspection.texts import LANGUAGES
from labkit.inspection.verdicts import DEFECTS, POLICIES, REPEATS, gather_verdicts

OUT = "inspection"  # default folder of what the command writes
ALL_AT_ONCE = "run"  # the step behind `labkit inspect FOLDER`


class StepOrFolder(argparse._SubParsersAction):
    """Steps by name; anything else is a folder that goes through all of them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values[0] not in self._name_parser_map:
            values = [ALL_AT_ONCE, *values]
        super().__call__(parser, namespace, values, option_string)


def add_parser(subparsers: Any) -> None:
    """Register `labkit inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help="inspect a folder of pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(title="steps", metavar="STEP or FOLDER", required=True, action=StepOrFolder)
    steps.choices = None  # not only the steps

    plan = steps.add_parser("plan", help="show a plan and what it lets through")
    plan.add_argument("--lot", type=int, help="pictures in the lot (default: very many)")
    add_plan_options(plan)
    plan.set_defaults(func=_guarded(run_plan))

    at_once = steps.add_parser(ALL_AT_ONCE, help="FOLDER --plan ...: draw, open the page, write the record")
    _lot_options(at_once)
    add_plan_options(at_once)
    _people_options(at_once)
    at_once.add_argument("--inspectors", type=int, default=1, metavar="N", help="people who look (default: 1)")
    at_once.add_argument("--no-browser", action="store_true", help="print the page's address, open nothing")
    at_once.add_argument("--wait", type=float, metavar="MINUTES", help="give up after this time (default: never)")
    at_once.set_defaults(func=_guarded(run_at_once))

    drawn = steps.add_parser("draw", help="apply the filters, draw the sample, write the inspection page")
    _lot_options(drawn)
    add_plan_options(drawn)
    drawn.set_defaults(func=_guarded(run_draw))

    sign = steps.add_parser("sign", help="count the verdicts, decide, write the record")
    sign.add_argument("folder", type=Path, help="the pictures of the lot")
    sign.add_argument("verdicts", type=Path, nargs="+", help="files that the inspectors saved")
    _people_options(sign)
    sign.add_argument("--out", type=Path, default=Path(OUT), help=f"folder of the job (default: {OUT})")
    sign.add_argument("--lang", choices=LANGUAGES, default="ja", help="language of the page for disputed pictures")
    sign.set_defaults(func=_guarded(run_sign))

    verify = steps.add_parser("verify", help="check records: edited fields, seal, sample, decision, pictures")
    verify.add_argument("records", type=Path, nargs="+", metavar="RECORD")
    verify.add_argument("--seal", default="", help="the seal of the record that was kept elsewhere")
    verify.add_argument("--folder", type=Path, help="also compare the pictures that passed")
    verify.set_defaults(func=_guarded(run_verify))

    certify = steps.add_parser("certify", help="certify a threshold of a score on labelled pictures")
    certify.add_argument("folder", type=Path, help="the calibration pictures, a random draw from the process")
    certify.add_argument("verdicts", type=Path, nargs="+", help="what people said about all of them")
    certify.add_argument("--scores", type=Path, required=True, help="JSON lines: judge, sha256, score")
    certify.add_argument("--judge", default="", help="whose scores, if the file holds several judges'")
    certify.add_argument("--alpha", type=float, required=True, help="largest share of defectives, e.g. 0.02")
    certify.add_argument("--delta", type=float, default=0.05, help="chance that this is wrong (default: 0.05)")
    certify.add_argument("--model", type=Path, help="file or folder that made the pictures")
    certify.add_argument("--policy", choices=POLICIES, default="any", help="several inspectors (default: any)")
    certify.add_argument("--out", type=Path, default=Path("certificate.json"), help="default: certificate.json")
    certify.set_defaults(func=_guarded(run_certify))


def _lot_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the pictures of the lot")
    parser.add_argument("--seed", help="of the sample; chosen by the checker after the lot is closed (default: random)")
    parser.add_argument("--size", metavar="WxH", type=_size, help="rule: exact size in pixels")
    parser.add_argument("--duplicates", type=float, metavar="LEVELS", help="rule: no two pictures closer than this (2)")
    parser.add_argument("--provenance", action="store_true", help="rule: the PNG carries provenance that fits")
    parser.add_argument(
        "--model", type=Path, help="what made the pictures (file or folder): its hash goes into the record"
    )
    parser.add_argument("--certificate", type=Path, help="preference filter: what labkit inspect certify wrote")
    parser.add_argument("--scores", type=Path, help="preference filter: JSON lines with judge, sha256, score")
    parser.add_argument("--abstain", type=float, default=0.0, metavar="WIDTH", help="band below it for people")
    parser.add_argument("--band", type=Path, nargs="+", default=[], help="verdict files on the pictures of that band")
    parser.add_argument("--out", type=Path, default=Path(OUT), help=f"folder for the job (default: {OUT})")
    parser.add_argument("--lang", choices=LANGUAGES, default="ja", help="language of the page (default: ja)")


def _people_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--maker", required=True, help="who made the pictures")
    parser.add_argument("--checker", required=True, help="who decides; another person")
    parser.add_argument("--policy", choices=POLICIES, default="any", help="several inspectors (default: any)")
    parser.add_argument("--repeats", choices=REPEATS, default="refuse", help="one person twice (default: refuse)")
    parser.add_argument("--previous", default="", metavar="SEAL", help="seal of the record before this one")


def run_plan(args: argparse.Namespace) -> int:
    """`labkit inspect plan`."""
    if args.lot is not None and args.lot < 1:
        raise InspectionError(f"--lot {args.lot}: a lot has at least one picture")
    plan = choose_plan(args, args.lot)
    rates = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
    if args.lot is None:
        worst = f"{upper_bound(plan.c, plan.n, confidence=0.9):.1%} of defectives"
        lots = {rate: f"{rate:6.2%} defective" for rate in rates}
    else:  # whole pictures: a lot of 60 has 1 or 2 bad ones, not 2 %
        bad = lot_upper_bound(plan.c, plan.n, lot=args.lot, confidence=0.9)
        worst = f"{bad} of {args.lot} pictures defective ({bad / args.lot:.1%})"
        counts = sorted({max(1, round(rate * args.lot)) for rate in rates})
        lots = {count / args.lot: f"{count:5} defective ({count / args.lot:.1%})" for count in counts}
    passes = {name: acceptance(rate, n=plan.n, c=plan.c, lot=args.lot) for rate, name in lots.items()}
    print(f"n = {plan.n}, c = {plan.c}   {plan.source}")
    print(f"the worst lot that still passes more than one time in ten: {worst}")
    for name, share in passes.items():
        print(f"  {name}: accepted {share:6.1%}")
    return 0


def run_draw(args: argparse.Namespace) -> int:
    """`labkit inspect draw`: 0 drawn, 1 pictures of the abstain band wait for people."""
    job, lot, screening = _opened(args)
    if _band_waits(args, job, lot, screening):
        return 1
    job, sample = draw(job, screening, choose_plan(args, len(screening.passed)), args.seed)
    write_job(args.out, job)
    page = write_page(args.out / "inspect.html", lot, sample, DEFECTS, lang=args.lang)
    print(f"n = {job.plan.n}, c = {job.plan.c}, seed {job.seed}\nopen {page}, and save the verdicts")
    print(f"then: labkit inspect sign {args.folder} VERDICTS.jsonl --maker NAME --checker NAME --out {args.out}")
    return 0


def run_at_once(args: argparse.Namespace) -> int:
    """`labkit inspect FOLDER`: 0 accepted, 1 refused or pictures of the abstain band wait for people."""
    if args.inspectors < 1:
        raise InspectionError(f"--inspectors {args.inspectors}: at least one person must look")
    job, lot, screening = _opened(args)
    if _band_waits(args, job, lot, screening):
        return 1
    job, sample = draw(job, screening, choose_plan(args, len(screening.passed)), args.seed)
    write_job(args.out, job)  # whatever happens now, draw and verdicts are not lost
    who = {"inspectors": args.inspectors, "barred": [args.maker]}
    with Sitting(lot, sample, DEFECTS, lang=args.lang, keep=args.out, **who) as sitting:
        print(f"n = {job.plan.n}, c = {job.plan.c}, seed {job.seed}\nopen {sitting.address}", flush=True)
        if not args.no_browser:
            webbrowser.open(sitting.address)
        verdicts = sitting.wait(None if args.wait is None else 60 * args.wait)
    return _sign(args, job, lot, verdicts)


def run_sign(args: argparse.Namespace) -> int:
    """`labkit inspect sign`: 0 accepted, 1 refused."""
    job, lot = read_job(args.out), read_lot(args.folder)
    return _sign(args, job, lot, gather_verdicts(args.verdicts, repeats=args.repeats))


def _sign(args: argparse.Namespace, job: Job, lot: Lot, verdicts: Sequence[Any]) -> int:
    people = {"maker": args.maker, "checker": args.checker, "policy": args.policy, "repeats": args.repeats}
    record = job.sign(lot, verdicts, previous=args.previous, **people)
    name = f"record-{record['seal'][:8]}"  # no record takes the place of another
    print(f"wrote {write_sign_off(args.out / f'{name}.json', record)}")
    for lang in LANGUAGES:
        print(f"wrote {write_atomically(args.out / f'{name}.{lang}.html', record_html(record, lang))}")
    seen = record["content"]["inspection"]
    if disputed := seen["disagreements"]:
        page = write_page(args.out / "disputed.html", lot, disputed, DEFECTS, lang=args.lang, barred=[args.maker])
        alpha = "" if seen["agreement"] is None else f" (Krippendorff's alpha {seen['agreement']:.2f})"
        print(f"the inspectors disagree on {len(disputed)} pictures{alpha}; a third person can look at {page}")
    accepted, reasons = (record["content"]["decision"][key] for key in ("accepted", "reasons"))
    print(f"{'accepted' if accepted else 'refused: ' + '; '.join(reasons)}\nseal {record['seal']}")
    return 0 if accepted else 1


def _opened(args: argparse.Namespace) -> tuple[Job, Lot, Screening]:
    """The lot behind the filters, with a line for every count and every rejection."""
    if (args.certificate is None) != (args.scores is None):
        raise InspectionError("a preference filter needs both: --certificate and --scores")
    size = list(args.size) if args.size else None
    rules = {"size": size, "duplicates": args.duplicates, "provenance": args.provenance or None}
    certificate = None if args.certificate is None else read_certificate(args.certificate)
    judge = None if certificate is None else StoredJudge(args.scores, name=certificate.judge)
    job, lot, screening = open_job(
        args.folder,
        rules,
        digest_process(model=args.model),
        certificate=certificate,
        judge=judge,
        abstain=args.abstain,
        band=gather_verdicts(args.band),
    )
    for name, count in screening.counts().items():
        print(f"{count:6d} {name}")
    for rejection in screening.rejections:
        print(f"       {rejection.item}: {rejection.rule}, {rejection.value}")
    return job, lot, screening


def _band_waits(args: argparse.Namespace, job: Job, lot: Lot, screening: Screening) -> bool:
    """Pictures were left to people and nobody has looked: write their page and say how to go on."""
    if not screening.abstained or args.band:
        return False
    page = write_page(args.out / "band.html", lot, screening.abstained, DEFECTS, lang=args.lang)
    print(f"{len(screening.abstained)} pictures lie in the band below the threshold\nopen {page}, save the verdicts,")
    print("and call the same again with --band VERDICTS; those that nobody decides do not ship")
    return True


def run_certify(args: argparse.Namespace) -> int:
    """`labkit inspect certify`."""
    lot, judge = read_lot(args.folder), StoredJudge(args.scores, name=args.judge)
    for name, why in lot.unreadable.items():
        print(f"       {name}: readable, {why}")
    certificate = certify_lot(
        lot,
        judge,
        gather_verdicts(args.verdicts),
        alpha=args.alpha,
        delta=args.delta,
        process=digest_process(model=args.model),
        policy=args.policy,
    )
    print(f"score >= {certificate.threshold:g}: at most {args.alpha:.1%} defective, {1 - args.delta:.0%} confidence")
    print(
        f"{certificate.passes:.1%} of the calibration pictures pass\nwrote {write_certificate(args.out, certificate)}"
    )
    return 0


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
