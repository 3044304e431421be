"""What records and pages of an inspection say, in Japanese and English (texts.yaml)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

TEXTS = Path(__file__).with_name("texts.yaml")
LANGUAGES = ("en", "ja")


@cache
def texts(lang: str) -> dict[str, str]:
    """Key -> text in one language.

    Raises:
        ValueError: another language than "en" and "ja".
    """
    if lang not in LANGUAGES:
        raise ValueError(f"unknown language {lang!r}: use one of {', '.join(LANGUAGES)}")
    entries = yaml.safe_load(TEXTS.read_text(encoding="utf-8"))
    return {key: entry[lang] for key, entry in entries.items()}
