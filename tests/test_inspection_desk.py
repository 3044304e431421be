"""The inspection desk without a browser: keys, times, going back, widgets, what is saved."""

import numpy as np
import pytest

from labkit.course.i18n import LANGUAGES
from labkit.figures.desk import InspectionDesk
from labkit.inspection.verdicts import read_verdicts

DEFECTS = [("forbidden", "must never ship"), ("shape", "a shape is broken")]


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        self.now += 1.5
        return self.now


def desk(**options):
    pictures = {f"p{i}.png": np.full((8, 8, 3), 40 * i, dtype=np.uint8) for i in range(3)}
    return InspectionDesk(pictures, DEFECTS, **{"inspector": "Ito", "lang": "en", "clock": Clock()} | options)


def test_one_key_per_picture_with_its_time_and_a_way_back(tmp_path):
    one = desk()
    assert one.key(" ") and one.key("2") and one.current == "p2.png"
    assert not one.key("3") and not one.key("x") and one.current == "p2.png"  # no such defect, no such key
    assert one.key("b") and one.current == "p1.png" and one.key("1") and one.key("0")
    assert one.current is None and not one.judge()
    assert [(v["item"], v["defect"]) for v in one.verdicts] == [("p0.png", ""), ("p1.png", "forbidden"), ("p2.png", "")]
    assert [v["seconds"] for v in one.verdicts] == [1.5, 3.0, 3.0]  # going back, p2 was seen twice and p1 as well
    assert "1 defective" in one.status
    assert [v.defect for v in read_verdicts(one.save(tmp_path / "v.jsonl"))] == ["", "forbidden", ""]


def test_nothing_is_judged_without_a_name_and_no_unknown_defect():
    one = desk(inspector=" ")
    assert not one.key("0") and "name" in one.status
    with pytest.raises(ValueError, match="'ugly' is not on the list: use one of forbidden, shape"):
        desk().judge("ugly")
    with pytest.raises(ValueError, match="0 pictures and 2 defects"):
        InspectionDesk({}, DEFECTS)
    assert not desk().back()


@pytest.mark.parametrize("lang", LANGUAGES)
def test_widgets_do_what_the_methods_do(lang):
    pytest.importorskip("ipywidgets")
    one = desk(inspector="", lang=lang, notes={"p0.png": "red & long"})
    one.build()
    one.key_field.value = "0"
    assert not one.verdicts and one.key_field.value == ""
    one.name_field.value = "Mori"
    assert "red &amp; long" in one.note.value
    first = one.image.value
    one.key_field.value = " "
    assert one.verdicts[0]["inspector"] == "Mori" and one.key_field.value == "" and one.image.value != first
    one.buttons[2].click()
    assert one.verdicts[1]["defect"] == "shape"
    one.buttons[-1].click()
    assert len(one.verdicts) == 1 and one.image.value
    assert one.build() is one.widget


def test_the_sheet_shows_the_pictures_without_widgets(capsys):
    one = desk(interactive=False)
    assert "p1.png" in one.figure().alt or one.figure().alt
    one._ipython_display_()
    assert one.widget is None
