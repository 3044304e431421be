"""Who calls the U-Net, and which rows of the call read likes and which dislikes.

Both are learnt from the call that is running. What a pipeline object remembers of an earlier call says nothing: another
pipeline with the same U-Net (`from_pipe`, `**pipe.components`), an own loop or a tiled one may be at work, and guidance
may change from step to step. The caller either says it (`labkit.diffusion.labelled_rows`), or it is a diffusers
pipeline, whose `__call__` is found on the stack: it tells whether it guides, and its negative text tells which rows are
unconditional, in whatever order and however many. Where even that leaves a doubt, the call is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from labkit.diffusion import row_labels
from labkit.fabric.settings import FabricError

MODELS = ("unet", "transformer")  # what a pipeline may call its model


@dataclass(frozen=True)
class Caller:
    """A diffusers pipeline that is running, and the local variables of its `__call__`."""

    pipe: Any
    variables: Mapping[str, Any]

    def guides(self) -> bool | None:
        """Whether it has unconditional rows in this very call; None if it does not say so."""
        known = self.variables.get("do_classifier_free_guidance")
        return getattr(self.pipe, "do_classifier_free_guidance", None) if known is None else bool(known)


def caller_of(unet) -> Caller | None:
    """The innermost pipeline on the stack that is running this U-Net or transformer, None for an own loop."""
    from diffusers import DiffusionPipeline

    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            variables = frame.f_locals
            pipe = variables.get("self")
            if isinstance(pipe, DiffusionPipeline) and any(getattr(pipe, name, None) is unet for name in MODELS):
                return Caller(pipe, variables)
        frame = frame.f_back
    return None


def labels_of(call: Mapping[str, Any], caller: Caller | None) -> tuple[str, ...]:
    """ "cond" or "uncond" for every row of a U-Net call: as labelled, else as the running pipeline has stacked them.

    The perturbed rows of PAG (arXiv 2403.17377) are conditional ones.

    Args:
        call: the call's arguments by name, "sample" [B, C, h, w] and "encoder_hidden_states" [B, tokens, d] among them.
        caller: who calls.

    Raises:
        FabricError: labels for another number of rows, an own loop without labels, or a pipeline whose rows cannot be
            told apart with certainty.
    """
    rows, labels = len(call["sample"]), row_labels()
    if labels is None and caller is not None:
        labels = _labels_of_pipeline(call, caller)
    if labels is None or len(labels) != rows:
        got = "no labels" if labels is None else f"{len(labels)} labels"
        raise FabricError(f"{got} for {rows} rows of the model: wrap the call in labkit.diffusion.labelled_rows([...])")
    return labels


def _labels_of_pipeline(call: Mapping[str, Any], caller: Caller) -> tuple[str, ...] | None:
    rows, guides = len(call["sample"]), caller.guides()
    if guides is None:
        return None
    if not guides:
        return ("cond",) * rows
    text, negative = call.get("encoder_hidden_states"), caller.variables.get("negative_prompt_embeds")
    if not (isinstance(text, Tensor) and isinstance(negative, Tensor) and text.shape[1:] == negative.shape[1:]):
        return None
    perturbed = bool(getattr(caller.pipe, "do_perturbed_attention_guidance", False))
    share = 3 if perturbed else 2  # [uncond, cond] or [uncond, cond, perturbed cond]
    n = len(negative)
    negative = negative.to(text.device, text.dtype)
    # rows whose text is a negative one: no layout has to be known, views and branches may be stacked in any order
    unconditional = [bool((row == negative).flatten(1).all(1).any()) for row in text]
    if sum(unconditional) * share == rows:
        return tuple("uncond" if one else "cond" for one in unconditional)
    # positive texts equal to a negative one: diffusers' own stack, which begins with the negative texts
    whole = text is caller.variables.get("prompt_embeds") and rows == share * n
    if whole and bool((text[:n] == negative).all()):
        return ("uncond",) * n + ("cond",) * (rows - n)
    return None
