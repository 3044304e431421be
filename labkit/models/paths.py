"""Where data and weights are.

LABKIT_DATA    folder with portraits/, portrait-sd/, ... and checksums.json; by default the one that came with labkit:
               `data/` of the clone, or `labkit/_data` where labkit was installed without one
LABKIT_MODELS  folder with local copies of hub models, one folder per model, for machines without network
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def data_dir() -> Path:
    """The data folder: LABKIT_DATA, else labkit/_data (a wheel has it, a clone does not), else data/ of the clone.

    The package's own folder comes first: beside an installed package, `data/` could be anybody's. The folder need not
    exist; loaders say what is missing.
    """
    if given := os.environ.get("LABKIT_DATA"):
        return Path(given).expanduser()
    packed = PACKAGE / "_data"
    return packed if packed.is_dir() else PACKAGE.parent / "data"


def models_dir() -> Path | None:
    """The folder with local copies of hub models: LABKIT_MODELS, or None if it is not set."""
    given = os.environ.get("LABKIT_MODELS")
    return Path(given).expanduser() if given else None


def local_model(repo_id: str) -> Path | None:
    """A local copy of the hub model `owner/name`: <LABKIT_MODELS>/name or <LABKIT_MODELS>/owner/name, or None."""
    root = models_dir()
    if root is None:
        return None
    for folder in (root / repo_id.split("/")[-1], root / repo_id):
        if folder.is_dir():
            return folder
    return None
