"""The shipped pools of lesson 03: latents of the pictures that its live run compares its own with.

Four hundred candidates of PortraitSD, and the pictures of the pretrained model and of the one that was tuned without
weights, for the seed of the live run. To draw and train them takes minutes, to decode them seconds. With another seed,
other sizes or other weights of PortraitSD nothing is shipped and the lesson makes them itself.

`python -m labkit.studies.l03_pools` makes them anew in `catalogue/` of the data folder and writes their checksum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open
from torch import Tensor

from labkit.density import CandidateStream
from labkit.diffusion import decode_latents, image_generators, sample_latents
from labkit.files import write_tensors
from labkit.models.checksums import write_checksums
from labkit.models.paths import data_dir
from labkit.studies import l03
from labkit.studies.store import weights_of
from labkit.studies.study import StudyError

FILE, SEED = "catalogue/pools-03.safetensors", 100
TUNED: Mapping[str, float | None] = {"pretrained": None, "w1": 1.0}  # the models whose pictures are shipped: their w
DECIDE = ("pool", "steps", "reals", "tune_steps", "tune_batch", "tune_lr", "tune_images")  # sizes that decide them


def conditions(seed: int, sizes: SimpleNamespace) -> dict[str, str]:
    """What decides the shipped latents, as the file says it."""
    decided = {name: getattr(sizes, name) for name in DECIDE}
    return {"seed": str(seed), "sizes": json.dumps(decided), "weights": weights_of(l03.STUDY)["portrait-sd"]}


def shipped(name: str, seed: int, sizes: SimpleNamespace, path: Path | None = None) -> Tensor | None:
    """The shipped pictures "model", "pretrained" or "w1" [n, 3, 64, 64] in [-1, 1]; None where none fit.

    Raises:
        StudyError: the file is damaged.
    """
    path = data_dir() / FILE if path is None else path
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            if file.metadata() != conditions(seed, sizes):
                return None
            latents = file.get_tensor(name).float()
    except Exception as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}): restore the data folder") from error
    with torch.no_grad():
        return decode_latents(l03.models().pipe, latents, batch_size=64).clamp(-1, 1).cpu()


def model_pool(seed: int, sizes: SimpleNamespace, bar: l03.Bar = lambda numbers: numbers) -> l03.Pool:
    """`l03.pool("model", ...)`, from shipped latents where they fit."""
    pictures = shipped("model", seed, sizes)
    return l03.pool("model", seed, sizes, bar) if pictures is None else l03.scored(pictures, seed, sizes)


def tuned_pool(w: float | None, seed: int, sizes: SimpleNamespace, ticks: Callable[[], Iterator[object]]) -> l03.Pool:
    """Pictures of the model after tuning with weight w (None: as it is), from shipped latents where they fit.

    Args:
        ticks: makes a progress bar of `sizes.tune_steps` steps; called only if there is something to train.
    """
    name = next((name for name, shipped_w in TUNED.items() if shipped_w == w), None)
    pictures = None if name is None else shipped(name, seed, sizes)
    if pictures is not None:
        return l03.scored(pictures, seed, sizes)
    steps = iter(()) if w is None else ticks()
    run = l03.tuned(w, seed, sizes, progress=lambda *_: next(steps, None))
    for _ in steps:  # the bar's last line
        pass
    return l03.tuned_pool(run, seed, sizes)


def latents_of(stream: CandidateStream, n: int, batch: int = 32) -> Tensor:
    """Latents [n, C, h, w] of the first n candidates; their pictures are what the stream gives."""
    made = []
    for first in range(0, n, batch):
        count = min(batch, n - first)
        rows = [(first + i) % len(stream.conditions) for i in range(count)]
        with torch.no_grad():
            drawn = sample_latents(
                stream.pipe, None, generators=image_generators(count, stream.seed, first=first), steps=stream.steps,
                guidance_scale=stream.guidance_scale, latents=stream.noise(first, count),
                conditions=stream.conditions.select(rows), batch_size=stream.batch_size,
            )  # fmt: skip
        made.append(drawn.latents.cpu())
    return torch.cat(made)


def make(seed: int, sizes: SimpleNamespace) -> dict[str, Tensor]:
    """Draw and train everything that is shipped, in half precision."""
    made = {"model": latents_of(l03.stream("model", seed, sizes), sizes.pool)}
    pipe = l03.models().pipe
    for name, w in TUNED.items():
        run = l03.tuned(w, seed, sizes)
        with run.applied(pipe) if run else nullcontext():
            made[name] = latents_of(open_stream(seed, sizes), sizes.tune_images)
    return {name: latents.half().contiguous() for name, latents in made.items()}


def open_stream(seed: int, sizes: SimpleNamespace) -> CandidateStream:
    """The candidates of `l03.tuned_pool`."""
    return CandidateStream(
        l03.models().pipe, l03.OPEN_PROMPT, seed=120_000 + seed, steps=sizes.steps, guidance_scale=1.0
    )


def main() -> None:
    """Make the file in the data folder and write its checksum."""
    torch.set_num_threads(1)
    sizes = SimpleNamespace(**l03.STUDY.sizes)
    write_tensors(data_dir() / FILE, make(SEED, sizes), conditions(SEED, sizes))
    write_checksums(folders=[FILE.split("/")[0]])


if __name__ == "__main__":
    main()
