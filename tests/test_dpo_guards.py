"""What a run refuses, warns of and stops at: other contents, damaged files, a taken folder, a loss that runs away."""

import json
import math
import os
import sys
import types
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from processes import run_apart
from safetensors.torch import save_file
from test_dpo_trainer import QUICK, SAVING, assert_same, make_pairs, run, swapped
from tiny_models import tiny_pipeline, tiny_sdxl_pipeline

from labkit import checkpoint
from labkit.checkpoint import CheckpointError, lock, locked, read_checkpoint, save_checkpoint, trim_log
from labkit.diffusion import AdapterError, adapter_names, add_lora, save_lora
from labkit.diffusion.lora_files import adapted_models, peft_state
from labkit.dpo import DPOTrainer, PreferencePairs, dpo
from labkit.dpo.command import of_start
from labkit.dpo.guard import DivergenceError, LossScale, check_spread
from labkit.errors import LabkitWarning
from labkit.models.sd_layout import build_sdxl
from labkit.pairwise import preset


def styled(scale=1.0, seed=1):
    """A pipeline with somebody's style already on."""
    pipe = tiny_pipeline()
    for p in add_lora(pipe.unet, "style", seed=seed, rank=2):
        p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
    for layer in pipe.unet.modules():
        if hasattr(layer, "scaling") and "style" in layer.scaling:
            layer.scaling["style"] = scale
    return pipe


# ---- resuming ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with two steps of a run, beside a style."""
    folder = tmp_path_factory.mktemp("begun")
    run(replace(SAVING, steps=2), folder=folder, pipe=styled())
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pairs": swapped(make_pairs())}, "pairs"),
        ({"pairs": replace(make_pairs(), prompts=("other",) * 7)}, "pairs"),
        ({"pairs": replace(make_pairs(), margin=None)}, "pairs"),
        ({"pipe": tiny_pipeline}, "adapters of unet"),
        ({"pipe": lambda: styled(0.5)}, "adapters of unet"),
        ({"pipe": lambda: styled(seed=2)}, "adapters of unet"),
    ],
    ids=["swapped", "prompts", "margins", "no style", "scaled style", "other style"],
)
def test_a_run_goes_on_with_the_same_contents_only(begun, changes, named):
    make = changes.get("pipe", styled)
    pipe = make()
    before = {name: p.requires_grad for name, p in pipe.unet.named_parameters()}
    with pytest.raises(CheckpointError, match=f"differs in {named}: choose a new folder"):
        run(SAVING, folder=begun, **changes | {"pipe": pipe})
    assert {name: p.requires_grad for name, p in pipe.unet.named_parameters()} == before  # nothing is left behind
    assert not (begun / ".lock").exists()


def test_another_reference_is_another_run(tmp_path):
    config, reference = replace(SAVING, steps=2, cached_draws=0), tiny_pipeline(seed=5).unet
    run(config, folder=tmp_path, reference=reference)
    with pytest.raises(CheckpointError, match="differs in reference model"):
        run(config, folder=tmp_path)


def test_a_damaged_checkpoint_is_one_line_with_its_name(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"weight": {"a": torch.arange(100.0)}}, step=3)
    whole = path.read_bytes()
    assert read_checkpoint(path)[1] == {"step": 3}
    for content, match in (
        (whole[:-9], "checkpoint.safetensors cannot be read"),
        (whole[:40], "checkpoint.safetensors cannot be read"),
        (whole[:-1] + b"\x01", "checkpoint.safetensors has changed"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=match) as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)


def test_half_a_log_line_at_the_end_is_dropped_and_any_other_is_named(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert trim_log(log, 5) == [{"step": 1}, {"step": 2}]
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
    log.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="log.jsonl, line 2 is no record"):
        trim_log(log, 5)


def lock_or_three(folder):
    try:
        lock(folder)
    except CheckpointError as error:
        os._exit(3 if f"process {os.getppid()}" in str(error) else 4)
    os._exit(0)


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert run_apart(lock_or_three, (tmp_path,)) == [3]
    assert not list(tmp_path.iterdir())
    assert run_apart(lock_or_three, (tmp_path,)) == [0]  # and its death gave the folder free
    with locked(tmp_path):
        assert checkpoint._held


def test_a_lock_file_that_always_goes_away_is_an_error_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.samestat", lambda a, b: False)  # its owner has removed it each time
    with pytest.raises(CheckpointError, match="again and again"):
        lock(tmp_path)
    assert not checkpoint._held


# ---- input ---------------------------------------------------------------------------------------------------------


def test_captions_that_are_missing_are_counted():
    pairs = make_pairs()
    for empty in (None, float("nan")):
        with pytest.raises(ValueError, match=r"2 of 7 captions are missing \(first: pair 3\)"):
            replace(pairs, prompts=(*"abc", empty, empty, *"de"))


def test_numpy_latents_train_to_the_same_bits():
    pairs = make_pairs()
    arrays = {name: getattr(pairs, name).double().numpy() for name in ("winner", "loser", "margin")}
    same = PreferencePairs(pairs.prompts, **arrays)
    assert same.content() == pairs.content() and isinstance(same.winner, torch.Tensor)
    assert same.select(np.array([1, 3])).prompts == ("prompt 1", "prompt 0")


def test_latents_that_were_not_scaled_are_noticed():
    pairs = make_pairs()
    with pytest.warns(LabkitWarning, match="standard deviation 5.*scaling_factor"):
        check_spread(replace(pairs, winner=5.5 * pairs.winner, loser=5.5 * pairs.loser))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_spread(pairs)


# ---- while it runs -------------------------------------------------------------------------------------------------


def test_a_loss_that_runs_away_is_said_and_can_stop_the_run():
    wild = replace(QUICK, lr=0.5, steps=6)
    with pytest.warns(LabkitWarning, match="The run has diverged: lower lr .it is 0.5.") as said:
        log, _ = run(wild)
    assert len(said) == 1 and len(log) == 6
    with pytest.raises(DivergenceError, match="diverged"):
        run(replace(wild, diverged="stop"))


def test_no_gradient_collects_on_other_adapters_or_an_unfrozen_base():
    pipe = styled()
    pipe.unet.requires_grad_(True)
    pipe.text_encoder.requires_grad_(True)
    for config in (replace(QUICK, steps=1), replace(QUICK, steps=1, model="text_encoder")):
        with DPOTrainer(pipe, make_pairs(), config, [dpo(2500.0)]) as trainer:
            trainer.terms[0](trainer.pair_step([(0, 0), (1, 0)])).mean().backward()
            own = {id(p) for p in trainer.parameters.values()}
            others = [p for m in (pipe.unet, pipe.text_encoder) for p in m.parameters() if id(p) not in own]
            assert all(p.grad is None for p in others) and all(p.grad is not None for p in trainer.parameters.values())
    assert all(p.requires_grad for m in (pipe.unet, pipe.text_encoder) for p in m.parameters())


# ---- ways of training ----------------------------------------------------------------------------------------------


def test_the_cosine_schedule_ends_at_zero():
    config = replace(QUICK, steps=10, warmup=2, lr=1.0, schedule="cosine")
    with DPOTrainer(tiny_pipeline(), make_pairs(), config, [dpo(2500.0)]) as trainer:
        rates = [trainer.learning_rate(step) for step in range(1, 12)]
    assert rates[0] == 0.5 and rates[1] == rates[2] == 1.0 and rates[10] == 0.0
    assert rates[6] == pytest.approx(0.5) and all(a > b for a, b in zip(rates[2:], rates[3:], strict=False))


def test_held_out_pairs_stop_the_run_and_the_best_weights_stay(tmp_path):
    config = replace(
        QUICK, steps=12, lr=0.05, evaluate_every=1, patience=2, ema=0.5, save_every=1, diverged="warn", batch_size=2
    )
    held_out = swapped(make_pairs())  # whatever is learnt is wrong for these
    options = {"held_out": held_out, "folder": tmp_path}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabkitWarning)
        log, best = run(config, **options)
        again_log, again = run(config, **options)
    losses = [record["held_out_loss"] for record in log]
    assert len(log) < 12 and losses.index(min(losses)) == len(losses) - 3
    assert all(0 <= record["held_out_accuracy"] <= 1 for record in log)
    assert again_log == log
    assert_same(again, best)
    with pytest.raises(ValueError, match="go together"):
        run(replace(QUICK, evaluate_every=1))


def test_several_sizes_train_in_one_run_each_in_its_share():
    small, large = make_pairs(2), make_pairs(6, size=12)
    with DPOTrainer(tiny_pipeline(), [small, large], replace(QUICK, steps=8), [dpo(2500.0)]) as trainer:
        seen = []
        pair_step = trainer.pair_step
        trainer.pair_step = lambda rows: seen.append(rows) or pair_step(rows)
        log = trainer.run()
    sides = [{"small" if pair < 2 else "large" for pair, _ in rows} for rows in seen]
    assert all(len(side) == 1 for side in sides) and sides.count({"small"}) == 2
    assert sorted(pair for rows in seen for pair, epoch in rows if pair >= 2 and epoch == 0) == [2, 3, 4, 5, 6, 7]
    assert all(math.isfinite(record["loss"]) for record in log)


def test_a_lora_goes_on_from_its_file(tmp_path):
    pipe = tiny_pipeline()
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0)]) as trainer:
        trainer.run()
        path = save_lora(tmp_path, pipe, "dpo")
        expected = trainer.pair_step([(0, 0), (3, 1)]).winner_pred.detach()
    for reference, starts_at_ln_2 in (("adapter", False), ("copy", True)):
        config = replace(QUICK, reference=reference)
        with DPOTrainer(tiny_pipeline(), make_pairs(), config, [dpo(2500.0)], start=path) as trainer:
            step = trainer.pair_step([(0, 0), (3, 1)])
            assert torch.equal(step.winner_pred.detach(), expected)
            assert torch.equal(step.winner_error, step.ref_winner_error) == starts_at_ln_2
    for p in add_lora(pipe.text_encoder, "dpo", seed=0, rank=QUICK.rank):
        p.data.fill_(0.1)
    add_lora(pipe.unet, "dpo", seed=0, rank=QUICK.rank)
    with pytest.raises(AdapterError, match="is for text_encoder too, which this run would leave out"):
        both = save_lora(tmp_path / "both.safetensors", pipe, "dpo")
        DPOTrainer(tiny_pipeline(), make_pairs(), QUICK, [dpo(2500.0)], start=both)
    with pytest.raises(ValueError, match="rank and targets|lora"):
        DPOTrainer(tiny_pipeline(), make_pairs(), replace(QUICK, trainable="full", reference="copy"), [dpo(2500.0)],
                   start=path)  # fmt: skip


def test_the_loss_scale_halves_on_overflow_and_leaves_no_gradient():
    weight, scale = torch.nn.Parameter(torch.zeros(2)), LossScale()
    weight.grad = torch.tensor([2.0**16, 2.0**17])
    assert scale.unscale([weight]) and weight.grad.tolist() == [1.0, 2.0]
    weight.grad = torch.tensor([1.0, math.inf])
    assert not scale.unscale([weight]) and weight.grad is None and scale.scale == 2.0**15
    scale.good = LossScale.GROWTH - 1
    weight.grad = torch.ones(2)
    assert scale.unscale([weight]) and scale.scale == 2.0**16
    halved = 0
    with pytest.raises(DivergenceError, match='use precision="bf16"'):  # else every step would be left out in silence
        while halved < 99:
            weight.grad = torch.tensor([1.0, math.nan])
            halved += not scale.unscale([weight])
    assert (scale.scale, halved) == (1.0, 16)


def test_the_loss_scale_is_that_of_torchs_own_scaler(monkeypatch):
    """Halved on overflow, doubled after GROWTH steps, a step left out, as torch does on a CPU."""
    weight, theirs = torch.nn.Parameter(torch.zeros(1)), torch.amp.GradScaler("cpu")
    assert (theirs.get_scale(), theirs.get_growth_interval()) == (LossScale.START, LossScale.GROWTH)
    monkeypatch.setattr(LossScale, "GROWTH", 5)
    theirs.set_growth_interval(5)
    optimizer, ours, made = torch.optim.SGD([weight], lr=1.0), LossScale(), 0
    for step in range(16):
        loss = weight.sum() * (math.inf if step in (0, 1, 9) else 1.0)
        theirs.scale(loss).backward()
        scaled = weight.grad.clone()
        before = float(weight.detach())
        theirs.step(optimizer)
        theirs.update()
        stepped = float(weight.detach()) != before
        weight.grad = scaled
        assert ours.unscale([weight]) == stepped
        made += stepped
        optimizer.zero_grad()
        assert ours.scale == theirs.get_scale(), step
    assert made == 13 and ours.scale == 2.0**15


def test_half_precision_trains_with_a_scaled_loss(monkeypatch):
    overflowing, _ = run(replace(QUICK, steps=1, precision="fp16"))  # kappa 2500 at scale 65,536
    assert overflowing[0]["skipped"] == 1.0 and overflowing[0]["adapter_norm"] == 0.0
    monkeypatch.setattr(LossScale, "START", 16.0)
    log, state = run(replace(QUICK, steps=2, precision="fp16"))
    _, exact = run(replace(QUICK, steps=2))
    assert log[-1]["skipped"] == 0.0 and all(torch.isfinite(v).all() for v in state.values())
    moved = sum(float((state[k] - v).abs().sum()) for k, v in exact.items())
    assert moved < 0.1 * sum(float(v.abs().sum()) for k, v in exact.items())


def test_an_optimizer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match="needs bitsandbytes"):
        run(replace(QUICK, optimizer="adamw8bit"))


class Eight(torch.optim.AdamW):
    """What bitsandbytes' AdamW8bit keeps and how it loads it: whole steps, bytes, tables, a dictionary of them."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "state1": torch.zeros(p.shape, dtype=torch.uint8), "absmax1": torch.zeros(1)}
                    state["more"] = {"qmap1": torch.linspace(-1, 1, 256)}
                assert type(state["step"]) is int and state["state1"].dtype == torch.uint8
                state["step"] += 1
                state["state1"].add_(7)
                state["absmax1"].add_(state["more"]["qmap1"][int(state["state1"].flatten()[0])])
                p.data -= group["lr"] * (p.grad.sign() + 0.1 * state["absmax1"] + 0.01 * state["step"])

    def load_state_dict(self, loaded):
        """As bitsandbytes: what is a tensor and no byte becomes the weights' type, whole numbers too."""
        cast = lambda v: v.float() if isinstance(v, torch.Tensor) and v.dtype != torch.uint8 else v  # noqa: E731
        by_number = dict(enumerate(p for group in self.param_groups for p in group["params"]))
        for number, entry in loaded["state"].items():
            self.state[by_number[number]] = {key: cast(value) for key, value in entry.items()}


def test_eight_bit_adam_trains_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    module = types.ModuleType("bitsandbytes.optim")
    module.AdamW8bit = Eight
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    config = replace(SAVING, steps=4, optimizer="adamw8bit")
    _, whole = run(config, folder=tmp_path / "whole")
    run(replace(config, steps=2), folder=tmp_path / "parts")
    _, parts = run(config, folder=tmp_path / "parts")
    assert_same(whole, parts)
    _, other = run(replace(config, optimizer="adamw"), folder=tmp_path / "other")
    assert any(not torch.equal(other[name], value) for name, value in whole.items())


def test_both_text_encoders_of_sdxl_train_in_one_run_and_start_again_from_their_file(tmp_path):
    config = replace(QUICK, model="text_encoders", steps=2, lr=1e-2)
    pipe, pairs = build_sdxl(), make_pairs(2)
    flags = [p.requires_grad for p in pipe.text_encoder.parameters()]
    with DPOTrainer(pipe, pairs, replace(config, save_every=config.log_every), [dpo(2500.0)], folder=tmp_path) as t:
        assert {name.split(".")[0] for name in t.parameters} == {"text_encoder", "text_encoder_2"}
        first = t.pair_step([(0, 0)])
        assert torch.equal(first.winner_error, first.ref_winner_error)  # the reference is the start
        log = t.run()
        moved = {name: float(p.detach().abs().sum()) for name, p in t.parameters.items() if ".lora_B." in name}
        assert all(value > 0 for value in moved.values()) and log[-1]["adapter_norm"] > 0
        last = t.pair_step([(0, 0)])
        assert not torch.equal(last.winner_error, last.ref_winner_error)
        path = save_lora(tmp_path, pipe, "dpo")
    assert not any(hasattr(m, "peft_config") for m in (pipe.text_encoder, pipe.text_encoder_2))
    assert [p.requires_grad for p in pipe.text_encoder.parameters()] == flags
    plain = build_sdxl()
    plain.load_lora_weights(str(path), weight_name=path.name)
    assert {"text_encoder", "text_encoder_2"} == {n for n, m in adapted_models(plain).items() if adapter_names(m)}
    with DPOTrainer(pipe, pairs, config, [dpo(2500.0)], start=path) as t:
        assert torch.equal(t.pair_step([(0, 0)]).winner_pred, last.winner_pred)
    with pytest.raises(AdapterError, match="is for text_encoder_2 too, which this run would leave out"):
        DPOTrainer(pipe, pairs, replace(config, model="text_encoder"), [dpo(2500.0)], start=path)
    with pytest.raises(ValueError, match="which this pipeline does not have"):
        run(replace(QUICK, model="text_encoders"))


def test_a_file_of_kohyas_trainer_for_sdxls_text_encoders_goes_on_without_the_layer_that_nobody_reads(tmp_path):
    """It holds every layer of the first encoder; SDXL reads that one layer before its end."""
    source, state = tiny_sdxl_pipeline(), {}
    for prefix, name in (("lora_te1", "text_encoder"), ("lora_te2", "text_encoder_2")):
        model = getattr(source, name)
        for p in add_lora(model, "dpo", seed=3, rank=2):
            p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(p)))
        for key, value in peft_state(model, "dpo")[0].items():
            layer, _, side = key.removesuffix(".weight").rpartition(".")
            full = f"{prefix}_text_model_{layer.removeprefix('text_model.').replace('.', '_')}"
            state[f"{full}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value.half()
            state[f"{full}.alpha"] = torch.tensor(1.0)
    path = tmp_path / "kohya.safetensors"
    save_file(state, path)
    asked = of_start(path)
    assert asked == {"rank": 2, "targets": "attention", "model": "text_encoders"}
    config, plain = replace(QUICK, steps=1, **asked), tiny_sdxl_pipeline()
    with DPOTrainer(tiny_sdxl_pipeline(), make_pairs(2), config, [dpo(2500.0)], start=path) as t:
        begun = t.pair_step([(0, 0)])
        assert {name.split(".layers.")[1][0] for name in t.parameters if name.startswith("text_encoder.")} == {"0"}
        t.run()
    plain.load_lora_weights(str(path))
    with DPOTrainer(plain, make_pairs(2), replace(QUICK, steps=1), [dpo(2500.0)]) as t:
        torch.testing.assert_close(begun.winner_pred, t.pair_step([(0, 0)]).winner_pred, rtol=0, atol=1e-5)
    first = "lora_te1_text_model_encoder_"
    unet = {key.replace(first, "lora_unet_"): value.clone() for key, value in state.items() if key.startswith(first)}
    save_file(state | unet, tmp_path / "odd.safetensors")
    with pytest.raises(AdapterError) as error:
        DPOTrainer(tiny_sdxl_pipeline(), make_pairs(2), config, [dpo(2500.0)], start=tmp_path / "odd.safetensors")
    assert "odd.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_numbers_of_numpy_and_torch_in_a_configuration_can_be_saved(tmp_path):
    numbers = {"steps": np.int64(2), "lr": np.float32(0.5), "seed": torch.tensor(3), "save_every": np.uint8(1)}
    config = replace(QUICK, log_every=torch.tensor(1), **numbers)
    assert json.loads(json.dumps(asdict(config)))["seed"] == 3 and type(config.steps) is int
    assert json.dumps(asdict(preset("robust", steps=np.int32(4), lr=torch.tensor(0.5))))
    with pytest.raises(TypeError, match="steps is .*: pass one number"):
        replace(QUICK, steps=np.array([1, 2]))


def test_sdxl_is_told_the_size_of_each_pair_and_trains_its_second_text_encoder():
    pipe, ids = build_sdxl(), torch.tensor([[640.0, 480, 8, 0, 64, 64], [900, 900, 0, 0, 64, 64]])
    pairs = make_pairs(2)
    with DPOTrainer(pipe, replace(pairs, time_ids=ids), replace(QUICK, model="text_encoder_2"), [dpo(2500.0)]) as t:
        assert torch.equal(t._conditions([1, 0], torch.zeros(2, dtype=bool), live=False).time_ids[:2], ids[[1, 0]])
        t.terms[0](t.pair_step([(0, 0)])).sum().backward()
        assert all(p.grad is not None for p in t.parameters.values())
    wide = replace(pairs, winner=torch.randn(2, 4, 8, 16), loser=torch.randn(2, 4, 8, 16))
    with DPOTrainer(pipe, wide, QUICK, [dpo(2500.0)]) as t:
        factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        size = [8.0 * factor, 16.0 * factor]
        assert t._time_ids([0]).tolist() == [[*size, 0.0, 0.0, *size]]


def test_what_a_run_was_is_kept_as_json(tmp_path):
    run(replace(SAVING, steps=2), folder=tmp_path)
    state = read_checkpoint(tmp_path / "checkpoint.safetensors")[1]
    assert set(state) == {"step", "identity", "kept"} and json.dumps(state["identity"])


def test_a_pool_of_another_style_is_refused_and_a_damaged_shard_is_named(tmp_path):
    from labkit.dpo.pool import build_pool
    from labkit.dpo.scorers import sharpness

    options = {"scorers": [sharpness()], "seed": 0, "steps": 1, "folder": tmp_path}
    build_pool(styled(), ["a"], 2, **options)
    with pytest.raises(FileExistsError, match="adapters differ"):
        build_pool(styled(0.5), ["a"], 2, **options)
    with pytest.raises(FileExistsError, match="adapters differ"):
        build_pool(tiny_pipeline(), ["a"], 2, **options)
    shard = tmp_path / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="shard-00000.safetensors is damaged"):
        build_pool(styled(), ["a"], 2, **options)
