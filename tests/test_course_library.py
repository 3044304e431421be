"""What labkit says to a learner, warnings and errors: in the lesson's language, and as short as it can be."""

import ast
import io
import re
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

import labkit
from labkit.course import lab as session
from labkit.course.i18n import MESSAGES, load_messages, set_language, use_lesson
from labkit.course.library import FIELD, SENTENCES, pattern, translated
from labkit.errors import LabkitWarning

PACKAGE = Path(labkit.__file__).parent
FILLED = "<>"  # stands for what a message fills in


def text_of(node):
    """The string that an expression of the source makes, None for anything but a string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else FILLED for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def strings(path):
    return {text_of(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))} - {None}


def messages(path):
    """What the module says in `raise Error(...)` and `self._warn(...)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call = node.exc if isinstance(node, ast.Raise) else node
        warns = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "_warn"
        if isinstance(call, ast.Call) and call.args and (isinstance(node, ast.Raise) or warns):
            yield from filter(None, [text_of(call.args[0])])


def test_every_sentence_is_one_that_labkit_says_and_keeps_what_is_filled_in():
    said = set().union(*(strings(path) for path in PACKAGE.rglob("*.py")))
    for key, entry in load_messages(SENTENCES).items():
        one = re.compile(pattern(entry["en"]), re.DOTALL)
        assert any(one.fullmatch(text) for text in said), f"{key}: labkit does not say this (any more)"
        assert sorted(FIELD.findall(entry["en"])) == sorted(FIELD.findall(entry["ja"])), key
        assert len(FIELD.findall(entry["en"])) == len(set(FIELD.findall(entry["en"]))), key


# room -> its modules that no lesson calls: other tools' peers, files of published models, the command line
ROOMS = {
    "density": ("torchmetrics_wrapper",),
    "diffusion": (),
    "dpo": ("command", "train"),
    "fabric": (),
    "figures": (),
    "inspection": ("command",),
    "metrics": ("bradley_terry", "fid_infinity", "inception_net", "torchmetrics_wrappers"),
    "models": ("fetch", "sd_layout"),
    "pairwise": ("command",),
    "portraits": (),
    "studies": ("l06", "l07"),  # what a study says to itself
}


@pytest.mark.parametrize("room", ROOMS)
def test_all_that_a_room_says_is_there_in_japanese(room):
    paths = {path.stem: path for path in sorted((PACKAGE / room).glob("*.py"))}
    assert {*ROOMS[room]} <= {*paths}
    said = [text for name, path in paths.items() if name not in ROOMS[room] for text in messages(path)]
    assert len(said) > 5
    missing = [text for text in said if translated(text, "ja") == text]
    assert not missing


def test_no_lesson_imports_a_module_whose_errors_are_in_english_only():
    quiet = [f"labkit.{room}.{name}" for room, names in ROOMS.items() for name in names if room != "studies"]
    for source in (PACKAGE.parent / "notebooks" / "src").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        assert not [name for name in quiet if re.search(rf"{name}\b", text)], source.name


def test_a_translated_message_says_the_same_numbers_and_the_longest_sentence_wins():
    message = "max_weight is -0.5, expected a finite number of at least 0 (0 is off)"
    assert translated(message, "ja") == "max_weight が -0.5 です。0以上の有限の数を指定してください(0は無効)"
    assert translated(message, "en") == message
    burnt = "87% of the attention went to references, images tend to burn: lower weights"
    assert translated(burnt, "ja").startswith("注意の 87% が参照画像に向かいました")
    assert translated("nobody says {this}", "ja") == "nobody says {this}"


def test_a_cure_inside_a_message_is_translated_too():
    from labkit.inspection import certify_threshold
    from labkit.inspection.threshold import CalibrationError

    with pytest.raises(CalibrationError) as error:
        certify_threshold([0.9] * 5, [0] * 5, thresholds=[0.5], alpha=0.01, delta=0.05, judge="j", process="p")
    text = translated(str(error.value), "ja")
    assert (
        text.endswith("枚が通る必要があります。もっと緩いしきい値から始めるか、ラベルを増やしてください")
        and "5枚中0枚" in text
    )


def test_figures_stand_without_spaces_before_japanese_words_and_counters():
    """「1つ」「{n}枚」「95%」: the house rule of the lessons, held in the sentences that all of them share."""
    word, counter = "[ぁ-んァ-ヶー一-龠々]", "(?:枚|個|件|組|本|回|行目|冊|秒|分|つ|項目|要素|ステップ|画素|以上|以下)"
    kinds = (
        rf"(?<![A-Za-z_0-9.\-])\d[\d,.]* {word}",
        rf"{word} \d",
        rf"\}} {counter}",
        rf"{word} \{{\w+\}}{counter}",
        r"[\d}] %",
    )
    spaced = re.compile("|".join(kinds))
    assert all(
        spaced.search(text) for text in ("画像が 1 枚", "{n} 枚", "画像が {n}枚", "95 % 区間", "{p} %", "0 以上")
    )
    assert not any(spaced.search(text) for text in ("画像が1枚", "{n}枚", "95%区間", "UTF-8 で", "{path} がありません"))
    for path in (SENTENCES, *sorted(MESSAGES.glob("*.yaml"))):
        found = [key for key, entry in load_messages(path).items() if spaced.search(entry["ja"])]
        assert not found, f"{path.name}: {found}"


# ---- in cells of a notebook ------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path):
    """run(code): what a cell shows, errors and all."""
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(colors="nocolor")

    def run(code):
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            run.result = shell.run_cell(code, store_history=True)
        return out.getvalue()

    def start(lang, **options):
        options = {"tier": "smoke", "lang": lang, "home": str(tmp_path)} | options
        return run(f"from labkit.course import start\nlab = start('00', **{options!r})")

    run.start = start
    with warnings.catch_warnings():  # pytest records warnings otherwise
        warnings.showwarning = lambda message, category, *where, **options: print(f"{category.__name__}: {message}")
        yield run
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()
    session._current = None
    use_lesson(None)
    set_language("en")


WRONG = "from labkit.fabric import Settings\n\nSettings(max_weight=-1.0)"
WORDS = {
    "en": ["max_weight is -1.0, expected a finite number of at least 0 (0 is off)", "line 3 of your cell: Settings("],
    "ja": ["max_weight が -1.0 です。0以上の有限の数を指定してください(0は無効)", "セルの3行目: Settings("],
}


@pytest.mark.parametrize("lang", WORDS)
def test_an_error_of_labkit_is_three_lines_in_the_learners_language(shell, lang):
    shell.start(lang)
    shown = shell(WRONG)
    assert all(words in shown for words in WORDS[lang])
    assert len(shown.strip().splitlines()) == 3 and "%tb" in shown
    assert not shell.result.success  # "Run all" stops here
    assert "__post_init__" in shell("%tb")
    plain = shell("from labkit.figures import image_grid\nimage_grid([])")  # a ValueError, no error of labkit's own
    assert len(plain.strip().splitlines()) == 3 and ("images" if lang == "en" else "画像がありません") in plain


def test_other_errors_keep_their_traceback(shell):
    shell.start("ja")
    shown = shell("def mine(x):\n    return undefined_name\n\nmine(1)")
    assert "Traceback" in shown and "return undefined_name" in shown and "NameError" in shown
    shown = shell("from labkit.fabric import Settings\n\nSettings(max_weight='x')")  # labkit does not expect it
    assert "Traceback" in shown and "TypeError" in shown


def test_batch_runs_keep_the_traceback_of_every_error(shell):
    shell.start("ja", interactive=False)
    assert "Traceback" in shell(WRONG)


@pytest.mark.parametrize("lang", WORDS)
def test_a_warning_is_a_box_in_the_learners_language_each_time_the_cell_runs(shell, lang):
    shell.start(lang, interactive=False)
    cell = "import warnings\nfrom labkit.fabric import FabricWarning\nwarnings.warn('{}', FabricWarning)"
    cell = cell.format(
        "with these weights about 90% of the attention goes to references, images tend to burn: "
        "lower max_weight, or set count_normalized=True or mass_cap"
    )
    for _ in range(2):
        shown = shell(cell)
        assert ("about 90%" if lang == "en" else "注意の約 90% が参照画像に向かい") in shown
        assert "FabricWarning" not in shown and shown.startswith("!")
    assert "UserWarning: other" in shell("import warnings\nwarnings.warn('other')")


def test_every_warning_of_labkit_has_the_base_that_lessons_know():
    from labkit.fabric import FabricWarning

    assert issubclass(FabricWarning, LabkitWarning)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("for users of the library: text as it is", FabricWarning, stacklevel=1)
    assert str(caught[0].message) == "for users of the library: text as it is"
