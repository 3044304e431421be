"""The rubric of a lesson's project: a page that an instructor fills in within minutes, from `rubric.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from labkit.course.i18n import t
from labkit.course.lesson_files import lesson_files, read_checked
from labkit.course.manifest import Project
from labkit.course.render import inline, language, page, pick, plain
from labkit.course.schema import Bilingual, Strict, must


class Criterion(Strict):
    """One line of the rubric: what to look at, what is asked, and what earns 0, 1 or 2 points."""

    look_at: Bilingual
    criterion: Bilingual
    points: Annotated[list[Bilingual], must(lambda points: len(points) == 3, "what earns 0, 1 and 2 points")]


@dataclass(frozen=True)
class Rubric:
    """The criteria of one lesson in one language; shown as a table, `html()` is a page to print."""

    title: str
    criteria: tuple[Criterion, ...]
    lang: str

    @property
    def most(self) -> int:
        """Points of a faultless hand-in."""
        return 2 * len(self.criteria)

    def table(self) -> str:
        """The table as HTML, with a box to tick before each number of points."""
        with language(self.lang):
            names = (t("rubric.criterion"), t("rubric.look_at"), t("rubric.none"), t("rubric.some"), t("rubric.full"))
            head = "".join(f'<th scope="col" style="text-align:left">{name}</th>' for name in names)
            rows = "".join(self._row(number, one) for number, one in enumerate(self.criteria, start=1))
        return f'<table lang="{self.lang}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'

    def _row(self, number: int, one: Criterion) -> str:
        cells = [f"<b>{number}. {inline(pick(one.criterion))}</b>", inline(pick(one.look_at))]
        cells += [f"&#9744; {inline(pick(text))}" for text in one.points]
        return "<tr>" + "".join(f'<td style="text-align:left;vertical-align:top">{c}</td>' for c in cells) + "</tr>"

    def html(self) -> str:
        """A complete page: names, table, sum."""
        with language(self.lang):
            lines = "".join(
                f"<p>{who}: ____________________</p>" for who in (t("rubric.learner"), t("rubric.instructor"))
            )
            total = f"<p><b>{t('rubric.total', most=self.most)}</b></p>"
            return page(self.title, f"<p>{t('rubric.how')}</p>{lines}{self.table()}{total}")

    def text(self) -> str:
        """The same without HTML."""
        with language(self.lang):
            lines = [self.title, t("rubric.how")]
            for number, one in enumerate(self.criteria, start=1):
                lines.append(f"{number}. {plain(pick(one.criterion))} ({plain(pick(one.look_at))})")
                lines += [f"   {points}: {plain(pick(text))}" for points, text in enumerate(one.points)]
            return "\n".join([*lines, t("rubric.total", most=self.most)])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        with language(self.lang):
            how, total = t("rubric.how"), t("rubric.total", most=self.most)
        return {"text/html": f"<p>{how}</p>{self.table()}<p>{total}</p>", "text/plain": self.text()}


def rubric(number: int | str, lang: str, project: Project | None = None) -> Rubric:
    """The rubric of a lesson in one language.

    Raises:
        CourseError: the lesson has none, or its file cannot be read.
    """
    files = lesson_files(number, project)
    told = read_checked(files.folder / "rubric.yaml", list[Criterion]) or []
    with language(lang):
        title = t("rubric.title", title=pick(files.lesson.title))
    return Rubric(title, tuple(Criterion(**one) for one in told), lang)
