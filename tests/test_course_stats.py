"""`labkit lint --stats` counts what it says it counts, on a lesson small enough to count by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit.authoring.lint.stats import code_lines, count, figure_groups, table
from labkit.authoring.source import parse_source
from labkit.cli import main

SAMPLE = Path(__file__).parent / "data" / "course"
LESSON = SimpleNamespace(exercises=[SimpleNamespace(difficulty=grade) for grade in (1, 2, 2, 5)])

TEXT = '''# %% uid="parameters" tags=["parameters"]
tier = "cpu"

# %% [markdown] lang="en" uid="a"
# ## Three words, then $x + y$ `code`

# %% [markdown] lang="ja" uid="a"
# ## 七文字の見出し

# %% uid="write" tags=["exercise"] exercise="f"
# en: no code
# ja: コードではない
def f(x):
    """en: Nor is this.
    ja: これも違います。
    """
    # BEGIN SOLUTION
    return x

    # END SOLUTION


# %% [markdown] lang="en" uid="b"
# Four words of prose.

# %% [markdown] lang="ja" uid="b"
# 四文字。

# %% uid="draw"
image_grid([f(1)])

# %% uid="more"
lab.predict("more")

# %% [markdown] lang="en" uid="c"
# **What you see.**

# %% [markdown] lang="ja" uid="c"
# 図。

# %% uid="again" tags=["open"]
strips({})
'''


def counted(text: str = TEXT):
    source = parse_source(text, Path("01_sample.py"))
    assert not source.problems
    return count(source, LESSON)


def test_prose_is_counted_per_line_of_code_without_formulas_code_and_docstrings():
    assert code_lines('def f(x):\n    """Text."""\n\n    # note\n    return x') == 2
    found = counted()  # code: def, return, image_grid, predict, strips; the parameters are machinery
    assert found.words_en == pytest.approx((3 + 4 + 3) / 5)
    assert found.characters_ja == pytest.approx((7 + 3 + 1) / 5)


def test_what_there_is_to_do_is_found_in_its_third():
    found = counted()
    assert found.thirds == (1, 0, 2)
    assert found.open_tasks == 1 and found.exercises == 4 and found.difficulties == (1, 2, 0, 0, 1)
    assert found.missed() == ["words_en", "characters_ja", "per_third", "unread"]


def test_a_group_of_figures_is_read_if_prose_follows_before_the_next_heading():
    assert counted().figures == 2 and counted().unread == 1  # nothing follows the last
    source = parse_source(TEXT.replace("# **What you see.**", "# ## Next"), Path("01_sample.py"))
    assert figure_groups([cell for cell in source.cells if cell.lang != "ja"]) == [False, False]


def test_the_table_stars_what_falls_short_and_the_command_says_so_by_its_status(capsys: pytest.CaptureFixture):
    assert "2.0*" in table([counted()]) and table([counted()]).splitlines()[-1].split()[0] == "goal"
    assert main(["lint", "--stats", "--root", str(SAMPLE), "00"]) == 1
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "00"
