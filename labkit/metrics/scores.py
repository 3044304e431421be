"""Scores of one set of images: Vendi score (how many different ones) and CLIPScore (how well they fit their texts)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from labkit.metrics.checks import as_features, same_width, work_device


def vendi_score(features: object, *, order: float = 1.0, normalise: bool = True) -> float:
    """Effective number of different samples: exp of the entropy of the similarity matrix's eigenvalues.

    Friedman & Dieng (2023), with cosine similarity. 1 when all samples are the same, N when all are orthogonal.

    Args:
        features: [N, d].
        order: Renyi order q; 1 is Shannon entropy, small q weighs rare samples more, inf only the dominant one.
        normalise: divide rows by their norm (similarity of a sample with itself must be 1).

    Raises:
        ValueError: bad features, a zero row, rows that are not of unit norm with normalise=False, or order < 0.
    """
    features = as_features("features", features, min_rows=1)
    if not order >= 0:
        raise ValueError(f"order must be >= 0, got {order!r}: 1 is the published score")
    x = features.to(work_device(features)).double()
    norms = x.norm(dim=1, keepdim=True)
    if normalise:
        if float(norms.min()) == 0:
            raise ValueError("a row of features is all zeros and has no direction: drop it")
        x = x / norms
    elif not torch.allclose(norms, torch.ones_like(norms), atol=1e-6):
        raise ValueError("rows must have norm 1 when normalise=False: pass normalise=True")
    n, d = x.shape
    gram = x @ x.T if n <= d else x.T @ x  # same nonzero eigenvalues, sum n
    p = torch.linalg.eigvalsh(gram / n).clamp(min=0)
    p = p[p > len(p) * torch.finfo(p.dtype).eps * p.max()]
    p = p / p.sum()
    if order == 1:
        return math.exp(float(-(p * p.log()).sum()))
    if math.isinf(order):
        return 1 / float(p.max())
    return float(p.pow(order).sum()) ** (1 / (1 - order))


@dataclass(frozen=True)
class ClipScoreResult:
    """CLIPScore; `float(result)` is the value. cosines: [N] image-text cosine similarities. rule: which formula."""

    value: float
    rule: str
    cosines: Tensor = field(repr=False)

    def __float__(self) -> float:
        return self.value


def clip_score(*, image_embeddings: object, text_embeddings: object, rule: str = "hessel") -> ClipScoreResult:
    """Mean agreement of images with their texts, from CLIP embeddings [N, d] in pairs.

    Args:
        rule: "hessel" clamps each pair, 100 x 2.5 mean max(cos, 0) (Hessel et al. 2021, as a percentage);
            "torchmetrics" clamps the mean, max(100 mean cos, 0), so that bad pairs offset good ones.

    Raises:
        ValueError: bad or zero embeddings, counts or widths that differ, or an unknown rule.
    """
    if rule not in ("hessel", "torchmetrics"):
        raise ValueError(f'unknown rule {rule!r}: use "hessel" or "torchmetrics"')
    images = as_features("image_embeddings", image_embeddings, min_rows=1)
    texts = as_features("text_embeddings", text_embeddings, min_rows=1)
    same_width(images, texts, ("image_embeddings", "text_embeddings"))
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images but {len(texts)} texts: pass one text per image")
    device = work_device(images, texts)
    images, texts = images.to(device).double(), texts.to(device).double()
    norms = images.norm(dim=1) * texts.norm(dim=1)
    if float(norms.min()) == 0:
        raise ValueError("an embedding is all zeros and has no direction: drop the pair")
    cosines = (images * texts).sum(dim=1) / norms  # [N]
    if rule == "hessel":
        return ClipScoreResult(250 * float(cosines.clamp(min=0).mean()), rule, cosines)
    return ClipScoreResult(max(100 * float(cosines.mean()), 0.0), rule, cosines)
