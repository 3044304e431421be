"""Wraps lines of code that became too long when texts were put into them."""

from __future__ import annotations

import ast
import re
import unicodedata

WIDTH = 120
_TEXT = re.compile(r"""([rfRF]*)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")
_WIDE = "\u3000-\u9fff\uff00-\uffef"
_ATOM = re.compile(rf"\{{\{{|\}}\}}|\{{[^{{}}]*\}}|\\.|[^\s\\{{}}{_WIDE}]+\s*|[{_WIDE}][、。)」]*|.")


def wrapped(code: str, known: str) -> str:
    """The code with its lines of more than 120 columns wrapped, but for those that stand in `known`.

    Elements inside brackets get a line each, what stands in brackets gets a line of its own, and long texts become
    adjacent literals: whichever comes first and helps. A line that none of it helps stays.
    """
    lines, seen, index = code.split("\n"), set(known.split("\n")), 0
    while index < len(lines):
        line = lines[index]
        if width(line) > WIDTH and line not in seen and "#" not in line:
            tree = ast.parse("\n".join(lines))
            inside = index + 1 not in {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}
            for attempt in (_elements(line, inside), _brackets(line), _pieces(line, inside)):
                changed = [*lines[:index], *attempt, *lines[index + 1 :]]
                if attempt and max(map(width, attempt)) < width(line) and _same(changed, tree):
                    lines = changed
                    break
            else:
                index += 1
        else:
            index += 1
    return "\n".join(lines)


def width(line: str) -> int:
    """Columns of a line; Japanese characters take two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line)


def _same(lines: list[str], tree: ast.Module) -> bool:
    try:
        return ast.dump(ast.parse("\n".join(lines))) == ast.dump(tree)
    except SyntaxError:
        return False


def _outline(line: str) -> list[tuple[int, str, int]]:
    """(position, sign, depth) of brackets and commas outside of texts; a bracket has the depth around it."""
    found, depth = [], 0
    for position, sign in enumerate(_TEXT.sub(lambda match: "x" * len(match[0]), line)):
        depth -= sign in ")]}"
        if sign in "()[]{},":
            found.append((position, sign, depth))
        depth += sign in "([{"
    return found


def _elements(line: str, inside: bool) -> list[str]:
    """A line for each element of a line that stands inside brackets."""
    commas = [position for position, sign, depth in _outline(line) if sign == "," and depth == 0]
    if not inside or not commas or re.search(r"\b(lambda|for)\b", _TEXT.sub("", line)):
        return []
    indent = line[: len(line) - len(line.lstrip())]
    parts = [line[start:end].strip() for start, end in zip([0, *(c + 1 for c in commas)], [*commas, None], strict=True)]
    return [f"{indent}{part}," for part in parts if part] if len([part for part in parts if part]) > 1 else []


def _brackets(line: str) -> list[str]:
    """Head, content and tail of the last outer brackets, if they hold the longest text of the line."""
    outline = [(position, sign) for position, sign, depth in _outline(line) if depth == 0 and sign != ","]
    texts = sorted(_TEXT.finditer(line), key=lambda match: len(match[0]))
    for (start, opening), (end, closing) in reversed(list(zip(outline, outline[1:], strict=False))):
        if opening in "([{" and closing in ")]}" and (not texts or start < texts[-1].start() < end):
            indent = line[: len(line) - len(line.lstrip())]
            return [line[: start + 1], f"{indent}    {line[start + 1 : end].strip()}", indent + line[end:]]
    return []


def _pieces(line: str, inside: bool) -> list[str]:
    """The longest text of the line as adjacent literals, in brackets unless it stands alone in some."""
    text = max(_TEXT.finditer(line), key=lambda match: len(match[0]), default=None)
    if text is None:
        return []
    indent = line[: len(line) - len(line.lstrip())]
    head, tail, quote = line[: text.start()], line[text.end() :], text[2][0]
    alone = inside and not head.strip() and not tail.strip()
    margin = indent if alone else indent + "    "
    pieces = [""]
    for atom in _ATOM.findall(text[2][1:-1]):
        if pieces[-1] and width(pieces[-1] + atom.rstrip()) > WIDTH - len(margin) - 5:
            pieces.append("")
        pieces[-1] += atom
    literals = [
        f"{margin}{text[1] if '{' in piece or '}' in piece else text[1].replace('f', '')}{quote}{piece}{quote}"
        for piece in pieces
    ]
    return literals if alone else [f"{head}(", *literals, f"{indent}){tail}"]
