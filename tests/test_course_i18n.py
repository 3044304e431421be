"""Catalogues: two languages, named placeholders, and a `t` that never stops a lesson."""

from pathlib import Path

import pytest

from labkit.course import i18n
from labkit.course.i18n import Catalogue, MessageError, common_messages, load_messages, placeholders, t
from labkit.course.yamlfile import YamlError, load_with_lines

CATALOGUE = """\
widget:
  steps: {en: Steps, ja: ステップ数}
check.passed:
  en: "Passed: {name}, loss {loss:.2f}"
  ja: "合格です: {name}、損失 {loss:.2f}"
only: {en: Only English}
formula: {en: "$x^{{2}}$ of {name}", ja: "{name} の $x^{{2}}$"}
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    (tmp_path / "messages.yaml").write_text(CATALOGUE, encoding="utf-8")
    return Catalogue(load_messages(tmp_path / "messages.yaml"))


@pytest.fixture(autouse=True)
def english():
    i18n.set_language("en")
    i18n.use_lesson(None)
    yield
    i18n.set_language("en")
    i18n.use_lesson(None)


def test_nested_and_dotted_keys_are_the_same(catalogue):
    assert catalogue.text("widget.steps", "ja") == "ステップ数"
    assert catalogue.keys() == {"widget.steps", "check.passed", "only", "formula"}


def test_placeholders_are_filled_and_doubled_braces_are_braces(catalogue):
    assert catalogue.text("check.passed", "en", name="f", loss=0.123) == "Passed: f, loss 0.12"
    assert catalogue.text("check.passed", "ja", name="f", loss=0.123) == "合格です: f、損失 0.12"
    assert catalogue.text("formula", "en", name="y") == "$x^{2}$ of y"


def test_what_is_missing_falls_back_and_raises_only_if_strict(catalogue):
    assert catalogue.text("nowhere", "en") == "nowhere"
    assert catalogue.text("only", "ja") == "Only English"
    assert catalogue.text("check.passed", "en", name="f") == "Passed: {name}, loss {loss:.2f}"
    for key, lang, values in (("nowhere", "en", {}), ("only", "ja", {}), ("check.passed", "en", {"name": "f"})):
        with pytest.raises(MessageError, match=key):
            catalogue.text(key, lang, strict=True, **values)


def test_a_lesson_overrides_the_shared_texts_and_can_be_left(tmp_path):
    key, shared = next((key, entry["en"]) for key, entry in common_messages().items() if "{" not in entry["en"])
    (tmp_path / "messages.yaml").write_text(f"{key}: {{en: Mine, ja: 私の}}\n", encoding="utf-8")
    assert t(key) == shared
    i18n.use_lesson(tmp_path)
    assert (t(key), t(key, lang="ja")) == ("Mine", "私の")
    i18n.set_language("ja")
    assert t(key) == "私の"
    i18n.use_lesson(None)
    assert t(key, lang="en") == shared


def test_an_unknown_language_is_an_error_that_names_the_languages():
    for call in (lambda: i18n.set_language("fr"), lambda: t("build.your_code", lang="de")):
        with pytest.raises(ValueError, match="'en' and 'ja'"):
            call()
    assert i18n.get_language() == "en"


def test_every_shared_message_can_be_filled_in_both_languages():
    """All YAML files of messages/ load together (no key twice), and every text formats with its own placeholders."""
    messages = common_messages()
    assert {"build.your_code", "install.done"} <= messages.keys()
    for key, entry in messages.items():
        assert set(entry) == {"en", "ja"}, key
        assert placeholders(entry["en"]) == placeholders(entry["ja"]), key


@pytest.mark.parametrize("text", ["{}", "{0}", "{a b}", "{", "}", "{x"])
def test_unnamed_placeholders_and_single_braces_are_rejected(text):
    with pytest.raises(ValueError):
        placeholders(text)


def test_placeholders_are_found_in_attributes_items_and_format_widths():
    assert placeholders("{a.b} {c[0]} {d:{width}.2f} {{e}}") == {"a", "c", "d", "width"}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: {en: x, ja: y}\nb: 1\nb: 2\n", 3, "twice"),
        ("a: {en: x, ja: y}\nb: [1\n", 3, "mend"),
        ("a: {en: x, ja: y}\nb: text\n", 2, "en: text, ja: text"),
        ("a:\n  b: {en: x, ja: y}\na.b: {en: x, ja: y}\n", 3, "nested and dotted"),
    ],
)
def test_a_bad_catalogue_names_file_and_line(tmp_path, text, line, reason):
    path = tmp_path / "messages.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(YamlError, match=reason) as error:
        load_messages(path)
    assert str(error.value).startswith(f"{path}:{line}: ")


def test_a_key_in_two_shared_files_is_an_error(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("x: {en: x, ja: y}\n", encoding="utf-8")
    with pytest.raises(YamlError, match="another file"):
        common_messages(tmp_path)


def test_yaml_lines_and_dates_are_kept(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("date: 2026-11-22\nlist:\n  - {id: a}\n  - {id: b}\n", encoding="utf-8")
    data, lines = load_with_lines(path)
    assert data["date"] == "2026-11-22"
    assert (lines[("list", 1, "id")], lines[("list",)]) == (4, 2)
