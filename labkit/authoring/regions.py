"""Regions inside a code cell: what the student edition hides, what it shows instead, and comments in one language.

The grammar is in the docstring of `labkit.authoring.source`. Everything here works on the text of one cell and knows
nothing of files; positions are 0-based line offsets in the cell.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from labkit.errors import LabkitError

_MARKER = re.compile(r"\s*# *(BEGIN|END) (SOLUTION|STUB)\s*")
_LANGUAGE = re.compile(r"(\s*)# ?(en|ja): ?(.*)")


class RegionError(LabkitError, ValueError):
    """A region that cannot be used: `offset` is the line in the cell, `cure` how to mend it."""

    def __init__(self, offset: int, message: str, cure: str):
        super().__init__(message)
        self.offset, self.message, self.cure = offset, message, cure


@dataclass(frozen=True)
class Block:
    """Consecutive lines of one kind ("text", "solution" or "stub") without their markers; `offset` of the first one."""

    kind: str
    lines: tuple[str, ...]
    offset: int
    indent: str = ""


def split(code: str) -> list[Block]:
    """The blocks of a cell in order. Raises RegionError for unbalanced or misplaced markers."""
    blocks: list[Block] = []
    kind, indent, start, lines = "text", "", 0, []
    for offset, line in enumerate([*code.split("\n"), None]):
        marker = _MARKER.fullmatch(line) if line is not None else None
        if line is not None and not marker:
            lines.append(line)
            continue
        if line is None and kind != "text":
            raise RegionError(start - 1, f"BEGIN {kind.upper()} without END", f"add # END {kind.upper()} to the cell")
        if marker and (marker[1] == "BEGIN") != (kind == "text"):
            raise RegionError(offset, f"{line.strip()} inside or outside of a region", "regions are not nested")
        if marker and marker[1] == "END" and marker[2].lower() != kind:
            raise RegionError(offset, f"{line.strip()} ends a {kind} region", f"write # END {kind.upper()}")
        if lines or kind != "text":
            blocks.append(Block(kind, tuple(lines), start, indent))
        if marker and marker[1] == "BEGIN":
            kind, indent = marker[2].lower(), line[: len(line) - len(line.lstrip())]
            if kind == "stub" and not (blocks and blocks[-1].kind == "solution"):
                raise RegionError(offset, "a stub region without a solution", "put it directly after # END SOLUTION")
        else:
            kind, indent = "text", ""
        start, lines = offset + 1, []
    return blocks


def solution_code(code: str, lang: str) -> str:
    """The cell of the solution edition in one language: no markers, no stubs."""
    lines = [line for block in split(code) if block.kind != "stub" for line in block.lines]
    return in_language("\n".join(lines), lang)


def student_code(code: str, lang: str, comment: str) -> str:
    """The cell of the student edition: each solution is replaced by its stub.

    `comment` is the line that a generated stub carries ("Your code here."). RegionError where no stub can be made.
    """
    blocks, lines = split(code), []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.kind == "text":
            lines += block.lines
        elif block.kind == "stub":
            lines += [_uncommented(block, index) for index in range(len(block.lines))]
        elif not (following and following.kind == "stub"):
            lines += [f"{block.indent}{line}" if line else "" for line in _default_stub(code, block, comment)]
    return in_language("\n".join(lines), lang)


def in_language(code: str, lang: str) -> str:
    """The code with the comment lines of `lang` as plain comments and those of the other language gone."""
    lines = []
    for line in code.split("\n"):
        match = _LANGUAGE.fullmatch(line)
        if not match:
            lines.append(line)
        elif match[2] == lang:
            lines.append(f"{match[1]}# {match[3]}".rstrip())
    return "\n".join(lines)


def only_language(code: str, lang: str) -> str:
    """The comment lines of one language, each in its line; all other lines empty."""
    matches = (_LANGUAGE.fullmatch(line.replace("# #", "#")) for line in code.split("\n"))
    return "\n".join(match[3] if match and match[2] == lang else "" for match in matches)


def one_sided_comments(code: str) -> list[tuple[int, str]]:
    """Groups of `#en:`/`#ja:` lines that lack one language, as (offset, the language that is missing)."""
    found, group, start = [], set(), 0
    for offset, line in enumerate([*code.split("\n"), ""]):
        match = _LANGUAGE.fullmatch(line.replace("# #", "#"))
        if match:
            start = start if group else offset
            group.add(match[2])
        elif group:
            if len(group) == 1:
                found.append((start, "ja" if "en" in group else "en"))
            group = set()
    return found


def _uncommented(block: Block, index: int) -> str:
    line = block.lines[index]
    match = re.fullmatch(r"(\s*)# ?(.*)", line)
    if line.strip() and not match:
        cure = "comment every line of the stub out: # return None"
        raise RegionError(block.offset + index, "a line of the stub is not commented out", cure)
    return f"{match[1]}{match[2]}".rstrip() if match else ""


def _default_stub(code: str, block: Block, comment: str) -> list[str]:
    """Lines, without the region's own indent, that stand for a solution until the learner writes one."""
    first, last = block.offset + 1, block.offset + len(block.lines)  # as ast counts lines
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise RegionError((error.lineno or 1) - 1, f"not valid Python: {error.msg}", "correct the code") from None
    scope = _scope(tree, first, last)
    if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
        return [f"# {comment}", "return None"]
    statements = [
        node
        for parent in ast.walk(scope)
        for node in _bodies(parent)
        if first <= _first_line(node) and node.end_lineno <= last and not first <= getattr(parent, "lineno", 0) <= last
    ]
    if not statements:
        raise RegionError(block.offset - 1, "the solution region holds no statement", "put code into it or remove it")
    lines: list[str] = []
    for node in statements:
        if isinstance(node, ast.ClassDef):
            cure = "write one: # BEGIN STUB ... # END STUB directly after # END SOLUTION"
            raise RegionError(node.lineno - 1, "a class needs a hand-written stub", cure)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines += _function_stub(code, node, comment)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            lines.append(ast.unparse(node))
        else:
            names = [f"{name} = None" for name in _assigned(node)]
            lines += [name for name in names if name not in lines]
    if any(line.endswith(" = None") for line in lines):
        lines.insert(0, f"# {comment}")
    return lines or [f"# {comment}", "pass"]


def _scope(tree: ast.Module, first: int, last: int) -> ast.AST:
    """The innermost function or class around the lines first..last, else the module."""
    scope: ast.AST = tree
    for node in ast.walk(tree):  # breadth first, so inner scopes come later
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            # Comments before the first and after the last statement do not count for ast, so compare with overlap.
            if node.lineno < first <= (node.end_lineno or 0) and node.body[0].lineno <= last:
                scope = node
    return scope


def _bodies(node: ast.AST) -> list[ast.stmt]:
    fields = (getattr(node, name, []) for name in ("body", "orelse", "finalbody"))
    return [child for field in fields if isinstance(field, list) for child in field if isinstance(child, ast.stmt)]


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _function_stub(code: str, node: ast.FunctionDef | ast.AsyncFunctionDef, comment: str) -> list[str]:
    """Signature and docstring as they were written; the body only says `return None`."""
    lines, body = code.split("\n"), node.body[0]
    documented = ast.get_docstring(node, clean=False) is not None
    if body.lineno == node.lineno:  # def f(x): return x
        head = lines[_first_line(node) - 1 : node.lineno - 1] + [lines[node.lineno - 1][: body.col_offset]]
    else:
        head = lines[_first_line(node) - 1 : body.end_lineno if documented else body.lineno - 1]
    head = [line[node.col_offset :].rstrip() for line in head]
    while not head[-1] or head[-1].lstrip().startswith("#"):  # comments of the solution
        head.pop()
    return [*head, f"    # {comment}", "    return None", ""]


def _assigned(node: ast.stmt) -> list[str]:
    """Names that a statement binds at its own level, in order; not those inside functions or comprehensions."""
    if isinstance(node, ast.AugAssign):
        return []
    names: list[str] = []
    stack: list[ast.AST] = [node]
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp)
    while stack:
        current = stack.pop(0)
        if isinstance(current, inner + (ast.GeneratorExp, ast.AugAssign)):
            continue
        if isinstance(current, ast.Name) and isinstance(current.ctx, ast.Store) and current.id not in names:
            names.append(current.id)
        loop = isinstance(current, ast.For | ast.AsyncFor)  # nobody needs the loop variable afterwards
        stack = [child for child in ast.iter_child_nodes(current) if not (loop and child is current.target)] + stack
    return names
