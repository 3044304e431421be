"""`labkit inspect` off the straight way: one step with a page that hands in, bands, odd files, second looks, edits."""

import json
import re
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from inspection_lots import save
from PIL import Image

from labkit.inspection import (
    Gate,
    InspectionError,
    Plan,
    Verdict,
    aql_plan,
    certify_threshold,
    color_rule,
    draw_sample,
    forbidden_color_rule,
    forbidden_words_rule,
    gather_verdicts,
    near_duplicate_rule,
    provenance_rule,
    read_lot,
    record_html,
    record_problems,
    said,
    size_rule,
    tally,
)
from labkit.inspection.calibration import certify_lot, read_certificate, write_certificate
from labkit.inspection.job import KeptScores
from labkit.inspection.planning import parse_plan
from labkit.inspection.record import read_sign_off, seal_record
from labkit.inspection.rules import apply_rules
from labkit.inspection.sealed import open_certificate
from labkit.inspection.serve import Sitting
from labkit.inspection.threshold import PreferenceFilter
from labkit.inspection.verdicts import DEFECTS, band_decisions, parse_verdicts, write_verdicts

JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠]")


@pytest.fixture
def folder(tmp_path):
    for i in range(30):
        save(tmp_path / "lot" / f"p{i:02d}.png", i)
    return tmp_path / "lot"


# ---- odd files ------------------------------------------------------------------------------------------------------


def test_files_that_are_not_one_picture_are_named_with_the_reason(folder):
    red, blue = (Image.new("RGB", (24, 16), colour) for colour in ("red", "blue"))
    red.save(folder / "anim.gif", save_all=True, append_images=[blue])
    red.save(folder / "pages.tif", save_all=True, append_images=[blue])
    Image.new("1", (12_000, 9_000)).save(folder / "huge.png")
    (folder / "phone.heic").write_bytes(b"x")
    (folder / "cut.png").write_bytes((folder / "p00.png").read_bytes()[:300])
    (folder / "empty.jpg").write_bytes(b"")
    lot = read_lot(folder)
    assert set(lot.unreadable) == {"anim.gif", "pages.tif", "huge.png", "phone.heic", "cut.png", "empty.jpg"}
    assert "2 frames" in lot.unreadable["anim.gif"] and "12000 x 9000 pixels" in lot.unreadable["huge.png"]
    assert len(lot) == 30
    screening = Gate("p", Plan(3, 0)).screen(lot)
    assert screening.counts()["unreadable"] == 6 and screening.counts()["pictures"] == 36
    assert all(JAPANESE.search(said(why, "ja")) for why in lot.unreadable.values())


def test_pictures_of_every_mode_are_read_as_a_viewer_shows_them(tmp_path):
    Image.new("CMYK", (4, 2), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((2, 4), 257 * 200, dtype=np.uint16)).save(tmp_path / "deep.png")
    turned = Image.new("RGB", (4, 2), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera held upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    pixels = {item.name: item.open() for item in read_lot(tmp_path).items}
    assert pixels["cmyk.jpg"].shape == (2, 4, 3)
    assert pixels["cmyk.jpg"][0, 0, 1] > pixels["cmyk.jpg"][0, 0, 0] + 100  # cyan ink: no red
    assert (pixels["deep.png"] == 200).all()
    assert pixels["turned.jpg"].shape == (4, 2, 3)


# ---- several people, second looks -----------------------------------------------------------------------------------


def test_two_people_with_one_name_are_refused_and_one_person_twice_counts_last(tmp_path):
    first = [Verdict("a", "Ito", "shape", 1.0), Verdict("b", "Ito", "", 1.0)]
    again = [Verdict("a", "Ito", "", 2.0), Verdict("b", "Ito", "", 2.0)]
    files = [write_verdicts(tmp_path / "v1.jsonl", first), write_verdicts(tmp_path / "v2.jsonl", again)]
    with pytest.raises(InspectionError, match="'Ito' stands in v1.jsonl and v2.jsonl: two people need two names"):
        gather_verdicts(files)
    gathered = gather_verdicts(files, repeats="last")
    with pytest.raises(InspectionError, match="judged 'a' twice"):
        tally("ab", gathered)
    counted = tally("ab", gathered, repeats="last")
    assert (counted.major, counted.repeated, counted.self_agreement) == (0, 2, 0.5)
    assert counted.by_inspector == {"Ito": (2, 0)} and counted.seconds == 6 and counted.defects == {}
    write_verdicts(tmp_path / "v3.jsonl", [Verdict("a", "ＩＴＯ")])
    with pytest.raises(InspectionError, match="two people need two names"):
        gather_verdicts([files[0], tmp_path / "v3.jsonl"])
    with pytest.raises(InspectionError, match="'Ito' and 'ＩＴＯ' read as one name"):
        tally("ab", [*first, Verdict("a", "ＩＴＯ")])
    with pytest.raises(ValueError, match="repeats = 'first' must be one of refuse, last"):
        tally("ab", first, repeats="first")


def test_how_strict_each_inspector_was_is_counted():
    told = [*[Verdict(name, "Ito", "shape") for name in "abc"], *[Verdict(name, "Mori") for name in "abc"]]
    counted = tally("abc", told)
    assert counted.by_inspector == {"Ito": (3, 3), "Mori": (3, 0)} and len(counted.disagreements) == 3
    assert counted.agreement < 0


def test_verdicts_with_impossible_times_are_refused():
    for seconds in ("NaN", "-1", "Infinity"):
        with pytest.raises(InspectionError, match="page, line 1 is no verdict"):
            parse_verdicts(f'{{"item": "a", "inspector": "Ito", "seconds": {seconds}}}', "page")


def test_people_decide_on_the_band_by_major_defects_and_leave_the_rest_undecided(folder):
    told = [Verdict("a", "Ito", "color"), Verdict("b", "Ito", "shape"), Verdict("b", "Mori")]
    assert band_decisions("abc", told) == {"a": True, "b": False}
    assert band_decisions("abc", [*told, Verdict("b", "Abe")], policy="majority") == {"a": True, "b": True}
    with pytest.raises(InspectionError, match="which was not drawn"):
        band_decisions("a", [Verdict("z", "Ito")])
    lot, judge = read_lot(folder), brightness(read_lot(folder))
    keep = PreferenceFilter(certificate_at(np.median(list(judge.scores.values()))), abstain=2.0)
    gate = Gate("p", Plan(3, 0), preference=keep)
    first = gate.screen(lot, judge)
    assert len(first.abstained) >= 2
    yes, no, *_ = first.abstained
    screening = gate.screen_band(lot, judge, [Verdict(yes, "Ito"), Verdict(no, "Ito", "shape")])
    assert yes in screening.passed and no not in screening.passed and screening.decided == {yes: True, no: False}


# ---- certificates and bands from files ------------------------------------------------------------------------------


def brightness(lot):
    return KeptScores("brightness", {item.sha256: float(item.open().mean()) for item in lot.items})


def certificate_at(tau, process="p"):
    scores = [tau] * 200 + [tau - 50] * 50
    bad = [False] * 200 + [True] * 50
    return certify_threshold(scores, bad, thresholds=[tau], alpha=0.05, process=process, judge="brightness")


def test_a_certificate_survives_its_file_and_needs_a_verdict_on_every_picture(tmp_path):
    for i in range(120):
        Image.new("RGB", (4, 4), (2 * i, 2 * i, 2 * i)).save(tmp_path / f"{i:03d}.png")
    lot = read_lot(tmp_path)
    verdicts = [Verdict(item.name, "Ito", "shape" if k < 30 else "color") for k, item in enumerate(lot.items)]
    made = certify_lot(lot, brightness(lot), verdicts, alpha=0.05, process="p")
    assert 50 < made.threshold < 70  # the 30 darkest are defective; minor defects do not count
    assert read_certificate(write_certificate(tmp_path / "c.json", made)) == made
    with pytest.raises(InspectionError, match="1 of 120 calibration pictures have no verdict: '119.png'"):
        certify_lot(lot, brightness(lot), verdicts[:-1], alpha=0.05)
    (tmp_path / "c.json").write_text('{"threshold": 3}')
    with pytest.raises(InspectionError, match="this is no certificate"):
        read_certificate(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(InspectionError, match="expected a JSON object"):
        read_certificate(tmp_path / "c.json")


def write_scores(path, *lots):
    lines = [
        {"judge": "brightness", "sha256": s, "score": v} for lot in lots for s, v in brightness(lot).scores.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_command_certifies_filters_asks_people_about_the_band_and_signs(inspect, folder, tmp_path):
    for i in range(120):
        Image.new("RGB", (4, 4), (2 * i, 2 * i, 2 * i)).save(tmp_path / f"calibration-{i:03d}.png")
        (tmp_path / "cal").mkdir(exist_ok=True)
        (tmp_path / f"calibration-{i:03d}.png").rename(tmp_path / "cal" / f"{i:03d}.png")
    for i in range(30):
        Image.new("RGB", (24, 16), (4 * i, 4 * i, 4 * i)).save(folder / f"p{i:02d}.png")
    (tmp_path / "model.bin").write_bytes(b"weights")
    calibration, lot = read_lot(tmp_path / "cal"), read_lot(folder)
    write_scores(tmp_path / "s.jsonl", calibration, lot)
    write_verdicts(
        tmp_path / "cal.jsonl",
        [Verdict(item.name, "Ito", "shape" if k < 30 else "") for k, item in enumerate(calibration.items)],
    )
    code, out, err = inspect(
        *("certify", "cal", "cal.jsonl", "--scores", "s.jsonl", "--alpha", 0.05, "--model", "model.bin")
    )
    assert code == 0 and "at most 5.0% defective" in out, err
    again = inspect("certify", "cal", "cal.jsonl", "--scores", "s.jsonl", "--alpha", 0.05, "--model", "cal.jsonl")
    assert again[0] == 2 and "a certificate is not replaced: give another --out" in again[2]
    tau = open_certificate("certificate.json").threshold
    common = (folder, "--plan", "5/0", "--certificate", "certificate.json", "--scores", "s.jsonl", "--abstain", 9)
    (tmp_path / "tuned.bin").write_bytes(b"weightS")
    code, _, err = inspect("draw", *common, "--model", "tuned.bin")
    assert code == 2 and "calibrate again" in err
    code, _, err = inspect("draw", *common)
    assert code == 2 and "say with --model what made these pictures" in err
    code, out, _ = inspect("draw", *common, "--model", "model.bin", "--lang", "en")
    assert code == 1 and "pictures lie in the band" in out and not (tmp_path / "inspection" / "job.json").exists()
    band = [item.name for item in lot.items if tau - 9 <= item.open().mean() < tau]
    assert len(band) == 2 and (tmp_path / "inspection" / "band.html").exists()
    write_verdicts(tmp_path / "band.jsonl", [Verdict(band[0], "Kato"), Verdict(band[1], "Kato", "shape")])
    code, out, _ = inspect("draw", *common, "--model", "model.bin", "--band", "band.jsonl", "--seed", 1)
    assert code == 0 and "     1 passed by people" in out
    passed = [item.name for item in lot.items if item.open().mean() >= tau] + [band[0]]
    sample = draw_sample(passed, 5, 1)
    write_verdicts(tmp_path / "v.jsonl", [Verdict(name, "Ito") for name in sample])
    code, _, err = inspect("sign", folder, "v.jsonl", "--maker", "kato", "--checker", "Sato")
    assert code == 2 and "made the pictures and inspected them" in err  # who decided on the band has inspected
    code, _, err = inspect("sign", folder, "v.jsonl", "--maker", "Abe", "--checker", "Sato")
    assert code == 0, err
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    record = read_sign_off(path)
    screening = record["content"]["screening"]
    assert [told["inspector"] for told in screening["band"]] == ["Kato", "Kato"]
    for change, told in (
        (lambda c: c["screening"]["band"][0].update(defect="shape"), "screening.left_to_people does not follow"),
        (lambda c: c["screening"]["left_to_people"][band[1]].update(passes=True), "screening.left_to_people does not"),
        (lambda c: c["filters"]["threshold"].update(threshold=9.0), "filters.threshold does not follow"),
        (lambda c: c["screening"]["band"][0].update(inspector="ABE"), "the maker is one of the inspectors"),
    ):
        content = json.loads(json.dumps(record["content"]))
        change(content)
        assert any(line.startswith(told) for line in record_problems(seal_record(content))), told
    assert screening["left_to_people"][band[1]] == {"score": pytest.approx(lot[band[1]].open().mean()), "passes": False}
    assert set(screening["refused"]) == {item.name for item in lot.items if item.open().mean() < tau - 9}
    assert record["content"]["filters"]["threshold"]["abstain"] == 9 and record_problems(record) == []
    for lang in ("ja", "en"):
        assert "9" in record_html(record, lang)
    code, _, err = inspect("draw", folder, "--plan", "5/0", "--certificate", "certificate.json")
    assert code == 2 and "needs both" in err


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_is_said_in_one_word():
    assert parse_plan("80/2") == {"n": 80, "c": 2} and parse_plan("all") == {"everything": True}
    assert parse_plan("good=0.01, bad=0.05") == {"good": 0.01, "bad": 0.05} and parse_plan("aql=1") == {"aql": 1.0}
    for text in ("", "80", "80/x", "worst=3", "bad=", "bad=0.1=2"):
        with pytest.raises(InspectionError, match="is no plan: write bad=0.02"):
            parse_plan(text)


@pytest.mark.parametrize(
    ("lot", "plan", "expected"),
    [
        (500, "bad=0.02", "n = 119, c = 0"),
        (30, "bad=0.02", "n = 29, c = 0"),  # one bad picture of 30 is more than 2 %: 29 looks are 95 % sure
        (1, "bad=0.02", "n = 1, c = 0   every picture"),
        (2, "bad=0.6", "n = 2, c = 0   every picture"),
        (10, "good=0.01,bad=0.05", "n = 9, c = 0"),
        (3, "good=0.1,bad=0.2", "n = 3, c = 0   two points"),
        (1, "aql=1.0", "n = 1, c = 0   every picture"),
        (7, "aql=1.0", "n = 7, c = 0   AQL 1 %"),
        (12, "all", "n = 12, c = 0   every picture"),
    ],
)
def test_small_lots_have_plans_that_do_not_ask_for_more_than_there_is(inspect, lot, plan, expected):
    code, out, err = inspect("plan", "--lot", lot, "--plan", plan)
    assert code == 0 and out.startswith(expected), out + err


def test_a_plan_says_what_it_lets_through_in_pictures_of_this_lot(inspect):
    out = inspect("plan", "--lot", 60, "--plan", "bad=0.02")[1]  # n = 47: one bad picture hides among the other 13
    assert "ten: 1 of 60 pictures defective (1.7%)" in out and "    1 defective (1.7%): accepted  21.7%" in out
    assert "    3 defective (5.0%): accepted   0.8%" in out and out.count("accepted") == 3
    assert "ten: 0 of 60" in inspect("plan", "--lot", 60, "--plan", "all")[1]
    assert "ten: 4.8% of defectives" in inspect("plan", "--plan", "47/0")[1]  # 1 - 0.1 ** (1 / 47), lots without end


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--lot", 60, "--plan", "bad=2"), "bad = 2: a rate is a share between 0 and 1, 2 % is 0.02"),
        (("--good", 1, "--bad", 0.1), "good = 1: a rate"),
        (("--lot", 60, "--plan", "100/1"), "n = 100 must be from 1 to 60"),
        (("--lot", 0, "--plan", "bad=0.02"), "--lot 0: a lot has at least one picture"),
        (("--lot", -5, "--plan", "all"), "--lot -5: a lot"),
    ],
)
def test_plans_that_cannot_be_are_refused_before_anything_is_printed(inspect, words, reason):
    code, out, err = inspect("plan", *words)
    assert (code, out) == (2, "") and reason in err, err


def test_contradictory_and_missing_plans_are_refused(inspect, folder):
    for words in (("--plan", "80/2", "--bad", 0.02), ()):
        code, _, err = inspect("plan", *words)
        assert code == 2 and "say which plan" in err
    code, _, err = inspect("draw", folder, "--plan", "31/0")
    assert code == 2 and "a sample of 31 cannot be drawn from 30" in err
    code, _, err = inspect("draw", folder, "--plan", "all", "--size", "1x1")
    assert code == 2 and "no picture passed the filters" in err


# ---- one step -------------------------------------------------------------------------------------------------------


def ask(address, body=None):
    request = urllib.request.Request(
        address, data=None if body is None else body.encode(), method="POST" if body else "GET"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def lines(names, who, defect=""):
    told = [{"item": n, "inspector": who, "defect": defect if not k else "", "seconds": 1} for k, n in enumerate(names)]
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in told)


def test_a_sitting_serves_the_sample_alone_and_takes_one_hand_in_per_person(folder, tmp_path):
    lot = read_lot(folder)
    names = [item.name for item in lot.items[:4]]
    with Sitting(lot, names, DEFECTS, lang="en", inspectors=2, barred=["Abe"], keep=tmp_path / "out") as sitting:
        status, page = ask(sitting.address)
        job = json.loads(re.search(r"const job = (.*), told = ", page.decode())[1])
        host = sitting.address.split("/", 3)
        root = f"{host[0]}//{host[2]}"
        assert status == 200 and job["submit"].endswith("/verdicts") and job["barred"] == ["abe"]
        status, picture = ask(root + job["items"][2]["href"])
        assert status == 200 and picture.startswith(b"\x89PNG")
        for path in ("/", "/picture/0", job["items"][0]["href"].replace("/0", "/4"), "/../p00.png"):
            assert ask(root + path)[0] == 404
        send = root + job["submit"]
        for body, message in (
            (lines(names, "ＡＢＥ"), "made the pictures"),
            (lines(names[:3], "Ito"), "1 of 4 drawn pictures have no verdict"),
            (lines(names[:2], "Ito") + lines(names[2:], "Mori"), "the verdicts of one person"),
            ("nothing", "line 1 is no verdict"),
        ):
            status, text = ask(send, body)
            assert status == 400 and message in text.decode(), text
        assert ask(send, lines(names, "Ito", "shape")) == (200, b"1 / 2")
        assert ask(send, lines(names, "ito"))[0] == 400
        with pytest.raises(InspectionError, match="1 of 2 inspectors handed in"):
            sitting.wait(0.01)
        assert ask(send, lines(names, "Mori")) == (200, b"2 / 2")
        verdicts = sitting.wait(5)
    assert len(verdicts) == 8 and {v.inspector for v in verdicts} == {"Ito", "Mori"}
    assert len(gather_verdicts(sorted((tmp_path / "out").glob("verdicts-*.jsonl")))) == 8


def test_a_folder_goes_through_all_steps_at_once(inspect, folder, tmp_path, monkeypatch):
    from labkit.inspection import command

    opened = []

    def browser(address):  # the page opens, a person judges and hands in
        opened.append(address)

        def person():
            job = json.loads(re.search(r"const job = (.*), told = ", ask(address)[1].decode())[1])
            host = address.split("/", 3)
            names = [item["name"] for item in job["items"]]
            time.sleep(0.05)
            for who, defect in (("Ito", "shape"), ("Mori", "")):
                ask(f"{host[0]}//{host[2]}{job['submit']}", lines(names, who, defect))

        threading.Thread(target=person, daemon=True).start()

    monkeypatch.setattr(command.webbrowser, "open", browser)
    code, out, err = inspect(
        *(folder, "--plan", "8/1", "--maker", "Abe", "--checker", "Sato", "--seed", 5, "--lang", "en"),
        *("--inspectors", 2, "--wait", 1),
    )
    assert code == 0 and len(opened) == 1, out + err
    assert "the inspectors disagree on 1 pictures" in out and "accepted" in out
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    assert inspect("verify", path, "--folder", folder)[0] == 0
    assert (tmp_path / "inspection" / "disputed.html").exists()
    alone = (folder, "--plan", "8/1", "--maker", "Abe", "--checker", "Sato")
    code, _, err = inspect(*alone, "--no-browser", "--wait", 0.001)
    assert code == 2 and "0 of 1 inspectors handed in" in err
    code, _, err = inspect(*alone, "--inspectors", 0)
    assert code == 2 and "at least one person must look" in err


# ---- records edited by hand -----------------------------------------------------------------------------------------


def leaves(value, path=()):
    """Paths of all values below objects."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path


def test_every_single_field_of_a_record_that_is_edited_by_hand_is_named(inspect, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"nothing")
    assert inspect("draw", folder, "--plan", "8/1", "--seed", 5, "--size", "24x16", "--duplicates", 2)[0] == 0
    sample = draw_sample([item.name for item in read_lot(folder).items], 8, 5)
    write_verdicts(
        tmp_path / "v.jsonl", [Verdict(name, "Ito", "shape" if not k else "") for k, name in enumerate(sample)]
    )
    assert inspect("sign", folder, "v.jsonl", "--maker", "Abe", "--checker", "Sato")[0] == 0
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    text = path.read_text(encoding="utf-8")
    paths = list(leaves(json.loads(text)["content"]))
    assert len(paths) > 60
    for where in paths:
        record = json.loads(text)
        inner = record["content"]
        for key in where[:-1]:
            inner = inner[key]
        before = inner[where[-1]]
        inner[where[-1]] = "edited" if before != "edited" else "other"
        problems = record_problems(record)
        name = ".".join(json.dumps(key) if "." in key else key for key in where)  # "p00.png" is one key
        assert f"{name} was changed" in problems, where
        assert all(JAPANESE.search(problem) for problem in record_problems(record, lang="ja")), where


def test_a_maker_who_inspects_is_refused_and_found_in_a_record_that_was_sealed_anew(inspect, folder, tmp_path):
    assert inspect("draw", folder, "--plan", "3/0", "--seed", 5)[0] == 0
    sample = draw_sample([item.name for item in read_lot(folder).items], 3, 5)
    write_verdicts(tmp_path / "v.jsonl", [Verdict(name, "Abe") for name in sample])
    code, _, err = inspect("sign", folder, "v.jsonl", "--maker", "ａｂｅ", "--checker", "Sato")
    assert code == 2 and "made the pictures and inspected them" in err
    code, _, err = inspect("sign", folder, "v.jsonl", "--maker", "Sato", "--checker", "sato ")
    assert code == 2 and "someone else must sign" in err
    assert inspect("sign", folder, "v.jsonl", "--maker", "Mori", "--checker", "Sato")[0] == 0
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    record = read_sign_off(path)
    record["content"]["maker"] = "Abe"
    assert record_problems(seal_record(record["content"])) == ["the maker is one of the inspectors"]


# ---- wording --------------------------------------------------------------------------------------------------------


def test_everything_that_filters_and_plans_write_is_said_in_japanese(tmp_path):
    Image.new("RGB", (8, 4), (230, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 4), (230, 0, 0)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    rules = [
        size_rule(4, 4), color_rule((0, 0, 0), tolerance=3), forbidden_color_rule((230, 0, 0)), near_duplicate_rule(),
        forbidden_words_rule(["赤", "logo"]), provenance_rule(), provenance_rule(["seed"]),
    ]  # fmt: skip
    log = apply_rules(read_lot(tmp_path, texts={"a.png": "logo"}), rules[:-1])
    texts = [*(rule.name for rule in rules), *(rule.expected for rule in rules)]
    texts += [
        text
        for one in log
        for text in (one.rule, one.expected, one.value)
        if not re.fullmatch(r"[\d.%]+|logo|8 x 4", text)
    ]
    texts += [aql_plan(lot, 1.0, severity=s).source for lot in (20, 2000) for s in ("normal", "tightened", "reduced")]
    texts += [Plan(3, 0).source, "zero failures: at most 0.02 defective, 0.95 confidence"]
    texts += ["two points: accept 0.01, refuse 0.05", "every picture", "every picture, at most 1 % defective"]
    assert {one.rule for one in log} == {
        *("size", "color", "forbidden mark", "near-duplicate", "forbidden words", "provenance", "readable")
    }
    for text in texts:
        assert JAPANESE.search(said(text, "ja")) and said(text, "en") == text, text
    assert said("8 x 4", "ja") == "8 x 4" and said("no provenance; seed is missing", "ja") == "来歴なし、seed がない"
    assert said("like b.png, off by 0.00", "ja") == "b.png に酷似、差0.00"
