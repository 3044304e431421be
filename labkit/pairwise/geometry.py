"""Difference embeddings: what is left when one image embedding is taken from another.

PC-CLIP (Sam et al., arXiv 2409.09721): both images are brought to length 1, subtracted, and the result is brought to
length 1 again, d_ij = (u_i - u_j) / |u_i - u_j|. What all images share cancels, the modality gap (arXiv 2203.02053)
included. Two equal embeddings have no direction: such pairs are dropped and counted, never divided by zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-6


def unit(x: Tensor, eps: float = EPS) -> Tensor:
    """Rows [..., d] at length 1; rows shorter than `eps` become zeros, not NaN."""
    length = x.norm(dim=-1, keepdim=True)
    return torch.where(length > eps, x / length.clamp(min=eps), torch.zeros_like(x))


def difference(first: Tensor, second: Tensor, eps: float = EPS) -> Tensor:
    """Unit vectors [..., d] that point from the second to the first; zeros where the two are the same.

    first, second: image embeddings [..., d] of any length (they are normalised here, before the subtraction).

    Raises:
        ValueError: shapes differ, or NaN or infinity among the embeddings.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"first has shape {tuple(first.shape)}, second {tuple(second.shape)}: pass pairs of equal shape"
        )
    for name, x in (("first", first), ("second", second)):
        if not torch.isfinite(x).all():
            raise ValueError(f"{name} holds NaN or infinite embeddings: check the images and the encoder")
    return unit(unit(first, eps) - unit(second, eps), eps)


@dataclass(frozen=True)
class DifferenceBatch:
    """Differences [K, d] of the pairs that have one; `kept` [K] are their row numbers, `dropped` counts the others."""

    vectors: Tensor
    kept: Tensor
    dropped: int


def pair_differences(embeddings: Tensor, first: Tensor, second: Tensor, eps: float = EPS) -> DifferenceBatch:
    """Differences of pairs of rows of `embeddings` [N, d], given by index [P]; pairs without a difference are dropped.

    Raises:
        ValueError: no pair is left.
    """
    vectors = difference(embeddings[first], embeddings[second], eps)  # [P, d]
    kept = (vectors != 0).any(-1).nonzero().squeeze(-1)  # [K]
    if len(kept) == 0:
        raise ValueError(f"all {len(vectors)} pairs have identical embeddings: pair different images")
    return DifferenceBatch(vectors[kept], kept, len(vectors) - len(kept))
