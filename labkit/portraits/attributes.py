"""The attributes of a portrait and which of their values each art style can draw.

A value that a style cannot draw is not offered for that style: toon-head has no bald head and no glasses, personas
draws its bun with a
headband, avataaars has no spiky hair. Captions therefore never promise what the picture cannot show.

The tables are the single source of truth: specs, captions, the reader's classes and the tests all read them.
"""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "style": ("avataaars", "personas", "toon-head", "micah", "open-peeps"),
    "hair_style": ("short", "curly", "bob", "long", "bun", "spiky", "bald"),
    "hair_color": (
        "black",
        "brown",
        "blonde",
        "red",
        "pink",
        "white",
        "blue",
        "none",
    ),  # "none" belongs to bald heads alone
    "skin": ("light", "tan", "brown", "dark"),
    "mood": ("happy", "calm", "sad", "surprised"),
    "glasses": ("none", "glasses", "sunglasses"),
    "beard": ("none", "beard", "moustache"),
    "clothes": ("red", "orange", "yellow", "green", "blue", "purple", "black", "white"),
    "background": ("gray", "mint", "sky", "lavender", "pink", "lemon"),
}
"""Attribute name -> its values, in a fixed order (the class order of the AttributeReader)."""

TRAINING_STYLES = ("avataaars", "personas", "toon-head")
HELD_OUT_STYLES = ("micah", "open-peeps")

HELD_OUT_COMBINATIONS: tuple[dict[str, str], ...] = (
    {"hair_color": "pink", "beard": "beard"},
    {"glasses": "sunglasses", "mood": "sad"},
    {"skin": "dark", "hair_color": "blonde"},
    {"hair_style": "long", "clothes": "yellow"},
)
"""Pairs of values that never occur together in the training data; they test composition."""

_COLORED_HAIR = tuple(v for v in ATTRIBUTES["hair_color"] if v != "none")

_ALLOWED: dict[str, dict[str, tuple[str, ...]]] = {
    "avataaars": {"hair_style": ("short", "curly", "bob", "long", "bun", "bald")},
    "personas": {"hair_style": ("short", "curly", "bob", "long", "bald")},
    "toon-head": {"hair_style": ("short", "bob", "long", "bun", "spiky"), "glasses": ("none",)},
    "micah": {
        "hair_style": ("short", "bob", "long", "bald"),
        "glasses": ("none", "glasses"),
        "beard": ("none", "beard"),
    },
    "open-peeps": {"hair_style": ("short", "bob", "bun", "bald")},
}


def allowed_values(style: str, attribute: str) -> tuple[str, ...]:
    """The values of `attribute` that `style` can draw, in the order of `ATTRIBUTES`.

    Raises:
        ValueError: unknown style or attribute.
    """
    check_value("style", style)
    if attribute not in ATTRIBUTES:
        raise ValueError(f"unknown attribute {attribute!r}: expected one of {', '.join(ATTRIBUTES)}")
    if attribute == "style":
        return (style,)
    return _ALLOWED[style].get(attribute, ATTRIBUTES[attribute])


def check_value(attribute: str, value: str) -> None:
    """Raise a `ValueError` that lists the choices unless `value` is a value of `attribute`."""
    if attribute not in ATTRIBUTES:
        raise ValueError(f"unknown attribute {attribute!r}: expected one of {', '.join(ATTRIBUTES)}")
    if value not in ATTRIBUTES[attribute]:
        raise ValueError(f"unknown {attribute} {value!r}: expected one of {', '.join(ATTRIBUTES[attribute])}")


def colored_hair() -> tuple[str, ...]:
    """Hair colours of heads that have hair."""
    return _COLORED_HAIR
