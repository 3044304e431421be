"""The instructor's sheet: complete in both languages, printable, and never with markup of others."""

import re

import pytest

from labkit.course.i18n import LANGUAGES
from labkit.course.rubric import rubric


@pytest.mark.parametrize("lang", LANGUAGES)
def test_five_lines_of_three_boxes_fit_on_a_page(lang):
    sheet = rubric("09", lang)
    html = sheet.html()
    assert len(sheet.criteria) == 5 and sheet.most == 10
    assert html.count("&#9744;") == 15 and html.lstrip().lower().startswith("<!doctype html>")
    assert bool(re.search(r"[ぁ-んァ-ヶ一-龠]", html)) == (lang == "ja")
    assert len(re.sub(r"<[^>]+>", "", sheet.table())) < 3500
    bundle = sheet._repr_mimebundle_()
    assert bundle["text/plain"].count("\n") == 5 * 4 + 2 and "<td" in bundle["text/html"]


def test_a_lesson_without_a_rubric_has_no_lines():
    assert rubric("01", "en").criteria == ()
