"""A lot is a folder of pictures, each known by its name and the hash of its bytes. What cannot be read is named."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError
from labkit.images import SUFFIXES, ImageError, look_into, read_file
from labkit.inspection.digest import digest, digest_file
from labkit.metrics.checks import whole_number


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
    """The readable pictures of a folder in the order of their names, and why the others could not be read; `others`:
    files that are no pictures."""

    name: str
    items: tuple[Item, ...]
    unreadable: dict[str, str]
    others: tuple[str, ...] = ()

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

    @property
    def copies(self) -> dict[str, str]:
        """Pictures whose file equals an earlier one byte for byte -> the earlier one's name."""
        first: dict[str, str] = {}
        return {
            item.name: first[item.sha256]
            for item in self.items
            if first.setdefault(item.sha256, item.name) != item.name
        }


def read_lot(folder: Path | str, *, texts: Mapping[str, str] | None = None) -> Lot:
    """All pictures of a folder and its subfolders; every one is decoded once, so that a broken one shows now.

    Args:
        folder: holds .png, .jpg, .webp, .bmp, .gif or .tif files; other files and hidden ones are no pictures, but
            pictures that nothing here can decode (.heic, .svg, ...) or whose name has another ending are named as
            unreadable, and so are folders that may not be read and links to folders.
        texts: name -> prompt or caption, for the rules on texts.

    Raises:
        InspectionError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InspectionError(f"{folder} is not a folder: give the folder that holds the lot's pictures")
    found = look_into(folder)
    items, unreadable = [], dict(found.faults)
    for name in found.pictures:
        path = folder / name
        try:
            item = Item(name, path, digest_file(path), (texts or {}).get(name, ""))
            item.open()
        except (ImageError, OSError) as error:
            unreadable[name] = getattr(error, "reason", str(error)).replace(str(path), name)[:200]
        else:
            items.append(item)
    if not items and not unreadable:
        raise InspectionError(f"{folder} holds no pictures: expected {', '.join(sorted(SUFFIXES))}")
    name = folder.resolve().name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Lot(name, tuple(items), unreadable, found.others)


def draw_sample(names: Sequence[str], n: int, seed: int | str) -> list[str]:
    """n of the names, without replacement: those whose SHA-256 of "seed:name" is smallest, in that order.

    Anybody can draw it again in any language; the order of the files does not matter. The seed belongs to the checker
    and is chosen after the lot is closed: who knows it before can place the bad pictures where nobody looks.

    Raises:
        InspectionError: fewer names than n, or a name twice.
    """
    n, seed = whole_number("n", n), seed if isinstance(seed, str) else whole_number("seed", seed)
    if len(set(names)) != len(names):
        raise InspectionError("a name appears twice: give each picture of the lot once")
    if not 0 < n <= len(names):
        raise InspectionError(
            f"a sample of {n} cannot be drawn from {len(names)} pictures: lower n, or inspect them all"
        )
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:n]
