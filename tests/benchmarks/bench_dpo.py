"""One training step of labkit.dpo against the diffusers LoRA script's, and the pool against the pipeline's own call.

    python tests/benchmarks/bench_dpo.py [--small | --gpu] [--threads N]
    python -m pytest tests/benchmarks/bench_dpo.py -s          # LABKIT_BENCH=small for a few steps

Peers, restated on the same U-Net (PortraitSD), the same batch and the same AdamW:

- diffusers script: train_diffusion_dpo.py's step: VAE and text encoder run in every step, one noise per pair, policy
  forward on 2B, adapters disabled, reference forward, adapters enabled, backward
- pipeline call: `pipe(prompt)` for each prompt, num_images_per_prompt candidates

Every contestant runs in a process of its own bound to N threads; its peak memory is its own. Ratios are of CPU time, so
that a busy machine does not distort them.

--gpu: Stable Diffusion 1.5 at full width, random weights, 512-pixel images and bfloat16 autocast on a CUDA GPU;
wall time, and the peak of the memory that PyTorch holds there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTESTANTS = ("labkit", "labkit cached", "diffusers script", "labkit pool", "pipeline call")
SIZES = {"small": {"steps": 4, "batch": 8, "prompts": 2}, "full": {"steps": 20, "batch": 16, "prompts": 8}}
SIZES["gpu"] = {"steps": 8, "batch": 4, "prompts": 2}
GOAL = 0.75  # time per pair of labkit over the script's


@cache
def pipeline(gpu: bool):
    """PortraitSD on the CPU, or Stable Diffusion 1.5 with random weights on the GPU."""
    if not gpu:
        from labkit.models import load_pipeline

        return load_pipeline("cpu")
    from labkit.models.sd_layout import build_sd15

    pipe = build_sd15(width="full").to("cuda")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels_and_prompts(n: int, gpu: bool = False):
    """n pairs of portraits [n, 3, 64, 64], noise of 512 x 512 for the GPU, and their prompts."""
    from labkit.portraits import caption, render_tensor, sample_specs

    specs = sample_specs(2 * n, seed=0)
    prompts = [caption(spec).text for spec in specs[:n]]
    if gpu:
        import torch

        pixels = torch.rand(2 * n, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return pixels[:n], pixels[n:], prompts
    return render_tensor(specs[:n]), render_tensor(specs[n:]), prompts


def clocks() -> tuple[float, float]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float], units: int) -> dict:
    """Wall and CPU seconds per unit."""
    return {"seconds": (clocks()[0] - begun[0]) / units, "cpu": (clocks()[1] - begun[1]) / units}


def labkit_step(steps: int, batch: int, cached: bool, gpu: bool) -> dict:
    import torch

    from labkit.diffusion import encode_images
    from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, dpo

    pipe = pipeline(gpu)
    winner, loser, prompts = pixels_and_prompts(batch, gpu)
    with torch.no_grad():
        latents = [encode_images(pipe, x, batch_size=8).cpu() for x in (winner, loser)]
    pairs = PreferencePairs(tuple(prompts), *latents)
    warm = 2 if cached else 1  # steps that fill the cache are not steady state
    options = {"cached_draws": warm if cached else 0, "precision": "bf16" if gpu else "fp32"}
    config = DPOConfig(steps=steps + warm, batch_size=batch, log_every=steps + warm, **options)
    with DPOTrainer(pipe, pairs, config, [dpo(2500.0)]) as trainer:
        trainer.run(steps=warm)
        begun = clocks()
        trainer.run(steps=steps)
        return since(begun, steps * batch)


def script_step(steps: int, batch: int, gpu: bool) -> dict:
    """The loop body of diffusers' train_diffusion_dpo.py, restated: no checkpointing, fp32 on the CPU."""
    import torch
    import torch.nn.functional as F
    from peft import LoraConfig

    pipe = pipeline(gpu)
    device = pipe.device
    unet, vae, scheduler = pipe.unet, pipe.vae, pipe.scheduler
    unet.add_adapter(
        LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    )
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    winner, loser, prompts = pixels_and_prompts(batch, gpu)
    pixels = torch.cat([winner, loser]).to(device)  # chunked along the batch axis
    tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=gpu)
    begun = clocks()
    for step in range(steps + 1):
        begun = clocks() if step == 1 else begun
        with torch.no_grad(), half:
            latents = torch.cat([vae.encode(pixels[i : i + 8]).latent_dist.sample() for i in range(0, len(pixels), 8)])
            latents = latents * vae.config.scaling_factor
            hidden = pipe.text_encoder(tokens)[0].repeat(2, 1, 1)
        noise = torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), device=device).repeat(2)
        noisy = scheduler.add_noise(latents, noise, t)

        def errors(noisy=noisy, t=t, hidden=hidden, noise=noise):
            with half:
                prediction = unet(noisy, t, hidden).sample
            losses = F.mse_loss(prediction.float(), noise.float(), reduction="none")
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


def pool(prompts: int, ours: bool, gpu: bool) -> dict:
    from labkit.dpo import build_pool, sharpness

    pipe = pipeline(gpu)
    texts = pixels_and_prompts(prompts)[2]
    begun = clocks()
    if ours:
        build_pool(pipe, texts, 8, scorers=[sharpness()], seed=0, steps=10)
    else:
        for text in texts:
            pipe(text, num_images_per_prompt=8, num_inference_steps=10, guidance_scale=3.0, output_type="pt")
    return since(begun, 8 * prompts)


def one(contestants: list[str], size: str, threads: int) -> dict[str, dict]:
    import torch

    torch.set_num_threads(threads)
    s, gpu = SIZES[size], size == "gpu"
    runs = {
        "labkit": lambda: labkit_step(s["steps"], s["batch"], cached=False, gpu=gpu),
        "labkit cached": lambda: labkit_step(s["steps"], s["batch"], cached=True, gpu=gpu),
        "diffusers script": lambda: script_step(s["steps"], s["batch"], gpu),
        "labkit pool": lambda: pool(s["prompts"], ours=True, gpu=gpu),
        "pipeline call": lambda: pool(s["prompts"], ours=False, gpu=gpu),
    }
    results = {}
    for name in sorted(contestants, key="diffusers script".__eq__):  # last: it leaves its adapter on
        if gpu:
            pipeline(gpu)
            torch.cuda.reset_peak_memory_stats()
        results[name] = runs[name]()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        results[name]["megabytes"] = torch.cuda.max_memory_allocated() / 1e6 if gpu else resident
    return results


def report(size: str, threads: int) -> dict[str, dict]:
    results = {}
    for group in [CONTESTANTS] if size == "gpu" else [[c] for c in CONTESTANTS]:  # the GPU's peak is counted per run
        task = json.dumps({"contestants": group, "size": size, "threads": threads})
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, __file__, "--one", task]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        for contestant, result in json.loads(done.stdout.splitlines()[-1]).items():
            results[contestant] = result
            cpu, wall, memory = (result[k] for k in ("cpu", "seconds", "megabytes"))
            print(f"{contestant:18s} {1e3 * cpu:8.1f} ms CPU, {1e3 * wall:8.1f} ms, {memory:6.0f} MB", flush=True)
    clock = "seconds" if size == "gpu" else "cpu"
    base = results["diffusers script"][clock]
    for name in ("labkit", "labkit cached"):
        print(f"{name} / diffusers script, per pair: {results[name][clock] / base:.2f} (goal {GOAL} with the cache)")
    ratio = results["labkit pool"][clock] / results["pipeline call"][clock]
    print(f"labkit pool / pipeline call, per image: {ratio:.2f}")
    return results


def test_time_per_pair():
    results = report(os.environ.get("LABKIT_BENCH", "full"), threads=1)
    assert set(results) == set(CONTESTANTS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of labkit.dpo against its peers")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--gpu", action="store_true", help="Stable Diffusion 1.5 at its size on a CUDA GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(**json.loads(arguments.one))))
        return
    report("small" if arguments.small else "gpu" if arguments.gpu else "full", arguments.threads)


if __name__ == "__main__":
    main()
