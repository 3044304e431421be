"""Reading English captions back: which value does a prompt name for which attribute?

The inverse of `labkit.portraits.captions.describe` for all of its English paraphrases. Scorers that take plain prompts
need it; whoever still has the `Caption` or the spec does not.
"""

from __future__ import annotations

import re
from functools import cache

from labkit.portraits.attributes import ATTRIBUTES, HELD_OUT_STYLES
from labkit.portraits.captions import TEMPLATES, describe, value_name

_FRAMES = {  # what stands around a value; {} is the value
    "style": (r"\b{} (?:portrait|style)\b",),
    "skin": (r"\b{} skin\b",),
    "mood": (r"\b{} (?:person|face)\b",),
    "glasses": (r"(?:^|, | and |with ){}(?=,| and | in a | before |$)",),
    "beard": (r"(?:^|, | and |with ){}(?=,| and | in a | before |$)",),
    "clothes": (r"\bwearing {} clothes\b", r"\b{} shirt\b", r"\bdressed in {}\b"),
    "background": (r"\b{} background\b", r"\bbefore a {} wall\b", r"^on {},"),
}


@cache
def _patterns() -> dict[str, list[tuple[str, re.Pattern]]]:
    """Attribute -> (value, pattern) for everything but hair."""
    return {
        attribute: [
            (value, re.compile("|".join(frame.format(re.escape(value_name(attribute, value))) for frame in frames)))
            for value in ATTRIBUTES[attribute]
        ]
        for attribute, frames in _FRAMES.items()
    }


@cache
def _hair_pattern() -> re.Pattern:
    styles = "|".join(v for v in ATTRIBUTES["hair_style"] if v not in ("bun", "bald"))
    colors = "|".join(v for v in ATTRIBUTES["hair_color"] if v != "none")
    return re.compile(rf"(?:\b(?P<style>{styles}) )?(?:\b(?P<color>{colors}) )?\bhair\b(?P<bun> in a bun)?")


def parse_caption(text: str) -> dict[str, str]:
    """Attribute -> value for everything that an English caption names; {} for "a portrait of a person".

    A bald head names no hair colour. Text that no caption template makes is read as far as it follows their wording.
    """
    text = text.strip().lower()
    found = {
        attribute: value
        for attribute, values in _patterns().items()
        for value, pattern in values
        if pattern.search(text)
    }
    if re.search(r"\ba bald head\b", text):
        found["hair_style"] = "bald"
    elif hair := _hair_pattern().search(text):
        style = "bun" if hair["bun"] else hair["style"]
        found |= {k: v for k, v in (("hair_style", style), ("hair_color", hair["color"])) if v}
    return {attribute: found[attribute] for attribute in ATTRIBUTES if attribute in found}


def open_attributes(text: str) -> frozenset[str]:
    """The attributes that an English caption leaves open; a bald head leaves no hair colour open."""
    named = parse_caption(text)
    closed = {*named, "hair_color"} if named.get("hair_style") == "bald" else set(named)
    return frozenset(ATTRIBUTES) - closed


@cache
def known_words() -> frozenset[str]:
    """Every word that an English caption of a training portrait can contain, in lower case."""
    wholes = [{"style": "avataaars", "mood": "happy", "skin": "tan", "clothes": "red", "background": "gray"}]
    unseen = {("hair_color", "none"), *(("style", style) for style in HELD_OUT_STYLES)}
    singles = [{a: v} for a, values in ATTRIBUTES.items() for v in values if (a, v) not in unseen]
    pairs = [{"hair_style": style, "glasses": "glasses"} for style in ATTRIBUTES["hair_style"]]
    texts = (
        describe(values, "en", template=template).text
        for values in [{}, *wholes, *singles, *pairs]
        for template in range(TEMPLATES["en"])
    )
    return frozenset(word for text in texts for word in _words(text))


def unknown_words(text: str) -> list[str]:
    """Words of a prompt, in order and once each, that no caption in training contained: whatever they mean, a model of
    this world cannot know it."""
    return list(dict.fromkeys(word for word in _words(text) if word not in known_words()))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text.lower())
