"""Lints of code cells: comments, the texts that learners see, and the catalogue keys that stand for them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator

from labkit.authoring.regions import one_sided
from labkit.authoring.source import Cell, Problem, Source
from labkit.course.i18n import Catalogue, placeholders

_SHOWN_BY = frozenset(
    "print display Markdown HTML warn title suptitle supxlabel supylabel set_title set_xlabel set_ylabel set_zlabel"
    " set_label xlabel ylabel zlabel text figtext annotate legend set_text".split()
)
_SHOWN_AS = frozenset(
    "title suptitle label labels xlabel ylabel caption captions description desc tooltip alt message names"
    " measured".split()
)
_TEXT_METHODS = frozenset("format join upper lower strip replace ljust rjust center".split())
_MARKED = re.compile(r"# ?(en|ja):|# (BEGIN|END) SOLUTION|# fmt: skip")
_JAPANESE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")


def lint_code(source: Source, catalogue: Catalogue | None, file: str) -> Iterator[Problem]:
    """All lints that look at one code cell at a time. Without a catalogue, its keys are not looked at.

    What the builder refuses (markers, syntax, solution text for students) is not looked for here.
    """
    for cell in source.code_cells:
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            continue  # the builder says so
        if ("# BEGIN SOLUTION" in cell.source) != ("exercise" in cell.tags):
            message = "the tag exercise and a solution region do not go together"
            cure = "an exercise has the tag, an exercise id and # BEGIN SOLUTION ... # END SOLUTION"
            yield Problem(file, cell.line, "malformed-source", message, cure)
        yield from _comments(cell, tree, file)
        yield from literals(tree, file, cell.body_line)
        if catalogue is not None:
            yield from messages(tree, catalogue, file, cell.body_line)


def _comments(cell: Cell, tree: ast.Module, file: str) -> Iterator[Problem]:
    for offset, missing in one_sided(cell.source):
        message, cure = f"a comment or docstring without {missing}", "write it in both languages: en: ... and ja: ..."
        yield Problem(file, cell.body_line + offset, "comment-language", message, cure)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg | ast.keyword) and node.arg}
    for token in tokenize.generate_tokens(io.StringIO(cell.source).readline):
        if token.type == tokenize.COMMENT and not _MARKED.match(token.string):
            words = _words(re.sub(r"\[.*?\]", "", token.string), names)
            if words or _JAPANESE.search(token.string):
                line = cell.body_line + token.start[0] - 1
                message, cure = f"a comment in one language: {token.string}", "write it as # en: and # ja: lines above"
                yield Problem(file, line, "comment-language", message, cure)


# ---- learner-facing literals ---------------------------------------------------------------------------------------


def literals(tree: ast.Module, file: str, first_line: int) -> Iterator[Problem]:
    """String literals that belong into the catalogue.

    Letters that are not ASCII; and English words in what a call shows: the arguments of print, title, xlabel, ..., and
    keywords such as title= and label= of any call. Words are not counted inside $formulas$, `code` and <tags>, nor are
    names that the cell itself uses, ALL CAPITALS, CamelCase, snake_case, or anything shorter than three letters.
    """
    seen: set[int] = set()
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _foreign(node.value):
            seen.add(id(node))
            message = f"a literal that is not English: {node.value[:40]!r}"
            cure = 'put the text into messages.yaml and write t("key")'
            yield Problem(file, first_line + node.lineno - 1, "non-english-literal", message, cure)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assigned = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and "prompt" not in target.id
    }
    for shown in _shown(tree):
        for part in _texts(shown, assigned):
            words = _words("".join(_constants(part)), names)
            if words and id(part) not in seen:
                seen.add(id(part))
                message = f"an English text that learners see: {' '.join(words)[:60]!r}"
                cure = 'put the text into messages.yaml in both languages and write t("key")'
                yield Problem(file, first_line + part.lineno - 1, "non-english-literal", message, cure)


def _foreign(text: str) -> bool:
    return any(letter.isalpha() and not letter.isascii() for letter in text)


def _shown(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from node.args if function_name(node) in _SHOWN_BY else []
            yield from (keyword.value for keyword in node.keywords if keyword.arg in _SHOWN_AS)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from node.exc.args
        elif isinstance(node, ast.Assert) and node.msg:
            yield node.msg


def _texts(node: ast.expr, assigned: dict[str, ast.expr], depth: int = 0) -> Iterator[ast.expr]:
    """The literals (plain or f-string) that an expression puts together; other calls, such as t(...), are opaque."""
    if depth > 8:
        return
    inner: Iterable[ast.expr] = ()
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield node
    elif isinstance(node, ast.BinOp):
        inner = (node.left, node.right)
    elif isinstance(node, ast.List | ast.Tuple | ast.Set):
        inner = node.elts
    elif isinstance(node, ast.Dict):
        inner = node.values
    elif isinstance(node, ast.IfExp):
        inner = (node.body, node.orelse)
    elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp):
        inner = (node.elt,)
    elif isinstance(node, ast.Starred):
        inner = (node.value,)
    elif isinstance(node, ast.Name) and node.id in assigned:
        inner = (assigned[node.id],)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TEXT_METHODS:
        inner = (node.func.value, *node.args)
    for child in inner:
        yield from _texts(child, assigned, depth + 1)


def _constants(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [node.value]
    return [part.value if isinstance(part, ast.Constant) else "\0" for part in getattr(node, "values", [])]


def _words(text: str, names: set[str]) -> list[str]:
    text = re.sub(r"\$[^$]*\$|`[^`]*`|<[^<>]*>|https?://\S+|\{[^{}]*\}|%[-#0 +]*[\d.]*[a-z]", " ", text)
    found = re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text)
    return [word for word in found if len(word) > 2 and re.fullmatch(r"[A-Z]?[a-z]+", word) and word not in names]


# ---- catalogue keys ------------------------------------------------------------------------------------------------


def messages(tree: ast.Module, catalogue: Catalogue, file: str, first_line: int) -> Iterator[Problem]:
    """`t("key", ...)` and `lab.t("key", ...)` with an unknown key, or without a value that the text needs."""
    for node, key in calls(tree, ("t",)):
        line = first_line + node.lineno - 1
        if key not in catalogue:
            cure = "add it with en and ja to messages.yaml of the lesson"
            yield Problem(file, line, "message-missing", f"there is no message {key!r}", cure)
            continue
        given = {keyword.arg for keyword in node.keywords}
        if None in given:  # **values
            continue
        entry = next(layer[key] for layer in catalogue.layers if key in layer)
        try:
            wanted = set().union(*(placeholders(text) for text in entry.values()))
        except ValueError:
            continue  # reported where the message is defined
        lacking, unused = sorted(wanted - given), sorted(given - wanted - {"lang"})
        if lacking or unused:
            wrong = f"needs {', '.join(lacking)}" if lacking else f"has no placeholder {', '.join(unused)}"
            cure = "the keywords of t() are the placeholders of the text"
            yield Problem(file, line, "message-placeholders", f"message {key!r} {wrong}", cure)


def function_name(node: ast.Call) -> str:
    """The last part of what is called: "check" for check(...) and lab.check(...), "" for anything stranger."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def calls(tree: ast.AST, functions: Iterable[str]) -> Iterator[tuple[ast.Call, str]]:
    """Calls f("text", ...) and lab.f("text", ...) of the given functions, with that text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            func = node.func
            owner = getattr(func.value, "id", None) if isinstance(func, ast.Attribute) else "lab"
            if function_name(node) in functions and owner == "lab" and isinstance(node.args[0].value, str):
                yield node, node.args[0].value
