"""Texts stand in the notebooks as words: literals for keys, the same code in both languages, lines not too long."""

import ast
import json
from types import SimpleNamespace

import pytest

from labkit.authoring.wording import uses_t, with_texts
from labkit.authoring.wrapping import width, wrapped
from labkit.course.i18n import Catalogue
from labkit.course.manifest import Project

TEXTS = {
    "plain": {"en": "strength", "ja": "強さ"},
    "quoted": {"en": 'a "b" {{c}}\nd', "ja": "「b」{{c}}\nd"},
    "formula": {"en": r"$\bar\alpha_{{t}}$ of {n}", "ja": r"{n} の $\bar\alpha_{{t}}$"},
    "two": {"en": "{a:.2f} after {b}", "ja": "{b} の後は {a:.2f}"},
    "twice": {"en": "{n} against {n}", "ja": "各 {n}"},
    "inner": {"en": "less of {what}", "ja": "{what}が減る"},
    "converted": {"en": "{n!r} is it", "ja": "{n} です"},
    "one_sided": {"en": "only English"},
}
CATALOGUE = Catalogue(TEXTS)
ROWS, NAMES = [1.234, 5.0], {"a": 2, "b's": 3}


def run(code: str, lang: str) -> object:
    """The value of an expression whose `t` looks texts up as lessons do."""
    t = SimpleNamespace(t=lambda key, **values: CATALOGUE.text(key, lang, **values)).t
    return eval(
        code, {"t": t, "lab": SimpleNamespace(t=t), "rows": ROWS, "names": NAMES, "x": 0.5, "n": 3, "key": "plain"}
    )


CASES = {  # source -> what the English edition says
    't("plain")': '"strength"',
    'lab.t("plain")': '"strength"',
    't("quoted")': '"a \\"b\\" {c}\\nd"',
    't("formula", n=n)': r'rf"$\bar\alpha_{{t}}$ of {n}"',
    't("formula", n=3)': r'r"$\bar\alpha_{t}$ of 3"',
    't("two", a=sum(rows) / len(rows), b=names["a"])': "f\"{sum(rows) / len(rows):.2f} after {names['a']}\"",
    't("two", b=1, a=rows[0])': 'f"{rows[0]:.2f} after 1"',
    't("two", a=rows[0], b=names["b\'s"])': '"{a:.2f} after {b}".format(a=rows[0], b=names["b\'s"])',
    't("two", a=x, b={"c": 1}["c"])': '"{a:.2f} after {b}".format(a=x, b={"c": 1}["c"])',
    't("two", a=x, b="\\n".join("ab"))': '"{a:.2f} after {b}".format(a=x, b="\\n".join("ab"))',
    't("two", a=(lambda v: v)(x), b=n)': 'f"{(lambda v: v)(x):.2f} after {n}"',
    't("two", **{"a": x, "b": n})': '"{a:.2f} after {b}".format(**{"a": x, "b": n})',
    't("two", a=x, b=n if n != 2 else 0)': 'f"{x:.2f} after {n if n != 2 else 0}"',
    't("twice", n=n)': 'f"{n} against {n}"',
    't("twice", n=len(rows))': '"{n} against {n}".format(n=len(rows))',  # not computed twice
    't("inner", what=t("plain"))': '"less of strength"',
    't("inner", what=t("twice", n=n))': "f\"less of {f'{n} against {n}'}\"",
    't("converted", n=n)': '"{n!r} is it".format(n=n)',
    '{t("plain"): x, "p": [t("plain") for _ in rows]}': '{"strength": x, "p": ["strength" for _ in rows]}',
    't(\n    "two",\n    a=x,\n    b=n,\n)': 'f"{x:.2f} after {n}"',
    't(key)': "t(key)",
    't("nowhere")': 't("nowhere")',
    't("one_sided")': '"only English"',
}  # fmt: skip


@pytest.mark.parametrize("source", CASES)
def test_a_literal_says_what_the_call_said(source):
    assert with_texts(source, "en", CATALOGUE) == CASES[source]
    for lang in ("en", "ja"):
        assert run(with_texts(source, lang, CATALOGUE), lang) == run(source, lang)


def test_both_languages_choose_the_same_form_where_one_cannot_have_an_f_string():
    for source in ('t("twice", n=len(rows))', 't("converted", n=n)'):
        assert ".format(" in with_texts(source, "ja", CATALOGUE) and ".format(" in with_texts(source, "en", CATALOGUE)


def test_comments_other_strings_and_wide_characters_stay_in_place():
    code = (
        'a = "強さ" + t("plain") + "t(\\"x\\")"  # t("plain") は強さです\nb = [t("plain"), t("two", a=x, b=n)]  # 強さ'
    )
    assert with_texts(code, "ja", CATALOGUE) == (
        'a = "強さ" + "強さ" + "t(\\"x\\")"  # t("plain") は強さです\nb = ["強さ", f"{n} の後は {x:.2f}"]  # 強さ'
    )


def test_calls_of_t_that_are_left_are_seen():
    assert uses_t("print(t(key))") and uses_t("lab.t(key)")
    assert not uses_t('"t(key)"  # t(key)\nt = 3\nx.t(key)\nformat(t)')


LONG = {
    "elements": 'plot(\n    rows, "{0}", title="{0}", log=True\n)',
    "a call": 'plot(rows, "{0}", "{0}", *names)',
    "nested": 'claim("id", **paired("{0}", rows, [f(r) for r in rows]))\n',
    "one text": "print(f\"{0} {{n}} {0} {{names['a']}} {{{{0}}}} {0}\")",
    "an assignment": "if x:\n    figure.alt = '{0} {0} {0}' + name",
    "formatted": 'print("{0} {{a}} {0}".format(a=1))',
    "a dictionary": 'd = {{"{0}": slider("{0}", 0, 1), "b": slider("b", 0, 1)}}',
    "raw": 'label = r"$\\alpha$ {0} $\\sigma$ {0} \\\\ {0}"',
    "a comprehension": "x = [row for row, _ in zip(rows, names) if row in ('{0}', '{0}', 'c')]",
}
FILLS = {
    "en": "what one finds when looking at all of the pictures, one after the other, in the order of time",
    "ja": "すべての画像を、生成した時間の順に 1 枚ずつ見ていくと、次のことが分かります。",
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("lang", FILLS)
def test_long_lines_are_wrapped_and_mean_the_same(name, lang):
    code = LONG[name].format(FILLS[lang])
    assert max(map(width, code.split("\n"))) > 120
    short = wrapped(code, "")
    assert max(map(width, short.split("\n"))) <= 120
    assert ast.dump(ast.parse(short)) == ast.dump(ast.parse(code))
    assert wrapped(short, "") == short


def test_elements_get_a_line_each_and_lines_of_the_source_stay():
    line = f'plot(rows, xlabel="{"a" * 40}", ylabel="{"b" * 40}", title="{"c" * 40}")'
    wanted = [
        f"    {part}," for part in ("rows", f'xlabel="{"a" * 40}"', f'ylabel="{"b" * 40}"', f'title="{"c" * 40}"')
    ]
    assert wrapped(line, "").split("\n") == ["plot(", *wanted, ")"]
    assert wrapped(line, line) == line
    assert wrapped(f"x = {'a' * 130}", "") == f"x = {'a' * 130}"  # nothing helps
    assert wrapped(f"{line}  # why", "") == f"{line}  # why"


@pytest.mark.parametrize("path", Project().source_files(), ids=lambda path: path.name)
def test_no_lesson_shows_a_key_and_both_languages_run_the_same_code(path):
    codes = []
    for lang in ("en", "ja"):
        cells = json.loads(Project().notebook(path.stem, lang).read_text(encoding="utf-8"))["cells"]
        code = {c["id"]: "".join(c["source"]) for c in cells if c["cell_type"] == "code" and c["id"] != "install"}
        assert [uid for uid, text in code.items() if uses_t(text)] == []
        assert code["setup"].startswith("from labkit.course import start\n")
        codes.append({uid: masked(text) for uid, text in code.items()})
    assert codes[0] == codes[1]


def masked(code: str) -> str:
    """The code of a cell without its texts: docstrings, strings, f-strings with what they show, comments."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            texts = [ast.Constant("") if _is_text(child) else child for child in children]
            setattr(node, name, texts if isinstance(value, list) else texts[0])
    return ast.unparse(tree)


def _is_text(node: object) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_masking_hides_texts_and_nothing_else():
    code = 'def f(x):\n    """One."""\n    return g(x, "a", f"{x:.2f}")  # why'
    assert masked(code) == masked('def f(x):\n    """Eins."""\n    return g(x, "b", f"b {x}")')
    assert masked(code) != masked(code.replace("g(x,", "g(y,"))
