"""Scores of one set of images: Inception Score, Vendi score, CLIPScore; and MIND, a sliced distance between two."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from labkit.metrics.checks import as_features, same_width, whole_number, work_device


@dataclass(frozen=True)
class InceptionScoreResult:
    """Mean and spread over splits; `float(result)` is the mean. 1 <= mean <= number of classes.

    Attributes:
        mean: Inception Score. std: sample standard deviation over splits (None for one split).
        per_split: the score of each split. splits: their number; more splits read lower.
    """

    mean: float
    std: float | None
    per_split: tuple[float, ...]
    splits: int
    n: int

    def __float__(self) -> float:
        return self.mean


def inception_score(
    logits: object, *, splits: int = 10, generator: torch.Generator | None = None
) -> InceptionScoreResult:
    """exp( mean_x KL( p(y|x) || p(y) ) ) (Salimans et al. 2016), from logits [N, classes].

    Args:
        logits: unnormalised class scores; published values use 1008 Inception logits *without* the bias.
        splits: near-equal parts (`torch.tensor_split`) that are scored separately.
        generator: CPU generator that shuffles the rows first. None keeps the order: right only if it is random already.

    Raises:
        ValueError: bad logits, or a split of fewer than one row.
    """
    logits = as_features("logits", logits, min_rows=1)
    splits = whole_number("splits", splits)
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits = {splits} for {len(logits)} rows: pass splits between 1 and the number of rows")
    logits = logits.to(work_device(logits)).double()
    if generator is not None:
        logits = logits[torch.randperm(len(logits), generator=generator).to(logits.device)]
    scores = []
    for part in logits.log_softmax(dim=1).tensor_split(splits):  # log p(y|x), [n, classes]
        log_marginal = part.logsumexp(dim=0) - math.log(len(part))  # log p(y), [classes]
        divergence = (part.exp() * (part - log_marginal)).nan_to_num(0.0).sum(dim=1)  # 0 (-inf + inf) is 0
        scores.append(math.exp(float(divergence.mean())))
    values = torch.tensor(scores, dtype=torch.float64)
    std = float(values.std()) if splits > 1 else None
    return InceptionScoreResult(float(values.mean()), std, tuple(scores), splits, len(logits))


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


def monge_distance(*, real: object, fake: object, generator: torch.Generator, directions: int = 1000) -> float:
    """MIND: 3 d x the sliced squared 2-Wasserstein distance of features (arXiv 2605.06797); not only for Gaussians.

    Sorting matches the projections of the two sets on each random unit direction. Shifting a set by mu reads 3 |mu|^2
    on average over directions.

    Args:
        real: features [n_real, d]; fake: features [n_fake, d]. The larger set is subsampled to the size of the smaller.
        generator: CPU generator for the subsample and the directions.
    """
    real, fake = as_features("real", real), as_features("fake", fake)
    same_width(real, fake)
    directions = whole_number("directions", directions)
    if directions < 1:
        raise ValueError(f"directions = {directions} must be positive: 1000 is the published number")
    device = work_device(real, fake)
    n, d = min(len(real), len(fake)), real.shape[1]
    sets = []
    for x in (real, fake):
        rows = torch.randperm(len(x), generator=generator)[:n] if len(x) > n else torch.arange(n)
        sets.append(x.to(device)[rows.to(device)].double())
    total = 0.0
    for start in range(0, directions, 64):
        theta = torch.randn(d, min(64, directions - start), generator=generator, dtype=torch.float64).to(device)
        theta = theta / theta.norm(dim=0)  # [d, t]
        a, b = ((x @ theta).sort(dim=0).values for x in sets)  # [n, t]
        total += float((a - b).square().mean(dim=0).sum())
    return 3 * d * total / directions
