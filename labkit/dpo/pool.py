"""The pool of an AI-feedback loop: N candidates per prompt, scored while they are made, in shards that resume.

Candidate k of prompt p is image number p * 1024 + k of the run's seed, so a pool of 4 is the front of a pool of 8, and
neither the shard size nor an interruption changes an image (HG-DPO, arXiv 2405.20216, section 3: N = 20).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit.checkpoint import CheckpointError
from labkit.diffusion import active_adapters, decode_latents, image_generators, sample_latents
from labkit.diffusion.lora_files import adapted_models
from labkit.dpo.data import active_content, fingerprints
from labkit.dpo.scorers import Scorer
from labkit.files import write_atomically

STRIDE = 1024  # image numbers per prompt: the largest N


@dataclass(frozen=True)
class Pool:
    """P prompts with N candidates each. record: how they were made (seed, sampler, hashes of the models)."""

    prompts: tuple[str, ...]
    latents: Tensor  # [P, N, C, h, w]
    scores: Mapping[str, Tensor]  # scorer name -> [P, N]
    record: Mapping[str, object] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return self.latents.shape[1]

    def first(self, n: int) -> Pool:
        """The pool that asking for n candidates would have given."""
        if not 2 <= n <= self.n:
            raise ValueError(f"n is {n}, expected 2 .. {self.n}")
        scores = {name: s[:, :n] for name, s in self.scores.items()}
        return replace(self, latents=self.latents[:, :n], scores=scores, record={**self.record, "n": n})


def build_pool(
    pipe,
    prompts: Sequence[str],
    n: int,
    *,
    scorers: Sequence[Scorer],
    seed: int,
    folder: str | Path | None = None,
    steps: int = 20,
    guidance_scale: float = 3.0,
    shard: int = 16,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Pool:
    """Generate and score n candidates for each prompt, `shard` prompts at a time.

    folder    keeps every finished shard (safetensors, renamed into place); calling again goes on where it stopped.
    progress  called with (prompts done, prompts in all) after each shard.

    Raises ValueError for n outside 2 .. 1024, no prompts or scorers; FileExistsError if the folder holds another pool.
    """
    prompts = tuple(str(p) for p in prompts)
    if not 2 <= n <= STRIDE:
        raise ValueError(f"n is {n}, expected 2 .. {STRIDE}: one candidate has nothing to be compared with")
    if not prompts or not scorers or len({s.name for s in scorers}) != len(scorers):
        raise ValueError(f"got {len(prompts)} prompts and {len(scorers)} scorers: expected some, with distinct names")
    record = {
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "n": n,
        "seed": seed,
        "sampler": type(pipe.scheduler).__name__,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "shard": shard,
        "scorers": [s.name for s in scorers],
        "hashes": fingerprints(pipe),
    }
    adapters = {name: active_content(model) for name, model in adapted_models(pipe).items() if active_adapters(model)}
    if adapters:  # the base's hash does not know them
        record["adapters"] = adapters
    if folder is not None:
        folder = Path(folder)
        _claim_folder(folder, record)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(prompts), shard):
        path = None if folder is None else folder / f"shard-{start // shard:05d}.safetensors"
        if path is not None and path.exists():
            parts.append(_read_shard(path))
        else:
            part = _make_shard(pipe, prompts, start, shard, n, scorers, seed, steps, guidance_scale, batch_size)
            if path is not None:
                write_atomically(path, lambda p, part=part: save_file(part, str(p)))
            parts.append(part)
        if progress is not None:
            progress(min(start + shard, len(prompts)), len(prompts))
    scores = {s.name: torch.cat([part[f"score {s.name}"] for part in parts]) for s in scorers}
    return Pool(prompts, torch.cat([part["latents"] for part in parts]), scores, record)


def _claim_folder(folder: Path, record: Mapping[str, object]) -> None:
    """Write the record, or check that the one that is there is the same."""
    path = folder / "pool.json"
    if path.exists():
        stored = json.loads(path.read_text("utf-8"))
        differing = [key for key in {**record, **stored} if stored.get(key) != record.get(key)]
        if differing:
            raise FileExistsError(f"{folder} holds another pool ({', '.join(differing)} differ): choose a new folder")
    elif folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and holds no pool: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1))


def _read_shard(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it, and it is made again") from error


@torch.no_grad()
def _make_shard(pipe, prompts, start, shard, n, scorers, seed, steps, guidance_scale, batch_size) -> dict[str, Tensor]:
    chosen = prompts[start : start + shard]
    texts = [p for p in chosen for _ in range(n)]
    generators = [g for p in range(start, start + len(chosen)) for g in image_generators(n, seed, first=p * STRIDE)]
    latents = sample_latents(
        pipe, texts, generators=generators, steps=steps, guidance_scale=guidance_scale, batch_size=batch_size
    ).latents  # [prompts * n, C, h, w]
    images = decode_latents(pipe, latents, batch_size=batch_size).clamp(-1, 1)
    grid = (len(chosen), n)
    part = {f"score {s.name}": s(images, texts).reshape(grid).contiguous() for s in scorers}
    return {"latents": latents.float().cpu().reshape(*grid, *latents.shape[1:]).contiguous(), **part}


def best_and_worst(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Which candidate of each prompt scores highest and which lowest (HG-DPO, section 3: best and worst of N).

    Args:
        scores: [P, N], finite.

    Returns:
        Columns of the highest and of the lowest score, int64 [P] each; among equal scores the first column.
    """
    columns = torch.arange(scores.shape[1])
    top, bottom = scores.max(1, keepdim=True).values, scores.min(1, keepdim=True).values
    best = torch.where(scores == top, columns, scores.shape[1]).min(1).values
    worst = torch.where(scores == bottom, columns, scores.shape[1]).min(1).values
    return best, worst


def check_scores(scores: Tensor) -> None:
    """Raise ValueError unless scores are [prompts, N] with N >= 2 and finite."""
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, expected [prompts, N] with N >= 2")
    bad = (~torch.isfinite(scores)).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"scores of {len(bad)} prompts are NaN or infinite (first: prompt {bad[0]}): drop those prompts"
        )


def consensus(scores: Mapping[str, Tensor]) -> Tensor:
    """Several judges vote in every duel of two candidates of a prompt: share of duels won, ties half. [P, N] in [0, 1].

    A vote counts the same whatever a judge's scale (the majority label of BalancedDPO, arXiv 2503.12575, as a score).
    """
    if not scores:
        raise ValueError("no scores to vote with: give at least one scorer")
    shares = []
    for name, s in scores.items():
        check_scores(s)
        duel = s[:, :, None] - s[:, None, :]  # [P, N, N]
        won = (duel > 0).float() + 0.5 * (duel == 0).float()
        shares.append((won.sum(2) - 0.5) / (s.shape[1] - 1))  # without the duel against itself
        if s.shape != shares[0].shape:
            raise ValueError(f"scores of {name} have shape {tuple(s.shape)}, expected {tuple(shares[0].shape)}")
    return torch.stack(shares).mean(0)


def agreement(scores: Mapping[str, Tensor], best: Tensor, worst: Tensor) -> Tensor:
    """Share of the judges who prefer the winner to the loser of each prompt (ties half): [P]."""
    rows = torch.arange(len(best))
    duels = torch.stack([s[rows, best] - s[rows, worst] for s in scores.values()])  # [judges, P]
    return ((duels > 0).float() + 0.5 * (duels == 0).float()).mean(0)


def expected_range(n: int) -> float:
    """Expected maximum minus minimum of n standard normal scores (2: 1.13, 4: 2.06, 8: 2.85, 20: 3.73)."""
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    cdf = torch.special.ndtr(x)
    return float(torch.trapezoid(1 - cdf**n - (1 - cdf) ** n, x))
