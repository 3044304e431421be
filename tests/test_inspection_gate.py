"""From a folder of pictures to a signed record: rules, judge, verdicts, gate, provenance, record, page, command."""

import dataclasses
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, PngImagePlugin

from labkit.inspection import (
    DEFECTS,
    Defect,
    Gate,
    InspectionError,
    Plan,
    Rollout,
    StoredJudge,
    Verdict,
    calibrate,
    certify_threshold,
    color_rule,
    digest_process,
    draw_sample,
    folder_problems,
    forbidden_color_rule,
    forbidden_words_rule,
    near_duplicate_rule,
    provenance_problems,
    provenance_rule,
    read_lot,
    read_sign_off,
    record_html,
    record_problems,
    sign_off,
    size_rule,
    tally,
    write_provenance,
    write_sign_off,
)
from labkit.inspection.judge import JudgeError
from labkit.inspection.page import write_page
from labkit.inspection.provenance import GENERATED, read_provenance
from labkit.inspection.record import seal_record
from labkit.inspection.rules import apply_rules
from labkit.inspection.texts import TEXTS, texts
from labkit.inspection.threshold import CalibrationError, PreferenceFilter
from labkit.inspection.verdicts import read_verdicts, seeded_truth, write_verdicts

SIGNED = datetime(2026, 11, 28, 18, 30, tzinfo=UTC)


def save(path: Path, seed: int, size=(24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(30):
        save(tmp_path / "lot" / f"p{i:02d}.png", i)
    return tmp_path / "lot"


# ---- lots and samples -----------------------------------------------------------------------------------------------


def test_a_lot_names_what_it_cannot_read_and_passes_over_what_is_no_picture(folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    whole = (folder / "p00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no picture")
    save(folder / "deep" / "絵 1.png", 99)
    save(folder / ".cache" / "hidden.png", 98)
    lot = read_lot(folder)
    assert len(lot) == 31 and lot.items[0].name == "deep/絵 1.png"
    assert set(lot.unreadable) == {"broken.png", "cut.png"}
    assert all(str(folder) not in why for why in lot.unreadable.values())
    log = apply_rules(lot, [])
    assert [(one.item, one.rule) for one in log] == [("broken.png", "readable"), ("cut.png", "readable")]
    before = lot.sha256
    save(folder / "p07.png", 1234)
    assert read_lot(folder).sha256 != before
    with pytest.raises(InspectionError, match="is not a folder"):
        read_lot(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(InspectionError, match="holds no pictures"):
        read_lot(folder / "empty")


def test_transparency_is_put_on_white(tmp_path):
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (item,) = read_lot(tmp_path).items
    assert item.open().shape == (2, 3, 3)
    assert item.open()[0, 0].tolist() == [10, 20, 30] and item.open()[1, 2].tolist() == [255, 255, 255]


def test_a_sample_depends_on_seed_and_names_alone_and_is_fair():
    names = [f"n{i}" for i in range(20)]
    assert draw_sample(names, 5, 7) == draw_sample(names[::-1], 5, "7")
    assert draw_sample(names, 5, 7) == draw_sample(names, 9, 7)[:5]  # a larger sample goes on where it ended
    assert draw_sample(names, 5, 8) != draw_sample(names, 5, 7)
    times = {name: 0 for name in names}
    for seed in range(2000):
        for name in draw_sample(names, 5, seed):
            times[name] += 1
    counts = np.array(list(times.values()))  # binomial(2000, 1/4): sd 19.4
    assert abs(counts - 500).max() < 4 * 19.4 and counts.std() < 1.6 * 19.4
    with pytest.raises(InspectionError, match="a sample of 21 cannot be drawn from 20"):
        draw_sample(names, 21, 0)
    with pytest.raises(InspectionError, match="twice"):
        draw_sample(["a", "a"], 1, 0)


def test_a_process_is_another_one_when_any_part_changes(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").write_bytes(b"weights")
    parts = {"model": tmp_path / "model", "prompts": ["a cat"], "sampler": {"steps": 20}}
    first = digest_process(**parts)
    assert digest_process(**dict(reversed(parts.items()))) == first
    assert digest_process(**parts | {"prompts": ["a cat", "a dog"]}) != first
    (tmp_path / "model" / "a.bin").write_bytes(b"weightS")
    assert digest_process(**parts) != first
    (tmp_path / "model" / "a.bin").rename(tmp_path / "model" / "b.bin")
    (tmp_path / "model" / "b.bin").write_bytes(b"weights")
    assert digest_process(**parts) != first
    with pytest.raises(FileNotFoundError):
        digest_process(model=tmp_path / "gone")


# ---- rules ----------------------------------------------------------------------------------------------------------


def plain(path: Path, rgb, size=(20, 10)) -> Path:
    Image.new("RGB", size, rgb).save(path)
    return path


def test_every_fault_is_logged_with_rule_and_value(tmp_path):
    plain(tmp_path / "a.png", (100, 150, 200))
    plain(tmp_path / "b.png", (100, 150, 211), size=(10, 20))
    rules = [size_rule(20, 10), color_rule((100, 150, 200), tolerance=10)]
    log = apply_rules(read_lot(tmp_path), rules)
    assert [(one.item, one.rule, one.value) for one in log] == [
        ("b.png", "size", "10 x 20"),
        ("b.png", "color", "(100, 150, 211), off by 11.0"),
    ]
    assert log[0].expected == "20 x 10 pixels"
    with pytest.raises(ValueError, match="two rules have one name"):
        apply_rules(read_lot(tmp_path), [size_rule(1, 1), size_rule(2, 2)])


def test_a_color_is_measured_in_its_part_of_the_picture(tmp_path):
    picture = Image.new("RGB", (8, 4), (0, 0, 0))
    picture.paste((200, 100, 50), (6, 0, 8, 2))  # right quarter, upper half
    picture.save(tmp_path / "a.png")
    lot = read_lot(tmp_path)
    inside = color_rule((200, 100, 50), tolerance=0, box=(0.75, 0, 1, 0.5))
    assert apply_rules(lot, [inside]) == []
    assert apply_rules(lot, [color_rule((200, 100, 50), tolerance=0, box=(0, 0.75, 0.5, 1))])
    with pytest.raises(ValueError, match="as shares of the picture"):
        color_rule((0, 0, 0), tolerance=1, box=(0.5, 0, 0.2, 1))


def test_a_forbidden_mark_is_found_by_its_colour(tmp_path):
    picture = Image.new("RGB", (20, 10), "white")
    picture.paste((220, 10, 10), (0, 0, 2, 1))  # 2 of 200 pixels
    picture.save(tmp_path / "a.png")
    lot = read_lot(tmp_path)
    red = (230, 0, 0)
    (one,) = apply_rules(lot, [forbidden_color_rule(red, tolerance=10, most=0.005)])
    assert one.value == "1.00%"
    assert not apply_rules(lot, [forbidden_color_rule(red, tolerance=9)])
    assert not apply_rules(lot, [forbidden_color_rule(red, tolerance=10, most=0.01)])


def test_near_duplicates_name_the_picture_they_repeat_and_the_first_passes(tmp_path):
    coarse = (Image.open(save(tmp_path / f"{name}.png", i, size=(8, 6))) for i, name in enumerate("ab"))
    first, second = (picture.resize((64, 48), Image.Resampling.BICUBIC) for picture in coarse)
    first.save(tmp_path / "a.png")
    second.save(tmp_path / "b.png")
    first.save(tmp_path / "c.jpg", quality=90)
    first.resize((128, 96), Image.Resampling.BILINEAR).save(tmp_path / "d.png")
    log = apply_rules(read_lot(tmp_path), [near_duplicate_rule(3.0)])
    assert [(one.item, one.value.split(",")[0]) for one in log] == [("c.jpg", "like a.png"), ("d.png", "like a.png")]


def test_forbidden_words_ignore_case_and_width(tmp_path):
    plain(tmp_path / "a.png", "white"), plain(tmp_path / "b.png", "black")
    lot = read_lot(tmp_path, texts={"a.png": "A photo with a ＬＯＧＯ", "b.png": "a photo"})
    (one,) = apply_rules(lot, [forbidden_words_rule(["logo", "seal"])])
    assert (one.item, one.value) == ("a.png", "logo")


# ---- provenance -----------------------------------------------------------------------------------------------------


def test_provenance_is_bound_to_the_pixels(tmp_path):
    path = save(tmp_path / "a.png", 3)
    before = np.asarray(Image.open(path))
    write_provenance(path, {"generator": "labkit", "prompt": "猫の絵", "seed": 7, "adapter_sha256": None})
    claim = read_provenance(path)
    assert claim["prompt"] == "猫の絵" and claim["seed"] == 7 and claim["digital_source_type"] == GENERATED
    assert (np.asarray(Image.open(path)) == before).all()
    assert provenance_problems(path, ["prompt", "seed"]) == []
    assert provenance_problems(path, ["adapter_sha256"]) == ["adapter_sha256 is missing"]
    write_provenance(path, {"prompt": "later"})  # a second time: the new fields, once
    assert read_provenance(path)["prompt"] == "later" and provenance_problems(path) == []


def test_provenance_changes_no_other_byte_of_a_file(tmp_path):
    path = tmp_path / "a.png"
    deep = np.array([[0, 40_000, 65_535], [300, 7, 500]], dtype=np.uint16)
    exif, profile = Image.Exif(), b"a colour profile"
    exif[0x0112] = 6
    note = PngImagePlugin.PngInfo()
    note.add_text("parameters", "a cat, steps 20")
    Image.fromarray(deep).save(path, exif=exif, icc_profile=profile, dpi=(300, 300), pnginfo=note)
    before = path.read_bytes()
    write_provenance(path, {"seed": 1})
    write_provenance(path, {"seed": 2})  # over the first
    with Image.open(path) as picture:
        assert (np.asarray(picture) == deep).all() and picture.getexif()[0x0112] == 6
        assert picture.info["icc_profile"] == profile and round(picture.info["dpi"][0]) == 300
        assert picture.text["parameters"] == "a cat, steps 20"
    after = path.read_bytes()
    start = after.index(b"iTXt") - 4
    size = int.from_bytes(after[start : start + 4], "big") + 12
    assert after[:start] + after[start + size :] == before and after.count(b"labkit.provenance") == 1
    assert read_provenance(path)["seed"] == 2 and provenance_problems(path) == []
    deep[1, 1] = 8  # less than one level of 255
    text = PngImagePlugin.PngInfo()
    text.add_itxt("labkit.provenance", json.dumps(read_provenance(path)))
    Image.fromarray(deep).save(tmp_path / "b.png", pnginfo=text)
    assert provenance_problems(tmp_path / "b.png") == ["the pixels were changed after sealing"]
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "c.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="c.png has 2 frames"):
        write_provenance(tmp_path / "c.png", {})
    (tmp_path / "d.png").write_bytes(before[:-30])
    with pytest.raises((OSError, SyntaxError)):
        write_provenance(tmp_path / "d.png", {})
    assert (tmp_path / "d.png").read_bytes() == before[:-30]


def test_provenance_shows_retouched_pixels_edited_fields_and_stripped_chunks(tmp_path):
    path = save(tmp_path / "a.png", 3)
    claim = write_provenance(path, {"prompt": "a cat"})
    picture = Image.open(path)
    picture.load()

    def again(claim, picture, name):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("labkit.provenance", json.dumps(claim))
        picture.save(tmp_path / name, pnginfo=chunks)
        return provenance_problems(tmp_path / name)

    assert again(claim, picture, "same.png") == []
    assert again(claim | {"prompt": "a dog"}, picture, "edited.png") == ["a field was changed after sealing"]
    retouched = picture.copy()
    retouched.putpixel((5, 6), (1, 2, 3))
    assert again(claim, retouched, "retouched.png") == ["the pixels were changed after sealing"]
    picture.save(tmp_path / "stripped.png")
    assert provenance_problems(tmp_path / "stripped.png") == ["no provenance"]
    picture.save(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="b.jpg is JPEG, provenance needs PNG"):
        write_provenance(tmp_path / "b.jpg", {})
    log = apply_rules(read_lot(tmp_path), [provenance_rule(["prompt"])])
    assert [one.item for one in log] == ["b.jpg", "edited.png", "retouched.png", "stripped.png"]


# ---- judge ----------------------------------------------------------------------------------------------------------


class Brightness:
    """A judge for tests: the mean level, and how often it was asked."""

    name = "brightness v1"

    def __init__(self):
        self.asked = []

    def __call__(self, items):
        self.asked.append([item.name for item in items])
        return [float(item.open().mean()) for item in items]


def test_a_stored_judge_asks_once_and_replays_offline(folder, tmp_path):
    items, judge = read_lot(folder).items, Brightness()
    stored = StoredJudge(tmp_path / "scores.jsonl", judge)
    first = stored(items[:3])
    assert stored(items[2:5]) == Brightness()(items[2:5]) and judge.asked[1] == ["p03.png", "p04.png"]
    replay = StoredJudge(tmp_path / "scores.jsonl")
    (tmp_path / "windows.jsonl").write_text((tmp_path / "scores.jsonl").read_text() + "\n", encoding="utf-8-sig")
    assert StoredJudge(tmp_path / "windows.jsonl").scores == replay.scores
    assert replay.name == "brightness v1" and replay(items[:3]) == first
    with pytest.raises(JudgeError, match="no answer of 'brightness v1' for 1 of 2 pictures, the first is p07.png"):
        replay([items[0], items[7]])
    other = Brightness()
    other.name = "brightness v2"
    StoredJudge(tmp_path / "scores.jsonl", other)(items[:3])
    assert len(other.asked[0]) == 3  # another name shares no answers
    with pytest.raises(JudgeError, match="say whose"):
        StoredJudge(tmp_path / "scores.jsonl")
    with open(tmp_path / "scores.jsonl", "a") as file:
        file.write('{"judge": "x", "sha')
    with pytest.raises(JudgeError, match="scores.jsonl, line 9 is no answer"):
        StoredJudge(tmp_path / "scores.jsonl", judge)


def test_answers_that_are_no_numbers_are_refused_and_not_kept(folder, tmp_path):
    def broken(items):
        return [float("nan")] * len(items)

    broken.name = "broken"
    with pytest.raises(JudgeError, match="must be finite"):
        StoredJudge(tmp_path / "s.jsonl", broken)(read_lot(folder).items[:2])
    assert not (tmp_path / "s.jsonl").exists()


# ---- verdicts -------------------------------------------------------------------------------------------------------


def said(item, **by):
    return [Verdict(item, who, code, 2.0) for who, code in by.items()]


VERDICTS = [
    *said("a", Ito="", Mori="", Abe=""),
    *said("b", Ito="shape", Mori="", Abe=""),
    *said("c", Ito="color", Mori="shape", Abe="shape"),
    *said("d", Ito="forbidden", Mori="shape"),
]


def test_verdicts_add_up_by_the_worst_or_by_the_majority():
    worst = tally("abcd", VERDICTS)
    assert (worst.critical, worst.major, worst.minor) == (1, 2, 0)
    assert worst.disagreements == ("b",) and worst.inspectors == ("Abe", "Ito", "Mori") and worst.seconds == 22
    assert worst.defects == {"color": 1, "forbidden": 1, "shape": 4}
    most = tally("abcd", VERDICTS, policy="majority")
    # b: one of three, good; c: two of three major; d: one of two critical, a tie counts
    assert (most.critical, most.major, most.minor) == (1, 1, 0) and most.disagreements == ("b",)
    assert tally("a", [Verdict("a", "Ito")]).agreement is None
    assert 0 < worst.agreement < 1


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        ([Verdict("z", "Ito")], "which was not drawn"),
        ([Verdict("a", "Ito", "ugly")], "'ugly' is not on the list"),
        ([Verdict("a", " ")], "has no inspector"),
        ([Verdict("a", "Ito"), Verdict("a", "Ito", "shape")], "twice"),
        ([Verdict("a", "Ito")], "1 of 2 drawn pictures have no verdict: first 'b'"),
    ],
)
def test_verdicts_that_cannot_count_are_refused(verdicts, message):
    with pytest.raises(InspectionError, match=message):
        tally(["a", "b"], verdicts)


def test_verdicts_survive_their_file(tmp_path):
    path = write_verdicts(tmp_path / "v.jsonl", VERDICTS)
    assert read_verdicts(path) == VERDICTS
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(InspectionError, match="v.jsonl, line 12 is no verdict"):
        read_verdicts(path)


def test_planted_pictures_measure_the_inspectors():
    planted = {"a": False, "b": True, "c": True}
    assert seeded_truth(VERDICTS, planted)["Ito"] == ((2, 2), (1, 1))
    assert seeded_truth(VERDICTS, planted)["Mori"] == ((1, 2), (1, 1))


# ---- gate -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate():
    scores = np.linspace(0, 255, 400)
    return certify_threshold(
        scores, scores < 100, thresholds=[128.5, 127.0, 50], alpha=0.05, process="p", judge="brightness v1"
    )


def test_the_gate_sorts_a_lot_into_every_fate(folder, tmp_path, certificate):
    save(folder / "wide.png", 77, size=(32, 16))
    assert certificate.threshold == 127.0
    rules = (size_rule(24, 16),)
    gate = Gate("p", Plan(3, 0), rules, PreferenceFilter(certificate, abstain=1.0))
    screening = gate.screen(read_lot(folder), Brightness())
    level = {name: score for name, score in screening.scores.items()}
    assert len(level) == 30 and "wide.png" not in level
    assert set(screening.passed) == {name for name, value in level.items() if value >= 127}
    assert set(screening.abstained) == {name for name, value in level.items() if 126 <= value < 127}
    assert set(screening.refused) == {name for name, value in level.items() if value < 126}
    assert min(map(len, (screening.passed, screening.abstained, screening.refused))) > 0  # every fate occurs
    counts = screening.counts()
    assert counts["pictures"] == 31 and counts["broke a rule"] == 1
    assert counts["refused by the score"] + counts["left to people"] + counts["passed"] == 30
    name = screening.abstained[0]
    again = gate.screen(read_lot(folder), Brightness(), people={name: True})
    assert set(again.passed) == {*screening.passed, name} and again.counts()["passed by people"] == 1
    with pytest.raises(InspectionError, match="was not left to them"):
        gate.screen(read_lot(folder), Brightness(), people={screening.refused[0]: True})


def test_a_threshold_of_another_process_judge_or_calibrated_on_the_lot_itself_is_refused(folder, certificate):
    keep, lot = PreferenceFilter(certificate), read_lot(folder)
    with pytest.raises(CalibrationError, match="calibrate again"):
        Gate("q", Plan(3, 0), preference=keep).screen(lot, Brightness())
    other = Brightness()
    other.name = "taste"
    with pytest.raises(InspectionError, match="belongs to the judge 'brightness v1', got 'taste'"):
        Gate("p", Plan(3, 0), preference=keep).screen(lot, other)
    with pytest.raises(InspectionError, match="got None"):
        Gate("p", Plan(3, 0), preference=keep).screen(lot)
    used = PreferenceFilter(dataclasses.replace(certificate, calibration=(lot.items[4].sha256,)))
    with pytest.raises(InspectionError, match="1 pictures of the lot were used for calibration"):
        Gate("p", Plan(3, 0), preference=used).screen(lot, Brightness())


def inspected(gate, folder, bad=(), seed=7):
    screening = gate.screen(read_lot(folder))
    sample = gate.sample(screening, seed)
    verdicts = [Verdict(name, "Ito", dict(bad).get(i, ""), 1.5) for i, name in enumerate(sample)]
    return screening, sample, verdicts, gate.decide(screening, sample, verdicts)


@pytest.mark.parametrize(
    ("bad", "reasons"),
    [
        ({}, ()),
        ({0: "shape"}, ()),
        ({0: "shape", 3: "mismatch"}, ("major: 2 > 1",)),
        ({2: "forbidden"}, ("critical: 1 > 0",)),
        ({0: "color", 1: "color", 2: "texture"}, ()),
        ({0: "color", 1: "color", 2: "texture", 3: "texture"}, ("minor: 4 > 3",)),
    ],
)
def test_the_decision_follows_the_plan_by_severity(folder, bad, reasons):
    decision = inspected(Gate("p", Plan(10, 1, minor=3)), folder, bad.items())[-1]
    assert decision.reasons == reasons and decision.accepted == (not reasons)


def test_a_lot_smaller_than_the_sample_and_a_short_inspection_are_refused(folder):
    gate = Gate("p", Plan(31, 0))
    with pytest.raises(InspectionError, match="a sample of 31 cannot be drawn from 30"):
        inspected(gate, folder)
    gate = Gate("p", Plan(10, 0))
    screening, sample, verdicts, _ = inspected(gate, folder)
    with pytest.raises(InspectionError, match="9 pictures were inspected, the plan says 10"):
        gate.decide(screening, sample[:9], verdicts[:9])
    with pytest.raises(InspectionError, match="did not pass the filters"):
        gate.decide(screening, [*sample[:9], "else.png"], verdicts)


# ---- record ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(folder):
    (folder / "broken.png").write_bytes(b"nothing")
    gate = Gate("p", Plan(10, 1, minor=3, source="test"), (size_rule(24, 16), near_duplicate_rule()))
    screening, _, verdicts, _ = inspected(gate, folder, {1: "shape", 4: "color"}.items())
    return sign_off(
        gate,
        screening,
        seed=7,
        verdicts=verdicts,
        maker="田中",
        checker="Sato",
        signed=SIGNED,
        parts={"model": "ab" * 32},
        rollout=Rollout("p", "tightened", calibrated=True),
        previous="cd" * 32,
    )


def test_a_record_holds_the_evidence_and_verifies(record, folder, tmp_path):
    content = record["content"]
    assert content["decision"] == {"accepted": True, "reasons": []}
    assert content["lot"]["pictures"] == 31 and list(content["lot"]["unreadable"]) == ["broken.png"]
    assert content["estimate"]["rate"] == 0.1 and content["estimate"]["upper_bound"] == pytest.approx(0.394, abs=5e-4)
    assert content["estimate"]["bad_pictures_at_most"] < 0.394 * 30
    assert content["stage"]["stage"] == "tightened" and content["signed"] == "2026-11-28T18:30:00+00:00"
    assert set(content["software"]) >= {"labkit", "python", "scipy"}
    path = write_sign_off(tmp_path / "record.json", record)
    assert record_problems(read_sign_off(path), seal=record["seal"]) == []
    assert folder_problems(record, folder) == []
    save(folder / "p03.png", 1000), (folder / "p05.png").unlink()
    assert folder_problems(record, folder) == ["p03.png was changed after inspection", "p05.png is missing"]


def edit(record, where, value):
    record = json.loads(json.dumps(record))
    inner = record["content"]
    *path, last = where.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = value
    return record


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("checker", "Suzuki"),
        ("plan.n", 5),
        ("inspection.major", 0),
        ("estimate.upper_bound", 0.02),
        ("decision.accepted", False),
        ("process.model", "00" * 32),
        ("sample.seed", 8),
        ("verdicts", []),
    ],
)
def test_an_edited_field_is_named(record, where, value):
    assert f"{where} was changed" in record_problems(edit(record, where, value))


def test_added_and_removed_fields_and_another_seal_are_named(record):
    assert "note was added" in record_problems(edit(record, "note", "ok"))
    shorter = json.loads(json.dumps(record))
    del shorter["content"]["estimate"]["low"]
    assert "estimate.low was removed" in record_problems(shorter)
    forged = json.loads(json.dumps(record))
    forged["hashes"]["maker"] = "0" * 64
    assert "the seal does not fit the hashes" in record_problems(forged)
    assert record_problems(forged, lang="ja") == ["maker が書き換えられています", "封印がハッシュと合いません"]
    assert record_problems({"content": 3}) == ["this is no record: expected content, hashes and seal"]


def test_a_record_sealed_anew_is_caught_by_the_seal_kept_elsewhere_and_by_what_must_follow(record):
    better = edit(record, "process.model", "00" * 32)
    resealed = seal_record(better["content"])
    assert record_problems(resealed) == []  # nothing inside tells
    assert record_problems(resealed, seal=record["seal"])[0].startswith("the seal is ")
    for where, value, told in (
        ("sample.seed", 8, "sample.names does not follow from sample.seed"),
        ("decision.accepted", False, "decision.accepted does not follow from plan and inspection"),
        ("maker", "ＳＡＴＯ ", "maker and checker are one person"),
        ("stage.stage", "all", "plan.n does not follow from stage.stage"),
        ("inspection.major", 0, "inspection does not follow from verdicts"),
        ("estimate.upper_bound", 0.02, "estimate does not follow from verdicts"),
    ):
        assert record_problems(seal_record(edit(record, where, value)["content"])) == [told]
    broken = seal_record(edit(record, "plan", {"n": 0})["content"])
    assert record_problems(broken)[0].startswith("the content cannot be checked")
    with pytest.raises(ValueError, match="the record cannot be shown"):
        record_html(broken)
    with pytest.raises(InspectionError, match="no content.screening.passed"):
        folder_problems({"content": {}}, ".")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maker": "Sato", "checker": "ｓａｔｏ"}, "someone else must sign"),
        ({"maker": "  "}, "must be named"),
        ({"seed": 9}, "which was not drawn"),
        ({"rollout": Rollout("q")}, "belongs to another process"),
        ({"rollout": Rollout("p", "stopped")}, "has stopped"),
        ({"rollout": calibrate(Rollout("p"), "p")}, "every picture is inspected, the plan says 10 of 30"),
        ({"rollout": Rollout("p")}, "at the stage 'shadow' every picture"),
        ({"signed": datetime(2026, 1, 1)}, "no time zone"),
    ],
)
def test_a_record_that_cannot_stand_is_not_signed(folder, change, message):
    gate = Gate("p", Plan(10, 1))
    screening, _, verdicts, _ = inspected(gate, folder)
    told = {"seed": 7, "verdicts": verdicts, "maker": "Abe", "checker": "Sato", "signed": SIGNED}
    with pytest.raises(ValueError, match=message):
        sign_off(gate, screening, **told | change)


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_the_page_of_a_record_is_complete_and_warns_of_a_broken_one(record, lang):
    html = record_html(record, lang)
    for part in ("田中", "Sato", record["seal"], "n = 10, c = 1", "ab" * 32, "broken.png"):
        assert part in html
    assert texts(lang)["accepted"] in html and texts(lang)["broken"] not in html
    assert texts(lang)["stage_tightened"] in html
    broken = record_html(edit(record, "maker", "<b>&"), lang)
    assert texts(lang)["broken"] in broken and texts(lang)["problem_changed"].format(name="maker") in broken
    assert "<b>&<" not in broken and "&lt;b&gt;&amp;" in broken
    assert "{" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    with pytest.raises(ValueError, match="unknown language"):
        record_html(record, "fr")


def test_refusals_are_shown_in_words(folder):
    gate = Gate("p", Plan(10, 0))
    screening, _, verdicts, _ = inspected(gate, folder, {0: "forbidden", 1: "shape"}.items())
    told = {"seed": 7, "verdicts": verdicts, "maker": "Abe", "checker": "Sato", "signed": SIGNED}
    html = record_html(sign_off(gate, screening, **told), "ja")
    assert "ロット不合格" in html and "致命欠点: 1 &gt; 0" in html and "重欠点: 1 &gt; 0" in html


def test_texts_exist_in_both_languages():
    entries = yaml.safe_load(TEXTS.read_text(encoding="utf-8"))
    assert all(set(entry) == {"en", "ja"} and all(entry.values()) for entry in entries.values())
    assert not [key for key, entry in entries.items() if re.search(r"[ぁ-んァ-ヶ一-龠]", entry["en"])]


# ---- page and command -----------------------------------------------------------------------------------------------


def test_the_inspection_page_names_every_picture_of_the_sample_and_cannot_be_broken_by_a_name(folder, tmp_path):
    save(folder / "x </script> & 'ä'.png", 500)
    lot = read_lot(folder)
    page = write_page(tmp_path / "out" / "inspect.html", lot, [item.name for item in lot.items], DEFECTS, lang="ja")
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == 1
    job = json.loads(re.search(r"const job = (.*), told = ", text)[1])
    assert [item["name"] for item in job["items"]] == [item.name for item in lot.items]
    from urllib.parse import unquote

    for item in job["items"]:
        assert (page.parent / unquote(item["href"])).is_file()
    assert [defect["code"] for defect in job["defects"]] == [defect.code for defect in DEFECTS]
    with pytest.raises(ValueError, match="10 defects but 9 keys"):
        write_page(page, lot, [], [Defect(str(i), "minor", "x", "x") for i in range(10)], lang="en")


def test_the_command_goes_from_a_folder_to_a_record_that_verifies(inspect, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"nothing")
    code, out, _ = inspect("draw", folder, "--n", 8, "--c", 1, "--seed", 5, "--size", "24x16", "--duplicates", 2)
    assert code == 0 and "1 unreadable" in out and "broken.png: readable" in out and "n = 8, c = 1, seed 5" in out
    sample = draw_sample([item.name for item in read_lot(folder).items], 8, 5)
    write_verdicts(
        tmp_path / "v1.jsonl", [Verdict(name, "Ito", "shape" if i == 2 else "") for i, name in enumerate(sample)]
    )
    write_verdicts(tmp_path / "v2.jsonl", [Verdict(name, "Mori") for name in sample])
    code, out, _ = inspect("sign", folder, "v1.jsonl", "v2.jsonl", "--maker", "Abe", "--checker", "Sato")
    assert code == 0 and "accepted" in out
    (path,) = (tmp_path / "inspection").glob("record-*.json")
    seal = re.search(r"seal (\w{64})", out)[1]
    assert inspect("verify", path, path, "--folder", folder, "--seal", seal)[0] == 0
    assert {page.name for page in (tmp_path / "inspection").glob("*.html")} == {
        "inspect.html",
        "disputed.html",
        f"{path.stem}.en.html",
        f"{path.stem}.ja.html",
    }
    save(folder / "p04.png", 4000)
    code, out, _ = inspect("verify", path, "--folder", folder)
    assert code == 1 and out == f"{path.name}: p04.png was changed after inspection\n"
    code, _, err = inspect("sign", folder, "v1.jsonl", "v2.jsonl", "--maker", "Abe", "--checker", "Sato")
    assert code == 2 and "are not those of the draw" in err
    path.write_text(path.read_text().replace('"maker": "Abe"', '"maker": "Abel"'))
    assert inspect("verify", path)[:2] == (1, f"{path.name}: maker was changed\n")


def test_the_command_says_in_one_line_what_is_wrong(inspect, folder, tmp_path):
    for words, message in (
        (("draw", folder), "say which plan"),
        (("draw", folder, "--n", 31), "a sample of 31 cannot be drawn from 30"),
        (("draw", tmp_path / "none", "--n", 3), "is not a folder"),
        (("plan", "--bad", 2), "2 % is 0.02"),
        (("plan", "--aql", 1.0), "add --lot"),
        (("sign", folder, "v.jsonl", "--maker", "A", "--checker", "B"), "run labkit inspect draw first"),
        (("verify", "gone.json"), "is no record"),
    ):
        code, _, err = inspect(*words)
        assert code == 2 and message in err and err.count("\n") == 1, words


def test_the_command_shows_what_a_plan_lets_through(inspect):
    code, out, _ = inspect("plan", "--aql", "1.0", "--lot", 1200)
    # of 1,200 with 76 bad, 80 looks find at most two with probability .1030; with 77 .0980 (hypergeometric)
    assert code == 0 and "n = 80, c = 2" in out and "76 of 1200 pictures defective (6.3%)" in out
    assert "n = 119, c = 0" in inspect("plan", "--bad", 0.02, "--lot", 500)[1]
    assert "n = 132, c = 3" in inspect("plan", "--good", 0.01, "--bad", 0.05)[1]
