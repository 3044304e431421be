"""The methods on Stable Diffusion 1.5 in its full width, on a CPU, with random weights.

    pytest --optin -s tests/test_full_width.py        prints time and peak memory of each part

Random weights make no pictures: this shows that the methods run on 860 million weights in bfloat16, and what they take.
At 256 x 256 pixels (LABKIT_OPTIN_SIDE=256) that was at most 5.5 GB and 44 s on one core of a busy machine; 512 x 512,
the default, has not been run. Linux alone tells the peak of each part.
"""

import math
import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from labkit.density import BudgetExhausted, CandidateStream, PseudoDensity, importance_sample
from labkit.diffusion import base_sums, image_generators, sample
from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, dpo
from labkit.fabric import fabric
from labkit.models.sd_layout import build_sd15

SIDE = int(os.environ.get("LABKIT_OPTIN_SIDE", "512"))  # pixels; 256 where time is short
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
pytestmark = [pytest.mark.optin, pytest.mark.slow]


@contextmanager
def reported(what):
    """Prints wall time, CPU time and the peak of this process's memory in 10^9 bytes, which is counted anew."""
    if CLEAR.exists():
        CLEAR.write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seconds, used = time.perf_counter() - wall, time.process_time() - cpu
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    peak = [int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")]
    memory = f"{peak[0]:.1f} GB" if peak else "unknown"
    print(f"\n{what}: {seconds:.0f} s ({used:.0f} s of CPU), peak memory {memory}", flush=True)
    assert not peak or peak[0] < 20


@pytest.fixture(scope="module")
def pipe():
    with reported("1.07 billion random weights"):
        pipe = build_sd15(width="full", dtype=torch.bfloat16)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config
    )  # PNDM calls the U-Net once more than it has steps
    pipe.set_progress_bar_config(disable=True)
    assert sum(p.numel() for p in pipe.unet.parameters()) == 859_520_964
    return pipe


def test_a_fabric_image_of_two_steps(pipe):
    generator = torch.Generator().manual_seed(0)
    liked = torch.rand(3, SIDE, SIDE, generator=generator) * 2 - 1
    options = {"steps": 2, "height": SIDE, "width": SIDE}
    with (
        reported(f"FABRIC, one image of two steps at {SIDE}"),
        fabric(pipe, liked=[liked], steps=2, end=1.0) as session,
    ):
        image = sample(pipe, ["a cat"], generators=image_generators(1, 0), **options)
    assert image.shape == (1, 3, SIDE, SIDE) and bool(torch.isfinite(image).all())
    assert session.active_calls == 2


def test_a_dpo_step_with_lora(pipe):
    generator = torch.Generator().manual_seed(1)
    winner, loser = (torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=generator) for _ in range(2))
    pairs, before = PreferencePairs(("a cat",), winner, loser), base_sums(pipe.unet)
    config = DPOConfig(steps=1, batch_size=1, lr=1e-4, warmup=0, rank=8, log_every=1, precision="bf16")
    with (
        reported(f"DPO, one step of one pair with LoRA at {SIDE}"),
        DPOTrainer(pipe, pairs, config, [dpo(2500.0)]) as trainer,
    ):
        log = trainer.run()
        assert any(bool(p.any()) for name, p in trainer.parameters.items() if "lora_B" in name)
    assert log[0]["dpo"] == pytest.approx(math.log(2), abs=1e-6)  # the policy starts as the reference
    assert torch.equal(base_sums(pipe.unet), before)


def test_a_batch_is_accepted_and_rejected(pipe):
    """Two candidates of one step, scored by the density of 8 x 8 thumbnails among random ones."""
    native = pipe.unet.config.sample_size
    pipe.unet.register_to_config(sample_size=SIDE // 8)

    def thumbnails(images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 8).flatten(1)

    density = PseudoDensity(k=3).fit(thumbnails(torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(2))))
    stream = CandidateStream(pipe, "a cat", seed=0, steps=1, guidance_scale=1.0, batch_size=1)
    draws = torch.rand(2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert int((draws < 0.5).sum()) == 1  # every candidate lies above tau, where half are kept
    try:
        with (
            reported(f"Pseudo density, two candidates of one step at {SIDE}, one accepted"),
            pytest.raises(BudgetExhausted) as error,
        ):
            importance_sample(
                stream, lambda images: density.score(thumbnails(images)), n=2, threshold=-1.0, ratio=0.5, budget=2,
                batch=2, generator=torch.Generator().manual_seed(4),
            )  # fmt: skip
    finally:
        pipe.unet.register_to_config(sample_size=native)
    chosen = error.value.selection
    assert chosen.indices.tolist() == (draws < 0.5).nonzero().flatten().tolist()
    assert chosen.samples.shape == (1, 3, SIDE, SIDE) and bool(torch.isfinite(chosen.all_scores).all())
