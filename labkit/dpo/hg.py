"""HG-DPO (arXiv 2405.20216 v3): three DPO runs whose winners move from generated to real pictures.

    easy     winner best of N generated      loser worst of N           with statistics matching
    normal   winner reconstruction, t 400-700  loser the easy winner    kept if its score is higher
    hard     winner reconstruction, t 100      loser the normal winner  same pictures as normal

Between stages the adapter is merged and a fresh one added: the reference of a stage is its own start (the paper leaves
open whether it is; "base" is the other reading). Afterwards the weights are the base's again and carry one frozen
adapter per stage, so that the inference rules can scale and mask them one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from labkit.diffusion import (
    AdapterError,
    PromptConditions,
    adapter_names,
    adapter_state,
    add_lora,
    base_parameters,
    denoiser_of,
    load_adapter_state,
    merge_lora,
)
from labkit.dpo.data import PreferencePairs
from labkit.dpo.pairs import PairSet, make_row
from labkit.dpo.recon import best_level
from labkit.dpo.terms import Term
from labkit.dpo.trainer import DPOConfig, DPOTrainer

TEXT_WINDOW = (900, 1000)  # timesteps in which the paper's text-encoder adapter is on


def up_blocks(path: str) -> bool:
    """Whether a layer belongs to the U-Net's decoder: where the paper keeps the last stage's adapter at inference."""
    return path.startswith("up_blocks")


def normal_pairs(easy: PairSet, recons: Mapping[int, Tensor], scores: Mapping[int, Tensor], scorer: str) -> PairSet:
    """Winner: the best scored reconstruction of the prompt's picture; loser: the winner of its easy pair.

    recons, scores: level t -> [P, C, h, w], [P], both in the order of the pool's prompts (`prompt_id`). The paper keeps
    a pair if its winner's score is at least the loser's; equal scores are ties and do not train here.
    """
    _check_levels(easy, recons)
    level, top = best_level(scores)
    rows, latents = [], []
    for row in easy.rows:
        p = row["prompt_id"]
        if row["score_w"] is None:
            raise ValueError(f"pair {row['pair_id']!r} has no score of its winner: the normal stage compares with it")
        margin = float(top[p]) - row["score_w"]
        rows.append(
            make_row(
                f"normal-{p:06d}",
                row["prompt"],
                p,
                len(latents),
                len(latents) + 1,
                score_w=float(top[p]),
                score_l=row["score_w"],
                margin=margin,
                scorer=scorer,
                source_w=f"sdrecon t={int(level[p])}",
                source_l=row["source_w"],
                stage="normal",
                tie=margin <= 0,
                split=row["split"],
            )
        )
        latents += [recons[int(level[p])][p].cpu(), easy.latents[row["winner"]]]
    return PairSet(tuple(rows), torch.stack(latents), easy.hashes)


def hard_pairs(normal: PairSet, recon: Tensor, *, source: str = "sdrecon t=100") -> PairSet:
    """Winner: an almost real picture [P, C, h, w] (t = 100, or the real one itself); loser: the normal winner.

    The pictures that the normal stage dropped stay out. No judge chooses here, so there are no scores.
    """
    _check_levels(normal, {0: recon})
    rows, latents = [], []
    for row in normal.rows:
        p, first = row["prompt_id"], len(latents)
        given = {"source_w": source, "source_l": row["source_w"], "stage": "hard"}
        rows.append(
            make_row(f"hard-{p:06d}", row["prompt"], p, first, first + 1, tie=row["tie"], split=row["split"], **given)
        )
        latents += [recon[p].cpu(), normal.latents[row["winner"]]]
    return PairSet(tuple(rows), torch.stack(latents), normal.hashes)


def leap_pairs(easy: PairSet, real: Tensor) -> PairSet:
    """The leap that fails: the real picture [P, C, h, w] wins against the easy pair's loser, in a single stage."""
    _check_levels(easy, {0: real})
    rows, latents = [], []
    for row in easy.rows:
        p, first = row["prompt_id"], len(latents)
        given = {"source_w": "real", "source_l": row["source_l"], "stage": "leap", "split": row["split"]}
        rows.append(make_row(f"leap-{p:06d}", row["prompt"], p, first, first + 1, **given))
        latents += [real[p].cpu(), easy.latents[row["loser"]]]
    return PairSet(tuple(rows), torch.stack(latents), easy.hashes)


def _check_levels(pairs: PairSet, recons: Mapping[int, Tensor]) -> None:
    needed = max(pairs.column("prompt_id"), default=-1) + 1
    for t, latents in recons.items():
        if len(latents) < needed or latents.shape[1:] != pairs.latents.shape[1:]:
            raise ValueError(
                f"pictures of level {t} have shape {tuple(latents.shape)}, expected one per prompt of the pool, in its "
                f"order: {(needed, *pairs.latents.shape[1:])}"
            )


@dataclass(frozen=True)
class Stage:
    """One DPO run. name becomes the adapter's."""

    name: str
    pairs: PreferencePairs
    terms: Sequence[Term]
    config: DPOConfig


_EACH_STEP: ContextVar[Callable[[], object] | None] = ContextVar("each_step", default=None)


@contextmanager
def each_step(call: Callable[[], object]) -> Iterator[None]:
    """Inside, `run_stages` calls `call()` after every step, also where other functions call it: for progress bars."""
    token = _EACH_STEP.set(call)
    try:
        yield
    finally:
        _EACH_STEP.reset(token)


def _train(trainer: DPOTrainer, callback: Callable[[dict], bool | None] | None) -> list[dict]:
    """`trainer.run`, step by step where `each_step` asks for it: the same numbers."""
    tick, ended = _EACH_STEP.get(), False

    def noted(record: dict) -> bool:
        nonlocal ended
        ended = callback is not None and callback(record) is True
        return ended

    while tick is not None and not ended and not trainer.stopped and trainer.done < trainer.config.steps:
        trainer.run(noted, steps=1)
        tick()
    return trainer.log if ended else trainer.run(callback)


def run_stages(
    pipe,
    stages: Sequence[Stage],
    *,
    reference: str = "stage",
    folder: str | Path | None = None,
    callback: Callable[[str, dict], bool | None] | None = None,
) -> dict[str, list[dict]]:
    """Train the stages one after the other on the pipeline's U-Net, or on the transformer of Stable Diffusion 3 that
    stands in its place; the adapters stay on it, active, frozen, named like them.

    reference  "stage": each stage's own start. "base": the model as it was before the first stage.
    folder     where stages with `save_every` keep their checkpoints; calling again goes on in the stage that was cut.
    callback   called with (stage name, log record); returning True ends that stage.

    Returns the logs by stage. The base weights are the same bits as before, also after an error.
    Raises ValueError for names that repeat or are taken, for another reference, and for a pipeline with neither.
    """
    if reference not in ("stage", "base"):
        raise ValueError(f"reference is {reference!r}, expected 'stage' (each stage's start) or 'base'")
    model, names = denoiser_of(pipe), [stage.name for stage in stages]
    taken = sorted(set(names) & set(adapter_names(model)))
    if not names or len(set(names)) != len(names) or taken:
        raise ValueError(f"stage names {names} must be distinct and free (taken: {taken}): remove those adapters first")
    base = copy.deepcopy(model) if reference == "base" else None
    logs, states = {}, {}
    with base_weights_kept(model):
        for stage in stages:
            # from the second stage on the network is no longer the one that made the pool
            config = replace(stage.config, adapter=stage.name, foreign_pairs=bool(logs) or stage.config.foreign_pairs)
            stop = None if callback is None else (lambda record, name=stage.name: callback(name, record))
            kept = None if folder is None else Path(folder) / stage.name
            with DPOTrainer(
                pipe, stage.pairs, config, stage.terms, folder=kept, reference=base if logs else None
            ) as trainer:
                logs[stage.name] = _train(trainer, stop)
                states[stage.name] = adapter_state(model, stage.name)
                merge_lora(model, stage.name)
    for stage in stages:
        attach(model, stage.name, states[stage.name])
    return logs


@contextmanager
def base_weights_kept(model: torch.nn.Module) -> Iterator[None]:
    """Inside, adapters may be merged; afterwards the base weights are what they were, bit for bit."""
    before = {name: p.detach().clone() for name, p in base_parameters(model).items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in base_parameters(model).items():
                parameter.copy_(before[name])


def attach(model: torch.nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Add a trained adapter (`adapter_state`) to a model, active and frozen: to combine stages, or to carry one over.

    Rank and layers are those of the state. A personalised model of the same base takes it as well: add its own adapter
    and both are active.
    """
    layers = {path.partition(".lora_A.")[0]: len(p) for path, p in state.items() if ".lora_A." in path}  # name -> rank
    if len(set(layers.values())) != 1:
        raise AdapterError(f"the state of {name!r} has LoRA ranks {sorted(set(layers.values()))}, expected one")
    parameters = add_lora(model, name, seed=0, rank=max(layers.values()), suffixes=None, where=layers.__contains__)
    load_adapter_state(model, name, state)
    for parameter in parameters:
        parameter.requires_grad_(False)


def text_window(
    base: PromptConditions, tuned: PromptConditions, window: tuple[int, int] = TEXT_WINDOW
) -> Callable[[int], PromptConditions]:
    """`conditions=` of the sampler: the tuned text encoder's inside the window of timesteps (ends included), the base's
    outside."""
    if len(base) != len(tuned):
        raise ValueError(f"got {len(base)} base and {len(tuned)} tuned conditions: encode the same prompts with both")
    return lambda t: tuned if window[0] <= int(t) <= window[1] else base
