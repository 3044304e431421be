"""Losses of PC-CLIP and the floors below which they cannot fall.

The paper's loss is the symmetric cross-entropy of CLIP between sentences and differences at a constant temperature;
a squared error is its variant. Templates repeat themselves within a batch, so one sentence can be true of several
pairs: multi-positive targets say so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def symmetric_nce(x: Tensor, y: Tensor, tau: float, positives: Tensor | None = None) -> Tensor:
    """Symmetric contrastive loss of rows x, y [B, d], both of length 1; scalar.

    positives: bool [B, B], True where row i of x fits row j of y; None: the diagonal. A row's target is uniform over
    its positives.

    Raises:
        ValueError: shapes that differ, tau <= 0, or a row or column of `positives` without a True.
    """
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}: expected the same [batch, width]")
    if not tau > 0:
        raise ValueError(f"tau is {tau}, expected a temperature above 0")
    return two_sided_cross_entropy(x @ y.T / tau, positives)


def two_sided_cross_entropy(logits: Tensor, positives: Tensor | None = None) -> Tensor:
    """Mean of the row-wise and the column-wise cross-entropy of logits [B, C] against uniform targets over
    `positives` [B, C] (None: the diagonal)."""
    if positives is None:
        if logits.shape[0] != logits.shape[1]:
            raise ValueError(f"logits have shape {tuple(logits.shape)}: without positives they must be square")
        positives = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if positives.shape != logits.shape:
        raise ValueError(f"positives have shape {tuple(positives.shape)}, expected {tuple(logits.shape)}")
    if not (positives.any(0).all() and positives.any(1).all()):
        raise ValueError("a row or column of positives has no True: every item needs a partner")
    return (_rows(logits, positives) + _rows(logits.T, positives.T)) / 2


def _rows(logits: Tensor, positives: Tensor) -> Tensor:
    targets = positives / positives.sum(1, keepdim=True)  # [B, C]
    return -(logits.log_softmax(1) * targets).sum(1).mean()


def squared_error(text: Tensor, raw_difference: Tensor) -> Tensor:
    """The squared variant: batch mean of |t - (u_i - u_j)|^2, the difference *not* brought to length 1."""
    return (text - raw_difference).square().sum(-1).mean()


def loss_floor(batch: int, tau: float) -> float:
    """The smallest value of the symmetric loss with one positive per row: a regular simplex attains it when
    d >= batch - 1. At tau = 1 and batch 512 it is 5.24 of ln 512 = 6.24: such a loss never looks small."""
    if batch < 1 or not tau > 0:
        raise ValueError(f"batch {batch} and tau {tau}: expected at least 1 and above 0")
    if batch == 1:
        return 0.0
    return math.log1p((batch - 1) * math.exp(-batch / (batch - 1) / tau))


def duplicate_floor(positives: Tensor) -> float:
    """Entropy of the uniform targets: no temperature brings the multi-positive loss below it."""
    return float((positives.sum(1).double().log().mean() + positives.sum(0).double().log().mean()) / 2)


def matching(values: Tensor, named: Tensor) -> Tensor:
    """bool [N, M]: row i of codes `values` [N, A] has every value that row j of `named` [M, A] names (-1: not named).

    With the attributes of both images side by side, this says which sentence is true of which pair.
    """
    return ((values[:, None] == named[None]) | (named[None] < 0)).all(-1)
