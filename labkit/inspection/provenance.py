"""Where a picture comes from, inside the PNG: fields in the style of C2PA, bound to the pixels by a hash.

It is no C2PA manifest: nothing is signed. It shows that a picture was changed after it was labelled, and tells programs
that it was generated (IPTC's digital source type). Many services strip text chunks: a picture without them is no proof
that it was photographed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from labkit.files import write_atomically
from labkit.inspection.digest import canonical, digest

KEYWORD = "labkit.provenance"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def pixels_sha256(path: Path | str) -> str:
    """Hash of size and pixels (RGBA; 16 bits as they are): saving the picture again keeps it, a retouched pixel does
    not."""
    with Image.open(path) as picture:
        if picture.mode.startswith("I"):  # RGBA would cut 16 bits to 8
            deep = np.asarray(picture).astype("<i4")
            return hashlib.sha256(f"{picture.width}x{picture.height}:deep:".encode() + deep.tobytes()).hexdigest()
        rgba = picture.convert("RGBA")
    return hashlib.sha256(f"{rgba.width}x{rgba.height}:".encode() + rgba.tobytes()).hexdigest()


def write_provenance(path: Path | str, fields: Mapping[str, str | int | float | None]) -> dict:
    """Write fields into a PNG, over those it has; every other byte of the file stays: pixels of any depth, EXIF, colour
    profile, other programs' texts.

    Args:
        path: a .png file. fields: for example generator, model_sha256, adapter_sha256, prompt, seed, created.
            `digital_source_type` is IPTC's "trainedAlgorithmicMedia" unless given; `pixels_sha256` is filled in.

    Returns:
        What was written; `pixels_sha256` and `seal` bind it to this picture.

    Raises:
        ValueError: not a PNG file, or one with several frames. OSError: a damaged one.
    """
    path = Path(path)
    with Image.open(path) as picture:
        if picture.format != "PNG":
            raise ValueError(f"{path.name} is {picture.format}, provenance needs PNG: save the picture as .png first")
        if (frames := getattr(picture, "n_frames", 1)) > 1:
            raise ValueError(f"{path.name} has {frames} frames, provenance belongs to one picture")
        picture.load()  # a damaged file gets no label
    claim = {"digital_source_type": GENERATED, **fields, "pixels_sha256": pixels_sha256(path)}
    claim["seal"] = digest(claim | {"seal": None})
    content = path.read_bytes()
    kept = [chunk for kind, chunk in _chunks(content) if not _is_ours(kind, chunk)]
    text = KEYWORD.encode("latin-1") + b"\0\0\0\0\0" + canonical(claim).encode("utf-8")  # iTXt, not compressed
    write_atomically(path, content[:8] + b"".join([kept[0], _chunk(b"iTXt", text), *kept[1:]]))  # after IHDR
    return claim


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, the whole chunk) of a PNG file, in order; what follows the last chunk is left out."""
    at = 8  # signature
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        yield kind, content[at : at + 12 + size]
        at += 12 + size
        if kind == b"IEND":
            return


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _is_ours(kind: bytes, chunk: bytes) -> bool:
    return kind in (b"tEXt", b"zTXt", b"iTXt") and chunk[8:].split(b"\0", 1)[0] == KEYWORD.encode("latin-1")


def read_provenance(path: Path | str) -> dict | None:
    """The fields that the PNG carries, None if there are none. What cannot be parsed counts as none."""
    with Image.open(path) as picture:
        picture.load()
        text = getattr(picture, "text", {}).get(KEYWORD)
    try:
        claim = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None
    return claim if isinstance(claim, dict) else None


def provenance_problems(path: Path | str, fields: Sequence[str] = ()) -> list[str]:
    """What is wrong with a picture's provenance; empty if nothing is.

    Args:
        fields: must be present and not empty.
    """
    claim = read_provenance(path)
    if claim is None:
        return ["no provenance"]
    problems = [f"{field} is missing" for field in fields if claim.get(field) in (None, "")]
    if claim.get("seal") != digest(claim | {"seal": None}):
        problems.append("a field was changed after sealing")
    if claim.get("pixels_sha256") != pixels_sha256(path):
        problems.append("the pixels were changed after sealing")
    return problems
