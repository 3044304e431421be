"""The rule filter: cheap, deterministic, and able to say which rule a picture broke with which value.

Each factory returns a `Rule`; `apply_rules` opens every picture once and measures it by all of them, so that a picture
with two faults is logged with both.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from labkit.inspection.lot import Item, Lot
from labkit.inspection.provenance import provenance_problems


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: for the log. expected: what a good picture has, in words; both are hashed into the record.
        measure: (pixels [H, W, 3] uint8, item) -> value.
        fault: (value, values of the pictures that passed so far by name) -> what to log, or None if it is fine.
    """

    name: str
    expected: str
    measure: Callable[[np.ndarray, Item], Any]
    fault: Callable[[Any, Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Rejection:
    """One line of the log: which picture broke which rule, with which value, and what was expected."""

    item: str
    rule: str
    value: str
    expected: str


def apply_rules(lot: Lot, rules: Sequence[Rule]) -> list[Rejection]:
    """Every fault of every picture, in the order of the lot; pictures that cannot be read are faults as well."""
    if len({rule.name for rule in rules}) != len(rules):
        raise ValueError(f"two rules have one name: {sorted(rule.name for rule in rules)}; the log could not tell them")
    log = [Rejection(name, "readable", why, "a picture that opens") for name, why in lot.unreadable.items()]
    passed: dict[str, dict[str, Any]] = {rule.name: {} for rule in rules}
    for item in lot.items:
        pixels = item.open()
        for rule in rules:
            value = rule.measure(pixels, item)
            fault = rule.fault(value, passed[rule.name])
            if fault is None:
                passed[rule.name][item.name] = value
            else:
                log.append(Rejection(item.name, rule.name, fault, rule.expected))
    return log


def size_rule(width: int, height: int) -> Rule:
    """Exactly width x height pixels."""
    expected = f"{width} x {height} pixels"

    def measure(pixels: np.ndarray, item: Item) -> tuple[int, int]:
        return pixels.shape[1], pixels.shape[0]

    return Rule(
        "size", expected, measure, lambda size, _: None if size == (width, height) else f"{size[0]} x {size[1]}"
    )


def color_rule(
    rgb: tuple[int, int, int],
    *,
    tolerance: float,
    box: tuple[float, float, float, float] = (0, 0, 1, 1),
    name: str = "color",
) -> Rule:
    """The mean colour of a part of the picture is `rgb` within `tolerance` levels of 255 in every channel.

    Args:
        box: left, top, right, bottom as shares of the picture.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"box = {box} must be (left, top, right, bottom) as shares of the picture, 0 to 1")

    def measure(pixels: np.ndarray, item: Item) -> np.ndarray:
        h, w = pixels.shape[:2]
        rows = slice(int(top * h), max(int(top * h) + 1, round(bottom * h)))
        columns = slice(int(left * w), max(int(left * w) + 1, round(right * w)))
        return pixels[rows, columns].reshape(-1, 3).mean(axis=0)  # [3]

    def fault(mean: np.ndarray, _: Mapping[str, Any]) -> str | None:
        off = float(np.abs(mean - np.asarray(rgb)).max())
        return None if off <= tolerance else f"({', '.join(f'{v:.0f}' for v in mean)}), off by {off:.1f}"

    return Rule(name, f"mean colour {rgb} within {tolerance:g} in the part {box}", measure, fault)


def forbidden_color_rule(
    rgb: tuple[int, int, int], *, tolerance: float = 40, most: float = 0.005, name: str = "forbidden mark"
) -> Rule:
    """At most a share `most` of the pixels lies within `tolerance` levels of a colour, in every channel: a mark of a
    known colour (a red cross) must not be there."""

    def measure(pixels: np.ndarray, item: Item) -> float:
        off = np.abs(pixels.astype(np.int16) - np.asarray(rgb, dtype=np.int16)).max(axis=2)  # [H, W]
        return float((off <= tolerance).mean())

    expected = f"at most {most:.2%} of the pixels near {rgb} (within {tolerance:g})"
    return Rule(name, expected, measure, lambda share, _: None if share <= most else f"{share:.2%}")


def near_duplicate_rule(difference: float = 2.0, *, side: int = 16) -> Rule:
    """No earlier picture of the lot is the same at side x side pixels, up to a mean difference in levels of 255.

    The first of its kind passes. A copy that was scaled, saved again or lightly retouched is found; a mirrored or
    cropped one is not.
    """

    def measure(pixels: np.ndarray, item: Item) -> np.ndarray:
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.int16).reshape(-1)  # [side * side * 3]

    def fault(small: np.ndarray, earlier: Mapping[str, np.ndarray]) -> str | None:
        if not earlier:
            return None
        gaps = np.abs(np.stack(list(earlier.values())) - small).mean(axis=1)
        nearest = int(gaps.argmin())
        return None if gaps[nearest] > difference else f"like {list(earlier)[nearest]}, off by {gaps[nearest]:.2f}"

    return Rule(
        "near-duplicate", f"differs from every other picture by more than {difference:g} levels", measure, fault
    )


def forbidden_words_rule(words: Sequence[str]) -> Rule:
    """None of the words stands in the item's text (prompt or caption); case and full width do not matter."""
    wanted = {_plain(word): word for word in words}

    def fault(text: str, _: Mapping[str, Any]) -> str | None:
        found = [word for plain, word in wanted.items() if plain in text]
        return ", ".join(found) or None

    expected = f"none of: {', '.join(words)}"
    return Rule("forbidden words", expected, lambda pixels, item: _plain(item.text), fault)


def provenance_rule(fields: Sequence[str] = ()) -> Rule:
    """The PNG carries provenance that fits its pixels, with these fields (see `labkit.inspection.provenance`)."""

    def measure(pixels: np.ndarray, item: Item) -> list[str]:
        return provenance_problems(item.path, fields)

    expected = f"provenance that fits the pixels{', with ' + ', '.join(fields) if fields else ''}"
    return Rule("provenance", expected, measure, lambda problems, _: "; ".join(problems) or None)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
