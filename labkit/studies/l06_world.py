"""The shipped world of lesson 06: pool, reconstructions and scores of one seed that the recorded study does not use.

Making it takes minutes, loading it a second. `python -m labkit.studies.l06_world` makes it anew; the lesson trains on
it, so a learner's run is one more seed of the study.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from labkit.diffusion import decode_latents, encode_images, image_generators, merge_lora, sample_latents
from labkit.dpo import (
    PairSet,
    Pool,
    PreferencePairs,
    attach,
    base_weights_kept,
    best_vs_worst,
    build_pool,
    dpo,
    hard_pairs,
    leap_pairs,
    normal_pairs,
    recon_levels,
    warmth_of,
)
from labkit.dpo.scorers import sharpness_of
from labkit.files import write_atomically
from labkit.metrics import kernel_distance
from labkit.portraits import grainy, render_tensor
from labkit.studies import l06
from labkit.studies.store import folder_of_studies
from labkit.studies.study import StudyError

SEED = 100  # the study records 0, 1, 2, ...
SHOWN = 16  # held-out prompts whose pictures open the lesson
JUDGE, WARM = "judge", "warm"


@dataclass(frozen=True)
class ShippedWorld:
    """What the lesson trains on: P prompts, N candidates each, latents [C, h, w].

    Attributes:
        pool: candidates and two judges' scores, "judge" and "warm" (the judge with a taste for warm colours).
        real: latents of the prompts' real pictures [P, C, h, w]. recons, recon_scores: level t -> [P, C, h, w], [P].
        features: the AttributeReader's features of other real pictures [n, d], for the distance.
        shown: "base", "easy", "hg" -> latents of the first held-out prompts, from the same noise.
    """

    pool: Pool
    real: Tensor
    recons: dict[int, Tensor]
    recon_scores: dict[int, Tensor]
    features: Tensor
    shown: dict[str, Tensor]

    @property
    def prompts(self) -> list[str]:
        return list(self.pool.prompts)

    def first(self, n: int) -> ShippedWorld:
        """The world of the first n prompts."""
        scores = {name: s[:n] for name, s in self.pool.scores.items()}
        pool = replace(self.pool, prompts=self.pool.prompts[:n], latents=self.pool.latents[:n], scores=scores)
        recons = {t: x[:n] for t, x in self.recons.items()}
        judged = {t: s[:n] for t, s in self.recon_scores.items()}
        return replace(self, pool=pool, real=self.real[:n], recons=recons, recon_scores=judged)

    def pairs(self) -> SimpleNamespace:
        """easy, normal, hard, leap: what each stage trains on, chosen as in the study."""
        easy = best_vs_worst(self.pool, JUDGE)
        middle = [t for t in self.recons if t != l06.LEVELS[0]]
        normal = normal_pairs(
            easy, {t: self.recons[t] for t in middle}, {t: self.recon_scores[t] for t in middle}, JUDGE
        )
        if all(normal.column("tie")):  # a handful of prompts can leave nothing
            normal = leap_pairs(easy, self.recons[middle[0]])
        hard = hard_pairs(normal, self.recons[l06.LEVELS[0]])
        return SimpleNamespace(easy=easy, normal=normal, hard=hard, leap=leap_pairs(easy, self.real))

    def measures(self, images: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """What the study measures of pictures [n, 3, 64, 64], against the shipped real pictures: per prompt "gold",
        "judge", "sharpness", "warmth"; of all of them the "distance" [1] (kernel distance divided by 1,000)."""
        m = l06.models()
        distance = float(kernel_distance(real=self.features, fake=m.reader.features(images))) / 1000
        return {
            "gold": l06.gold(images, prompts),
            "judge": m.judge(images, prompts).numpy(),
            "sharpness": sharpness_of(images).numpy(),
            "warmth": warmth_of(images).numpy(),
            "distance": np.array([distance]),
        }


def pictures(prompts: Sequence[str], seed: int, steps: int, states: l06.Adapters) -> Tensor:
    """`l06.pictures` with the adapters merged into the weights: the same but for rounding, in half the time."""
    unet = l06.models().pipe.unet
    with base_weights_kept(unet):
        for name, state in states.items():
            attach(unet, name, state)
            merge_lora(unet, name)
        return l06.pictures(prompts, seed, SimpleNamespace(steps=steps))


def together(*sets: PairSet) -> PreferencePairs:
    """The pairs of several stages as one list."""
    parts = [pairs.training() for pairs in sets]
    return PreferencePairs(
        tuple(prompt for part in parts for prompt in part.prompts),
        torch.cat([part.winner for part in parts]),
        torch.cat([part.loser for part in parts]),
        hashes=parts[0].hashes,
    )


# ---- making and loading it ---------------------------------------------------------------------------------------


def make(sizes: SimpleNamespace, seed: int = SEED) -> ShippedWorld:
    """Pool, reconstructions and scores, as `l06.world` makes them for a recorded seed; nothing is trained yet."""
    m = l06.models()
    specs, texts = l06.half_named(sizes.prompts, 10_000 + seed)
    scorers = [replace(m.judge, name=JUDGE), replace(l06.tainted(m.judge, sizes.bias), name=WARM)]
    pool = build_pool(m.pipe, texts, sizes.candidates, scorers=scorers, seed=seed, steps=sizes.steps)
    pictures = grainy(render_tensor(specs), sizes.grain, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        real = encode_images(m.pipe, pictures).cpu()
        recons = recon_levels(m.pipe, real, texts, l06.LEVELS, seed=seed, steps=sizes.steps, batch_size=64)
        judged = {t: m.judge(decode_latents(m.pipe, x).clamp(-1, 1), texts) for t, x in recons.items()}
    features = m.reader.features(l06.reality(sizes.references, sizes.grain))
    return ShippedWorld(pool, real, recons, judged, features, {})


def with_pictures(world: ShippedWorld, sizes: SimpleNamespace, seed: int = SEED) -> ShippedWorld:
    """Add what the lesson opens with: held-out prompts by the base, after easy, after the curriculum."""
    pairs, term = world.pairs(), [dpo(sizes.kappa)]
    first, rest = round(0.6 * sizes.train_steps), round(0.2 * sizes.train_steps)
    easy = l06.align([("easy", pairs.easy.training(), term, first)], seed, sizes)
    later = [(name, getattr(pairs, name).training(), term, rest) for name in ("normal", "hard")]
    states = {"base": {}, "easy": easy, "hg": l06.align(later, seed, sizes, easy)}
    prompts, shown = l06.half_named(sizes.test_prompts, 20_000)[1][:SHOWN], {}
    for name, state in states.items():
        with l06.adapters(state):
            generators = image_generators(len(prompts), 1000 + seed)
            drawn = sample_latents(l06.models().pipe, prompts, generators=generators, steps=sizes.steps, batch_size=64)
        shown[name] = drawn.latents.cpu()
    return replace(world, shown=shown)


def save(world: ShippedWorld, path: Path) -> None:
    """Write one file: latents and features in half precision, scores in single."""
    tensors = {"pool": world.pool.latents, "real": world.real, "features": world.features}
    tensors |= {f"recon {t}": x for t, x in world.recons.items()} | {f"shown {k}": x for k, x in world.shown.items()}
    tensors = {name: x.half().cpu().contiguous() for name, x in tensors.items()}
    tensors |= {f"score {name}": s.float().contiguous() for name, s in world.pool.scores.items()}
    tensors |= {f"recon score {t}": s.float().contiguous() for t, s in world.recon_scores.items()}
    about = {"prompts": json.dumps(world.prompts), "record": json.dumps(dict(world.pool.record))}
    write_atomically(path, lambda p: save_file(tensors, str(p), metadata=about))


def load(path: Path | None = None) -> ShippedWorld:
    """Read the shipped world.

    Raises:
        StudyError: the file is missing or damaged.
    """
    path = folder_of_studies() / "l06-world.safetensors" if path is None else path
    try:
        with safe_open(str(path), "pt") as file:
            about, tensors = file.metadata(), {name: file.get_tensor(name).float() for name in file.keys()}
        prompts, record = json.loads(about["prompts"]), json.loads(about["record"])
    except Exception as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}): restore the data folder") from error

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

    pool = Pool(tuple(prompts), tensors["pool"], part("score "), record)
    judged = {int(t): s for t, s in sorted(part("recon score ").items(), key=lambda item: int(item[0]))}
    recons = {t: tensors[f"recon {t}"] for t in judged}
    return ShippedWorld(pool, tensors["real"], recons, judged, tensors["features"], part("shown "))


def main() -> None:
    """Make the world at the study's sizes and write it into the data folder, before and after training."""
    sizes, path = SimpleNamespace(**l06.STUDY.sizes), folder_of_studies() / "l06-world.safetensors"
    world = make(sizes)
    save(world, path)
    save(with_pictures(world, sizes), path)


if __name__ == "__main__":
    main()
