"""The commands `labkit build` and `labkit stamp`: their options, what they print, what they return."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from labkit.authoring import build as build_module
from labkit.authoring.build import BuildError, build, drift, reconcile_pairs, select, write_if_changed
from labkit.authoring.source import read_source, stale_pairs, write_source
from labkit.authoring.stamp import (
    Stamp,
    StampError,
    fork_hint,
    git_repository,
    read_stamp,
    repository,
    with_stamp,
    write_stamp,
)
from labkit.course.i18n import LANGUAGES, Catalogue, common_messages
from labkit.course.manifest import Project


def add_build_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register `labkit build`."""
    parser = subparsers.add_parser(
        "build", help="make the notebooks from notebooks/src", description=build_module.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("numbers", nargs="*", metavar="NN", help="lessons (default: all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; fail if a generated file is not up to date")
    what.add_argument(
        "--reconcile",
        nargs="*",
        metavar="UID",
        help="confirm that these Markdown pairs (intro or 01:intro; default: all stale ones) agree, then build",
    )
    what.add_argument("--tidy", action="store_true", help="put the sources into canonical form, then build")
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(func=run_build)


def run_build(args: argparse.Namespace) -> int:
    """Run `labkit build`: 0 built (or up to date), 1 drift, 2 sources that cannot be built."""
    project = Project(args.root) if args.root else Project()
    try:
        if args.check:
            problems = drift(project, args.numbers)
            print("\n".join(map(str, problems)) or "generated notebooks are up to date")
            return 1 if problems else 0
        if args.reconcile is not None:
            print("\n".join(reconcile_pairs(project, args.numbers, args.reconcile)) or "no pair needed it")
        if args.tidy:
            for path in select(project, args.numbers):
                write_if_changed(path, write_source(read_source(path, project.relative(path))))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    return build_and_report(project, args.numbers)


def build_and_report(project: Project, numbers: Iterable[str] = ()) -> int:
    """Build, print what was written and which pairs are stale: 0 built, 2 sources that cannot be built."""
    start, numbers = time.perf_counter(), list(numbers)
    try:
        outputs = build(project, numbers)
        written = [output for output in outputs if not output.current]
        for stem in sorted({output.path.stem for output in written}):
            source = read_source(project.sources / f"{stem}.py")
            stale = ", ".join(f"{source.number}:{uid}" for uid in stale_pairs(source))
            if stale:
                print(f"compare the languages of {stale}; then run labkit build --reconcile UID ...", file=sys.stderr)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    if hint := fork_hint(read_stamp(project.stamp), project.root):
        print(hint, file=sys.stderr)
    for output in written:
        print(f"wrote {project.relative(output.path)}")
    lessons = len({output.path.stem for output in outputs})
    seconds = time.perf_counter() - start
    print(f"{lessons} lessons, {len(outputs)} notebooks: {len(written)} written, {seconds:.2f} s")
    return 0


def add_stamp_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register `labkit stamp`."""
    parser = subparsers.add_parser("stamp", help="write the repository's address into badges and install cells")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--repo", metavar="OWNER/NAME", help="GitHub repository, or its address")
    what.add_argument("--from-git", action="store_true", help="the repository that this clone came from (origin)")
    what.add_argument("--clear", action="store_true", help="take the address out again")
    parser.add_argument("--branch", default=None, help="branch that Colab opens (default: as it is, at first main)")
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(func=run_stamp)


def run_stamp(args: argparse.Namespace) -> int:
    """Run `labkit stamp`: 0 done (or shown, without options), 2 bad address."""
    project = Project(args.root) if args.root else Project()
    try:
        old = read_stamp(project.stamp)
        if not (args.repo or args.clear or args.branch or args.from_git):
            return show_stamp(old, project)
        asked = args.repo or (git_repository(project.root) if args.from_git else "")
        if args.from_git and not asked:
            raise StampError("this clone has no remote origin on GitHub; run labkit stamp --repo OWNER/NAME")
        repo = "" if args.clear else repository(asked) if asked else old.repo
        new = Stamp(repo, args.branch or old.branch)
    except StampError as error:
        print(error, file=sys.stderr)
        return 2
    write_stamp(project.stamp, new)
    for name in stamp_readmes(project, new):
        print(f"wrote {name}")
    print(f"stamped: {new.repo} (branch {new.branch})" if new.repo else "stamp removed")
    return build_and_report(project)


def show_stamp(stamp: Stamp, project: Project) -> int:
    """Print the stamp, and what to do where there is none or it is another repository's: 0."""
    if stamp.repo:
        print(f"{stamp.repo} (branch {stamp.branch})")
    else:
        print("not stamped; run labkit stamp --from-git in a clone from GitHub, or labkit stamp --repo OWNER/NAME")
    if hint := fork_hint(stamp, project.root):
        print(hint)
    return 0


def stamp_readmes(project: Project, stamp: Stamp) -> list[str]:
    """Write the address into the READMEs that the project has; returns the names of those that changed."""
    catalogue, changed = Catalogue(common_messages()), []
    for lang in LANGUAGES:
        path = project.root / ("README.md" if lang == "en" else f"README.{lang}.md")
        if path.exists():
            words = {key: catalogue.text(f"readme.{key}", lang) for key in ("executed", "stamped", "unstamped")}
            before = path.read_text(encoding="utf-8")
            after = with_stamp(before, stamp, words)
            if after != before:
                write_if_changed(path, after)
                changed.append(path.name)
    return changed
