"""The history of a feedback loop on disk: pictures as PNG, everything else in one JSON file that is replaced whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from labkit.diffusion import to_pil
from labkit.fabric.cache import digest_of
from labkit.fabric.settings import FabricError
from labkit.files import write_atomically
from labkit.images import read_file

STATE = "state.json"


def write_round(folder: Path, configuration: dict[str, Any], rounds: Sequence[Any]) -> None:
    """Write the pictures that are not there yet, then the state: a kill in between leaves the previous state valid."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, one in enumerate(rounds):
        names = [f"round-{number:03d}-image-{i}.png" for i in range(len(one.images))]
        for name, picture in zip(names, to_pil(one.images), strict=True):
            if number == len(rounds) - 1 or not (folder / name).exists():
                write_atomically(folder / name, lambda path, picture=picture: picture.save(path, format="PNG"))
        entry = {"prompts": list(one.prompts), "liked": list(one.liked), "disliked": list(one.disliked)}
        entries.append(entry | {"images": names})
    text = json.dumps({"configuration": configuration, "rounds": entries}, indent=1, ensure_ascii=False)
    write_atomically(folder / STATE, text)


def described(value: Any) -> Any:
    """A value as JSON can keep and compare it: pictures and tensors by their digest, unknown objects by their kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): described(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(one) for one in value]
    if isinstance(value, Tensor):
        return digest_of(value)
    if isinstance(value, (Image.Image, np.ndarray)):
        kind = value.mode if isinstance(value, Image.Image) else ""
        array = np.ascontiguousarray(np.asarray(value))
        return hashlib.sha256(f"{kind} {array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
    return type(value).__name__


def read_rounds(folder: Path, configuration: dict[str, Any]) -> list[dict[str, Any]]:
    """Rounds as keyword arguments of `Round`, with `pixels` uint8 [B, H, W, 3]; none if there is no history.

    Raises FabricError if the history is damaged or belongs to another configuration.
    """
    path = folder / STATE
    if not path.exists():
        return []
    try:
        state = json.loads(path.read_text("utf-8"))
        stored, rounds = state["configuration"], state["rounds"]
        result = [
            {
                "pixels": np.stack([read_file(folder / name) for name in entry["images"]]),
                "prompts": tuple(entry["prompts"]),
                "liked": tuple(entry["liked"]),
                "disliked": tuple(entry["disliked"]),
            }
            for entry in rounds
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FabricError(f"{path} or its pictures cannot be read ({error}): choose another folder") from None
    different = sorted(name for name in configuration if stored.get(name) != configuration[name])
    if different:
        raise FabricError(
            f"{folder} holds a loop with other {', '.join(different)}: use the same values or another folder"
        )
    return result
