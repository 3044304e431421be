"""Plans at scale against numbers computed by hand, the page that prints them, and slices of pairs over processes."""

import re
from pathlib import Path

import pytest
import torch
from processes import meet, run_apart
from tiny_models import tiny_pipeline

from labkit import cli
from labkit.dpo import DPOConfig, DPOTrainer, dpo
from labkit.dpo.scale import KNOBS, Plan, tables
from labkit.dpo.scorers import sharpness, warmth
from labkit.dpo.slices import make_slices, read_slices
from labkit.models.sizing import COSTS, counted

DOCS = Path(__file__).resolve().parents[1] / "docs"


# ---- the plan ------------------------------------------------------------------------------------------------------


def test_a_plan_is_the_sum_that_one_does_by_hand():
    """SD 1.5: 1.607 TFLOP a guided step, 2.515 to decode, 0.335 to score, 5.173 to train on a pair once."""
    plan = Plan(pairs=1_000_000, gpus=8, gpu="A100", candidates=8, sampler_steps=20, epochs=2, reached=0.35)
    assert plan.tflop == pytest.approx({"generate": 277.24, "score": 2.68, "encode": 0.0, "train": 10.346})
    speed = 0.35 * 312 * 3600  # TFLOP an hour
    assert plan.gpu_hours["generate"] == pytest.approx(277.24e6 / speed) == pytest.approx(705.2, abs=0.1)
    assert plan.days == pytest.approx((277.24e6 + 2.68e6 + 10.346e6) / speed / 8 / 24) == pytest.approx(3.85, abs=0.01)
    assert plan.disk_gb == pytest.approx({"candidates": 524.288, "pairs": 131.072})  # 4 x 64 x 64 numbers of 4 bytes
    assert plan.states_gb == pytest.approx(236.544) and plan.kept_gb == pytest.approx(2.36544)  # 77 x 768 x 4 bytes
    assert Plan(prompts=1000).states_gb == Plan(prompts=1000).kept_gb == pytest.approx(0.236544)


def test_the_dominating_knob_is_the_one_that_saves_most_and_there_are_runs_where_it_is_another():
    saved = Plan().saved
    assert list(saved)[0] == "candidates" and set(saved) == set(KNOBS)
    assert saved["candidates"] == pytest.approx((277.24 + 2.68) / 2 / 290.266)
    assert saved["sampler_steps"] == pytest.approx(8 * 10 * 1.607 / 290.266) == pytest.approx(saved["guidance"])
    assert saved["epochs"] == pytest.approx(5.173 / 290.266)
    assert Plan(candidates=2).saved["candidates"] == 0  # one has nothing to be compared with
    assert list(Plan(candidates=2, sampler_steps=4, epochs=20).saved)[0] == "epochs"
    existing = Plan(pictures=True)
    assert existing.tflop == pytest.approx({"generate": 0, "score": 0, "encode": 2.234, "train": 10.346})
    assert existing.disk_gb["candidates"] == 0 and list(existing.saved)[0] == "epochs"


def test_a_small_gpu_recomputes_activations_and_pays_for_it():
    large, small = Plan(model="sdxl", gpu="H200"), Plan(model="sdxl", gpu="A100")
    assert not large.recomputed and small.recomputed
    assert small.tflop["train"] / large.tflop["train"] == pytest.approx(52.854 / 42.6)


def test_the_recorded_costs_of_encoding_and_scoring_are_what_the_full_layouts_count():
    """A CLIP ViT-H/14 of 986 million weights in half precision; its image tower does 0.335 TFLOP for a picture."""
    for key in (("sd15", "encode"), ("pickscore", "score")):
        assert counted(*key) == COSTS[key]
    assert COSTS["pickscore", "score"].fixed_gb == pytest.approx(2 * 0.986, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "A9"}, "gpu is 'A9', expected one of T4"),
        ({"model": "flux"}, "model is 'flux'"),
        ({"gpus": 0}, "gpus is 0, expected a positive"),
        ({"candidates": 1}, "candidates is 1, expected 2"),
        ({"reached": 1.2}, "up to 1"),
        ({"pairs": 10, "prompts": 11}, "prompts is 11"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Plan(**options)


def test_the_command_prints_the_plan(capsys):
    assert cli.main(["plan", "--pairs", "2e5", "--gpus", "4", "--gpu", "H100", "--prompts", "5000"]) == 0
    plan, out = Plan(pairs=200_000, gpus=4, gpu="H100", prompts=5000), capsys.readouterr().out
    assert tables(plan) in out and f"4 x H100: {plan.days:.1f} days" in out and "assumed, not measured" in out
    assert cli.main(["plan", "--model", "sdxl", "--gpu", "T4"]) == 2
    assert "train with sdxl needs" in capsys.readouterr().err


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_page_prints_the_numbers_of_the_function(lang):
    page = (DOCS / f"scale.{lang}.md").read_text("utf-8")
    shown = re.findall(r"<!-- plan (\w+) -->\n(.*?)\n<!-- /plan -->", page, re.S)
    plans = {"made": Plan(), "existing": Plan(pictures=True)}
    assert [name for name, _ in shown] == list(plans)
    for name, text in shown:
        assert text == tables(plans[name], lang), name
    plan, disk = Plan(), Plan().disk_gb
    numbers = [
        f"{plan.days:.1f}", f"{sum(plan.gpu_hours.values()):,.0f}", f"{disk['pairs']:,.0f}",
        f"{disk['candidates']:,.0f}", f"{plan.states_gb:,.0f}", f"{plan.kept_gb:.1f}", f"{plan.reached:.0%}",
        f"{Plan(reached=0.2).days:.1f}", f"{Plan(candidates=4).days:.1f}", f"{Plan(gpu='H100').days:.1f}",
        f"{Plan(model='sdxl').days:.0f}", f"{Plan(pictures=True).days * 24:.0f}",
    ]  # fmt: skip
    prose = re.sub(r"<!-- plan.*?/plan -->", "", page, flags=re.S)
    assert [number for number in numbers if number not in prose] == []


# ---- slices of pairs -----------------------------------------------------------------------------------------------

PROMPTS = [f"prompt {i}" for i in range(5)]
OPTIONS = {"scorers": [warmth(), sharpness()], "seed": 3, "size": 2, "steps": 1, "guidance_scale": 1.0}


def make_with_the_others(rank, folder):
    meet(rank, folder)
    make_slices(tiny_pipeline(), PROMPTS, 3, folder / "two", **OPTIONS)
    assert len(read_slices(folder / "two")) == 5
    torch.distributed.destroy_process_group()


def test_slices_are_the_same_for_any_number_of_processes_and_go_on_after_a_stop(tmp_path):
    assert run_apart(make_with_the_others, (0, tmp_path), (1, tmp_path)) == [0, 0]
    pipe, made = tiny_pipeline(), []
    make_slices(pipe, PROMPTS, 3, tmp_path / "one", **OPTIONS)
    one, two = read_slices(tmp_path / "one"), read_slices(tmp_path / "two")
    assert one.prompts == two.prompts == tuple(PROMPTS) and one.content() == two.content()
    assert bool((one.margin > 0).all()) and not torch.equal(one.winner[0], one.winner[2])
    (tmp_path / "one" / "slice-000001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 slices .first: slice-000001"):
        read_slices(tmp_path / "one")
    handle = pipe.unet.register_forward_hook(lambda *_: made.append(1))
    make_slices(pipe, PROMPTS, 3, tmp_path / "one", **OPTIONS)
    handle.remove()
    assert len(made) == 1 and read_slices(tmp_path / "one").content() == two.content()
    with pytest.raises(FileExistsError, match="scorers differ"):
        make_slices(pipe, PROMPTS, 3, tmp_path / "one", **OPTIONS | {"scorers": [warmth()]})
    config = DPOConfig(steps=1, batch_size=2, rank=2, log_every=1)
    with DPOTrainer(pipe, one, config, [dpo(2500.0)]) as trainer:  # of one folder's pairs: its hashes fit
        assert trainer.run()[0]["dpo"] == pytest.approx(0.6931, abs=1e-4)


def test_prompts_beyond_those_that_are_kept_are_encoded_in_each_step(tmp_path):
    """The same numbers, up to the rounding of another batch of prompts."""
    make_slices(tiny_pipeline(), PROMPTS, 3, tmp_path, **OPTIONS)
    losses = []
    for kept in (5, 4):
        config = DPOConfig(steps=3, batch_size=2, rank=2, log_every=1, lr=1e-3, warmup=0, kept_prompts=kept)
        with DPOTrainer(tiny_pipeline(), read_slices(tmp_path), config, [dpo(200.0)]) as trainer:
            assert (trainer.conditions is None) == (kept == 4)
            losses.append([record["loss"] for record in trainer.run()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][-1] != pytest.approx(losses[0][0], rel=1e-3)
