"""Pairs of images whose attributes are known, and which comparisons they are allowed to name.

Three kinds: natural (two images as they come), counterfactual (one attribute changed, everything else kept) and
nuisance-only (nothing changed but the photograph). Comparisons can be held out: a value pair such as red-green hair is
then never named in training, in either order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.pairwise.wording import Statement, Wording

Values = Mapping[str, str]
Comparison = tuple[str, frozenset[str]]
"""(attribute, {value, other value})"""


@dataclass(frozen=True)
class Pair:
    """Two images of one collection and what shall be said about them."""

    first: int
    second: int
    statement: Statement

    @property
    def id(self) -> str:
        said = ";".join(f"{a}={v}>{self.statement.second[a]}" for a, v in self.statement.first.items())
        return f"{self.first}-{self.second}:{said}"

    def mirrored(self) -> Pair:
        return Pair(self.second, self.first, self.statement.mirrored())


def comparable(first: Values, second: Values, wording: Wording, held_out: Collection[Comparison] = ()) -> list[str]:
    """Attributes in which the two differ, whose values both have words, and whose comparison is not held out."""
    return [
        a
        for a, words in wording.items()
        if first[a] != second[a]
        and first[a] in words
        and second[a] in words
        and (a, frozenset((first[a], second[a]))) not in held_out
    ]


def all_comparisons(wording: Wording) -> list[Comparison]:
    """Every undirected comparison that the wording can express, in a fixed order."""
    return [
        (a, frozenset((v, w)))
        for a, words in wording.items()
        for i, v in enumerate(words)
        for w in list(words)[i + 1 :]
    ]


def choose_held_out(wording: Wording, share: float, generator: torch.Generator) -> set[Comparison]:
    """A random share of the comparisons of every attribute with at least three values (others would vanish)."""
    chosen: set[Comparison] = set()
    for attribute in wording:
        own = [c for c in all_comparisons(wording) if c[0] == attribute]
        if len(own) < 3:
            continue
        order = torch.randperm(len(own), generator=generator).tolist()
        chosen.update(own[k] for k in order[: max(1, round(share * len(own)))])
    return chosen


def natural_pairs(
    values: Sequence[Values],
    n: int,
    wording: Wording,
    generator: torch.Generator,
    *,
    named: int = 1,
    held_out: Collection[Comparison] = (),
    only_held_out: bool = False,
) -> list[Pair]:
    """`n` pairs of different images drawn at random; each names up to `named` attributes in which they differ.

    held_out: comparisons that are never named. only_held_out: name those alone (the test of transfer).

    Raises:
        ValueError: fewer than two images, named < 1, or no pair with anything to name in 200 n draws.
    """
    if len(values) < 2 or named < 1:
        raise ValueError(f"{len(values)} images and named = {named}: expected at least 2 images and 1 attribute")
    forbidden = set(held_out)
    if only_held_out:
        forbidden = set(all_comparisons(wording)) - forbidden
    pairs: list[Pair] = []
    for _ in range(200):
        i, j = torch.randint(len(values), (2, n), generator=generator).tolist()
        for a, b in zip(i, j, strict=True):
            choice = comparable(values[a], values[b], wording, forbidden) if a != b else []
            if choice and len(pairs) < n:
                count = min(len(choice), 1 + int(torch.randint(named, (1,), generator=generator)))
                order = torch.randperm(len(choice), generator=generator).tolist()
                chosen = [choice[k] for k in order[:count]]
                said = Statement({c: values[a][c] for c in chosen}, {c: values[b][c] for c in chosen})
                pairs.append(Pair(a, b, said))
        if len(pairs) == n:
            return pairs
    raise ValueError(f"only {len(pairs)} of {n} pairs differ in something that may be named: widen wording or images")


def counterfactual_pairs(
    values: Sequence[Values], changed: Sequence[Values], wording: Wording, held_out: Collection[Comparison] = ()
) -> list[Pair]:
    """Pairs (i, N + i) of an image and its edited copy, the N copies following the N originals in one collection.

    Raises:
        ValueError: an edited copy that differs in nothing that the wording can express.
    """
    pairs = []
    for i, (old, new) in enumerate(zip(values, changed, strict=True)):
        names = comparable(old, new, wording, held_out)
        if not names:
            raise ValueError(f"copy {i} differs in nothing that can be named: change an attribute of the wording")
        said = Statement({names[0]: old[names[0]]}, {names[0]: new[names[0]]})
        pairs.append(Pair(i, len(values) + i, said))
    return pairs


def matching(values: Tensor, named: Tensor) -> Tensor:
    """bool [N, M]: row i of codes `values` [N, A] has every value that row j of `named` [M, A] names (-1: not named).

    With the attributes of both images side by side, this says which sentence is true of which pair. A row that names
    nothing is true of everything ("a portrait").
    """
    return ((values[:, None] == named[None]) | (named[None] < 0)).all(-1)


class Codes:
    """Attribute values as numbers, so that a whole batch of statements is compared at once (see `matching`)."""

    def __init__(self, wording: Wording):
        self.numbers = {a: {v: k for k, v in enumerate(words)} for a, words in wording.items()}

    def of(self, values: Sequence[Values]) -> Tensor:
        """int64 [N, A]; -1 for an attribute that is not named or has no words."""
        rows = [[words.get(row.get(a, ""), -1) for a, words in self.numbers.items()] for row in values]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(values), len(self.numbers))

    def truth(self, first: Sequence[Values], second: Sequence[Values], said: Sequence[Statement]) -> Tensor:
        """bool [N, M]: statement j is true of pair i (all attributes of pair i's images are given). A statement without
        attributes, from captions alone, is not known to be true of any."""
        whole = torch.cat([self.of(first), self.of(second)], 1)  # [N, 2A]
        named = torch.cat([self.of([s.first for s in said]), self.of([s.second for s in said])], 1)  # [M, 2A]
        return matching(whole, named) & (named >= 0).any(-1)
