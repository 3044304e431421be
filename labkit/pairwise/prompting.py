"""Comparative prompting: moving the text embedding of a class by what tells it from another class.

The update itself is `equations.comparative_prompt`; here it is done for all classes of a problem. Only the second class
of a pair moves. Pairs come from a validation split here, never from the test set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.pairwise.equations import comparative_prompt

Comparative = tuple[int, int, Tensor]
"""(class i, class j, embedding [d] of how i differs from j)"""


def comparative_prompts(
    classes: Tensor, comparatives: Sequence[Comparative], alpha: float, beta: float = 1.0
) -> Tensor:
    """Updated class embeddings [C, d] from unit embeddings `classes` [C, d]; classes that are never second stay.

    Raises:
        ValueError: alpha outside [0, 1], a class number that does not exist, or a class compared with itself.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected a number from 0 to 1")
    others: dict[int, list[tuple[Tensor, Tensor]]] = {}  # class j -> (e_i, t_ij) of each pair
    for i, j, text in comparatives:
        if i == j or not (0 <= i < len(classes) and 0 <= j < len(classes)):
            raise ValueError(f"classes {i} and {j}: expected two different numbers below {len(classes)}")
        others.setdefault(j, []).append((classes[i], text))
    updated = classes.clone()
    if alpha < 1:
        for j, own in others.items():
            e_i, t_ij = (torch.stack(vectors) for vectors in zip(*own, strict=True))  # [n, d] each
            updated[j] = comparative_prompt(e_i, classes[j], t_ij, alpha, beta)
    return updated


def mean_gap(classes: Tensor, comparatives: Sequence[Comparative]) -> float:
    """Mean length of e_i - e_j over the pairs: the beta that makes the update's lengths agree."""
    return float(torch.stack([(classes[i] - classes[j]).norm() for i, j, _ in comparatives]).mean())


def confused_pairs(predicted: Tensor, truth: Tensor, k: int) -> list[tuple[int, int]]:
    """The `k` unordered pairs of classes that are confused most often, most confused first, from predictions and true
    classes [N] of a validation split; pairs that are never confused are left out."""
    n = int(max(predicted.max(), truth.max())) + 1
    counts = torch.bincount(truth * n + predicted, minlength=n * n).reshape(n, n)
    both = (counts + counts.T).triu(1)  # [C, C]
    order = both.flatten().argsort(descending=True, stable=True)[:k].tolist()
    return [divmod(place, n) for place in order if both.flatten()[place] > 0]


def shuffled_texts(comparatives: Sequence[Comparative], generator: torch.Generator) -> list[Comparative]:
    """The control: the same pairs with one another's texts, none with its own. Gains that survive it are not due to
    what the texts say.

    Raises:
        ValueError: fewer than two comparatives: there is no other text to give.
    """
    n = len(comparatives)
    if n < 2:
        raise ValueError(f"{n} comparatives cannot exchange their texts: pass at least 2")
    cycle = torch.randperm(n, generator=generator).tolist()
    donor = {k: cycle[(place + 1) % n] for place, k in enumerate(cycle)}  # one cycle through all: nobody keeps its own
    return [(i, j, comparatives[donor[k]][2]) for k, (i, j, _) in enumerate(comparatives)]
