"""data/checksums.json: the SHA-256 of every shipped file, so that a damaged download is noticed before it is used.

Format: {"portrait-sd/unet/config.json": "<64 hex digits>", ...}, paths relative to the data folder, sorted.
A file is hashed once per process and again only if its size or modification time changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from labkit.errors import ModelLoadError
from labkit.files import write_atomically
from labkit.models.paths import data_dir

CHECKSUMS, STUDIES = "checksums.json", "studies"
_hashed: dict[tuple[str, int, int], str] = {}  # (path, size, modification time in ns) -> hex digest


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, remembered under its path, size and modification time."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashed:
        with path.open("rb") as file:
            _hashed[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashed[key]


def read_checksums(data: Path | None = None) -> dict[str, str]:
    """The table of the data folder; empty if there is none. Raises ModelLoadError if it is not readable JSON."""
    path = (data or data_dir()) / CHECKSUMS
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is not readable ({error}): restore it, for example with git checkout") from None
    if not isinstance(table, dict):
        raise ModelLoadError(
            f"{path} is not a table of file names and digests: restore it, for example with git checkout"
        )
    return table


def write_checksums(data: Path | None = None, folders: Iterable[str] | None = None) -> dict[str, str]:
    """Hash all files of the data folder, or of some of its folders (other entries stay), and write the table.

    Hidden files, the table itself and the records of studies (which hold digests of their own) are left out; tensors
    that lie beside the records are listed. Returns the table.
    """
    data = data or data_dir()
    roots = [data] if folders is None else [data / name for name in folders]
    table = {} if folders is None else read_checksums(data)
    for root in roots:
        prefix = "" if root == data else f"{root.relative_to(data).as_posix()}/"
        table = {name: digest for name, digest in table.items() if not (prefix and name.startswith(prefix))}
        for path in sorted(root.rglob("*")):
            name = path.relative_to(data)
            record = name.parts[0] == STUDIES and name.suffix != ".safetensors"
            left_out = name.as_posix() == CHECKSUMS or record or any(p[0] == "." for p in name.parts)
            if path.is_file() and not left_out:
                table[name.as_posix()] = sha256(path)
    write_atomically(data / CHECKSUMS, json.dumps(dict(sorted(table.items())), indent=1) + "\n")
    return table


def verify(folder: str, data: Path | None = None) -> int:
    """Check every listed file of a data folder's subfolder. Returns how many were checked (0: none is listed).

    Raises ModelLoadError naming the first file that is missing or differs.
    """
    data = data or data_dir()
    listed = {name: digest for name, digest in read_checksums(data).items() if name.startswith(f"{folder}/")}
    for name, digest in listed.items():
        path = data / name
        if not path.is_file():
            raise ModelLoadError(f"{path} is missing: restore the data folder (git checkout) or set LABKIT_DATA")
        if sha256(path) != digest:
            raise ModelLoadError(
                f"{path} is damaged (its SHA-256 is not the one in {CHECKSUMS}): restore it with git checkout; "
                "if you retrained it, run `make train` to its end, which updates the table"
            )
    return len(listed)
