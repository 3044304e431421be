"""Every lint finds what it is for, at the right place, with a cure, and leaves alone what only looks similar."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.authoring import build, lint
from labkit.authoring.lint import RULES
from labkit.authoring.lint.text import formulas, glossary, headings, links, lint_terms
from labkit.course.manifest import ManifestError, Project

SAMPLE = Path(__file__).parent / "data" / "course"
SRC = "notebooks/src/00_hello.py"
L00 = "labkit/course/lessons/l00/"
# The English text of the pair "intro", for lints that compare the languages.
EN_INTRO = "# (see [the paper](https://arxiv.org/abs/2006.11239), equation 4)."
INSTALL = "pip install " + "labkit"  # in two parts: this file is not to contain it


@pytest.fixture
def project(tmp_path: Path) -> Project:
    shutil.copytree(SAMPLE, tmp_path / "course", ignore=shutil.ignore_patterns("build"))
    return Project(tmp_path / "course")


def edit(project: Project, file: str, old: str, new: str) -> None:
    path = project.root / file
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {file}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def line_of(project: Project, file: str, text: str) -> int:
    lines = (project.root / file).read_text(encoding="utf-8").split("\n")
    return next(index for index, line in enumerate(lines, start=1) if text in line)


# rule, file, old text, new text, text in the reported line ("" for line 1), and the file reported if it is another one
FINDS = [
    ("malformed-source", SRC, '# %% uid="quiz" tags=["quiz"]', "# %% uid=quiz", "# %% uid=quiz"),
    ("malformed-source", SRC, '# %% uid="quiz" tags=["quiz"]', '# %% tags=["quiz"]', '# %% tags=["quiz"]'),
    ("malformed-source", SRC, 'lab.quiz("variance")', "%matplotlib inline", 'uid="quiz"'),
    ("malformed-source", SRC, "    # END SOLUTION\n", "", "# BEGIN SOLUTION"),
    ("malformed-source", SRC, 'lab.quiz("variance")', "# BEGIN SOLUTION\nx = 1\n# END SOLUTION", 'uid="quiz"'),
    ("malformed-source", SRC, 'uid="plot" tags=["hide-input"]', 'uid="plot" tags=["exercise"]', 'uid="plot"'),
    ("malformed-source", SRC, 'uid="plot"', 'uid="plot" colour="red"', 'uid="plot"'),
    ("source-format", SRC, "# Ask the room", "#Ask the room", "#Ask the room"),
    ("duplicate-uid", SRC, 'uid="quiz"', 'uid="plot"', '# %% uid="plot" tags=["quiz"]'),
    ("duplicate-uid", SRC, 'uid="quiz"', 'uid="install"', 'uid="install"'),
    ("duplicate-uid", SRC, 'uid="quiz"', 'uid="intro"', '# %% uid="intro"'),
    ("unknown-tag", SRC, 'tags=["quiz"]', 'tags=["quizz"]', "quizz"),
    ("pair-missing", SRC, 'lang="ja" uid="intro"', 'lang="ja" uid="outro"', 'uid="outro"'),
    ("pair-stale", SRC, "Complete `add_noise`", "Please complete `add_noise`", 'lang="ja" uid="ex-noise"'),
    ("pair-stale", SRC, "を完成させて", "を書いて", 'lang="en" uid="ex-noise"'),
    (
        "math-differs",
        SRC,
        "\\bar\\alpha}\\,x_0 + \\sqrt{1-\\bar\\alpha}\\,\\epsilon$ を",
        "\\alpha}$ を",
        'lang="ja" uid="intro"',
    ),
    ("math-differs", SRC, "画像 $x_0$ から", "画像から", 'lang="ja" uid="intro"'),
    ("math-differs", L00 + "quiz.yaml", 'ja: "$\\\\sqrt{0.64}$ は', 'ja: "$\\\\sqrt{0.46}$ は', "0.46"),
    ("links-differ", SRC, "[論文](https://arxiv.org/abs/2006.11239)", "論文", 'lang="ja" uid="intro"'),
    ("links-differ", SRC, EN_INTRO, EN_INTRO + "\n# ![noise](noise.png)", 'lang="ja" uid="intro"'),
    ("headings-differ", SRC, "# ## ノイズを混ぜる", "# ### ノイズを混ぜる", 'lang="ja" uid="intro"'),
    ("solution-leak", SRC, 'lab.quiz("variance")', "weights = [alpha_bar**0.5, (1 - alpha_bar) ** 0.5]", "weights = ["),
    ("solution-leak", SRC, "Complete `add_noise`.", "`return signal + (1 - alpha_bar) ** 0.5 * noise`", "signal ="),
    ("non-english-literal", SRC, 't("l00.title", t=0.5)', '"時刻"', '"時刻"'),
    ("non-english-literal", SRC, 't("l00.title", t=0.5)', '"Signal and noise"', '"Signal and noise"'),
    ("non-english-literal", SRC, 'lab.t("l00.x")', 'f"position of {seed}"', 'f"position of'),
    ("non-english-literal", SRC, 'lab.quiz("variance")', 'name = "the variance"\nprint(name)', 'name = "the variance"'),
    ("non-english-literal", SRC, 'lab.quiz("variance")', 'lab.grid([], captions=["before", "after"])', "captions"),
    ("non-english-literal", SRC, 'lab.quiz("variance")', 'raise ValueError("too large")', "too large"),
    ("comment-language", SRC, "# en: sixteen pictures on the cpu tier\n", "", "# ja: tier"),
    ("comment-language", SRC, 'lab.quiz("variance")', '# 確認\nlab.quiz("variance")', "# 確認"),
    ("comment-language", SRC, "return signal +", "# the noise\n    return signal +", "# the noise"),
    ("comment-language", SRC, "    ja: 分散が", "    分散が", '"""en: Mix x0'),
    ("non-english-literal", SRC, r'measured=r"$\sigma^2$"', 'measured="the variance"', 'measured="'),
    ("parameters-tag", SRC, 'tags=["parameters"]', 'tags=["slow"]', ""),
    ("parameters-tag", SRC, 'uid="quiz" tags=["quiz"]', 'uid="quiz" tags=["parameters"]', 'uid="quiz"'),
    ("parameters-tag", SRC, "seed = 0\n", "seed = int(0)\n", "seed = int(0)"),
    ("parameters-tag", SRC, "seed = 0\n", "import os\n", "import os"),
    ("parameters-tag", SRC, "strict = False\n", "", 'uid="parameters"'),
    ("parameters-tag", SRC, "seed = 0\n", "seed = second = 0\n", "seed = second = 0"),
    ("parameters-tag", SRC, 'tier = "cpu"', 'tier = "gpu"', 'uid="parameters"'),
    ("setup-cell", SRC, 'tags=["setup"]', 'tags=["slow"]', ""),
    ("setup-cell", SRC, 'start("00"', 'start("01"', 'uid="setup"'),
    ("setup-cell", SRC, "strict=strict, ", "", 'uid="setup"'),
    ("setup-cell", SRC, 'uid="quiz" tags=["quiz"]', 'uid="quiz" tags=["setup"]', 'uid="quiz"'),
    (
        "exercise-meta",
        L00 + "lesson.yaml",
        "  - {id: l00.weights, difficulty: 1, importance: 3, minutes: 5}\n",
        "",
        'uid="weights"',
        SRC,
    ),
    (
        "exercise-meta",
        L00 + "lesson.yaml",
        "exercises:\n",
        "exercises:\n  - {id: l00.more, difficulty: 1, importance: 3, minutes: 5}\n",
        "l00.more",
    ),
    ("exercise-meta", L00 + "lesson.yaml", "difficulty: 2, importance: 5, ", "", "l00.add_noise"),
    ("exercise-meta", L00 + "lesson.yaml", "difficulty: 2", "difficulty: hard", "l00.add_noise"),
    ("check-id", SRC, 'lab.check("weights")\n', "", "", L00 + "checks.py"),
    ("quiz-id", SRC, 'lab.quiz("variance")\n', "", "", L00 + "quiz.yaml"),
    ("quiz-id", SRC, 'lab.predict("larger")', "", "", L00 + "quiz.yaml"),
    ("claim-id", SRC, 'lab.claim("variance"', 'print("variance"', "", L00 + "claims.yaml"),
    ("message-missing", SRC, 't("l00.title", t=0.5)', 't("l00.titel", t=0.5)', "l00.titel"),
    (
        "message-missing",
        L00 + "messages.yaml",
        "  x: {en: Position, ja: 位置}",
        "  x: {en: Position}",
        "x: {en: Position}",
    ),
    ("message-missing", L00 + "messages.yaml", "  x: {en: Position, ja: 位置}", "  x: Position", "x: Position"),
    ("message-missing", L00 + "checks.py", 'key="l00.no_root"', 'key="l00.no_rot"', "l00.no_rot"),
    ("message-missing", L00 + "claims.yaml", ", ja: 分散は 1 のままです。", "", "statement"),
    ("message-placeholders", SRC, 't("l00.title", t=0.5)', 't("l00.title")', 't("l00.title")'),
    ("message-placeholders", SRC, 'lab.t("l00.x")', 'lab.t("l00.x", unit=1)', "unit=1"),
    ("message-placeholders", L00 + "messages.yaml", '"時刻 {t:.1f} での', '"時刻 {time:.1f} での', "{time:.1f}"),
    ("message-placeholders", L00 + "messages.yaml", "{en: Position,", '{en: "Position {}",', "Position {}"),
    ("glossary", SRC, "先に、和の分散を", "先に、微調整と和の分散を", "微調整"),
    ("glossary", L00 + "messages.yaml", "ja: 位置", "ja: 雑音除去の位置", "雑音除去"),
    ("glossary", SRC, "# ja: tier が", "# ja: 微調整の tier が", "微調整"),
    ("glossary", SRC, "    ja: 分散が", "    ja: デノイズの分散が", "デノイズ"),
    ("glossary", L00 + "lesson.yaml", "ja: はじめてのノイズ", "ja: はじめてのデノイズ", "デノイズ"),
    ("lesson-yaml", L00 + "lesson.yaml", "  ja: 画像とノイズを自分の手で混ぜます。\n", "", "summary:"),
    ("lesson-yaml", L00 + "lesson.yaml", "name: hello", "name: hallo", "name: hallo"),
    ("lesson-yaml", L00 + "lesson.yaml", "last_checked:", "last_checkd:", "last_checkd:"),
    ("lesson-files", L00 + "quiz.yaml", ", correct: true", "", "options:"),
    ("lesson-files", L00 + "claims.yaml", "direction: equal", "direction: up", "direction: up"),
    ("lesson-files", L00 + "article.yaml", "- article: {", "- artikel: {", "- artikel"),
    ("lesson-files", L00 + "messages.yaml", "l00:\n", "l00: [\n", "x: {en: Position"),
    ("lesson-files", L00 + "checks.py", "def add_noise(", "def add_noise((", "def add_noise(("),
    ("generated-edited", "notebooks/ja/00_hello.ipynb", "return None", "return 1", "return 1"),
    ("forbidden-text", SRC, EN_INTRO, f"# `{INSTALL}`", INSTALL),
    ("forbidden-text", "pyproject.toml", "[project]", f"# {INSTALL.replace('install', 'install -U')}\n[project]", "-U"),
]


@pytest.mark.parametrize("case", FINDS, ids=lambda case: f"{case[0]}-{case[3][:24]!r}".replace("\n", " "))
def test_a_lint_finds_it(project, case):
    rule, file, old, new, marker, *elsewhere = case
    edit(project, file, old, new)
    found = [problem for problem in lint.lint(project) if problem.rule == rule]
    reported = elsewhere[0] if elsewhere else file
    wanted = (reported, line_of(project, reported, marker) if marker else 1)
    assert wanted in [(problem.file, problem.line) for problem in found], "\n".join(map(str, found)) or "nothing found"
    for problem in found:
        assert problem.message and problem.cure
        assert str(problem).startswith(f"{problem.file}:{problem.line}: {rule}: ")


def test_every_rule_has_a_failing_sample():
    assert {case[0] for case in FINDS} == set(RULES)


def test_the_sample_course_is_clean(project):
    assert lint.lint(project) == []


# Changes that look like a violation and are none: file, old text, new text
ALLOWS: dict[str, tuple[str, str, str]] = {
    "a symbol as a label": (SRC, 'lab.t("l00.x")', 'r"$\\beta_t$"'),
    "names the cell uses": (SRC, 'lab.t("l00.x")', 'f"seed = {seed}, figure {figure}"'),
    "acronyms, class names, snake case": (SRC, 'lab.t("l00.x")', '"PSNR CLIPModel alphas_cumprod x0"'),
    "a number format": (SRC, 'lab.t("l00.x")', 'f"{seed:.3f} / {seed:>10}"'),
    "tags and code": (SRC, 'lab.t("l00.x")', "\"<b class='x'>`some code here`</b>\""),
    "a prompt": (SRC, 'lab.quiz("variance")', 'prompt = "a smiling person"\nprint(prompt)\nlab.quiz("variance")'),
    "a prompt as an argument": (SRC, 'lab.quiz("variance")', 'sample("a smiling person")\nlab.quiz("variance")'),
    "another docstring": (SRC, "en: Mix x0 and noise", "en: Mix x0 and a lot of noise"),
    "all questions at once": (SRC, 'lab.quiz("variance")', "lab.quiz()"),
    "another language of one link": (SRC, EN_INTRO, EN_INTRO + "\n# [w](https://en.wikipedia.org/wiki/Noise)"),
    "shapes and names in a comment": (
        SRC,
        "return signal +",
        "y = x0  # [images, size]: 2 x alpha_bar\n    return signal +",
    ),
    "full ids": (SRC, 'check("add_noise")', 'check("l00.add_noise")'),
    "a size for all tiers": (L00 + "lesson.yaml", "{smoke: 2, cpu: 16, gpu: 64}", "8"),
    "the distribution": ("pyproject.toml", "[project]", "# pip install diffusion-labkit\n[project]"),
    "a parameter more": (SRC, "seed = 0\n", "seed = 0\nscale = -7.5\n"),
    "agreed terms": (L00 + "messages.yaml", "ja: 位置", "ja: ノイズ除去と忠実度の位置"),
    "code in a Japanese text": (L00 + "messages.yaml", "ja: 位置", "ja: '`デノイズ` の位置'"),
}


@pytest.mark.parametrize("name", ALLOWS)
def test_a_lint_leaves_it_alone(project, name):
    file, old, new = ALLOWS[name]
    edit(project, file, old, new)
    if "wikipedia" in new:
        edit(project, SRC, "の式 4)。", "の式 4)。[w](https://ja.wikipedia.org/wiki/ノイズ)")
    build.reconcile_pairs(project, [], [])
    build.build(project)
    assert lint.lint(project) == []


def test_one_lesson_can_be_linted_alone(project):
    edit(project, "notebooks/src/01_again.py", "# Once more.", "# Once more!")
    assert lint.lint(project, ["00"]) == []
    assert {problem.rule for problem in lint.lint(project, ["1"])} == {"pair-stale", "generated-edited"}
    with pytest.raises(ManifestError, match="00, 01"):
        lint.lint(project, ["05"])


def test_a_lesson_without_source_and_a_source_that_cannot_be_read_are_reported(project):
    (project.root / "notebooks/src/01_again.py").unlink()
    (project.root / SRC).write_bytes(b"\xff\xfe")
    found = {(problem.file, problem.rule) for problem in lint.lint(project)}
    assert ("labkit/course/lessons/l01/lesson.yaml", "lesson-yaml") in found
    assert (SRC, "malformed-source") in found


def labkit_lint(*args: str) -> int:
    parser = argparse.ArgumentParser()
    lint.add_parser(parser.add_subparsers())
    namespace = parser.parse_args(["lint", *args])
    return namespace.func(namespace)


def test_the_command_prints_findings_and_answers_with_its_status(project, capsys):
    root = ["--root", str(project.root)]
    assert labkit_lint(*root) == 0
    assert f"no findings, {len(RULES)} rules" in capsys.readouterr().out
    edit(project, SRC, 'tags=["quiz"]', 'tags=["quizz"]')
    assert labkit_lint(*root) == 1
    out = capsys.readouterr().out
    assert f"{SRC}:{line_of(project, SRC, 'quizz')}: unknown-tag: unknown tag 'quizz'\n    tags are parameters" in out
    assert labkit_lint("42", *root) == 2
    assert "00, 01" in capsys.readouterr().err
    assert labkit_lint("--list") == 0
    listed = capsys.readouterr().out
    assert all(f"{rule} " in listed and text in listed for rule, text in RULES.items())


def test_a_file_that_cannot_be_read_is_reported_once_and_not_as_missing_names(project):
    for name in ("messages.yaml", "lesson.yaml", "quiz.yaml"):
        path = project.root / L00 / name
        path.write_text("x: [\n", encoding="utf-8")
    found = lint.lint(project, ["00"])
    assert {problem.rule for problem in found} <= {"lesson-files", "lesson-yaml"}, "\n".join(map(str, found))
    assert {Path(problem.file).name for problem in found} >= {"messages.yaml", "lesson.yaml"}


def test_the_course_itself_is_clean():
    """The lints of `make check`, on the repository (the drift gate runs on its own)."""
    problems = lint.lint(generated=False)
    assert problems == [], "\n".join(map(str, problems))


# ---- comparing prose -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extract", "a", "b"),
    [
        (formulas, "$x_t = a$", "$x_t=a$"),
        (formulas, "$$\ny = 2.\n$$", "これは $$y = 2$$ です"),
        (formulas, "$y \\text{ if } x$", "$y \\text{ ただし } x$"),
        (formulas, "It costs $5 and $6.", "5 ドルと 6 ドル"),
        (formulas, "`$HOME$` and ```\n$x$\n```", ""),
        (formulas, "\\(a\\) and \\[b\\]", "$b$ と $a$"),
        (links, "[a](x.md), <https://a.b/c>.", "[あ](x.md)、(https://a.b/c)。"),
        (links, "[a](../en/01_x.ipynb#part-one)", "[あ](../ja/01_x.ipynb#第一部)"),
        (links, "![a](fig_en.png)", "![あ](fig_ja.png)"),
        (links, "[a](README.md)", "[あ](README.ja.md)"),
        (links, '<img src="x.png" alt="noise">', "![ノイズ](x.png)"),
        (links, "`[a](b)`", ""),
        (headings, "# A\n## B\n```\n# no heading\n```", "# あ\n\n## い"),
    ],
)
def test_texts_that_say_the_same_compare_equal(extract: Callable, a: str, b: str):
    assert extract(a) == extract(b)


@pytest.mark.parametrize(
    ("extract", "a", "b"),
    [
        (formulas, "$x_t$", "$x_{t-1}$"),
        (formulas, "$\\alpha x$", "$\\alphax$"),
        (formulas, "$a$ and $b$", "$a$ と b"),
        (links, "[a](x.md)", "[あ](y.md)"),
        (links, "[a](x.png)", "![あ](x.png)"),
        (links, "[a](https://a.b/1)", "[あ](https://a.b/2)"),
        (headings, "## A", "### あ"),
    ],
)
def test_texts_that_differ_compare_unequal(extract: Callable, a: str, b: str):
    assert extract(a) != extract(b)


# ---- the glossary --------------------------------------------------------------------------------------------------


def test_the_glossary_is_consistent():
    terms = glossary()
    agreed = [term.ja for term in terms]
    assert len(terms) >= 40 and len(set(agreed)) == len(agreed)
    for term in terms:
        assert term.en and term.variants and term.ja not in term.variants
        assert not set(term.variants) & set(agreed), term
        assert list(lint_terms(f"{term.ja}を使います。", 1, "x.md")) == [], "an agreed term is never a violation"
        for variant in term.variants:
            found = list(lint_terms(f"一行目\n{variant}を使います。", 1, "x.md"))
            assert [(problem.line, term.ja in problem.cure) for problem in found] == [(2, True)], variant


def test_terms_are_not_looked_for_in_code_formulas_and_links():
    text = "`デノイズ` $デノイズ$ [ノイズ除去](デノイズ.md) https://a.b/デノイズ 『デノイズの論文』\n"
    text += "```\nデノイズ\n```\n"
    assert list(lint_terms(text, 1, "x.md")) == []
    assert [problem.line for problem in lint_terms(text + "デノイズ", 1, "x.md")] == [5]
