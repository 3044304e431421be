"""Measure a folder of generated pictures against a folder of real ones.

labkit measure REAL FAKE                                        FID, KID, precision and recall, Vendi score
labkit measure REAL FAKE --fid --kid --html report.html
labkit measure REAL FAKE --extractor inception --weights pt_inception-2015-12-05-6726825d.pth
labkit measure stats.npz FAKE --fid --extractor inception --weights FILE

REAL and FAKE are folders (subfolders are read too), or .npz files of pytorch-fid (mu, sigma), clean-fid (feats) or
guided diffusion (arr_0), or .safetensors statistics of labkit.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, in_options
from labkit.files import can_print, locale_language, write_atomically
from labkit.images import ImageError

OPTIONS = {"value_range": "say which with --value-range 0 1, -1 1, 0 255 or 0 65535"}
PAUSE = 10.0  # seconds between lines of progress

WHAT = {
    "fid": "Frechet distance",
    "kid": "kernel distance",
    "prdc": "precision, recall, density, coverage",
    "cmmd": "CMMD (needs CLIP)",
    "density": "pseudo density of the fakes",
    "vendi": "Vendi score",
}


def add_parser(subparsers: Any) -> None:
    """Register `labkit measure`."""
    parser = subparsers.add_parser(
        "measure",
        help="measure generated pictures against real ones",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("real", metavar="REAL", help="the real pictures")
    parser.add_argument("fake", metavar="FAKE", help="the generated pictures")
    for name, text in WHAT.items():
        parser.add_argument(f"--{name}", action="append_const", dest="metrics", const=name, help=text)
    parser.add_argument(
        "--extractor", choices=("reader", "clip", "inception"), help="default: inception with --weights, else reader"
    )
    parser.add_argument("--weights", type=Path, help="weights of Inception, .pth or .safetensors")
    parser.add_argument("--layer", default="pool3", help="layer of Inception (default: pool3)")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="folder of a CLIP, for clip and --cmmd")
    parser.add_argument("--fit", choices=("squash", "crop", "clip"), help="how pictures become square")
    parser.add_argument("--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of files with floats")
    parser.add_argument("--k", type=int, default=5, help="neighbours of precision and recall (default: 5)")
    parser.add_argument("--rounds", type=int, default=39, help="permutations of the test of FID (default: 39; from 19)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", action="store_true", help="leave unreadable files out and name them")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--lang", choices=("ja", "en"), help="default: ja if the locale is Japanese, else en")
    parser.set_defaults(func=run_measure)


def run_measure(args: argparse.Namespace) -> int:
    """`labkit measure`: 0, or 2 with one line."""
    from labkit.measuring.measure import DEFAULT, measure
    from labkit.measuring.report import measurement_html, measurement_lines, texts

    lang, told = args.lang or locale_language(), time.monotonic()

    def say(key: str, numbers: dict) -> None:
        """A line of progress on stderr, for what takes long."""
        nonlocal told
        now = time.monotonic()
        if key != "read" or now - told >= PAUSE:
            told = now
            print(texts(lang if can_print("あ") else "en")[f"say_{key}"].format(**numbers), file=sys.stderr, flush=True)

    try:
        for option, path in (("--html", args.html), ("--json", args.json)):
            if path is not None:
                _check_writable(option, path)
        result = measure(
            real=args.real,
            fake=args.fake,
            metrics=tuple(args.metrics or DEFAULT),
            extractor=args.extractor or ("inception" if args.weights else "reader"),
            weights=args.weights,
            layer=args.layer,
            clip=args.clip,
            fit=args.fit,
            k=args.k,
            rounds=args.rounds,
            seed=args.seed,
            value_range=None if args.value_range is None else tuple(args.value_range),
            skip=args.skip,
            say=say,
        )
    except ImageError as error:
        hint = "" if args.skip or args.value_range else " (--skip leaves out and names what cannot be read)"
        told = in_options(error, OPTIONS)
        print(f"labkit measure: {told}{hint if error.reason != str(error) else ''}", file=sys.stderr)
        return 2
    except (LabkitError, ValueError, OSError, ModuleNotFoundError) as error:
        told = str(error).replace("no weights were given", "no --weights FILE was given")
        print(f"labkit measure: {told}", file=sys.stderr)
        return 2
    print("\n".join(measurement_lines(result, lang if can_print("あ") else "en")))
    for side in result.sides:
        for name, why in side.unreadable.items():
            print(f"       {name}: {why}")
    if args.html is not None:
        measurement_html(result, args.html, lang=lang)
        print(f"wrote {args.html}")
    if args.json is not None:
        print(f"wrote {write_atomically(args.json, result.as_json())}")
    return 0


def _check_writable(option: str, path: Path) -> None:
    """Say that a report cannot be written before the work is done, not after. Raises ValueError, OSError."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
