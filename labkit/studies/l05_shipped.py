"""What lesson 05 ships: the candidates of its pairs, and the pictures guided away from the model trained to do worse.

Drawing the candidates and training that model are no decisions of the learner's. The loss that the lesson is about, and
the learner's own, train live. `python -m labkit.studies.l05_shipped` makes both anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from types import SimpleNamespace

import torch
from torch import Tensor

from labkit.diffusion import decode_latents, image_generators, sample_latents
from labkit.dpo import Pool, best_vs_worst, build_pool, npo
from labkit.studies import l05
from labkit.studies.l06 import adapters
from labkit.studies.shipped import SEED, Bar, Shelf, ticking

LIVE = {
    "prompts": 40, "candidates": 6, "test_prompts": 48, "steps": 8, "train_steps": 60, "batch": 10, "draws": 4,
    "kappa": 400.0, "lr": 4e-4, "rank": 16,
}  # fmt: skip  # sizes of the live run on tier cpu
SHELF = Shelf("pools-05.safetensors", l05.STUDY, tuple(LIVE), lambda seed, sizes: "\n".join(asked(seed, sizes)))
SHARD = 8  # prompts between two ticks of the bar
AWAY = {"npo": False, "npo_words": True}  # arm -> whether the model to avoid is asked for the prompt


def prompts_of(seed: int, sizes: SimpleNamespace) -> list[str]:
    """The prompts of the pairs, as in `l05.portrait_pairs`."""
    return l05.half_named(sizes.prompts, 10_000 + seed)[1]


def asked(seed: int, sizes: SimpleNamespace) -> list[str]:
    """All prompts: those of the pairs, those held out."""
    return [*prompts_of(seed, sizes), *l05.held_out(sizes.test_prompts)]


def pool(seed: int, sizes: SimpleNamespace, bar: Bar) -> Pool:
    """The candidates of each prompt with the training judge's scores, from shipped latents where they fit.

    Args:
        bar: of one item for every `SHARD` prompts, the last of which may be fewer; made only if there is something to
            draw.
    """
    m, prompts = l05.models(), prompts_of(seed, sizes)
    found = SHELF.read(seed, sizes, ["pool"])
    if found is None:
        how = {"seed": seed, "steps": sizes.steps, "shard": SHARD, "progress": ticking(bar)}
        return build_pool(m.pipe, prompts, sizes.candidates, scorers=[m.judge], **how)
    latents = found["pool"]
    with torch.no_grad():
        images = decode_latents(m.pipe, latents.flatten(0, 1), batch_size=64).clamp(-1, 1)
    scores = m.judge(images, [prompt for prompt in prompts for _ in range(sizes.candidates)])
    return Pool(tuple(prompts), latents, {m.judge.name: scores.view(len(prompts), -1)})


def guided_away(seed: int, sizes: SimpleNamespace, worse: Callable[[], l05.Run]) -> dict[str, Tensor]:
    """Pictures of the held-out prompts [n, 3, 64, 64], guided away from a model that was trained on swapped labels:
    "npo" asks it for the empty prompt, "npo_words" for the prompt. From shipped latents where they fit.

    Args:
        worse: trains that model on the pairs of this seed; called only if nothing is shipped.
    """
    found, test = SHELF.read(seed, sizes, AWAY), l05.held_out(sizes.test_prompts)
    if found is None:
        state = worse().state
        return {arm: l05.away_from(state, test, seed, sizes, with_words=words) for arm, words in AWAY.items()}
    with torch.no_grad():
        return {arm: decode_latents(l05.models().pipe, x, batch_size=64).clamp(-1, 1).cpu() for arm, x in found.items()}


def latents_away_from(
    state: dict[str, Tensor], prompts: Sequence[str], seed: int, sizes: SimpleNamespace, *, with_words: bool
) -> Tensor:
    """The latents of `l05.away_from` [n, C, h, w]."""
    pipe = l05.models().pipe
    with adapters({"dpo": state}):
        worse = deepcopy(pipe.unet)
    negative = {"negative_prompts": list(prompts)} if with_words else {}
    return sample_latents(
        pipe, list(prompts), generators=image_generators(len(prompts), 1000 + seed), steps=sizes.steps, batch_size=64,
        negative_model=worse, **negative,
    ).latents.cpu()  # fmt: skip


def make(seed: int, sizes: SimpleNamespace) -> dict[str, Tensor]:
    """Draw the candidates, train on their pairs with swapped labels, draw away from that model."""
    m = l05.models()
    drawn = build_pool(
        m.pipe, prompts_of(seed, sizes), sizes.candidates, scorers=[m.judge], seed=seed, steps=sizes.steps
    )
    worse = l05.align(best_vs_worst(drawn, m.judge.name).training(), [npo(sizes.kappa)], seed, sizes)
    test = l05.held_out(sizes.test_prompts)
    away = {arm: latents_away_from(worse.state, test, seed, sizes, with_words=words) for arm, words in AWAY.items()}
    return {"pool": drawn.latents.cpu(), **away}


def main() -> None:
    """Make the file of the data folder."""
    sizes = SimpleNamespace(**LIVE)
    SHELF.write(make(SEED, sizes), SEED, sizes)


if __name__ == "__main__":
    main()
