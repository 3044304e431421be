"""Builds the pages of one language with Sphinx, myst-nb and the book theme; nothing is executed, nothing downloaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.authoring.site.pages import HERE, SiteError, texts
from labkit.authoring.stamp import Stamp

MATHJAX = "tex-svg.js"  # one file, its letters inside: pages opened from a disk load no fonts from elsewhere


def mathjax() -> Path:
    """The MathJax file that the package sphinx-mathjax-offline brings. SiteError where it is not installed."""
    try:
        found = [file for file in files("sphinx-mathjax-offline") or () if file.name == MATHJAX]
    except PackageNotFoundError:
        found = []
    if not found:
        raise SiteError('packages of the extra "site" are missing: pip install -e ".[course,site]", or make site')
    return Path(found[0].locate())


def settings(lang: str, langs: Sequence[str], stamp: Stamp) -> dict[str, Any]:
    """The configuration of Sphinx for one language."""
    say = texts(lang)
    theme: dict[str, Any] = {
        "logo": {"text": say("site")},
        "article_header_end": ["language.html", "article-header-buttons.html"],
        "use_download_button": True,
        "home_page_in_toc": False,
        "show_toc_level": 2,
        "footer_content_items": [],
    }
    if stamp.repo:
        theme |= {"repository_url": f"https://github.com/{stamp.repo}", "use_repository_button": True}
    return {
        "project": say("site"),
        "html_title": say("site"),
        "author": "",
        "version": __version__,
        "release": __version__,
        "language": lang,
        "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"],
        "source_suffix": {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"},
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "myst_enable_extensions": ["amsmath", "dollarmath", "deflist", "colon_fence", "html_image"],
        "myst_heading_anchors": 4,
        "mathjax_path": f"mathjax/{MATHJAX}",
        "mathjax3_config": {"tex": {"inlineMath": [["\\(", "\\)"], ["$", "$"]]}, "options": {"enableMenu": False}},
        "default_role": "literal",
        "autodoc_typehints": "signature",
        "autodoc_member_order": "bysource",
        "autodoc_mock_imports": ["google", "torch_fidelity"],
        "napoleon_google_docstring": True,
        "napoleon_numpy_docstring": False,
        "html_theme": "sphinx_book_theme",
        "html_theme_options": theme,
        "html_static_path": ["_static"],
        "html_css_files": ["site.css"],
        "html_show_sphinx": False,
        "html_show_copyright": False,
        "html_context": {"default_mode": "auto", "languages": list(langs)},
        "html_search_language": lang,
        "templates_path": [str(HERE / "templates")],
        "exclude_patterns": ["_static"],
        "suppress_warnings": ["config.cache", "docutils", "ref.python", "myst.header", "mystnb.unknown_mime_type"],
    }


def build_pages(source: Path, target: Path, cache: Path, lang: str, langs: Sequence[str], stamp: Stamp) -> list[str]:
    """Build one language's pages; returns Sphinx's warnings."""
    import io

    try:
        from sphinx.application import Sphinx
        from sphinx.search import languages
        from sphinx.util.docutils import docutils_namespace
    except ImportError:
        mathjax()
        raise
    script = mathjax()
    (source / "_static" / "mathjax").mkdir(exist_ok=True)
    shutil.copy(script, source / "_static" / "mathjax" / MATHJAX)
    languages["ja"] = "labkit.authoring.site.search.Bigrams"
    warnings = io.StringIO()
    with docutils_namespace():
        app = Sphinx(
            srcdir=source,
            confdir=None,
            outdir=target,
            doctreedir=cache,
            buildername="html",
            confoverrides=settings(lang, langs, stamp),
            status=None,
            warning=warnings,
        )
        app.connect("autodoc-process-docstring", _plain_tables)
        app.connect("html-page-context", _other_language, priority=100)  # before the theme drops what is empty
        app.build()
    for path in target.rglob("*.html"):
        if path.name.endswith("webpack-macros.html"):  # a template of the theme, no page
            path.unlink()
        else:
            path.write_text(accessible(path.read_text(encoding="utf-8"), texts(lang)("unfold")), encoding="utf-8")
    return [line for line in re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue()).splitlines() if line.strip()]


def accessible(page: str, unfold: str) -> str:
    """A page of the theme without the labels that contradict what is seen, and with formulas that keys can scroll.

    What docutils could not read in a docstring (a lone `*` or `|`) stays as it is written, without a link to a report.
    """
    page = re.sub(r'<summary aria-label="[^"]*">(?=\s*<p)', "<summary>", page)
    page = re.sub(r'<summary>(?=\s*<span class="toctree-toggle)', f'<summary aria-label="{unfold}">', page)
    page = re.sub(r'(<button class="[^"]*search-button-field[^>]*?) aria-label="[^"]*"', r"\1", page)
    page = re.sub(r'<a href="#id\d+"><span class="problematic"[^>]*>(.*?)</span></a>', r"\1", page, flags=re.DOTALL)
    return re.sub(r'<div class="(?=(?:amsmath )?math )', '<div tabindex="0" class="', page)


def _plain_tables(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Tables, and what a module's docstring indents, are set for an editor: they stay as they are, in a block."""
    out: list[str] = []
    inside = False
    for line in lines:
        row = line.lstrip().startswith("|") or (what == "module" and line.startswith("    "))
        if row and not inside:
            out += ["", "::", ""]
        elif inside and not row:
            out.append("")
        out.append(f"    {line}" if row else line)
        inside = row
    lines[:] = out


def _other_language(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Where the same page lies in the other languages, for the switch in the header."""
    lang = app.config.language
    up = "../" * (pagename.count("/") + 1)
    others = [one for one in app.config.html_context["languages"] if one != lang]
    say = texts(lang)
    context["switch_label"] = say("choose")
    context["switch"] = [(one, say("other_language"), f"{up}{one}/{pagename}.html") for one in others]
