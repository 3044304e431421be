"""The equations of PC-CLIP (Sam et al., arXiv 2409.09721) and of what goes with it: one function each. Read this first.

    PC-CLIP    u_i                  embeddings of length 1                `unit`
               d_ij                 the difference embedding              `difference`
               contrastive loss     sentences against differences         `contrastive_loss`
               squared loss         its variant (appendix G.2)            `squared_loss`
               e_j'                 comparative prompting                 `comparative_prompt`
               cos(t, d_12) > 0     difference-based classification       `labkit.pairwise.evaluate`
    CLIP       2103.00020           two-sided cross-entropy of logits     `two_sided_cross_entropy`
    Floors     derived here         what no training can go below         `loss_floor`, `duplicate_floor`
    WiSE-FT    2109.01903           weights between two models            `interpolate`

    d_ij = (u_i - u_j) / |u_i - u_j|,      S = t d^T / tau,      L = (CE(S) + CE(S^T)) / 2

u_i is the image embedding g(I_i) and t_ij the embedding f(T_ij) of the sentence that says how image i differs from
image j, both at length 1. What all images share cancels in u_i - u_j, the modality gap (arXiv 2203.02053) included.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from labkit.metrics.checks import whole_number

EPS = 1e-6
Model = TypeVar("Model", bound=nn.Module)


def unit(x: Tensor, eps: float = EPS) -> Tensor:
    """u = g / |g|: rows [..., d] at length 1; rows no longer than `eps` become zeros, not NaN."""
    length = x.norm(dim=-1, keepdim=True)
    return torch.where(length > eps, x / length.clamp(min=eps), torch.zeros_like(x))


def difference(u_i: Tensor, u_j: Tensor, eps: float = EPS) -> Tensor:
    """The difference embedding of PC-CLIP (2409.09721), d_ij = (u_i - u_j) / |u_i - u_j|: what is left when one image
    embedding is taken from another. Lesson 07 calls it an arrow.

    Args:
        u_i, u_j: image embeddings at length 1 (see `unit`), [..., d] of one shape. Lengths must not matter: a long
            embedding would dominate the subtraction.
        eps: shorter differences have no direction.

    Returns:
        Unit vectors [..., d] from j to i; zeros where the two are the same.

    Raises:
        ValueError: shapes differ, or embeddings that are NaN or not of length 1.
    """
    if u_i.shape != u_j.shape:
        raise ValueError(f"u_i has shape {tuple(u_i.shape)}, u_j {tuple(u_j.shape)}: pass pairs of equal shape")
    for name, x in (("u_i", u_i), ("u_j", u_j)):
        off = (x.detach().norm(dim=-1) - 1).abs()
        if not bool((off < 1e-2).all()):  # NaN is not, either
            raise ValueError(f"{name} holds embeddings that are NaN or not of length 1: pass unit(embeddings)")
    return unit(u_i - u_j, eps)


def contrastive_loss(text: Tensor, differences: Tensor, tau: float, positives: Tensor | None = None) -> Tensor:
    """PC-CLIP's contrastive loss (2409.09721): the symmetric cross-entropy of CLIP between sentences and differences,
    S = t d^T / tau.

    Args:
        text: t, embeddings of the sentences at length 1, [B, d].
        differences: d_ij of their pairs, [B, d].
        tau: the temperature, a constant above 0 (1 in the released code).
        positives: bool [B, B], True where sentence a is true of pair b; None is the diagonal, as in the released code.
            A row's target is uniform over its positives.

    Returns:
        L, a scalar.

    Raises:
        ValueError: shapes that differ, tau <= 0, or a row or column of `positives` without a True.
    """
    if text.shape != differences.shape or text.ndim != 2:
        raise ValueError(
            f"text has shape {tuple(text.shape)}, differences {tuple(differences.shape)}: "
            "expected the same [batch, width]"
        )
    if not tau > 0:
        raise ValueError(f"tau is {tau}, expected a temperature above 0")
    return two_sided_cross_entropy(text @ differences.T / tau, positives)


def two_sided_cross_entropy(logits: Tensor, positives: Tensor | None = None) -> Tensor:
    """(CE(S) + CE(S^T)) / 2: mean of the row-wise and the column-wise cross-entropy.

    Args:
        logits: S, [B, C].
        positives: bool [B, C]; the target of a row, and of a column, is uniform over its positives. None: the diagonal.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that do not fit, or a row or column without a True.
    """
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


def squared_loss(text: Tensor, u_i: Tensor, u_j: Tensor) -> Tensor:
    """The squared variant: batch mean of |t_ij - (u_i - u_j)|^2, the difference *not* brought to length 1."""
    return (text - (u_i - u_j)).square().sum(-1).mean()


def loss_floor(batch: int, tau: float) -> float:
    """The smallest contrastive loss with one positive per row: ln(1 + (B - 1) exp(-B / ((B - 1) tau))).

    A regular simplex attains it when d >= B - 1. At tau = 1 and batch 512 it is 5.24 of ln 512 = 6.24: such a loss
    never looks small.
    """
    batch = whole_number("batch", batch)
    if batch < 1 or not tau > 0:
        raise ValueError(f"batch {batch} and tau {tau}: expected at least 1 and above 0")
    if batch == 1:
        return 0.0
    return math.log1p((batch - 1) * math.exp(-batch / (batch - 1) / tau))


def duplicate_floor(positives: Tensor) -> float:
    """Entropy of the uniform targets: no temperature brings the loss with several positives [B, B] below it."""
    return float((positives.sum(1).double().log().mean() + positives.sum(0).double().log().mean()) / 2)


def comparative_prompt(e_i: Tensor, e_j: Tensor, t_ij: Tensor, alpha: float, beta: float = 1.0) -> Tensor:
    """Comparative prompting: e_j' = unit(alpha e_j + (1 - alpha) mean_i(e_i - beta t_ij)).

    Since t_ij should point along e_i - e_j, class j should lie near e_i - t_ij. But t_ij has length 1, and e_i - e_j is
    short when the classes are alike: beta makes the lengths agree.

    Args:
        e_i: embeddings of the classes that j is compared with, [n, d], or [d] for one.
        e_j: embedding of class j, [d]; all embeddings have length 1.
        t_ij: embeddings of how each i differs from j, of the shape of e_i.
        alpha: weight of the old embedding, 0 .. 1; 1 changes nothing.
        beta: length of the step; 1 in the released code.

    Returns:
        e_j', [d], at length 1.
    """
    proposals = torch.atleast_2d(e_i - beta * t_ij)  # [n, d]
    return unit(alpha * e_j + (1 - alpha) * proposals.mean(0))


@torch.no_grad()
def interpolate(base: Model, tuned: Model, a: float) -> Model:
    """WiSE-FT (2109.01903), interpolation of weights: a model with the weights (1 - a) base + a tuned.

    Floating tensors alone are mixed; a = 0 is the base and a = 1 the tuned model, bit for bit.

    Raises:
        ValueError: a outside [0, 1], or models of different shape (merge LoRA adapters first).
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a is {a}, expected a number from 0 (base) to 1 (tuned)")
    mixed = copy.deepcopy(base)
    old, new = base.state_dict(), tuned.state_dict()
    if {k: v.shape for k, v in old.items()} != {k: v.shape for k, v in new.items()}:
        raise ValueError("the models have different weights: pass two of one shape (merge a LoRA adapter first)")
    for name, tensor in mixed.state_dict().items():
        if a in (0, 1):
            tensor.copy_(new[name] if a else old[name])
        elif tensor.is_floating_point() and not torch.equal(old[name], new[name]):
            tensor.copy_(torch.lerp(old[name], new[name], a))
    return mixed
