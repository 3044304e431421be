"""Throughput of the candidate pool against a plain loop over the pipeline, measured in turns in one run.

    python tests/benchmarks/bench_pool.py [--prompts 8] [--candidates 4] [--steps 10] [--repeats 3] [--threads 1]

labkit: `build_pool` with one judge, batches that span prompts. Peer: `pipe(prompt, num_images_per_prompt=N)` for one
prompt after the other and the same judge on the result. Same steps and guidance; the best of the repeats counts.
"""

from __future__ import annotations

import argparse
import time

import torch

from labkit.dpo import build_pool, faithfulness
from labkit.models import load_clip, load_pipeline
from labkit.portraits import caption, sample_specs


def measure(prompts: int, candidates: int, steps: int, repeats: int) -> dict[str, float]:
    """Images per second of both."""
    pipe = load_pipeline("cpu", variant="portrait-sd-base")
    judge = faithfulness(*load_clip("cpu"))
    texts = [caption(spec, drop=["mood"]).text for spec in sample_specs(prompts, seed=0)]

    def labkit() -> None:
        build_pool(pipe, texts, candidates, scorers=[judge], seed=0, steps=steps, shard=prompts, batch_size=64)

    def plain() -> None:
        for text in texts:
            options = {"num_images_per_prompt": candidates, "num_inference_steps": steps, "guidance_scale": 3.0}
            images = pipe(text, output_type="pt", generator=torch.Generator().manual_seed(0), **options).images
            judge(images * 2 - 1, [text] * candidates)

    best = {"labkit": float("inf"), "plain loop": float("inf")}
    for _ in range(repeats):
        for name, run in (("labkit", labkit), ("plain loop", plain)):
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: prompts * candidates / seconds for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("prompts", 8), ("candidates", 4), ("steps", 10), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rates = measure(given.prompts, given.candidates, given.steps, given.repeats)
    for name, rate in rates.items():
        print(f"{name:12} {rate:7.2f} images/s")
    print(f"ratio        {rates['labkit'] / rates['plain loop']:7.2f}")


def test_pool_throughput() -> None:
    rates = measure(prompts=4, candidates=2, steps=2, repeats=1)
    assert all(rate > 0 for rate in rates.values())


if __name__ == "__main__":
    main()
