"""What a run depends on, as one key: a lesson whose key has not changed since it passed need not run again."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from labkit.course.manifest import Project

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "pillow", "matplotlib", "ipywidgets", "ipykernel")
_CODE = {".py", ".yaml", ".md", ".tmpl", ".json", ".txt"}


def run_key(project: Project, number: str, notebook: Path, **settings: Any) -> str:
    """Key of one run.

    It covers the lesson's source and folder, the built notebook, labkit's code without the other lessons' folders, the
    checksums of data/, the pins, the versions of Python and of the main packages, and `settings` (tier, language,
    edition, parameters).
    """
    digest = hashlib.sha256(_common(project.root).encode())
    source = sorted(project.sources.glob(f"{number}_*.py"))
    _feed(digest, project.root, [*source, *_files(project.folder(number)), notebook])
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def environment_versions() -> Mapping[str, str]:
    """Version of Python and of each main package that is installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=4)
def _common(root: Path) -> str:
    project = Project(root)
    code = [path for path in _files(root / "labkit") if not path.is_relative_to(project.lessons)]
    digest = hashlib.sha256(f"{sys.version_info[:3]} {platform.machine()} {environment_versions()}".encode())
    pins = [root / "constraints.txt", root / "pyproject.toml", root / "data" / "checksums.json"]
    _feed(digest, root, [*code, *(path for path in pins if path.exists())])
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in _CODE and "__pycache__" not in path.parts)


def _feed(digest: Any, root: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(f"\0{name}\0".encode())
        digest.update(path.read_bytes())
