"""What people do to an inspection: interrupt it, edit its files, change the folder, share a name, look elsewhere."""

import copy
import csv
import json
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from inspection_lots import save
from PIL import Image

from labkit.inspection import InspectionError, Verdict, certify_threshold, read_lot, record_problems
from labkit.inspection.digest import digest_path
from labkit.inspection.job import JOB, read_job
from labkit.inspection.lot import draw_sample
from labkit.inspection.page import page_html
from labkit.inspection.prompts import read_prompts
from labkit.inspection.record import FIELDS, check_people, folder_problems, read_sign_off, seal_record
from labkit.inspection.report import page_problems, record_html
from labkit.inspection.sealed import open_certificate, same, seal_certificate
from labkit.inspection.serve import Sitting
from labkit.inspection.texts import texts
from labkit.inspection.verdicts import DEFECTS, make_defects, parse_verdicts, read_defects, same_person, write_verdicts

JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠]")


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        save(tmp_path / "lot" / f"p{i:02d}.png", i)
    return tmp_path / "lot"


@pytest.fixture
def signed(inspect, folder, tmp_path):
    """A record by two inspectors who disagree once: its path."""
    (folder / "broken.png").write_bytes(b"nothing")
    assert inspect("draw", folder, "--plan", "8/1", "--seed", 5, "--size", "24x16")[0] == 0
    job = read_job("inspection")
    sample = draw_sample([item.name for item in read_lot(folder).items], 8, "5")
    for who, defect in (("Ito", "shape"), ("Mori", "")):
        told = [Verdict(name, who, "" if k else defect, 1.25) for k, name in enumerate(sample)]
        write_verdicts(tmp_path / f"v-{who}.jsonl", told, draw=job.name)
    code, _, err = inspect("sign", folder, "v-Ito.jsonl", "v-Mori.jsonl", "--maker", "Abe", "--checker", "Sato")
    assert code == 0, err
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    return path


# ---- the record as a file -------------------------------------------------------------------------------------------


def test_what_is_slipped_into_a_record_where_no_field_was_is_named(signed):
    record = read_sign_off(signed)
    assert record_problems(record) == []
    assert record_problems(record | {"note": 1}) == ["note was added"]
    twin = copy.deepcopy(record)  # a key that spells the place of another one
    twin["content"] = {"decision.accepted": False, **twin["content"]}
    assert '"decision.accepted" was added' in record_problems(twin)
    split = copy.deepcopy(record)
    split["content"]["screening"]["passed"]["p00"] = {"png": split["content"]["screening"]["passed"].pop("p00.png")}
    assert {"screening.passed.p00.png was added", 'screening.passed."p00.png" was removed'} <= set(
        record_problems(split)
    )
    for where, told in ((("estimate", "rate"), "estimate.rate was changed"), (("previous",), "previous was changed")):
        odd = copy.deepcopy(record)
        inner = odd["content"]
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = float("nan")  # JSON programs write it, no hash holds it
        assert told in record_problems(odd)
    odd = copy.deepcopy(record)
    odd["hashes"]["maker"] = float("inf")
    assert record_problems(odd) == ["maker was changed", "the seal does not fit the hashes"]
    assert "content was added" in record_problems({"content": {}, "hashes": {}, "seal": ""})
    order = copy.deepcopy(record)
    order["content"] = dict(reversed(order["content"].items()))
    assert record_problems(order) == []  # the same record, written down otherwise
    order["content"]["verdicts"].reverse()
    assert "verdicts was changed" in record_problems(order)


def test_a_field_that_is_taken_out_or_put_in_is_named_even_when_the_record_is_sealed_anew(signed):
    content = read_sign_off(signed)["content"]
    assert set(FIELDS) == set(content)
    for name in FIELDS:
        assert f"{name} was removed" in record_problems(
            seal_record({key: value for key, value in content.items() if key != name})
        )
    assert record_problems(seal_record(content | {"approved": True})) == ["approved was added"]


def test_a_key_that_stands_twice_is_named_and_the_other_records_are_still_checked(inspect, signed, tmp_path):
    text = signed.read_text(encoding="utf-8")
    double = tmp_path / "double.json"
    double.write_text(text.replace('"maker": "Abe"', '"maker": "Mori",\n"maker": "Abe"'), encoding="utf-8")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    code, out, err = inspect("verify", double, deep, signed)
    assert code == 2 and "'maker' stands there twice" in err and f"{signed.name}: stands" in out
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["screening"]["counts"].update(unreadable=0), "screening.counts"),
        (lambda c: c["screening"].update(log=[]), "screening.faults"),
        (lambda c: c["screening"]["faults"].update(readable=3), "screening.faults"),
        (lambda c: c["lot"].update(pictures=20), "lot.pictures"),
        (lambda c: c["lot"].update(unreadable={}), "screening.counts"),
        (lambda c: c["decision"].update(reasons=["major: 3 > 1"]), "decision.reasons"),
        (lambda c: c["filters"].update(rules=[]), "filters.sha256"),
        (lambda c: c["inspection"].update(agreement=1.0), "inspection"),
        (lambda c: c["estimate"].update(high=0.02), "estimate"),
        (lambda c: c.update(stage={"process": "another", "stage": "normal"}), "stage.process"),
        (lambda c: c["decision"].update(accepted=1), "decision.accepted"),
    ],
)
def test_what_must_follow_is_checked_in_a_record_that_was_sealed_anew(signed, change, told):
    content = copy.deepcopy(read_sign_off(signed)["content"])
    change(content)
    assert any(line.startswith(f"{told} does not follow") for line in record_problems(seal_record(content)))


def test_numbers_that_differ_in_the_last_digit_by_another_scipy_are_the_same(signed):
    content = copy.deepcopy(read_sign_off(signed)["content"])
    content["estimate"]["high"] *= 1 + 1e-13
    content["inspection"]["agreement"] *= 1 + 1e-13
    assert record_problems(seal_record(content)) == []
    assert same({"a": [1, 2.0]}, {"a": (1, 2.0 + 1e-13)}) and not same({"a": 1}, {"a": 1, "b": 2})
    assert not same(True, 1) and not same([1], [1, 2]) and not same(1.0, 1.0 + 1e-6) and not same("1", 1)


def test_records_of_an_earlier_format_say_so_and_an_edited_format_is_named(signed):
    content = read_sign_off(signed)["content"]
    assert record_problems(seal_record(content | {"format": 1})) == [
        "a record of format 1, this labkit checks format 2"
    ]
    record = read_sign_off(signed)
    record["content"]["format"] = 1
    assert "format was changed" in record_problems(record)


def test_a_seal_is_compared_as_a_whole(inspect, signed):
    seal = read_sign_off(signed)["seal"]
    assert inspect("verify", signed, "--seal", f" {seal.upper()} ")[0] == 0
    code, _, err = inspect("verify", signed, "--seal", seal[:12])
    assert code == 2 and "a seal has 64 hexadecimal digits" in err
    code, out, _ = inspect("verify", signed, "--seal", "0" * 64)
    assert code == 1 and "expected 000000000000" in out


# ---- the page of a record -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_every_row_of_a_page_that_is_edited_is_named(inspect, signed, lang):
    page, t = signed.with_name(f"{signed.stem}.{lang}.html"), texts(lang)
    record, text = read_sign_off(signed), page.read_text(encoding="utf-8")
    assert page_problems(record, page) == []
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', text)
    assert len(rows) > 25
    for label, value in rows:
        whole = f'<th scope="row">{label}</th><td>{value}</td>'
        page.write_text(text.replace(whole, whole.replace(f"<td>{value}", "<td>77"), 1), encoding="utf-8")
        (problem,) = page_problems(record, page)
        assert (
            f'{page.name}: {label} says "77"' in problem.replace("&", "&amp;").replace("'", "&#x27;") or "77" in value
        )
    for before, after, told in (
        (t["accepted"], t["refused"], t["accepted"]),
        ("<h1>", "<p>OK, ship it</p><h1>", "OK, ship it"),
        ("<tr>", '<tr style="display:none">', "where it does not show"),
        ("</body>", "<script>0</script></body>", "0"),
        ('<html lang="', '<html lang="x', "is no page of a record"),
    ):
        page.write_text(text.replace(before, after), encoding="utf-8")
        code, out, _ = inspect("verify", signed)
        assert code == 1 and told in out and page.name in out, (before, out)
    page.write_text(text, encoding="utf-8")
    assert inspect("verify", signed)[0] == 0
    code, _, err = inspect("verify", page)
    assert code == 2 and "give the .json beside it" in err


def test_a_page_by_another_version_may_look_otherwise_but_not_say_otherwise(signed):
    content = copy.deepcopy(read_sign_off(signed)["content"])
    content["software"]["labkit"] = "0.0.1"
    record = seal_record(content)
    page = signed.with_name("other.html")
    page.write_text(record_html(record, "en").replace("max-width: 46rem", "max-width: 50rem"), encoding="utf-8")
    assert page_problems(record, page) == []
    page.write_text(page.read_text(encoding="utf-8").replace(">Abe<", ">Ito<"), encoding="utf-8")
    assert page_problems(record, page, lang="ja") == [
        "other.html: Made by が「Ito」となっていますが、記録では「Abe」です"
    ]


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_pictures_that_came_went_or_were_swapped_are_named_by_sign_and_verify(inspect, signed, folder):
    people = ("v-Ito.jsonl", "--maker", "Abe", "--checker", "Sato")
    first, second = (folder / "p03.png").read_bytes(), (folder / "p04.png").read_bytes()
    (folder / "p03.png").write_bytes(second), (folder / "p04.png").write_bytes(first)
    (folder / "p05.png").unlink(), (folder / "p06.png").write_bytes(b"cut")
    save(folder / "deep" / "new.png", 77)
    code, _, err = inspect("sign", folder, *people)
    told = "p05.png is missing, p03.png was changed, p04.png was changed, deep/new.png is new, "
    assert code == 2 and f"{told}p06.png can no longer be read" in err
    assert folder_problems(read_sign_off(signed), folder) == [
        "p03.png was changed after inspection",
        "p04.png was changed after inspection",
        "p05.png is missing",
        "p06.png was changed after inspection",
        "deep/new.png is not in the record: nobody inspected it",
    ]
    code, out, _ = inspect("verify", signed, "--folder", folder)
    assert code == 1 and out.count("\n") == 5
    code, _, err = inspect("verify", signed, "--folder", "nowhere")
    assert code == 2 and "nowhere is not a folder" in err


def test_a_name_in_another_unicode_form_is_the_same_name(inspect, folder, tmp_path):
    shutil.rmtree(folder)
    save(folder / "\u304c.png", 1), save(folder / "q.png", 2)
    assert inspect("draw", folder, "--plan", "all")[0] == 0
    told = [Verdict(name, "Ito") for name in ("\u304c.png", "q.png")]
    write_verdicts(tmp_path / "v.jsonl", told)
    assert inspect("sign", folder, "v.jsonl", "--maker", "Abe", "--checker", "Sato")[0] == 0
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    (folder / "\u304c.png").rename(folder / "\u304b\u3099.png")  # two signs, as some systems store it
    assert folder_problems(read_sign_off(path), folder) == []


def test_nothing_in_a_folder_is_left_out_in_silence(folder, monkeypatch):
    save(folder / "real.png", 50)
    (folder / "real.png").rename(folder / "download.jfif")
    (folder / "notes.txt").write_text("no picture")
    shutil.copy(folder / "p01.png", folder / "z.png")
    (folder / "away").mkdir()
    (folder / "link").symlink_to(folder / "away", target_is_directory=True)
    with open(os.fsencode(folder) + b"/\x93\xfa.png", "wb") as file:  # a name in Shift JIS
        file.write((folder / "p00.png").read_bytes())
    (folder / "locked").mkdir()
    scan = os.scandir

    def locked(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    lot = read_lot(folder)
    assert lot.unreadable == {
        "download.jfif": "holds a picture (PNG), its name ends otherwise: rename it",
        "link": "a link to a folder: put the pictures themselves here",
        "locked": "a folder that may not be read (Permission denied)",
        "\\x93\\xfa.png": "its name is no UTF-8: rename it",
    }
    assert lot.others == ("notes.txt",) and lot.copies == {"z.png": "p01.png"} and len(lot) == 21


def test_copies_and_other_files_are_told_and_copies_are_in_the_record(inspect, folder, tmp_path):
    shutil.copy(folder / "p01.png", folder / "z.png")
    (folder / "notes.txt").write_text("no picture")
    code, out, _ = inspect("draw", folder, "--plan", "all")
    assert code == 0 and "1 exact copies among the passed: z.png = p01.png; --duplicates 0 leaves them out" in out
    assert "1 other files, no pictures: notes.txt" in out and "n = 21" in out
    write_verdicts(tmp_path / "v.jsonl", [Verdict(item.name, "Ito") for item in read_lot(folder).items])
    assert inspect("sign", folder, "v.jsonl", "--maker", "Abe", "--checker", "Sato")[0] == 0
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    record = read_sign_off(path)
    assert record["content"]["lot"]["copies"] == {"z.png": "p01.png"}
    assert "まったく同じファイル" in record_html(record, "ja")
    code, out, _ = inspect("draw", folder, "--plan", "all", "--duplicates", 0, "--out", "other")
    assert code == 0 and "z.png: near-duplicate, like p01.png, off by 0.00" in out and "exact copies" not in out
    for wrong in (-1, "nan"):
        code, _, err = inspect("draw", folder, "--plan", "all", "--duplicates", wrong, "--out", "third")
        assert code == 2 and "a difference in levels, 0 to 255" in err


def test_a_page_inside_the_lot_does_not_make_the_lot_grow(inspect, folder, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8), "red").save(folder / "scan.tif")  # no browser shows it: a PNG is written beside the page
    monkeypatch.chdir(folder)
    assert inspect("draw", ".", "--plan", "all")[0] == 0
    assert list((folder / "inspection").rglob("*.png"))
    write_verdicts(tmp_path / "v.jsonl", [Verdict(item.name, "Ito") for item in read_lot(folder).items])
    code, _, err = inspect("sign", ".", tmp_path / "v.jsonl", "--maker", "Abe", "--checker", "Sato")
    assert code == 0, err


# ---- persons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Tanaka", "ＴＡＮＡＫＡ"),
        ("Tanaka", "tanaka "),
        ("田中 太郎", "田中　太郎"),
        ("タナカ", "ﾀﾅｶ"),
        ("Tanaka", "Tana\u200bka"),
        ("山田・太郎", "山田太郎"),
        ("Jean-Luc", "jean luc"),
        ("Straße", "STRASSE"),
        ("\u304c", "\u304b\u3099"),
        ("A. Sato", "a sato\u00a0"),
    ],
)
def test_one_person_in_two_spellings_is_one_person(one, other):
    with pytest.raises(InspectionError, match="are one person: someone else must sign"):
        check_people(one, other)


def test_different_people_stay_different_and_nobody_is_nobody():
    check_people("田中", "中田"), check_people("Sato 1", "Sato 2"), check_people("ハハ", "パパ")
    for name in ("", "  ", "-", "・", "\u200b"):
        assert same_person(name) == ""
        with pytest.raises(InspectionError, match="must be named"):
            check_people(name, "Sato")


def test_maker_and_checker_are_checked_before_anybody_looks(inspect, folder):
    people = ("--maker", "Abe", "--checker", "abe")
    code, out, err = inspect(folder, "--plan", "8/1", *people, "--no-browser", "--wait", 0.01)
    assert code == 2 and "one person" in err and out == ""
    assert not os.path.exists("inspection")


# ---- interrupted, and drawn again -----------------------------------------------------------------------------------


def test_a_draw_waits_for_its_signature_and_goes_on_with_the_same_sample(inspect, folder, tmp_path):
    code, out, _ = inspect("draw", folder, "--plan", "8/1")
    seed = re.search(r"seed (\w+)", out)[1]
    code, out, _ = inspect("draw", folder, "--plan", "8/1", "--lang", "ja")
    assert code == 0 and f"seed {seed} (drawn before)" in out
    for more in (("--plan", "8/1", "--seed", 9), ("--plan", "9/1"), ("--plan", "8/1", "--size", "24x16")):
        code, _, err = inspect("draw", folder, *more)
        assert code == 2 and f"waits for its signature (seed {seed}, n = 8)" in err
    sample = draw_sample([item.name for item in read_lot(folder).items], 8, seed)
    write_verdicts(tmp_path / "v.jsonl", [Verdict(name, "Ito") for name in sample], draw=read_job("inspection").name)
    for known in ("", "record-"):
        code, out, _ = inspect("sign", folder, "v.jsonl", "--maker", "Abe", "--checker", "Sato")
        assert code == 0 and ("this lot was decided before" in out) == bool(known) and known in out
    code, out, _ = inspect("draw", folder, "--plan", "9/1", "--seed", 9)  # signed: the way is free
    assert code == 0 and "seed 9\n" in out


def test_verdicts_of_another_draw_do_not_count_although_the_names_are_the_same(inspect, folder, tmp_path):
    assert inspect("draw", folder, "--plan", "all")[0] == 0
    names = [item.name for item in read_lot(folder).items]
    write_verdicts(tmp_path / "old.jsonl", [Verdict(name, "Ito") for name in names], draw="0123456789abcdef")
    code, _, err = inspect("sign", folder, "old.jsonl", "--maker", "Abe", "--checker", "Sato")
    assert code == 2 and "old.jsonl, line 1 belongs to another draw" in err
    line = '{"item": "a", "inspector": "Ito", "draw": "x"}'
    assert len(parse_verdicts(line, "page")) == len(parse_verdicts(line, "page", draw="x")) == 1


def test_a_job_edited_by_hand_is_refused(inspect, folder, tmp_path):
    assert inspect("draw", folder, "--plan", "8/0", "--seed", 5)[0] == 0
    path = tmp_path / "inspection" / JOB
    text = path.read_text(encoding="utf-8")
    for before, after in (
        ('"c": 0', '"c": 7'),
        ('"n": 8', '"n": 1'),
        ('"seed": "5"', '"seed": "6"'),
        ("{", '{"x": 1,'),
    ):
        path.write_text(text.replace(before, after, 1), encoding="utf-8")
        for words in (("sign", folder, "v.jsonl", "--maker", "A", "--checker", "B"), ("draw", folder, "--plan", "8/0")):
            code, _, err = inspect(*words)
            assert code == 2 and "was edited by hand" in err and "draw into another --out" in err
    path.write_text("{}", encoding="utf-8")
    assert "it has no seal" in inspect("sign", folder, "v.jsonl", "--maker", "A", "--checker", "B")[2]


def hand_in(sitting, who, names, draw):
    lines = [json.dumps({"item": name, "inspector": who, "draw": draw}) for name in names]
    return sitting.hand_in("\n".join(lines) + "\n")


def test_what_was_handed_in_before_an_interruption_counts_and_no_file_is_overwritten(folder, tmp_path):
    lot = read_lot(folder)
    names = [item.name for item in lot.items[:3]]
    told = {"lang": "en", "inspectors": 2, "barred": ["Abe"], "keep": tmp_path / "out"}
    with Sitting(lot, names, DEFECTS, draw="a" * 16, **told) as sitting:
        assert hand_in(sitting, "Ito", names, "a" * 16) == "1 / 2"
        with pytest.raises(InspectionError, match="belongs to another draw"):
            hand_in(sitting, "Mori", names, "b" * 16)
    with Sitting(lot, names, DEFECTS, draw="b" * 16, **told) as other:  # the next lot, in the same folder
        assert hand_in(other, "Sato", names, "b" * 16) == "1 / 2"
    with Sitting(lot, names, DEFECTS, draw="a" * 16, **told) as again:
        assert set(again.by_person) == {"ito"}
        with pytest.raises(InspectionError, match="handed in already"):
            hand_in(again, "ITO", names, "a" * 16)
        assert hand_in(again, "Mori", names, "a" * 16) == "2 / 2"
        assert {verdict.inspector for verdict in again.wait(5)} == {"Ito", "Mori"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("verdicts-aaaaaaaa-1.jsonl", "verdicts-aaaaaaaa-2.jsonl", "verdicts-bbbbbbbb-1.jsonl")
    ]


def test_a_full_disk_loses_no_verdict_and_a_swapped_picture_is_not_shown(folder, tmp_path, monkeypatch):
    from labkit.inspection import serve

    lot = read_lot(folder)
    names = [item.name for item in lot.items[:3]]
    with Sitting(lot, names, DEFECTS, lang="en", keep=tmp_path / "out", draw="c" * 16) as sitting:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(serve, "write_verdicts", full)
            with pytest.raises(OSError, match="No space"):
                hand_in(sitting, "Ito", names, "c" * 16)
        assert not sitting.by_person
        assert hand_in(sitting, "Ito", names, "c" * 16) == "1 / 1"
        assert sitting.picture(1).startswith(b"\x89PNG")
        save(folder / names[1], 99)
        with pytest.raises(InspectionError, match="p01.png was changed after the draw"):
            sitting.picture(1)


def test_ctrl_c_while_people_look_says_how_to_go_on_and_pictures_swapped_meanwhile_are_found(
    inspect, folder, monkeypatch
):
    from labkit.inspection import command

    class Interrupted(Sitting):
        def wait(self, seconds=None):
            hand_in(self, "Ito", self.sample, self.draw)
            raise KeyboardInterrupt

    words = (folder, "--plan", "4/0", "--maker", "Abe", "--checker", "Sato", "--no-browser", "--wait", 0.05)
    monkeypatch.setattr(command, "Sitting", Interrupted)
    code, _, err = inspect(*words, "--inspectors", 2)
    assert code == 130 and "1 of 2 inspectors handed in; call the same again to go on" in err
    monkeypatch.setattr(command, "Sitting", Sitting)
    code, out, err = inspect(*words, "--inspectors", 2)
    assert code == 2 and "1 of 2 inspectors have handed in before" in out and "call the same again" in err
    save(folder / "p02.png", 500)
    code, _, err = inspect(*words)
    assert code == 2 and "waits for its signature" in err  # another lot now: the draw of the first one is not lost
    save(folder / "p02.png", 2)
    code, out, err = inspect(*words)  # one is enough now
    assert code == 0 and "accepted" in out and "open http" not in out, err


# ---- what is said on the command line -------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_named_before_the_options_are(inspect, folder, capsys):
    for words in ((folder / "gone",), ("darw", folder), (folder / "gone", "--plan", "8/1")):
        with pytest.raises(SystemExit) as stop:
            inspect(*words)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("\n") == 1
        assert f"{words[0]} is not a folder, and none of the steps plan, draw, sign, verify, certify" in err


def test_the_locale_chooses_the_language_of_the_page_and_lang_overrules_it(inspect, folder, tmp_path, monkeypatch):
    for number, (locale, more, lang) in enumerate(
        [("ja_JP.UTF-8", (), "ja"), ("en_GB", (), "en"), ("ja_JP.UTF-8", ("--lang", "en"), "en")]
    ):
        monkeypatch.setenv("LC_ALL", locale)
        assert inspect("draw", folder, "--plan", "8/1", "--out", f"o{number}", *more)[0] == 0
        page = (tmp_path / f"o{number}" / "inspect.html").read_text(encoding="utf-8")
        assert page.startswith(f'<!doctype html><html lang="{lang}">')


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plan", "8/1", "--good", 0.01), "good = 0.01 has no part in this plan"),
        (("--bad", 0.02, "--c", 2), "c = 2 has no part"),
        (("--n", 8, "--severity", "tightened"), "severity = tightened has no part"),
        (("--aql", 1.0, "--lot", 500, "--confidence", 0.9), "confidence = 0.9 has no part"),
        (("--good", 0.01, "--bad", 0.05, "--confidence", 0.9), "confidence = 0.9 has no part"),
        (("--plan", "bad=0.02,bad=0.5"), "is no plan"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(inspect, words, message):
    code, out, err = inspect("plan", *words)
    assert (code, out) == (2, "") and message in err


def test_options_of_a_filter_that_is_not_there_are_refused(inspect, folder, tmp_path):
    for more in (("--abstain", 1), ("--band", "v.jsonl")):
        code, _, err = inspect("draw", folder, "--plan", "8/1", *more)
        assert code == 2 and "belong to a preference filter" in err
    code, _, err = inspect(
        "draw", folder, "--plan", "8/1", "--certificate", "c.json", "--scores", "s.jsonl"
    )  # a threshold without a model would hold for every model
    assert code == 2 and "say with --model what made these pictures" in err


def test_your_own_defects_and_prompts_are_on_the_page_and_in_the_record(inspect, folder, tmp_path):
    (tmp_path / "defects.yaml").write_text(
        "- {code: logo, severity: critical, en: another firm's logo, ja: 他社のロゴ}\n"
        "- {code: crop, severity: minor, ja: 切れている}\n",
        encoding="utf-8",
    )
    with open(tmp_path / "prompts.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("file_name", "prompt"), *((f"p{i:02d}.png", f"猫, {i}") for i in range(19))])
    (tmp_path / "model.bin").write_bytes(b"weights"), (tmp_path / "lora.bin").write_bytes(b"adapter")
    more = ("--defects", "defects.yaml", "--prompts", "prompts.csv", "--model", "model.bin", "--adapter", "lora.bin")
    code, out, err = inspect("draw", folder, "--plan", "8/0", "--seed", 1, "--lang", "ja", *more)
    assert code == 0 and "     1 pictures without a prompt" in out, err
    page = (tmp_path / "inspection" / "inspect.html").read_text(encoding="utf-8")
    assert "猫, " in page and "他社のロゴ" in page and "切れている" in page
    sample = draw_sample([item.name for item in read_lot(folder).items], 8, "1")
    write_verdicts(tmp_path / "v.jsonl", [Verdict(name, "Ito", "" if k else "logo") for k, name in enumerate(sample)])
    code, out, _ = inspect("sign", folder, "v.jsonl", "--maker", "Abe", "--checker", "Sato")
    assert code == 1 and "refused: critical: 1 > 0" in out
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    content = read_sign_off(path)["content"]
    assert [defect["code"] for defect in content["defects"]] == ["logo", "crop"]
    for part, file in (("model", "model.bin"), ("adapter", "lora.bin"), ("prompts", "prompts.csv")):
        assert content["process"][part] == digest_path(tmp_path / file)
    without = content["process"]["sha256"]
    assert inspect("draw", folder, "--plan", "8/0", "--model", "model.bin", "--out", "o")[0] == 0
    assert read_job("o").process != without  # the adapter makes another process
    assert inspect("verify", path)[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {code: a, severity: bad, en: x}", "severity 'bad' must be one of critical, major, minor"),
        ("- {code: a, severity: minor}", "defect 1 is no defect"),
        ("- 3", "defect 1 is no defect"),
        ("- {code: a, severity: minor, en: x}\n- {code: a, severity: major, en: y}", "a code of its own"),
        ("{}", "a list of defects is a list"),
        ("[", "is no list of defects"),
    ],
)
def test_a_list_of_defects_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(InspectionError, match=message) as error:
        read_defects(tmp_path / "d.yaml")
    assert "d.yaml" in str(error.value)


def test_one_text_of_a_defect_serves_both_languages():
    (one,) = make_defects([{"code": "a", "severity": "minor", "ja": "傷"}])
    assert (one.en, one.ja) == ("傷", "傷")


def test_tables_of_prompts_are_read_and_their_faults_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"file_name": "a/b.png", "caption": "x"}\n\n{"file_name": "c.png", "prompt": "y", "text": "z"}\n')
    assert read_prompts(path) == {"a/b.png": "x", "c.png": "y"}
    for text, message in (
        ('{"file_name": "a.png"}', r"row 1: expected file_name and prompt \(or caption\)"),
        ("3", "row 1 is no JSON object"),
        ("", "has no rows"),
        ('{"file_name": "a", "prompt": "x"}\n{"file_name": "a", "prompt": "y"}', "row 2: 'a' has a row already"),
        ("{", "row 1 is no JSON: mend"),
    ):
        path.write_text(text)
        with pytest.raises(InspectionError, match=message):
            read_prompts(path)
    path.write_bytes("猫".encode("cp932"))
    with pytest.raises(InspectionError, match="UTF-8"):
        read_prompts(path)


def test_a_prompt_for_a_picture_that_is_not_there_is_named(inspect, folder, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"file_name": "q.png", "prompt": "x"}')
    code, _, err = inspect("draw", folder, "--plan", "8/0", "--prompts", "p.jsonl")
    assert code == 2 and "1 prompts belong to no picture of lot: first 'q.png'" in err


def test_verdicts_saved_by_an_editor_are_read_and_other_encodings_named(inspect, folder, tmp_path):
    assert inspect("draw", folder, "--plan", "2/0", "--seed", 1)[0] == 0
    sample = draw_sample([item.name for item in read_lot(folder).items], 2, "1")
    lines = "".join(json.dumps({"item": name, "inspector": "伊藤"}, ensure_ascii=False) + "\r\n" for name in sample)
    (tmp_path / "v.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert inspect("sign", folder, "v*.jsonl", "--maker", "Abe", "--checker", "Sato")[0] == 0  # no shell here
    (tmp_path / "v.jsonl").write_bytes(lines.encode("utf-16"))
    code, _, err = inspect("sign", folder, "v.jsonl", "--maker", "Abe", "--checker", "Sato")
    assert code == 2 and "v.jsonl is no text in UTF-8" in err


# ---- certificates ---------------------------------------------------------------------------------------------------


def test_a_certificate_edited_by_hand_or_sealed_anew_does_not_certify(tmp_path):
    scores = [0.9] * 100 + [0.5] * 100
    made = certify_threshold(
        scores,
        [False] * 150 + [True] * 50,
        thresholds=[0.8, 0.4],
        alpha=0.05,
        process="p",
        judge="j",
        calibration=[f"{i:064x}" for i in range(200)],
    )
    path = seal_certificate(tmp_path / "c.json", made)
    assert open_certificate(path) == made
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"threshold": 0.4}))
    with pytest.raises(InspectionError, match="edited by hand"):
        open_certificate(path)
    from labkit.inspection.sealed import write_sealed

    del told["seal"]
    lucky = [told["tests"][0], told["tests"][1] | {"certified": True}]
    for change, name in (
        ({"threshold": 0.4}, "threshold"),
        ({"threshold": 0.4, "tests": lucky}, r"tests\[1\]"),
        ({"alpha": 0.01}, r"tests\[0\]"),
        ({"tests": told["tests"][::-1]}, r"tests\[1\]"),
        ({"passes": 1.0}, "passes"),
        ({"tests": []}, "threshold"),
    ):
        write_sealed(path, told | change)
        with pytest.raises(InspectionError, match=f"{name} does not follow from the tests"):
            open_certificate(path)


def test_the_page_writes_the_draw_into_every_verdict_and_knows_the_maker():
    page = page_html("lot", ["a.png"], ["a.png"], DEFECTS, lang="en", barred=["山田・太郎"], draw="d1")
    job = json.loads(re.search(r"const job = (.*), told = ", page)[1])
    assert job["draw"] == "d1" and job["barred"] == ["山田太郎"]


def test_two_hands_in_at_one_moment_are_two_files(folder, tmp_path):
    lot = read_lot(folder)
    names = [item.name for item in lot.items[:2]]
    with Sitting(lot, names, DEFECTS, lang="en", inspectors=6, keep=tmp_path / "out", draw="d" * 16) as sitting:
        people = [threading.Thread(target=hand_in, args=(sitting, f"P{k}", names, "d" * 16)) for k in range(6)]
        for person in people:
            person.start()
        assert len(sitting.wait(20)) == 12
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 6


def test_every_problem_is_said_in_japanese(signed):
    record = read_sign_off(signed)
    for name in FIELDS:
        lacking = seal_record({key: value for key, value in record["content"].items() if key != name})
        assert all(JAPANESE.search(line) for line in record_problems(lacking, lang="ja"))


# ---- the guide ------------------------------------------------------------------------------------------------------


def guide(lang):
    path = Path(__file__).parent.parent / "docs" / ("inspect.md" if lang == "en" else "inspect.ja.md")
    text = path.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    return text, code


def test_the_guide_says_the_same_in_both_languages_and_names_options_that_exist(capsys):
    from labkit import cli

    english, japanese = (guide(lang)[0] for lang in ("en", "ja"))
    assert set(re.findall(r"--[a-z]+", english)) == set(re.findall(r"--[a-z]+", japanese))
    options = set()
    for step in ("plan", "run", "draw", "sign", "verify", "certify"):
        with pytest.raises(SystemExit):
            cli.main(["inspect", step, "--help"])
        options |= set(re.findall(r"--[a-z]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z]+", english)) <= options


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_way_from_scores_to_a_record_is_as_the_guide_says(inspect, tmp_path, lang):
    for i in range(240):  # smooth pictures are good, noisy ones are not
        noise = np.random.default_rng(i).integers(0, 40 if i % 4 else 200, (4, 4, 3))
        (tmp_path / "CALIBRATION").mkdir(exist_ok=True), (tmp_path / "PICTURES").mkdir(exist_ok=True)
        name = f"{'CALIBRATION' if i < 200 else 'PICTURES'}/{i:03d}.png"
        Image.fromarray((255 - noise).astype(np.uint8)).save(tmp_path / name)
    exec(guide(lang)[1].replace("float(abs", "-float(abs"), {})  # here the smooth ones are good
    (tmp_path / "MODEL").write_bytes(b"weights")
    assert inspect("draw", "CALIBRATION", "--plan", "all", "--out", "calibration")[0] == 0
    told = [Verdict(f"{i:03d}.png", "Ito", "" if i % 4 else "shape") for i in range(200)]
    write_verdicts(tmp_path / "verdicts-Ito.jsonl", told, draw=read_job("calibration").name)
    words = ("certify", "CALIBRATION", "verdicts-*.jsonl", "--scores", "scores.jsonl", "--alpha", 0.02)
    with pytest.raises(SystemExit):  # a certificate without a model would hold for every model
        inspect(*words)
    code, out, err = inspect(*words[:-1], 0.01, "--model", "MODEL")
    assert code == 2 and "299 must pass: start looser or label more" in err
    code, out, err = inspect(*words, "--model", "MODEL")  # 150 good ones, 149 are needed
    assert code == 0 and "at most 2.0% defective, 95% confidence\n75.0% of the calibration pictures pass" in out, err
    filtered = ("--certificate", "certificate.json", "--scores", "scores.jsonl", "--model", "MODEL")
    code, out, err = inspect("draw", "PICTURES", "--plan", "bad=0.02", *filtered)
    assert code == 0 and re.search(r" 1\d refused by the score", out), out + err
    (tmp_path / "MODEL").write_bytes(b"weightS")
    code, _, err = inspect("draw", "PICTURES", "--plan", "bad=0.02", *filtered, "--out", "o")
    assert code == 2 and "calibrate again" in err
    (tmp_path / "MODEL").write_bytes(b"weights")
    code, _, err = inspect("draw", "CALIBRATION", "--plan", "bad=0.02", *filtered, "--out", "o")
    assert code == 2 and "pictures of the lot were used for calibration" in err
