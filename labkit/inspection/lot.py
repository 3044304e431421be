"""A lot is a folder of pictures, each known by its name and the hash of its bytes. What cannot be read is named."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from labkit.errors import LabkitError
from labkit.inspection.digest import digest, digest_file

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"})
NO_DECODER = frozenset({".heic", ".heif", ".psd", ".raw", ".dng", ".svg"})  # pictures, but not for Pillow
MAX_PIXELS = 80_000_000  # 240 MB once decoded


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
            ValueError: more than MAX_PIXELS, or more than one frame. OSError and others: what the decoder raises.
        """
        with Image.open(self.path) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS // 10**6} million are read")
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":  # MPO: a photograph with a preview behind it
                raise ValueError(f"{frames} frames: a lot has one picture per file")
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):
                grey = (np.asarray(picture, dtype=np.int64) // 257).clip(0, 255).astype(np.uint8)  # [H, W], 16 bits
                return np.repeat(grey[..., None], 3, axis=2)
            if not picture.has_transparency_data:
                return np.asarray(picture.convert("RGB"))
            picture = picture.convert("RGBA")
            ground = Image.new("RGBA", picture.size, "white")
            return np.asarray(Image.alpha_composite(ground, picture).convert("RGB"))


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
            if path.suffix.lower() in NO_DECODER:
                raise ValueError(f"nothing here decodes {path.suffix.lower()}: save it as PNG or JPEG")
            item = Item(name, path, digest_file(path), (texts or {}).get(name, ""))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit here
                item.open()
        except Exception as error:  # noqa: BLE001 - a decoder may raise anything; whatever it is, the file is named
            unreadable[name] = f"{type(error).__name__}: {error}".replace(str(path), name)[:200]
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
