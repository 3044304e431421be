"""The install cell of every notebook, computed from pyproject.toml and the stamp.

On Colab the cell clones the stamped repository and lets `labkit/authoring/colab.py` install from it what the runtime
lacks, without touching Colab's torch, numpy or Jupyter stack. Anywhere else it installs nothing. A learner who ticks
`keep_on_drive` finds progress and kept results again in the next session, since they lie on their Drive. Where the
course is missing and the cell cannot install it, it stops the notebook with one line that says what to do.
"""

from __future__ import annotations

import string
import tomllib
from pathlib import Path

from labkit.authoring.colab import PROTECTED, InstallError, canonical
from labkit.authoring.stamp import Stamp
from labkit.course.i18n import Catalogue

_TEMPLATE = Path(__file__).with_name("templates") / "install.py.tmpl"


def requirements(pyproject: Path) -> tuple[list[str], list[str]]:
    """(what the cell may install, what must be there already) from pyproject.toml, sorted by name.

    The first list holds the dependencies without the protected packages. The second holds the protected ones among the
    dependencies and in the extra `course`; the rest of that extra (JupyterLab, papermill, ...) no lesson imports.
    """
    try:
        project = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]
        dependencies, course = project["dependencies"], project.get("optional-dependencies", {}).get("course", [])
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InstallError(f"{pyproject}: the install cell needs its [project] dependencies ({error})") from None
    needs = sorted((line for line in dependencies if canonical(line) not in PROTECTED), key=canonical)
    built_in = sorted({line for line in [*dependencies, *course] if canonical(line) in PROTECTED}, key=canonical)
    return needs, built_in


def install_cell(pyproject: Path, stamp: Stamp, lang: str, catalogue: Catalogue) -> str:
    """Source of the install cell in one language."""
    needs, built_in = requirements(pyproject)

    def text(key: str) -> str:
        return catalogue.text(f"install.{key}", lang, strict=True)

    return (
        string.Template(_TEMPLATE.read_text(encoding="utf-8"))
        .substitute(
            title=text("title"),
            comment=text("comment"),
            repo=_literal(stamp.repo),
            repo_comment=text("repo_comment") if stamp.repo else text("repo_unknown"),
            branch=_literal(stamp.branch),
            lang=_literal(lang),
            needs=_literal(needs),
            built_in=_literal(built_in),
            no_repo=_literal(text("no_repo")),
            no_labkit=_literal(text("no_labkit")),
            failed=_literal(text("failed")),
            drive_comment=text("drive_comment"),
            on_drive=_literal(text("on_drive")),
            no_drive=_literal(text("no_drive")),
        )
        .rstrip()
    )


def _literal(value: str | list[str]) -> str:
    """A Python literal with double quotes; long lists have one item a line."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    items = [_literal(item) for item in value]
    return "[\n" + "".join(f"    {item},\n" for item in items) + "]" if len(items) > 4 else f"[{', '.join(items)}]"
