"""Writing files so that whatever stops the process leaves the old file whole; what a terminal can write, and in which
language this machine speaks."""

from __future__ import annotations

import json
import locale
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from labkit.errors import LabkitError


def write_atomically(path: Path | str, content: bytes | str | Callable[[Path], object]) -> Path:
    """Write a file beside `path` and rename it: a full disk, an error or a kill leaves the old file untouched.

    Args:
        path: the file; missing folders are made.
        content: bytes, text (written as UTF-8, line ends as they are), or a function that writes the path it is given
            (`path` with another name in the same folder and the same ending).

    Returns:
        `path`.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_text(path: Path | str) -> str:
    """The text of somebody's file: UTF-8, with or without the mark that Windows puts before it.

    Raises:
        LabkitError: another encoding; names the file. OSError: it cannot be read.
    """
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise LabkitError(f"{path} is not in UTF-8: save it as UTF-8 in the editor") from None


def write_tensors(path: Path | str, tensors: Mapping, metadata: Mapping[str, str]) -> Path:
    """One safetensors file, written atomically; the same tensors and metadata give the same bytes.

    safetensors keeps its metadata in a hash table and writes them in another order each time; here they are sorted.

    Args:
        tensors: name -> contiguous tensor on the CPU.
        metadata: name -> text.

    Raises:
        OSError, safetensors.SafetensorError: the disk does not take it; the old file is intact.
    """
    from safetensors.torch import save_file

    def write(part: Path) -> None:
        save_file(dict(tensors), str(part), metadata=dict(metadata))
        with part.open("r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items())), **header}
            content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
            if len(content) == size:  # else JSON escapes otherwise than here: valid as it is, in another order
                file.seek(8)
                file.write(content)

    return write_atomically(path, write)


def can_print(text: str) -> bool:
    """Whether the encoding of the output has every character of `text`."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def locale_language(environment: Mapping[str, str] = os.environ) -> str:
    """ "ja" where the locale is Japanese, else "en"; the order is that of gettext: LC_ALL, LC_MESSAGES, LANG. The
    language of a command whose --lang was not given."""
    named = next((environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), None)
    return "ja" if (named or locale.getlocale()[0] or "").lower().startswith("ja") else "en"
