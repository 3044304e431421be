"""SHA-256 of files and of plain values, so that two people can tell whether they speak of the same thing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """One text for one value: JSON with sorted keys, no spaces, no NaN. Tuples and lists are the same.

    Raises:
        TypeError: something that JSON does not know. ValueError: NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of a plain value (dict, list, text, number)."""
    return hashlib.sha256(canonical(value).encode("utf-8")).hexdigest()


def digest_process(**parts: Any) -> str:
    """One hash for everything that makes the pictures: a path is hashed by content (a folder file by file, by name and
    content), anything else by value. One that changes makes another process.

    Example: digest_process(model=Path("unet.safetensors"), adapter=None, prompts=[...], sampler={"steps": 20})

    Raises:
        FileNotFoundError: a path that does not exist.
    """
    return digest({name: _content(part) for name, part in parts.items()})


def digest_path(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's names and contents.

    Raises:
        FileNotFoundError: a path that does not exist.
    """
    return digest(_content(path)) if path.is_dir() else digest_file(path)


def _content(part: Any) -> Any:
    if not isinstance(part, Path):
        return part
    if part.is_dir():
        return {
            file.relative_to(part).as_posix(): digest_file(file) for file in sorted(part.rglob("*")) if file.is_file()
        }
    return digest_file(part)
