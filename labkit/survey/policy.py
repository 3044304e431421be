"""What all trained contenders share: a LoRA policy, its rollouts, one optimizer, a ledger, checkpoints.

Everything random is a function of (seed, update), so a run that was killed goes on from its checkpoint with the same
numbers. Where torch.distributed runs, every process takes its share of an update's prompts and gradients are averaged:
two processes do what one does with twice the prompts, up to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labkit.checkpoint import (
    CheckpointError,
    digest,
    load_optimizer,
    locked,
    optimizer_tensors,
    read_checkpoint,
    save_checkpoint,
)
from labkit.diffusion import (
    Counts,
    NFELedger,
    PromptConditions,
    SamplerStep,
    active_adapters,
    adapter_state,
    add_lora,
    base_fingerprint,
    check_gradients,
    ddim_timesteps,
    decode_latents,
    encode_prompts,
    image_generators,
    initial_latents,
    load_adapter_state,
    native_bfloat16,
    predict_noise,
    remove_lora,
    sample_latents,
    use_adapters,
)
from labkit.diffusion.adapters import AdapterSnapshot, adapter_parameters
from labkit.optim import average_gradients, rank, update, world_size
from labkit.survey.equations import step_divergence
from labkit.survey.ledger import Prices, prices

Reward = Callable[[Tensor, Sequence[str]], Tensor]
Record = dict[str, float]
ADAPTER = "arena"


@dataclass(frozen=True)
class ArenaSettings:
    """The sampler, and the knobs of all methods; each contender reads its own.

    steps, eta, guidance_scale   the sampler of training and delivery; eta > 0 for policy gradients.
    prompts, group   an update draws `group` pictures for each of `prompts` prompts.
    lr, rank, gradient_clip   AdamW on LoRA in every layer of the U-Net.
    draws            noisings of every picture that is trained on (RAFT, RWR, NFT).
    keep, temperature   RAFT: how many of a group; RWR: tau in standard deviations of the group-centred reward.
    trained_steps, epochs, clip, kl   policy gradients: steps of the trajectory that are trained, passes over an
                     update's pictures, PPO's clip per element at D = 16384 (`clip_for`), weight of the step KL.
    grouped          advantage within the prompt's group (GRPO) instead of over the whole update (DDPO).
    k, k_random      DRaFT: last steps with gradient; AlignProp: drawn anew from 1 .. k.
    nft_beta, nft_limit, old_decay   NFT: mixing beta, advantage of a sure sample, decay of the old policy.
    kappa, batch, candidates, pool   DPO, KTO: strength, pairs a step, pictures per prompt, share of the budget that
                     goes into candidates.
    scale, inner, checks, strength   guidance: s of `guided_epsilon`; FK: lambda and how many checks.
    precision        "auto": bf16 where the device has it.
    """

    steps: int = 8
    eta: float = 1.0
    guidance_scale: float = 1.0
    prompts: int = 8
    group: int = 4
    lr: float = 1e-3
    rank: int = 16
    gradient_clip: float = 1.0
    draws: int = 2
    keep: int = 1
    temperature: float = 0.5
    trained_steps: int = 2
    epochs: int = 1
    clip: float = 1e-4
    kl: float = 0.0
    grouped: bool = False
    k: int = 1
    k_random: bool = False
    nft_beta: float = 1.0
    nft_limit: float = 2.0
    old_decay: float = 0.0
    kappa: float = 400.0
    batch: int = 8
    candidates: int = 6
    pool: float = 0.5
    scale: float = 10.0
    checks: int = 2
    strength: float = 2.0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"group is {self.group}: groups of one have no advantage, draw at least 2 images a prompt")
        if not 1 <= self.k <= self.steps or not 1 <= self.trained_steps <= self.steps:
            raise ValueError(f"k = {self.k} and trained_steps = {self.trained_steps} must lie in 1 .. {self.steps}")
        if not 1 <= self.checks < self.steps or not 0 < self.pool < 1:
            raise ValueError(f"expected checks in 1 .. {self.steps - 1} and pool in (0, 1), got {self}")

    @property
    def rows(self) -> int:
        """U-Net rows per image and step."""
        return 1 if self.guidance_scale == 1.0 else 2


@contextmanager
def precision(pipe, settings: ArenaSettings) -> Iterator[None]:
    """Inside, networks run in half precision if the settings say so."""
    device = pipe.unet.device
    half = settings.precision == "bf16" or settings.precision == "auto" and native_bfloat16(device)
    # no cache: casts made without gradient would be taken again where one is wanted
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if half else nullcontext():
        yield


def rewarded(reward: Reward, images: Tensor, prompts: Sequence[str], ledger: NFELedger | None = None) -> Tensor:
    """Scores [B] of images in single precision, counted; gradients flow if the reward lets them.

    Raises:
        ValueError: a wrong shape, NaN or infinity.
    """
    if ledger is not None:
        ledger.add_reward(len(images))
    with torch.autocast(images.device.type, enabled=False):  # half precision would tie what differs
        scores = reward(images, prompts)
    if not isinstance(scores, Tensor) or scores.shape != (len(images),):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"the reward returned {got}, expected a tensor of shape ({len(images)},)")
    bad = int((~torch.isfinite(scores)).sum())
    if bad:
        raise ValueError(
            f"the reward returned {bad} scores that are NaN or infinite: mend it before it trains anything"
        )
    return scores.float()


@dataclass(frozen=True)
class Rollout:
    """Pictures of one update, B = P * N rows, the images of a prompt side by side; everything without gradient."""

    prompts: list[str]  # [B]
    conditions: PromptConditions
    trajectory: Tensor  # [B, T + 1, C, h, w]
    predictions: Tensor  # [B, T, C, h, w], the policy's noise predictions
    timesteps: tuple[tuple[int, int], ...]
    rewards: Tensor  # [P, N]
    images: Tensor  # [B, 3, H, W], clamped

    @property
    def latents(self) -> Tensor:
        """The final latents [B, C, h, w]."""
        return self.trajectory[:, -1]


class Policy:
    """A pipeline whose U-Net carries a LoRA adapter that is trained; `close()` takes it off again."""

    def __init__(
        self, pipe, prompts: Sequence[str], reward: Reward, *, seed: int, settings: ArenaSettings,
        folder: str | Path | None = None, gold: Reward | None = None,
    ):  # fmt: skip
        if not prompts:
            raise ValueError("got no prompts to train on")
        self.pipe, self.prompts, self.reward, self.seed, self.settings = pipe, list(prompts), reward, seed, settings
        self.gold, self.folder = gold, None if folder is None else Path(folder)
        self.prices: Prices = prices(pipe)
        self.before, self.others = AdapterSnapshot(pipe.unet), {name: 1.0 for name in active_adapters(pipe.unet)}
        add_lora(pipe.unet, ADAPTER, seed=seed, rank=settings.rank, suffixes=None)
        self.parameters = adapter_parameters(pipe.unet, ADAPTER)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=settings.lr, weight_decay=0.0)
        self.old: dict[str, Tensor] | None = None  # NFT's older policy
        self.middle: dict[str, Tensor] | None = None  # the adapter after half of the updates
        self.ledger, self.done, self.log = NFELedger(pipe), 0, []
        with torch.no_grad():
            self.all_conditions = encode_prompts(pipe, self.prompts)
        self.device = pipe.unet.device
        self.alphas = pipe.scheduler.alphas_cumprod.to(self.device)

    # ---- looking ---------------------------------------------------------------------------------------------------

    def chosen(self, number: int) -> list[int]:
        """Indices of the prompts of update `number` on this process: a walk through shuffled lists."""
        p, n = self.settings.prompts, len(self.prompts)
        first = (number * world_size() + rank()) * p
        orders = {
            e: np.random.default_rng([self.seed, e]).permutation(n) for e in range(first // n, (first + p) // n + 1)
        }
        return [int(orders[i // n][i % n]) for i in range(first, first + p)]

    def generator(self, number: int, purpose: int) -> torch.Generator:
        """The same on every process: who draws per row draws the rows of all and takes its own."""
        state = int(np.random.SeedSequence([self.seed, number, purpose, 0]).generate_state(1, np.uint64)[0])
        return torch.Generator().manual_seed(state)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], clamped."""
        return decode_latents(self.pipe, latents).float().clamp(-1, 1)

    @torch.no_grad()
    def rollout(self, number: int) -> Rollout:
        """Sample and score the pictures of update `number`."""
        s, index = self.settings, self.chosen(number)
        rows = [i for i in index for _ in range(s.group)]
        texts, conditions = [self.prompts[i] for i in rows], self.all_conditions.select(rows)
        first = (number * world_size() + rank()) * len(rows)
        predictions: list[Tensor] = []

        def keep(step: SamplerStep) -> None:
            predictions.append(step.prediction)

        with precision(self.pipe, s):
            made = sample_latents(
                self.pipe, None, conditions=conditions, steps=s.steps, eta=s.eta, guidance_scale=s.guidance_scale,
                generators=image_generators(len(rows), self.seed, first=first), keep_trajectory=True, callback=keep,
            )  # fmt: skip
            images = self.decode(made.latents)
            rewards = rewarded(self.reward, images, texts, self.ledger)
        return Rollout(
            texts, conditions, made.trajectory, torch.stack(predictions, 1), made.timesteps,
            rewards.cpu().view(len(index), s.group), images,
        )  # fmt: skip

    def noise(self, x_t: Tensor, t, conditions: PromptConditions, *, reference: bool = False) -> Tensor:
        """The policy's guided noise prediction, or the base's [B, C, h, w]."""
        base = use_adapters(self.pipe.unet, self.others) if reference else nullcontext()
        with base, precision(self.pipe, self.settings):
            return predict_noise(self.pipe, x_t, t, conditions, guidance_scale=self.settings.guidance_scale).float()

    @contextmanager
    def older(self) -> Iterator[None]:
        """Inside, the weights are those of `old`."""
        present = adapter_state(self.pipe.unet, ADAPTER)
        load_adapter_state(self.pipe.unet, ADAPTER, self.old or present)
        try:
            yield
        finally:
            load_adapter_state(self.pipe.unet, ADAPTER, present)

    # ---- training --------------------------------------------------------------------------------------------------

    def step(self, loss: Tensor) -> float:
        """One update with the gradient of a loss []; the length of the gradient before clipping."""
        loss.backward()
        average_gradients(list(self.parameters.values()))
        check_gradients(self.parameters)
        return float(update(self.optimizer, clip=self.settings.gradient_clip))

    def run(
        self, method: Callable[[Policy, int], Record], updates: int, *, name: str,
        callback: Callable[[Record], object] | None = None, save_every: int = 0,
    ) -> list[Record]:  # fmt: skip
        """Updates number done .. updates - 1; each record has the running costs. callback: True stops the run."""
        alone = locked(self.folder) if self.folder is not None and rank() == 0 else nullcontext()
        with alone:
            self._resume(name)
            self._advance(method, updates, name, callback, save_every)
        return self.log

    def _advance(self, method, updates: int, name: str, callback, save_every: int) -> None:
        while self.done < updates:
            with self._open():
                record = method(self, self.done)
            self.done += 1
            if self.done == (updates + 1) // 2:
                self.middle = self.state()
            self.log.append({"update": self.done, **record, **self.costs()})
            if (
                self.folder is not None
                and rank() == 0
                and (self.done == updates or save_every and not self.done % save_every)
            ):
                self._save(name)
            if callback is not None and callback(self.log[-1]) is True:
                break

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Count what happens inside, on top of what was counted before."""
        counts, self.ledger = self.ledger.counts, NFELedger(self.pipe)
        self.ledger.counts = counts
        with self.ledger:
            yield

    def costs(self) -> Record:
        """Over all processes: nfe (decoding included) and reward queries so far."""
        counts = self.ledger.counts
        return {"nfe": self.prices.nfe(counts) * world_size(), "queries": float(counts.reward_rows * world_size())}

    def observed(self, rollout: Rollout) -> Record:
        """Mean proxy of a rollout and, uncharged, what the gold judge would say."""
        seen = {"proxy": float(rollout.rewards.mean())}
        if self.gold is not None:
            seen["gold"] = float(torch.as_tensor(self.gold(rollout.images, rollout.prompts)).float().mean())
        return seen

    # ---- state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The adapter."""
        return adapter_state(self.pipe.unet, ADAPTER)

    def _identity(self, name: str) -> dict[str, object]:
        """What decides the numbers of a run; of the reward only its name, where it has one."""
        unet = self.pipe.unet
        beside = {f"{one}.{key}": p for one in self.others for key, p in adapter_parameters(unet, one).items()}
        return {
            "contender": name,
            "seed": self.seed,
            "prompts": self.prompts,
            "settings": asdict(self.settings),
            "processes": world_size(),
            "reward": getattr(self.reward, "name", ""),
            "base": base_fingerprint(unet),
            "adapters": digest({key: p.detach() for key, p in beside.items()}) if beside else "",
        }

    def _save(self, name: str) -> None:
        groups = {"weight": self.parameters, "optimizer": optimizer_tensors(self.optimizer), "old": self.old or {}}
        state = {"step": self.done, "identity": self._identity(name), "log": self.log}
        save_checkpoint(self.folder / f"{name}.safetensors", groups, **state, counts=asdict(self.ledger.counts))

    def _resume(self, name: str) -> None:
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        if path is None or not path.exists():
            return
        groups, state = read_checkpoint(path)
        now, then = json.loads(json.dumps(self._identity(name))), state["identity"]
        if changed := [key for key in now if now[key] != then.get(key)]:
            raise CheckpointError(
                f"{path} belongs to another run, with other {', '.join(changed)}: choose a new folder"
            )
        load_adapter_state(self.pipe.unet, ADAPTER, groups["weight"])
        load_optimizer(self.optimizer, groups["optimizer"])
        self.old = groups.get("old") or None
        self.done, self.log, self.ledger.counts = state["step"], state["log"], Counts(**state["counts"])

    def close(self) -> None:
        """Remove the adapter and put every flag back."""
        remove_lora(self.pipe.unet, ADAPTER)
        self.before.restore()

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def path_divergence(
    pipe, state, prompts: Sequence[str], *, seed: int, settings: ArenaSettings
) -> tuple[Tensor, Tensor]:
    """Latents [B, C, h, w] of a trained policy and the KL of their paths from the base's, in nats [B].

    Sum over the steps of the policy's own trajectories; an upper bound of the KL of the images.

    Raises:
        ValueError: eta = 0, where a step has no density.
    """
    if not settings.eta > 0:
        raise ValueError("eta is 0: a deterministic sampler has no KL, compare predictions instead")
    total = torch.zeros(len(prompts))
    with worn(pipe, state), torch.no_grad(), precision(pipe, settings):
        conditions = encode_prompts(pipe, prompts)
        before: list[Tensor] = []

        def watch(step: SamplerStep) -> None:
            x_t = before[-1]
            with use_adapters(pipe.unet, {}):
                ref = predict_noise(
                    pipe, x_t, step.timestep, conditions, guidance_scale=settings.guidance_scale
                ).float()
            kl = step_divergence(
                step.prediction, ref.float(), x_t, *pairs[step.index], pipe.scheduler.alphas_cumprod, eta=settings.eta,
                final_alpha_cumprod=float(pipe.scheduler.final_alpha_cumprod),
            )  # fmt: skip
            total.add_(kl.cpu())
            before.append(step.latents)

        pairs = ddim_timesteps(pipe.scheduler, settings.steps)
        generators = image_generators(len(prompts), seed)
        before.append(initial_latents(pipe, generators))
        made = sample_latents(
            pipe, None, conditions=conditions, generators=generators, latents=before[0], steps=settings.steps,
            eta=settings.eta, guidance_scale=settings.guidance_scale, callback=watch,
        )  # fmt: skip
    return made.latents, total


@contextmanager
def worn(pipe, state: dict[str, Tensor] | None) -> Iterator[None]:
    """Inside, the pipeline's U-Net wears an adapter's tensors (None: the base as it is)."""
    if state is None:
        yield
        return
    before = AdapterSnapshot(pipe.unet)
    rank_of = next(value.shape[0] for name, value in state.items() if ".lora_A." in name)
    add_lora(pipe.unet, ADAPTER, seed=0, rank=rank_of, suffixes=None)
    try:
        load_adapter_state(pipe.unet, ADAPTER, state)
        yield
    finally:
        remove_lora(pipe.unet, ADAPTER)
        before.restore()
