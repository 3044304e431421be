"""Teach a room: archives without network, a hub for all, a board of who has solved what.

labkit camp bundle                                    one zip for this kind of machine, in build/camp
labkit camp bundle --platform all --python 3.12       for Linux, Windows and macOS
labkit camp learners CAMP 20 --teacher sensei         names learner01 ... and passphrases, on CAMP/slips.csv
labkit camp learners CAMP names.txt                   names of your own, one a line
labkit camp serve CAMP --lang ja                      JupyterHub on this machine, each learner under an own account
labkit camp board CAMP/board --html board.html        what learners chose to share

docs/guide.en.md and docs/guide.ja.md have the timetables, docs/camp.en.md and docs/camp.ja.md the hub and Kubernetes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from labkit.course.i18n import LANGUAGES
from labkit.course.manifest import Project
from labkit.errors import LabkitError
from labkit.files import write_atomically

PYTHONS = ("3.11", "3.12", "3.13")
GIGABYTE = 2**30
ROOM_GB = 3  # free space that one bundle wants while it is made


def add_parser(subparsers: Any) -> None:
    """Register `labkit camp`."""
    parser = subparsers.add_parser("camp", help="teach a room: bundle, hub, board", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    steps = parser.add_subparsers(title="steps", metavar="STEP", required=True)

    bundle = steps.add_parser("bundle", help="an archive that installs without network")
    bundle.add_argument(
        "--platform", action="append", metavar="NAME", help="linux-x86_64, windows-amd64, macos-arm64, all"
    )
    bundle.add_argument(
        "--python", action="append", choices=PYTHONS, help="version of Python there (default: this one)"
    )
    bundle.add_argument("--find-links", action="append", default=[], metavar="PLACE", help="look for wheels here first")
    bundle.add_argument("--output", type=Path, help="folder of the archives (default: build/camp)")
    bundle.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    bundle.set_defaults(func=run_bundle)

    learners = steps.add_parser("learners", help="names and passphrases for the hub")
    learners.add_argument("folder", type=Path, metavar="CAMP", help="folder of the room")
    learners.add_argument("who", nargs="?", metavar="N|FILE", help="how many, or a file with one name a line")
    learners.add_argument("--teacher", action="append", default=[], metavar="NAME", help="may also administer the hub")
    learners.add_argument("--reset", action="append", default=[], metavar="NAME", help="gets a new passphrase")
    learners.set_defaults(func=run_learners)

    serve = steps.add_parser("serve", help="JupyterHub for the room, on this machine (as root, Linux)")
    serve.add_argument("folder", type=Path, metavar="CAMP", help="folder of the room")
    serve.add_argument("--address", default="0.0.0.0", help="where it listens (default: everywhere)")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--memory", type=float, default=3.0, metavar="GB", help="for each learner (default: 3)")
    serve.add_argument("--cores", type=int, default=1, help="for each learner; 0 for all (default: 1)")
    serve.add_argument("--threads", type=int, default=1, help="of OpenMP in each process (default: 1)")
    serve.add_argument("--processes", type=int, default=256, help="and threads, for each learner (default: 256)")
    serve.add_argument("--certificate", type=Path, help="PEM file, for https")
    serve.add_argument("--key", type=Path, help="PEM file of its key")
    serve.add_argument("--lang", choices=LANGUAGES, default="en", help="of the lesson that opens first")
    serve.set_defaults(func=run_serve)

    board = steps.add_parser("board", help="a table of the summaries that learners share")
    board.add_argument("folder", type=Path, metavar="FOLDER", help="holds NAME.json files (labkit progress --share)")
    board.add_argument("--html", type=Path, metavar="FILE", help="write the board as a page too")
    board.add_argument("--lang", choices=LANGUAGES, default="en")
    board.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    board.set_defaults(func=run_board)


def run_bundle(args: argparse.Namespace) -> int:
    """Make the archives: 0; 2 with a line where one cannot be made."""
    from labkit.camp.bundle import PLATFORMS, build_bundle, free_bytes, this_platform

    root = (args.root or Project().root).resolve()
    output = args.output or root / "build" / "camp"
    wanted = args.platform or [this_platform() or "all"]
    platforms = list(PLATFORMS) if "all" in wanted else wanted
    unknown = [one for one in platforms if one not in PLATFORMS]
    if unknown:
        return refuse(f"unknown platform {unknown[0]!r}; choose one of {', '.join(PLATFORMS)}, all")
    pythons = args.python or [f"{sys.version_info[0]}.{sys.version_info[1]}"]
    site = root / "build" / "site"
    if not (site / "index.html").is_file():
        print("build/site is missing: the archive has no web pages (make site, then again)")
        site = None
    try:
        for platform in platforms:
            free = free_bytes(output) / GIGABYTE
            if free < ROOM_GB * len(pythons):
                return refuse(f"{free:.1f} GB free for {output}; {ROOM_GB * len(pythons)} GB are needed")
            archive = build_bundle(root, platform, pythons, output, find_links=args.find_links, site=site)
            print(f"{archive.stat().st_size / 2**20:.0f} MB: {archive}")
    except LabkitError as error:
        return refuse(str(error))
    return 0


def run_learners(args: argparse.Namespace) -> int:
    """Write roster and slips: 0; 2 with a line for names that cannot be accounts."""
    from labkit.camp.roster import enrol, write_private

    try:
        names = _names(args.who)
        given = enrol(args.folder / "roster.json", names, teachers=args.teacher, reset=args.reset)
    except (LabkitError, UnicodeDecodeError) as error:
        return refuse(str(error))
    if not given:
        print("nobody new; --reset NAME gives somebody a new passphrase")
        return 0
    slips = args.folder / "slips.csv"
    lines = "".join(f"{name},{passphrase}\n" for name, passphrase in given.items())
    write_private(slips, f"name,passphrase\n{lines}")
    print(f"{len(given)} new passphrases in {slips}: print them, hand them out, delete the file")
    return 0


def _names(who: str | None) -> list[str]:
    if who is None:
        return []
    if who.isascii() and who.isdigit():
        return [f"learner{number:02d}" for number in range(1, int(who) + 1)]
    lines = Path(who).read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def run_serve(args: argparse.Namespace) -> int:
    """Become JupyterHub; 2 with a line where this machine cannot serve a room."""
    from labkit.camp.serve import Limits, hub_command, prepare
    from labkit.course.workspace import become

    try:
        proxy, new = prepare(args.folder)
    except LabkitError as error:
        return refuse(str(error))
    if new:
        print(f"{len(new)} accounts made: {', '.join(new)}")
    if args.certificate is None:
        print("without --certificate passphrases and work travel unencrypted: only for a network that you trust")
    limits = Limits(args.memory, args.cores, args.threads, args.processes)
    command = hub_command(
        args.folder,
        **{"address": args.address, "port": args.port, "limits": limits, "lang": args.lang, "proxy": proxy},
        **{"certificate": args.certificate, "key": args.key},
    )
    os.chdir(args.folder / "hub")
    return become(command, os.environ)


def run_board(args: argparse.Namespace) -> int:
    """Print the board: 0; 2 with a line where there is no such folder."""
    from labkit.camp.board import board, board_ids, read_summaries, texts
    from labkit.course.render import language, terminal_language

    if not args.folder.is_dir():
        return refuse(f"{args.folder} is no folder")
    project = Project(args.root) if args.root else None
    lang = terminal_language(args.lang)
    learners, problems = read_summaries(args.folder, board_ids(project))
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not learners:
        print(texts(lang)("none", folder=args.folder))
        return 0
    with language(args.lang):
        markup, _ = board(learners, project, args.lang)
    with language(lang):
        print(board(learners, project, lang)[1])
    if args.html:
        write_atomically(args.html, markup)
    return 0


def refuse(text: str) -> int:
    """Say on stderr why the command does not go on; 2."""
    print(f"labkit camp: {text}", file=sys.stderr)
    return 2
