"""The trainer: from pairs, a pipeline and terms to an adapter (or full weights).

One step of B pairs: draw t and noise per pair, reference first (no gradient, adapter off), then the policy on the 2B
noised latents [w; l] in one forward, per-pair terms, backward, clip, AdamW. Latents and prompt embeddings are computed
before the first step. Under `accelerate launch` (or any torch.distributed) every process takes its slice of the global
batch and gradients are averaged: two processes equal one with twice the batch.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from labkit.checkpoint import (
    CheckpointError,
    append_log,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    save_checkpoint,
    trim_log,
)
from labkit.diffusion import (
    AdapterError,
    PromptConditions,
    active_adapters,
    adapter_names,
    add_lora,
    add_noise,
    base_sums,
    check_gradients,
    encode_prompts,
    native_bfloat16,
    remove_lora,
    to_epsilon,
    unet_output,
    use_adapters,
)
from labkit.diffusion.adapters import AdapterSnapshot, adapter_parameters
from labkit.dpo.config import DPOConfig
from labkit.dpo.data import PreferencePairs, check_hashes, encode_unique, fingerprints
from labkit.dpo.equations import epsilon_error
from labkit.dpo.noise import draw_pairs, rows_of_step
from labkit.dpo.record import FrozenFlags, Window, observed, update_norm
from labkit.dpo.terms import PairStep, Term, check_terms
from labkit.optim import average_gradients, gathered, rank, update, world_size

Record = dict[str, float]
CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"


class DPOTrainer:
    """Trains `pipe.unet` (or its text encoder) on preference pairs; `run()` returns the log.

    terms: what is minimised, for example [dpo(2500.0), sft(1000.0)]. folder: where checkpoints and the log go; a run
    resumes from a checkpoint found there. reference: a U-Net to compare with instead of the start of this run.

    Afterwards the adapter is active on the model under the name `config.adapter`; `close()` (or leaving the `with`
    block) removes it and restores every flag. For a next stage, `merge_lora` it and make a new trainer.

    Raises ValueError for pairs, terms or hashes that do not fit, AdapterError if the adapter's name is taken.
    """

    def __init__(
        self,
        pipe,
        pairs: PreferencePairs,
        config: DPOConfig,
        terms: Sequence[Term],
        *,
        folder: str | Path | None = None,
        reference: nn.Module | None = None,
    ):
        if config.precision == "auto":
            config = replace(config, precision="bf16" if native_bfloat16(pipe.unet.device) else "fp32")
        self.pipe, self.pairs, self.config, self.terms = pipe, pairs, config, tuple(terms)
        self.folder = None if folder is None else Path(folder)
        if config.save_every and self.folder is None:
            raise ValueError("save_every is set but there is no folder: give folder=...")
        shape = tuple(pairs.winner.shape[1:])
        if shape[0] != pipe.unet.config.in_channels:
            raise ValueError(f"pairs have {shape[0]} latent channels, the U-Net takes {pipe.unet.config.in_channels}")
        if config.t_window[1] > len(pipe.scheduler.alphas_cumprod):
            raise ValueError(f"t_window {config.t_window} leaves the schedule's {len(pipe.scheduler.alphas_cumprod)}")
        self.needs = check_terms(self.terms, pairs.winner[0].numel())
        if config.cached_draws and (self.needs == "predictions" or reference is not None):
            raise ValueError("cached_draws keeps the start's errors only: no statistics term, no other reference")
        self.hashes, self.base_sums = fingerprints(pipe), base_sums(pipe.unet)
        check_hashes(pairs, self.hashes, ignore=("base",) if config.foreign_pairs else ())

        self.model: nn.Module = pipe.unet if config.model == "unet" else pipe.text_encoder
        self.before = AdapterSnapshot(self.model)
        self.conditions, self.row_of_prompt = encode_unique(pipe, pairs.prompts)
        self.others = {name: 1.0 for name in active_adapters(self.model)}  # stay on in the reference
        copied = config.reference == "copy" and config.model == "unet" and reference is None and self.needs != "nothing"
        self.copy = copy.deepcopy(self.model).requires_grad_(False) if copied else None
        self.reference = self.copy if copied else reference  # None: the model itself without the new adapter
        self.parameters = self._trainable()
        half = sorted({str(p.dtype) for p in self.parameters.values() if p.dtype != torch.float32})
        if half:
            raise ValueError(f'trainable weights are {half[0]}: load the pipeline in float32, use precision="bf16"')
        self.flags = FrozenFlags(self.model)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )
        self.cache = torch.full((len(pairs), config.cached_draws, 2), torch.nan)  # reference errors of (w, l)
        self.recomputed = pipe.unet.is_gradient_checkpointing
        switch_checkpointing(pipe.unet, config.checkpointing)
        self.done, self.log = self._resume()
        self.window = Window()

    # ---- the run ------------------------------------------------------------------------------------------------

    def run(self, callback: Callable[[Record], object] | None = None, *, steps: int | None = None) -> list[Record]:
        """Train up to `config.steps` in all (or `steps` more); returns all records so far, one per `log_every` steps.

        callback: called with each record; returning True stops the run there (early stopping).
        """
        end = self.config.steps if steps is None else min(self.config.steps, self.done + steps)
        while self.done < end:
            begun = time.perf_counter()
            self.window.add(**self.step(), seconds=time.perf_counter() - begun)
            self.done += 1
            if self.done % self.config.log_every and self.done < self.config.steps:
                continue
            record = {"step": self.done} | self.window.record(self.model_kappa) | {"lr": self.learning_rate(self.done)}
            record |= {"adapter_norm": update_norm(self.model, self.config.adapter, self.parameters, self.copy)}
            self.window = Window()
            self.log.append(record)
            if rank() == 0 and self.folder is not None:
                append_log(self.folder / LOG, record)
                if self.config.save_every and (self.done % self.config.save_every == 0 or self.done == end):
                    self.save()
            if callback is not None and callback(record) is True:
                break
        if self.config.trainable == "lora" and not torch.equal(base_sums(self.pipe.unet), self.base_sums):
            raise AdapterError("the U-Net's base weights changed during training: something else trains them")
        return self.log

    def step(self) -> dict[str, Tensor]:
        """One update; returns per-pair numbers [B] of this process (see `Window`)."""
        config = self.config
        rows = rows_of_step(self.done, config.batch_size * world_size(), len(self.pairs), config.seed)
        rows = rows[rank() * config.batch_size : (rank() + 1) * config.batch_size]
        size = config.micro_batch or len(rows)
        parts = []
        for start in range(0, len(rows), size):
            step = self.pair_step(rows[start : start + size])
            losses = {term.name: term(step) for term in self.terms}  # [B] each
            total = torch.stack(list(losses.values())).sum(0)  # [B]
            (total.sum() / len(rows)).backward()  # a short last micro-batch counts by its size
            parts.append({"loss": total, **losses, **observed(step)})
        average_gradients(list(self.parameters.values()))
        check_gradients(self.parameters)
        self.flags.check()
        norm = update(self.optimizer, lr=self.learning_rate(self.done + 1), clip=config.clip)
        joined = {k: torch.cat([p[k].detach().float().cpu() for p in parts]) for k in parts[0]}
        return gathered(joined) | {"gradient_norm": norm.detach().float().cpu().reshape(1)}

    def pair_step(self, rows: Sequence[tuple[int, int]]) -> PairStep:
        """Policy (with gradient) and reference on some (pair, epoch) rows."""
        config, device = self.config, self.pipe.unet.device
        k = config.cached_draws
        rows = [(pair, epoch % k if k else epoch) for pair, epoch in rows]
        index = [pair for pair, _ in rows]
        draws = draw_pairs(rows, self.pairs.winner.shape[1:], seed=config.seed, t_window=config.t_window)
        dropped = draws.uniform < config.prompt_dropout  # [B]
        noise, t = draws.noise.to(device), draws.t.to(device)
        alphas = self.pipe.scheduler.alphas_cumprod.to(device)
        clean = torch.cat([self.pairs.winner[index], self.pairs.loser[index]]).to(device, torch.float32)  # [2B, ...]
        x_t, t2 = add_noise(clean, torch.cat([noise, noise]), torch.cat([t, t]), alphas), torch.cat([t, t])
        b = len(rows)

        known = {}
        cached = self.cache[index, [draw for _, draw in rows]] if k else None  # [B, 2]
        if cached is not None and bool(torch.isfinite(cached).all()):
            known = {"ref_winner_error": cached[:, 0].to(device), "ref_loser_error": cached[:, 1].to(device)}
        elif self.needs != "nothing":
            with torch.no_grad(), self._reference_on():
                conditions = self._conditions(index, dropped, live=False)
                unet = self.pipe.unet if self.reference is None else self.reference
                ref = self._epsilon(unet, x_t, t2, conditions, alphas)  # [2B, C, h, w]
                error = epsilon_error(ref, torch.cat([noise, noise]))  # [2B]
            known = {"ref_winner_error": error[:b], "ref_loser_error": error[b:]}
            known |= {"ref_winner_pred": ref[:b], "ref_loser_pred": ref[b:]}
            if k:
                self.cache[index, [draw for _, draw in rows]] = error.view(2, b).T.float().cpu()
        conditions = self._conditions(index, dropped, live=config.model == "text_encoder")
        prediction = self._epsilon(self.pipe.unet, x_t, t2, conditions, alphas)
        margin = None if self.pairs.margin is None else self.pairs.margin[index].to(device, torch.float32)
        return PairStep(
            winner_pred=prediction[:b], loser_pred=prediction[b:], noise=noise, t=t, alphas_cumprod=alphas,
            margin=margin, **known,
        )  # fmt: skip

    # ---- parts --------------------------------------------------------------------------------------------------

    def _trainable(self) -> dict[str, nn.Parameter]:
        config = self.config
        if config.trainable == "lora":
            where = {"suffixes": None} if config.targets == "all" else {}
            add_lora(self.model, config.adapter, seed=config.seed, rank=config.rank, **where)
            return adapter_parameters(self.model, config.adapter)
        self.model.requires_grad_(True)
        return dict(self.model.named_parameters())

    @contextmanager
    def _reference_on(self) -> Iterator[None]:
        """Inside, the model is the reference; another U-Net, or embeddings of the start, need no switching."""
        switch = self.reference is None and self.config.model == "unet"
        with use_adapters(self.model, self.others) if switch else nullcontext():
            yield

    def _conditions(self, index: Sequence[int], dropped: Tensor, *, live: bool) -> PromptConditions:
        """Text conditions of the 2B rows [w; l]; a dropped prompt is the empty one. live: through the text encoder."""
        if live:
            conditions = encode_prompts(self.pipe, [self.pairs.prompts[i] for i in index])
        else:
            conditions = self.conditions.select([self.row_of_prompt[i] for i in index])
        if bool(dropped.any()):
            mask = dropped.to(conditions.cond.device)
            cond = torch.where(mask[:, None, None], conditions.uncond, conditions.cond)
            pooled = conditions.pooled
            if pooled is not None:
                pooled = torch.where(mask[:, None], conditions.pooled_uncond, pooled)
            conditions = replace(conditions, cond=cond, pooled=pooled)
        return conditions.select([*range(len(index))] * 2)

    def _epsilon(self, unet, x_t: Tensor, t: Tensor, conditions: PromptConditions, alphas: Tensor) -> Tensor:
        """Predicted noise [2B, C, h, w], float32, whatever the network predicts."""
        half = self.config.precision == "bf16"
        with torch.autocast(x_t.device.type, torch.bfloat16) if half else nullcontext():
            output = unet_output(unet, x_t, t, conditions)
        return to_epsilon(output.float(), x_t, t, alphas, self.pipe.scheduler.config.prediction_type)

    def learning_rate(self, step: int) -> float:
        """Of update number `step`, from 1."""
        return self.config.lr * min(1.0, step / max(1, self.config.warmup))

    @property
    def model_kappa(self) -> float:
        """The kappa of the first term that has one, for the logged logits."""
        return next((term.kappa for term in self.terms if term.kappa is not None), 1.0)

    # ---- state --------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, object]:
        """What must be equal for a resume: everything but the number of steps and how often to log or save."""
        config = {k: v for k, v in asdict(self.config).items() if k not in ("steps", "log_every", "save_every")}
        terms = [[t.name, dict(t.settings)] for t in self.terms]
        return {**config, "terms": terms, "pairs": len(self.pairs), "processes": world_size(), **self.hashes}

    def save(self) -> None:
        """Write a checkpoint now. Raises CheckpointError if the disk does not take it."""
        optimizer, reference = optimizer_tensors(self.optimizer), {"errors": self.cache}
        groups = {"weight": self.parameters, "optimizer": optimizer, "reference": reference}
        save_checkpoint(self.folder / CHECKPOINT, groups, step=self.done, identity=self._identity())

    def _resume(self) -> tuple[int, list[Record]]:
        """Steps done and their log: from the folder's checkpoint, which must be of this run, or from the start."""
        if self.folder is None:
            return 0, []
        path, done = self.folder / CHECKPOINT, 0
        if path.exists():
            groups, state = read_checkpoint(path)
            stored, present = state["identity"], json.loads(json.dumps(self._identity()))
            differing = sorted(k for k in stored | present if stored.get(k) != present.get(k))
            if differing:
                raise CheckpointError(
                    f"{path} belongs to another run, which differs in {', '.join(differing)}: choose a new folder"
                )
            for name, parameter in self.parameters.items():
                parameter.data.copy_(groups["weight"][name])
            load_optimizer(self.optimizer, groups["optimizer"])
            self.cache.copy_(groups["reference"]["errors"])
            done = state["step"]
        return done, trim_log(self.folder / LOG, done) if rank() == 0 else []

    def close(self) -> None:
        """Remove the adapter (if it is still there) and put every flag back. Fully trained weights stay as they are."""
        if self.config.trainable == "lora" and self.config.adapter in adapter_names(self.model):
            remove_lora(self.model, self.config.adapter)
        self.before.restore()
        switch_checkpointing(self.pipe.unet, self.recomputed)

    def __enter__(self) -> DPOTrainer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def switch_checkpointing(unet, on: bool) -> None:
    """Gradient checkpointing of a U-Net on or off."""
    unet.enable_gradient_checkpointing() if on else unet.disable_gradient_checkpointing()
