"""Guards of a run: a loss that runs away, latents that were not scaled, gradients that half precision cannot hold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from labkit.dpo.data import PreferencePairs
from labkit.errors import LabkitError, LabkitWarning

FACTOR = 5.0  # a loss this many times that of the first step has run away; no useful run of the course comes near
FIRST = 1024  # pairs that are looked at
SPREAD = (0.25, 3.0)  # standard deviations that scaled latents can have: they are made to have about 1


class DivergenceError(LabkitError, RuntimeError):
    """The loss has run away: what was trained is worth nothing."""


def runaway(loss: float, first: float) -> bool:
    """Whether a loss has grown far beyond that of the first step, or is no number."""
    return not math.isfinite(loss) or loss - first > (FACTOR - 1) * max(abs(first), math.log(2))


def report_runaway(step: int, loss: float, first: float, lr: float, how: str) -> None:
    """Warn of a loss that has run away, or stop ("stop", and always if it is no number)."""
    line = (
        f"step {step}: the loss is {loss:.3g}, at the first step it was {first:.3g}. The run has diverged: lower lr "
        f"(it is {lr:g}) or raise kappa, and begin again"
    )
    if how == "stop" or not math.isfinite(loss):
        raise DivergenceError(line)
    warnings.warn(line, LabkitWarning, stacklevel=3)


def check_spread(pairs: PreferencePairs) -> None:
    """Warn of latents that are not scaled as the U-Net sees them (`labkit.diffusion.encode_images` scales)."""
    sides = [x[:FIRST].float() for x in (pairs.winner, pairs.loser)]  # what is not scaled shows in any of them
    spread = float(torch.stack(sides).std())
    if not SPREAD[0] < spread < SPREAD[1]:
        warnings.warn(
            f"the latents of the pairs have standard deviation {spread:.3g}, scaled ones have about 1: multiply what "
            "the VAE gives by its scaling_factor, or encode with labkit.diffusion.encode_images",
            LabkitWarning,
            stacklevel=3,
        )


class LossScale:
    """Dynamic loss scaling for float16 (arXiv 1710.03740): the scale halves when a gradient overflows, down to 1, and
    doubles after 2000 steps without."""

    START, GROWTH = 2.0**16, 2000

    def __init__(self) -> None:
        self.scale, self.good = self.START, 0

    def unscale(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Divide the gradients by the scale; False, and no gradients, if one of them is not finite.

        Raises:
            DivergenceError: not finite although nothing is scaled any more: no step would ever be made.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient /= self.scale
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self.good += 1
            if self.good == self.GROWTH:
                self.scale, self.good = self.scale * 2, 0
            return True
        if self.scale <= 1.0:
            raise DivergenceError('gradients overflow in float16 even without a scale: use precision="bf16" or "fp32"')
        self.scale, self.good = max(1.0, self.scale / 2), 0
        for parameter in parameters:
            parameter.grad = None
        return False
