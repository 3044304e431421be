"""What lesson 03 ships: latents of the pictures that its live run compares its own with.

Four hundred candidates of PortraitSD, and the pictures of the pretrained model and of the one that was tuned without
weights. To draw and train them takes minutes, to decode them seconds. `python -m labkit.studies.l03_shipped` makes
them anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor

from labkit.density import CandidateStream
from labkit.diffusion import decode_latents
from labkit.studies import l03
from labkit.studies.shipped import SEED, Bar, Shelf, ticking

SHELF = Shelf(
    "pools-03.safetensors",
    l03.STUDY,
    ("pool", "steps", "reals", "tune_steps", "tune_batch", "tune_lr", "tune_images"),
    lambda seed, sizes: "\n".join([*l03.captions(sizes.pool, seed), l03.OPEN_PROMPT]),
)
TUNED: Mapping[str, float | None] = {"pretrained": None, "w1": 1.0}  # the models whose pictures are shipped: their w


def pictures(name: str, seed: int, sizes: SimpleNamespace) -> Tensor | None:
    """The shipped pictures "model", "pretrained" or "w1" [n, 3, 64, 64] in [-1, 1]; None where none fit."""
    found = SHELF.read(seed, sizes, [name])
    if found is None:
        return None
    with torch.no_grad():
        return decode_latents(l03.models().pipe, found[name], batch_size=64).clamp(-1, 1).cpu()


def model_pool(seed: int, sizes: SimpleNamespace, bar: l03.Bar = lambda numbers: numbers) -> l03.Pool:
    """`l03.pool("model", ...)`, from shipped latents where they fit."""
    made = pictures("model", seed, sizes)
    return l03.pool("model", seed, sizes, bar) if made is None else l03.scored(made, seed, sizes)


def tuned_pool(w: float | None, seed: int, sizes: SimpleNamespace, bar: Bar) -> l03.Pool:
    """Pictures of the model after tuning with weight w (None: as it is), from shipped latents where they fit.

    Args:
        bar: of `sizes.tune_steps` steps; made only if there is something to train.
    """
    name = next((name for name, shipped_w in TUNED.items() if shipped_w == w), None)
    made = None if name is None else pictures(name, seed, sizes)
    if made is not None:
        return l03.scored(made, seed, sizes)
    run = None if w is None else l03.tuned(w, seed, sizes, progress=ticking(bar))
    return l03.tuned_pool(run, seed, sizes)


@torch.no_grad()
def latents_of(stream: CandidateStream, n: int, batch: int = 32) -> Tensor:
    """Latents [n, C, h, w] of the first n candidates; their pictures are what the stream gives."""
    counts = [(first, min(batch, n - first)) for first in range(0, n, batch)]
    return torch.cat([stream.latents(stream.noise(first, count), first).cpu() for first, count in counts])


def open_stream(seed: int, sizes: SimpleNamespace) -> CandidateStream:
    """The candidates of `l03.tuned_pool`."""
    return CandidateStream(
        l03.models().pipe, l03.OPEN_PROMPT, seed=120_000 + seed, steps=sizes.steps, guidance_scale=1.0
    )


def make(seed: int, sizes: SimpleNamespace) -> dict[str, Tensor]:
    """Draw and train everything that is shipped."""
    made = {"model": latents_of(l03.stream("model", seed, sizes), sizes.pool)}
    pipe = l03.models().pipe
    for name, w in TUNED.items():
        run = l03.tuned(w, seed, sizes)
        with run.applied(pipe) if run else nullcontext():
            made[name] = latents_of(open_stream(seed, sizes), sizes.tune_images)
    return made


def main() -> None:
    """Make the file of the data folder."""
    sizes = SimpleNamespace(**l03.STUDY.sizes)
    SHELF.write(make(SEED, sizes), SEED, sizes)


if __name__ == "__main__":
    main()
