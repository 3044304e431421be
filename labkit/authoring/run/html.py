"""An executed notebook as one HTML file that can be read offline: images inside, formulas as MathML, no scripts
(`labkit.authoring.run.sanitise` decides what stays).

Widgets need a running kernel, so their views are left out; the picture that stands beside each one (see
`labkit.figures.widgets`) remains.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from labkit.authoring.run.sanitise import MATHML, clean, svg_image
from labkit.course.render import POLICY
from labkit.files import write_atomically

_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_NO_MATH_IN = {"code", "pre", "script", "style", "math", "textarea"}
_MATH = re.compile(
    r"\$\$(?P<display>.+?)\$\$"
    r"|\\begin\{(?P<env>[a-z*]+)\}(?P<body>.+?)\\end\{(?P=env)\}"
    r"|(?<![\\$\w])\$(?P<inline>(?![\s$])[^$]+?(?<![\s\\]))\$(?![\d$])",
    re.DOTALL,
)
_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.65 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans JP", Meiryo, IPAGothic, sans-serif;
       color: #222; background: #fff; margin: 0 auto; max-width: 58rem; padding: 1.5rem 1.2rem 4rem; }
h1, h2, h3, h4 { line-height: 1.3; margin: 1.6em 0 .5em; } h1 { margin-top: .4em; }
a { color: #0060a0; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .93em; margin: .6em 0; }
th, td { border: 1px solid #d6d6d6; padding: .3em .7em; text-align: left; } thead th { background: #f4f5f7; }
pre { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-x: auto; margin: 0; }
:not(pre) > code { background: #f2f3f5; padding: .1em .3em; border-radius: 3px; font-size: .9em; }
.cell { margin: .9rem 0; } .input .highlight { background: #f7f8fa; border: 1px solid #e4e6ea; border-radius: 5px;
       padding: .6rem .8rem; }
.output { margin: .5rem 0 0 .2rem; } .output_subarea { margin: .35rem 0; overflow-x: auto; }
.output_stderr pre { background: #fff5ec; padding: .5rem .8rem; } 
.output_error pre { background: #fdeeee; padding: .5rem .8rem; }
.output_text pre, .output_stdout pre { white-space: pre-wrap; } .prompt, .anchor-link { display: none; }
math[display=block] { margin: .8em 0; overflow-x: auto; } 
math { font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math", math; font-size: 1.06em; }
blockquote { border-left: 4px solid #d0d4da; margin: 1em 0; padding: .1em 1em; color: #444; }
"""


def write_html(notebook: Path, target: Path, *, title: str = "", lang: str = "en") -> None:
    """Read an executed notebook and write it as HTML; a notebook that cannot be read gives no file."""
    import nbformat

    try:
        node = nbformat.read(notebook, as_version=4)
    except (OSError, ValueError):
        return
    write_atomically(target, notebook_html(node, title=title or notebook.stem, lang=lang))


def notebook_html(notebook: Any, *, title: str, lang: str = "en") -> str:
    """The notebook as a complete HTML page that asks nothing of the network."""
    import copy

    from nbconvert.exporters import HTMLExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    notebook = copy.deepcopy(notebook)
    strip_widgets(notebook)
    svg_as_images(notebook)
    config = Config()
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = {"remove-cell"}
    config.TagRemovePreprocessor.remove_input_tags = {"hide-input"}
    exporter = HTMLExporter(
        template_name="basic", embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True, config=config
    )
    body, _ = exporter.from_notebook_node(notebook)
    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    return (
        f'<!doctype html>\n<html lang="{html.escape(lang, quote=True)}"><head><meta charset="utf-8">{POLICY}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{colours}{_CSS}</style></head>\n<body>\n{offline(body)}\n</body></html>\n"
    )


def strip_widgets(notebook: Any) -> None:
    """Remove widget state and widget views, in place."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if _WIDGET_VIEW not in one.get("data", {})]


def svg_as_images(notebook: Any) -> None:
    """Turn SVG outputs into HTML images, in place, where the output has no HTML of its own."""
    for cell in notebook.cells:
        for one in cell.get("outputs", []):
            data = one.get("data", {})
            svg = data.pop("image/svg+xml", None)
            if svg and "text/html" not in data:
                data["text/html"] = svg_image("".join(svg), alt="".join(data.get("text/plain", "")))


def offline(body: str) -> str:
    """HTML without scripts and without addresses that are loaded from elsewhere; formulas become MathML.

    An image from the network (a badge, say) is replaced by its description.
    """
    import bs4

    soup = bs4.BeautifulSoup(body, "html.parser")
    for image in soup.find_all("img"):
        if not image.get("src", "").startswith("data:"):
            image.replace_with(image.get("alt", ""))
    for text in soup.find_all(string=re.compile(r"[$]|\\begin")):
        if any(parent.name in _NO_MATH_IN for parent in text.parents):
            continue
        pieces = _math_pieces(str(text))
        if pieces:
            text.replace_with(*pieces)
    return clean(str(soup))


def mathml(tex: str, *, display: bool = False) -> str:
    """TeX as MathML, which browsers draw without any script; TeX in a code element where that is not possible."""
    try:
        from latex2mathml.converter import convert

        known = re.sub(r"\{(aligned|split|gathered|gather\*?|equation\*?)\}", r"{align*}", tex.strip())
        drawn = convert(known, display="block" if display else "inline")
        elements = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(drawn).iter()}
        if not elements <= MATHML:  # the converter does not escape what stands in \text{...}
            raise ValueError(elements - MATHML)
    except Exception:  # not installed, or TeX beyond its reach
        return f"<code>{html.escape(tex.strip())}</code>"
    return drawn.replace("<mi>&#x0007E;</mi>", "<mo>&#x223C;</mo>")  # "distributed as", not an accent


def _math_pieces(text: str) -> list[Any]:
    """The text cut into plain strings and MathML elements; empty when it holds no formula."""
    import bs4

    pieces: list[Any] = []
    end = 0
    for found in _MATH.finditer(text):
        if found["env"]:
            tex = f"\\begin{{{found['env']}}}{found['body']}\\end{{{found['env']}}}"
        else:
            tex = found["display"] or found["inline"]
        drawn = bs4.BeautifulSoup(mathml(tex, display=not found["inline"]), "html.parser").contents[0].extract()
        pieces += [bs4.NavigableString(text[end : found.start()]), drawn]
        end = found.end()
    return [*pieces, bs4.NavigableString(text[end:])] if pieces else []
