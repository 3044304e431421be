"""Own pairs: tables and folders as people and data sets have them, and the whole way to a LoRA and its report."""

import csv
import json
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_pipeline

import labkit.dpo.own as module
from labkit.checkpoint import CheckpointError
from labkit.cli import main
from labkit.diffusion import AdapterError, encode_prompts, save_lora
from labkit.diffusion.lora_files import read_lora
from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, dpo
from labkit.dpo.command import OPTIONS, of_start, settings
from labkit.dpo.folders import Cell, FoundPairs, PairsError, _row_group, find_pairs, read_picture
from labkit.dpo.own import _split, align_own, encode_found, nearest, size_condition
from labkit.dpo.shards import Shards
from labkit.errors import LabkitWarning, in_options
from labkit.images import read_levels


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
    won = [(p.prompt, [read_picture(side, p.where) for side in (p.winner, p.loser)]) for p in found.pairs]
    both = [as_bytes(0), as_bytes(1)]
    assert won == [("first wins", both), ("second wins", both[::-1])]
    assert found.left_out == {"ties": 1, "without a label": 1}
    image = {"bytes": as_bytes(5), "path": None}  # as the datasets library stores pictures
    pq.write_table(pa.Table.from_pylist([{"winner": image, "loser": image, "text": "x"}]), tmp_path / "one.parquet")
    pair = find_pairs(tmp_path / "one.parquet").pairs[0]
    assert isinstance(pair.winner, Cell) and read_picture(pair.winner, pair.where) == as_bytes(5)  # read when wanted
    pq.write_table(pa.Table.from_pylist([{"winner": image, "loser": image, "text": "y"}] * 2), tmp_path / "one.parquet")
    _row_group.cache_clear()
    with pytest.raises(PairsError, match="row 1 cannot be read any more.*has changed"):
        read_picture(pair.winner, pair.where)


def test_pictures_in_parquet_are_read_a_row_group_at_a_time_and_an_empty_cell_names_its_row(tmp_path, monkeypatch):
    rows = [{"winner": as_bytes(2 * i), "loser": as_bytes(2 * i + 1), "caption": f"p{i}"} for i in range(6)]
    rows[5]["loser"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=2)
    groups = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, columns: groups.append((group, tuple(columns))) or real(self, group, columns=columns),
    )  # noqa: E501
    found = find_pairs(tmp_path)
    assert {columns for _, columns in groups} == {("caption",)}
    groups.clear()
    for i, pair in enumerate(found.pairs[:5]):
        assert read_picture(pair.winner, pair.where) == as_bytes(2 * i)
        assert read_picture(pair.loser, pair.where) == as_bytes(2 * i + 1)
    assert groups == [(group, ("winner", "loser")) for group in range(3)]
    with pytest.raises(PairsError, match="row 6: a picture is NoneType"):
        read_picture(found.pairs[5].loser, found.pairs[5].where)


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
        ('{"winner": "0.png", "loser": "1.png", "caption": NaN}', "row 1 has no caption"),
        ('{"winner": "0.png", "loser": "1.png", "caption": ["a"]}', "row 1 has a caption that is no text"),
        ('{"winner": "0.png", "loser": "1.png", "caption": "a", "split": "trian"}', "split is 'trian'"),
        ('{"winner": "0.png", "loser": "1.png", "caption": "a", "margin": Infinity}', "margin is inf"),
        ('{"image_path": ["0.png", "1.png"], "rank": [null, 1], "prompt": "a"}', "1 without a label"),
        ('{"image_path": ["0.png", "1.png"], "prompt": "a"}', "1 without a label"),
        ('{"image_path": ["0.png", "1.png"], "rank": [1], "prompt": "a"}', "2 pictures but 1 preferences"),
    ],
)
def test_what_is_wrong_with_a_table_names_the_row(folder, text, match):
    (folder / "pairs.jsonl").write_text(text)
    with pytest.raises(PairsError, match=match) as error:
        find_pairs(folder)
    assert "\n" not in str(error.value) and "pairs.jsonl" in str(error.value) or "could train" in str(error.value)


def test_a_csv_of_another_country_and_one_with_a_comma_too_many(folder):
    (folder / "pairs.csv").write_text("winner;loser;caption\n0.png;1.png;a, b\n")
    assert names(find_pairs(folder)) == [("a, b", "0.png", "1.png")]
    (folder / "pairs.csv").write_text("winner,loser,caption,\n0.png,1.png,a,\n")  # a spreadsheet's empty last column
    assert names(find_pairs(folder)) == [("a", "0.png", "1.png")]
    (folder / "pairs.csv").write_text("winner,loser,caption\n0.png,1.png,a cat, sitting\n")
    with pytest.raises(PairsError, match="row 1 has more cells than the header"):
        find_pairs(folder)
    (folder / "pairs.csv").write_text("winner,winner,loser,caption\n0.png,1.png,2.png,a cat\n")
    with pytest.raises(PairsError, match="has the column winner twice"):
        find_pairs(folder)
    (folder / "pairs.csv").write_text("jpg_0,jpg_1,label_0,caption\n0.png,1.png,yes,a cat\n")
    with pytest.raises(PairsError, match="row 1: label_0 is 'yes', expected 1"):
        find_pairs(folder)
    (folder / "pairs.csv").write_bytes("winner,loser,caption\n0.png,1.png,猫\n".encode("cp932"))
    with pytest.raises(PairsError, match="is not in UTF-8: save it as"):
        find_pairs(folder)


def test_check_names_every_bad_row_and_counts_what_teaches_nothing(folder, capsys):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
    rows = [("0.png", "1.png", "a"), ("0.png", "1.png", "a"), ("1.png", "0.png", "a"), ("2.png", "2.png", "b"),
            ("2.png", "9.png", "c"), ("cut.png", "3.png", ""), ("2.png", "3.png", "d")]  # fmt: skip
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("winner", "loser", "caption"), *rows])
    assert main(["dpo", str(folder), "--check"]) == 1
    said = capsys.readouterr()
    assert "6 pairs, 4 prompts" in said.out and "1 pairs have an empty caption" in said.out
    assert "1 pairs have two equal pictures" in said.out and "1 pairs repeat another" in said.out
    assert "1 pairs occur in both orders" in said.out
    assert "row 5: no picture" in said.err and "cut.png" in said.err and len(said.err.strip().splitlines()) == 2
    (folder / "pairs.csv").write_text("winner,loser,caption\n9.png,1.png,a\n0.png,9.png,a\n")
    assert main(["dpo", str(folder), "--check"]) == 2
    first, second, third = capsys.readouterr().err.strip().splitlines()
    assert "row 1: no picture" in first and "row 2: no picture" in second and "none of 2 rows can be used" in third
    (folder / "pairs.csv").write_text("winner,loser,caption\n")
    assert main(["dpo", str(folder), "--check"]) == 2
    assert "it is empty" in capsys.readouterr().err
    (folder / "pairs.csv").write_text("winner,loser,caption\n" + "8.png,9.png,a\n" * 30)
    assert main(["dpo", str(folder), "--check"]) == 2
    assert "none of 30 rows can be used" in capsys.readouterr().err


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


def test_shards_are_the_tensor_that_they_hold(tmp_path):
    whole = torch.randn(70, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for part, file in zip(whole.split([32, 32, 6]), files, strict=True):
        save_file({"winner": part.contiguous(), "loser": -part.contiguous()}, str(file))
    winner, loser = (Shards(files, side) for side in ("winner", "loser"))
    assert (winner.shape, len(winner), winner.dtype, winner.ndim) == (whole.shape, 70, torch.float32, 4)
    for index in ([0], [69, 0, 31, 32, 33, 0], torch.tensor([5, 64]), slice(30, 66), slice(None), [], -1, 40):
        want = whole[index.tolist() if isinstance(index, torch.Tensor) else index]
        assert torch.equal(winner[index], want) and torch.equal(loser[index], -want)
    with pytest.raises(IndexError):
        winner[[70]]
    prompts = tuple(map(str, range(70)))
    on_disk, held = PreferencePairs(prompts, winner, loser), PreferencePairs(prompts, whole, -whole)
    assert on_disk.content() == held.content()  # a run resumes whichever way its pairs are held
    assert torch.equal(on_disk.select([3, 40]).winner, whole[[3, 40]])
    with pytest.raises(ValueError, match="same image in 70 pairs"):
        PreferencePairs(prompts, winner, winner)
    save_file({"winner": whole[:2] * torch.nan, "loser": whole[:2]}, str(files[2]))
    with pytest.raises(ValueError, match="winner latents of 2 pairs are not finite .first: pair 64"):
        PreferencePairs(prompts[:66], *(Shards(files, side) for side in ("winner", "loser")))
    save_file({"winner": whole[:2, :2].contiguous()}, str(files[2]))
    with pytest.raises(CheckpointError, match="2.safetensors holds latents of another shape"):
        Shards(files, "winner")
    files[1].write_bytes(b"half")
    with pytest.raises(CheckpointError, match="1.safetensors cannot be read"):
        Shards(files, "winner")


def test_training_from_shards_is_training_from_memory(own, tmp_path):
    found = [pair for pair in find_pairs(own).pairs if not pair.held_out][:6]
    shards = encode_found(tiny_pipeline(), found, [(64, 64)], tmp_path)[0]
    held = replace(shards, winner=shards.winner[:], loser=shards.loser[:])
    states = []
    for pairs in (shards, held):
        with DPOTrainer(tiny_pipeline(), pairs, DPOConfig(steps=3, batch_size=2, rank=2), [dpo(2500.0)]) as trainer:
            trainer.run()
            states.append({name: p.detach().clone() for name, p in trainer.parameters.items()})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


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
    assert all(isinstance(s.winner, Shards) for s in again)
    assert [s.content() for s in again] == [s.content() for s in first]
    assert sum(calls) in (2 * 6, 2 * 2)  # one file of the two
    with pytest.raises(ValueError, match="size 64x60 .W x H. does not fit the VAE: expected multiples of 8"):
        encode_found(pipe, found.pairs, [(60, 64)], tmp_path)
    with pytest.raises(ValueError, match="safetensors is a file: give the name of a folder"):
        align_own(pipe, found, path)


def test_going_on_decodes_no_picture_unless_its_bytes_have_changed(own, tmp_path, monkeypatch):
    pipe, sizes = tiny_pipeline(), [(64, 64), (64, 96)]
    table, out = shutil.copytree(own, tmp_path / "own", ignore=shutil.ignore_patterns("model")), tmp_path / "encoded"
    counted, left_out = [Counter(), Counter()], Counter()
    first = encode_found(pipe, find_pairs(table).pairs, sizes, out, left_out=counted[0])
    decoded = []
    monkeypatch.setattr(module, "read_levels", lambda x, **options: decoded.append(x.name) or read_levels(x, **options))
    again = encode_found(pipe, find_pairs(table).pairs, sizes, out, left_out=counted[1])
    assert decoded == [] and counted[0] == counted[1] == {"with two equal pictures": 1}
    assert [s.content() for s in again] == [s.content() for s in first]
    (table / "1-0.png").write_bytes((table / "2-0.png").read_bytes())
    changed = encode_found(pipe, find_pairs(table).pairs, sizes, out)
    assert set(decoded) == {f"{n}-{side}.png" for n in (1, 2, 3, 5, 6, 7) for side in (0, 1)}  # those of one file
    torch.testing.assert_close(changed[0].winner[[0]], changed[0].winner[[1]])
    assert changed[1].content() == first[1].content()
    lines = (out / "pictures.jsonl").read_text().splitlines()
    (out / "pictures.jsonl").write_text("\n".join(lines[1:-1]) + "\n" + lines[-1][:30])  # a crash within a line
    decoded.clear()
    half = encode_found(pipe, find_pairs(table).pairs, sizes, out, left_out=left_out)
    assert [s.content() for s in half] == [s.content() for s in changed] and set(decoded) == {
        "0-0.png", "0-1.png", "1-0.png", "1-1.png"}  # fmt: skip
    decoded.clear()
    encode_found(pipe, find_pairs(table).pairs, sizes, out)
    assert decoded == []


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
    plain.load_lora_weights(str(tmp_path / "lora"), weight_name="pytorch_lora_weights.safetensors")
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
    wrong = [["--set", "stepz=1"], ["--set", "steps=many"], ["--start", str(tmp_path / "no")]]
    for more in wrong:
        assert main([*command, *more]) == 2, more
    assert main(["dpo", str(tmp_path / "none.csv")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == len(wrong) + 1 and all(line.startswith("labkit dpo: ") for line in errors)


def test_advice_names_the_options_of_the_command(folder, capsys):
    Image.fromarray(np.random.default_rng(0).random((8, 8), dtype=np.float32)).save(folder / "f.tif")
    (folder / "pairs.csv").write_text("winner,loser,caption\nf.tif,1.png,a\n")
    assert main(["dpo", str(folder), "--check"]) == 1
    said = capsys.readouterr().err
    assert said.endswith("part of [-1, 1]: save it with 8 or 16 bits\n")
    asked = ["measure", str(folder), str(folder), "--kid"]
    assert main(asked) == 2 and "--value-range 0 1" in capsys.readouterr().err
    for told, want in (
        ("no GPU: use tier='cpu', or device='cpu' to run slowly", "no GPU: use --tier cpu"),
        ("put a copy there or give folder=", "put a copy there or give --model"),
        ('scaled: use precision="bf16" or "fp32"', "scaled: use --set precision=bf16"),
        ("a folder=x stays", "a folder=x stays"),
    ):
        assert in_options(told, OPTIONS).startswith(want)


def test_captions_that_are_cut_are_one_line_and_not_all_of_their_tokens(own, capfd):
    pipe, long = tiny_pipeline(), ["word " * 40, "short", "other " * 40]
    match = "reads 16 tokens of a prompt, the rest is cut: 'word word.* and 1 more"
    with pytest.warns(LabkitWarning, match=match) as said:
        encode_prompts(pipe, long)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompts(pipe, ["short"])
    told = capfd.readouterr()
    assert not told.err and not told.out


def test_pairs_without_captions_are_held_out_one_by_one(own):
    found = find_pairs(own)
    bare = FoundPairs(tuple(replace(pair, prompt="", held_out=False) for pair in found.pairs * 20))
    train, held, _ = _split(bare, 0.3)
    assert 0.15 < len(held) / len(bare) < 0.45 and len(train) + len(held) == len(bare)


def test_a_lora_that_exists_brings_its_rank_and_its_place(own, tmp_path):
    """`--start` with a LoRA of another rank, as diffusers' own script would have saved it."""
    pipe = tiny_pipeline()
    config = DPOConfig(steps=2, batch_size=2, rank=3, targets="all", lr=1e-2)
    found = [pair for pair in find_pairs(own).pairs if not pair.held_out][:4]
    pairs = encode_found(pipe, found, [(64, 64)], tmp_path / "encoded")
    with DPOTrainer(pipe, pairs, config, [dpo(2500.0)]) as trainer:
        trainer.run()
        start = save_lora(tmp_path, pipe, "dpo")
    assert of_start(start) == {"rank": 3, "targets": "all", "model": "unet"}
    with pytest.raises(AdapterError, match="its rank is 3, this run's 2"):
        DPOTrainer(pipe, pairs, DPOConfig(rank=2, targets="all"), [dpo(2500.0)], start=start)
    command = ["dpo", str(own / "pairs.jsonl"), "--tier", "cpu", "--model", str(own / "model"), "--pictures", "1"]
    sets = [w for word in ("steps=1", "batch_size=2", "log_every=1") for w in ("--set", word)]
    out = tmp_path / "more"
    assert main([*command, *sets, "--out", str(out), "--start", str(start)]) == 0
    assert of_start(out / "lora") == of_start(start)
    state, models = {}, read_lora(start)[0]
    for key, value in models["unet"].items():  # the same file as kohya's trainer writes it, without the convolutions
        layer, _, side = key.removesuffix(".weight").rpartition(".")
        if value.ndim == 2 and "attentions" in layer:
            theirs = f"lora_unet_{layer.replace('.', '_')}"
            state[f"{theirs}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value
            state[f"{theirs}.alpha"] = torch.tensor(1.5)
    save_file(state, str(tmp_path / "kohya.safetensors"))
    assert of_start(tmp_path / "kohya.safetensors") == of_start(start)
    config = DPOConfig(steps=1, batch_size=2, rank=3, targets="all")
    with DPOTrainer(pipe, pairs, config, [dpo(2500.0)], start=tmp_path / "kohya.safetensors") as trainer:
        mine = {key.replace(".dpo.weight", ".weight"): p for key, p in trainer.parameters.items()}
        assert len(mine) == len([key for key in state if "lora_" in key.split(".")[1]]) > 0
        for key, p in mine.items():
            torch.testing.assert_close(p.data, models["unet"][key] * (0.5 if ".lora_B" in key else 1.0))
        trainer.run()


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
