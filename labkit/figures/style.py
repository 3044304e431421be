"""One look for every figure of the course: colours, fonts, resolution.

The palette is Okabe & Ito's (https://jfly.uni-koeln.de/color/), which stays apart under the common colour-vision
deficiencies; `tests/test_course_figures.py` checks that by simulation. Japanese text is drawn with IPAexGothic from the
package `matplotlib-fontja`; without it any Japanese font of the system is taken.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import matplotlib
from matplotlib import font_manager

PALETTE: tuple[str, ...] = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS: tuple[str, ...] = ("o", "s", "^", "D", "v", "P")  # a second cue beside colour
LINES: tuple[object, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1)), (0, (1, 2)))  # and a third, of lines
INK = "#222222"  # text
MUTED = "#6B6B6B"  # secondary text, reference lines
GRID = "#E3E3E3"
PAPER = "#FFFFFF"

# Meanings that return in many lessons always have the same colour.
ROLES: dict[str, str] = {
    "before": "#8C8C8C",
    "after": PALETTE[0],
    "good": PALETTE[2],
    "bad": PALETTE[1],
    "reference": MUTED,
    "real": PALETTE[2],
    "fake": PALETTE[3],
    "winner": PALETTE[2],
    "loser": PALETTE[1],
}

SCREEN_DPI = 96  # logical pixels per inch
FIGURE_DPI = 192  # twice the screen: sharp on high-density displays

_SYSTEM_CJK = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "IPAexGothic",
    "IPAGothic",
    "Hiragino Sans",
    "Hiragino Kaku Gothic ProN",
    "Yu Gothic",
    "Meiryo",
    "TakaoGothic",
    "VL Gothic",
)


@lru_cache(maxsize=1)
def japanese_font() -> str | None:
    """Name of a font with Japanese glyphs that matplotlib can use, or None when there is none.

    `matplotlib-fontja` comes first, so that a figure looks the same on every machine. The package is only searched for
    its font file, not imported, since importing it changes matplotlib's settings.
    """
    spec = find_spec("matplotlib_fontja")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "fonts" / "ipaexg.ttf"
        if path.exists():
            _register(path)
            return "IPAexGothic"
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in _SYSTEM_CJK if name in installed), None)


def _register(path: Path) -> None:
    """Make a font file known to matplotlib, also as its own bold (it has none; else each bold text would warn)."""
    manager = font_manager.fontManager
    manager.addfont(str(path))
    regular = next(entry for entry in reversed(manager.ttflist) if entry.fname == str(path))
    manager.ttflist.append(replace(regular, weight=700))


def font_families() -> list[str]:
    """Font fallback list: Latin text and digits in DejaVu Sans, everything it lacks in the Japanese font."""
    japanese = japanese_font()
    return ["DejaVu Sans"] + ([japanese] if japanese else [])


def style_settings() -> dict[str, object]:
    """The course's matplotlib settings (rcParams) as a dictionary."""
    return {
        "font.family": font_families(),
        "font.size": 10.5,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 10.5,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#9A9A9A",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
        "axes.formatter.useoffset": False,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": "#9A9A9A",
        "ytick.color": "#9A9A9A",
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "lines.linewidth": 2.0,
        "lines.markersize": 5,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "text.color": INK,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "figure.figsize": (6.4, 3.8),
        "figure.dpi": SCREEN_DPI,
        "savefig.dpi": FIGURE_DPI,
        "image.cmap": "viridis",
        "image.interpolation": "antialiased",
        "svg.hashsalt": "labkit",
    }


def add_japanese_font() -> None:
    """Let the session's own plots draw Japanese: the font joins the end of matplotlib's list, nothing else changes.

    From it come only the characters that the fonts before it lack. Called again, or without such a font, it does
    nothing. Figures of `labkit.figures` bring their fonts with them.
    """
    families, japanese = matplotlib.rcParams["font.family"], japanese_font()
    if japanese and japanese not in families:
        matplotlib.rcParams["font.family"] = [*families, japanese]
