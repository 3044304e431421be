"""The learner's own copies of the lessons: `labkit lab` opens them in JupyterLab, `labkit update` brings in new ones.

    labkit lab                        copies in work/ (clone) or labkit-work/ (without a clone), JupyterLab opened there
    labkit lab --lang ja --port=8890  in Japanese; what labkit does not know goes to JupyterLab
    labkit update                     only bring in lessons that are new or have changed

The notebooks in notebooks/en and notebooks/ja are generated and belong to the course; whoever works in them loses the
work at the next build, and gets conflicts from the next `git pull`. So learners work in copies, one folder for each
language, which no other command writes to:

- a notebook that is not there yet is copied;
- a copy that nobody has touched follows the course;
- a copy that differs from what was handed out, be it only in its outputs, is the learner's and is never written again.
  Where the course has something new for it (other cells or other sources, not mere metadata), the new version is put
  beside it as NN_name.new.ipynb.

What was handed out stands in .labkit.json of the folder, as checksums. Without that file every copy that differs from
the course counts as the learner's. Deleting a copy gives a fresh one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.course.i18n import LANGUAGES, t
from labkit.course.manifest import Project
from labkit.course.render import language, terminal_language
from labkit.errors import LabkitError
from labkit.files import can_print, locale_language, write_atomically

RECORD = ".labkit.json"
VERSION = 1
LOCALES = {"en": "en", "ja": "ja_JP"}  # as JupyterLab names them

Given = dict[str, dict[str, str]]  # name below the folder -> {"file": checksum as handed out, "cells": newest offered}


class WorkspaceError(LabkitError, ValueError):
    """Copies that cannot be made: one line with the cure."""


@dataclass(frozen=True)
class Change:
    """One copy that was written: "new", "updated" (nobody had touched it), or "kept": the new version is `beside`."""

    kind: str
    name: str
    beside: str = ""


# ---- handing out ---------------------------------------------------------------------------------------------------


def default_folder(project: Project) -> Path:
    """work/ of the clone; without a clone labkit-work/ in the current folder."""
    return project.root / "work" if project.sources.is_dir() else Path.cwd() / "labkit-work"


def hand_out(project: Project, folder: Path) -> list[Change]:
    """Bring the notebooks of both languages into `folder`; the module docstring says what is written and what is not.

    Args:
        project: where the notebooks of the course are.
        folder: the learner's folder; made if it is missing.

    Returns:
        What was written, in the order of language and lesson.

    Raises:
        WorkspaceError: the course has no notebooks here, or `folder` belongs to the course.
        OSError: `folder` cannot be written. What was handed out before that is whole.
    """
    folder = folder.resolve()
    sources = {f"{lang}/{path.name}": path for lang in LANGUAGES for path in _notebooks(project, lang)}
    if not sources:
        raise WorkspaceError(
            f"no notebooks in {project.notebooks}: run labkit build in a clone, or install labkit anew"
        )
    if project.root.resolve().is_relative_to(folder) or folder.is_relative_to(project.notebooks.resolve()):
        raise WorkspaceError(f"{folder} belongs to the course: name a folder of your own, for example --folder work")
    if folder.is_relative_to(project.root.resolve()) and folder.name != "work":
        if folder.exists() and any(folder.iterdir()) and not (folder / ".gitignore").exists():
            raise WorkspaceError(f"{folder} holds other files: name a new folder, for example --folder work")
    if not folder.exists() and folder.is_relative_to(project.root.resolve()):
        write_atomically(folder / ".gitignore", "*\n")  # whatever its name, git leaves it alone
    given = read_record(folder)
    before = json.dumps(given, sort_keys=True)
    changes = [_place(folder, name, path.read_bytes(), given) for name, path in sources.items()]
    if json.dumps(given, sort_keys=True) != before:
        write_atomically(folder / RECORD, json.dumps({"version": VERSION, "given": given}, indent=1, sort_keys=True))
    return [change for change in changes if change]


def _notebooks(project: Project, lang: str) -> Iterator[Path]:
    yield from sorted((project.notebooks / lang).glob("[0-9][0-9]_*.ipynb"))


def _place(folder: Path, name: str, fresh: bytes, given: Given) -> Change | None:
    """Hand out one notebook, `fresh`, under its name or beside what the learner has; keeps `given` up to date."""
    target, known, cells = folder / name, given.get(name, {}), cells_digest(fresh)
    theirs = target.read_bytes() if target.exists() else None
    change = Change("new", name)
    if theirs is not None and theirs != fresh:
        if checksum(theirs) != known.get("file"):
            offered = cells in (known.get("cells"), cells_digest(theirs))
            given[name] = {"file": known.get("file", ""), "cells": cells}
            return None if offered else Change("kept", name, _put_beside(folder, name, fresh, given))
        change = Change("updated", name)
    given[name] = {"file": checksum(fresh), "cells": cells}
    if theirs == fresh:
        return None
    write_atomically(target, fresh)
    return change


def _put_beside(folder: Path, name: str, fresh: bytes, given: Given) -> str:
    """Write `fresh` under the first name beside `name` that is free or holds an untouched copy; returns that name."""
    stem, count = name.removesuffix(".ipynb"), 1
    while True:
        beside = f"{stem}.new.ipynb" if count == 1 else f"{stem}.new-{count}.ipynb"
        target = folder / beside
        there = target.read_bytes() if target.exists() else None
        if there in (None, fresh) or checksum(there) == given.get(beside, {}).get("file"):
            break
        count += 1
    write_atomically(target, fresh)
    given[beside] = {"file": checksum(fresh)}
    return beside


def read_record(folder: Path) -> Given:
    """What was handed out into `folder` before; {} where that is not known (then nothing counts as untouched)."""
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        given = data["given"] if data["version"] == VERSION else {}
        return {str(name): {str(key): str(value) for key, value in entry.items()} for name, entry in given.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def checksum(content: bytes) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def cells_digest(content: bytes) -> str:
    """Digest of kind and source of a notebook's cells, blind to outputs, ids, metadata; of the bytes if it is none."""
    try:
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(content)["cells"]]
    except (ValueError, KeyError, TypeError):
        return checksum(content)
    return checksum(json.dumps(cells).encode())


# ---- JupyterLab ----------------------------------------------------------------------------------------------------


def lab_command(folder: Path, lang: str, more: Sequence[str] = ()) -> list[str]:
    """The command that opens JupyterLab in `folder` with the first lesson in `lang`; the options in `more` come last
    and win. It listens on this machine only and keeps its token."""
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.root_dir": str(folder),
        "LabApp.news_url": "None",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    first = min((path.name for path in (folder / lang).glob("[0-9][0-9]_*.ipynb")), default=None)
    if first:
        options["LabApp.default_url"] = f"/lab/tree/{lang}/{first}"
    if getattr(os, "geteuid", lambda: 1)() == 0:
        options["ServerApp.allow_root"] = "True"
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items()), *more]


def lab_environment(project: Project, folder: Path, lang: str) -> dict[str, str]:
    """The environment of JupyterLab: settings and layout of its own in `folder`/.jupyter, so that the interface speaks
    `lang` and the user's own settings stay as they are; results where `labkit claims` looks for them."""
    own = folder / ".jupyter"
    plugins = own / "settings" / "@jupyterlab"
    speech = plugins / "translation-extension" / "plugin.jupyterlab-settings"
    write_atomically(speech, json.dumps({"locale": LOCALES[lang]}))
    notices = plugins / "apputils-extension" / "notification.jupyterlab-settings"
    if not notices.exists():
        write_atomically(notices, json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    base = project.root if project.sources.is_dir() else Path.cwd()
    return {
        "LABKIT_RESULTS": str(base / "build" / "results"),
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
    }


def become(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Replace this process by `command`, so that Ctrl-C and signals reach it; on Windows run it and wait."""
    if os.name == "nt":
        return subprocess.call(list(command), env=dict(environment))
    sys.stdout.flush()
    os.execve(command[0], list(command), dict(environment))
    raise AssertionError("execve does not return")


# ---- commands ------------------------------------------------------------------------------------------------------


def add_lab_parser(subparsers: Any) -> None:
    """Register `labkit lab`."""
    text = "open your own copies of the lessons in JupyterLab"
    parser = subparsers.add_parser("lab", help=text, description=__doc__, allow_abbrev=False)
    _add_options(parser)
    parser.set_defaults(func=run_lab, passed_on=[])


def add_update_parser(subparsers: Any) -> None:
    """Register `labkit update`."""
    text = "bring new and changed lessons into your copies"
    parser = subparsers.add_parser("update", help=text, description=__doc__)
    _add_options(parser)
    parser.set_defaults(func=run_update)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--lang", choices=LANGUAGES, help="default: ja if the locale is Japanese, else en")
    parser.add_argument(
        "--folder", type=Path, help="your folder (default: work in the clone, labkit-work without a clone)"
    )
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)


def run_update(args: argparse.Namespace) -> int:
    """Hand out and say what was written: 0; 2 with one line where that is not possible."""
    return 2 if _hand_out(args) is None else 0


def run_lab(args: argparse.Namespace) -> int:
    """Hand out, then become JupyterLab; 2 with one line where that is not possible."""
    if importlib.util.find_spec("jupyterlab") is None:
        print('labkit lab: JupyterLab is not installed: pip install "jupyterlab>=4.4,<5"', file=sys.stderr)
        return 2
    folder = _hand_out(args)
    if folder is None:
        return 2
    lang = args.lang or locale_language()
    try:
        environment = lab_environment(_project(args), folder, lang)
    except OSError as error:
        return _refuse("lab", error, folder)
    with language(terminal_language(lang)):
        reason = t("workspace.as_asked") if args.lang else t("workspace.as_locale")
        line = t("workspace.language", reason=reason)
        print(line if can_print(line) else t("workspace.language_ascii", reason=reason), flush=True)
    return become(lab_command(folder, lang, args.passed_on), environment)


def _hand_out(args: argparse.Namespace) -> Path | None:
    """Hand out as the command line says and print what was done; the folder, or None after a line on stderr."""
    project, command = _project(args), args.func.__name__.removeprefix("run_")
    folder = (args.folder or default_folder(project)).expanduser().resolve()
    try:
        changes = hand_out(project, folder)
    except WorkspaceError as error:
        print(f"labkit {command}: {error}", file=sys.stderr)
        return None
    except OSError as error:
        _refuse(command, error, folder)
        return None
    with language(terminal_language(args.lang or locale_language())):
        print(t("workspace.folder", folder=folder))
        for kind in ("new", "updated"):
            names = [change.name for change in changes if change.kind == kind]
            if names:
                print(t(f"workspace.{kind}", count=len(names), names=", ".join(names)))
        for change in changes:
            if change.kind == "kept":
                print(t("workspace.kept", name=change.name, beside=change.beside))
        if not changes:
            print(t("workspace.nothing"))
    return folder


def _project(args: argparse.Namespace) -> Project:
    return Project(args.root) if args.root else Project()


def _refuse(command: str, error: OSError, folder: Path) -> int:
    where = error.filename or folder
    print(
        f"labkit {command}: {where}: {error.strerror or error}; name a folder that you can write to: --folder FOLDER",
        file=sys.stderr,
    )
    return 2
