"""Drawing specs at random, with marginals, correlations and rare combinations under control."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from labkit.portraits.attributes import ATTRIBUTES, TRAINING_STYLES, allowed_values, check_value, colored_hair
from labkit.portraits.spec import PortraitSpec

Marginals = Mapping[str, Mapping[str, float]]
Combination = Mapping[str, str]

DEFAULT_WEIGHTS: Marginals = {"glasses": {"none": 2.0}, "beard": {"none": 2.0}}
"""Relative weights that differ from 1: half of the people wear no glasses, half have no beard."""


def contains(spec: PortraitSpec, combination: Combination) -> bool:
    """True if the spec has every value of the combination."""
    return all(getattr(spec, attribute) == value for attribute, value in combination.items())


def sample_specs(
    n: int,
    *,
    seed: int,
    styles: Sequence[str] = TRAINING_STYLES,
    marginals: Marginals | None = None,
    given: Sequence[tuple[Combination, Marginals]] = (),
    exclude: Iterable[Combination] = (),
    rare: Sequence[tuple[Combination, float]] = (),
    avoid: Collection[PortraitSpec] = (),
) -> list[PortraitSpec]:
    """Draw `n` specs; spec `i` depends on `seed` and `i` alone, so a longer list starts with the shorter one.

    Args:
        styles: drawn uniformly unless `marginals["style"]` says otherwise.
        marginals: attribute -> value -> relative weight (values not named keep weight 1, or `DEFAULT_WEIGHTS`):
        skewed data.
        given: `(condition, marginals)`: weights used when the attributes drawn before (in the order of
        `ATTRIBUTES`) fulfil the
            condition: correlated data.
        exclude: combinations that never occur.
        rare: `(combination, share)`: the combination occurs in exactly this expected share of the specs.
        avoid: specs that must not occur (a validation set).

    Raises:
        ValueError: unknown names, a share outside [0, 1], or conditions that leave nothing to draw.
    """
    if n < 0:
        raise ValueError(f"n = {n}: expected a non-negative number of specs")
    exclude = list(exclude)
    _check(marginals or {}, *(m for _, m in given))
    for combination in [*exclude, *(c for c, _ in rare), *(c for c, _ in given)]:
        for attribute, value in combination.items():
            check_value(attribute, value)
    if any(not 0 <= share <= 1 for _, share in rare) or sum(share for _, share in rare) > 1:
        raise ValueError(f"shares {[share for _, share in rare]}: expected numbers in [0, 1] with a sum of at most 1")
    base = {**{k: dict(v) for k, v in DEFAULT_WEIGHTS.items()}}
    for attribute, weights in (marginals or {}).items():
        base[attribute] = {**base.get(attribute, {}), **weights}
    avoid = set(avoid)
    return [_draw(np.random.default_rng([seed, i]), styles, base, given, exclude, rare, avoid) for i in range(n)]


def mislabelled(spec: PortraitSpec, rng: np.random.Generator, probability: float) -> PortraitSpec:
    """What a careless caption says about `spec`: every attribute but the style is replaced, with `probability`, by
    another value that the style can draw. A head that becomes bald loses its hair colour; one that grows hair gets a
    random one.

    Raises:
        ValueError: `probability` outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability}: expected a number in [0, 1]")
    said = spec.to_dict()
    for attribute in list(ATTRIBUTES)[1:]:
        values = colored_hair() if attribute == "hair_color" else allowed_values(spec.style, attribute)
        others = [value for value in values if value != said[attribute]]
        if attribute == "hair_color" and said["hair_style"] == "bald":
            said[attribute] = "none"
        elif rng.random() < probability or said[attribute] not in values:  # the latter: hair on a bald head
            said[attribute] = others[int(rng.integers(len(others)))] if others else said[attribute]
    return PortraitSpec(**said)


def _check(*all_marginals: Marginals) -> None:
    for marginals in all_marginals:
        for attribute, weights in marginals.items():
            for value, weight in weights.items():
                check_value(attribute, value)
                if not weight >= 0:
                    raise ValueError(f"weight {weight} of {attribute} {value!r}: expected a number >= 0")


def _draw(rng, styles, base, given, exclude, rare, avoid) -> PortraitSpec:
    u = rng.random()
    forced: Combination = {}
    for combination, share in rare:
        if u < share:
            forced = combination
            break
        u -= share
    for _ in range(10_000):
        spec = _propose(rng, styles, base, given, forced)
        if spec is None or spec in avoid or any(contains(spec, c) for c in exclude):
            continue
        if any(contains(spec, c) for c, _ in rare if c is not forced):
            continue
        return spec
    raise ValueError("no spec fulfils the conditions: relax `exclude`, `rare` or `marginals`")


def _propose(rng, styles, base, given, forced) -> PortraitSpec | None:
    """One spec attribute by attribute; None if `forced` asks for what the drawn style cannot draw."""
    drawn: dict[str, str] = {}
    for attribute in ATTRIBUTES:
        values = tuple(styles) if attribute == "style" else allowed_values(drawn["style"], attribute)
        if attribute == "hair_color":
            values = ("none",) if drawn["hair_style"] == "bald" else tuple(v for v in values if v != "none")
        if attribute in forced:
            if forced[attribute] not in values:
                return None
            drawn[attribute] = forced[attribute]
            continue
        weights = dict(base.get(attribute, {}))
        for condition, marginals in given:
            if attribute in marginals and all(drawn.get(a) == v for a, v in condition.items()):
                weights.update(marginals[attribute])
        p = np.array([weights.get(v, 1.0) for v in values])
        if p.sum() == 0:
            return None
        drawn[attribute] = values[int(rng.choice(len(values), p=p / p.sum()))]
    return PortraitSpec(**drawn)
