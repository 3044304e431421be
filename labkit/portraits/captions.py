"""Captions that leave attributes open, and sentences about differences.

A caption names some attributes and leaves the others open; it knows which ones it names (`Caption.named`), because
faithfulness may be
judged on those alone. If captions named everything, all images of a prompt would look alike and no alignment method
had anything to choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from labkit.portraits.attributes import ATTRIBUTES, check_value
from labkit.portraits.spec import PortraitSpec

LANGUAGES = ("en", "ja")


@dataclass(frozen=True)
class Caption:
    """A sentence and the attributes it names."""

    text: str
    named: frozenset[str]
    lang: str = "en"

    def __str__(self) -> str:
        return self.text


# value -> wording; English first, Japanese second
_WORDS: dict[str, dict[str, tuple[str, str]]] = {
    "style": {
        "avataaars": ("flat", "フラット調"),
        "personas": ("simple", "シンプル調"),
        "toon-head": ("cartoon", "アニメ調"),
        "micah": ("outlined", "線画調"),
        "open-peeps": ("hand-drawn", "手描き調"),
    },
    "hair_style": {
        "short": ("short", "ショートヘア"),
        "curly": ("curly", "カーリーヘア"),
        "bob": ("bob", "ボブヘア"),
        "long": ("long", "ロングヘア"),
        "bun": ("bun", "お団子ヘア"),
        "spiky": ("spiky", "ツンツンヘア"),
        "bald": ("bald", "スキンヘッド"),
    },
    "hair_color": {
        "black": ("black", "黒髪"),
        "brown": ("brown", "茶髪"),
        "blonde": ("blonde", "金髪"),
        "red": ("red", "赤毛"),
        "pink": ("pink", "ピンクの髪"),
        "white": ("white", "白髪"),
        "blue": ("blue", "青い髪"),
        "none": ("none", "髪なし"),
    },
    "skin": {
        "light": ("light", "明るい肌"),
        "tan": ("tan", "小麦色の肌"),
        "brown": ("brown", "褐色の肌"),
        "dark": ("dark", "濃い色の肌"),
    },
    "mood": {
        "happy": ("happy", "笑顔"),
        "calm": ("calm", "穏やかな表情"),
        "sad": ("sad", "悲しそうな表情"),
        "surprised": ("surprised", "驚いた表情"),
    },
    "glasses": {
        "none": ("no glasses", "眼鏡なし"),
        "glasses": ("glasses", "眼鏡"),
        "sunglasses": ("sunglasses", "サングラス"),
    },
    "beard": {
        "none": ("no beard", "ひげなし"),
        "beard": ("a beard", "あごひげ"),
        "moustache": ("a moustache", "口ひげ"),
    },
    "clothes": {
        "red": ("red", "赤い服"),
        "orange": ("orange", "オレンジ色の服"),
        "yellow": ("yellow", "黄色い服"),
        "green": ("green", "緑の服"),
        "blue": ("blue", "青い服"),
        "purple": ("purple", "紫の服"),
        "black": ("black", "黒い服"),
        "white": ("white", "白い服"),
    },
    "background": {
        "gray": ("gray", "グレーの背景"),
        "mint": ("mint", "ミント色の背景"),
        "sky": ("sky blue", "水色の背景"),
        "lavender": ("lavender", "ラベンダー色の背景"),
        "pink": ("pink", "ピンクの背景"),
        "lemon": ("lemon", "レモン色の背景"),
    },
}
_NAMES = {
    "style": ("art style", "画風"),
    "hair_style": ("hair style", "髪型"),
    "hair_color": ("hair colour", "髪の色"),
    "skin": ("skin tone", "肌の色"),
    "mood": ("mood", "表情"),
    "glasses": ("glasses", "眼鏡"),
    "beard": ("beard", "ひげ"),
    "clothes": ("clothing colour", "服の色"),
    "background": ("background", "背景"),
}
TEMPLATES = {"en": 4, "ja": 2}


def attribute_name(attribute: str, lang: str = "en") -> str:
    """The attribute in words: `hair_color` -> "hair colour" / 「髪の色」."""
    return _NAMES[attribute][_index(lang)]


def value_name(attribute: str, value: str, lang: str = "en") -> str:
    """The value in words: `glasses="none"` -> "no glasses" / 「眼鏡なし」."""
    check_value(attribute, value)
    return _WORDS[attribute][value][_index(lang)]


def _index(lang: str) -> int:
    if lang not in LANGUAGES:
        raise ValueError(f"unknown language {lang!r}: expected one of {', '.join(LANGUAGES)}")
    return LANGUAGES.index(lang)


def caption(spec: PortraitSpec, lang: str = "en", *, drop: Iterable[str] = (), template: int = 0) -> Caption:
    """Describe `spec`, leaving the attributes in `drop` open.

    Args:
        template: which paraphrase, `0 <= template < TEMPLATES[lang]`.

    Raises:
        ValueError: unknown language, attribute or template.
    """
    drop = set(drop)
    for attribute in drop - set(ATTRIBUTES):
        raise ValueError(f"unknown attribute {attribute!r} in drop: expected some of {', '.join(ATTRIBUTES)}")
    return describe({k: v for k, v in spec.items() if k not in drop}, lang, template=template)


def random_caption(spec: PortraitSpec, rng: np.random.Generator, *, full_share: float = 0.15) -> Caption:
    """An English training caption: a random paraphrase in which a random number of phrases is missing.

    With probability `full_share` nothing is dropped; otherwise the share of dropped attributes is itself uniform in
    [0, 1], so that the
    model meets everything from full descriptions to "a portrait of a person".
    """
    drop_share = 0.0 if rng.random() < full_share else rng.random()
    drop = [attribute for attribute in ATTRIBUTES if rng.random() < drop_share]
    return caption(spec, "en", drop=drop, template=int(rng.integers(TEMPLATES["en"])))


def describe(values: Mapping[str, str], lang: str = "en", *, template: int = 0) -> Caption:
    """A caption from any subset of attributes; see `caption`.

    A hair colour of `"none"` is not wording of its own ("bald" says it), so it is never counted as named.

    Raises:
        ValueError: unknown attribute, value, language or template, or a hair colour for a bald head.
    """
    for attribute, value in values.items():
        check_value(attribute, value)
    if values.get("hair_style") == "bald" and values.get("hair_color", "none") != "none":
        color = values["hair_color"]
        raise ValueError(f"a bald head has no {color} hair: leave hair_color out or choose another hair_style")
    index = _index(lang)
    if not 0 <= template < TEMPLATES[lang]:
        raise ValueError(f"template {template}: expected 0 to {TEMPLATES[lang] - 1} for language {lang!r}")
    words = {a: _WORDS[a][v][index] for a, v in values.items() if not (a == "hair_color" and v == "none")}
    text = _english(values, words, template) if lang == "en" else _japanese(words, template)
    return Caption(text, frozenset(words), lang)


def _hair_english(values: Mapping[str, str], words: dict[str, str]) -> list[str]:
    style, color = values.get("hair_style"), words.get("hair_color")
    if style == "bald":
        return ["a bald head"]
    if style == "bun":
        return [f"{color} hair in a bun" if color else "hair in a bun"]
    if style:
        return [f"{words['hair_style']} {color} hair" if color else f"{words['hair_style']} hair"]
    return [f"{color} hair"] if color else []


def _english(values: Mapping[str, str], words: dict[str, str], template: int) -> str:
    skin = [f"{words['skin']} skin"] if "skin" in words else []
    traits = _hair_english(values, words) + skin + [words[a] for a in ("glasses", "beard") if a in words]
    with_ = f" with {_list(traits)}" if traits else ""
    style, mood, clothes, ground = (words.get(a) for a in ("style", "mood", "clothes", "background"))
    person = f"{mood} person" if mood else "person"
    if template == 0:
        head = f"a {style} portrait of a {person}" if style else f"a portrait of a {person}"
        tail = [f"wearing {clothes} clothes"] * bool(clothes) + [f"{ground} background"] * bool(ground)
        return ", ".join([head + with_, *tail])
    if template == 1:
        head = [f"{style} portrait" if style else "portrait", *([f"{mood} face"] if mood else [])]
        tail = [f"{clothes} shirt"] * bool(clothes) + [f"on a {ground} background"] * bool(ground)
        return ", ".join([*head, *traits, *tail])
    if template == 2:
        head = (
            f"a {person}{with_}"
            + (f" in a {clothes} shirt" if clothes else "")
            + (f" before a {ground} wall" if ground else "")
        )
        return head + (f", {style} style" if style else "")
    tail = [f"dressed in {clothes}"] * bool(clothes) + [f"{style} style"] * bool(style)
    start = f"on {ground}, " if ground else ""
    return start + ", ".join([f"a {person}", *traits, *tail])


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _japanese(words: dict[str, str], template: int) -> str:
    order = ("mood", "hair_color", "hair_style", "skin", "glasses", "beard", "clothes", "background")
    parts = [words[a] for a in order if a in words]
    style = words.get("style")
    if template == 0:
        return "、".join([f"{style}の肖像画" if style else "肖像画", *parts])
    return "。".join([f"{style}で描かれた人物" if style else "人物の絵", *(["、".join(parts)] if parts else [])])


def differences(a: PortraitSpec, b: PortraitSpec, lang: str = "en") -> list[str]:
    """One sentence for each attribute in which `b` differs from `a`, in the order of `ATTRIBUTES`; empty for
    equal specs."""
    index = _index(lang)
    sentences = []
    for attribute, old in a.items():
        new = getattr(b, attribute)
        if new == old:
            continue
        name, before, after = (
            _NAMES[attribute][index],
            value_name(attribute, old, lang),
            value_name(attribute, new, lang),
        )
        sentences.append(
            f"The {name} changes from {before} to {after}."
            if lang == "en"
            else f"{name}が「{before}」から「{after}」に変わります。"
        )
    return sentences
