"""The easy stage of HG-DPO on PortraitSD from nothing to a win: how long, and how sure.

    python tests/benchmarks/bench_easy.py [--small] [--threads 2] [--seed 100]
    python -m pytest tests/benchmarks/bench_easy.py -s         # LABKIT_BENCH=small for a few steps

Pool, pairs and training are timed; then the aligned model meets its base on held-out prompts with the same seeds. Goal:
at most 3 minutes on two cores, and a win rate whose lower bound (95 %, over prompts) is above 50 % with the judge that
made the pairs; the AttributeReader, which took no part, is asked as well.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch

from labkit.diffusion import image_generators, sample
from labkit.dpo import DPOConfig, DPOTrainer, best_vs_worst, build_pool, dpo, faithfulness
from labkit.metrics import outcomes, win_rate
from labkit.metrics.preference import WinRateResult
from labkit.models import load_clip, load_pipeline, load_reader
from labkit.portraits import ATTRIBUTES, random_caption, sample_specs
from labkit.portraits.parse import parse_caption

GOAL_SECONDS = 180.0
SIZES = {
    "small": {"prompts": 4, "candidates": 2, "steps": 2, "held_out": 4, "sampler": 2},
    "full": {"prompts": 288, "candidates": 4, "steps": 220, "held_out": 100, "sampler": 8},
}


def captions(n: int, seed: int) -> list[str]:
    """n captions that leave attributes open and name at least one."""
    rng = np.random.default_rng(seed)
    texts = [random_caption(spec, rng) for spec in sample_specs(2 * n + 8, seed=seed)]
    return [text.text for text in texts if text.named][:n]


def named_right(reader, images, prompts) -> np.ndarray:
    """Share of the named attributes that the reader finds right, per image."""
    read = reader.read(images)
    return np.array(
        [np.mean([ATTRIBUTES[a][read[a][i]] == v for a, v in parse_caption(p).items()]) for i, p in enumerate(prompts)]
    )


def measure(size: str, seed: int) -> tuple[dict[str, float], dict[str, WinRateResult]]:
    """Seconds of pool and training, and win rates by judge."""
    s = SIZES[size]
    pipe = load_pipeline("cpu", variant="portrait-sd-base")
    judge, reader = faithfulness(*load_clip("cpu")), load_reader()
    held_out = [text for text in captions(s["held_out"], seed + 1) for _ in range(2)]

    def pictures():
        generators = image_generators(len(held_out), seed + 2)
        return sample(pipe, held_out, generators=generators, steps=s["sampler"], batch_size=64)

    base = pictures()
    begun = time.perf_counter()
    pool = build_pool(
        pipe, captions(s["prompts"], seed), s["candidates"], scorers=[judge], seed=seed, steps=s["sampler"]
    )
    seconds = {"pool": time.perf_counter() - begun}
    begun = time.perf_counter()
    config = DPOConfig(
        steps=s["steps"], batch_size=16, lr=3e-5, seed=seed, trainable="full", reference="copy", precision="auto",
        t_window=(250, 1000),
    )  # fmt: skip
    with DPOTrainer(pipe, best_vs_worst(pool).training(), config, [dpo(400.0)]) as trainer:
        trainer.run()
        seconds["training"] = time.perf_counter() - begun
        aligned = pictures()
    rates = {}
    judges = {"training judge": judge, "gold judge": lambda images, texts: named_right(reader, images, texts)}
    for name, ask in judges.items():
        candidate, baseline = (np.asarray(ask(images, held_out), dtype=float) for images in (aligned, base))
        rates[name] = win_rate(
            outcomes(candidate=candidate, baseline=baseline), prompts=held_out, generator=np.random.default_rng(seed)
        )
    return seconds, rates


def report(size: str, seed: int) -> tuple[dict[str, float], dict[str, WinRateResult]]:
    seconds, rates = measure(size, seed)
    print(" + ".join(f"{name} {value:.0f} s" for name, value in seconds.items()), end=" ")
    print(f"= {sum(seconds.values()):.0f} s (goal {GOAL_SECONDS:.0f}), {torch.get_num_threads()} threads")
    for name, rate in rates.items():
        print(f"{name:15} {rate.value:6.1%} [{rate.low:.1%}, {rate.high:.1%}] of {rate.prompts} prompts")
    return seconds, rates


def test_easy_stage():
    seconds, rates = report(os.environ.get("LABKIT_BENCH", "full"), seed=100)
    assert sum(seconds.values()) > 0 and all(r.low <= r.value <= r.high for r in rates.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report("small" if arguments.small else "full", arguments.seed)


if __name__ == "__main__":
    main()
