"""A widget's controls as plain data, so that their initial values are known without ipywidgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.course.i18n import t

_STYLE = {"description_width": "initial"}
_WIDTH = "340px"


@dataclass(frozen=True)
class Slider:
    """A number between `low` and `high` (included) in steps of `step`; whole numbers stay int."""

    label: str
    low: float
    high: float
    value: float
    step: float = 1

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high or self.step <= 0:
            raise ValueError(
                f"slider {self.label!r}: value {self.value}, step {self.step}; "
                f"expected {self.low} <= value <= {self.high} and step > 0"
            )

    @property
    def whole(self) -> bool:
        return all(float(number).is_integer() for number in (self.low, self.high, self.value, self.step))

    def text(self, value: Any, lang: str | None = None) -> str:
        return str(value) if self.whole else f"{value:.{self._digits}f}"

    @property
    def _digits(self) -> int:
        return len(f"{self.step:.6f}".rstrip("0").split(".")[1])

    def widget(self, *, continuous: bool) -> Any:
        import ipywidgets

        number, kind, form = (
            (int, ipywidgets.IntSlider, "d") if self.whole else (float, ipywidgets.FloatSlider, f".{self._digits}f")
        )
        return kind(
            value=number(self.value),
            min=number(self.low),
            max=number(self.high),
            step=number(self.step),
            description=self.label,
            continuous_update=continuous,
            readout_format=form,
            style=_STYLE,
            layout={"width": _WIDTH},
        )


@dataclass(frozen=True)
class Choice:
    """One of a few values. `options` maps shown text -> value; `steps=True` draws a slider over them in their order."""

    label: str
    options: tuple[tuple[str, Any], ...]
    value: Any
    steps: bool = False

    def text(self, value: Any, lang: str | None = None) -> str:
        return next(text for text, option in self.options if option is value or option == value)

    def widget(self, *, continuous: bool) -> Any:
        import ipywidgets

        shared = {
            "options": list(self.options),
            "value": self.value,
            "description": self.label,
            "style": _STYLE,
            "layout": {"width": _WIDTH},
        }
        if self.steps:
            return ipywidgets.SelectionSlider(continuous_update=continuous, **shared)
        return ipywidgets.Dropdown(**shared)


@dataclass(frozen=True)
class Toggle:
    """Yes or no."""

    label: str
    value: bool = False

    def text(self, value: Any, lang: str | None = None) -> str:
        return t("widget.present" if value else "widget.absent", lang=lang)

    def widget(self, *, continuous: bool) -> Any:
        import ipywidgets

        return ipywidgets.Checkbox(
            value=self.value, description=self.label, indent=False, style=_STYLE, layout={"width": _WIDTH}
        )


@dataclass(frozen=True)
class Text:
    """A line of text, passed on when the learner presses Enter or leaves the field."""

    label: str
    value: str = ""

    def text(self, value: Any, lang: str | None = None) -> str:
        return f"“{value}”"

    def widget(self, *, continuous: bool) -> Any:
        import ipywidgets

        return ipywidgets.Text(
            value=self.value, description=self.label, continuous_update=False, style=_STYLE, layout={"width": "100%"}
        )


Control = Slider | Choice | Toggle | Text


def slider(label: str, low: float, high: float, value: float, step: float = 1) -> Slider:
    """A slider from `low` to `high` that starts at `value`. Whole numbers give ints, anything else floats."""
    return Slider(label, low, high, value, step)


def choice(label: str, options: Mapping[str, Any] | Sequence[Any], value: Any = None) -> Choice:
    """A drop-down list. `options`: shown text -> value, or bare values; `value`: where it starts, else the first."""
    return _choice(label, options, value, steps=False)


def steps(label: str, options: Mapping[str, Any] | Sequence[Any], value: Any = None) -> Choice:
    """A slider over given values in their order: `steps("beta", [0.01, 0.1, 1, 10], 1)`."""
    return _choice(label, options, value, steps=True)


def toggle(label: str, value: bool = False) -> Toggle:
    """A check box."""
    return Toggle(label, bool(value))


def text(label: str, value: str = "") -> Text:
    """A line of text."""
    return Text(label, value)


def _choice(label: str, options: Mapping[str, Any] | Sequence[Any], value: Any, *, steps: bool) -> Choice:
    pairs = tuple(options.items()) if isinstance(options, Mapping) else tuple((str(one), one) for one in options)
    if not pairs:
        raise ValueError(f"control {label!r} has no options; expected at least one")
    value = pairs[0][1] if value is None else value
    if all(option != value for _, option in pairs):
        raise ValueError(f"control {label!r} starts at {value!r}; expected one of {[option for _, option in pairs]}")
    return Choice(label, pairs, value, steps)
