"""Learner-facing texts in two languages: `t("key", name=value)`.

A catalogue is a stack of layers: the texts of the current lesson (`lessons/lNN/messages.yaml`) come before the texts
shared by all lessons (every `*.yaml` in `messages/`). A file maps keys to both languages; keys may be nested or dotted:

    check.passed:
      en: "Passed: {name}"
      ja: "合格です: {name}"
    widget:
      steps: {en: Steps, ja: ステップ数}        # the key is widget.steps

Placeholders are named (`{name}`, `{loss:.3f}`) and filled by `str.format`, so the braces of a formula are doubled:
`$x^{{2}}$`.

A lesson must run to its end, so `t` never raises: a text that lacks the asked language falls back to the other one, an
unknown key comes back as it is, and missing values stay visible as placeholders. The lints (`labkit lint`) are where
those are errors; `Catalogue.text(..., strict=True)` raises too.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from labkit.course.yamlfile import YamlError, load_with_lines
from labkit.errors import LabkitError

LANGUAGES = ("en", "ja")
MESSAGES = Path(__file__).with_name("messages")

Entry = Mapping[str, str]  # language -> text


class MessageError(LabkitError, LookupError):
    """An unknown key, a missing language, or a placeholder without a value (strict mode only)."""


def other(lang: str) -> str:
    """The other language: "en" <-> "ja"."""
    return "ja" if checked_language(lang) == "en" else "en"


def checked_language(lang: str) -> str:
    """`lang` itself, or a ValueError that names the languages of the course."""
    if lang not in LANGUAGES:
        raise ValueError(f"unknown language {lang!r}; the course has {' and '.join(map(repr, LANGUAGES))}")
    return lang


def is_entry(value: Any) -> bool:
    """True for a mapping from languages to something, the leaf of a catalogue."""
    return isinstance(value, Mapping) and bool(value) and set(value) <= set(LANGUAGES)


def flatten(tree: Any, prefix: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """All leaves of a catalogue file as (path of keys, leaf): a language mapping, or anything but a mapping."""
    if isinstance(tree, Mapping) and not is_entry(tree):
        for key, value in tree.items():
            yield from flatten(value, (*prefix, key))
    elif prefix:
        yield prefix, tree


def key_of(path: tuple) -> str:
    """("widget", "steps") -> "widget.steps"."""
    return ".".join(map(str, path))


def load_messages(path: Path) -> dict[str, Entry]:
    """The entries of one catalogue file. Raises YamlError for bad YAML or a leaf that is not {en: ..., ja: ...}."""
    tree, lines = load_with_lines(path)
    messages: dict[str, Entry] = {}
    for where, leaf in flatten(tree or {}):
        key = key_of(where)
        if not is_entry(leaf) or not all(isinstance(text, str) for text in leaf.values()):
            raise YamlError(path, lines.get(where, 1), f"{key!r} must be {{en: text, ja: text}}, got {leaf!r:.60}")
        if key in messages:
            raise YamlError(path, lines.get(where, 1), f"{key!r} is defined twice (nested and dotted); keep one")
        messages[key] = leaf
    return messages


@lru_cache(maxsize=8)
def common_messages(folder: Path = MESSAGES) -> dict[str, Entry]:
    """The texts shared by all lessons: every YAML file of `folder`. A key may stand in one file only."""
    merged: dict[str, Entry] = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        for key, entry in load_messages(path).items():
            if key in merged:
                raise YamlError(path, 1, f"{key!r} is already defined in another file of {folder.name}/; rename one")
            merged[key] = entry
    return merged


def placeholders(text: str) -> set[str]:
    """Names of the placeholders of a text. Raises ValueError for unbalanced braces and for unnamed placeholders."""
    names = set()
    for _, field, spec, _ in string.Formatter().parse(text):
        if field is None:
            continue
        name = field.split(".")[0].split("[")[0]
        if not name.isidentifier():
            raise ValueError(f"placeholder {{{field}}} has no name; name it, or double the braces of a formula")
        names.add(name)
        names |= placeholders(spec or "")
    return names


class Catalogue:
    """Layers of messages; the first layer that knows a key wins."""

    def __init__(self, *layers: Mapping[str, Entry]):
        self.layers = layers

    def __contains__(self, key: str) -> bool:
        return any(key in layer for layer in self.layers)

    def keys(self) -> set[str]:
        return set().union(*self.layers) if self.layers else set()

    def entry(self, key: str) -> Entry:
        """Both texts of a known key, placeholders unfilled; a missing one is that of the other language."""
        found = next(layer[key] for layer in self.layers if key in layer)
        return {lang: found.get(lang) or found[other(lang)] for lang in LANGUAGES}

    def text(self, key: str, lang: str, /, *, strict: bool = False, **values: Any) -> str:
        """The text of `key` in `lang` with its placeholders filled; see the module docstring for what is missing."""
        checked_language(lang)
        entry = next((layer[key] for layer in self.layers if key in layer), None)
        if entry is None:
            if strict:
                raise MessageError(f"no message {key!r}; add it with en and ja to the lesson's messages.yaml")
            return key
        if not entry.get(lang) and strict:
            raise MessageError(f"message {key!r} has no text in {lang!r}; add it beside the other language")
        template = entry.get(lang) or entry.get(other(lang)) or key
        try:
            return template.format(**values)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            if strict:
                reason = f"{type(error).__name__}: {error}"
                raise MessageError(f"message {key!r} cannot be filled with {sorted(values)} ({reason})") from None
            return template


_language = "en"
_lesson: Mapping[str, Entry] = {}


def set_language(lang: str) -> None:
    """Choose the language of `t` for this process. Raises ValueError for anything but "en" and "ja"."""
    global _language
    _language = checked_language(lang)


def get_language() -> str:
    """The current language, "en" until `set_language` is called."""
    return _language


def use_lesson(folder: Path | None) -> None:
    """Put the texts of a lesson folder (its `messages.yaml`, if any) before the shared ones; None takes them away."""
    global _lesson
    path = Path(folder) / "messages.yaml" if folder is not None else None
    _lesson = load_messages(path) if path is not None and path.exists() else {}


def catalogue() -> Catalogue:
    """The current stack: the lesson's texts, then the shared ones."""
    return Catalogue(_lesson, common_messages())


def t(key: str, /, *, lang: str | None = None, **values: Any) -> str:
    """The text of `key` in the current language (or in `lang`), its `{placeholders}` filled from `values`.

    Never raises for a missing key or value (see the module docstring); ValueError for an unknown `lang`.
    """
    return catalogue().text(key, lang or _language, **values)
