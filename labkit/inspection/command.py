"""Inspect a folder of pictures: plan, draw, look, sign, verify.

labkit inspect PICTURES --plan bad=0.02 --maker A --checker B      all in one: draws, opens the page, writes the record

labkit inspect plan --lot 500 --plan good=0.01,bad=0.05
labkit inspect draw PICTURES --plan bad=0.02 --seed 20261128       writes the job and the page on which people look
labkit inspect sign PICTURES verdicts-*.jsonl --maker A --checker B
labkit inspect verify inspection/record-*.json --folder PICTURES
labkit inspect certify CALIBRATION verdicts-*.jsonl --scores scores.jsonl --alpha 0.02

A plan is written bad=RATE, good=RATE,bad=RATE, aql=PERCENT, N/C (look at N, accept up to C), or all. What was
interrupted goes on when the same is called again: the sample stays, and what was handed in counts.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shlex
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, in_options
from labkit.files import locale_language, write_atomically
from labkit.inspection.calibration import certify_lot
from labkit.inspection.digest import digest_path, digest_process
from labkit.inspection.equations import acceptance, lot_upper_bound, upper_bound
from labkit.inspection.gate import Screening
from labkit.inspection.job import JOB, Job, draw, open_job, read_job, write_job
from labkit.inspection.judge import StoredJudge
from labkit.inspection.lot import InspectionError, Lot, read_lot
from labkit.inspection.page import write_page
from labkit.inspection.planning import add_plan_options, choose_plan
from labkit.inspection.prompts import read_prompts
from labkit.inspection.record import check_people, folder_problems, read_sign_off, record_problems, write_sign_off
from labkit.inspection.report import page_problems, record_html
from labkit.inspection.sealed import open_certificate, seal_certificate
from labkit.inspection.serve import Sitting
from labkit.inspection.texts import LANGUAGES
from labkit.inspection.verdicts import (
    DEFECTS,
    POLICIES,
    REPEATS,
    gather_verdicts,
    make_defects,
    read_defects,
)

OPTIONS = {"value_range": "save it with 8 or 16 bits"}
OUT = "inspection"  # default folder of what the command writes
ALL_AT_ONCE = "run"  # the step behind `labkit inspect FOLDER`


class StepOrFolder(argparse._SubParsersAction):
    """Steps by name; anything else is a folder that goes through all of them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values[0] not in self._name_parser_map:
            if not Path(values[0]).is_dir():  # before the options: they are not what is wrong
                steps = ", ".join(name for name in self._name_parser_map if name != ALL_AT_ONCE)
                print(f"labkit inspect: {values[0]} is not a folder, and none of the steps {steps}", file=sys.stderr)
                parser.exit(2)
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
    _language_option(sign, "page for disputed pictures")
    sign.set_defaults(func=_guarded(run_sign))

    verify = steps.add_parser("verify", help="check records: edited fields, seal, sample, decision, pictures")
    verify.add_argument("records", type=Path, nargs="+", metavar="RECORD")
    verify.add_argument("--seal", default="", help="the seal of the record that was kept elsewhere")
    verify.add_argument("--folder", type=Path, help="also compare the pictures")
    verify.set_defaults(func=_guarded(run_verify))

    certify = steps.add_parser("certify", help="certify a threshold of a score on labelled pictures")
    certify.add_argument("folder", type=Path, help="the calibration pictures, a random draw from the process")
    certify.add_argument("verdicts", type=Path, nargs="+", help="what people said about all of them")
    certify.add_argument("--scores", type=Path, required=True, help="JSON lines: judge, sha256, score")
    certify.add_argument("--judge", default="", help="whose scores, if the file holds several judges'")
    certify.add_argument("--alpha", type=float, required=True, help="largest share of defectives, e.g. 0.02")
    certify.add_argument("--delta", type=float, default=0.05, help="chance that this is wrong (default: 0.05)")
    certify.add_argument("--model", type=Path, required=True, help="file or folder that made the pictures")
    certify.add_argument("--adapter", type=Path, help="adapter (LoRA) on the model")
    certify.add_argument("--defects", type=Path, help="your list of defects, as for draw")
    certify.add_argument("--policy", choices=POLICIES, default="any", help="several inspectors (default: any)")
    certify.add_argument("--out", type=Path, default=Path("certificate.json"), help="default: certificate.json")
    certify.set_defaults(func=_guarded(run_certify))


def _lot_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the pictures of the lot")
    parser.add_argument("--seed", help="of the sample; chosen by the checker after the lot is closed (default: random)")
    parser.add_argument("--size", metavar="WxH", type=_size, help="rule: exact size in pixels")
    parser.add_argument(
        "--duplicates", type=float, metavar="LEVELS", help="rule: no two pictures closer than this (try 2; 0: copies)"
    )
    parser.add_argument("--provenance", action="store_true", help="rule: the PNG carries provenance that fits")
    parser.add_argument(
        "--model", type=Path, help="what made the pictures (file or folder): its hash goes into the record"
    )
    parser.add_argument("--adapter", type=Path, help="the same for an adapter (LoRA) on the model")
    parser.add_argument("--prompts", type=Path, help="what was ordered: .csv or .jsonl with file_name and prompt")
    parser.add_argument("--defects", type=Path, help="your list of defects, YAML or JSON: code, severity, en, ja")
    parser.add_argument("--certificate", type=Path, help="preference filter: what labkit inspect certify wrote")
    parser.add_argument("--scores", type=Path, help="preference filter: JSON lines with judge, sha256, score")
    parser.add_argument("--abstain", type=float, default=0.0, metavar="WIDTH", help="band below it for people")
    parser.add_argument("--band", type=Path, nargs="+", default=[], help="verdict files on the pictures of that band")
    parser.add_argument("--out", type=Path, default=Path(OUT), help=f"folder for the job (default: {OUT})")
    _language_option(parser, "page")


def _language_option(parser: argparse.ArgumentParser, what: str) -> None:
    text = f"language of the {what} (default: ja if the locale is Japanese, else en)"
    parser.add_argument("--lang", choices=LANGUAGES, default=locale_language(), help=text)


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
    job, sample = _drawn(args, job, screening)
    page = write_page(args.out / "inspect.html", lot, sample, make_defects(job.defects), lang=args.lang, draw=job.name)
    print(f"open {page}, and save the verdicts")
    print(
        f"then: labkit inspect sign {_q(args.folder)} VERDICTS.jsonl --maker NAME --checker NAME --out {_q(args.out)}"
    )
    return 0


def run_at_once(args: argparse.Namespace) -> int:
    """`labkit inspect FOLDER`: 0 accepted, 1 refused or pictures of the abstain band wait for people."""
    if args.inspectors < 1:
        raise InspectionError(f"--inspectors {args.inspectors}: at least one person must look")
    check_people(args.maker, args.checker)  # before anybody has worked for nothing
    job, lot, screening = _opened(args)
    if _band_waits(args, job, lot, screening):
        return 1
    job, sample = _drawn(args, job, screening)  # whatever happens now, draw and verdicts are not lost
    who = {"inspectors": args.inspectors, "barred": [args.maker], "draw": job.name}
    with Sitting(lot, sample, make_defects(job.defects), lang=args.lang, keep=args.out, **who) as sitting:
        if sitting.by_person:
            print(f"{len(sitting.by_person)} of {args.inspectors} inspectors have handed in before")
        if len(sitting.by_person) < args.inspectors:
            print(f"open {sitting.address}", flush=True)
            if not args.no_browser:
                webbrowser.open(sitting.address)
        try:
            verdicts = sitting.wait(None if args.wait is None else 60 * args.wait)
        except KeyboardInterrupt:
            count = f"{len(sitting.by_person)} of {args.inspectors} inspectors handed in"
            print(f"labkit inspect: interrupted, {count}; call the same again to go on", file=sys.stderr)
            return 130
    return _sign(args, job, read_lot(args.folder, texts=job.texts), verdicts)


def run_sign(args: argparse.Namespace) -> int:
    """`labkit inspect sign`: 0 accepted, 1 refused."""
    job = read_job(args.out)
    lot = read_lot(args.folder, texts=job.texts)
    return _sign(args, job, lot, gather_verdicts(_expanded(args.verdicts), repeats=args.repeats, draw=job.name))


def _sign(args: argparse.Namespace, job: Job, lot: Lot, verdicts: Sequence[Any]) -> int:
    people = {"maker": args.maker, "checker": args.checker, "policy": args.policy, "repeats": args.repeats}
    earlier = _decided(args.out, job.lot)
    record = job.sign(lot, verdicts, previous=args.previous, **people)
    name = f"record-{record['seal'][:8]}"  # no record takes the place of another
    print(f"wrote {write_sign_off(args.out / f'{name}.json', record)}")
    for lang in LANGUAGES:
        print(f"wrote {write_atomically(args.out / f'{name}.{lang}.html', record_html(record, lang))}")
    if earlier and not args.previous:
        print(f"this lot was decided before: {', '.join(earlier)}; --previous SEAL ties the records together")
    seen = record["content"]["inspection"]
    if disputed := seen["disagreements"]:
        pages = {"lang": args.lang, "barred": [args.maker], "draw": job.name}
        page = write_page(args.out / "disputed.html", lot, disputed, make_defects(job.defects), **pages)
        alpha = "" if seen["agreement"] is None else f" (Krippendorff's alpha {seen['agreement']:.2f})"
        print(f"the inspectors disagree on {len(disputed)} pictures{alpha}; a third person can look at {page}")
        if args.policy != "majority":
            print("and then all files of verdicts are signed together with --policy majority")
    accepted, reasons = (record["content"]["decision"][key] for key in ("accepted", "reasons"))
    print(f"{'accepted' if accepted else 'refused: ' + '; '.join(reasons)}\nseal {record['seal']}")
    return 0 if accepted else 1


def _opened(args: argparse.Namespace) -> tuple[Job, Lot, Screening]:
    """The lot behind the filters, with a line for every count and every rejection."""
    if (args.certificate is None) != (args.scores is None):
        raise InspectionError("a preference filter needs both: --certificate and --scores")
    if args.certificate is None and (args.abstain or args.band):
        raise InspectionError("--abstain and --band belong to a preference filter: give --certificate and --scores")
    if args.certificate is not None and args.model is None:
        raise InspectionError("a threshold holds for one model: say with --model what made these pictures")
    size = list(args.size) if args.size else None
    rules = {"size": size, "duplicates": args.duplicates, "provenance": args.provenance or None}
    certificate = None if args.certificate is None else open_certificate(args.certificate)
    judge = None if certificate is None else StoredJudge(args.scores, name=certificate.judge)
    made_by = {"model": args.model, "adapter": args.adapter, "prompts": args.prompts}
    job, lot, screening = open_job(
        args.folder,
        rules,
        process_of(args.model, args.adapter),
        certificate=certificate,
        judge=judge,
        abstain=args.abstain,
        band=gather_verdicts(_expanded(args.band)),
        parts={name: digest_path(path) for name, path in made_by.items() if path is not None},
        texts=read_prompts(args.prompts) if args.prompts else None,
        defects=read_defects(args.defects) if args.defects else DEFECTS,
    )
    for name, count in screening.counts().items():
        print(f"{count:6d} {name}")
    for rejection in screening.rejections:
        print(f"       {rejection.item}: {rejection.rule}, {rejection.value}")
    if job.texts and (bare := sum(not item.text for item in lot.items)):
        print(f"{bare:6d} pictures without a prompt")
    if lot.others:
        print(f"{len(lot.others):6d} other files, no pictures: {_some(lot.others)}")
    if twice := {name: first for name, first in lot.copies.items() if {name, first} <= set(screening.passed)}:
        told = _some([f"{name} = {first}" for name, first in twice.items()])
        print(f"{len(twice):6d} exact copies among the passed: {told}; --duplicates 0 leaves them out")
    return job, lot, screening


def _drawn(args: argparse.Namespace, job: Job, screening: Screening) -> tuple[Job, list[str]]:
    """The sample, kept in the job. A draw that nobody has signed yet goes on: who may draw until the sample looks good
    inspects nothing.

    Raises:
        InspectionError: another draw waits in --out for its signature.
    """
    plan, before = choose_plan(args, len(screening.passed)), None
    if (args.out / JOB).exists():
        before = read_job(args.out)
        if _decided(args.out, before.lot, before.seed):
            before = None
    seed = before.seed if before is not None and args.seed is None else args.seed
    job, sample = draw(job, screening, plan, seed)
    if before is not None and job.name != before.name:
        raise InspectionError(
            f"{args.out / JOB} waits for its signature (seed {before.seed}, n = {before.plan.n}): sign it, or give "
            "another --out"
        )
    write_job(args.out, job)
    again = "" if before is None else " (drawn before)"
    print(f"n = {job.plan.n}, c = {job.plan.c}, seed {job.seed}{again}")
    return job, sample


def _decided(out: Path, lot: str, seed: str | None = None) -> list[str]:
    """Names of the records in a folder that decide on a lot (with a seed), by its hash."""
    found = []
    for path in sorted(out.glob("record-*.json")):
        try:
            content = read_sign_off(path)["content"]
            if content["lot"]["sha256"] == lot and seed in (None, content["sample"]["seed"]):
                found.append(path.name)
        except (InspectionError, KeyError, TypeError):
            continue  # `verify` says what is wrong with it
    return found


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def _q(path: Path) -> str:
    """A path as one word of a command line."""
    return shlex.quote(str(path)) if os.name == "posix" else f'"{path}"' if " " in str(path) else str(path)


def _expanded(paths: Sequence[Path]) -> list[Path]:
    """The paths, with patterns such as verdicts-*.jsonl filled in where no shell has done it (Windows)."""
    found: list[Path] = []
    for path in paths:
        matches = [] if path.exists() else sorted(map(Path, glob.glob(str(path))))
        found += matches or [path]
    return found


def _band_waits(args: argparse.Namespace, job: Job, lot: Lot, screening: Screening) -> bool:
    """Pictures were left to people and nobody has looked: write their page and say how to go on."""
    if not screening.abstained or args.band:
        return False
    page = write_page(args.out / "band.html", lot, screening.abstained, make_defects(job.defects), lang=args.lang)
    print(f"{len(screening.abstained)} pictures lie in the band below the threshold\nopen {page}, save the verdicts,")
    print("and call the same again with --band VERDICTS; those that nobody decides do not ship")
    return True


def run_certify(args: argparse.Namespace) -> int:
    """`labkit inspect certify`."""
    if args.out.exists():
        raise InspectionError(f"{args.out} exists, and a certificate is not replaced: give another --out")
    lot, judge = read_lot(args.folder), StoredJudge(args.scores, name=args.judge)
    for name, why in lot.unreadable.items():
        print(f"       {name}: readable, {why}")
    certificate = certify_lot(
        lot,
        judge,
        gather_verdicts(_expanded(args.verdicts)),
        alpha=args.alpha,
        delta=args.delta,
        process=process_of(args.model, args.adapter),
        defects=read_defects(args.defects) if args.defects else DEFECTS,
        policy=args.policy,
    )
    print(f"score >= {certificate.threshold:g}: at most {args.alpha:.1%} defective, {1 - args.delta:.0%} confidence")
    print(f"{certificate.passes:.1%} of the calibration pictures pass\nwrote {seal_certificate(args.out, certificate)}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """`labkit inspect verify`: 0 all records and their pages stand, 1 one does not, 2 one cannot be read."""
    seal = args.seal.strip().lower()
    if seal and not re.fullmatch("[0-9a-f]{64}", seal):
        raise InspectionError(f"--seal {seal!r}: a seal has 64 hexadecimal digits, all of them count")
    worst = 0
    for path in _expanded(args.records):
        try:
            record = read_sign_off(path)
            problems = record_problems(record, seal=seal)
            if not problems:
                for page in _pages_of(path):
                    problems += page_problems(record, page)
            if args.folder is not None:
                problems += folder_problems(record, args.folder)
        except InspectionError as error:
            print(f"labkit inspect: {error}", file=sys.stderr)
            worst = 2
            continue
        worst = max(worst, int(bool(problems)))
        for line in problems or [f"stands; seal {record['seal']}"]:
            print(f"{path.name}: {line}")
    return worst


def _pages_of(path: Path) -> list[Path]:
    """The pages beside a record: NAME.html, NAME.en.html, NAME.ja.html."""
    names = [f"{path.stem}.html", *(f"{path.stem}.{lang}.html" for lang in LANGUAGES)]
    return [page for name in names if (page := path.with_name(name)).is_file()]


def process_of(model: Path | None, adapter: Path | None) -> str:
    """Hash of what made the pictures; the same with and without an adapter that is none."""
    return digest_process(model=model, **({} if adapter is None else {"adapter": adapter}))


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
            print(f"labkit inspect: {in_options(error, OPTIONS)}", file=sys.stderr)
            return 2

    return run
