"""What filters, plans and checks of labkit wrote in English, in the reader's language.

A record keeps one wording, which its hashes cover; the pages and lessons show it in Japanese or English.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import yaml

PHRASES = Path(__file__).with_name("phrases.yaml")


@lru_cache(maxsize=1)
def _phrases() -> list[tuple[re.Pattern[str], str]]:
    """(pattern of the English wording, Japanese wording), the more specific ones first."""
    entries = yaml.safe_load(PHRASES.read_text(encoding="utf-8"))
    entries.sort(key=lambda entry: -len(re.sub(r"\{\w+\}", "", entry["en"])))
    return [(re.compile(_pattern(entry["en"]), re.DOTALL), entry["ja"]) for entry in entries]


def _pattern(english: str) -> str:
    parts = re.split(r"\{(\w+)\}", english)
    return "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>.*?)" for i, part in enumerate(parts))


def said(text: str, lang: str) -> str:
    """A text of labkit's filters, plans and checks in "ja" or "en"; whatever it does not know stays as it is.

    Several faults joined by "; " are shown one by one.
    """
    if lang != "ja":
        return text
    if "; " in text:
        return "、".join(said(part, lang) for part in text.split("; "))
    for pattern, japanese in _phrases():
        if found := pattern.fullmatch(text):
            return japanese.format(**found.groupdict())
    return text
