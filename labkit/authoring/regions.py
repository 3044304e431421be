"""What differs inside a code cell: solutions that the student edition hides, comments and docstrings in one language.

The grammar is in the docstring of `labkit.authoring.source`. Everything here works on the text of one cell and knows
nothing of files; positions are 0-based line offsets in the cell.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from labkit.errors import LabkitError

_MARKER = re.compile(r"\s*# *(BEGIN|END) SOLUTION\s*")
_COMMENT = re.compile(r"^( *)# ?(en|ja): ?(.*)(\n|\Z)", re.M)
_DOCSTRING = re.compile(r'^( *)"""en: (?P<en>(?:(?!""").)*?)\n *ja: (?P<ja>(?:(?!""").)*?)\s*"""', re.M | re.S)
_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class RegionError(LabkitError, ValueError):
    """A region that cannot be used: `offset` is the line in the cell, `cure` how to mend it."""

    def __init__(self, offset: int, message: str, cure: str):
        super().__init__(message)
        self.offset, self.message, self.cure = offset, message, cure


@dataclass(frozen=True)
class Block:
    """Consecutive lines inside or outside of a solution, without its markers; `offset` of the first one."""

    solution: bool
    lines: tuple[str, ...]
    offset: int
    indent: str = ""


def split(code: str) -> list[Block]:
    """The blocks of a cell in order. Raises RegionError for unbalanced markers."""
    blocks: list[Block] = []
    solution, indent, start, lines = False, "", 0, []
    for offset, line in enumerate([*code.split("\n"), None]):
        marker = _MARKER.fullmatch(line) if line is not None else None
        if line is not None and not marker:
            lines.append(line)
            continue
        if line is None and solution:
            raise RegionError(start - 1, "BEGIN SOLUTION without END", "add # END SOLUTION to the cell")
        if marker and (marker[1] == "BEGIN") == solution:
            raise RegionError(offset, f"{line.strip()} inside or outside of a region", "regions are not nested")
        if lines or solution:
            blocks.append(Block(solution, tuple(lines), start, indent))
        solution = bool(marker) and marker[1] == "BEGIN"
        indent = line[: len(line) - len(line.lstrip())] if solution else ""
        start, lines = offset + 1, []
    return blocks


def solution_code(code: str, lang: str) -> str:
    """The cell of the solution edition in one language: without markers."""
    return in_language("\n".join(line for block in split(code) for line in block.lines), lang)


def student_code(code: str, lang: str, comment: str) -> str:
    """The cell of the student edition: each solution is replaced by a stub that lets the notebook run on.

    `comment` is the line that a stub carries ("Your code here."). RegionError where no stub can be made.
    """
    lines: list[str] = []
    for block in split(code):
        stub = _stub(code, block, comment) if block.solution else block.lines
        lines += [f"{block.indent}{line}" if line else "" for line in stub]
    return in_language("\n".join(lines), lang)


def in_language(code: str, lang: str) -> str:
    """The code with comment lines and docstrings in `lang` only, without their marks."""

    def docstring(match: re.Match) -> str:
        text = match[lang].rstrip()
        return f'{match[1]}"""{text}' + (f"\n{match[1]}" if "\n" in text else "") + '"""'

    code = _COMMENT.sub(lambda match: f"{match[1]}# {match[3]}".rstrip() + match[4] if match[2] == lang else "", code)
    return _DOCSTRING.sub(docstring, code)


def only_language(code: str, lang: str) -> str:
    """Comment lines and docstrings of one language, each in its line; everything else blank."""
    spans = [match.span(3) for match in _COMMENT.finditer(code) if match[2] == lang]
    spans += [match.span(lang) for match in _DOCSTRING.finditer(code)]
    blank = re.sub(r"[^\n]", " ", code)
    for start, end in spans:
        blank = blank[:start] + code[start:end] + blank[end:]
    return blank


def one_sided(code: str) -> list[tuple[int, str]]:
    """Groups of `# en:`/`# ja:` lines, and docstrings, that lack a language: (offset, the language that is missing)."""
    found, group, start = [], set(), 0
    for offset, line in enumerate([*code.split("\n"), ""]):
        match = _COMMENT.fullmatch(line)
        if match:
            start = start if group else offset
            group.add(match[2])
        elif group:
            if len(group) == 1:
                found.append((start, "ja" if "en" in group else "en"))
            group = set()
    starts = {code.count("\n", 0, match.start()) for match in _DOCSTRING.finditer(code)}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) and node.body[0].lineno - 1 not in starts:
            found.append((node.body[0].lineno - 1, "ja"))
    return found


def _stub(code: str, block: Block, comment: str) -> list[str]:
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
            cure = "keep its head outside and put the region into its methods"
            raise RegionError(node.lineno - 1, "a class as a whole has no stub", cure)
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
