"""Lesson sources become notebooks: two languages, two editions, the same bytes every time.

The sample course in tests/data/course holds its own generated notebooks (the golden files). After a wanted change of
the builder or of its texts, make them anew with `labkit build --root tests/data/course` and read the diff.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.authoring import build, commands
from labkit.authoring.notebook import unwrapped
from labkit.authoring.regions import RegionError, in_language, one_sided, only_language, solution_code, student_code
from labkit.authoring.source import SourceError, parse_source, read_source, reconcile, stale_pairs, write_source
from labkit.course.manifest import ManifestError, Project, load_lesson
from labkit.course.yamlfile import YamlError
from tests.test_course_wording import masked

SAMPLE = Path(__file__).parent / "data" / "course"
STEM = "00_hello"
EDITIONS = [(lang, edition) for lang in ("en", "ja") for edition in ("student", "solution")]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A copy of the sample course, with its committed student notebooks and nothing in build/."""
    shutil.copytree(SAMPLE, tmp_path / "course", ignore=shutil.ignore_patterns("build"))
    return Project(tmp_path / "course")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def source_of(project: Project, stem: str = STEM) -> Path:
    return project.sources / f"{stem}.py"


def cells_of(project: Project, lang: str, edition: str, stem: str = STEM) -> dict[str, str]:
    """Cell id -> source of a built notebook."""
    notebook = json.loads(project.notebook(stem, lang, edition).read_text(encoding="utf-8"))
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}


def labkit_build(project: Project, *args: str) -> int:
    parser = argparse.ArgumentParser()
    commands.add_build_parser(parser.add_subparsers())
    namespace = parser.parse_args(["build", *args, "--root", str(project.root)])
    return namespace.func(namespace)


# ---- output --------------------------------------------------------------------------------------------------------


def test_the_sample_course_gives_the_golden_notebooks(project):
    assert build.drift(project) == []


def test_output_is_byte_identical(project):
    outputs = [output.path for output in build.build(project)]
    assert len(outputs) == 8
    before = {path: path.read_bytes() for path in outputs}
    for path in outputs:
        path.unlink()
    assert not any(output.current for output in build.build(project))
    assert {path: path.read_bytes() for path in outputs} == before


def test_notebooks_are_valid_and_ids_are_the_uids(project):
    build.build(project)
    uids = list(dict.fromkeys(cell.uid for cell in read_source(source_of(project)).cells))
    for lang, edition in EDITIONS:
        notebook = nbformat.read(project.notebook(STEM, lang, edition), as_version=4)
        nbformat.validate(notebook)
        ids = [cell["id"] for cell in notebook.cells]
        wanted = [uid for uid in uids if edition == "solution" or uid != "teaching"]
        assert ids == ["header", "install", *wanted, "progress", "footer"]
        assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.language_info.name == "python"
        assert notebook.metadata.labkit.lang == lang and notebook.metadata.labkit.edition == edition
        assert f"notebooks/src/{STEM}.py" in notebook.metadata.labkit.generated
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_every_code_cell_of_every_edition_is_python(project):
    build.build(project)
    for lang, edition in EDITIONS:
        notebook = nbformat.read(project.notebook(STEM, lang, edition), as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                compile(cell.source, cell.id, "exec")


@pytest.mark.parametrize("edition", ["student", "solution"])
def test_code_is_the_same_in_both_languages_but_for_texts_and_comments(project, edition):
    build.build(project)
    en, ja = (cells_of(project, lang, edition) for lang in ("en", "ja"))
    assert en.keys() == ja.keys()
    code = [uid for uid in en if uid in {cell.uid for cell in read_source(source_of(project)).code_cells}]
    assert len(code) == 8 and all(masked(en[uid]) == masked(ja[uid]) for uid in code)
    assert {uid for uid in code if en[uid] != ja[uid]} == {"parameters", "noise", "weights", "plot"}


def test_texts_stand_in_the_cells_as_words(project):
    edit(source_of(project), 'lab.t("l00.x")', 't("l00.x") + t(key)')
    build.build(project)
    for lang, title, x in (("en", "Signal and noise at 0.5", "Position"), ("ja", "時刻 0.5 での信号とノイズ", "位置")):
        plot = cells_of(project, lang, "student")["plot"]
        assert f'axes.set_title("{title}")' in plot and f'axes.set_xlabel("{x}" + t(key))' in plot
        assert "import start, t\n" in cells_of(project, lang, "student")["setup"]  # t(key) needs it
    edit(source_of(project), " + t(key)", "")
    build.build(project)
    assert "import start\n" in cells_of(project, "ja", "solution")["setup"]


def test_the_parameters_cell_carries_the_language_of_its_edition(project):
    build.build(project)
    for lang, edition in EDITIONS:
        parameters = cells_of(project, lang, edition)["parameters"]
        assert f'lang = "{lang}"  # "en" or "ja"\n' in parameters
        values: dict = {}
        exec(parameters, values)
        assert (values["tier"], values["lang"], values["strict"], values["interactive"]) == ("cpu", lang, False, True)


def test_students_get_stubs_and_teachers_get_solutions(project):
    build.build(project)
    for lang in ("en", "ja"):
        student, solution = (cells_of(project, lang, edition) for edition in ("student", "solution"))
        assert "(1 - alpha_bar) ** 0.5" not in "\n".join(student.values())
        assert "return signal + (1 - alpha_bar) ** 0.5 * noise" in solution["noise"]
        assert student["noise"].endswith("    return None") and '"""' in student["noise"]
        assert "weights = None" in student["weights"] and "weights = None" not in solution["weights"]
        assert "teaching" in solution and "teaching" not in student
        for text in [*student.values(), *solution.values()]:
            assert not re.search("(BEGIN|END) SOLUTION", text)


def test_an_unsolved_edition_runs_on(project):
    """The cells of the student edition run to the end when `check` and `use` are there."""
    build.build(project)
    used = []
    lab = SimpleNamespace(
        sizes=SimpleNamespace(images=3),
        t=lambda key: key,
        quiz=print,
        predict=print,
        claim=lambda *args, **kwargs: None,
        check=lambda id: used.append((id, names[id])),
        use=lambda id: [0.8, 0.6] if id == "weights" else lambda *args: 1.0,
    )
    names = {"lab": lab, "seed": 0, "t": lambda key, **_: key}
    cells = cells_of(project, "ja", "student")
    for uid in ("noise", "noise-check", "weights", "plot", "quiz", "claim"):
        exec(cells[uid], names)
    assert [id for id, _ in used] == ["add_noise", "weights"]
    assert used[0][1](1, 2, 3) is None and used[1][1] is None


def test_header_and_footer_state_the_facts_in_their_language(project):
    build.build(project)
    en, ja = (cells_of(project, lang, "student") for lang in ("en", "ja"))
    assert en["header"].startswith("# 00 · Hello noise\n") and ja["header"].startswith("# 00 · はじめてのノイズ\n")
    assert "| Running time | 6 s | 1.5 min | not measured |" in en["header"]
    assert "| 実行時間 | 6秒 | 1.5分 | 未計測 |" in ja["header"]
    assert "\n\n日本語: `ja/00_hello.ipynb`\n" in en["header"]
    assert "\n\nEnglish: `en/00_hello.ipynb`\n" in ja["header"]
    assert "**Last checked:** 2026-11-22 (Python 3.11, torch 2.13.0)" in en["header"]
    assert "**Exercises:** 2, about 15 minutes" in en["header"] and "**課題:** 2問(目安15分)" in ja["header"]
    assert "colab" not in en["header"].lower()
    assert "[01 · Once more](01_again.ipynb)" in en["footer"] and "[01 · もう一度](01_again.ipynb)" in ja["footer"]
    again = cells_of(project, "en", "student", "01_again")
    assert "**Before this:** [00 · Hello noise](00_hello.ipynb)" in again["header"]
    assert "**Last checked:** not yet" in again["header"] and "last one so far" in again["footer"]


def test_exercises_carry_difficulty_importance_and_minutes(project):
    build.build(project)
    en, ja = (cells_of(project, lang, "student")["noise"].split("\n")[0] for lang in ("en", "ja"))
    assert en == "# Exercise add_noise · difficulty ●●○○○ · importance ●●●●● · about 10 min"
    assert ja == "# 課題 add_noise · 難易度 ●●○○○ · 重要度 ●●●●● · 目安10分"


LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("repo", ["", "octo-cat/course"])
def test_links_lead_to_notebooks_of_the_same_folder_or_to_full_addresses(project, repo):
    edit(project.stamp, 'repo: ""', f'repo: "{repo}"')
    build.build(project)
    for lang, edition in EDITIONS:
        folder = project.notebook(STEM, lang, edition).parent
        for stem in (STEM, "01_again"):
            cells = cells_of(project, lang, edition, stem)
            targets = [target for text in cells.values() for target in LINK.findall(text)]
            near = [target for target in targets if not target.startswith("https://")]
            assert near and all("/" not in target and (folder / target).exists() for target in near), near
            assert "../" not in cells["header"] + cells["footer"]
        far = {target for uid in ("header", "footer") for target in LINK.findall(cells_of(project, lang, edition)[uid])}
        blob, other_lang = "https://github.com/octo-cat/course/blob/main/", "ja" if lang == "en" else "en"
        names = ("LICENSE", "LICENSE-text", f"notebooks/src/{STEM}.py", f"notebooks/{other_lang}/{STEM}.ipynb")
        assert {target for target in far if target.startswith(blob)} == (
            {blob + name for name in names} if repo else set()
        )


@pytest.mark.parametrize("path", Project().source_files(), ids=lambda path: path.name)
def test_lessons_link_to_other_lessons_or_to_full_addresses(path):
    stems = {source.stem for source in Project().source_files()}
    for cell in read_source(path).cells:
        for target in LINK.findall(cell.source) if cell.kind == "markdown" else []:
            assert target.startswith(("https://", "#", "attachment:")) or target.partition(".ipynb")[0] in stems, target


# ---- writing only what changed -------------------------------------------------------------------------------------


def test_a_build_without_changes_touches_nothing(project):
    first = build.build(project)
    stamps = {output.path: output.path.stat().st_mtime_ns for output in first}
    second = build.build(project)
    assert all(output.current for output in second)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("notebooks/src/00_hello.py", "Complete `add_noise`", "Now complete `add_noise`", 2),
        ("labkit/course/lessons/l00/lesson.yaml", "difficulty: 2", "difficulty: 3", 4),
        ("labkit/course/lessons/l01/lesson.yaml", "Once more", "One more time", 4),  # also lesson 00's footer, in en
        ("pyproject.toml", "diffusers>=0.39", "diffusers>=0.40", 8),
        ("labkit/authoring/stamp.yaml", 'repo: ""', "repo: o/n", 8),
    ],
)
def test_what_a_notebook_depends_on_rebuilds_it(project, file, old, new, changed):
    build.build(project)
    edit(project.root / file, old, new)
    assert sum(not output.current for output in build.build(project)) == changed
    assert build.drift(project) == []


def test_edited_and_deleted_notebooks_are_restored(project):
    build.build(project)
    edited, deleted = project.notebook(STEM, "en"), project.notebook(STEM, "ja")
    good = {path: path.read_bytes() for path in (edited, deleted)}
    edited.write_text("{}")
    deleted.unlink()
    written = {output.path for output in build.build(project) if not output.current}
    assert written == {edited, deleted}
    assert {path: path.read_bytes() for path in good} == good


# ---- the drift gate ------------------------------------------------------------------------------------------------


def test_drift_reports_edited_missing_and_stray_notebooks_and_writes_none(project, capsys):
    assert labkit_build(project, "--check") == 0
    edited, missing = project.notebook(STEM, "en"), project.notebook("01_again", "ja")
    edit(edited, "Complete", "Finish")
    missing.unlink()
    stray = project.root / "notebooks" / "en" / "99_stray.ipynb"
    stray.write_text("{}")
    found = {(Path(problem.file).name, problem.rule) for problem in build.drift(project)}
    assert found == {(path.name, "generated-edited") for path in (edited, missing, stray)}
    line = next(problem.line for problem in build.drift(project) if problem.file.endswith("en/00_hello.ipynb"))
    assert "Finish" in edited.read_text(encoding="utf-8").split("\n")[line - 1]
    assert labkit_build(project, "--check") == 1
    assert "notebooks/en/00_hello.ipynb:" in capsys.readouterr().out
    assert "Finish" in edited.read_text(encoding="utf-8") and not missing.exists()


def test_a_source_that_changed_without_a_build_is_drift(project):
    edit(source_of(project), "Complete `add_noise`", "Write `add_noise`")
    assert {problem.file for problem in build.drift(project)} == {f"notebooks/en/{STEM}.ipynb"}


# ---- reconciling pairs ---------------------------------------------------------------------------------------------


def test_a_build_never_touches_sources_but_names_stale_pairs(project, capsys):
    edit(source_of(project), "Complete `add_noise`.", "Please complete `add_noise`.")
    before = source_of(project).read_bytes()
    assert labkit_build(project) == 0
    assert source_of(project).read_bytes() == before
    assert "00:ex-noise" in capsys.readouterr().err


def test_reconcile_changes_only_the_hashes_of_the_named_pair(project, capsys):
    path = source_of(project)
    edit(path, "Complete `add_noise`.", "Please complete `add_noise`.")
    edit(path, "ノイズを混ぜる", "混ぜる")
    assert set(stale_pairs(read_source(path))) == {"intro", "ex-noise"}
    before = path.read_text(encoding="utf-8").split("\n")
    assert labkit_build(project, "00", "--reconcile", "ex-noise") == 0
    assert "reconciled 00:ex-noise (ja had not been confirmed" in capsys.readouterr().out
    after = path.read_text(encoding="utf-8").split("\n")
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [re.sub(r'pair="\w+"', "", line) for line in changed] == ['# %% [markdown] lang="ja" uid="ex-noise" ']
    assert set(stale_pairs(read_source(path))) == {"intro"}
    assert labkit_build(project, "--reconcile") == 0
    assert stale_pairs(read_source(path)) == {}
    assert labkit_build(project, "--reconcile") == 0
    assert "no pair needed it" in capsys.readouterr().out


def test_reconcile_refuses_unknown_and_ambiguous_uids(project, capsys):
    before = {path: path.read_bytes() for path in project.source_files()}
    assert labkit_build(project, "--reconcile", "nowhere") == 2
    assert "no lesson has a pair 'nowhere'" in capsys.readouterr().err
    assert labkit_build(project, "--reconcile", "intro") == 2
    assert "lessons 00, 01 have a pair 'intro'" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert labkit_build(project, "--reconcile", "01:intro") == 0


def test_hashes_ignore_trailing_blanks_but_notice_every_word():
    def pair(en: str, ja: str) -> str:
        return f'# %% [markdown] lang="en" uid="a"\n# {en}\n\n# %% [markdown] lang="ja" uid="a"\n# {ja}\n'

    text = reconcile(parse_source(pair("One.", "一。"), Path("00_a.py")), ["a"])
    assert stale_pairs(parse_source(text, Path("00_a.py"))) == {}
    assert stale_pairs(parse_source(text.replace("One.", "One.  "), Path("00_a.py"))) == {}
    stale = stale_pairs(parse_source(text.replace("One.", "Two."), Path("00_a.py")))
    assert [cell.lang for cell in stale["a"]] == ["ja"]


# ---- reading and writing sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*sorted(SAMPLE.glob("notebooks/src/*.py")), *Project().source_files()], ids=str)
def test_reading_and_writing_a_source_gives_it_back(path):
    source = read_source(path)
    assert source.problems == ()
    assert write_source(source) == path.read_text(encoding="utf-8")


_LINES = st.text(st.sampled_from("ab $\\_#%{}[]()`\"'=:。ノ-"), max_size=24).map(str.strip)
_LINES = _LINES.filter(lambda line: not line.startswith("%%"))  # such a line begins a cell
_TEXTS = st.lists(_LINES, min_size=1, max_size=4).map("\n".join).filter(str.strip)


@settings(max_examples=40)
@given(st.lists(st.tuples(_TEXTS, _TEXTS, st.integers(0, 99)), min_size=1, max_size=3))
def test_any_prose_survives_the_round_trip(blocks):
    parts = []
    for index, (en, ja, number) in enumerate(blocks):
        for lang, text in (("en", en), ("ja", ja)):
            body = "\n".join(f"# {line}".rstrip() for line in text.strip("\n").split("\n"))
            parts.append(f'# %% [markdown] lang="{lang}" uid="text-{index}"\n{body}\n')
        parts.append(f'# %% uid="code-{index}" tags=["slow"]\nx = {number}  # %magic\n')
    text = "\n".join(parts)
    source = parse_source(text, Path("07_any.py"))
    assert source.problems == () and len(source.cells) == 3 * len(blocks)
    for index, (en, ja, _) in enumerate(blocks):
        pair = source.pairs[f"text-{index}"]
        for lang, wanted in (("en", en), ("ja", ja)):
            found = [line.rstrip() for line in pair[lang].source.strip().split("\n")]
            assert found == [line.rstrip() for line in wanted.strip().split("\n")]
    assert write_source(source) == text
    again = reconcile(source, [f"text-{index}" for index in range(len(blocks))])
    assert stale_pairs(parse_source(again, Path("07_any.py"))) == {}


def test_lines_of_cells_are_those_of_the_file(project):
    path = source_of(project)
    lines = path.read_text(encoding="utf-8").split("\n")
    for cell in read_source(path).cells:
        assert lines[cell.line - 1].startswith("# %%") and f'uid="{cell.uid}"' in lines[cell.line - 1]
        first = cell.source.split("\n")[0]
        assert lines[cell.body_line - 1] in (first, f"# {first}")


def test_comments_that_look_like_magics_stay_comments():
    text = '# %% uid="a"\n# %matplotlib inline\n# ls the files\n# !pip\nx = 1\n'
    source = parse_source(text, Path("00_a.py"))
    assert source.cells[0].source == "# %matplotlib inline\n# ls the files\n# !pip\nx = 1"
    assert write_source(source) == text


def test_tidy_puts_a_source_into_canonical_form(project):
    path = source_of(project)
    wanted = path.read_text(encoding="utf-8")
    edit(path, '# %% uid="quiz"', '\n\n\n\n# %% uid="quiz"')
    edit(path, "# Ask the room", "#  Ask the room")
    edit(path, '\n# %% [markdown] lang="ja" uid="teaching"', '\n\n\n# %% [markdown] lang="ja" uid="teaching"')
    assert labkit_build(project, "--tidy") == 0
    assert write_source(read_source(path)) == path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").split("\n")[:60] == wanted.split("\n")[:60]


# ---- stubs and languages -------------------------------------------------------------------------------------------

STUBS = {
    "inside a function": (
        "def f(x):\n    # BEGIN SOLUTION\n    y = x\n    return y\n    # END SOLUTION\n",
        "def f(x):\n    # HERE\n    return None\n",
    ),
    "before other lines of a function": (
        "def f(x):\n    # BEGIN SOLUTION\n    y = x\n    # END SOLUTION\n    return y\n",
        "def f(x):\n    # HERE\n    return None\n    return y\n",
    ),
    "names at top level": (
        "# BEGIN SOLUTION\na, (b, *c) = f()\nd: int = 1\na += 1\nprint(a)\nimport math\n# END SOLUTION\ng(a)",
        "# HERE\na = None\nb = None\nc = None\nd = None\nimport math\ng(a)",
    ),
    "a loop at top level": (
        "# BEGIN SOLUTION\nfor i in range(3):\n    total = i\n    kept = [j for j in ()]\n# END SOLUTION",
        "# HERE\ntotal = None\nkept = None",
    ),
    "a whole function": (
        "# BEGIN SOLUTION\n@deco\ndef f(\n    x: int = 1,  # the input\n) -> int:\n"
        '    """Say what.\n\n    At length.\n    """\n    # secret\n    return x\n# END SOLUTION',
        "@deco\ndef f(\n    x: int = 1,  # the input\n) -> int:\n"
        '    """Say what.\n\n    At length.\n    """\n    # HERE\n    return None\n',
    ),
    "a function without docstring": (
        "# BEGIN SOLUTION\ndef f(x):\n    # secret\n\n    return x\n# END SOLUTION",
        "def f(x):\n    # HERE\n    return None\n",
    ),
    "a function on one line": (
        "# BEGIN SOLUTION\ndef f(x): return x\n# END SOLUTION",
        "def f(x):\n    # HERE\n    return None\n",
    ),
    "a method": (
        "class A:\n    k = 1\n    # BEGIN SOLUTION\n    def f(self):\n        return 1\n    # END SOLUTION",
        "class A:\n    k = 1\n    def f(self):\n        # HERE\n        return None\n",
    ),
    "nothing but a call": ("# BEGIN SOLUTION\nprint(1)\n# END SOLUTION\nx = 1", "# HERE\npass\nx = 1"),
}


@pytest.mark.parametrize("name", STUBS)
def test_stubs(name):
    code, wanted = STUBS[name]
    stub = student_code(code, "en", "HERE")
    assert stub == wanted
    compile(stub, name, "exec")


def test_the_solution_edition_has_neither_markers_nor_stubs():
    code = STUBS["inside a function"][0]
    assert solution_code(code, "en") == "def f(x):\n    y = x\n    return y\n"


def test_two_regions_in_one_cell_have_a_stub_each():
    region = "# BEGIN SOLUTION\n{} = 1\n# END SOLUTION"
    code = "\n".join([region.format("a"), "b = 2", region.format("c")])
    assert student_code(code, "en", "HERE") == "# HERE\na = None\nb = 2\n# HERE\nc = None"


@pytest.mark.parametrize(
    ("code", "reason", "offset"),
    [
        ("# BEGIN SOLUTION\nx = 1", "without END", 0),
        ("x = 1\n# END SOLUTION", "inside or outside", 1),
        ("# BEGIN SOLUTION\n# BEGIN SOLUTION\n# END SOLUTION", "inside or outside", 1),
        ("# BEGIN SOLUTION\nclass A:\n    pass\n# END SOLUTION", "a class as a whole has no stub", 1),
        ("# BEGIN SOLUTION\n# only words\n# END SOLUTION", "no statement", 0),
    ],
)
def test_regions_that_cannot_be_used_say_where_and_why(code, reason, offset):
    with pytest.raises(RegionError, match=reason) as error:
        student_code(code, "en", "HERE")
    assert error.value.offset == offset and error.value.cure


def test_comment_lines_of_one_language_stay_in_it():
    code = "x = 1\n#en: one\n# ja: 一\n    # en: in a block\ny = 2  # en: not a comment line"
    assert in_language(code, "en") == "x = 1\n# one\n    # in a block\ny = 2  # en: not a comment line"
    assert in_language(code, "ja") == "x = 1\n# 一\ny = 2  # en: not a comment line"
    assert in_language("x = 1\n# en: one\n# ja: 一", "ja") == "x = 1\n# 一"


def test_docstrings_of_one_language_stay_in_it():
    code = (
        'def f(x):\n    """en: One line.\n    ja: 一行目。\n\n      二行目。\n    """\n    return x\n\n\n'
        'def g():\n    """Shared."""\n\n\ndef h():\n    """en: Two.\n\n    Lines.\n    ja: 二行。\n    """'
    )
    shared = 'def g():\n    """Shared."""\n\n\n'
    assert in_language(code, "en") == (
        f'def f(x):\n    """One line."""\n    return x\n\n\n{shared}def h():\n    """Two.\n\n    Lines.\n    """'
    )
    assert in_language(code, "ja") == (
        f'def f(x):\n    """一行目。\n\n      二行目。\n    """\n    return x\n\n\n{shared}def h():\n    """二行。"""'
    )
    assert [line.strip() for line in only_language(code, "ja").split("\n")][2:6] == ["一行目。", "", "二行目。", ""]
    assert one_sided(code) == [(10, "ja")]
    assert one_sided("# en: one\nx = 1\n# ja: 二\n# en: two") == [(0, "ja")]


# ---- what cannot be built ------------------------------------------------------------------------------------------

BROKEN = {
    "a cell without uid": ('# %% uid="quiz" tags=["quiz"]', '# %% tags=["quiz"]', "no uid"),
    "a header that is none": ('# %% uid="quiz" tags=["quiz"]', "# %% uid=quiz", "not understood"),
    "a raw cell": ('# %% uid="quiz" tags=["quiz"]', '# %% [raw] uid="quiz"', "not understood"),
    "a uid used twice": ('uid="quiz"', 'uid="plot"', "already used in line"),
    "a uid of the builder": ('uid="quiz"', 'uid="footer"', "belongs to the builder"),
    "an unknown tag": ('tags=["quiz"]', 'tags=["quizz"]', "unknown tag 'quizz'"),
    "an unknown language": ('lang="ja" uid="intro"', 'lang="fr" uid="intro"', "lang is 'fr'"),
    "a pair torn apart": ('lang="ja" uid="ex-noise"', 'lang="ja" uid="ex-nose"', "no ja cell next to"),
    "a magic": ('lab.quiz("variance")', "%matplotlib inline", "not Python"),
    "a solution without end": ("    # END SOLUTION\n", "", "without END"),
    "an exercise without entry": ('exercise="weights"', 'exercise="weight"', "no exercise 'weight'"),
    "a solution shown elsewhere": ('lab.quiz("variance")', "alpha_bar**0.5, (1 - alpha_bar) ** 0.5", None),
    "a leak": (
        'lab.quiz("variance")',
        "weights = [alpha_bar**0.5, (1 - alpha_bar) ** 0.5]",
        "the solution of 'weights' stands in student cell 'quiz'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_source_that_cannot_be_built_says_where_and_leaves_the_notebooks(project, name):
    old, new, reason = BROKEN[name]
    path = source_of(project)
    edit(path, old, new)
    before = {lang: project.notebook(STEM, lang).read_bytes() for lang in ("en", "ja")}
    if reason is None:  # part of a line, with other code around it: fine
        build.build(project)
        return
    with pytest.raises(SourceError, match=re.escape(reason)) as error:
        build.build(project, ["00"])
    for problem in error.value.problems:
        assert problem.file == f"notebooks/src/{STEM}.py" and problem.line >= 1 and problem.cure
    assert {lang: project.notebook(STEM, lang).read_bytes() for lang in ("en", "ja")} == before


def test_text_before_the_first_cell_windows_line_ends_and_other_encodings_are_refused(project):
    path = source_of(project)
    text = path.read_text(encoding="utf-8")
    for data, reason in (
        (b"import os\n" + text.encode(), "before the first cell"),
        (text.replace("\n", "\r\n").encode(), "Windows line ends"),
        (text.encode("euc-jp", errors="replace"), "not UTF-8"),
        (b"", "before the first cell"),
    ):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=reason):
            build.build(project, ["00"])


def test_unknown_lessons_and_missing_lesson_yaml_are_named(project, capsys):
    with pytest.raises(ManifestError, match="no source of lesson '07'.*00, 01"):
        build.build(project, [7])
    assert labkit_build(project, "07") == 2
    assert "00, 01" in capsys.readouterr().err
    edit(project.folder("01") / "lesson.yaml", "name: again", "name: agian")
    with pytest.raises(SourceError, match="lesson.yaml is that of 01_agian"):
        build.build(project, ["01"])
    shutil.rmtree(project.folder("01"))
    with pytest.raises(SourceError, match="no lesson.yaml"):
        build.build(project, ["01"])
    build.build(project, ["00"])


def test_two_sources_with_one_number_are_refused(project):
    shutil.copy(source_of(project), project.sources / "00_other.py")
    with pytest.raises(ManifestError, match="share the number 00"):
        build.build(project)


# ---- lesson.yaml ---------------------------------------------------------------------------------------------------


def test_lesson_yaml_is_read_into_a_lesson(project):
    lesson = load_lesson("0", project)
    assert (lesson.stem, lesson.minutes["gpu"], lesson.sizes_for("cpu")) == (STEM, None, {"images": 16})
    assert lesson.exercise("weights").difficulty == lesson.exercise("l00.weights").difficulty == 1
    for call, reason in (
        (lambda: lesson.exercise("x"), "l00.add_noise, l00.weights"),
        (lambda: lesson.sizes_for("huge"), "smoke, cpu, gpu"),
        (lambda: load_lesson("42", project), "the lessons are: 00, 01"),
    ):
        with pytest.raises(ManifestError, match=reason):
            call()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('number: "00"', "number: 00", "two digits in quotes"),
        ('number: "00"', 'number: "02"', "expected the number of the folder l00"),
        (
            "title: {en: Hello noise, ja: はじめてのノイズ}",
            "title: {en: Hello noise}",
            "title is {'en': 'Hello noise'}; expected {en: text, ja: text}",
        ),
        ("  en: [mix a signal", "  en: [twice, mix a signal", "as many texts in each language, found 2 in en, 1 in ja"),
        ("minutes: {smoke: 0.1, cpu: 1.5, gpu: null}", "minutes: {smoke: 0.1, cpu: 0}", "minutes.cpu is 0"),
        ("gpu: 64}", "}", "or one for each of smoke, cpu, gpu"),
        ("difficulty: 2", "difficulty: 6", "exercises.0.difficulty is 6; expected a whole number from 1 to 5"),
        (", minutes: 10}", "}", "exercises.0.minutes is missing; fields are id, difficulty, importance, minutes"),
        ("id: l00.weights", "id: l00.add_noise", "l00.add_noise must appear once only; rename one"),
        ("date: 2026-11-22", "day: 2026-11-22", "last_checked is"),
        ("name: hello", "name: hello\ncolour: red", "unknown key 'colour'"),
        ("last_checked:", "last_check:", "last_checked is missing; fields are number, name, title, "),
        ("references:", 'prerequisites: ["09"]\nreferences:', "expected lessons that exist; there is no lesson 09"),
    ],
)
def test_an_incomplete_lesson_yaml_names_line_and_cure(project, old, new, reason):
    edit(project.folder("00") / "lesson.yaml", old, new)
    with pytest.raises(ManifestError, match=re.escape(reason)) as error:
        load_lesson("00", project)
    assert re.match(r"labkit/course/lessons/l00/lesson\.yaml:\d+: .*; \w", str(error.value))


def test_broken_yaml_names_the_line(project):
    edit(project.folder("00") / "lesson.yaml", "sizes:", "sizes: [")
    with pytest.raises((ManifestError, YamlError), match=r"lesson\.yaml:\d+"):
        load_lesson("00", project)


def test_japanese_lines_are_joined_where_a_reader_would_see_a_space():
    text = (
        "# 見出し\n本文です。\n次の文。\nabc\n続き\n\n- 項目\n  続き\n- 次\n\n| 表\n| 表2\n\n```\nあ\nい\n```\n終\nり"
    )
    joined = "# 見出し\n本文です。次の文。\nabc\n続き\n\n- 項目続き\n- 次\n\n| 表\n| 表2\n\n```\nあ\nい\n```\n終り"
    assert unwrapped(text) == joined
    assert unwrapped("one\ntwo") == "one\ntwo"
