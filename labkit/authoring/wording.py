"""Puts an edition's texts where a source says `t("key")`, so that learners read words and not keys.

`t("l06.kept", kept=len(normal))` becomes `f"The normal stage keeps {len(normal)} pictures"`. A value that cannot stand
in an f-string of Python 3.11 (quotes inside quotes, a backslash) is filled in by `.format(kept=...)` instead, in both
languages alike, so that the editions differ in nothing but their texts. A key that is computed stays a call of `t`.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator, Mapping

from labkit.authoring.wrapping import wrapped
from labkit.course.i18n import LANGUAGES, Catalogue

Part = tuple[str, str | None, str]  # text, then the source of a value (None: there is none) and its format


def with_texts(code: str, lang: str, catalogue: Catalogue) -> str:
    """The code with a literal for every `t("key", ...)` that the catalogue knows."""
    if "t(" not in code:
        return code
    source = code
    while edits := [(call, _literal(call, code, lang, catalogue)) for call in _innermost(ast.parse(code), catalogue)]:
        code = _replaced(code, edits)
    return wrapped(code, source)


def uses_t(code: str) -> bool:
    """Whether calls of `t` are left."""
    return any(_is_t(node) for node in ast.walk(ast.parse(code)))


def _is_t(node: ast.AST) -> bool:
    """`t(...)` or `lab.t(...)`."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("t", "lab.t")


def _innermost(tree: ast.Module, catalogue: Catalogue) -> Iterator[ast.Call]:
    """Calls of `t` with a known key that hold no other such call and do not stand inside an f-string."""
    inside = {node for outer in ast.walk(tree) if isinstance(outer, ast.JoinedStr) for node in ast.walk(outer)}

    def fits(node: ast.AST) -> bool:
        if not _is_t(node) or len(node.args) != 1 or node in inside:
            return False
        return isinstance(node.args[0], ast.Constant) and node.args[0].value in catalogue

    for node in ast.walk(tree):
        if fits(node) and not any(fits(inner) for inner in ast.walk(node) if inner is not node):
            yield node


def _literal(call: ast.Call, code: str, lang: str, catalogue: Catalogue) -> str:
    """What stands for the call: a string, an f-string, or a string with `.format(...)`."""
    values = {word.arg: word.value for word in call.keywords}
    entry = catalogue.entry(call.args[0].value)
    strings = {one: _f_string(entry[one], values, code) for one in LANGUAGES}
    if all(strings.values()):
        return strings[lang]
    words = [f"{word.arg}=" if word.arg else "**" for word in call.keywords]
    filled = [word + _source(keyword.value, code) for word, keyword in zip(words, call.keywords, strict=True)]
    return f"{_quoted(entry[lang])}.format({', '.join(filled)})"


def _f_string(text: str, values: Mapping[str | None, ast.expr], code: str) -> str | None:
    """The text as a literal with its values in place; None where Python 3.11 would not read it as it is meant."""
    body, fields = "", []
    for before, field, spec, conversion in string.Formatter().parse(text):
        body += before.replace("{", "{{").replace("}", "}}")
        if field is None:
            continue
        value = values.get(field)
        if value is None or "{" in spec or conversion:
            return None
        if isinstance(value, ast.Constant):
            body += format(value.value, spec).replace("{", "{{").replace("}", "}}")
            continue
        source = _source(value, code)
        source = source if "'" in source else source.replace('"', "'")
        if any(sign in source for sign in '"\\\n#') or source.startswith("{"):
            return None
        body += f"{{{source}:{spec}}}" if spec else f"{{{source}}}"
        if ast.unparse(value) in fields and not isinstance(value, ast.Name | ast.Attribute):
            return None  # would be computed twice
        fields.append(ast.unparse(value))
    if not fields:
        return _quoted(body.replace("{{", "{").replace("}}", "}"))
    literal = _quoted(body, "f")
    try:
        read = ast.parse(literal, mode="eval").body
    except SyntaxError:
        return None
    found = [ast.unparse(part.value) for part in read.values if isinstance(part, ast.FormattedValue)]
    return literal if found == fields else None


def _quoted(text: str, prefix: str = "") -> str:
    """A literal in double quotes, raw where the text has backslashes."""
    raw = "\\" in text and '"' not in text and "\n" not in text
    if not raw:
        text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{"r" if raw else ""}{prefix}"{text}"'


def _source(node: ast.expr, code: str) -> str:
    return ast.get_source_segment(code, node) or ast.unparse(node)


def _replaced(code: str, edits: list[tuple[ast.Call, str]]) -> str:
    """The code with the calls replaced; ast counts columns in bytes."""
    lines = code.encode("utf-8").split(b"\n")
    for call, text in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        first, last = call.lineno - 1, call.end_lineno - 1
        joined = lines[first][: call.col_offset] + text.encode("utf-8") + lines[last][call.end_col_offset :]
        lines[first : last + 1] = joined.split(b"\n")
    return b"\n".join(lines).decode("utf-8")
