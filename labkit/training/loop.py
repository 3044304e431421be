"""One resumable training loop for every shipped model.

A run is a function of its seed and step count alone: the batch, the noise and the learning rate of step `k` are
drawn from a generator
seeded with `(seed, k)`, so a run that was killed and resumed ends with the same bits as one that was not.
Checkpoints are safetensors,
written beside and renamed: a kill or a full disk leaves the previous one intact.

Small models scale badly over OpenMP threads, so the U-Net is trained by several single-threaded processes that
average their gradients
(each draws its own batch; the number of processes is part of the recipe).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.checkpoint import (
    CheckpointError,
    append_log,
    differing,
    digest,
    load_optimizer,
    locked,
    optimizer_tensors,
    read_checkpoint,
    trim_log,
)
from labkit.checkpoint import save_checkpoint as write_checkpoint
from labkit.files import write_atomically
from labkit.optim import average_gradients, rank, update, world_size


@dataclass(frozen=True)
class LoopConfig:
    """`lr` warms up linearly for `warmup` steps, stays, and falls to zero over the last `decay` share of the
    steps."""

    steps: int
    lr: float
    seed: int = 0
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    save_seconds: float = 60.0


def learning_rate(config: LoopConfig, step: int, fresh: int = 0) -> float:
    """The factor of `config.lr` at `step`, in [0, 1]; it rises from the step `fresh` at which the optimizer was
    new."""
    rise = min(1.0, (step - fresh + 1) / max(1, config.warmup))
    start = config.steps * (1 - config.decay)
    fall = 1.0 if step < start else 0.5 * (1 + math.cos(math.pi * (step - start) / max(1.0, config.steps - start)))
    return rise * fall


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator that decides everything random about one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF_FFFF)


class Optimizer:
    """AdamW with clipping and a factor on its learning rate."""

    def __init__(self, model: nn.Module, config: LoopConfig):
        self.config = config
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )

    def step(self, factor: float) -> float:
        """One update at `factor` times the learning rate; returns the gradient norm before clipping."""
        return float(update(self.adamw, lr=self.config.lr * factor, clip=self.config.clip))


def save_checkpoint(
    path: Path,
    model: nn.Module,
    ema: dict[str, Tensor],
    optimizer: Optimizer | None,
    step: int,
    fresh: int = 0,
    identity: Mapping[str, object] | None = None,
) -> None:
    """Write weights, EMA and optimizer state after `step` steps; `fresh` is the step at which the optimizer was
    new, `identity` what a run must have in common with this one to go on from here."""
    state = {} if optimizer is None else optimizer_tensors(optimizer.adamw)
    groups = {"model": model.state_dict(), "ema": ema, "optimizer": state}
    write_checkpoint(path, groups, step=step, fresh=fresh, **({} if identity is None else {"identity": identity}))


def load_checkpoint(
    path: Path,
    model: nn.Module,
    ema: dict[str, Tensor],
    optimizer: Optimizer,
    identity: Mapping[str, object] | None = None,
) -> tuple[int, int]:
    """Restore in place and return the step to go on with and the step at which the optimizer was new (a checkpoint
    that was rebuilt from published weights has no optimizer state: the learning rate warms up again from there).

    Raises CheckpointError for a checkpoint of a run with another `identity` (rebuilt ones have none)."""
    groups, state = read_checkpoint(path)
    if identity is not None and "identity" in state and (odd := differing(state["identity"], identity)):
        raise CheckpointError(f"{path} belongs to another run, which differs in {', '.join(odd)}: choose a new folder")
    model.load_state_dict(groups["model"])
    ema.update(groups.get("ema", {}))
    if "optimizer" in groups:
        load_optimizer(optimizer.adamw, groups["optimizer"])
    return state["step"], state.get("fresh", 0)


def run(
    name: str,
    model: nn.Module,
    loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
    config: LoopConfig,
    folder: Path,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    keep: tuple[int, ...] = (),
    data: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Train `model` and return its EMA state dict; resumes from `folder` when a checkpoint is there.

    Args:
        loss: `(step, generator) -> (scalar loss, numbers for the log)`.
        keep: steps after which the EMA weights are also saved as `ema-STEP.safetensors`.
        data: what it is trained on, by name: a checkpoint of other data is refused.

    Raises:
        CheckpointError: the checkpoint is damaged or of another run, or another process trains in this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if rank() == 0 else nullcontext():
        return _run(
            name, model, loss, config, folder, evaluate, evaluate_every, keep, run_identity(name, model, config, data)
        )


def run_identity(
    name: str, model: nn.Module, config: LoopConfig, data: Mapping[str, Tensor] | None
) -> dict[str, object]:
    """What decides the numbers of a run: shapes, settings and the content of the data. The number of steps is part of
    it where the learning rate falls towards the last one."""
    free = {"save_seconds"} | (set() if config.decay else {"steps"})
    settings = {k: v for k, v in asdict(config).items() if k not in free}
    shapes = sorted(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    model_hash = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
    contents = {f"data.{key}": digest({key: value}) for key, value in (data or {}).items()}
    return {"name": name, "model": model_hash, "processes": world_size(), **settings, **contents}


def _run(
    name: str,
    model: nn.Module,
    loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
    config: LoopConfig,
    folder: Path,
    evaluate: Callable[[nn.Module], dict[str, float]] | None,
    evaluate_every: int,
    keep: tuple[int, ...],
    identity: dict[str, object],
) -> dict[str, Tensor]:
    checkpoint, log = folder / "checkpoint.safetensors", folder / "log.jsonl"
    optimizer = Optimizer(model, config)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start, fresh = load_checkpoint(checkpoint, model, ema, optimizer, identity) if checkpoint.exists() else (0, 0)
    first, world = rank() == 0, world_size()
    if first:
        trim_log(log, start)
    model.train()
    saved = begun = time.monotonic()
    window: dict[str, list[float]] = {}
    bar = tqdm(
        range(start, config.steps), desc=name, initial=start, total=config.steps, mininterval=10, disable=not first
    )
    for step in bar:
        generator = step_generator(config.seed, step * world + rank())
        with torch.random.fork_rng(devices=[]):  # dropout knows the global generator only: seed it too, then restore it
            torch.manual_seed(generator.initial_seed() ^ (1 << 62))
            value, numbers = loss(step, generator)
            value.backward()
        average_gradients(optimizer.parameters)
        numbers["gradient_norm"] = optimizer.step(learning_rate(config, step, fresh))
        decay = min(config.ema, (1 + step) / (10 + step))
        for key, current in model.state_dict().items():
            if current.dtype.is_floating_point:
                ema[key].lerp_(current, 1 - decay)
            else:
                ema[key].copy_(current)
        for key, number in numbers.items():
            window.setdefault(key, []).append(float(number))
        done = step + 1
        if not first:
            continue
        if done % 50 == 0 or done == config.steps:
            record = {
                "step": done,
                **{k: sum(v) / len(v) for k, v in window.items()},
                "seconds": round(time.monotonic() - begun, 1),
            }
            if evaluate and evaluate_every and (done % evaluate_every == 0 or done == config.steps):
                live = {k: v.clone() for k, v in model.state_dict().items()}
                model.load_state_dict(ema)
                model.eval()
                with torch.no_grad():
                    record |= evaluate(model)
                model.load_state_dict(live)
                model.train()
            append_log(log, record)
            window = {}
        if done in keep:
            write_atomically(
                folder / f"ema-{done}.safetensors",
                lambda p: save_file({k: v.contiguous() for k, v in ema.items()}, str(p)),
            )
        if done == config.steps or time.monotonic() - saved > config.save_seconds:
            save_checkpoint(checkpoint, model, ema, optimizer, done, fresh, identity)
            saved = time.monotonic()
    return ema
