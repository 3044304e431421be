"""A bank of sentence frames: one difference, said in many ways.

A model that has learnt one frame may have learnt that frame alone. So the frame is a variable of the experiment: some
are trained, others are held out, and what carries over tells words from habits. Every frame comes in two versions, as
every sentence does: one that speaks of the first image first (or alone), one that speaks of the second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.pairwise.wording import ORDERS, Statement, Wording, in_words


@dataclass(frozen=True)
class Frame:
    """A way of saying that the first image has {a} and the second has {b}.

    first, second: the version for the clause order "first-second", and that for "second-first".
    """

    first: str
    second: str


FRAMES = {
    # trained
    "plain": Frame("the first has {a}, the second has {b}", "the second has {b}, the first has {a}"),
    "bare": Frame("first {a}, second {b}", "second {b}, first {a}"),
    "not": Frame("the first has {a}, not {b}", "the second has {b}, not {a}"),
    "but": Frame("the first has {a} but the second has {b}", "the second has {b} but the first has {a}"),
    # held out: the same two words "first" and "second", other grammar
    "while": Frame("while the second has {b}, the first has {a}", "while the first has {a}, the second has {b}"),
    "only": Frame("only the first has {a}", "only the second has {b}"),
    "unlike": Frame("unlike the second, the first has {a}", "unlike the first, the second has {b}"),
    "after": Frame("{a} in the first, {b} in the second", "{b} in the second, {a} in the first"),
    "negated": Frame("it is not the second that has {a}", "it is not the first that has {b}"),
    # held out: other words for the two images
    "sides": Frame("left: {a}; right: {b}", "right: {b}; left: {a}"),
    "numbers": Frame("in picture one {a}, in picture two {b}", "in picture two {b}, in picture one {a}"),
}
TRAINED = ("plain", "bare", "not", "but")
NEW_GRAMMAR = ("while", "only", "unlike", "after", "negated")
NEW_MARKERS = ("sides", "numbers")

RANKED = {
    "skin": (("light", "tan", "brown", "dark"), "lighter skin", "darker skin"),
    "hair_style": (("short", "bob", "long"), "shorter hair", "longer hair"),
}
"""Attributes with an order: the values, and the words for "comes earlier" and "comes later"."""


def frame_words() -> list[str]:
    """The words of all frames and degrees that are not about a portrait, for `with_words`."""
    said = [text for frame in FRAMES.values() for text in (frame.first, frame.second)]
    said += [f"{less} {more} than" for _, less, more in RANKED.values()]
    words = re.findall("[a-z]+", re.sub(r"{.}", "", " ".join(said)))
    return [word for word in dict.fromkeys(words) if word not in ("in", "hair", "skin")]


def phrase(statement: Statement, wording: Wording, frame: str | Frame, *, order: str = "first-second") -> str:
    """The statement in a frame: one of the bank, by name, or one of your own.

    Raises:
        ValueError: unknown frame, order, attribute or value, or nothing that differs to say.
    """
    if not isinstance(frame, Frame) and frame not in FRAMES:
        raise ValueError(f"unknown frame {frame!r}: expected one of {', '.join(FRAMES)}")
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, expected one of {', '.join(ORDERS)}")
    if not statement.attributes or statement.first == statement.second:
        raise ValueError("the statement names no difference: give at least one attribute with two values")
    words = {"a": in_words(statement.first, wording), "b": in_words(statement.second, wording)}
    chosen = frame if isinstance(frame, Frame) else FRAMES[frame]
    return (chosen.first if order == ORDERS[0] else chosen.second).format(**words)


def comparative(statement: Statement, *, order: str = "first-second") -> str:
    """ "the first has darker skin than the second": the statement as a comparison by degree (see `RANKED`).

    Raises:
        ValueError: unknown order, more than one attribute, or values without an order.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, expected one of {', '.join(ORDERS)}")
    attribute = statement.attributes[0] if len(statement.attributes) == 1 else ""
    values, less, more = RANKED.get(attribute, ((), "", ""))
    first, second = statement.first.get(attribute), statement.second.get(attribute)
    if first not in values or second not in values or first == second:
        raise ValueError(f"{dict(statement.first)} cannot be compared by degree: name one of {', '.join(RANKED)}")
    rises = values.index(first) > values.index(second)
    if order == ORDERS[0]:
        return f"the first has {more if rises else less} than the second"
    return f"the second has {less if rises else more} than the first"
