"""The shipped catalogue of lesson 09: pictures of one order each by PortraitSD, and by portrait-sd-base afterwards.

Drawing takes minutes, decoding the latents seconds. `python -m labkit.studies.l09_catalogue` draws them anew into
`catalogue/` of the data folder and writes their checksum.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from labkit.diffusion import decode_latents, image_generators, sample_latents
from labkit.files import write_atomically
from labkit.models import load_pipeline
from labkit.models.checksums import write_checksums
from labkit.models.paths import data_dir
from labkit.portraits import HELD_OUT_COMBINATIONS, PortraitSpec, caption, sample_specs
from labkit.studies.l09 import mixed_up
from labkit.studies.study import StudyError

FOLDER, FILE = "catalogue", "latents.safetensors"
ORDERS, LATER, STEPS, SEED = 384, 128, 8, 90_000  # the study draws other orders and other noise
MODELS = {"old": "portrait-sd", "new": "portrait-sd-base"}


@dataclass(frozen=True)
class Catalogue:
    """Orders and the latents of their pictures.

    Attributes:
        specs, prompts: one per order. old: latents [ORDERS, C, h, w] by PortraitSD. new: of the first LATER orders by
            portrait-sd-base.
    """

    specs: tuple[PortraitSpec, ...]
    prompts: tuple[str, ...]
    old: Tensor
    new: Tensor

    def pictures(self, which: str, n: int) -> Tensor:
        """The first n pictures of "old" or "new" [n, 3, 64, 64] in [-1, 1]."""
        pipe = load_pipeline("cpu", variant=MODELS[which])
        with torch.no_grad():
            return decode_latents(pipe, getattr(self, which)[:n], batch_size=64).clamp(-1, 1)

    def mixed_up(self, n: int, share: float, seed: int) -> np.ndarray:
        """Which picture lies with which of the first n orders, [n]: neighbours are exchanged with this probability."""
        return mixed_up(n, share, np.random.default_rng(seed))


def orders() -> tuple[tuple[PortraitSpec, ...], tuple[str, ...]]:
    """Specs and captions of the catalogue."""
    specs = sample_specs(ORDERS, seed=SEED, exclude=HELD_OUT_COMBINATIONS)
    return tuple(specs), tuple(caption(spec).text for spec in specs)


def drawn(variant: str, prompts: Sequence[str], first: int) -> Tensor:
    """Latents of one picture per prompt, from noise number `first` on."""
    generators = image_generators(len(prompts), SEED, first=first)
    pipe = load_pipeline("cpu", variant=variant)
    return sample_latents(
        pipe, list(prompts), generators=generators, steps=STEPS, guidance_scale=3.0, batch_size=64
    ).latents.cpu()


def save(path: Path, catalogue: Catalogue) -> None:
    """Write one file in half precision, with the orders in its header."""
    tensors = {name: getattr(catalogue, name).half().contiguous() for name in MODELS}
    about = {"prompts": json.dumps(catalogue.prompts), "steps": str(STEPS), "seed": str(SEED)}
    write_atomically(path, lambda p: save_file(tensors, str(p), metadata=about))


def load(path: Path | None = None) -> Catalogue:
    """Read the shipped catalogue.

    Raises:
        StudyError: the file is missing or damaged, or its orders are not those of this version of labkit.
    """
    path = data_dir() / FOLDER / FILE if path is None else path
    try:
        with safe_open(str(path), "pt") as file:
            told, tensors = json.loads(file.metadata()["prompts"]), {k: file.get_tensor(k).float() for k in MODELS}
    except Exception as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}): restore the data folder") from error
    specs, prompts = orders()
    if tuple(told) != prompts:
        raise StudyError(f"{path.name} holds other orders: draw it anew with python -m labkit.studies.l09_catalogue")
    return Catalogue(specs, prompts, tensors["old"], tensors["new"])


def main() -> None:
    """Draw the catalogue into the data folder and write its checksum."""
    torch.set_num_threads(1)
    specs, prompts = orders()
    old, new = drawn(MODELS["old"], prompts, 0), drawn(MODELS["new"], prompts[:LATER], ORDERS)
    save(data_dir() / FOLDER / FILE, Catalogue(specs, prompts, old, new))
    write_checksums(folders=[FOLDER])


if __name__ == "__main__":
    main()
