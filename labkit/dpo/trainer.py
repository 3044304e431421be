"""The trainer: from pairs, a pipeline and terms to an adapter (or full weights).

One step of B pairs: draw t and noise per pair, reference first (no gradient, adapter off), then the policy on the 2B
noised latents [w; l] in one forward, per-pair terms, backward, clip, AdamW. Latents and prompt embeddings are computed
before the first step. Under `accelerate launch` (or any torch.distributed) every process takes its slice of the global
batch and gradients are averaged: two processes equal one with twice the batch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
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
    differing,
    digest,
    load_optimizer,
    lock,
    optimizer_tensors,
    read_checkpoint,
    save_checkpoint,
    trim_log,
    unlock,
)
from labkit.diffusion import (
    AdapterError,
    PromptConditions,
    active_adapters,
    adapter_names,
    add_lora,
    base_fingerprint,
    base_sums,
    check_gradients,
    denoiser_of,
    encode_prompts,
    native_bfloat16,
    remove_lora,
    unet_output,
    use_adapters,
    vae_scale_factor,
)
from labkit.diffusion.adapters import AdapterSnapshot, adapter_parameters
from labkit.diffusion.lora_files import adapted_models, read_lora
from labkit.dpo.config import DPOConfig
from labkit.dpo.data import PreferencePairs, active_content, check_hashes, encode_unique, fingerprints
from labkit.dpo.equations import dpo_logit, epsilon_error, implicit_accuracy
from labkit.dpo.guard import LossScale, check_spread, report_runaway, runaway
from labkit.dpo.noise import draw_pairs, rows_of_step
from labkit.dpo.process import process_of
from labkit.dpo.record import FrozenFlags, Window, observed, update_norm
from labkit.dpo.sharding import shard_base
from labkit.dpo.terms import PairStep, Term, check_terms
from labkit.optim import average_gradients, gathered, rank, update, world_size

Record = dict[str, float]
CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"
BOTH = ("text_encoder", "text_encoder_2")
HELD_OUT_DRAWS = 4  # (t, noise) draws of each held-out pair, the same in every look


class DPOTrainer:
    """Trains `pipe.unet` (or its text encoders, or the transformer of Stable Diffusion 3) on preference pairs; `run()`
    returns the log.

    terms: what is minimised, for example [dpo(2500.0), sft(1000.0)]. folder: where checkpoints and the log go; a run
    resumes from a checkpoint found there. reference: a U-Net to compare with instead of the start of this run. pairs: a
    list of `PreferencePairs` trains on several sizes of latents, each step on one of them, in proportion. held_out:
    pairs that never train, looked at every `config.evaluate_every` steps. start: a LoRA file (`save_lora`) to go on
    with: the reference "adapter" is then still the base, "copy" is the base with this LoRA.

    Afterwards the adapter is active on the model under the name `config.adapter`; `close()` (or leaving the `with`
    block) removes it and restores every flag. For a next stage, `merge_lora` it and make a new trainer.

    Raises ValueError for pairs, terms or hashes that do not fit, AdapterError if the adapter's name is taken.
    """

    def __init__(
        self,
        pipe,
        pairs: PreferencePairs | Sequence[PreferencePairs],
        config: DPOConfig,
        terms: Sequence[Term],
        *,
        folder: str | Path | None = None,
        reference: nn.Module | None = None,
        held_out: PreferencePairs | Sequence[PreferencePairs] | None = None,
        start: str | Path | None = None,
    ):
        self.denoiser = denoiser_of(pipe)
        self.process = process_of(pipe, config.weighting)
        if config.model == "unet" and self.process.flow:
            config = replace(config, model="transformer")
        if config.precision == "auto":
            config = replace(config, precision="bf16" if native_bfloat16(self.denoiser.device) else "fp32")
        self.sets = (pairs,) if isinstance(pairs, PreferencePairs) else tuple(pairs)
        self.held_sets = (held_out,) if isinstance(held_out, PreferencePairs) else tuple(held_out or ())
        self.start = start
        self.pipe, self.pairs, self.config, self.terms = pipe, pairs, config, tuple(terms)
        self.folder = None if folder is None else Path(folder)
        if config.save_every and self.folder is None:
            raise ValueError("save_every is set but there is no folder: give folder=...")
        if not self.sets:
            raise ValueError("got an empty list of pairs: give at least one PreferencePairs")
        if bool(config.evaluate_every) != bool(self.held_sets):
            raise ValueError("held-out pairs and evaluate_every go together: give both or neither")
        if start is not None and config.trainable == "full":
            raise ValueError('start is a LoRA to go on with, which needs trainable="lora"')
        everything = (*self.sets, *self.held_sets)
        for some in everything:
            channels = some.winner.shape[1]
            if channels != self.denoiser.config.in_channels:
                raise ValueError(
                    f"pairs have {channels} latent channels, the model takes {self.denoiser.config.in_channels}"
                )
        if config.t_window[1] > len(self.process.alphas_cumprod):
            raise ValueError(f"t_window {config.t_window} leaves the schedule's {len(self.process.alphas_cumprod)}")
        self.needs = [check_terms(self.terms, some.winner[0].numel()) for some in everything][0]
        if self.process.flow and self.needs == "predictions":
            raise ValueError("statistics matching is made of DDPM's step, a flow model has none: leave out statistics")
        if self.process.flow and config.model != "transformer":
            raise ValueError(f'model is "{config.model}": of a flow model only the transformer can be trained')
        if config.cached_draws and (self.needs == "predictions" or reference is not None):
            raise ValueError("cached_draws keeps the start's errors only: no statistics term, no other reference")
        self.hashes, self.base_sums = fingerprints(pipe), base_sums(self.denoiser)
        for some in everything:
            check_hashes(some, self.hashes, ignore=("base",) if config.foreign_pairs else ())
            if "vae" not in some.hashes:  # labkit's own encoding scales
                check_spread(some)
        names = BOTH if config.model == "text_encoders" else (config.model,)
        if any(getattr(pipe, name, None) is None for name in names):
            raise ValueError(f"model is {config.model!r}, which this pipeline does not have")

        self.models: dict[str, nn.Module] = {name: getattr(pipe, name) for name in names}  # that are trained
        self.model: nn.Module = getattr(pipe, names[0]) if len(names) == 1 else nn.ModuleDict(self.models)
        self.before = AdapterSnapshot(self.model)
        self.flags_of_others = [
            (p, p.requires_grad)
            for name, m in adapted_models(pipe).items()
            if name not in self.models
            for p in m.parameters()
        ]
        prompts = [p for some in everything for p in some.prompts]
        self.trains_denoiser = self.model is self.denoiser
        self.keeps_states = not self.trains_denoiser or len(set(prompts)) <= config.kept_prompts
        self.conditions, self.row_of_prompt = encode_unique(pipe, prompts) if self.keeps_states else (None, [])
        self.others = {name: 1.0 for name in active_adapters(self.model)}  # stay on in the reference
        copied = config.reference == "copy" and self.trains_denoiser and reference is None and self.needs != "nothing"
        self.given_reference, self.locks, self.recomputed = reference, False, None
        self.copy = copy.deepcopy(self.model).requires_grad_(False) if copied and start is None else None
        self.surroundings = self._surroundings()  # of the adapters that are there already
        self.parameters = self._trainable()
        try:
            self._prepare(copied)
        except BaseException:
            self.close()
            raise

    def _prepare(self, copied: bool) -> None:
        """The rest of the start; what it raises leaves no adapter behind."""
        config, pipe = self.config, self.pipe
        if self.start is not None:
            self._go_on_with(self.start)
            if copied:
                self.copy = copy.deepcopy(self.model).requires_grad_(False)
        self.reference = self.copy if copied else self.given_reference  # None: the model without the new adapter
        if config.sharded:
            shard_base(self.model, self.parameters.values())
            self.base_sums = base_sums(self.denoiser)  # of this process's part
        own = {id(p) for p in self.parameters.values()}
        for model in adapted_models(pipe).values():
            for parameter in model.parameters():
                if id(parameter) not in own:
                    parameter.requires_grad_(False)  # else backward would collect gradients nobody uses
        half = sorted({str(p.dtype) for p in self.parameters.values() if p.dtype != torch.float32})
        if half:
            raise ValueError(f'trainable weights are {half[0]}: load the pipeline in float32, use precision="bf16"')
        self.flags = FrozenFlags(self.model)
        self.optimizer = adam_of(config.optimizer)(
            list(self.parameters.values()), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()} if config.ema else {}
        self.best: dict[str, Tensor] = {}  # weights of the smallest held-out loss
        self.took_best = False
        self.best_loss, self.waited, self.first_loss, self.warned = math.inf, 0, None, False
        self.scale = LossScale() if config.precision == "fp16" else None
        self.turns: list[tuple[int, int]] = []  # of each step: which set of pairs, and how many steps it had before
        self.counts = [0] * len(self.sets)
        n = sum(len(some) for some in self.sets)
        self.cache = torch.full((n, config.cached_draws, 2), torch.nan)  # reference errors of (w, l)
        self.recomputed = self.denoiser.is_gradient_checkpointing
        switch_checkpointing(self.denoiser, config.checkpointing)
        self.done, self.log = self._resume()
        self.window = Window()

    # ---- the run ------------------------------------------------------------------------------------------------

    def run(self, callback: Callable[[Record], object] | None = None, *, steps: int | None = None) -> list[Record]:
        """Train up to `config.steps` in all (or `steps` more); returns all records so far, one per `log_every` steps.

        callback: called with each record; returning True stops the run there (early stopping).
        """
        end = self.config.steps if steps is None else min(self.config.steps, self.done + steps)
        while self.done < end and not self.stopped:
            begun = time.perf_counter()
            numbers = self.step()
            self.window.add(**numbers, seconds=time.perf_counter() - begun)
            self.done += 1
            if self.first_loss is None:
                self.first_loss = float(numbers["loss"].mean())
            if self.done % self.config.log_every and self.done < self.config.steps:
                continue
            record = {"step": self.done} | self.window.record(self.model_kappa) | {"lr": self.learning_rate(self.done)}
            record |= {"adapter_norm": update_norm(self.model, self.config.adapter, self.parameters, self.copy)}
            self.window = Window()
            if self.config.evaluate_every and self.done % self.config.evaluate_every == 0:
                record |= self._look_at_held_out()
            self.log.append(record)
            if rank() == 0 and self.folder is not None:
                append_log(self.folder / LOG, record)
                if self.config.save_every and (
                    self.done % self.config.save_every == 0 or self.done == end or self.stopped
                ):
                    self.save()
            if not self.warned and runaway(record["loss"], self.first_loss):
                self.warned = True
                report_runaway(self.done, record["loss"], self.first_loss, record["lr"], self.config.diverged)
            if callback is not None and callback(record) is True:
                break
        if self.config.trainable == "lora" and not torch.equal(base_sums(self.denoiser), self.base_sums):
            raise AdapterError("the base weights changed during training: something else trains them")
        if self.config.patience and self.best and (self.stopped or self.done == self.config.steps):
            for name, parameter in self.parameters.items():
                parameter.data.copy_(self.best[name])
            self.took_best = True
        return self.log

    @property
    def stopped(self) -> bool:
        """Whether the held-out loss has not fallen for `patience` looks."""
        return bool(self.config.patience) and self.waited >= self.config.patience

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights (`config.ema`), afterwards its own again."""
        average = {} if self.took_best else self.ema  # the best weights are averaged ones already
        own = {name: self.parameters[name].detach().clone() for name in average}
        for name, value in average.items():
            self.parameters[name].data.copy_(value)
        try:
            yield
        finally:
            for name, value in own.items():
                self.parameters[name].data.copy_(value)

    @torch.no_grad()
    def evaluate(self) -> Record:
        """The held-out pairs on fixed draws, with averaged weights where there are any: mean loss, and the share of
        pairs whose logit, averaged over the draws, is positive."""
        first, batches, losses, logits = len(self.cache), [], [], []
        size = self.config.micro_batch or self.config.batch_size
        for some in self.held_sets:
            rows = [(first + i, draw) for i in range(len(some)) for draw in range(HELD_OUT_DRAWS)]
            batches += [rows[start : start + size] for start in range(0, len(rows), size)]
            first += len(some)
        with self.averaged():
            for rows in batches:
                step = self.pair_step(rows)
                losses.append(torch.stack([term(step) for term in self.terms]).sum(0).float().cpu())
                if step.ref_winner_error is not None:
                    logits.append(dpo_logit(**step.errors, kappa=self.model_kappa).float().cpu())
        record = {"held_out_loss": float(torch.cat(losses).mean())}
        if logits:
            means = torch.cat(logits).view(-1, HELD_OUT_DRAWS).mean(1)  # [pairs]
            record["held_out_accuracy"] = float(implicit_accuracy(means))
        return record

    def _look_at_held_out(self) -> Record:
        record = self.evaluate()
        if record["held_out_loss"] < self.best_loss:
            self.best_loss, self.waited = record["held_out_loss"], 0
            if self.config.patience:
                with self.averaged():
                    self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            self.waited += 1
        return record

    def step(self) -> dict[str, Tensor]:
        """One update; returns per-pair numbers [B] of this process (see `Window`)."""
        config = self.config
        rows = self._rows(self.done, config.batch_size * world_size())
        rows = rows[rank() * config.batch_size : (rank() + 1) * config.batch_size]
        size = config.micro_batch or len(rows)
        parts = []
        for start in range(0, len(rows), size):
            step = self.pair_step(rows[start : start + size])
            losses = {term.name: term(step) for term in self.terms}  # [B] each
            total = torch.stack(list(losses.values())).sum(0)  # [B]
            mean = total.sum() / len(rows)  # a short last micro-batch counts by its size
            (mean if self.scale is None else mean * self.scale.scale).backward()
            parts.append({"loss": total, **losses, **observed(step)})
        average_gradients(list(self.parameters.values()))
        joined = {k: torch.cat([p[k].detach().float().cpu() for p in parts]) for k in parts[0]}
        if self.scale is not None:
            finite = self.scale.unscale(list(self.parameters.values()))
            joined["skipped"] = torch.tensor([float(not finite)])
            if not finite:
                return gathered(joined) | {"gradient_norm": torch.zeros(1)}
        check_gradients(self.parameters)
        self.flags.check()
        norm = update(self.optimizer, lr=self.learning_rate(self.done + 1), clip=config.clip)
        decay = min(config.ema, (1 + self.done) / (10 + self.done))
        for name, average in self.ema.items():
            average.lerp_(self.parameters[name].detach(), 1 - decay)
        return gathered(joined) | {"gradient_norm": norm.detach().float().cpu().reshape(1)}

    def pair_step(self, rows: Sequence[tuple[int, int]]) -> PairStep:
        """Policy (with gradient) and reference on some (pair, epoch) rows of one set; pairs are numbered through all
        sets, the held-out one last."""
        config, device, process = self.config, self.denoiser.device, self.process
        data, first = self._set_of(rows[0][0])
        trains = rows[0][0] < len(self.cache)  # else it is held out
        k = config.cached_draws if trains else 0
        rows = [(pair, epoch % k if k else epoch) for pair, epoch in rows]
        index = [pair for pair, _ in rows]
        own = [pair - first for pair in index]  # inside its set
        draws = draw_pairs(
            rows, data.winner.shape[1:], seed=config.seed, t_window=config.t_window,
            density=config.density,
        )  # fmt: skip
        dropped = draws.uniform < (config.prompt_dropout if trains else 0.0)  # [B]
        noise, t = draws.noise.to(device), draws.t.to(device)
        clean = torch.cat([data.winner[own], data.loser[own]]).to(device, torch.float32)  # [2B, ...]
        t2 = torch.cat([t, t])
        x_t = process.noised(clean, torch.cat([noise, noise]), t2)
        b = len(rows)

        known = {}
        cached = self.cache[index, [draw for _, draw in rows]] if k else None  # [B, 2]
        if cached is not None and bool(torch.isfinite(cached).all()):
            known = {"ref_winner_error": cached[:, 0].to(device), "ref_loser_error": cached[:, 1].to(device)}
        elif self.needs != "nothing":
            with torch.no_grad(), self._reference_on():
                conditions = self._conditions(index, dropped, live=False)
                model = self.denoiser if self.reference is None else self.reference
                ref = self._epsilon(model, x_t, clean, t2, conditions)  # [2B, C, h, w]
                error = epsilon_error(ref, torch.cat([noise, noise]))  # [2B]
            known = {"ref_winner_error": error[:b], "ref_loser_error": error[b:]}
            known |= {"ref_winner_pred": ref[:b], "ref_loser_pred": ref[b:]}
            if k:
                self.cache[index, [draw for _, draw in rows]] = error.view(2, b).T.float().cpu()
        conditions = self._conditions(index, dropped, live=not self.trains_denoiser)
        prediction = self._epsilon(self.denoiser, x_t, clean, t2, conditions)
        margin = None if data.margin is None else data.margin[own].to(device, torch.float32)
        return PairStep(
            winner_pred=prediction[:b], loser_pred=prediction[b:], noise=noise, t=t,
            alphas_cumprod=process.alphas_cumprod.to(device), margin=margin, **known,
        )  # fmt: skip

    # ---- parts --------------------------------------------------------------------------------------------------

    def _rows(self, step: int, size: int) -> list[tuple[int, int]]:
        """(pair, epoch) of a step: all of one set, the sets in turn by the number of their pairs."""
        lengths = [len(some) for some in self.sets]
        while len(self.turns) <= step:
            due = [(len(self.turns) + 1) * n / sum(lengths) - c for n, c in zip(lengths, self.counts, strict=True)]
            chosen = max(range(len(due)), key=due.__getitem__)
            self.turns.append((chosen, self.counts[chosen]))
            self.counts[chosen] += 1
        chosen, number = self.turns[step]
        first = sum(lengths[:chosen])
        rows = rows_of_step(number, size, lengths[chosen], self.config.seed)
        return [(first + pair, epoch) for pair, epoch in rows]

    def _set_of(self, pair: int) -> tuple[PreferencePairs, int]:
        """The set with a pair, and the number of its first pair."""
        first = 0
        for some in (*self.sets, *self.held_sets):
            if pair < first + len(some):
                return some, first
            first += len(some)
        raise IndexError(f"pair {pair} of {first}")

    def _go_on_with(self, path: str | Path) -> None:
        """Copy a LoRA file into the fresh adapter."""
        found, alphas = read_lora(path, self.pipe)
        others = sorted(set(found) - set(self.models))
        if others:
            raise AdapterError(
                f"{path} is for {' and '.join(others)} too, which this run would leave out: give a file for "
                f"{self.config.model} alone"
            )
        for name, model in self.models.items():
            tensors = {key: value for key, value in found.get(name, {}).items() if self._used(name)(key)}
            own = adapter_parameters(model, self.config.adapter)
            named = {key.replace(f".{self.config.adapter}.weight", ".weight"): p for key, p in own.items()}
            odd = sorted(set(named) ^ set(tensors)) or [k for k, p in named.items() if p.shape != tensors[k].shape]
            if odd:
                ranks = sorted({len(value) for key, value in tensors.items() if key.endswith(".lora_A.weight")})
                raise AdapterError(
                    f"{path} does not fit this run ({len(odd)} tensors, first: {odd[0]}): give the file's rank and "
                    f"targets (its rank is {ranks[0] if len(ranks) == 1 else ranks}, this run's {self.config.rank})"
                )
            for key, parameter in named.items():
                layer, _, kind = key.removesuffix(".weight").rpartition(".")
                rescaled = alphas[f"{name}.{layer}"] / self.config.rank if kind == "lora_B" else 1.0
                parameter.data.copy_(tensors[key] * rescaled)

    def _surroundings(self) -> dict[str, str]:
        """What else decides the numbers: the adapters that are active already with their scales, another reference."""
        found = {f"adapters of {name}": active_content(model) for name, model in adapted_models(self.pipe).items()}
        reference = self.given_reference
        if reference is not None:
            found["reference model"] = base_fingerprint(reference) + active_content(reference)
        return found

    def _trainable(self) -> dict[str, nn.Parameter]:
        config = self.config
        if config.trainable == "lora":
            where = {"suffixes": None} if config.targets == "all" else {}
            files = {} if self.start is None else read_lora(self.start, self.pipe)[0]
            for number, (name, model) in enumerate(self.models.items()):
                used = self._used(name)
                if layers := {key.rpartition(".lora_")[0] for key in files.get(name, ()) if used(key)}:
                    used = layers.__contains__  # where the file has weights, and nowhere else
                add_lora(model, config.adapter, seed=config.seed + number, rank=config.rank, where=used, **where)
            return adapter_parameters(self.model, config.adapter)
        found = {}
        for name, model in self.models.items():
            used = self._used(name)
            for path, parameter in model.named_parameters():
                parameter.requires_grad_(used(path))
                if used(path):
                    found[path if len(self.models) == 1 else f"{name}.{path}"] = parameter
        return found

    def _used(self, name: str) -> Callable[[str], bool]:
        """Which layers of a model reach the pictures: SDXL reads its first text encoder one layer before the end."""
        if name != "text_encoder" or getattr(self.pipe, "text_encoder_2", None) is None:
            return lambda path: True
        last = f"layers.{getattr(self.pipe, name).config.num_hidden_layers - 1}."
        return lambda path: last not in path and "final_layer_norm" not in path

    @contextmanager
    def _reference_on(self) -> Iterator[None]:
        """Inside, the model is the reference; another U-Net, or embeddings of the start, need no switching."""
        switch = self.reference is None and self.trains_denoiser
        with use_adapters(self.model, self.others) if switch else nullcontext():
            yield

    def _conditions(self, index: Sequence[int], dropped: Tensor, *, live: bool) -> PromptConditions:
        """Text conditions of the 2B rows [w; l]; a dropped prompt is the empty one. live: through the text encoder."""
        if live or not self.keeps_states:
            sets = [self._set_of(i) for i in index]
            prompts = [data.prompts[i - first] for i, (data, first) in zip(index, sets, strict=True)]
            with nullcontext() if live else torch.no_grad():
                conditions = encode_prompts(self.pipe, prompts)
        else:
            conditions = self.conditions.select([self.row_of_prompt[i] for i in index])
        if conditions.time_ids is not None:
            ids = self._time_ids(index).to(conditions.time_ids)
            conditions = replace(conditions, time_ids=ids)
        if bool(dropped.any()):
            mask = dropped.to(conditions.cond.device)
            cond = torch.where(mask[:, None, None], conditions.uncond, conditions.cond)
            pooled = conditions.pooled
            if pooled is not None:
                pooled = torch.where(mask[:, None], conditions.pooled_uncond, pooled)
            conditions = replace(conditions, cond=cond, pooled=pooled)
        return conditions.select([*range(len(index))] * 2)

    def _time_ids(self, index: Sequence[int]) -> Tensor:
        """SDXL's size conditions [B, 6] of some pairs, in pixels."""
        found = []
        for i in index:
            data, first = self._set_of(i)
            if data.time_ids is not None:
                found.append(data.time_ids[i - first].float())
            else:
                height, width = (vae_scale_factor(self.pipe) * side for side in data.winner.shape[2:])
                found.append(torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32))
        return torch.stack(found)

    def _epsilon(self, model, x_t: Tensor, clean: Tensor, t: Tensor, conditions: PromptConditions) -> Tensor:
        """Predicted noise [2B, C, h, w], float32, whatever the network predicts."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        with torch.autocast(x_t.device.type, half) if half else nullcontext():
            output = unet_output(model, x_t, self.process.times(t), conditions)
        return self.process.as_noise(output.float(), x_t, clean, t)

    def learning_rate(self, step: int) -> float:
        """Of update number `step`, from 1."""
        config = self.config
        rise = min(1.0, step / max(1, config.warmup))
        if config.schedule == "constant":
            return config.lr * rise
        passed = max(0, step - 1 - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))

    @property
    def model_kappa(self) -> float:
        """The kappa of the first term that has one, for the logged logits."""
        return next((term.kappa for term in self.terms if term.kappa is not None), 1.0)

    # ---- state --------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, object]:
        """What must be equal for a resume: everything but the number of steps and how often to log or save."""
        free = {"steps", "log_every", "save_every", "diverged", "sharded"} - (
            {"steps"} if self.config.schedule == "cosine" else set()
        )
        # checkpoints from before these options have none of them
        free |= {
            k for k in ("weighting", "density", "kept_prompts") if getattr(self.config, k) == getattr(DPOConfig, k)
        }
        config = {k: v for k, v in asdict(self.config).items() if k not in free}
        terms = [[t.name, dict(t.settings)] for t in self.terms]
        contents = {"pairs": [some.content() for some in self.sets]}
        contents["held-out pairs"] = [some.content() for some in self.held_sets]
        if self.start is not None:
            models, alphas = read_lora(self.start, self.pipe)
            flat = {f"{m}.{k}": v for m, tensors in models.items() for k, v in tensors.items()}
            contents["start"] = hashlib.sha256(json.dumps([digest(flat), alphas], sort_keys=True).encode()).hexdigest()
        return {**config, "terms": terms, **contents, "processes": world_size(), **self.hashes, **self.surroundings}

    def save(self) -> None:
        """Write a checkpoint now. Raises CheckpointError if the disk does not take it."""
        optimizer, reference = optimizer_tensors(self.optimizer), {"errors": self.cache}
        groups = {"weight": self.parameters, "optimizer": optimizer, "reference": reference}
        groups |= {"ema": self.ema, "best": self.best}
        kept = {"first_loss": self.first_loss, "best_loss": self.best_loss, "waited": self.waited}
        kept["scale"] = None if self.scale is None else [self.scale.scale, self.scale.good]
        save_checkpoint(self.folder / CHECKPOINT, groups, step=self.done, identity=self.identity, kept=kept)

    def _resume(self) -> tuple[int, list[Record]]:
        """Steps done and their log: from the folder's checkpoint, which must be of this run, or from the start."""
        if self.folder is None:
            return 0, []
        if rank() == 0:
            lock(self.folder)
            self.locks = True
        self.identity = self._identity()  # hashes all pairs: once
        path, done = self.folder / CHECKPOINT, 0
        if path.exists():
            groups, state = read_checkpoint(path)
            odd = differing(state["identity"], self.identity)
            if odd:
                raise CheckpointError(
                    f"{path} belongs to another run, which differs in {', '.join(odd)}: choose a new folder"
                )
            for name, parameter in self.parameters.items():
                parameter.data.copy_(groups["weight"][name])
            load_optimizer(self.optimizer, groups["optimizer"])
            self.cache.copy_(groups["reference"]["errors"])
            for name, average in self.ema.items():
                average.copy_(groups["ema"][name])
            self.best = {k: v.to(self.denoiser.device) for k, v in groups.get("best", {}).items()}
            kept = state["kept"]
            self.first_loss, self.best_loss, self.waited = kept["first_loss"], kept["best_loss"], kept["waited"]
            if self.scale is not None:
                self.scale.scale, self.scale.good = kept["scale"]
            done = state["step"]
        return done, trim_log(self.folder / LOG, done) if rank() == 0 else []

    def close(self) -> None:
        """Remove the adapter (if it is still there) and put every flag back. Fully trained weights stay as they are."""
        for model in self.models.values():
            if self.config.trainable == "lora" and self.config.adapter in adapter_names(model):
                remove_lora(model, self.config.adapter)
        self.before.restore()
        for parameter, flag in self.flags_of_others:
            parameter.requires_grad_(flag)
        if self.recomputed is not None:
            switch_checkpointing(self.denoiser, self.recomputed)
        if self.locks:
            unlock(self.folder)
            self.locks = False

    def __enter__(self) -> DPOTrainer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def switch_checkpointing(unet, on: bool) -> None:
    """Gradient checkpointing of a U-Net on or off."""
    unet.enable_gradient_checkpointing() if on else unet.disable_gradient_checkpointing()


def adam_of(optimizer: str) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer's class. Raises ValueError if bitsandbytes is asked for and not installed."""
    if optimizer == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ValueError('optimizer "adamw8bit" needs bitsandbytes: install it, or use "adamw"') from None
    return AdamW8bit
