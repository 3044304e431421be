"""The race on photographs: prompts from a file, entries in a folder, processes that share the work."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from processes import meet, run_apart
from tiny_models import tiny_pipeline

from labkit.cli import main
from labkit.dpo.scorers import Scorer
from labkit.survey import ArenaSettings, BudgetError, Policy
from labkit.survey.arena import METHODS
from labkit.survey.sweep import Race, SweepError, ranked, read_prompts, split_prompts, sweep, table

SMALL = ArenaSettings(
    steps=3, prompts=2, group=2, lr=1e-2, rank=2, draws=1, trained_steps=1, k=1, precision="fp32", checks=1,
    candidates=2, batch=2,
)  # fmt: skip
RED = Scorer("red/1", lambda images, prompts: 10 * images[:, 0].mean((1, 2)))
BLUE = Scorer("blue/1", lambda images, prompts: 10 * images[:, 2].mean((1, 2)))
PROMPTS = ["a red hat", "a blue hat", "a green hat", "a hat", "two hats"]


def make_race(**changes):
    train, test = split_prompts(PROMPTS, 2)
    return replace(Race(tiny_pipeline(), train, test, RED, {"blue": BLUE}, 400.0, SMALL), **changes)


# ---- prompts ---------------------------------------------------------------------------------------------------------


def test_parti_prompts_are_read_by_their_column_and_each_once(tmp_path):
    file = tmp_path / "PartiPrompts.tsv"
    file.write_text(
        "\ufeffPrompt\tCategory\tChallenge\tNote\n"
        'a "red" hat, worn\tArts\tBasic\t\n'
        "a blue hat\tArts\tBasic\t\n\tArts\tBasic\t\na blue hat\tPeople\tBasic\tagain\n",
        encoding="utf-8",
    )
    assert read_prompts(file) == ['a "red" hat, worn', "a blue hat"]


def test_a_text_file_has_one_prompt_a_line_and_a_table_of_commas_is_one_too(tmp_path):
    (tmp_path / "p.txt").write_text("a hat\n\n  a cat \n", encoding="utf-8")
    (tmp_path / "p.csv").write_text('id,Caption\n1,"a hat, red"\n', encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ["a hat", "a cat"]
    assert read_prompts(tmp_path / "p.csv") == ["a hat, red"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.tsv", "Category\tNote\nArts\t\n", "has columns category, note: expected one of prompt"),
        ("p.tsv", "Prompt\n\n", "holds no prompts"),
        ("p.txt", "\n", "holds no prompts"),
        ("p.csv", "", "has columns none"),
    ],
)
def test_a_file_without_prompts_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(SweepError, match=message):
        read_prompts(tmp_path / name)


def test_held_out_prompts_are_always_the_same_and_never_train():
    train, test = split_prompts(PROMPTS, 2)
    assert (train, test) == split_prompts(PROMPTS, 2)
    assert len(test) == 2 and set(train) | set(test) == set(PROMPTS) and not set(train) & set(test)
    for wrong in (0, 5, 9):
        with pytest.raises(SweepError, match=r"expected 1 \.\. 4"):
            split_prompts(PROMPTS, wrong)


# ---- entries ---------------------------------------------------------------------------------------------------------


def test_entries_are_made_once_and_compared_with_the_base_of_their_seed(tmp_path):
    said, race = [], make_race()
    found = sweep(race, ["draft", "best_of_n"], [0, 1], tmp_path, say=said.append)
    assert len(said) == 6 and {(one["name"], one["seed"]) for one in found} == {
        (name, seed) for name in ("base", "draft", "best_of_n") for seed in (0, 1)
    }
    assert sweep(race, ["draft", "best_of_n"], [0, 1], tmp_path, say=said.append) == found and len(said) == 6
    stored = {name: json.loads((tmp_path / f"{name}-1.json").read_text("utf-8")) for name in ("draft", "base")}
    gap = [a - b for a, b in zip(stored["draft"]["scores"]["blue"], stored["base"]["scores"]["blue"], strict=True)]
    draft = next(one for one in found if one["name"] == "draft" and one["seed"] == 1)
    assert draft["gain"]["blue"] == pytest.approx(sum(gap) / 2) and draft["wins"]["blue"] == sum(g > 0 for g in gap) / 2
    assert 0 < draft["nfe"] <= 400 and draft["seen"] == "gradient" and draft["gain"]["reward"] > 0
    search = next(one for one in found if one["name"] == "best_of_n" and one["seed"] == 1)
    assert search["nfe"] == 0 and search["per_image"] > 2 * draft["per_image"]
    assert [one["gain"]["blue"] for one in found] == sorted((one["gain"]["blue"] for one in found), reverse=True)
    with Image.open(tmp_path / "draft-1.png") as sheet:
        assert sheet.size == (2 * 64, 64)
    assert len(table(found)) == 7 and "best_of_n" in "\n".join(table(found))


def test_a_folder_of_another_race_and_a_damaged_entry_are_refused(tmp_path):
    sweep(make_race(), [], [0], tmp_path, say=lambda line: None)
    with pytest.raises(SweepError, match=r"another race \(nfe, reward differ\)"):
        sweep(make_race(nfe=500.0, reward=BLUE), [], [0], tmp_path)
    (tmp_path / "base-0.json").write_text('{"name": "base"', encoding="utf-8")
    with pytest.raises(SweepError, match="delete it, and it is made again"):
        sweep(make_race(), [], [0], tmp_path)


def test_names_and_budgets_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(SweepError, match="no contender 'ppo'"):
        sweep(make_race(), ["ppo"], [0], tmp_path)
    with pytest.raises(SweepError, match="dpo is not trained by processes together"):
        sweep(make_race(together=True), ["draft", "dpo"], [0], tmp_path)
    with pytest.raises(BudgetError, match=r"one update needs \d+"):
        sweep(make_race(nfe=5.0), ["raft"], [0], tmp_path, say=lambda line: None)
    failing = Scorer("nan/1", lambda images, prompts: torch.full((len(images),), math.nan))
    with pytest.raises(ValueError, match="2 scores are not finite"):
        sweep(make_race(reward=failing), ["raft"], [1], tmp_path / "nan", say=lambda line: None)


def test_without_a_base_there_is_nothing_to_rank():
    lone = {"name": "raft", "seed": 3, "scores": {"reward": [1.0]}}
    assert ranked([lone]) == [] and table([]) == ["no entries beside a base yet"]


def test_processes_of_accelerate_launch_share_the_entries(tmp_path, monkeypatch):
    """RANK and WORLD_SIZE are all that `accelerate launch` tells them here; each makes every second one."""
    made = []
    for process in ("0", "1"):
        monkeypatch.setenv("RANK", process)
        monkeypatch.setenv("WORLD_SIZE", "2")
        folder = tmp_path / process  # both begin with nothing
        sweep(make_race(), ["raft", "nft"], [0], folder, say=lambda line: None)
        made.append({path.name for path in folder.glob("*.json")})
    assert made == [{"base-0.json", "nft-0.json"}, {"raft-0.json"}]


# ---- several processes that train together ---------------------------------------------------------------------------


def trained_by_two(rank, folder, name, prompts):
    meet(rank, folder)
    torch.save(weights(name, prompts=prompts), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def weights(name, prompts):
    settings = replace(SMALL, prompts=prompts)
    with Policy(tiny_pipeline(), PROMPTS, RED.function, seed=5, settings=settings) as policy:
        log = policy.run(METHODS[name], 2, name=name)
        return {**policy.state(), "nfe": torch.tensor(log[-1]["nfe"]), "queries": torch.tensor(log[-1]["queries"])}


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
@pytest.mark.parametrize("name", ["draft", "raft", "rwr", "ddpo", "nft"])
def test_two_processes_train_one_policy(tmp_path, name):
    """Both end with the same weights and charge for both, and with those of one process with twice the prompts: draws
    belong to rows, and what is normalised over an update is normalised over all processes."""
    assert run_apart(trained_by_two, (0, tmp_path, name, 1), (1, tmp_path, name, 1)) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    alone = weights(name, prompts=2)
    assert float(first["nfe"]) == pytest.approx(float(alone["nfe"])) and first["queries"] == alone["queries"]
    moved = 0
    for key in set(alone) - {"nfe", "queries"}:
        # AdamW's first step is lr * sign: where a gradient is nearly 0, rounding decides its sign
        assert float(((first[key] - alone[key]).abs() < 1e-3).float().mean()) > 0.98, key
        moved += int(bool(first[key].any()))
    assert moved > 5


# ---- the command -----------------------------------------------------------------------------------------------------

TINY = ["--set", "steps=3", "--set", "guidance_scale=1", "--set", "prompts=1", "--set", "group=2", "--set", "draws=1"]


def test_the_command_races_and_says_that_the_reward_alone_proves_nothing(tmp_path, capsys):
    lines = ["a portrait of a happy person", "a portrait of a sad person", "a portrait of a person with red hair"]
    (tmp_path / "prompts.tsv").write_text("Prompt\n" + "\n".join(lines) + "\n", encoding="utf-8")
    command = ["arena", str(tmp_path / "prompts.tsv"), "--out", str(tmp_path / "out"), "--tier", "cpu", *TINY]
    command += ["--reward", "portraits", "--contenders", "raft", "--held-out", "1", "--nfe", "20"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "raft, seed 0: reward" in shown and "only the reward has judged" in shown and "gain over the base" in shown
    assert main(command) == 0 and "seed 0: reward" not in capsys.readouterr().out  # nothing is made again


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "speed=2"], "expected NAME=VALUE with one of steps"),
        (["--set", "steps=many"], "steps is int"),
        (["--set", "lr=fast"], "lr is a number"),
        (["--set", "group=1"], "groups of one"),
        (["--seeds", "one"], "expected whole numbers"),
        (["--held-out", "9"], "cannot be held out"),
    ],
)
def test_the_command_names_what_does_not_fit_before_it_loads_a_model(tmp_path, capsys, more, message):
    (tmp_path / "p.txt").write_text("a hat\na cat\n", encoding="utf-8")
    assert main(["arena", str(tmp_path / "p.txt"), "--tier", "cpu", "--held-out", "1", *more]) == 2
    assert message in capsys.readouterr().err
