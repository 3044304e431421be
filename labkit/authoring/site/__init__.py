"""`labkit site`: the course as web pages, one set for each language, from executed notebooks.

    labkit site                          build/site from the cpu tier in build/run (labkit run --lang both)
    labkit site --tier smoke --no-api    the same from smoke runs and without the pages of the package, for a quick look

Nothing is executed here: the pages show what `labkit run` left. They open from a disk and without network (formulas,
search and pictures included). The command fails where a link inside the site leads nowhere, or a page would load
something from elsewhere. `make site` runs the lessons first, where they have changed.

| module  | what it does                                                                |
|---------|-----------------------------------------------------------------------------|
| pages   | writes the sources of one language                                          |
| lessons | an executed notebook as a page                                              |
| sphinx  | the configuration of Sphinx, and its run                                    |
| search  | the Japanese search                                                         |
| links   | the check of the links                                                      |
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from labkit.course.i18n import LANGUAGES
from labkit.course.manifest import TIERS, Project
from labkit.errors import LabkitError
from labkit.files import write_atomically


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register `labkit site`."""
    parser = subparsers.add_parser("site", help="build the web pages from executed lessons", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tier", choices=TIERS, default="cpu", help="which run the pages show (default: cpu)")
    parser.add_argument("--lang", choices=(*LANGUAGES, "both"), default="both", help="default: both")
    parser.add_argument("--run", type=Path, help="folder of the run (default: build/run)")
    parser.add_argument("--output", type=Path, help="folder of the site, made anew (default: build/site)")
    parser.add_argument("--no-api", dest="api", action="store_false", help="leave out the pages of the package")
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(func=main)


def main(args: argparse.Namespace) -> int:
    """0 built, 1 built with broken links or warnings, 2 not built."""
    project = Project(args.root) if args.root else Project()
    langs = LANGUAGES if args.lang == "both" else (args.lang,)
    run = args.run or project.root / "build" / "run"
    target = args.output or project.root / "build" / "site"
    start = time.perf_counter()
    try:
        problems = build_site(target, run, langs, args.tier, project=project, api=args.api)
    except LabkitError as error:
        print(f"labkit site: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem, file=sys.stderr)
    pages = sum(1 for _ in target.rglob("*.html"))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
    print(f"{pages} pages, {size:.0f} MB, {len(problems)} problems, {time.perf_counter() - start:.0f} s: {target}")
    return 1 if problems else 0


def build_site(
    target: Path, run: Path, langs: tuple[str, ...], tier: str, *, project: Project, api: bool = True
) -> list[str]:
    """Build the site into `target`, which is made anew; returns Sphinx's warnings and links that lead nowhere.

    Raises:
        SiteError: a lesson was not executed or did not pass, or a package of the extra `site` is missing.
    """
    from labkit.authoring.site.links import broken_links
    from labkit.authoring.site.pages import front_page, write_sources
    from labkit.authoring.site.sphinx import build_pages, mathjax
    from labkit.authoring.stamp import read_stamp

    mathjax()  # says what to install before anything is written
    work = target.with_name(f"{target.name}-src")
    for lang in langs:
        write_sources(work / lang, run / f"{tier}-solution-{lang}", lang, project=project, api=api)
    shutil.rmtree(target, ignore_errors=True)
    problems = []
    for lang in langs:
        stamp = read_stamp(project.stamp)
        problems += build_pages(work / lang, target / lang, work / f"cache-{lang}", lang, langs, stamp)
        shutil.rmtree(target / lang / ".doctrees", ignore_errors=True)
    write_atomically(target / "index.html", front_page(langs))
    write_atomically(target / ".nojekyll", "")  # GitHub Pages leaves out folders with an underscore otherwise
    return problems + broken_links(target)
