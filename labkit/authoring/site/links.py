"""Does a built site hold together by itself? Links inside it lead somewhere, no page loads from the network."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "shortcut", "manifest", "apple-touch-icon"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[tuple[str, str, bool]] = []  # address, element, whether a browser loads it by itself
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append((given["href"], tag, False))
        elif tag == "link" and "href" in given:
            loads = bool(LOADING_RELATIONS & set(given.get("rel", "").lower().split()))
            self.links.append((given["href"], tag, loads))
        elif tag in LOADS and given.get(LOADS[tag]):
            self.links.append((given[LOADS[tag]], tag, True))

    handle_startendtag = handle_starttag


@cache
def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken_links(site: Path) -> list[str]:
    """Links of a built site that lead nowhere, and what its pages and style sheets would load from the network."""
    site = site.resolve()
    _read.cache_clear()
    problems = []
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        for address, element, loads in _read(path).links:
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if loads:
                    problems.append(f"{name}: <{element}> loads {address} from the network")
                continue
            problem = _missing(path, unquote(parts.path), unquote(parts.fragment), site)
            if problem:
                problems.append(f"{name}: {address} {problem}")
    for path in sorted(site.rglob("*.css")):
        for address in re.findall(r"(?:url\(|@import\s+)[\"']?(https?://[^\"')\s]+)", path.read_text("utf-8")):
            problems.append(f"{path.relative_to(site).as_posix()}: loads {address} from the network")
    return problems


def _missing(page: Path, path: str, fragment: str, site: Path) -> str:
    """What is wrong with a link inside the site; "" for nothing."""
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(site):
        return "leads out of the site"
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "does not exist"
    known = fragment in ("", "top") or target.suffix != ".html" or fragment in _read(target).ids
    return "" if known else f"has no place #{fragment}"
