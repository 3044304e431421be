'''How a lesson is written, and the reader of such files.

A lesson is one py:percent file, `notebooks/src/NN_name.py`, with both languages side by side. `labkit build` makes
four notebooks of it: student and solution edition, each in English and Japanese. Header, install cell and footer are
added by the builder: do not write them. What is known about the lesson (title, times, exercises, ...) stands in
`labkit/course/lessons/lNN/lesson.yaml`, the texts that code shows in `messages.yaml` beside it.

**Markdown cells** come in pairs, English and Japanese next to each other in either order, with one uid:

    # %% [markdown] lang="en" uid="forward" pair="5e1f0c2a"
    # ## The forward process
    # Noise is added step by step: $x_t = \\sqrt{\\bar\\alpha_t}\\,x_0 + \\sqrt{1-\\bar\\alpha_t}\\,\\epsilon$.

    # %% [markdown] lang="ja" uid="forward" pair="90b7d3aa"
    # ## 拡散過程
    # ...

`pair` is the hash of the *other* cell as it was when the two were last known to agree. Leave it out at first. Once you
have compared the two texts, `labkit build --reconcile forward` (or `01:forward`) writes both hashes; without uids,
`--reconcile` does so for every pair that needs it and lists them. Edit one side later, and `labkit lint` reports the
other one as stale until it has been looked at. A pair has the same formulas, links, images and heading levels. The body
may also stand between two lines of three double quotes instead of behind `# `. Links to other lessons
are their notebooks (`00_start_here.ipynb`); all other links are absolute, because learners work in a folder that holds
nothing but notebooks.

**Code cells** are shared by both languages, are plain Python (no `%magic`, no `!shell`), and carry a uid and tags:

    # %% uid="setup" tags=["setup"]
    # %% uid="noise" tags=["exercise"] exercise="add_noise"

| tag                       | meaning                                                                                  |
|---------------------------|------------------------------------------------------------------------------------------|
| `parameters`              | exactly one cell: `tier = "cpu"`, `lang = "en"`, `seed = 0`, `strict = False`,           |
|                           | `interactive = True` and more simple literals; the builder writes the edition's language |
| `setup`                   | exactly one cell, after the parameters: `lab = start("01", tier=tier, lang=lang, ...)`   |
| `exercise`                | has a solution region; `exercise="id"` names its entry in lesson.yaml; the builder adds |
|                           | a line with difficulty, importance and minutes                                           |
| `open`                    | a task without a single answer, judged by a measurement                                  |
| `check`, `quiz`, `widget` | what the cell calls, for the website and for statistics                                  |
| `gpu`, `slow`             | needs a GPU; gets the larger time limit                                                  |
| `hide-input`              | folded code                                                                              |
| `remove-cell`             | not shown on the website                                                                 |
| `instructor`              | code or Markdown that stands in the solution edition only                                |

uids are lower-case letters, digits and hyphens, unique in the file, and become the ids of the notebook's cells.
`header`, `install`, `progress` and `footer` belong to the builder.

**Solution regions** hold what the learner is to write:

    def add_noise(x0, noise, alpha_bar):
        # BEGIN SOLUTION
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        # END SOLUTION

The student edition gets a stub instead that lets the notebook run on, so that `check` can answer "not done yet": inside
a function `return None`; at top level every name that the solution assigns becomes None, and a function keeps its
signature and docstring.

**Comments and docstrings in two languages**: a comment line that starts with `# en:` or `# ja:` stays in that edition
only; write both, next to each other. Docstrings say `en:` first, then `ja:`, each as long as it needs to be:

    def add_noise(x0, noise, alpha_bar):
        """en: Equation (4) of the paper.
        ja: 論文の式 (4) です。
        """

All other comments are shapes and symbols. **Texts that code shows** (prints, titles, labels) are never literals: write
`t("key")` and put the text in both languages into messages.yaml. The builder puts the text of the edition in its place,
`t("key", value=x)` as an f-string, so that learners read words and not keys; a key that is computed stays a call.
Symbols (`r"$\\beta$"`) are fine.

`labkit lint` says what is wrong with a file, where, and how to mend it; `labkit build --tidy` puts it into canonical
form.
'''

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.course.i18n import LANGUAGES
from labkit.course.manifest import EXERCISE_ID, SOURCE_NAME
from labkit.errors import LabkitError

TAGS = (
    *("parameters", "setup", "exercise", "open", "check", "quiz", "widget", "gpu", "slow"),
    *("hide-input", "remove-cell", "instructor"),
)
RESERVED_UIDS = ("header", "install", "progress", "footer")
UID = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
OPTIONS = {"markdown": ("lang", "uid", "pair", "tags"), "code": ("uid", "tags", "exercise")}

_FORMAT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
_OPTION = re.compile(r'(\w+)=("[^"]*"|\[[^\]]*\])')
_HEADER = re.compile(rf"# %%(?: \[(\w+)\])?((?: {_OPTION.pattern})*)\s*")


@dataclass(frozen=True, order=True)
class Problem:
    """One finding: where it is, which rule it breaks, what is wrong, and how to mend it."""

    file: str
    line: int
    rule: str
    message: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.message}\n    {self.cure}"


class SourceError(LabkitError, ValueError):
    """A lesson source that cannot be built; `problems` says where and why."""

    def __init__(self, problems: list[Problem]):
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class Cell:
    """One cell: `line` is the line of its `# %%` header, `body_line` that of its first line of text (both 1-based)."""

    kind: str  # "markdown" or "code"
    uid: str
    source: str
    line: int
    body_line: int
    lang: str | None = None  # markdown only
    pair: str | None = None  # markdown only: hash of the counterpart when last reconciled
    tags: tuple[str, ...] = ()
    exercise: str | None = None

    @property
    def hash(self) -> str:
        """Hash of the text, as the counterpart's `pair` stores it: eight hex digits, blind to trailing blanks."""
        text = "\n".join(line.rstrip() for line in self.source.strip().splitlines())
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]


@dataclass(frozen=True)
class Source:
    """A parsed lesson source. `problems` are those of its structure (the builder refuses a source that has any)."""

    path: Path
    text: str
    number: str
    cells: tuple[Cell, ...]
    problems: tuple[Problem, ...] = ()
    notebook: Any = None  # what jupytext read

    @property
    def pairs(self) -> dict[str, dict[str, Cell]]:
        """Markdown cells by uid and language: {"intro": {"en": Cell, "ja": Cell}}."""
        result: dict[str, dict[str, Cell]] = {}
        for cell in self.cells:
            if cell.kind == "markdown" and cell.lang:
                result.setdefault(cell.uid, {})[cell.lang] = cell
        return result

    @property
    def code_cells(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.kind == "code"]


def read_source(path: Path, name: str | None = None) -> Source:
    """Parse the lesson source at `path`; problems call it `name`. Raises SourceError for unreadable files."""
    name = name or Path(path).name
    try:
        return parse_source(Path(path).read_bytes().decode("utf-8"), Path(path), name)
    except UnicodeDecodeError as error:
        line = Path(path).read_bytes()[: error.start].count(b"\n") + 1
        message, cure = "not UTF-8 text", "save the file as UTF-8"
    except FileNotFoundError:
        line, message, cure = 1, "there is no such file", "lesson sources are notebooks/src/NN_name.py"
    raise SourceError([Problem(name, line, "malformed-source", message, cure)])


def parse_source(text: str, path: Path, name: str | None = None) -> Source:
    """Parse the text of a lesson source; never raises for bad content, see `Source.problems`."""
    import jupytext

    name, problems = name or Path(path).name, []

    def bad(line: int, message: str, cure: str, rule: str = "malformed-source") -> None:
        problems.append(Problem(name, line, rule, message, cure))

    number = SOURCE_NAME.fullmatch(Path(path).name)
    if not number:
        bad(1, f"the file is called {Path(path).name}", "call it NN_name.py: two digits, then lower-case words")
    lines = text.splitlines()
    if "\r" in text:
        bad(1, "Windows line ends", "save the file with Unix line ends (LF)")
    starts = [index for index, line in enumerate(lines) if re.match(r"# ?%%", line)]
    if not starts or any(line.strip() for line in lines[: starts[0]]):
        bad(1, "text before the first cell", 'begin with a cell header such as # %% [markdown] lang="en" uid="intro"')
        return Source(Path(path), text, number[1] if number else "", (), tuple(problems))
    notebook = jupytext.reads(text, fmt=_FORMAT)
    if len(notebook.cells) != len(starts):
        message = f"{len(starts)} cell headers but {len(notebook.cells)} cells"
        bad(
            starts[0] + 1,
            message,
            "close a code fence (```) that was left open, or reword a line of a text or string that starts with # %%",
        )
        return Source(Path(path), text, number[1] if number else "", (), tuple(problems))
    cells = []
    for start, raw in zip(starts, notebook.cells, strict=True):
        header = _HEADER.fullmatch(lines[start])
        kind = (header[1] or "code") if header else ""
        if kind not in OPTIONS:
            cure = 'write # %% [markdown] lang="en" uid="..." or # %% uid="..." tags=["..."]'
            bad(start + 1, f"cell header not understood: {lines[start].strip()}", cure)
            continue
        options = {match[1]: raw.metadata.get(match[1]) for match in _OPTION.finditer(header[2])}
        for message, cure, rule in _option_problems(kind, options):
            bad(start + 1, message, cure, rule)
        quoted = "cell_marker" in raw.metadata
        cells.append(
            Cell(
                kind,
                str(options.get("uid") or f"line-{start + 1}"),
                raw.source,
                line=start + 1,
                body_line=start + 2 + quoted,
                lang=options.get("lang"),
                pair=options.get("pair"),
                tags=tuple(options.get("tags") or ()),
                exercise=options.get("exercise"),
            )
        )
    problems += _uid_problems(cells, name)
    return Source(Path(path), text, number[1] if number else "", tuple(cells), tuple(problems), notebook)


def _option_problems(kind: str, options: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for key in options.keys() - set(OPTIONS[kind]):
        found.append((f"unknown option {key!r}", f"a {kind} cell takes {', '.join(OPTIONS[kind])}", "malformed-source"))
    uid, tags = options.get("uid"), options.get("tags", [])
    if not isinstance(uid, str) or not UID.fullmatch(uid):
        cure = "give every cell a uid of lower-case letters, digits and hyphens"
        found.append((f"uid is {uid!r}" if uid else "no uid", cure, "malformed-source"))
    elif uid in RESERVED_UIDS:
        found.append((f"uid {uid!r} belongs to the builder", "choose another uid", "duplicate-uid"))
    if kind == "markdown" and options.get("lang") not in LANGUAGES:
        found.append((f"lang is {options.get('lang')!r}", 'write lang="en" or lang="ja"', "malformed-source"))
    if not isinstance(tags, list):
        found.append((f"tags is {tags!r}", 'write a list: tags=["exercise"]', "malformed-source"))
    else:
        cure = f"tags are {', '.join(TAGS)}"
        found += [(f"unknown tag {tag!r}", cure, "unknown-tag") for tag in tags if tag not in TAGS]
    exercise = options.get("exercise")
    if kind == "code" and ("exercise" in tags) != bool(exercise):
        cure = 'an exercise cell has both: tags=["exercise"] exercise="add_noise"'
        found.append(("tag and option exercise do not go together", cure, "malformed-source"))
    elif exercise and not EXERCISE_ID.fullmatch(str(exercise)):
        found.append((f"exercise id {exercise!r}", 'write exercise="add_noise" as in lesson.yaml', "malformed-source"))
    return found


def _uid_problems(cells: list[Cell], name: str) -> list[Problem]:
    """uids used twice, Markdown cells without counterpart, and pairs that do not stand together."""
    problems: list[Problem] = []
    seen: dict[str, list[Cell]] = {}
    for index, cell in enumerate(cells):
        earlier = seen.setdefault(cell.uid, [])
        clash = [c for c in earlier if not (c.kind == cell.kind == "markdown" and c.lang != cell.lang)]
        earlier.append(cell)
        if clash:
            message = f"uid {cell.uid!r} is already used in line {clash[0].line}"
            problems.append(Problem(name, cell.line, "duplicate-uid", message, "give this cell a uid of its own"))
            continue
        if cell.kind != "markdown" or cell.lang not in LANGUAGES:
            continue
        neighbours = cells[max(0, index - 1) : index] + cells[index + 1 : index + 2]
        if not any(c.kind == "markdown" and c.uid == cell.uid and c.lang != cell.lang for c in neighbours):
            wanted = "ja" if cell.lang == "en" else "en"
            message = f"{cell.uid!r} has no {wanted} cell next to this {cell.lang} cell"
            cure = f'put the {wanted} text before or after it: # %% [markdown] lang="{wanted}" uid="{cell.uid}"'
            problems.append(Problem(name, cell.line, "pair-missing", message, cure))
    return problems


def write_source(source: Source) -> str:
    """The canonical text of a parsed source; for a tidy file it is the very text that was read."""
    import jupytext

    return jupytext.writes(source.notebook, fmt=_FORMAT)


def stale_pairs(source: Source) -> dict[str, list[Cell]]:
    """uids of Markdown pairs whose stored hashes do not fit, with the cells that may be out of date."""
    stale: dict[str, list[Cell]] = {}
    for uid, pair in source.pairs.items():
        if len(pair) == 2:
            en, ja = pair["en"], pair["ja"]
            cells = [cell for cell, counterpart in ((en, ja), (ja, en)) if cell.pair != counterpart.hash]
            if cells:
                stale[uid] = cells
    return stale


def reconcile(source: Source, uids: list[str]) -> str:
    """The text of the source with the hashes of the pairs `uids` brought up to date; every other byte stays.

    Raises ValueError for a uid that is no complete pair of this source.
    """
    lines, pairs = source.text.splitlines(keepends=True), source.pairs
    for uid in uids:
        if len(pairs.get(uid, {})) != 2:
            known = ", ".join(pairs) or "none"
            raise ValueError(f"{source.path.name} has no Markdown pair {uid!r}; pairs are: {known}")
        en, ja = pairs[uid]["en"], pairs[uid]["ja"]
        for cell, counterpart in ((en, ja), (ja, en)):
            header = re.sub(r' pair="[^"]*"', "", lines[cell.line - 1])
            lines[cell.line - 1] = header.replace(f' uid="{uid}"', f' uid="{uid}" pair="{counterpart.hash}"')
    return "".join(lines)
