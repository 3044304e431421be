"""`PortraitSpec`: the ground truth of one portrait."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from labkit.portraits.attributes import ATTRIBUTES, allowed_values, check_value


@dataclass(frozen=True, order=True)
class PortraitSpec:
    """Everything that decides the pixels of a portrait: equal specs give equal images, byte for byte.

    Raises:
        ValueError: a value that does not exist, one that the style cannot draw, or a hair colour that contradicts
        `hair_style`
            (a bald head has hair colour `"none"`, every other head has a real one).
    """

    style: str = "avataaars"
    hair_style: str = "short"
    hair_color: str = "brown"
    skin: str = "light"
    mood: str = "happy"
    glasses: str = "none"
    beard: str = "none"
    clothes: str = "blue"
    background: str = "gray"

    def __post_init__(self) -> None:
        for name, value in self.items():
            check_value(name, value)
            if value not in allowed_values(self.style, name):
                drawable = ", ".join(allowed_values(self.style, name))
                raise ValueError(f"{self.style} cannot draw {name} {value!r}: choose one of {drawable}")
        if (self.hair_style == "bald") != (self.hair_color == "none"):
            raise ValueError(
                f"hair_style {self.hair_style!r} contradicts hair_color {self.hair_color!r}: "
                "'none' is the colour of bald heads, and of bald heads alone"
            )

    def items(self) -> list[tuple[str, str]]:
        """`(attribute, value)` pairs in the order of `ATTRIBUTES`."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def with_(self, **changes: str) -> PortraitSpec:
        """A copy with `changes`. Growing hair on a bald head without naming a colour makes it brown; shaving it
        removes the colour."""
        hair_style = changes.get("hair_style", self.hair_style)
        if "hair_color" not in changes:
            if hair_style == "bald":
                changes["hair_color"] = "none"
            elif self.hair_color == "none":
                changes["hair_color"] = "brown"
        return replace(self, **changes)


assert [field.name for field in fields(PortraitSpec)] == list(ATTRIBUTES)  # one order everywhere
