"""What the builder puts around a lesson: header, footer, and the line above each exercise.

All of it is computed from lesson.yaml, stamp.yaml and the catalogue, so that no lesson types it. The fixed words are in
`templates/*.md`, one file per language.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.authoring.stamp import Stamp
from labkit.course.i18n import Catalogue, other
from labkit.course.manifest import TIERS, ExerciseInfo, Lesson

TEMPLATES = Path(__file__).with_name("templates")
_NAMES = {"python": "Python", "colab": "Colab", "numpy": "NumPy"}


@dataclass(frozen=True)
class Frame:
    """A lesson in its course, in one language and edition.

    `lessons` are the lessons it may link to, by number; `source` is the path of its source below the root.
    """

    lesson: Lesson
    lessons: Mapping[str, Lesson]
    lang: str
    edition: str
    stamp: Stamp
    catalogue: Catalogue
    source: str

    def text(self, key: str, **values: object) -> str:
        return self.catalogue.text(f"build.{key}", self.lang, strict=True, **values)

    def header(self) -> str:
        """Markdown of the first cell: title, badge, summary, objectives, times, and the facts of the lesson."""
        lesson, lang = self.lesson, self.lang
        badge = self.stamp.badge(f"notebooks/{lang}/{lesson.stem}.ipynb", self.text("colab_badge"))
        near = f"{other(lang)}/{lesson.stem}.ipynb"  # its place in the learner's own folder too
        translation = self.stamp.link(self.text("translation"), f"notebooks/{near}")
        return self._fill(
            "header",
            number=lesson.number,
            title=lesson.title[lang].strip(),
            badge=f"{badge} · " if badge else "",
            translation=translation if self.stamp.repo else f"{translation}: `{near}`",
            summary=lesson.summary[lang].strip(),
            objectives="\n".join(f"- {item.strip()}" for item in lesson.objectives[lang]),
            facts="\n".join(f"- {fact}" for fact in self._facts()),
            **{tier: self.duration(lesson.minutes[tier]) for tier in TIERS},
        )

    def footer(self) -> str:
        """Markdown of the last cell: next lesson, how to report an error, licences, where the source is."""
        numbers = sorted(number for number in self.lessons if number > self.lesson.number)
        following = self.link(self.lessons[numbers[0]]) if numbers else self.text("last_lesson")
        url = self.stamp.issues
        report = self.text("report_issue", url=url) if url else self.text("report_unstamped")
        return self._fill(
            "footer",
            next=following,
            report=report,
            text_licence=self.stamp.link("CC BY 4.0", "LICENSE-text"),
            code_licence=self.stamp.link("Apache-2.0", "LICENSE"),
            source=self.stamp.link(f"`{self.source}`", self.source),
        )

    def exercise_line(self, exercise: ExerciseInfo) -> str:
        """One line that says how hard, how important and how long an exercise is."""

        def dots(value: int) -> str:
            return "●" * value + "○" * (5 - value)

        return self.text(
            "exercise",
            id=exercise.id.split(".", 1)[-1],
            difficulty=dots(exercise.difficulty),
            importance=dots(exercise.importance),
            minutes=f"{exercise.minutes:g}",
        )

    def duration(self, minutes: float | None) -> str:
        """0.4 -> "24 s", 6.2 -> "6 min"; None -> "not measured"."""
        if minutes is None:
            return self.text("unmeasured")
        if minutes < 1:
            return self.text("seconds", value=max(1, round(minutes * 60)))
        return self.text("minutes", value=f"{minutes:.1f}".removesuffix(".0") if minutes < 3 else f"{minutes:.0f}")

    def link(self, lesson: Lesson) -> str:
        """A link to another lesson's notebook of the same language."""
        return f"[{lesson.number} · {lesson.title[self.lang].strip()}]({lesson.stem}.ipynb)"

    def _facts(self) -> list[str]:
        lesson = self.lesson
        facts = []
        if lesson.exercises:
            minutes = f"{sum(exercise.minutes for exercise in lesson.exercises):g}"
            facts.append(self.text("exercises", count=len(lesson.exercises), minutes=minutes))
        if lesson.prerequisites:
            links = ", ".join(self.link(self.lessons[number]) for number in lesson.prerequisites)
            facts.append(self.text("before", lessons=links))
        if lesson.references:
            facts.append(self.text("references", references="; ".join(map(self._reference, lesson.references))))
        checked = dict(lesson.last_checked or {})
        if not checked:
            facts.append(self.text("never_checked"))
        else:
            date = checked.pop("date")
            versions = ", ".join(f"{_NAMES.get(name, name)} {version}" for name, version in checked.items())
            key = "last_checked" if versions else "last_checked_date"
            facts.append(self.text(key, date=date, versions=versions))
        facts.append(self.text("licence"))
        return facts

    def _reference(self, entry: Mapping[str, Any]) -> str:
        title = entry["title"][self.lang] if isinstance(entry["title"], Mapping) else entry["title"]
        return f"[{title}]({entry['url']})" + (f" ({entry['year']})" if "year" in entry else "")

    def _fill(self, template: str, **values: object) -> str:
        path = TEMPLATES / f"{template}.{self.lang}.md"
        return string.Template(path.read_text(encoding="utf-8")).substitute(values).strip()
