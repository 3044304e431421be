"""Own pairs: tables and folders as people and data sets have them, and the whole way to a LoRA and its report."""

import csv
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from labkit.cli import main
from labkit.dpo import DPOConfig
from labkit.dpo.command import settings
from labkit.dpo.folders import PairsError, find_pairs
from labkit.dpo.own import align_own, encode_found, nearest, size_condition


def picture(number: int, size=(64, 64)) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def as_bytes(number: int) -> bytes:
    file = BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures 0.png .. 3.png without a table."""
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    return tmp_path


def names(found):
    return [(p.prompt, p.winner.name, p.loser.name) for p in found.pairs]


def test_a_csv_of_excel_with_any_of_the_usual_column_names(folder):
    for winner, loser, text in (("winner", "loser", "caption"), ("Chosen", "Rejected", "Prompt")):
        with (folder / "pairs.csv").open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([[winner, loser, text, "margin", "split"], ["0.png", "1.png", "a, b", "0.5", "train"]])
            writer.writerow(["2.png", "3.png", "猫", "", "Valid"])
        found = find_pairs(folder)
        assert names(found) == [("a, b", "0.png", "1.png"), ("猫", "2.png", "3.png")]
        assert [(p.margin, p.held_out) for p in found.pairs] == [(0.5, False), (None, True)]


def test_the_layout_of_pick_a_pic_from_shards_of_parquet(tmp_path):
    rows = [
        {"jpg_0": as_bytes(0), "jpg_1": as_bytes(1), "label_0": 1.0, "caption": "first wins"},
        {"jpg_0": as_bytes(0), "jpg_1": as_bytes(1), "label_0": 0.0, "caption": "second wins"},
        {"jpg_0": as_bytes(0), "jpg_1": as_bytes(1), "label_0": 0.5, "caption": "tie"},
        {"jpg_0": as_bytes(2), "jpg_1": as_bytes(3), "label_0": None, "caption": "nobody said"},
    ]
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "train-00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "train-00001.parquet")
    found = find_pairs(tmp_path)
    assert [(p.prompt, p.winner == as_bytes(0)) for p in found.pairs] == [("first wins", True), ("second wins", False)]
    assert found.left_out == {"ties": 1, "without a label": 1}
    image = {"bytes": as_bytes(5), "path": None}  # as the datasets library stores pictures
    pq.write_table(pa.Table.from_pylist([{"winner": image, "loser": image, "text": "x"}]), tmp_path / "one.parquet")
    assert find_pairs(tmp_path / "one.parquet").pairs[0].winner == as_bytes(5)


def test_the_layout_of_hpdv2(folder):
    rows = [
        {"prompt": "two", "image_path": ["0.png", "1.png"], "human_preference": [0, 1]},
        {"prompt": "many", "image_path": ["0.png", "1.png", "2.png"], "rank": [2, 3, 1]},
        {"prompt": "equal", "file_path": ["0.png", "1.png"], "human_preference": [1, 1]},
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    found = find_pairs(folder)
    assert names(found) == [("two", "1.png", "0.png"), ("many", "2.png", "1.png")] and found.left_out == {"ties": 1}


def test_two_folders_with_captions_beside_the_winners(tmp_path):
    for side, number in (("winner", 0), ("loser", 1)):
        (tmp_path / side).mkdir()
        picture(number).save(tmp_path / side / f"cat.{'png' if number else 'bmp'}")
    with pytest.raises(PairsError, match="no caption: write it into cat.txt"):
        find_pairs(tmp_path)
    (tmp_path / "winner" / "cat.txt").write_text("a cat\n")
    assert names(find_pairs(tmp_path)) == [("a cat", "cat.bmp", "cat.png")]
    picture(1).save(tmp_path / "loser" / "cat.jpg")
    with pytest.raises(PairsError, match="has cat.jpg and cat.png: one picture per name"):
        find_pairs(tmp_path)
    (tmp_path / "loser" / "cat.jpg").unlink()
    picture(2).save(tmp_path / "loser" / "dog.png")
    with pytest.raises(PairsError, match="dog.png has no winner"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"winner": "0.png", "loser": "1.png", "caption": "a"}\n{"win', "row 2 is no JSON"),
        ('{"winner": "0.png", "loser": "9.png", "caption": "a"}', "row 1: no picture .*9.png"),
        ('{"winner": "0.png", "loser": "1.png", "caption": null}', "row 1 has no caption"),
        ('{"a": "0.png", "b": "1.png", "caption": "a"}', "no winner and loser .columns: a, b, caption"),
        ('{"winner": "0.png", "loser": "1.png", "caption": "a", "margin": -1}', "margin is -1"),
        ('{"jpg_0": "0.png", "jpg_1": "1.png", "caption": "a", "label_0": 0.5}', "no pair that could train .1 ties"),
        ("[1]", "row 1 is no record|row 1: "),
    ],
)
def test_what_is_wrong_with_a_table_names_the_row(folder, text, match):
    (folder / "pairs.jsonl").write_text(text)
    with pytest.raises(PairsError, match=match) as error:
        find_pairs(folder)
    assert "\n" not in str(error.value) and "pairs.jsonl" in str(error.value) or "could train" in str(error.value)


def test_nothing_and_several_tables_are_refused(folder):
    with pytest.raises(PairsError, match="neither a table"):
        find_pairs(folder)
    with pytest.raises(PairsError, match="does not exist"):
        find_pairs(folder / "no")
    (folder / "a.csv").write_text("x")
    (folder / "b.jsonl").write_text("{}")
    with pytest.raises(PairsError, match="several kinds"):
        find_pairs(folder)


def test_the_size_is_the_nearest_shape_and_sdxl_is_told_what_was_cropped():
    assert nearest((600, 400), [(64, 64), (96, 64), (64, 96)]) == (96, 64)
    assert size_condition((600, 400), (64, 64)) == [600, 400, 16, 0, 64, 64]
    assert size_condition((64, 64), (64, 64)) == [64, 64, 0, 0, 64, 64]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """(folder with a table of 8 pairs in two shapes, the pipeline's folder)."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for number in range(8):
        size = (64, 64) if number % 4 else (96, 64)
        for side in range(2):
            picture(10 * number + side, size).save(folder / f"{number}-{side}.png")
        rows.append({"winner": f"{number}-0.png", "loser": f"{number}-1.png", "caption": f"prompt {number}",
                     "split": "valid" if number > 5 else "train"})  # fmt: skip
    rows.append(rows[0] | {"loser": "0-0.png"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny_pipeline().save_pretrained(str(folder / "model"), safe_serialization=True)
    return folder


def test_pairs_are_encoded_once_and_a_damaged_file_is_made_again(own, tmp_path, monkeypatch):
    pipe, found = tiny_pipeline(), find_pairs(own)
    first = encode_found(pipe, found.pairs, [(64, 64), (64, 96)], tmp_path)
    assert [tuple(s.winner.shape) for s in first] == [(6, 4, 8, 8), (2, 4, 8, 12)]
    assert first[1].time_ids.tolist() == [[64, 96, 0, 0, 64, 96]] * 2
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    calls = []
    encode = pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda x: calls.append(len(x)) or encode(x))
    again = encode_found(pipe, found.pairs, [(64, 64), (64, 96)], tmp_path)
    assert [s.content() for s in again] == [s.content() for s in first]
    assert sum(calls) in (2 * 6, 2 * 2)  # one file of the two
    with pytest.raises(ValueError, match="multiples of 8"):
        encode_found(pipe, found.pairs, [(60, 64)], tmp_path)


def test_the_whole_way_from_the_table_to_a_lora_that_plain_diffusers_reads(own, tmp_path):
    pipe = tiny_pipeline()
    config = DPOConfig(steps=4, batch_size=2, lr=1e-2, warmup=0, rank=2, log_every=1, patience=9, evaluate_every=1)
    options = {"sizes": [(64, 64), (64, 96)], "pictures": 2, "picture_steps": 1, "config": config}
    brightness = lambda images, prompts: images.mean((1, 2, 3))  # noqa: E731
    report = align_own(pipe, own / "pairs.jsonl", tmp_path, judge=brightness, **options)
    assert (report.pairs, report.held_out, report.steps) == (6, 2, 4)
    assert report.left_out == {"with two equal pictures": 1}
    assert 0 <= report.win_low <= report.win_rate <= report.win_high <= 1
    assert 0 <= report.accuracy_low <= report.accuracy <= report.accuracy_high <= 1
    assert any("decide little" in line for line in report.lines)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("encoded", "lora", "before", "after", "before_after.png", "report.json", "report.txt", "log.jsonl"),
        "checkpoint.safetensors",
    }
    assert json.loads((tmp_path / "report.json").read_text())["steps"] == 4
    plain = tiny_pipeline()
    plain.load_lora_weights(str(tmp_path / "lora"))
    assert all(torch.isfinite(p).all() for p in plain.unet.parameters())
    before = report.lora.read_bytes()
    assert align_own(pipe, own / "pairs.jsonl", tmp_path, **options).log == report.log  # nothing is trained again
    assert report.lora.read_bytes() == before


def test_the_command_checks_trains_and_says_what_is_wrong_in_one_line(own, tmp_path, capsys):
    assert main(["dpo", str(own / "pairs.jsonl"), "--check"]) == 0
    assert "9 pairs, 8 prompts" in capsys.readouterr().out
    table, out = str(own / "pairs.jsonl"), str(tmp_path / "out")
    sets = [w for word in ("steps=2", "batch_size=2", "rank=2", "log_every=1") for w in ("--set", word)]
    sets += ["--set", "evaluate_every=1", "--set", "save_every=1"]
    command = ["dpo", table, "--tier", "cpu", "--model", str(own / "model"), "--out", out, "--pictures", "1", *sets]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "6 pairs trained 2 steps; 2 pairs held out." in said and "load_lora_weights" in said
    assert main([*command, "--set", "stepz=1"]) == 2
    assert main(["dpo", str(tmp_path / "none.csv")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and all(line.startswith("labkit dpo: ") for line in errors)


def test_what_the_command_is_given_is_read_before_anything_is_trained(own, tmp_path, capsys):
    (tmp_path / "none.txt").write_text("\n \n")
    command = ["dpo", str(own / "pairs.jsonl"), "--tier", "cpu", "--model", str(own / "model")]
    for words, said in (
        (["--pictures", "0"], "pictures is 0, expected at least 1"),
        (["--prompts", str(tmp_path / "none.txt")], "no prompts to draw: write at least one"),
    ):
        assert main([*command, "--out", str(tmp_path / "out"), *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "example"),
    [("steps=many", "steps=200"), ("steps=2.5", "steps=200"), ("t_window=5", r"t_window=\[0, 1000\]"),
     ("checkpointing=maybe", "checkpointing=False"), ("lr=quick", "lr=0.0001"), ("precision=16", "precision=fp32"),
     ("micro_batch=all", "micro_batch=2"), ("schedule=[", "schedule=constant")],
)  # fmt: skip
def test_a_setting_of_another_kind_is_answered_with_an_example(word, example):
    with pytest.raises(ValueError, match=f"--set .*: expected a value such as {example}"):
        settings([word])
    right = ["steps=2", "lr=1e-5", "t_window=[0, 500]", "checkpointing=true", "micro_batch=1", "clip=1"]
    config = DPOConfig(**settings(right))
    assert (config.steps, config.lr, config.t_window, config.checkpointing, config.micro_batch, config.clip) == (
        2, 1e-5, (0, 500), True, 1, 1.0,
    )  # fmt: skip
