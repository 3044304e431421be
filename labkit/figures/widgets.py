"""Interactive figures: `explore(function, controls)`.

    def denoise(steps, guidance):
        return image_grid(...)

    explore(denoise, {"steps": slider(t("w.steps"), 1, 50, 20), "guidance": slider(t("w.cfg"), 0, 9, 3, 0.5)})

The function is plain: it takes the controls' values by name and returns a figure, an image, or a list of images, so it
can be tested without a browser. The figure for the initial values is always drawn as an ordinary picture. In a lesson
started with `interactive=True` the controls follow below it, and the result of the learner's values appears beside the
controls, to be compared with the first picture. With `interactive=False` (batch runs, exports) nothing follows it.
Only core ipywidgets are used, in the subset that 7.7.1 (Colab) and 8.1 (JupyterLab) share.
"""

from __future__ import annotations

import html
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labkit.course.i18n import get_language, t
from labkit.course.render import is_interactive
from labkit.figures.base import text_width
from labkit.figures.controls import Choice, Control, Slider, Text, Toggle, choice, slider, steps, text, toggle
from labkit.figures.images import as_pixels, image_bundle, image_html, png_bytes
from labkit.figures.style import FIGURE_DPI, SCREEN_DPI

__all__ = ["Exploration", "Picture", "choice", "explore", "picture", "slider", "steps", "text", "toggle"]

SLOW_SECONDS = 0.15  # a control that takes longer is redrawn on release only, not while it is dragged
KEPT = 48  # results kept, so that going back is immediate


@dataclass(frozen=True)
class Picture:
    """A drawn result: PNG bytes, width on the screen in pixels, description."""

    png: bytes
    width: int
    alt: str

    def html(self) -> str:
        """The picture as the HTML of a widget."""
        return image_html(self.png, width=self.width, alt=self.alt, kind="labkit-live")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return image_bundle(self.png, width=self.width, alt=self.alt)


def picture(result: Any, alt: str = "") -> Picture:
    """Turn what a lesson's function returned into a `Picture`.

    Args:
        result: a matplotlib figure; one image (PIL, uint8 [H, W, 3], float [3, H, W] in [-1, 1]); or several of them.
        alt: description; a course figure's own description is used where this is empty.

    Raises:
        TypeError: something else, None for example.
    """
    if hasattr(result, "savefig"):
        return _figure_picture(result, alt or getattr(result, "alt", ""))
    if result is None or isinstance(result, (str, bytes, int, float, dict)):
        raise TypeError(
            f"the function returned a {type(result).__name__}; expected a figure, an image or several images"
        )
    if hasattr(result, "convert") or getattr(result, "ndim", 4) in (2, 3):
        pixels = as_pixels(result)  # [H, W, 3]
        return Picture(png_bytes(pixels), max(pixels.shape[1], 192), alt)
    from labkit.figures.grids import image_grid

    figure = image_grid(result)
    return _figure_picture(figure, alt or figure.alt)


def _figure_picture(figure: Any, alt: str) -> Picture:
    import io

    if hasattr(figure, "png"):
        data = figure.png()
    else:  # a pyplot figure: take it off pyplot's list, or the notebook draws it a second time
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
        data = buffer.getvalue()
        import matplotlib.pyplot as plt

        plt.close(figure)
    return Picture(data, round(figure.get_size_inches()[0] * SCREEN_DPI), alt)


def explore(
    function: Callable[..., Any],
    controls: Mapping[str, Control],
    *,
    interactive: bool | None = None,
    alt: str | Callable[..., str] | None = None,
    button: bool | str = False,
    slow: bool | None = None,
    lang: str | None = None,
) -> Exploration:
    """A figure with controls. Write it as the last expression of a cell, or pass it to `display`.

    Args:
        function: plain function of the controls' values by name -> figure, image, or list of images.
        controls: argument name -> `slider(...)`, `choice(...)`, `steps(...)`, `toggle(...)` or `text(...)`.
        interactive: False draws the picture for the initial values and nothing else; by default as the lesson was
            started (`lab.interactive`), True where none is open.
        alt: description of the picture, a text or a function of the same values; by default the figure's own one,
            or the values.
        button: True or a caption: draw only when the button is pressed. For anything over about a second.
        slow: True redraws a slider on release only; by default decided by the time that the first picture took.
        lang: language of the captions; by default the current one.

    Raises:
        TypeError: the function lacks an argument of that name, or needs one without a control, or returned no picture.
    """
    if interactive is None:
        interactive = is_interactive()
    return Exploration(function, controls, interactive=interactive, alt=alt, button=button, slow=slow, lang=lang)


class Exploration:
    """What `explore` returns. `first` is the picture for the initial values, `current` the one shown last."""

    def __init__(
        self,
        function: Callable[..., Any],
        controls: Mapping[str, Control],
        *,
        interactive: bool,
        alt: str | Callable[..., str] | None,
        button: bool | str,
        slow: bool | None,
        lang: str | None,
    ):
        _check_controls(function, controls)
        self.function, self.controls, self.interactive = function, dict(controls), interactive
        self._alt, self._lang = alt, lang or get_language()
        self._button_text = button if isinstance(button, str) else self._t("widget.run") if button else ""
        self.values: dict[str, Any] = {name: control.value for name, control in self.controls.items()}
        started = time.perf_counter()
        self.first = self.current = self.draw(**self.values)
        self.slow = time.perf_counter() - started > SLOW_SECONDS if slow is None else slow
        self._kept = {self._key(): self.first}
        self.inputs: dict[str, Any] = {}
        self.widget: Any = None

    def draw(self, **values: Any) -> Picture:
        """The picture for the given values; what the function raises goes through."""
        drawn = picture(self.function(**values))
        own = self._alt(**values) if callable(self._alt) else self._alt or drawn.alt
        described = self._describe(values)
        alt = self._t("widget.alt_with", values=described, alt=own) if own else self._t("widget.alt", values=described)
        return Picture(drawn.png, drawn.width, alt)

    def build(self) -> Any:
        """Make the ipywidgets (once) and return their box; `inputs` holds the controls' widgets by name."""
        if self.widget is not None:
            return self.widget
        import ipywidgets

        self.inputs = {name: control.widget(continuous=not self.slow) for name, control in self.controls.items()}
        for one in self.inputs.values():
            one.observe(self._changed, names="value")
        for one in self.inputs.values():
            if hasattr(one.style, "description_width") and not isinstance(one, ipywidgets.Checkbox):
                one.style.description_width = f"{self._label_width()}px"  # the controls line up
        self.reset_button = ipywidgets.Button(description=self._t("widget.reset"))
        self.reset_button.on_click(lambda _: self.reset())
        buttons = [self.reset_button]
        if self._button_text:
            self.draw_button = ipywidgets.Button(description=self._button_text, button_style="primary")
            self.draw_button.on_click(lambda _: self.update())
            buttons.insert(0, self.draw_button)
        ready = "widget.ready_button" if self._button_text else "widget.ready"
        self.status = ipywidgets.HTML(self._status(self._t(ready, button=self._button_text)))
        self.live = ipywidgets.HTML("")
        column = ipywidgets.VBox(
            [*self.inputs.values(), ipywidgets.HBox(buttons), self.status],
            layout={"width": "370px", "flex": "0 0 auto"},
        )
        # Beside the controls where it fits at its own size, else below them.
        picture_box = ipywidgets.VBox([self.live], layout={"flex": f"0 1 {self.first.width}px", "min_width": "0"})
        self.widget = ipywidgets.HBox(
            [column, picture_box], layout={"flex_flow": "row wrap", "align_items": "flex-start"}
        )
        self.widget.add_class("labkit-explore")
        return self.widget

    def update(self) -> None:
        """Read the controls and draw. An error in the function is shown in one line; the last picture stays."""
        self.values = {name: one.value for name, one in self.inputs.items()}
        key = self._key()
        started = time.perf_counter()
        if key not in self._kept:
            self.status.value = self._status(self._t("widget.busy"))
            try:
                self._kept[key] = self.draw(**self.values)
            except Exception as error:  # a learner's function may raise anything
                reason = f"{type(error).__name__}: {error}"
                self.status.value = self._status(self._t("widget.failed", reason=reason), "#B3261E")
                return
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        self.current = self._kept[key]
        self.live.value = self.current.html()
        seconds = time.perf_counter() - started
        self.status.value = self._status(self._t("widget.done", values=self._describe(self.values), seconds=seconds))

    def reset(self) -> None:
        """Put every control back to its initial value and draw that."""
        self._quiet = True
        try:
            for name, control in self.controls.items():
                self.inputs[name].value = control.value
        finally:
            self._quiet = False
        self.update()

    _quiet = False

    def _changed(self, change: Any) -> None:
        if self._quiet:
            return
        if self._button_text:
            self.status.value = self._status(self._t("widget.stale", button=self._button_text))
        else:
            self.update()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.first)
        if not self.interactive:
            return
        try:
            import ipywidgets  # noqa: F401
        except ImportError:
            print(self._t("widget.missing"))
            return
        display(self.build())

    def _t(self, key: str, **values: Any) -> str:
        return t(key, lang=self._lang, **values)

    def _describe(self, values: Mapping[str, Any]) -> str:
        comma = "、" if self._lang == "ja" else ", "
        return comma.join(f"{one.label} {one.text(values[name], self._lang)}" for name, one in self.controls.items())

    def _label_width(self) -> int:
        longest = max((text_width(one.label, 10) for one in self.controls.values()), default=0)
        return min(200, round(longest * SCREEN_DPI) + 14)

    def _key(self) -> tuple[str, ...]:
        return tuple(repr(value) for value in self.values.values())

    @staticmethod
    def _status(message: str, color: str = "#6B6B6B") -> str:
        return (
            f'<div role="status" style="color:{color};line-height:1.5;white-space:normal">{html.escape(message)}</div>'
        )


def _check_controls(function: Callable[..., Any], controls: Mapping[str, Control]) -> None:
    for name, control in controls.items():
        if not isinstance(control, (Slider, Choice, Toggle, Text)):
            raise TypeError(f"control {name!r} is {control!r}; expected slider(...), choice(...) or the like")
    try:
        inspect.signature(function).bind(**{name: control.value for name, control in controls.items()})
    except TypeError as error:
        name = getattr(function, "__name__", "the function")
        raise TypeError(f"the controls {sorted(controls)} do not fit {name}(...): {error}") from None
