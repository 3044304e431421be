"""Seconds per 1,000 pairs of difference training: cached image features against encoding both images in every step.

    python tests/benchmarks/bench_pairwise.py [--small] [--threads N]
    python -m pytest tests/benchmarks/bench_pairwise.py -q -s      # LABKIT_BENCH=small for the small size

Both contestants train PortraitCLIP on the same pairs and sentences in one process, turn about, with the same loss and
the same text tower; the one without a cache runs the frozen image tower (no gradient) over the pictures of each batch,
as a plain training loop would. A mirrored pair shows the same two pictures: they are encoded once.
"""

from __future__ import annotations

import argparse
import os
import time

import torch

SIZES = {"small": {"portraits": 64, "batch": 32, "steps": 2}, "full": {"portraits": 512, "batch": 128, "steps": 10}}


def measure(size: str, threads: int) -> dict[str, float]:
    """Seconds per 1,000 pairs: cached, uncached, and once for the cache itself (per 1,000 pictures)."""
    from labkit.models import load_clip
    from labkit.pairwise import (
        TemplateWriter,
        cache_embeddings,
        natural_pairs,
        portrait_wording,
        preset,
        train_pairwise,
    )
    from labkit.portraits import render_tensor, sample_specs

    torch.set_num_threads(threads)
    n, batch, steps = (SIZES[size][k] for k in ("portraits", "batch", "steps"))
    clip, inputs = load_clip("cpu")
    specs = sample_specs(n, seed=0)
    pictures, values, wording = render_tensor(specs), [s.to_dict() for s in specs], portrait_wording()
    start = time.perf_counter()
    images = cache_embeddings(clip, inputs, pictures)
    cache = (time.perf_counter() - start) / n * 1000
    generator = torch.Generator().manual_seed(0)
    records = TemplateWriter(wording)(natural_pairs(values, 4 * batch, wording, generator), values).records
    config = preset("robust", steps=1, batch=batch, rehearsal=0.0)
    model, totals = clip, {"cached": 0.0, "uncached": 0.0}
    for step in range(2 * steps + 2):
        kind = ("cached", "uncached")[step % 2]
        extra = 0.0
        if kind == "uncached":
            # batch / 2 pairs and their mirrors: `batch` pictures
            rows = torch.randint(n, (batch,), generator=torch.Generator().manual_seed(step))
            start = time.perf_counter()
            cache_embeddings(clip, inputs, pictures[rows])
            extra = time.perf_counter() - start
        generator = torch.Generator().manual_seed(step // 2)  # the same batch for both
        model, card = train_pairwise(
            clip, inputs, images, values, records, config, wording=wording, generator=generator
        )
        if step >= 2:  # the first of each warms up
            totals[kind] += (card.seconds + extra) / (steps * batch) * 1000
    return totals | {"cache": cache}


def report(size: str, threads: int) -> dict[str, float]:
    results = measure(size, threads)
    print(f"\npairwise, {size}, {threads} thread(s): seconds per 1,000 pairs", flush=True)
    for kind in ("cached", "uncached"):
        print(f"  {kind:10} {results[kind]:8.2f} s {results[kind] / results['cached']:6.2f}x", flush=True)
    print(f"  the cache itself: {results['cache']:.2f} s per 1,000 pictures, once")
    return results


def size_asked() -> str:
    return "small" if os.environ.get("LABKIT_BENCH", "full") == "small" else "full"


def test_cached_image_features():
    results = report(size_asked(), int(os.environ.get("OMP_NUM_THREADS", "1")))
    assert results["uncached"] > 1.1 * results["cached"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Difference training with and without cached image features")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    arguments = parser.parse_args()
    report("small" if arguments.small else "full", arguments.threads)


if __name__ == "__main__":
    main()
