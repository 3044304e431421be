"""Lints of prose: pairs of languages that should say the same, and the agreed Japanese terms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from labkit.authoring.source import Problem, Source, stale_pairs
from labkit.course.i18n import LANGUAGES, other
from labkit.course.yamlfile import load_yaml

GLOSSARY = Path(__file__).parents[1] / "glossary.yaml"

_CODE = re.compile(
    r"^ *(?P<fence>```+|~~~+)[^\n]*\n.*?^ *(?P=fence)[^\n]*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)", re.M | re.S
)
_MATH = re.compile(
    r"\$\$(?P<display>.+?)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<paren>.+?)\\\)"
    r"|(?P<env>\\begin\{(?P<name>[a-z]+\*?)\}.+?\\end\{(?P=name)\})"
    r"|(?<![\\$\w])\$(?!\s)(?P<inline>(?:[^$\n\\]|\\.)+?)(?<!\s)\$(?!\d)",
    re.S,
)
_LINK = re.compile(
    r"(?P<image>!?)\[(?:[^\[\]]|\[[^\]]*\](?:\([^)]*\))?)*\]\(\s*<?(?P<inline>[^()\s>]+(?:\([^()\s]*\)[^()\s>]*)*)>?[^)]*\)"
    r"|(?:src|href)=[\"'](?P<html>[^\"']+)[\"']"
    r"|(?P<bare>https?://[^\s<>()\[\]\"'`、。「」()]+)"
    r"|^\[[^\]]+\]:\s*(?P<reference>\S+)",
    re.M,
)


def blank(pattern: re.Pattern, text: str) -> str:
    """`text` with every match of `pattern` replaced by blanks (line breaks stay, so offsets and lines hold)."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def formulas(markdown: str) -> set[str]:
    """The formulas of a text in a form that ignores spacing, the words inside \\text{}, and closing punctuation."""
    text = blank(_CODE, markdown)
    found = set()
    for match in _MATH.finditer(text):
        body = next(group for group in match.group("display", "bracket", "paren", "env", "inline") if group)
        body = re.sub(r"\\(text|textrm|textbf|mbox)\s*\{[^{}]*\}", r"\\\1{}", body)
        tokens = re.findall(r"\\[A-Za-z]+|\\.|\S", body, re.S)
        while tokens and tokens[-1] in (".", ",", "、", "。", "\\,"):
            tokens.pop()
        found.add(" ".join(tokens))
    return found


def links(markdown: str) -> set[str]:
    """Targets of links and images, with what legitimately differs between languages made equal.

    Language folders and file endings, headings inside a page, and the same encyclopedia in another language are equal.
    """
    found = set()
    for match in _LINK.finditer(blank(_CODE, markdown)):
        image = match["image"] or ("!" if match["html"] and "src" in match[0][:3] else "")
        target = (match["inline"] or match["html"] or match["reference"] or match["bare"]).rstrip(".,;:")
        if re.match(r"https?://(en|ja)\.wikipedia\.org/", target):
            target = "wikipedia"
        elif not re.match(r"[a-z]+://", target):
            target = re.sub(r"#.*", "#", target)
        target = re.sub(r"(^|/)(en|ja)/", r"\1LANG/", target)
        target = re.sub(r"([._-])(en|ja)(?=\.[a-z]+$)", r"\1LANG", target).replace("README.LANG.md", "README.md")
        found.add(image + target)
    return found


def headings(markdown: str) -> list[int]:
    """Levels of the headings, in order."""
    return [len(match[1]) for match in re.finditer(r"^(#{1,6})\s", blank(_CODE, markdown), re.M)]


def compare(texts: Mapping[str, str], lines: Mapping[str, int], file: str, what: str) -> Iterator[Problem]:
    """Formulas, links and headings that one language of a text has and the other lacks."""
    kinds = (("math-differs", "the formula", formulas, "$"), ("links-differ", "the link", links, ""))
    for lang in LANGUAGES:
        for rule, name, extract, mark in kinds:
            for item in sorted(extract(texts[other(lang)]) - extract(texts[lang])):
                message = f"{what}: {lang} lacks {name} {mark}{item}{mark} of {other(lang)}"
                yield Problem(file, lines[lang], rule, message, "write it the same way in both languages")
    levels = {lang: headings(texts[lang]) for lang in LANGUAGES}
    if levels["en"] != levels["ja"]:
        message = f"{what}: heading levels are {levels['en']} in en, {levels['ja']} in ja"
        yield Problem(file, lines["ja"], "headings-differ", message, "give both languages the same headings")


def lint_pairs(source: Source, file: str) -> Iterator[Problem]:
    """Stale pairs of a source, and pairs whose formulas, links or headings differ."""
    for uid, cells in stale_pairs(source).items():
        for cell in cells:
            changed = f"the {other(cell.lang)} text of {uid!r} has changed since this {cell.lang} text was confirmed"
            message = changed if cell.pair else f"this {cell.lang} text of {uid!r} has not been confirmed yet"
            cure = f"compare the two, then run labkit build --reconcile {source.number}:{uid}"
            yield Problem(file, cell.line, "pair-stale", message, cure)
    for uid, pair in source.pairs.items():
        if len(pair) == 2:
            texts, lines = ({lang: getattr(pair[lang], name) for lang in pair} for name in ("source", "line"))
            yield from compare(texts, lines, file, repr(uid))


@dataclass(frozen=True)
class Term:
    """An agreed Japanese term and the variants it replaces."""

    en: str
    ja: str
    variants: tuple[str, ...]


@lru_cache(maxsize=4)
def glossary(path: Path = GLOSSARY) -> tuple[Term, ...]:
    """The agreed terms. Raises YamlError or ValueError for a file that is not a list of {en, ja, not}."""
    terms = []
    for entry in load_yaml(path):
        if not isinstance(entry, dict) or set(entry) != {"en", "ja", "not"}:
            raise ValueError(f"{path.name}: an entry needs en, ja and not, got {entry!r:.80}")
        terms.append(Term(entry["en"], entry["ja"], tuple(entry["not"])))
    return tuple(terms)


def lint_terms(text: str, line: int, file: str) -> Iterator[Problem]:
    """Rejected variants in a Japanese text that begins at `line` of `file`."""
    prose = blank(_TITLE, blank(_LINK_TARGET, blank(_MATH, blank(_CODE, text))))
    agreed = [match.span() for term in glossary() for match in re.finditer(re.escape(term.ja), prose)]
    found = [
        (match.span(), term)
        for term in glossary()
        for variant in term.variants
        for match in re.finditer(re.escape(variant), prose)
    ]
    spans = [span for span, _ in found]
    for span, term in found:
        inside = [other for other in [*agreed, *spans] if other != span and other[0] <= span[0] and span[1] <= other[1]]
        if not inside:
            message = f"{prose[slice(*span)]!r} is not the agreed term for {term.en!r}"
            where = line + prose.count("\n", 0, span[0])
            yield Problem(file, where, "glossary", message, f"write {term.ja} (labkit/authoring/glossary.yaml)")


_TITLE = re.compile(r"『[^』\n]*』")  # titles and words of others keep their own terms
_LINK_TARGET = re.compile(r"(?<=\]\()[^)]*(?=\))|https?://[^\s<>()\[\]\"'、。]+|<[^<>\n]+>|\{[^{}\n]*\}")
