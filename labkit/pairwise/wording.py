"""Difference sentences from attributes, and attributes from difference sentences.

A statement names some attributes and, for each, the value of the first and of the second image. Its sentence has one
clause per image, in either order: "the first has red hair, the second has black hair" and "the second has black hair,
the first has red hair" say the same. Only a measurement with both orders can tell reading from guessing by position.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labkit.portraits import ATTRIBUTES

Wording = Mapping[str, Mapping[str, str]]
"""attribute -> value -> words ("red hair"). The words of two values never contain one another as whole words, except
where the longer one is meant ("glasses" in "no glasses"): `read` takes the longest."""

ORDERS = ("first-second", "second-first")
_FORMS = ("the {which} has {words}", "{which} has {words}", "{which} with {words}")
FORMS = len(_FORMS)


def portrait_wording(attributes: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """Words for the attributes of portraits, close to those of PortraitCLIP's captions."""
    color = {a: [v for v in ATTRIBUTES[a] if v != "none"] for a in ("hair_color", "clothes", "background")}
    styles = {
        "avataaars": "flat style",
        "personas": "simple style",
        "toon-head": "cartoon style",
        "micah": "outlined style",
        "open-peeps": "hand-drawn style",
    }
    special = {"bald": "a bald head", "bun": "hair in a bun"}
    wording = {
        "style": styles,
        "hair_style": {v: special.get(v, f"{v} hair") for v in ATTRIBUTES["hair_style"]},
        "hair_color": {v: f"{v} hair" for v in color["hair_color"]},
        "skin": {v: f"{v} skin" for v in ATTRIBUTES["skin"]},
        "mood": {v: f"a {v} face" for v in ATTRIBUTES["mood"]},
        "glasses": {"none": "no glasses", "glasses": "glasses", "sunglasses": "sunglasses"},
        "beard": {"none": "no beard", "beard": "a beard", "moustache": "a moustache"},
        "clothes": {v: f"{v} clothes" for v in color["clothes"]},
        "background": {v: f"a {'sky blue' if v == 'sky' else v} background" for v in color["background"]},
    }
    chosen = tuple(wording) if attributes is None else tuple(attributes)
    for attribute in chosen:
        if attribute not in wording:
            raise ValueError(f"unknown attribute {attribute!r}: expected one of {', '.join(wording)}")
    return {a: wording[a] for a in chosen}


@dataclass(frozen=True)
class Statement:
    """What a sentence says: attribute -> value, for the first and for the second image."""

    first: Mapping[str, str]
    second: Mapping[str, str]

    def __post_init__(self) -> None:
        if set(self.first) != set(self.second):
            raise ValueError(
                f"the first names {sorted(self.first)}, the second {sorted(self.second)}: name the same attributes"
            )

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(self.first)

    def mirrored(self) -> Statement:
        """The same statement with the images exchanged."""
        return Statement(self.second, self.first)


def sentence(statement: Statement, wording: Wording, *, order: str = "first-second", form: int = 0) -> str:
    """The statement in words. form: which paraphrase, 0 <= form < FORMS.

    Raises:
        ValueError: unknown order, form, attribute or value, or nothing that differs to say.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, expected one of {', '.join(ORDERS)}")
    if not 0 <= form < FORMS:
        raise ValueError(f"form is {form}, expected 0 to {FORMS - 1}")
    if not statement.attributes or statement.first == statement.second:
        raise ValueError("the statement names no difference: give at least one attribute with two values")
    clauses = {
        "first": _FORMS[form].format(which="first", words=in_words(statement.first, wording)),
        "second": _FORMS[form].format(which="second", words=in_words(statement.second, wording)),
    }
    return ", ".join(clauses[which] for which in order.split("-"))


def in_words(values: Mapping[str, str], wording: Wording) -> str:
    """ "red hair and a sad face".

    Raises:
        ValueError: unknown attribute or value.
    """
    for attribute, value in values.items():
        if attribute not in wording:
            raise ValueError(f"unknown attribute {attribute!r}: expected one of {', '.join(wording)}")
        if value not in wording[attribute]:
            raise ValueError(f"unknown {attribute} {value!r}: expected one of {', '.join(wording[attribute])}")
    return " and ".join(wording[a][v] for a, v in values.items())


def swap_markers(text: str) -> str:
    """Exchange the words "first" and "second": the mirrored statement in the other clause order, for any text."""
    return re.sub(
        r"\b(first|second)\b", lambda m: {"first": "second", "second": "first"}[m[1].lower()], text, flags=re.I
    )


def read(text: str, wording: Wording) -> tuple[dict[str, str], dict[str, str]]:
    """What a sentence claims: (values of the first image, values of the second), by looking for the wording's phrases.

    A clause runs from one marker ("first", "second") to the next. Longer phrases win; two values of one attribute in
    a clause give the value "?" (a contradiction).
    """
    phrases = sorted(((w.lower(), a, v) for a, values in wording.items() for v, w in values.items()), reverse=True)
    phrases.sort(key=lambda p: -len(p[0]))
    claims: dict[str, dict[str, str]] = {"first": {}, "second": {}}
    parts = re.split(r"\b(first|second)\b", text.lower())
    for which, clause in zip(parts[1::2], parts[2::2], strict=True):
        for words, attribute, value in phrases:
            pattern = rf"(?<![\w-]){re.escape(words)}(?![\w-])"
            if re.search(pattern, clause):
                clause = re.sub(pattern, "|", clause)
                claims[which][attribute] = value if attribute not in claims[which] else "?"
    return claims["first"], claims["second"]


def directed_statements(wording: Wording) -> list[Statement]:
    """Every directed statement about one attribute: (v, w) for each ordered pair of its values."""
    return [Statement({a: v}, {a: w}) for a, words in wording.items() for v in words for w in words if v != w]


def pick(key: str, n: int) -> int:
    """A number in 0 .. n-1 that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % n
