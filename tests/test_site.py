"""The web pages: what becomes of an executed notebook, what the link check finds, and a small site built by Sphinx."""

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest

from labkit.authoring.site.lessons import WIDGET_VIEW, lesson_page
from labkit.authoring.site.links import broken_links
from labkit.authoring.site.pages import SiteError, executed, front_page, teaching_page, texts, write_sources
from labkit.authoring.stamp import Stamp
from labkit.course.i18n import LANGUAGES
from labkit.course.manifest import Project, all_lessons

COURSE = Project(Path(__file__).parent / "data" / "course")
PNG = b"\x89PNG\r\n\x1a\nno real picture"
PICTURE = f'<img class="labkit-figure" alt="two rows" src="data:image/png;base64,{base64.b64encode(PNG).decode()}">'


def code(source: str, *outputs: dict, tags: tuple[str, ...] = ()):
    shown = [nbformat.v4.new_output("display_data", data=data) for data in outputs]
    return nbformat.v4.new_code_cell(source, outputs=shown, metadata={"tags": list(tags)}, execution_count=1)


def notebook(*cells):
    header = nbformat.v4.new_markdown_cell("# 05 · DPO\n\n日本語: `ja/05.ipynb`\n\nWhat it is about.")
    return nbformat.v4.new_notebook(cells=[header, *cells], metadata={"papermill": {"x": 1}, "widgets": {"y": 2}})


# ---- a notebook as a page --------------------------------------------------------------------------------------------


def test_pictures_become_files_and_what_could_run_is_gone(tmp_path):
    spoiled = PICTURE + "<script>alert(1)</script><b onclick='x()'>bold</b><p>$a^2$</p>"
    page = lesson_page(
        notebook(code("x", {"text/html": spoiled}), code("y", {"text/html": PICTURE})), tmp_path, texts("en")
    )
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == PNG
    shown = [cell.outputs[0].data["text/html"] for cell in page.cells[1:]]
    assert all(f'src="../_static/figures/{file.name}"' in html and 'alt="two rows"' in html for html in shown)
    assert "script" not in shown[0] and "onclick" not in shown[0] and "tex2jax_process" in shown[0]
    assert "tex2jax_process" not in shown[1]  # no formula: a price of $5 and one of $6 stay what they are
    assert "papermill" not in page.metadata and "widgets" not in page.metadata


@pytest.mark.parametrize("lang", LANGUAGES)
def test_solutions_are_folded_and_what_only_runs_need_is_not_shown(lang, tmp_path):
    cells = (
        code("install()", tags=("generated", "hide-input")),
        code("tier = 'cpu'", tags=("parameters",)),
        code("def f(): ...", tags=("exercise",)),
        code("lab.quiz()", tags=("hide-input",)),
        code("shown()"),
    )
    say = texts(lang)
    page = lesson_page(notebook(*cells), tmp_path, say, note="a note")
    header, note, *found = page.cells
    assert "ja/05.ipynb" not in header.source and "What it is about." in header.source and note.source == "a note"
    tags = [set(cell.metadata["tags"]) for cell in found]
    assert ["remove-cell" in one for one in tags] == [True, True, False, False, False]
    assert ["hide-input" in one for one in tags[2:]] == [True, True, False]
    prompts = [cell.metadata["mystnb"]["code_prompt_show"] for cell in found[2:4]]
    assert prompts == [say("solution"), say("code_show")] and len(set(prompts)) == 2


def test_every_widget_leaves_its_picture_and_a_word_or_the_word_alone(tmp_path):
    view = {WIDGET_VIEW: {"model_id": "1"}, "text/plain": "VBox()"}
    pictured, alone = code("a", {"text/html": PICTURE}, view), code("b", view)
    batch = code("d", {"text/html": PICTURE}, tags=("widget",))  # a run that draws no widgets
    cells = (pictured, alone, code("c", {"text/html": "<p>none</p>"}), batch)
    page = lesson_page(notebook(*cells), tmp_path, texts("en"))
    first, second, third, fourth = (
        [str(output.data["text/html"]) for output in cell.outputs] for cell in page.cells[1:]
    )
    assert len(first) == 2 and "figures/" in first[0] and texts("en")("widget") in first[1]
    assert len(second) == 1 and texts("en")("widget_alone") in second[0]
    assert len(third) == 1
    assert fourth == first
    assert WIDGET_VIEW not in nbformat.writes(page)


# ---- the sources -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lane(tmp_path: Path) -> Path:
    """A run of the sample course that has passed."""
    folder = tmp_path / "run" / "smoke-solution-en"
    folder.mkdir(parents=True)
    for lesson in all_lessons(COURSE):
        nbformat.write(notebook(code("x", {"text/html": PICTURE})), folder / f"{lesson.stem}.ipynb")
        (folder / f"{lesson.stem}.json").write_text(json.dumps({"outcome": {"status": "passed"}}))
    return folder


def test_a_lesson_that_was_not_executed_or_failed_is_named_with_the_command(lane):
    lesson = all_lessons(COURSE)[0]
    assert executed(lesson, lane).is_file()
    (lane / f"{lesson.stem}.json").write_text(json.dumps({"outcome": {"status": "failed"}}))
    with pytest.raises(SiteError, match="did not pass"):
        executed(lesson, lane)
    (lane / f"{lesson.stem}.json").unlink()  # killed before it was judged
    with pytest.raises(SiteError, match="did not pass or end"):
        executed(lesson, lane)
    (lane / f"{lesson.stem}.ipynb").unlink()
    with pytest.raises(SiteError, match=f"labkit run {lesson.number} --tier smoke --lang en"):
        executed(lesson, lane)


def test_the_sources_hold_each_lesson_and_what_it_claims(lane, tmp_path):
    write_sources(tmp_path / "src", lane, "en", project=COURSE, api=False)
    index = (tmp_path / "src/index.md").read_text("utf-8")
    claims = (tmp_path / "src/claims.md").read_text("utf-8")
    for lesson in all_lessons(COURSE):
        assert f"lessons/{lesson.stem}.ipynb" in index and lesson.title["en"] in index
        assert (tmp_path / f"src/lessons/{lesson.stem}.ipynb").is_file()
    assert "claim.not_run" not in claims and "<td" in claims
    assert len(list((tmp_path / "src/_static/figures").iterdir())) == 1


def test_pages_for_teachers_lead_inside_the_site_or_to_github(lane, tmp_path):
    text = (
        "# Guide\n\n[日本語](guide.ja.md)\n\n[日本語](camp.ja.md) · [hub](camp.en.md#on-one-machine) [here](#x) "
        "[web](https://example.org) [image](camp/Dockerfile)\n"
    )
    page = teaching_page(text, "en", ["guide", "camp"], Stamp(""))
    assert page == "# Guide\n\n\n\n[hub](camp.md#on-one-machine) [here](#x) [web](https://example.org) image\n"
    page = teaching_page(text, "en", ["guide", "camp"], Stamp("o/n"))
    assert "[image](https://github.com/o/n/blob/main/docs/camp/Dockerfile)" in page


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_guides_of_both_languages_have_the_same_sections_and_the_lessons_minutes(lang):
    docs = Path(__file__).resolve().parents[1] / "docs"
    for name in ("guide", "camp"):
        counts = {
            one: [
                len(re.findall(p, (docs / f"{name}.{one}.md").read_text("utf-8"), re.M))
                for p in ("^## ", "^### ", r"^\| ", "^```")
            ]
            for one in LANGUAGES
        }
        assert counts["en"] == counts["ja"] and counts["en"][0] > 3
    guide = (docs / f"guide.{lang}.md").read_text("utf-8")
    for lesson in all_lessons(Project()):
        exercises = sum(one.minutes for one in lesson.exercises)
        assert f"| {lesson.number} | {exercises:g} | {lesson.minutes['cpu']:g} |" in guide
        assert f"**{lesson.number} " in guide


# ---- links -----------------------------------------------------------------------------------------------------------


def test_links_that_lead_nowhere_and_what_loads_from_the_network_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    good = '<h1 id="here">x</h1><a href="a/b.html#there">b</a><a href="#here">c</a><a href="https://example.org">d</a>'
    (tmp_path / "index.html").write_text(good + '<img src="data:image/png;base64,AA=="><a href="a/">e</a>')
    (tmp_path / "a/index.html").write_text('<a href="../index.html?x=1#here">up</a>')
    (tmp_path / "a/b.html").write_text('<p id="there"><link rel="canonical" href="https://example.org/b">')
    assert broken_links(tmp_path) == []
    bad = {
        '<a href="none.html">': "does not exist",
        '<a href="b.html#nowhere">': "no place #nowhere",
        '<a href="../../out.html">': "out of the site",
        '<img src="gone.png">': "does not exist",
        '<script src="https://cdn.example.org/x.js"></script>': "from the network",
        '<link rel="stylesheet" href="//fonts.example.org/x.css">': "from the network",
    }
    (tmp_path / "a/index.html").write_text("".join(bad))
    found = broken_links(tmp_path)
    assert len(found) == len(bad) and all(any(what in line for line in found) for what in bad.values())
    (tmp_path / "a/index.html").write_text("")
    (tmp_path / "x.css").write_text("@import 'https://fonts.example.org/x.css'; a { background: url(data:,) }")
    (line,) = broken_links(tmp_path)
    assert line.startswith("x.css")


def test_the_first_page_leads_to_each_language_without_scripts_too():
    page = front_page(LANGUAGES)
    assert re.findall(r'href="(\w\w)/index.html"', page) == list(LANGUAGES)


# ---- Sphinx ----------------------------------------------------------------------------------------------------------


def test_japanese_is_found_by_any_part_of_a_compound():
    pytest.importorskip("sphinx")
    from labkit.authoring.site.search import Bigrams

    search = Bigrams({})
    terms = set(search.split("拡散モデルは、DDIM の20ステップでノイズを除去する。"))
    for query in ("拡散モデル", "モデル", "ノイズ", "除去", "ステップ"):
        pairs = {query[at : at + 2] for at in range(len(query) - 1)}
        assert pairs <= terms
    assert {"DDIM", "20", "拡"} <= terms and "は、" not in terms


@pytest.fixture(scope="module")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx_book_theme")
    pytest.importorskip("myst_nb")
    from labkit.authoring.site.pages import HERE
    from labkit.authoring.site.sphinx import build_pages

    folder = tmp_path_factory.mktemp("site")
    for lang in LANGUAGES:
        source = folder / "src" / lang
        (source / "_static").mkdir(parents=True)
        (source / "lessons").mkdir()
        (source / "_static" / "site.css").write_text((HERE / "static" / "site.css").read_text("utf-8"))
        page = lesson_page(
            notebook(code("x = 1", {"text/html": PICTURE}, tags=("exercise",))), source / "_static/figures", texts(lang)
        )
        page.cells.append(nbformat.v4.new_markdown_cell("## 損失\n\n$$a^2$$\n\n拡散モデルの損失関数"))
        nbformat.write(page, source / "lessons" / "05.ipynb")
        (source / "index.md").write_text("# Home\n\n```{toctree}\nlessons/05\n```\n")
        warnings = build_pages(source, folder / "site" / lang, folder / f"cache-{lang}", lang, LANGUAGES, Stamp("o/n"))
        assert not warnings
    return folder / "site"


def test_a_built_site_holds_together_and_switches_its_language(small_site):
    for path in small_site.rglob(".doctrees"):
        assert not path.exists()
    assert broken_links(small_site) == []
    page = (small_site / "ja/lessons/05.html").read_text("utf-8")
    assert '<html lang="ja"' in page and 'href="../../en/lessons/05.html"' in page and ">English</a>" in page
    assert "mathjax/tex-svg.js" in page and (small_site / "ja/_static/mathjax/tex-svg.js").stat().st_size > 10**6
    assert texts("ja")("solution") in page and 'aria-label="Toggle hidden content"' not in page
    terms = (small_site / "ja/searchindex.js").read_text("utf-8")
    assert '"\\u62e1\\u6563"' in terms and '"\\u6563\\u30e2"' in terms  # 拡散, 散モ
    assert "splitQuery" in (small_site / "ja/_static/language_data.js").read_text("utf-8")
