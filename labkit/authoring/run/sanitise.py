"""What an HTML page of ours may hold: a list of what is allowed, since nobody can list everything that is dangerous.

A notebook shows what others wrote (prompts, captions, a learner's strings), and a report is opened by teachers. `clean`
keeps the elements and attributes that notebooks are made of and drops the rest; the pages' Content-Security-Policy
(`labkit.course.render.POLICY`) forbids scripts once more.
"""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from typing import Any

_TEXT = """a abbr b blockquote br cite code del details dd dfn div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img
    ins kbd li mark ol p pre progress q s samp small span strong sub summary sup time tt u ul var
    table caption thead tbody tfoot tr th td colgroup col"""
_MATH = """math semantics mrow mi mn mo ms mtext mspace msub msup msubsup munder mover munderover mfrac msqrt mroot
    mtable mtr mtd mstyle mpadded mphantom menclose mmultiscripts mprescripts none"""
MATHML = frozenset(_MATH.split())
TAGS = frozenset(_TEXT.split()) | MATHML
ATTRIBUTES = {
    "*": {"class", "id", "lang", "dir", "title", "role", "style"},
    "a": {"href"},
    "img": {"src", "alt", "width", "height"},
    "ol": {"start"},
    "progress": {"max", "value"},
    "details": {"open"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan", "scope"},
    "col": {"span"},
    "colgroup": {"span"},
    "math": {"display", "xmlns"},
    "mi": {"mathvariant"},
    "mo": {"stretchy", "fence", "separator", "minsize", "maxsize", "lspace", "rspace", "form", "movablelimits"},
    "mspace": {"width", "height", "depth", "linebreak"},
    "mfrac": {"linethickness"},
    "mover": {"accent"},
    "munder": {"accentunder"},
    "munderover": {"accent", "accentunder"},
    "mtable": {"columnalign", "rowspacing", "columnspacing", "displaystyle", "columnlines", "rowlines"},
    "mtd": {"columnalign"},
    "mstyle": {"displaystyle", "scriptlevel", "mathcolor", "mathsize"},
    "mpadded": {"width", "height", "depth", "lspace", "voffset"},
    "menclose": {"notation"},
}
_STYLES = """background-color border border-collapse border-left color display float font-family font-size font-style
    font-weight height line-height list-style margin margin-bottom margin-left margin-right margin-top max-width
    min-width opacity overflow-wrap overflow-x padding padding-left text-align text-decoration vertical-align
    white-space width"""
STYLES = frozenset(_STYLES.split())
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml)[;,]|data:,", re.IGNORECASE)
_LINK = re.compile(r"(https?|mailto):|[^:]*$|[^:]*[/?#]", re.IGNORECASE)  # a known scheme, or none


@lru_cache(maxsize=1)
def _cleaner() -> Any:
    import nh3

    return nh3.Cleaner(
        tags=set(TAGS),
        clean_content_tags={"script", "style", "title", "textarea", "noscript", "template", "iframe", "object", "svg"},
        attributes={tag: set(names) for tag, names in ATTRIBUTES.items()},
        attribute_filter=_address,
        generic_attribute_prefixes={"aria-"},
        url_schemes={"http", "https", "mailto", "data"},  # which of them where: _address
        filter_style_properties=set(STYLES),
    )


def clean(body: str) -> str:
    """HTML with nothing but the allowed elements, attributes, style properties and addresses; text stays."""
    return _cleaner().clean(body)


def _address(tag: str, name: str, value: str) -> str | None:
    """Pictures come from inside the page, links never do (`data:` could be a page of its own)."""
    if name == "src":
        return value if _PICTURE.match(value) else None
    if name == "href":  # browsers read past spaces and line breaks in a scheme
        return value if _LINK.match(re.sub(r"[\s\x00-\x1f]", "", value)) else None
    return value


def svg_image(svg: str, alt: str = "") -> str:
    """An SVG drawing as an HTML image, where its scripts and addresses stay dead."""
    import html

    address = "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img src="{address}" alt="{html.escape(alt, quote=True)}">'
