"""Tables that people bring: nothing is lost, cut or merged in silence; what does not fit is named with its row."""

from __future__ import annotations

import pytest

from labkit.errors import LabkitError
from labkit.inspection.prompts import read_prompts as of_a_lot
from labkit.survey.sweep import read_prompts as of_a_race
from labkit.tables import read_columns, read_table


class TableError(LabkitError):
    """One of a caller's own."""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_mark_of_the_header_separates_and_names_are_tidied(tmp_path, mark):
    text = f'\ufeff File_Name {mark}Caption\r\na.png{mark}"red, round; ""big"""\r\n\r\nb.png{mark}"two\nlines"\r\n'
    rows = read_table(write(tmp_path / "t.CSV", text))
    assert rows == [
        (1, {"file_name": "a.png", "caption": 'red, round; "big"'}),
        (3, {"file_name": "b.png", "caption": "two\nlines"}),
    ]
    assert read_columns(tmp_path / "t.CSV")[0] == ["file_name", "caption"]


def test_quotes_of_a_tsv_that_do_not_pair_are_letters(tmp_path):
    text = 'prompt\tid\n"Hi" said the cat\t1\n"open\t2\nplain\t3\n'
    assert [row["prompt"] for _, row in read_table(write(tmp_path / "t.tsv", text))] == [
        '"Hi" said the cat', '"open', "plain",
    ]  # fmt: skip


def test_short_rows_are_filled_and_empty_last_cells_do_not_count(tmp_path):
    assert read_table(write(tmp_path / "t.csv", "a,b\n1\n2,3,,\n")) == [
        (1, {"a": "1", "b": ""}),
        (2, {"a": "2", "b": "3"}),
    ]
    assert read_table(write(tmp_path / "t.csv", "")) == [] == read_table(write(tmp_path / "t.csv", "a,b\n"))


def test_lines_of_json_end_where_the_line_ends(tmp_path):
    assert read_table(write(tmp_path / "t.jsonl", '{"A": "one\u2028two"}\n\n{"a": 3}\n')) == [
        (1, {"a": "one\u2028two"}), (3, {"a": 3}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "a,b\n1,x, y\n", "row 1 has more cells than columns"),
        ("t.csv", 'a,b\n1,"x\n2,y\n', "quote that is not closed"),
        ("t.csv", 'a,b\n1,"x' + "y" * 200_000 + "\n", "quote that is not closed.*field limit"),
        ("t.csv", "a, A\n1,2\n", "has the column a twice"),
        ("t.jsonl", "{\n", "row 1 is no JSON: mend"),
        ("t.jsonl", '{"a": 1}\n[2]\n', "row 2 is no JSON object"),
    ],
)
def test_what_does_not_fit_is_named_in_the_callers_words(tmp_path, name, text, said):
    with pytest.raises(TableError, match=said):
        read_table(write(tmp_path / name, text), error=TableError)


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("名前,a\n猫,1\n".encode("cp932"))
    with pytest.raises(LabkitError, match="t.csv is not in UTF-8"):
        read_table(tmp_path / "t.csv")


def test_an_order_with_a_comma_is_whole_or_refused(tmp_path):
    """Half of it would be shown to the inspector, and drawn in a race."""
    assert of_a_lot(write(tmp_path / "t.csv", 'file_name,prompt\na.png,"red hair, glasses"\n')) == {
        "a.png": "red hair, glasses"
    }
    for read in (of_a_lot, of_a_race):
        with pytest.raises(LabkitError, match="row 1 has more cells than columns"):
            read(write(tmp_path / "t.csv", "file_name,prompt\na.png,red hair, glasses\n"))
