"""PC-CLIP on own pictures: tables, the probe of the frozen tower, captions alone, alarms, the command."""

import json
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import seeded

from labkit.cli import main
from labkit.models.clip_inputs import ClipInputs
from labkit.models.sd_layout import clip_tokenizer
from labkit.pairwise import TemplateWriter, cache_embeddings, preset, train_pairwise
from labkit.pairwise.filters import judge
from labkit.pairwise.inspection import alarm_report, alarm_threshold, good_photos_needed, promised_threshold
from labkit.pairwise.own import caption_pairs, caption_visibility, cut_captions, read_pictures, visibility
from labkit.pairwise.pairs import Codes
from labkit.pairwise.train import PairwiseError
from labkit.pairwise.writers import caption_sentences

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_clip():
    from transformers import CLIPConfig, CLIPModel

    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    ids = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = width | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(
        text_config=width | ids | {"max_position_embeddings": 96}, vision_config=vision, projection_dim=24
    )
    clip = seeded(lambda: CLIPModel(config), 0).eval()
    return clip, ClipInputs(clip_tokenizer(514, 96), clip.config, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """45 coloured pictures that are not square, a table with what is visible and what is not, and a CLIP on disk."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    lines = ["\ufefffile_name,caption,colour,maker"]
    for i in range(45):
        colour = list(COLOURS)[i % 3]
        levels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 12, (40, 60, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(root / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,a {colour} plate number {i},{colour},{'ab'[int(rng.integers(2))]}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    clip, inputs = tiny_clip()
    clip.save_pretrained(root / "clip")
    inputs.tokenizer.save_pretrained(root / "clip")
    return root


@pytest.fixture(scope="module")
def seen(own):
    clip, inputs = tiny_clip()
    pictures = read_pictures(own)
    return clip, inputs, pictures, cache_embeddings(clip, inputs, inputs.pictures(pictures.folder))


def test_a_table_gives_captions_and_attributes_in_the_order_of_the_names(own, tmp_path):
    pictures = read_pictures(own)
    assert len(pictures) == 45 and pictures.values[4] | {"maker": ""} == {
        "caption": "a blue plate number 4", "colour": "blue", "maker": "",
    }  # fmt: skip
    assert pictures.wording["colour"]["red"] == "red colour" and set(pictures.wording) == {"colour", "maker"}
    assert pictures.captions[0] == ("a red plate number 0", None)
    (tmp_path / "t.csv").write_text('file,caption\n01.png,"red\nand round"\n')  # a cell of two lines
    assert read_pictures(own, tmp_path / "t.csv").captions == [("red\nand round", None)]
    rows = [{"image": "02.png", "text": "two"}, {"image": "01.png", "text": "one"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    some = read_pictures(own, tmp_path / "t.jsonl")
    assert some.folder.names == ("01.png", "02.png") and some.captions == [("one", None), ("two", None)]


@pytest.mark.parametrize(
    ("table", "match"),
    [("file_name,a\nnone.png,1\n", "'none.png', which is no picture"), ("name,a\n01.png,1\n", "row 1 names no file"),
     ("file,a\n01.png,1\n01.png,2\n", "row 2 names '01.png' again"), ("file,a\n", "no rows"),
     ("file,caption\n01.png,red, round\n", "row 1 has more cells than columns")],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_named_with_its_row(own, tmp_path, table, match):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(PairwiseError, match=match):
        read_pictures(own, tmp_path / "t.csv")


def test_names_of_columns_and_files_are_read_as_people_write_them(own, tmp_path):
    (tmp_path / "T.CSV").write_text(" File_Name ,Caption\n./01.png,one\n")
    assert read_pictures(own, tmp_path / "T.CSV").captions == [("one", None)]
    (tmp_path / "mac").mkdir()
    shutil.copy(own / "01.png", tmp_path / "mac" / unicodedata.normalize("NFD", "ガ.png"))
    (tmp_path / "t.csv").write_text("file_name,caption\nガ.png,one\n", encoding="utf-8")
    assert read_pictures(tmp_path / "mac", tmp_path / "t.csv").captions == [("one", None)]


def test_a_run_does_not_replace_the_files_of_something_else(own, tmp_path, capsys):
    from labkit.models.paths import data_dir

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    shutil.copytree(data_dir() / "portrait-clip", tmp_path / "clip")
    before = (tmp_path / "clip" / "model.safetensors").read_bytes()
    for words, said in (
        (["--out", str(tmp_path / "other")], "holds a config.json of something else"),
        (["--clip", str(tmp_path / "clip"), "--out", str(tmp_path / "clip")], "is the folder of the CLIP"),
    ):
        assert main(["pcclip", "train", str(own), *words]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "clip" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "other" / "config.json").read_text() == "{}"


def test_tables_as_spreadsheets_of_other_countries_write_them(own, tmp_path):
    (tmp_path / "t.csv").write_text("file_name;colour\n01.png;red\n02.png;blue\n")
    assert [row["colour"] for row in read_pictures(own, tmp_path / "t.csv").values] == ["red", "blue"]
    (tmp_path / "t.csv").write_text("file_name,colour,\n01.png,red,\n02.png,blue,,\n")  # empty last columns
    assert set(read_pictures(own, tmp_path / "t.csv").wording) == {"colour"}
    (tmp_path / "t.csv").write_bytes("file_name,色\n01.png,青\n".encode("cp932"))
    with pytest.raises(PairwiseError, match="t.csv is not in UTF-8: save it as"):
        read_pictures(own, tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text('{"file": "01.png"}\n{"file"')
    with pytest.raises(PairwiseError, match="t.jsonl, row 2 is no JSON"):
        read_pictures(own, tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("rows", "match"),
    [("file,colour\n01.png,red\n02.png,red\n", "no attribute has two values"),
     ("file,caption\n01.png,one\n02.png,\n", "1 of 2 pictures have no caption.*nothing to ask"),
     ("file,colour\n01.png,red\n02.png,blue\n", "too few pictures to ask")],
)  # fmt: skip
def test_a_probe_that_has_nothing_to_ask_does_not_say_that_the_tower_sees_nothing(own, tmp_path, capsys, rows, match):
    (tmp_path / "t.csv").write_text(rows)
    assert main(["pcclip", "probe", str(own), "--table", str(tmp_path / "t.csv"), "--clip", str(own / "clip")]) == 2
    said = capsys.readouterr()
    assert re.search(match, said.out + said.err, re.DOTALL) and "sees none" not in said.out


def test_settings_that_do_not_fit_are_said_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    train = ["pcclip", "train", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    for more, match in (
        (["--steps", "0"], "steps 0"), (["--lr", "nan"], "lr nan"), (["--pairs", "0"], "--pairs 0"),
        (["--out", str(tmp_path / "file")], "is a file"),
    ):  # fmt: skip
        assert main([*train, *more]) == 2
        assert match in capsys.readouterr().err


def test_the_probe_tells_what_the_tower_sees_from_what_it_does_not(seen):
    _, _, pictures, images = seen
    found = visibility(images, pictures.values, ["colour", "maker", "nothing"])
    assert [found[a].verdict for a in ("colour", "maker", "nothing")] == ["seen", "not seen", "too few"]
    assert found["colour"].accuracy > 0.9 and found["colour"].chance == pytest.approx(1 / 3)
    turned = [row | {"colour": pictures.values[-1 - i]["maker"]} for i, row in enumerate(pictures.values)]
    assert visibility(images, turned, ["colour"])["colour"].verdict == "not seen"
    assert caption_visibility(images, images) == (1.0, 0.1)
    assert caption_visibility(images, images[:1].expand_as(images)) == pytest.approx((0.1, 0.1))  # one caption for all


def test_captions_alone_train_and_each_is_true_of_its_own_picture(seen):
    clip, inputs, pictures, images = seen
    values = [{"caption": row["caption"]} for row in pictures.values]
    pairs = caption_pairs(values, 30, generator())
    assert all(values[p.first] != values[p.second] and not p.statement.attributes for p in pairs)
    records = TemplateWriter({})(pairs, values).records
    first, second = (values[i]["caption"] for i in (pairs[0].first, pairs[0].second))
    assert records[0].sentences[0] == f"the first shows {first}, the second shows {second}"
    assert records[0].mirrored[1] == f"the second shows {first}, the first shows {second}"
    statements = [p.statement for p in pairs[:3]]
    assert not Codes({}).truth(values[:4], values[4:8], statements).any()
    config = preset("robust", steps=8, batch=8, lr=1e-3)
    options = {"wording": {}, "generator": generator()}
    _, card = train_pairwise(clip, inputs, images, values, records, config, captions=pictures.captions, **options)
    assert card.drift > 0 and max(card.floor) < 0.7  # what is drawn twice; ln 8 = 2.08 if all were true of all
    with pytest.raises(ValueError, match="most captions name nothing"):
        nothing = [(text, {}) for text, _ in pictures.captions]
        train_pairwise(clip, inputs, images, values, records, config, captions=nothing, **options)
    with pytest.raises(PairwiseError, match="1 different captions"):
        caption_pairs([{"caption": "a"}] * 3, 2, generator())


def test_answers_about_captions_are_judged_by_their_form(seen):
    pair = caption_pairs([{"caption": "a"}, {"caption": "b"}], 1, generator())[0]

    def verdict(text):
        return judge(json.dumps({"sentence": text}), pair, {}, {}, {})

    good = "the first shows a red plate, the second shows a blue plate"
    assert verdict(good) == (good, pair.statement)
    assert verdict("the first shows a red plate, the second shows a red plate") == "same value"
    assert verdict("both pictures show a plate of some colour") == "one-sided"


def test_a_loss_that_is_no_number_and_a_sentence_that_is_too_long_stop_the_run(seen):
    clip, inputs, pictures, images = seen
    values = [{"caption": row["caption"]} for row in pictures.values]
    records = TemplateWriter({})(caption_pairs(values, 12, generator()), values).records
    config = preset("robust", steps=3, batch=4, rehearsal=0.0, lr=1e30)
    with pytest.raises(PairwiseError, match="is (nan|inf) at step|not finite") as error:
        train_pairwise(clip, inputs, images, values, records, config, wording={}, generator=generator())
    assert "lower lr" in str(error.value) and "\n" not in str(error.value)
    long = [values[0] | {"caption": "a plate " * 60}, *values[1:]]
    records = TemplateWriter({})(caption_pairs(long, 200, generator()), long).records
    with pytest.raises(ValueError, match="the context holds 96"):  # one step would hardly have drawn it
        config = preset("robust", steps=1, batch=2, rehearsal=0.0)
        train_pairwise(clip, inputs, images, long, records, config, wording={}, generator=generator())


def test_the_number_of_good_photographs_is_that_of_wilks():
    assert [good_photos_needed(rate) for rate in (0.05, 0.02, 0.01)] == [59, 149, 299]
    calibration = torch.arange(100.0)
    report = alarm_report(calibration=calibration, good=torch.tensor([1.0, 98.5]), bad=torch.tensor([200.0]), rate=0.05)
    # of 100 binomial(100, 0.05) is at least 2 with probability 0.963, at least 3 with 0.882: one of them may lie above
    assert report.threshold == 98.0 and report.false_alarms[0] == 0.5 and report.missed[0] == 0.0
    assert report.enough and 0 < report.false_alarms[1] < 0.5 < report.false_alarms[2]
    few = alarm_report(calibration=calibration[:20], good=calibration[:0], bad=calibration[:0], rate=0.02)
    assert (few.threshold, few.enough, few.needed, few.false_alarms) == (19.0, False, 149, None)
    for rate in (0, 1, 2):
        with pytest.raises(ValueError, match="between 0 and 1"):
            good_photos_needed(rate)


@pytest.mark.parametrize(("rate", "n"), [(0.02, 149), (0.05, 200)])
def test_a_promise_about_false_alarms_is_kept_in_95_of_100_cases(rate, n):
    scores = torch.rand(4000, n, generator=generator(), dtype=torch.float64)  # 1 - x of all good parts lie above x
    kept = [1 - promised_threshold(row, rate) <= rate for row in scores]
    assert 0.94 < sum(kept) / len(kept) < 0.98
    assert sum(1 - alarm_threshold(row, rate) <= rate for row in scores) / len(scores) < 0.6  # the plain quantile


def test_good_photographs_in_the_order_of_a_shift_are_divided_by_lot(own, tmp_path, monkeypatch, capsys):
    """The desk gets warmer from file to file: thirds in the order of the names would sound at every last one."""
    angle = torch.linspace(0, 1.2, 45)
    drifting = torch.stack([angle.cos(), angle.sin()], dim=1)
    monkeypatch.setattr("labkit.pairwise.towers.cache_embeddings", lambda *_: drifting)
    assert main(["pcclip", "alarm", str(own), "--clip", str(own / "clip")]) == 1
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "false alarms  " in line]
    assert float(said.split()[2].rstrip("%")) < 30


def test_the_command_probes_trains_saves_and_sets_an_alarm(own, tmp_path, capsys):
    clip = ["--clip", str(own / "clip")]
    assert main(["pcclip", "probe", str(own), *clip]) == 0
    assert "colour               seen" in capsys.readouterr().out
    out = tmp_path / "tuned"
    more = ["--out", str(out), "--steps", "4", "--pairs", "40"]
    assert main(["pcclip", "train", str(own), *clip, *more]) == 0
    said = capsys.readouterr()
    assert "40 of 40 sentences accepted" in said.out and not said.err
    assert json.loads((out / "run.json").read_text())["records"] == 40
    assert main(["pcclip", "probe", str(own), "--clip", str(out)]) == 0  # what was saved can be used
    assert main(["pcclip", "alarm", str(own), "--bad", str(own), *clip]) == 1
    assert "149 good photographs" in capsys.readouterr().out
    assert main(["pcclip", "probe", str(tmp_path / "nowhere"), *clip]) == 2


def test_captions_that_are_too_long_name_the_option_that_cuts_them(own, tmp_path, capsys):
    words = "a plate with a scratch at the edge and some dust on it under a lamp of the old hall number "
    for i in range(12):
        Image.open(own / f"{i:02d}.png").save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"{list(COLOURS)[i % 3]} {words * 2}{i}" if i else "x" * 300)
    command = ["pcclip", "train", str(tmp_path), "--clip", str(own / "clip"), "--out", str(tmp_path / "tuned")]
    more = ["--steps", "2", "--pairs", "20", "--anyway"]
    assert main([*command, *more]) == 2
    assert capsys.readouterr().err.rstrip().endswith("or give --truncate")
    assert main([*command, *more, "--truncate"]) == 0
    assert "12 captions are cut" in capsys.readouterr().out
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "1.txt").read_bytes())  # as Windows saves it
    _, inputs = tiny_clip()
    cut, n = cut_captions(read_pictures(tmp_path), inputs)
    told = [row["caption"] for row in cut.values]
    assert n == 12 and told[0].startswith("x") and told[1].startswith("blue a plate with a scratch")
    inputs([text for a in told for text in caption_sentences(a, max(told, key=len))])  # any two fit
    assert cut_captions(cut, inputs)[1] == 0
    (tmp_path / "2.txt").write_bytes("赤い板".encode("cp932"))
    assert main(command) == 2
    assert "2.txt is not in UTF-8: save it as UTF-8" in capsys.readouterr().err
    assert main([*command, "--key-variable", "NOT_SET_ANYWHERE"]) == 2  # before anything is read
    assert "that environment variable is not set" in capsys.readouterr().err


def test_the_python_of_the_page_runs_as_it_stands(own, capsys):
    pages = [(Path(__file__).parents[1] / "docs" / name).read_text("utf-8") for name in ("measure.md", "measure.ja.md")]
    code, japanese = (page.split("```python\n")[1].split("```")[0] for page in pages)
    assert re.sub("#.*", "", code) == re.sub("#.*", "", japanese)
    for long, short in (
        ('"PICTURES", "labels.csv"', "OWN"),
        ('"FOLDER"', 'OWN / "clip"'),
        ("2000", "40"),
        ("300", "2"),
    ):
        assert long in code
        code = code.replace(long, short)
    names = {"OWN": own}
    exec(code, names)
    assert "'colour': Visibility(" in capsys.readouterr().out
    assert names["card"].records == 40 and names["card"].drift > 0
