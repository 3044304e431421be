"""`labkit fetch`: the models of the gpu tier, downloaded before a lesson needs them.

    labkit fetch --tier gpu                             Stable Diffusion 1.5, CLIP and PickScore, about 8 GB
    labkit fetch --tier gpu --model stable-diffusion-xl-base-1.0
    labkit fetch --tier gpu --dry-run                   only what it would take, and where it would go

They go to LABKIT_MODELS (or --folder), where lessons look for them. Run it again after an interruption: it goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from labkit.course.i18n import LANGUAGES, get_language, t
from labkit.course.manifest import TIERS
from labkit.course.render import language, terminal_language


def add_parser(subparsers: Any) -> None:
    """Register `labkit fetch`."""
    parser = subparsers.add_parser("fetch", help="download the models of a tier", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tier", choices=TIERS, default="gpu", help="default: gpu; the others have all they need")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="a further model by name")
    parser.add_argument("--folder", type=Path, help="where to put them (default: LABKIT_MODELS)")
    parser.add_argument("--hub", help="address of the hub (default: HF_ENDPOINT, else huggingface.co)")
    parser.add_argument("--dry-run", action="store_true", help="download nothing")
    parser.add_argument("--lang", choices=LANGUAGES, help="language of the report")
    parser.set_defaults(func=main)


def main(args: argparse.Namespace) -> int:
    """Download, or say what would be; 1 if something could not be had."""
    from labkit.models.fetch import FetchError, fetch, models_of
    from labkit.models.paths import models_dir

    with language(terminal_language(args.lang or get_language())):
        try:
            models = models_of(args.tier, args.model)
            if not models:
                print(t("fetch.nothing", tier=args.tier))
                return 0
            folder = args.folder or models_dir()
            if folder is None:
                raise FetchError(t("fetch.no_folder"))
            if args.dry_run:
                for model in models:
                    print(t("fetch.would", folder=folder / model.folder, gigabytes=model.size / 1e9,
                            repository=model.sources[0].repository))  # fmt: skip
                free = shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists()))
                print(t("fetch.total", gigabytes=sum(model.size for model in models) / 1e9, free=free.free / 1e9))
                print(forecast())
                return 0
            fetch(models, folder, hub=args.hub, report=said)
            if os.environ.get("LABKIT_MODELS") is None:
                print(t("fetch.set", folder=folder.absolute()))
        except FetchError as error:
            print(f"labkit fetch: {error}", file=sys.stderr)
            return 1
    return 0


def forecast() -> str:
    """What the GPU of this machine, or a T4 where there is none, can take on at once, and for how long."""
    from labkit.models.sizing import FLOOR, TooSmall, gpu_name, sizes_for

    lines = [t("fetch.forecast", gpu=gpu_name() or FLOOR)]
    try:
        drawn = sizes_for("sample", rows=64, steps=20)
        trained = sizes_for("train", rows=16, steps=200)
    except TooSmall as error:
        return f"{lines[0]} {error}"
    lines.append(t("fetch.sample", images=64, steps=20, batch=drawn.batch_size, gigabytes=drawn.gigabytes,
                   minutes=drawn.minutes))  # fmt: skip
    lines.append(t("fetch.train", pairs=16, steps=200, batch=trained.batch_size, gigabytes=trained.gigabytes,
                   minutes=trained.minutes))  # fmt: skip
    return "\n".join(lines)


def said(what: str, numbers: dict) -> None:
    """Print what `labkit.models.fetch.fetch` reports."""
    lines = {
        "model": lambda: t("fetch.model", **numbers),
        "substitute": lambda: t("fetch.substitute", **numbers),
        "file": lambda: t("fetch.file", **numbers),
        "done": lambda: t("fetch.done", **numbers),
    }
    print(lines[what](), flush=True)
