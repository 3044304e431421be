"""What each way of saving time brings, on the lessons' own model: ratios against doing without, in one run.

    python tests/benchmarks/bench_savings.py [--small] [--threads N]
    python -m pytest tests/benchmarks/bench_savings.py -s          # LABKIT_BENCH=small for a few pictures

Times are CPU seconds, the best of the repeats, by turns. Pairing needs no clock: the record of lesson 05 says how many
prompts the same interval would take if the two models were asked different ones.

- recorded     decoding latents that are shipped in half precision, instead of drawing the pictures
- unguided     scale 1, half of the rows, where nothing is claimed about guidance
- window       guidance in the first half of the steps alone; `faithfulness lost` says what that costs
- bfloat16     the U-Net under autocast (worth it only where the CPU computes in bfloat16)
- cached       DPO steps that take the reference's errors from a cache, instead of running it in every step
- paired       the same prompts and noise for both models, instead of other ones
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from labkit.diffusion import decode_latents, image_generators, native_bfloat16, sample, sample_latents
from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, dpo
from labkit.models import load_pipeline
from labkit.studies import Recorded, l05, read_record

SIZES = {
    "full": {"pictures": 64, "batch": 10, "steps": 12, "repeats": 3},
    "small": {"pictures": 4, "batch": 2, "steps": 2, "repeats": 1},
}
STEPS = 8


def seconds(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """CPU seconds of each, the best of the repeats, by turns."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(repeats):
        for name, one in work.items():
            begun = time.process_time()
            one()
            best[name] = min(best[name], time.process_time() - begun)
    return best


def drawing(pictures: int, repeats: int) -> dict[str, float]:
    """How many times as fast as plain guided sampling in float32; what a window of guidance costs in faithfulness."""
    pipe, prompts = load_pipeline("cpu", variant="portrait-sd-base"), l05.held_out(pictures)

    def draw(half: bool = False, **options):
        generators = image_generators(pictures, 1)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if half else nullcontext():
            return sample(pipe, prompts, generators=generators, steps=STEPS, **options)

    window = {"guidance_window": (0.0, 0.5)}
    latents = sample_latents(pipe, prompts, generators=image_generators(pictures, 1), steps=STEPS).latents.half()
    work = {
        "plain": draw,
        "recorded": lambda: decode_latents(pipe, latents.float()),
        "unguided": lambda: draw(guidance_scale=1.0),
        "window": lambda: draw(**window),
        "bfloat16": lambda: draw(half=True),
    }
    took = seconds(work, repeats)
    lost = l05.gold(draw(), prompts) - l05.gold(draw(**window), prompts)
    ratios = {name: took["plain"] / took[name] for name in work if name != "plain"}
    return ratios | {"faithfulness lost": float(lost.mean())}


def training(batch: int, steps: int, repeats: int) -> float:
    """How many times as fast a DPO step is whose reference's errors are in the cache."""
    pipe, g = load_pipeline("cpu", variant="portrait-sd-base"), torch.Generator().manual_seed(0)
    prompts = l05.held_out(batch)
    winner = sample_latents(pipe, prompts, generators=image_generators(batch, 1), steps=2).latents
    pairs = PreferencePairs(tuple(prompts), winner, winner + 0.1 * torch.randn(winner.shape, generator=g))
    best = {0: float("inf"), 2: float("inf")}
    for _ in range(repeats):
        for draws in best:
            config = DPOConfig(
                steps=steps + 2, batch_size=batch, rank=16, targets="all", log_every=steps + 2, cached_draws=draws,
                precision="fp32",
            )  # fmt: skip
            with DPOTrainer(pipe, pairs, config, [dpo(400.0)]) as trainer:
                trainer.run(steps=2)  # fills the cache
                begun = time.process_time()
                trainer.run(steps=steps)
                best[draws] = min(best[draws], time.process_time() - begun)
    return best[0] / best[2]


def pairing() -> float:
    """How many times as many prompts an interval of the same width takes without pairing: DPO against its base."""
    recorded = Recorded(read_record("05"))
    seeds = recorded.seeds("dpo", "base")
    after, before = (recorded.values("gold", arm, seeds=seeds) for arm in ("dpo", "base"))
    apart = after.var(1, ddof=1) + before.var(1, ddof=1)
    return float((apart / (after - before).var(1, ddof=1)).mean())


def report(size: str) -> dict[str, float]:
    options = SIZES[size]
    found = drawing(options["pictures"], options["repeats"])
    found["cached"] = training(options["batch"], options["steps"], options["repeats"])
    found["paired"] = pairing()
    print(f"\nbfloat16 is native here: {native_bfloat16()}")
    for name, value in found.items():
        print(f"{name:18} {value:7.3f}" if name == "faithfulness lost" else f"{name:18} {value:7.2f} x")
    return found


def test_each_saving_saves() -> None:
    size = os.environ.get("LABKIT_BENCH", "full")
    found = report(size)
    if size == "full":
        assert min(found[name] for name in ("recorded", "unguided", "window", "cached", "paired")) > 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    report("small" if given.small else "full")


if __name__ == "__main__":
    main()
