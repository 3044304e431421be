"""A lot is a folder of pictures, each known by its name and the hash of its bytes. What cannot be read is named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError
from labkit.images import NO_DECODER, SUFFIXES, ImageError, read_file
from labkit.inspection.digest import digest, digest_file


class InspectionError(LabkitError, ValueError):
    """Something about a lot, a sample or its verdicts that must be put right before a decision."""


@dataclass(frozen=True)
class Item:
    """One picture: name inside the lot (with "/"), where it lies, SHA-256 of the file, the text it was made from."""

    name: str
    path: Path
    sha256: str
    text: str = ""

    def open(self) -> np.ndarray:
        """Pixels [H, W, 3] uint8 as a viewer shows them: turned as the camera says, transparency on white, 16 bits cut
        to 8.

        Raises:
            ImageError: damaged, more than MAX_PIXELS, or more than one frame; see `labkit.images`.
        """
        return read_file(self.path)


@dataclass(frozen=True)
class Lot:
    """The readable pictures of a folder in the order of their names, and why the others could not be read."""

    name: str
    items: tuple[Item, ...]
    unreadable: dict[str, str]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, name: str) -> Item:
        try:
            return next(item for item in self.items if item.name == name)
        except StopIteration:
            raise InspectionError(f"{name!r} is no readable picture of the lot {self.name!r}") from None

    @property
    def sha256(self) -> str:
        """Hash of the whole lot: names and contents, the unreadable ones by name."""
        return digest(
            {"items": [[item.name, item.sha256] for item in self.items], "unreadable": sorted(self.unreadable)}
        )


def read_lot(folder: Path | str, *, texts: dict[str, str] | None = None) -> Lot:
    """All pictures of a folder and its subfolders; every one is decoded once, so that a broken one shows now.

    Args:
        folder: holds .png, .jpg, .webp, .bmp, .gif or .tif files; other files and hidden ones are no pictures, but
            pictures that nothing here can decode (.heic, .svg, ...) are named as unreadable.
        texts: name -> prompt or caption, for the rules on texts.

    Raises:
        InspectionError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InspectionError(f"{folder} is not a folder: give the folder that holds the lot's pictures")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES | NO_DECODER and path.is_file()]
    items, unreadable = [], {}
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        try:
            item = Item(name, path, digest_file(path), (texts or {}).get(name, ""))
            item.open()
        except (ImageError, OSError) as error:
            unreadable[name] = getattr(error, "reason", str(error)).replace(str(path), name)[:200]
        else:
            items.append(item)
    if not items and not unreadable:
        raise InspectionError(f"{folder} holds no pictures: expected {', '.join(sorted(SUFFIXES))}")
    return Lot(folder.resolve().name, tuple(items), unreadable)


def draw_sample(names: Sequence[str], n: int, seed: int | str) -> list[str]:
    """n of the names, without replacement: those whose SHA-256 of "seed:name" is smallest, in that order.

    Anybody can draw it again in any language; the order of the files does not matter. The seed belongs to the checker
    and is chosen after the lot is closed: who knows it before can place the bad pictures where nobody looks.

    Raises:
        InspectionError: fewer names than n, or a name twice.
    """
    if len(set(names)) != len(names):
        raise InspectionError("a name appears twice: give each picture of the lot once")
    if not 0 < n <= len(names):
        raise InspectionError(
            f"a sample of {n} cannot be drawn from {len(names)} pictures: lower n, or inspect them all"
        )
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:n]
