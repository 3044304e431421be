"""The inspection desk in a notebook: one picture at a time, a key for every verdict, the time per picture kept.

    desk = InspectionDesk(pictures, defects)      # in the last line of a cell
    desk.verdicts                                 # {"item", "inspector", "defect", "seconds"} per picture so far

Only core ipywidgets are used. Keys are read from a text field that is emptied after each of them: space or 0 good, a
digit for a defect, b back. Buttons do the same (Tab moves, Space presses). Without widgets the pictures stand there as
a sheet, and `judge` and `back` are called from a cell.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.course.i18n import get_language, t
from labkit.course.render import is_interactive
from labkit.figures.grids import image_grid
from labkit.figures.images import as_pixels, png_bytes
from labkit.files import write_atomically

IMAGE_WIDTH = 320  # pixels on the screen
SHOWN = 24  # pictures of the sheet
GOOD_KEYS, BACK_KEYS = " 0", "bB"


class InspectionDesk:
    """One inspector's sitting.

    Args:
        pictures: name -> image (PIL, uint8 [H, W, 3] or float [3, H, W] in [-1, 1]), in the order of inspection.
        defects: (code, text) for each entry of the written list, at most 9.
        notes: name -> what the inspector must know of a picture, such as its order; shown beside it.
        inspector: a person's name; empty: it is asked for, and nothing can be judged before.
        interactive: False shows the sheet alone; by default as the lesson was started. clock: seconds, for tests.

    Attributes:
        verdicts: what was said so far, one dict per picture.

    Raises:
        ValueError: no pictures, or more defects than digits.
    """

    def __init__(
        self,
        pictures: Mapping[str, Any],
        defects: Sequence[tuple[str, str]],
        *,
        notes: Mapping[str, str] | None = None,
        inspector: str = "",
        interactive: bool | None = None,
        lang: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not pictures or len(defects) > 9:
            raise ValueError(f"{len(pictures)} pictures and {len(defects)} defects: expected some, and at most 9")
        self.pictures, self.defects = dict(pictures), [(str(code), str(text)) for code, text in defects]
        self.notes = dict(notes or {})
        self.inspector, self.interactive, self._lang = inspector.strip(), interactive, lang or get_language()
        self.verdicts: list[dict[str, Any]] = []
        self.widget: Any = None
        self._clock = clock
        self._spent: dict[str, float] = {}  # name -> seconds
        self._since = clock()

    @property
    def names(self) -> list[str]:
        """Names of the pictures in the order of inspection."""
        return list(self.pictures)

    @property
    def current(self) -> str | None:
        """The picture that waits for a verdict; None when all are judged."""
        return self.names[len(self.verdicts)] if len(self.verdicts) < len(self.pictures) else None

    @property
    def status(self) -> str:
        """Where the inspection stands, in one line."""
        if not self.inspector:
            return self._t("desk.no_name")
        if self.current is None:
            found = sum(bool(verdict["defect"]) for verdict in self.verdicts)
            seconds = sum(verdict["seconds"] for verdict in self.verdicts)
            return self._t("desk.done", n=len(self.verdicts), found=found, seconds=seconds / len(self.verdicts))
        return self._t("desk.where", at=len(self.verdicts) + 1, n=len(self.pictures), name=self.current)

    def judge(self, defect: str = "") -> bool:
        """A verdict on the current picture: a defect's code, or "" for good. False if there is none or no name yet.

        Raises:
            ValueError: a code that is not on the list.
        """
        if defect and defect not in dict(self.defects):
            raise ValueError(f"defect {defect!r} is not on the list: use one of {', '.join(dict(self.defects))}")
        if self.current is None or not self.inspector:
            return False
        name, seconds = self.current, round(self._looked(), 1)
        self.verdicts.append({"item": name, "inspector": self.inspector, "defect": defect, "seconds": seconds})
        return True

    def back(self) -> bool:
        """Take the last verdict back; False if there is none."""
        if not self.verdicts:
            return False
        self._looked()
        self.verdicts.pop()
        return True

    def _looked(self) -> float:
        """Seconds that were spent on the current picture, over all looks at it; from now on the next one counts."""
        name, now = self.current, self._clock()
        if name is not None:
            self._spent[name] = self._spent.get(name, 0.0) + max(0.0, now - self._since)
        self._since = self._clock()
        return self._spent.get(name, 0.0)

    def key(self, sign: str) -> bool:
        """What one key does; False for a key without meaning."""
        if sign in GOOD_KEYS:
            return self.judge()
        if sign in BACK_KEYS:
            return self.back()
        if sign.isdecimal() and 1 <= int(sign) <= len(self.defects):
            return self.judge(self.defects[int(sign) - 1][0])
        return False

    def save(self, path: Path | str) -> Path:
        """The verdicts as JSON lines, as `labkit inspect sign` reads them."""
        return write_atomically(path, "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in self.verdicts))

    def figure(self) -> Any:
        """The first pictures as a numbered sheet."""
        shown = self.names[:SHOWN]
        captions = [f"{i}: {self.notes.get(name, name)}" for i, name in enumerate(shown, start=1)]
        title = self._t("desk.sheet", shown=len(shown), n=len(self.pictures))
        return image_grid(
            [self.pictures[name] for name in shown], captions=captions, columns=6, title=title, lang=self._lang
        )

    def build(self) -> Any:
        """Make the ipywidgets (once) and return their box."""
        if self.widget is not None:
            return self.widget
        import ipywidgets

        wide = {"width": "22em"}
        self.name_field = ipywidgets.Text(value=self.inspector, description=self._t("desk.name"), layout=wide)
        self.key_field = ipywidgets.Text(description=self._t("desk.keys"), layout=wide)
        self.image = ipywidgets.Image(format="png", width=IMAGE_WIDTH)
        self.line, self.note = ipywidgets.HTML(), ipywidgets.HTML()
        self.buttons = [ipywidgets.Button(description=self._t("desk.good"), button_style="success")]
        self.buttons += [ipywidgets.Button(description=f"{i}: {text}", layout=wide, tooltip=text)
                         for i, (_, text) in enumerate(self.defects, start=1)]  # fmt: skip
        self.buttons.append(ipywidgets.Button(description=self._t("desk.back")))
        for sign, one in zip(["0", *(str(i + 1) for i in range(len(self.defects))), "b"], self.buttons, strict=True):
            one.on_click(lambda _, sign=sign: self._pressed(sign))
        self.name_field.observe(self._named, names="value")
        self.key_field.observe(self._typed, names="value")
        column = ipywidgets.VBox([self.name_field, self.key_field, *self.buttons])
        row = ipywidgets.HBox([ipywidgets.VBox([self.image, self.note]), column], layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox([ipywidgets.HTML(html.escape(self._t("desk.help"))), row, self.line])
        self._since = self._clock()
        self._show()
        return self.widget

    def _named(self, change: Any) -> None:
        started = bool(self.inspector)
        self.inspector = change["new"].strip()
        if not started:
            self._since = self._clock()
        self._show()

    def _typed(self, change: Any) -> None:
        if change["new"]:
            self._pressed(change["new"][-1])
            self.key_field.value = ""

    def _pressed(self, sign: str) -> None:
        self.key(sign)
        self._show()

    def _show(self) -> None:
        if self.current is not None:
            self.image.value = png_bytes(as_pixels(self.pictures[self.current]))
            self.note.value = f"<b>{html.escape(self.notes.get(self.current, ''))}</b>"
        self.line.value = f'<div role="status">{html.escape(self.status)}</div>'

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.figure())
        if not (is_interactive() if self.interactive is None else self.interactive):
            return
        try:
            import ipywidgets  # noqa: F401
        except ImportError:
            print(self._t("desk.no_widgets"))
            return
        display(self.build())

    def _t(self, key: str, **values: Any) -> str:
        return t(key, lang=self._lang, **values)
