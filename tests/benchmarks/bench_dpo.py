"""One training step of labkit.dpo against the diffusers LoRA script's, and the pool against the pipeline's own call.

    python tests/benchmarks/bench_dpo.py [--small] [--threads N]
    python -m pytest tests/benchmarks/bench_dpo.py -s          # LABKIT_BENCH=small for a few steps

Peers, restated on the same U-Net (PortraitSD), the same batch and the same AdamW:

- diffusers script: train_diffusion_dpo.py's step: VAE and text encoder run in every step, one noise per pair, policy
  forward on 2B, adapters disabled, reference forward, adapters enabled, backward
- pipeline call: `pipe(prompt)` for each prompt, num_images_per_prompt candidates

Every contestant runs in a process of its own bound to N threads; its peak memory is its own. Ratios are of CPU time, so
that a busy machine does not distort them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTESTANTS = ("labkit", "labkit cached", "diffusers script", "labkit pool", "pipeline call")
SIZES = {"small": {"steps": 4, "batch": 8, "prompts": 2}, "full": {"steps": 20, "batch": 16, "prompts": 8}}
GOAL = 0.75  # time per pair of labkit over the script's


def pixels_and_prompts(n: int):
    """n pairs of portraits [n, 3, 64, 64] and their prompts."""
    from labkit.portraits import caption, render_tensor, sample_specs

    specs = sample_specs(2 * n, seed=0)
    return render_tensor(specs[:n]), render_tensor(specs[n:]), [caption(spec).text for spec in specs[:n]]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float], units: int) -> dict:
    """Wall and CPU seconds per unit."""
    return {"seconds": (clocks()[0] - begun[0]) / units, "cpu": (clocks()[1] - begun[1]) / units}


def labkit_step(steps: int, batch: int, cached: bool) -> dict:
    import torch

    from labkit.diffusion import encode_images
    from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, dpo
    from labkit.models import load_pipeline

    pipe = load_pipeline("cpu")
    winner, loser, prompts = pixels_and_prompts(batch)
    with torch.no_grad():
        pairs = PreferencePairs(tuple(prompts), encode_images(pipe, winner), encode_images(pipe, loser))
    warm = 2 if cached else 1  # steps that fill the cache are not steady state
    config = DPOConfig(steps=steps + warm, batch_size=batch, cached_draws=warm if cached else 0, log_every=steps + warm)
    with DPOTrainer(pipe, pairs, config, [dpo(2500.0)]) as trainer:
        trainer.run(steps=warm)
        begun = clocks()
        trainer.run(steps=steps)
        return since(begun, steps * batch)


def script_step(steps: int, batch: int) -> dict:
    """The loop body of diffusers' train_diffusion_dpo.py, restated (fp32, no checkpointing, its defaults)."""
    import torch
    import torch.nn.functional as F
    from peft import LoraConfig

    from labkit.models import load_pipeline

    pipe = load_pipeline("cpu")
    unet, vae, scheduler = pipe.unet, pipe.vae, pipe.scheduler
    unet.add_adapter(
        LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    )
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    winner, loser, prompts = pixels_and_prompts(batch)
    pixels = torch.cat([winner, loser])  # chunked along the batch axis
    tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    begun = clocks()
    for step in range(steps + 1):
        begun = clocks() if step == 1 else begun
        with torch.no_grad():
            latents = torch.cat([vae.encode(pixels[i : i + 8]).latent_dist.sample() for i in range(0, len(pixels), 8)])
            latents = latents * vae.config.scaling_factor
            hidden = pipe.text_encoder(tokens)[0].repeat(2, 1, 1)
        noise = torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (batch,)).repeat(2)
        noisy = scheduler.add_noise(latents, noise, t)

        def errors(noisy=noisy, t=t, hidden=hidden, noise=noise):
            losses = F.mse_loss(unet(noisy, t, hidden).sample.float(), noise.float(), reduction="none")
            winner_losses, loser_losses = losses.mean(dim=list(range(1, losses.ndim))).chunk(2)
            return winner_losses - loser_losses

        model_diff = errors()
        unet.disable_adapters()
        with torch.no_grad():
            ref_diff = errors()
        unet.enable_adapters()
        loss = -F.logsigmoid(-2500.0 * (model_diff - ref_diff)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return since(begun, steps * batch)


def pool(prompts: int, ours: bool) -> dict:
    from labkit.dpo import build_pool, sharpness
    from labkit.models import load_pipeline

    pipe = load_pipeline("cpu")
    texts = pixels_and_prompts(prompts)[2]
    begun = clocks()
    if ours:
        build_pool(pipe, texts, 8, scorers=[sharpness()], seed=0, steps=10)
    else:
        for text in texts:
            pipe(text, num_images_per_prompt=8, num_inference_steps=10, guidance_scale=3.0, output_type="pt")
    return since(begun, 8 * prompts)


def one(contestant: str, size: str, threads: int) -> dict:
    import torch

    torch.set_num_threads(threads)
    s = SIZES[size]
    result = {
        "labkit": lambda: labkit_step(s["steps"], s["batch"], cached=False),
        "labkit cached": lambda: labkit_step(s["steps"], s["batch"], cached=True),
        "diffusers script": lambda: script_step(s["steps"], s["batch"]),
        "labkit pool": lambda: pool(s["prompts"], ours=True),
        "pipeline call": lambda: pool(s["prompts"], ours=False),
    }[contestant]()
    return {**result, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def report(size: str, threads: int) -> dict[str, dict]:
    results = {}
    for contestant in CONTESTANTS:
        task = json.dumps({"contestant": contestant, "size": size, "threads": threads})
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--one", task]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        results[contestant] = json.loads(done.stdout.splitlines()[-1])
        cpu, wall, memory = (results[contestant][k] for k in ("cpu", "seconds", "megabytes"))
        print(f"{contestant:18s} {1e3 * cpu:8.1f} ms CPU, {1e3 * wall:8.1f} ms, {memory:6.0f} MB", flush=True)
    base = results["diffusers script"]["cpu"]
    for name in ("labkit", "labkit cached"):
        print(f"{name} / diffusers script, per pair: {results[name]['cpu'] / base:.2f} (goal {GOAL} with the cache)")
    print(
        f"labkit pool / pipeline call, per image: {results['labkit pool']['cpu'] / results['pipeline call']['cpu']:.2f}"
    )
    return results


def test_time_per_pair():
    results = report(os.environ.get("LABKIT_BENCH", "full"), threads=1)
    assert set(results) == set(CONTESTANTS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of labkit.dpo against its peers")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(**json.loads(arguments.one))))
        return
    report("small" if arguments.small else "full", arguments.threads)


if __name__ == "__main__":
    main()
