"""Measuring whether a model reads differences: order-proof, per attribute, with intervals over images.

M1 mirrored choice: the true sentence against its mirror, in both clause orders. A model that only looks at the place of
a word gets one order right and the other wrong: 50 % on average, and 0 % "both right".
M2 retrieval: the true sentence among all directed one-attribute sentences.
M3 ranking: images ordered by u(x) . t, judged by AUROC.
Retention: zero-shot accuracy with plain captions, before and after.
The paper's own test is `difference_based_classification`: over all cross pairs it equals the AUROC of M3, so it says
nothing about the direction words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.pairwise.equations import difference, unit
from labkit.pairwise.pairs import Pair, Values
from labkit.pairwise.towers import Encoder
from labkit.pairwise.wording import ORDERS, Statement, Wording, directed_statements, sentence

Say = Callable[..., str]
"""(statement, wording, order=...) -> sentence: `sentence`, or `phrase` with a frame of the bank"""


@dataclass(frozen=True)
class PairReport:
    """M1 of one model on one list of pairs; all shares from 0 to 1.

    m1, low, high   counterbalanced accuracy and its 95 % interval (bootstrap over images)
    both_right      share of pairs that are right in both clause orders
    by_order        accuracy for each clause order alone
    per_attribute   attribute -> (M1, number of pairs whose statement names it alone)
    """

    m1: float
    low: float
    high: float
    both_right: float
    by_order: dict[str, float]
    per_attribute: dict[str, tuple[float, int]]
    pairs: int


def directions(images: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Unit differences [P, d] of the pairs."""
    index = torch.tensor([(p.first, p.second) for p in pairs])
    return difference(images[index[:, 0]], images[index[:, 1]])


@torch.no_grad()
def mirrored_choice(
    encode: Encoder, images: Tensor, pairs: Sequence[Pair], wording: Wording, *, say: Say = sentence
) -> Tensor:
    """Outcomes [P, 2]: 1 where the true sentence beats its mirror, 0.5 at a tie, for each clause order."""
    d, columns = directions(images, pairs), []
    for order in ORDERS:
        true = encode([say(p.statement, wording, order=order) for p in pairs])
        back = encode([say(p.statement.mirrored(), wording, order=order) for p in pairs])
        columns.append(_wins((true * d).sum(-1) - (back * d).sum(-1)))
    return torch.stack(columns, 1)


def _wins(margin: Tensor) -> Tensor:
    return (margin > 0).double() + 0.5 * (margin == 0).double()


def evaluate_pairs(
    encode: Encoder,
    images: Tensor,
    pairs: Sequence[Pair],
    wording: Wording,
    *,
    generator: torch.Generator,
    say: Say = sentence,
    copies_of: int | None = None,
    resamples: int = 1000,
) -> PairReport:
    """M1 with interval and rows per attribute. copies_of: number of originals if pairs are (image, edited copy): both
    then count as one image in the bootstrap.

    Raises:
        ValueError: no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs: make some with natural_pairs or counterfactual_pairs")
    won = mirrored_choice(encode, images, pairs, wording, say=say)  # [P, 2]
    score = won.mean(1)
    low, high = image_bootstrap(score, pairs, generator=generator, copies_of=copies_of, resamples=resamples)
    rows: dict[str, list[float]] = {}
    for pair, value in zip(pairs, score.tolist(), strict=True):
        if len(pair.statement.attributes) == 1:
            rows.setdefault(pair.statement.attributes[0], []).append(value)
    return PairReport(
        m1=float(score.mean()),
        low=low,
        high=high,
        both_right=float((won == 1).all(1).double().mean()),
        by_order={order: float(won[:, k].mean()) for k, order in enumerate(ORDERS)},
        per_attribute={a: (sum(rows[a]) / len(rows[a]), len(rows[a])) for a in wording if a in rows},
        pairs=len(pairs),
    )


def image_bootstrap(
    outcome: Tensor,
    pairs: Sequence[Pair],
    *,
    generator: torch.Generator,
    copies_of: int | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the mean outcome [P], resampling images: a pair weighs the product of its images' counts.

    Pairs share images, so resampling pairs would count the same image as new evidence and give intervals that are too
    narrow.
    """
    index = torch.tensor([(p.first, p.second) for p in pairs])  # [P, 2]
    if copies_of is not None:
        index = index % copies_of
    images, index = index.unique(return_inverse=True)
    n = len(images)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    counts = torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(resamples, n).double())
    first, second = counts[:, index[:, 0]], counts[:, index[:, 1]]  # [R, P]
    weights = torch.where(index[:, 0] == index[:, 1], first, first * second)
    total = weights.sum(1)
    means = (weights @ outcome.double().cpu())[total > 0] / total[total > 0]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(means, tails).tolist()
    return low, high


@torch.no_grad()
def difference_retrieval(
    encode: Encoder, images: Tensor, pairs: Sequence[Pair], among: Sequence[Statement], wording: Wording
) -> dict[str, float]:
    """M2: rank of each pair's statement among `among` (both clause orders averaged): r_at_1, mrr, and their chances.

    Raises:
        ValueError: a pair's statement is not among the candidates.
    """
    place = {_key(s): k for k, s in enumerate(among)}
    missing = [p for p in pairs if _key(p.statement) not in place]
    if missing:
        raise ValueError(f"{len(missing)} statements are not among the candidates: pass directed_statements(wording)")
    texts = _both_orders(encode, among, wording)  # [K, d]
    scores = directions(images, pairs) @ texts.T  # [P, K]
    own = scores[torch.arange(len(pairs)), [place[_key(p.statement)] for p in pairs]]
    rank = (scores > own[:, None]).sum(1) + 1
    k = len(among)
    return {
        "r_at_1": float((rank == 1).double().mean()),
        "mrr": float((1 / rank.double()).mean()),
        "chance_r_at_1": 1 / k,
        "chance_mrr": sum(1 / i for i in range(1, k + 1)) / k,
    }


def _key(statement: Statement) -> tuple:
    return tuple(sorted(statement.first.items())), tuple(sorted(statement.second.items()))


@torch.no_grad()
def difference_based_classification(
    encode: Encoder, images: Tensor, pairs: Sequence[Pair], texts: Sequence[str]
) -> float:
    """Difference-based classification, PC-CLIP's own test (2409.09721): the share of pairs with
    cos(text, first - second) > 0 (tie: half)."""
    return float(_wins((encode(texts) * directions(images, pairs)).sum(-1)).mean())


@torch.no_grad()
def attribute_ranking(encode: Encoder, images: Tensor, values: Sequence[Values], wording: Wording) -> dict[str, float]:
    """M3: attribute -> AUROC of u(x) . t("first v, second w") for telling v from w, averaged over its value pairs that
    have images of both kinds; both clause orders averaged."""
    result: dict[str, list[float]] = {}
    said = directed_statements(wording)
    for statement, text in zip(said, _both_orders(encode, said, wording), strict=True):
        attribute = statement.attributes[0]
        v, w = statement.first[attribute], statement.second[attribute]
        has = [torch.tensor([row[attribute] == x for row in values]) for x in (v, w)]
        if has[0].any() and has[1].any():
            result.setdefault(attribute, []).append(auroc(images[has[0]] @ text, images[has[1]] @ text))
    return {attribute: sum(aurocs) / len(aurocs) for attribute, aurocs in result.items()}


@torch.no_grad()
def mirror_cosine(encode: Encoder, texts: Sequence[str], mirrors: Sequence[str]) -> float:
    """Mean cosine of sentences and their mirrors, from -1 to 1: a perfect reader of signed differences has -1, and
    nothing in a text tower makes it so by construction."""
    return float((encode(texts) * encode(mirrors)).sum(-1).mean())


def _both_orders(encode: Encoder, said: Sequence[Statement], wording: Wording) -> Tensor:
    """Unit vectors [K, d] of statements, the mean of both clause orders."""
    return unit(sum(encode([sentence(s, wording, order=o) for s in said]) for o in ORDERS))


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Share of (positive, negative) score pairs in the right order, ties half: the area under the ROC curve."""
    return float(_wins(positive[:, None] - negative[None]).mean())


@torch.no_grad()
def zero_shot(
    encode: Encoder, images: Tensor, values: Sequence[Values], prompts: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, float]:
    """Retention: per attribute, share of images whose nearest value is the true one; a value is the mean of its
    prompts. Images whose value has no prompt are left out."""
    result = {}
    for attribute, texts in prompts.items():
        names = list(texts)
        classes = torch.stack([unit(encode(texts[v]).mean(0)) for v in names])  # [V, d]
        rows = [i for i, row in enumerate(values) if row[attribute] in texts]
        if rows:
            truth = torch.tensor([names.index(values[i][attribute]) for i in rows])
            result[attribute] = float(((images[rows] @ classes.T).argmax(1).cpu() == truth).double().mean())
    return result
