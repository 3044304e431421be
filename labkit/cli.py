"""The `labkit` command. Each subcommand lives in its own module, which is imported only when it is asked for."""

from __future__ import annotations

import argparse
import codecs
import importlib
import sys
import unicodedata
from collections.abc import Sequence

from labkit import __version__
from labkit.files import can_print

JAPANESE = "拡散モデルのアラインメント講座"

# command -> (module:function that registers it with add_subparsers, line in the overview)
COMMANDS: dict[str, tuple[str, str]] = {
    "lab": ("labkit.course.workspace:add_lab_parser", "open your own copies of the lessons in JupyterLab"),
    "update": ("labkit.course.workspace:add_update_parser", "bring new and changed lessons into your copies"),
    "env": ("labkit.envcheck:add_parser", "check this machine: Python, packages, GPU, fonts, disk"),
    "fetch": ("labkit.course.fetching:add_parser", "download the models of the gpu tier"),
    "run": ("labkit.authoring.run:add_parser", "execute lessons and judge them"),
    "build": ("labkit.authoring.commands:add_build_parser", "make the notebooks from notebooks/src"),
    "lint": ("labkit.authoring.lint:add_parser", "check sources, catalogues and generated notebooks"),
    "stamp": ("labkit.authoring.commands:add_stamp_parser", "write the repository's address into the notebooks"),
    "dpo": ("labkit.dpo.command:add_parser", "train a LoRA on your own pairs of pictures"),
    "plan": ("labkit.dpo.scale:add_parser", "forecast what preference training at scale costs"),
    "arena": ("labkit.survey.command:add_parser", "race the survey's families on Stable Diffusion"),
    "inspect": ("labkit.inspection.command:add_parser", "inspect a folder of pictures: plan, draw, sign, verify"),
    "measure": ("labkit.measuring.command:add_parser", "measure your own pictures: two folders, one report"),
    "pcclip": ("labkit.pairwise.command:add_parser", "teach a CLIP differences of your own pictures; set an alarm"),
    "progress": ("labkit.course.progress:add_parser", "show which exercises are solved"),
    "camp": ("labkit.camp.command:add_parser", "teach a room: bundle without network, hub, board"),
    "site": ("labkit.authoring.site:add_parser", "build the web pages from executed lessons"),
    "study": ("labkit.authoring.study:add_parser", "record the studies behind the claims, check them"),
    "claims": ("labkit.course.ledger:add_parser", "show which claims of the papers were reproduced"),
}

# What the commands show where the output's encoding (cp932, cp1252, ASCII) lacks a sign; see `in_ascii` for the rest.
SUBSTITUTES = {"✓": "+", "✗": "x", "…": "...", "▸": ">", "●": "*", "○": ".", "★": "*", "·": ".", "→": "->", "¬": "not "}
SUBSTITUTES |= {"–": "-", "—": "-", "−": "-", "×": "x", "“": '"', "”": '"', "«": '"', "»": '"', "‘": "'", "’": "'"}
SUBSTITUTES |= {"≤": "<=", "≥": ">=", "±": "+-", "👍": "+1", "👎": "-1"}


def in_ascii(sign: str) -> str:
    """What stands for a character where there is ASCII only: "e" for é, "2" for ², "beta" for β; "?" for kanji."""
    letters = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    kind, _, name = unicodedata.name(sign, "").rpartition(" LETTER ")
    return SUBSTITUTES.get(sign) or letters or (name.lower() if kind.startswith("GREEK") else "?")


def substitute(error: UnicodeError) -> tuple[str, int]:
    """Error handler for `codecs`: a text for what cannot be encoded, and where to go on. Decoding errors are raised."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(in_ascii, error.object[error.start : error.end])), error.end


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Unknown commands and `--help` exit as argparse does (2 and 0)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    codecs.register_error("labkit", substitute)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="labkit")
    # With this package, jsonschema (imported by nbformat) compiles a grammar of web addresses: 2 s for nothing here.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    asked = next((word for word in argv if not word.startswith("-")), None)
    about = "Course on aligning diffusion models"
    if can_print(JAPANESE):
        about += f" / {JAPANESE}"
    parser = argparse.ArgumentParser(prog="labkit", description=about)
    parser.add_argument("--version", action="version", version=f"labkit {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (where, line) in COMMANDS.items():
        if name == asked:
            module, _, register = where.partition(":")
            getattr(importlib.import_module(module), register)(subparsers)
        else:
            subparsers.add_parser(name, help=line, add_help=False)
    args, more = parser.parse_known_args(argv)
    if hasattr(args, "passed_on"):  # the command hands what labkit does not know to another program
        args.passed_on = more
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        return int(args.func(args) or 0)
    except KeyboardInterrupt:
        print("labkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `labkit claims | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"labkit {asked}: {error.filename}: {error.strerror}", file=sys.stderr)  # a read-only folder, a full disk
        return 2


if __name__ == "__main__":
    sys.exit(main())
