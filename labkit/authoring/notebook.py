"""One lesson source and its frame -> one notebook (student or solution edition, one language).

Pure: the same inputs give the same bytes. Cell ids are the uids of the source, metadata holds no dates, and the kernel
is always called python3.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.authoring.frame import Frame
from labkit.authoring.install import install_cell
from labkit.authoring.leaks import solution_leaks
from labkit.authoring.regions import RegionError, solution_code, student_code
from labkit.authoring.source import Cell, Problem, Source, SourceError, read_source
from labkit.authoring.stamp import Stamp, read_stamp
from labkit.authoring.wording import uses_t, with_texts
from labkit.course.i18n import Catalogue, common_messages, load_messages
from labkit.course.manifest import Lesson, ManifestError, Project, all_lessons

EDITIONS = ("student", "solution")
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
_JAPANESE = re.compile(r"[\u3001-\u30ff\u3400-\u9fff\uff01-\uffee]")
_PROGRESS = Path(__file__).with_name("templates") / "progress.py.tmpl"


@dataclass
class Course:
    """What all notebooks of a course share; `of` reads it from the files of a project."""

    project: Project
    lessons: dict[str, Lesson]
    stamp: Stamp
    catalogue: Catalogue
    sources: dict[Path, Source] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Project) -> Course:
        lessons = {lesson.number: lesson for lesson in all_lessons(project)}
        return cls(project, lessons, read_stamp(project.stamp), Catalogue(common_messages()))

    def source(self, path: Path) -> Source:
        """The parsed source at `path`, read once."""
        if path not in self.sources:
            self.sources[path] = read_source(path, self.project.relative(path))
        return self.sources[path]

    def frame(self, path: Path, lang: str, edition: str) -> Frame:
        """The frame of the lesson whose source is at `path`; SourceError if there is no lesson.yaml that fits."""
        name, number = self.project.relative(path), path.name[:2]
        lesson = self.lessons.get(number)
        if lesson is None or lesson.stem != path.stem:
            message = f"lesson.yaml is that of {lesson.stem}" if lesson else "the lesson has no lesson.yaml"
            cure = f"labkit/course/lessons/l{number}/lesson.yaml and the source share number and name"
            raise SourceError([Problem(name, 1, "lesson-yaml", message, cure)])
        linked = {n for n, other in self.lessons.items() if (path.parent / f"{other.stem}.py").exists()}
        lessons = {n: other for n, other in self.lessons.items() if n in linked or n in lesson.prerequisites}
        messages = self.project.folder(number) / "messages.yaml"
        catalogue = Catalogue(load_messages(messages) if messages.exists() else {}, common_messages())
        return Frame(lesson, lessons, lang, edition, self.stamp, catalogue, name)

    def notebook(self, path: Path, lang: str, edition: str) -> str:
        """The text of one notebook of the lesson whose source is at `path`; see `make_notebook` for errors."""
        install = install_cell(self.project.pyproject, self.stamp, lang, self.catalogue)
        return notebook_text(make_notebook(self.source(path), self.frame(path, lang, edition), install))


def make_notebook(source: Source, frame: Frame, install: str) -> Any:
    """The notebook (an nbformat node) in the frame's language and edition; `install` is the source of the install cell.

    Raises SourceError for a source with structural problems, for code that is no Python, and for solution text that
    would be left in a student edition.
    """
    import nbformat.v4 as v4

    if source.problems:
        raise SourceError(list(source.problems))
    lang, edition, generated = frame.lang, frame.edition, ["generated"]
    cells = [
        v4.new_markdown_cell(frame.header(), id="header", metadata={"tags": generated}),
        v4.new_code_cell(install, id="install", metadata=_hidden({"tags": [*generated, "hide-input"]})),
    ]
    for cell in source.cells:
        if edition == "student" and "instructor" in cell.tags or cell.lang not in (None, lang):
            continue
        metadata: dict[str, Any] = {"tags": list(cell.tags)} if cell.tags else {}
        if "hide-input" in cell.tags:
            metadata = _hidden(metadata)
        if cell.kind == "markdown":
            cells.append(v4.new_markdown_cell(unwrapped(cell.source.strip()), id=cell.uid, metadata=metadata))
            continue
        if cell.exercise:
            metadata["labkit"] = {"exercise": cell.exercise}
        cells.append(v4.new_code_cell(_code(cell, frame), id=cell.uid, metadata=metadata))
    code = [cell for cell in cells if cell.cell_type == "code"]
    if not any(uses_t(cell.source) for cell in code):
        for cell in code:
            cell.source = re.sub(r"(?m)^(from labkit\.course import .*), t$", r"\1", cell.source)
    progress = _PROGRESS.read_text(encoding="utf-8").strip()
    cells.append(v4.new_code_cell(progress, id="progress", metadata={"tags": generated}))
    cells.append(v4.new_markdown_cell(frame.footer(), id="footer", metadata={"tags": generated}))
    metadata = {
        "kernelspec": _KERNEL,
        "language_info": _LANGUAGE,
        "labkit": {
            "generated": frame.text("generated", source=frame.source),
            "lesson": frame.lesson.number,
            "lang": lang,
            "edition": edition,
            "source": frame.source,
        },
        "title": frame.lesson.title[lang],
    }
    notebook = v4.new_notebook(cells=cells, metadata=metadata)
    if edition == "student":
        leaks = solution_leaks(source, [(cell["id"], cell["source"]) for cell in cells])
        if leaks:
            raise SourceError([Problem(frame.source, line, "solution-leak", text, cure) for text, cure, line in leaks])
    return notebook


def unwrapped(text: str) -> str:
    """Markdown without the line breaks between two Japanese characters of a paragraph or list item: a reader would see
    each as a space in the middle of a sentence. Headings, quotes, tables and fenced code stay as they are."""
    lines: list[str] = []
    fenced = False
    for line in text.split("\n"):
        fence = line.lstrip().startswith(("```", "~~~"))
        previous = lines[-1] if lines else ""
        joins = _JAPANESE.fullmatch(previous[-1:]) and _JAPANESE.fullmatch(line.lstrip(" ")[:1])
        if joins and not fenced and not previous.lstrip().startswith(("#", "|", ">")):
            lines[-1] += line.lstrip(" ")
        else:
            lines.append(line)
        fenced ^= fence
    return "\n".join(lines)


def notebook_text(notebook: Any) -> str:
    """The notebook as the text of an .ipynb file (sorted keys, one space of indent, newline at the end)."""
    import nbformat

    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4) + "\n"


def _hidden(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a folded cell: JupyterLab's key and Colab's."""
    return {**metadata, "jupyter": {"source_hidden": True}, "cellView": "form"}


def _code(cell: Cell, frame: Frame) -> str:
    """Source of a code cell in one edition, checked to be Python."""
    try:
        if frame.edition == "solution":
            code = solution_code(cell.source, frame.lang)
        else:
            code = student_code(cell.source, frame.lang, frame.text("your_code"))
    except RegionError as error:
        line = cell.body_line + error.offset
        raise SourceError([Problem(frame.source, line, "malformed-source", error.message, error.cure)]) from None
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        cure = "code cells are plain Python, without %magic and !shell; look at the regions, too"
        text = (error.text or "").strip()
        message = f"the {frame.edition} edition of cell {cell.uid!r} is not Python: {error.msg} ({text})"
        raise SourceError([Problem(frame.source, cell.line, "malformed-source", message, cure)]) from None
    code = with_texts(code, frame.lang, frame.catalogue)
    if "parameters" in cell.tags:
        code = _with_language(code, tree, frame.lang)
    if cell.exercise:
        try:
            code = f"# {frame.exercise_line(frame.lesson.exercise(cell.exercise))}\n{code.lstrip()}"
        except ManifestError as error:
            cure = f"add it to lesson.yaml of lesson {frame.lesson.number}"
            raise SourceError([Problem(frame.source, cell.line, "exercise-meta", str(error), cure)]) from None
    return re.sub(r" *# fmt: skip$", "", code.strip("\n"), flags=re.M)


def _with_language(code: str, tree: ast.Module, lang: str) -> str:
    """The parameters cell with `lang = "..."` set; the rest of the line stays."""
    lines = code.split("\n")
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["lang"]:
            line, value = lines[node.lineno - 1], node.value
            lines[node.lineno - 1] = f'{line[: value.col_offset]}"{lang}"{line[value.end_col_offset :]}'
    return "\n".join(lines)
