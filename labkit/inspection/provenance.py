"""Where a picture comes from, inside the PNG: fields in the style of C2PA, bound to the pixels by a hash.

It is no C2PA manifest: nothing is signed. It shows that a picture was changed after it was labelled, and tells programs
that it was generated (IPTC's digital source type). Many services strip text chunks: a picture without them is no proof
that it was photographed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from labkit.files import write_atomically
from labkit.inspection.digest import canonical, digest

KEYWORD = "labkit.provenance"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def pixels_sha256(path: Path | str) -> str:
    """Hash of size and pixels (RGBA): saving the same picture again keeps it, a retouched pixel does not."""
    with Image.open(path) as picture:
        rgba = picture.convert("RGBA")
    return hashlib.sha256(f"{rgba.width}x{rgba.height}:".encode() + rgba.tobytes()).hexdigest()


def write_provenance(path: Path | str, fields: Mapping[str, str | int | float | None]) -> dict:
    """Write fields into a PNG, over those it has; the pixels stay as they are.

    Args:
        path: a .png file. fields: for example generator, model_sha256, adapter_sha256, prompt, seed, created.
            `digital_source_type` is IPTC's "trainedAlgorithmicMedia" unless given; `pixels_sha256` is filled in.

    Returns:
        What was written.

    Raises:
        ValueError: not a PNG file.
    """
    path = Path(path)
    with Image.open(path) as picture:
        if picture.format != "PNG":
            raise ValueError(f"{path.name} is {picture.format}, provenance needs PNG: save the picture as .png first")
        picture.load()
        copy, texts = picture.copy(), dict(picture.text)
    claim = {"digital_source_type": GENERATED, **fields, "pixels_sha256": pixels_sha256(path)}
    claim["seal"] = digest(claim | {"seal": None})
    chunks = PngImagePlugin.PngInfo()
    for keyword, text in (texts | {KEYWORD: canonical(claim)}).items():
        chunks.add_itxt(keyword, str(text))
    write_atomically(path, lambda temporary: copy.save(temporary, format="PNG", pnginfo=chunks))
    return claim


def read_provenance(path: Path | str) -> dict | None:
    """The fields that the PNG carries, None if there are none. What cannot be parsed counts as none."""
    with Image.open(path) as picture:
        picture.load()
        text = getattr(picture, "text", {}).get(KEYWORD)
    try:
        claim = json.loads(text) if text is not None else None
    except ValueError:
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
