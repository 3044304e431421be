"""The DPO trainer: bitwise starts, references, noise, resumes, processes, guards and messages."""

import errno
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dpo_by_hand import updates
from processes import meet, run_apart
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import tiny_pipeline

from labkit.checkpoint import CheckpointError
from labkit.diffusion import (
    AdapterError,
    NFELedger,
    adapter_names,
    adapter_state,
    add_lora,
    alpha_bar,
    base_fingerprint,
    merge_lora,
    native_bfloat16,
)
from labkit.dpo import (
    DPOConfig,
    DPOTrainer,
    PairStep,
    PreferencePairs,
    dpo,
    dpo_logit,
    fingerprints,
    mapo,
    sdpo,
    sft,
    statistics,
)
from labkit.dpo.noise import draw_pairs, epoch_order, rows_of_step
from labkit.dpo.record import FrozenFlags, Window, observed, update_norm

QUICK = DPOConfig(steps=4, batch_size=3, lr=1e-2, warmup=0, rank=2, log_every=1)


def make_pairs(n=7, seed=0, size=8, **options):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 4, size, size)
    winner, loser = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    margin = torch.rand(n, generator=generator) + 0.1
    return PreferencePairs(tuple(f"prompt {i % 3}" for i in range(n)), winner, loser, margin, **options)


def swapped(pairs):
    return replace(pairs, winner=pairs.loser, loser=pairs.winner)


def run(config=QUICK, terms=(), pairs=None, pipe=None, **options):
    """(log, trained tensors) of one run on a fresh pipeline."""
    pipe = pipe or tiny_pipeline()
    with DPOTrainer(pipe, pairs or make_pairs(), config, terms or [dpo(2500.0)], **options) as trainer:
        log = trainer.run()
        return log, {k: p.detach().clone() for k, p in trainer.parameters.items()}


def difference(step):
    """D of eq. 14 [B], negative where the policy prefers the winner."""
    return -dpo_logit(**step.errors, kappa=1.0).detach()


def numbers(log):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in log]


def assert_same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- whole updates by hand -----------------------------------------------------------------------------------------

# two updates of three of five pairs: the second epoch begins in the second one; gradients are clipped, weights decay
BY_HAND = DPOConfig(
    steps=2, batch_size=3, lr=1e-2, warmup=3, clip=0.05, weight_decay=2.0, seed=4, rank=2, t_window=(100, 700),
    prompt_dropout=0.4, log_every=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("prediction_type", "options"),
    [
        ("epsilon", {}),
        ("v_prediction", {"micro_batch": 2}),
        ("epsilon", {"model": "text_encoder"}),
        ("epsilon", {"trainable": "full", "reference": "copy", "lr": 1e-3}),
    ],
    ids=["lora", "v-prediction", "text-encoder", "full"],
)
def test_two_updates_are_those_computed_by_hand(prediction_type, options):
    config, pairs = replace(BY_HAND, **options), make_pairs(5)
    log, found = run(
        config, [dpo(20.0, margin_weight=0.5), sft(3.0)], pairs, tiny_pipeline(prediction_type=prediction_type)
    )

    def loss(w, lo, ref_w, ref_l, margin):
        s = -20 * ((w - ref_w) - (lo - ref_l)) - 0.5 * margin
        return torch.log1p(torch.exp(-s)) + 3 * w

    expected, losses = updates(tiny_pipeline(prediction_type=prediction_type), pairs, config, loss)
    assert [r["loss"] for r in log] == pytest.approx([float(x.mean()) for x in losses], rel=1e-5)
    assert found.keys() == expected.keys()
    # of all weights, some have gradients of mere rounding; of LoRA's, one was 6e-4 off on another processor
    near = 1e-2 if config.trainable == "full" else 2e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=near * config.lr, msg=name)


def test_a_record_is_computed_by_hand():
    window = Window()
    first = {"winner_error": [0.30, 0.50], "loser_error": [0.70, 0.30], "dpo": [0.1, 0.2], "t": [5, 900]}
    second = {"winner_error": [0.20], "loser_error": [0.20], "dpo": [0.6], "t": [40]}
    reference = {"ref_winner_error": [0.25, 0.40], "ref_loser_error": [0.40, 0.35]}
    window.add(seconds=1.5, **{k: torch.tensor(v) for k, v in (first | reference).items()})
    same = {"ref_winner_error": [0.20], "ref_loser_error": [0.20]}
    window.add(seconds=0.5, **{k: torch.tensor(v) for k, v in (second | same).items()})
    record = window.record(4.0)  # s = 1, -0.6, 0
    expected = {
        "winner_error": 1 / 3, "loser_error": 0.4, "dpo": 0.3, "d_w": 0.05, "d_l": 0.25 / 3, "s10": -0.48, "s50": 0.0,
        "s90": 0.8, "accuracy": 0.5, "weight": (1 / (1 + math.exp(1)) + 1 / (1 + math.exp(-0.6)) + 0.5) / 3,
        "seconds": 2.0,
    }  # fmt: skip
    assert record == pytest.approx(expected, abs=1e-6)


def test_the_drift_is_the_winners_change_of_channel_means():
    change = torch.tensor([[[[1.0, 3.0]], [[0.0, -2.0]]], [[[5.0, 5.0]], [[1.0, 0.0]]]])  # [2, 2, 1, 2]
    zero, one = torch.zeros_like(change), torch.ones(2)
    numbers = observed(
        PairStep(change + 7, zero, zero, torch.tensor([3, 4]), torch.ones(9), None, one, one, zero + 7, zero)
    )
    assert numbers["drift_0"].tolist() == [2.0, 5.0] and numbers["drift_1"].tolist() == [-1.0, 0.5]


def test_the_size_of_an_update_is_the_norm_over_all_layers():
    pipe = tiny_pipeline()
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0)]) as trainer:
        for i, p in enumerate(trainer.parameters.values()):
            p.data.normal_(generator=torch.Generator().manual_seed(i))
        state = trainer.parameters
        products = [state[k.replace("lora_A", "lora_B")] @ a for k, a in state.items() if "lora_A" in k]
        expected = sum(float(x.detach().square().sum()) for x in products) ** 0.5
        assert update_norm(pipe.unet, "dpo", state, None) == pytest.approx(expected, rel=1e-5)
    start, moved = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    moved.load_state_dict({k: v + 0.5 for k, v in start.state_dict().items()})
    assert update_norm(moved, "dpo", dict(moved.named_parameters()), start) == pytest.approx(0.5 * 8**0.5, rel=1e-5)
    assert math.isnan(update_norm(moved, "dpo", dict(moved.named_parameters()), None))


# ---- the start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_fresh_adapter_starts_at_ln_2_bit_for_bit(prediction_type):
    pipe = tiny_pipeline(prediction_type=prediction_type)
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0), statistics()]) as trainer:
        step = trainer.pair_step([(0, 0), (3, 0), (5, 1)])
        assert torch.equal(step.winner_pred.detach(), step.ref_winner_pred)
        assert torch.equal(difference(step), torch.zeros(3))
        assert not step.ref_winner_pred.requires_grad
        first = trainer.run(steps=1)[0]
    assert first["dpo"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["statistics"] == 0.0 and first["accuracy"] == 0.5 and first["weight"] == 0.5
    assert first["d_w"] == first["d_l"] == first["s50"] == 0.0


def test_swapped_labels_give_opposite_gradients_at_the_start():
    grads = []
    for pairs in (make_pairs(), swapped(make_pairs())):
        with DPOTrainer(tiny_pipeline(), pairs, QUICK, [dpo(2500.0)]) as trainer:
            trainer.terms[0](trainer.pair_step([(0, 0), (1, 0)])).mean().backward()
            grads.append({k: p.grad.clone() for k, p in trainer.parameters.items()})
    largest = max(g.abs().max() for g in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, -grads[1][name], rtol=0, atol=1e-5 * float(largest))
        assert bool(grad.any()) == (".lora_B." in name)  # B = 0 hides A at the start


def test_identical_errors_of_both_images_give_no_gradient():
    pairs = make_pairs()
    twins = replace(pairs)
    object.__setattr__(twins, "loser", pairs.winner.clone())  # past the check that refuses such pairs
    with DPOTrainer(tiny_pipeline(), twins, QUICK, [dpo(2500.0)]) as trainer:
        for p in trainer.parameters.values():
            p.data.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
        step = trainer.pair_step([(0, 0), (1, 0)])
        trainer.terms[0](step).sum().backward()
        assert torch.allclose(difference(step), torch.zeros(2), atol=1e-6)
        assert max(p.grad.abs().max() for p in trainer.parameters.values()) < 1e-2


def test_one_small_step_down_the_gradient_lowers_the_loss_and_raises_the_logits():
    with DPOTrainer(tiny_pipeline(), make_pairs(), QUICK, [dpo(2500.0)]) as trainer:
        rows = [(i, 0) for i in range(7)]
        before = trainer.pair_step(rows)
        trainer.terms[0](before).mean().backward()
        for p in trainer.parameters.values():
            p.data -= 1e-4 * p.grad
        after = trainer.pair_step(rows)
        assert trainer.terms[0](after).mean() < trainer.terms[0](before).mean()
        assert difference(after).mean() < difference(before).mean() == 0


def test_one_forward_of_both_images_equals_two_forwards():
    pipe = tiny_pipeline()
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0)]) as trainer:
        calls = []
        handle = pipe.unet.register_forward_hook(
            lambda m, args, kw, out: calls.append((args, kw, out[0])), with_kwargs=True
        )
        trainer.pair_step([(0, 0), (3, 0), (5, 0)])
        handle.remove()
        (x, t), options, both = calls[-1]
        for half in (slice(0, 3), slice(3, 6)):
            text = options["encoder_hidden_states"][half]
            alone = pipe.unet(x[half], t[half], encoder_hidden_states=text).sample
            torch.testing.assert_close(alone, both[half], rtol=1e-5, atol=1e-5)


def test_training_raises_the_logits_of_its_pairs():
    config = replace(QUICK, steps=30, lr=3e-3, batch_size=7)
    log, _ = run(config)
    assert sum(r["s50"] for r in log[-7:]) > 0 and sum(r["accuracy"] for r in log[-7:]) / 7 > 0.6


# ---- the reference ------------------------------------------------------------------------------------------------


def test_disabled_adapter_and_frozen_copy_give_the_same_run_bit_for_bit():
    a_log, a = run()
    b_log, b = run(replace(QUICK, reference="copy"))
    assert numbers(a_log) == numbers(b_log)
    assert_same(a, b)


def test_the_base_is_never_trained_and_everything_is_put_back():
    pipe = tiny_pipeline()
    before = base_fingerprint(pipe.unet)
    flags = {n: p.requires_grad for n, p in pipe.unet.named_parameters()}
    run(pipe=pipe)
    assert base_fingerprint(pipe.unet) == before and adapter_names(pipe.unet) == ()
    assert {n: p.requires_grad for n, p in pipe.unet.named_parameters()} == flags


def test_another_active_adapter_belongs_to_the_reference_and_stays_frozen():
    pipe = tiny_pipeline()
    for p in add_lora(pipe.unet, "person", seed=1, rank=2):
        p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        p.requires_grad_(False)
    before = adapter_state(pipe.unet, "person")
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0)]) as trainer:
        log = trainer.run()
        assert not any(p.requires_grad for n, p in pipe.unet.named_parameters() if ".person." in n)
    assert log[0]["d_w"] == log[0]["d_l"] == 0.0
    assert_same(adapter_state(pipe.unet, "person"), before)


def test_stage_hand_over_starts_at_ln_2_with_the_old_policy_as_reference():
    pipe, pairs = tiny_pipeline(), make_pairs()
    first = DPOTrainer(pipe, pairs, QUICK, [dpo(2500.0)])
    first.run()
    old = first.pair_step([(0, 0), (1, 0)]).winner_pred.detach()
    merge_lora(pipe.unet, "dpo")
    with DPOTrainer(pipe, pairs, QUICK, [dpo(2500.0), statistics()]) as second:
        step = second.pair_step([(0, 0), (1, 0)])
        assert torch.equal(difference(step), torch.zeros(2))
        torch.testing.assert_close(step.ref_winner_pred, old, rtol=0, atol=2e-5)


def test_another_u_net_can_be_the_reference():
    pipe, base = tiny_pipeline(), tiny_pipeline(seed=5).unet
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0)], reference=base) as trainer:
        step = trainer.pair_step([(0, 0), (1, 0)])
    assert (difference(step) != 0).all()


def test_mapo_never_calls_the_reference():
    pipe = tiny_pipeline()
    with DPOTrainer(pipe, make_pairs(), replace(QUICK, steps=1), [mapo()]) as trainer, NFELedger(pipe) as ledger:
        trainer.run()
    assert ledger.counts.unet_rows == ledger.counts.unet_backward_rows == 2 * 3
    with DPOTrainer(pipe, make_pairs(), replace(QUICK, steps=1), [dpo(2500.0)]) as trainer, NFELedger(pipe) as ledger:
        trainer.run()
    assert ledger.counts.unet_rows == 4 * 3


def test_cached_reference_errors_equal_recomputed_ones_and_save_their_forwards():
    config = replace(QUICK, steps=6, batch_size=7, cached_draws=2)
    pipe, pairs = tiny_pipeline(), make_pairs()
    with DPOTrainer(pipe, pairs, config, [dpo(2500.0)]) as trainer, NFELedger(pipe) as ledger:
        trainer.run()
        assert ledger.counts.unet_rows == 6 * 14 + 2 * 14  # the reference of each pair and draw once
        cache = trainer.cache.clone()
        assert torch.isfinite(cache).all()
        stored = trainer.pair_step([(3, 1), (5, 0)])
        trainer.cache.fill_(torch.nan)
        for draw in (0, 1):
            trainer.pair_step([(i, draw) for i in range(7)])
        torch.testing.assert_close(trainer.cache, cache, rtol=0, atol=1e-6)
        trainer.cache.fill_(torch.nan)
        fresh = trainer.pair_step([(3, 1), (5, 0)])
        torch.testing.assert_close(stored.ref_winner_error, fresh.ref_winner_error, rtol=0, atol=1e-6)
        torch.testing.assert_close(stored.ref_loser_error, fresh.ref_loser_error, rtol=0, atol=1e-6)
        trainer.cache.zero_()  # used, not recomputed
        assert torch.equal(trainer.pair_step([(3, 1)]).ref_winner_error, torch.zeros(1))
    with pytest.raises(ValueError, match="cached_draws"):
        DPOTrainer(pipe, pairs, config, [dpo(2500.0), statistics()])


# ---- noise, batches, processes ------------------------------------------------------------------------------------


def test_both_images_of_a_pair_get_the_same_timestep_and_noise():
    pipe, pairs, seen = tiny_pipeline(), make_pairs(), []
    handle = pipe.unet.register_forward_pre_hook(lambda m, args: seen.append((args[0].clone(), args[1].clone())))
    with DPOTrainer(pipe, pairs, QUICK, [dpo(2500.0)]) as trainer:
        trainer.pair_step([(2, 0), (4, 0)])
    handle.remove()
    for x_t, t in seen:  # reference and policy
        assert torch.equal(t[:2], t[2:]) and t[0] != t[1]
        scale = alpha_bar(t[:2], pipe.scheduler.alphas_cumprod, x_t[:2]) ** 0.5
        noise = [x - scale * side[[2, 4]] for x, side in ((x_t[:2], pairs.winner), (x_t[2:], pairs.loser))]
        torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-6)


def test_noise_is_a_function_of_seed_draw_and_pair_alone():
    rows = [(5, 0), (1, 2), (5, 1)]
    many = draw_pairs(rows, (4, 8, 8), seed=3)
    for i, row in enumerate(rows):
        one = draw_pairs([row], (4, 8, 8), seed=3)
        assert torch.equal(one.noise[0], many.noise[i]) and one.t[0] == many.t[i]
    assert not torch.equal(many.noise[0], many.noise[2])
    assert not torch.equal(draw_pairs(rows, (4, 8, 8), seed=0).noise, many.noise)


def test_the_number_that_drops_prompts_is_uniform_and_new_in_every_draw():
    u = draw_pairs([(i, d) for i in range(500) for d in range(2)], (1, 1, 1), seed=0).uniform
    assert u.min() >= 0 and u.max() < 1 and len(u.unique()) == 1000
    assert u.sort().values.sub(torch.arange(1000) / 1000).abs().max() < 0.06  # Kolmogorov-Smirnov, p = 0.001


def test_timesteps_are_uniform_and_those_of_one_pair_spread_evenly():
    t = draw_pairs([(i, 0) for i in range(2000)], (1, 1, 1), seed=0, t_window=(100, 900)).t
    assert t.min() >= 100 and t.max() < 900 and abs(float(t.float().mean()) - 499.5) < 16
    one = draw_pairs([(7, draw) for draw in range(8)], (1, 1, 1), seed=0).t.sort().values
    assert (one.diff() > 30).all() and one[0] < 250 and one[-1] > 750


def test_epochs_visit_every_pair_once_whatever_the_batch_size():
    for size in (1, 3, 4, 20):
        rows = [row for step in range(60 // size) for row in rows_of_step(step, size, 10, seed=0)]
        assert sorted(rows) == [(pair, epoch) for pair in range(10) for epoch in range(6)]
    assert not torch.equal(epoch_order(10, 0, 0), epoch_order(10, 0, 1))


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_equal_the_whole_batch_also_if_the_last_is_short(micro):
    config = replace(QUICK, steps=1, batch_size=3)
    gradients = []
    for size in (None, micro):
        pipe = tiny_pipeline()
        with DPOTrainer(pipe, make_pairs(), replace(config, micro_batch=size), [dpo(2500.0), sft(10.0)]) as trainer:
            trainer.optimizer.step = lambda: gradients.append([p.grad.clone() for p in trainer.parameters.values()])
            trainer.step()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_gradient_checkpointing_changes_no_bit():
    a_log, a = run(replace(QUICK, steps=2))
    pipe = tiny_pipeline()
    b_log, b = run(replace(QUICK, steps=2, checkpointing=True), pipe=pipe)
    assert_same(a, b)
    assert not pipe.unet.is_gradient_checkpointing


def train_with_the_others(rank, folder):
    meet(rank, folder)
    log, state = run(replace(QUICK, batch_size=2, lr=1e-3))
    if rank == 0:
        save_file(state, folder / "out.safetensors", {"winner_error": str(log[-1]["winner_error"])})
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    assert run_apart(train_with_the_others, (0, tmp_path), (1, tmp_path)) == [0, 0]
    log, expected = run(replace(QUICK, batch_size=4, lr=1e-3))
    with safe_open(tmp_path / "out.safetensors", "pt") as found:
        assert set(found.keys()) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found.get_tensor(name), value, rtol=1e-3, atol=2e-5)
        assert float(found.metadata()["winner_error"]) == pytest.approx(log[-1]["winner_error"], rel=1e-4)


# ---- resuming -----------------------------------------------------------------------------------------------------

SAVING = replace(QUICK, steps=6, log_every=2, save_every=2, cached_draws=2)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole_log, whole = run(SAVING, folder=tmp_path / "whole")
    with DPOTrainer(tiny_pipeline(), make_pairs(), SAVING, [dpo(2500.0)], folder=tmp_path / "cut") as trainer:
        trainer.run(steps=4)
    log, resumed = run(SAVING, folder=tmp_path / "cut")
    assert_same(resumed, whole)
    assert numbers(log) == numbers(whole_log) and [r["step"] for r in log] == [2, 4, 6]


def train_until_killed(folder):
    trainer = DPOTrainer(tiny_pipeline(), make_pairs(), SAVING, [dpo(2500.0)], folder=folder)
    trainer.run(lambda record: os.kill(os.getpid(), signal.SIGKILL) if record["step"] == 4 else None)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    folder = tmp_path / "killed"
    assert run_apart(train_until_killed, (folder,)) == [-signal.SIGKILL]
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5}\n')  # written beyond the checkpoint by the killed run
    log, resumed = run(SAVING, folder=folder)
    whole_log, whole = run(SAVING, folder=tmp_path / "whole")
    assert_same(resumed, whole)
    assert numbers(log) == numbers(whole_log)


def test_a_full_disk_is_named_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    with DPOTrainer(tiny_pipeline(), make_pairs(), SAVING, [dpo(2500.0)], folder=tmp_path) as trainer:
        trainer.run(steps=2)
        before = (tmp_path / "checkpoint.safetensors").read_bytes()

        def full(tensors, path, metadata):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(CheckpointError, match="No space left.*intact"):
            trainer.run()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] != [] and not list(tmp_path.glob("*.tmp"))


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path):
    run(SAVING, folder=tmp_path)
    with pytest.raises(CheckpointError, match="differs in lr, terms"):
        run(replace(SAVING, lr=1.0), terms=[sft(1.0)], folder=tmp_path)
    with pytest.raises(CheckpointError, match="differs in base, precision, text, vae"):  # nor its cache
        run(replace(SAVING, precision="bf16"), pipe=tiny_pipeline(seed=5), folder=tmp_path)


# ---- variants -----------------------------------------------------------------------------------------------------


def test_full_training_moves_the_weights_and_compares_with_the_start():
    pipe = tiny_pipeline()
    before = base_fingerprint(pipe.unet)
    log, _ = run(replace(QUICK, trainable="full", reference="copy", lr=1e-4), pipe=pipe)
    assert log[0]["d_w"] == 0.0 and log[-1]["adapter_norm"] > 0
    assert base_fingerprint(pipe.unet) != before


def test_the_text_encoder_can_be_trained_alone():
    pipe = tiny_pipeline()
    unet = base_fingerprint(pipe.unet)
    log, state = run(replace(QUICK, model="text_encoder", lr=1e-2), pipe=pipe)
    assert log[0]["d_w"] == 0.0 and log[-1]["d_w"] != 0.0
    assert any(bool(v.any()) for k, v in state.items() if ".lora_B." in k)
    assert base_fingerprint(pipe.unet) == unet and adapter_names(pipe.text_encoder) == ()


@pytest.mark.parametrize("native", [True, False])
def test_automatic_precision_is_bfloat16_only_where_it_is_native(monkeypatch, native):
    from labkit.dpo import trainer as module

    monkeypatch.setattr(module, "native_bfloat16", lambda device: native)
    with DPOTrainer(tiny_pipeline(), make_pairs(), replace(QUICK, precision="auto"), [dpo(2500.0)]) as trainer:
        assert trainer.config.precision == ("bf16" if native else "fp32")  # checkpoints carry what it became


def test_native_bfloat16_follows_the_machine(monkeypatch):
    tiles = {"avx512_bf16": True, "amx_bf16": True}  # slower than float32 on networks of this size
    for capabilities, expected in (({}, False), ({"avx512_bf16": True, "amx_bf16": False}, True), (tiles, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert native_bfloat16() is expected
    assert native_bfloat16("meta") is False


def test_a_half_precision_base_gets_a_float32_adapter_and_full_training_of_it_is_refused():
    pipe = tiny_pipeline()
    pipe.unet.to(torch.bfloat16)
    log, state = run(replace(QUICK, precision="bf16"), pipe=pipe)
    assert {v.dtype for v in state.values()} == {torch.float32}
    assert abs(log[0]["s10"]) < 1e-3 and abs(log[0]["s90"]) < 1e-3
    with pytest.raises(ValueError, match="load the pipeline in float32"):
        DPOTrainer(pipe, make_pairs(), replace(QUICK, trainable="full", reference="copy"), [dpo(2500.0)])


def test_dropped_prompts_are_trained_with_the_empty_one():
    pipe = tiny_pipeline()
    with DPOTrainer(pipe, make_pairs(), replace(QUICK, prompt_dropout=0.5), [dpo(2500.0)]) as trainer:
        dropped = torch.tensor([True, False])
        conditions = trainer._conditions([0, 1], dropped, live=False)
        assert torch.equal(conditions.cond[0], conditions.uncond[0])
        assert torch.equal(conditions.cond[0], conditions.cond[2])  # winner and loser alike
        assert not torch.equal(conditions.cond[1], conditions.uncond[1])


@pytest.mark.parametrize(("kind", "predicts"), [("sd15", "epsilon"), ("sd15", "v_prediction"), ("sdxl", "epsilon")])
def test_one_step_on_the_full_module_tree_of_sd15_and_sdxl(kind, predicts):
    from labkit.models.sd_layout import build_sd15, build_sdxl

    pipe = {"sd15": build_sd15, "sdxl": build_sdxl}[kind]()
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, prediction_type=predicts)
    log, state = run(replace(QUICK, steps=1, batch_size=1), [sdpo(2500.0)], make_pairs(2, size=8), pipe)
    blocks = 16 if kind == "sd15" else 70  # transformer layers of the published U-Nets, 8 projections each
    assert len(state) == 2 * 8 * blocks
    assert (
        log[0]["d_w"] == 0.0 and log[0]["sdpo"] == pytest.approx(math.log(2), abs=1e-6) and log[0]["adapter_norm"] > 0
    )


def test_a_base_that_something_else_trains_is_noticed():
    pipe = tiny_pipeline()

    def meddle(record):
        with torch.no_grad():
            pipe.unet.conv_in.weight[0, 0, 0, 0] += 1e-4

    with (
        DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0)]) as trainer,
        pytest.raises(AdapterError, match="something else trains them"),
    ):
        trainer.run(meddle)


# ---- guards and bad input -----------------------------------------------------------------------------------------


def test_the_library_switch_that_thaws_a_frozen_adapter_is_caught():
    pipe = tiny_pipeline()
    for p in add_lora(pipe.unet, "frozen", seed=1, rank=2):
        p.requires_grad_(False)
    guard = FrozenFlags(pipe.unet)
    guard.check()
    pipe.unet.disable_adapters()
    pipe.unet.enable_adapters()
    with pytest.raises(AdapterError, match="use_adapters"):
        guard.check()


def test_adapters_left_disabled_are_caught_in_the_first_step():
    pipe = tiny_pipeline()
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0)]) as trainer:
        pipe.unet.disable_adapters()
        with pytest.raises((AdapterError, RuntimeError), match="gradient|grad"):
            trainer.run()


def test_pairs_that_cannot_be_trained_on_are_refused_in_one_line():
    pairs = make_pairs()
    with pytest.raises(ValueError, match="ties alone"):
        PreferencePairs((), torch.zeros(0, 4, 8, 8), torch.zeros(0, 4, 8, 8))
    with pytest.raises(ValueError, match="same image in 1 pairs"):
        replace(pairs, loser=torch.cat([pairs.winner[:1], pairs.loser[1:]]))
    with pytest.raises(ValueError, match="not finite.*pair 2"):
        replace(pairs, winner=pairs.winner.index_fill(0, torch.tensor([2]), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        replace(pairs, margin=torch.full((7,), torch.nan))
    with pytest.raises(ValueError, match="not positive"):
        replace(pairs, margin=torch.zeros(7))
    with pytest.raises(ValueError, match="loser latents: got nothing"):
        replace(pairs, loser=None)
    with pytest.raises(ValueError, match="one per prompt"):
        replace(pairs, winner=pairs.winner[:5])


@pytest.mark.parametrize("key", ["base", "vae", "text", "scheduler"])
def test_pairs_of_another_model_are_refused(key):
    pipe = tiny_pipeline()
    hashes = fingerprints(pipe)
    DPOTrainer(pipe, make_pairs(hashes=hashes), QUICK, [dpo(2500.0)]).close()
    with pytest.raises(ValueError, match=f"another {key}"):
        DPOTrainer(pipe, make_pairs(hashes=hashes | {key: "0" * 64}), QUICK, [dpo(2500.0)])
    foreign = replace(QUICK, foreign_pairs=True)
    if key == "base":
        DPOTrainer(pipe, make_pairs(hashes=hashes | {key: "0" * 64}), foreign, [dpo(2500.0)]).close()


def test_a_refused_run_leaves_no_adapter_behind():
    pipe = tiny_pipeline()
    for config, terms, match in (
        (QUICK, [], "no terms"),
        (QUICK, [dpo(0.15)], "element sum"),
        (replace(QUICK, t_window=(0, 2000)), [dpo(2500.0)], "t_window"),
        (replace(QUICK, save_every=5), [dpo(2500.0)], "folder"),
    ):
        with pytest.raises(ValueError, match=match):
            DPOTrainer(pipe, make_pairs(), config, terms)
    assert adapter_names(pipe.unet) == ()


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"trainable": "lora+"}, {"t_window": (500, 500)}, {"trainable": "full"}, {"save_every": 15}],
)
def test_a_configuration_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match="expected|use reference"):
        DPOConfig(**options)


def test_seed_zero_is_a_seed():
    _, a = run(replace(QUICK, seed=0))
    _, b = run(replace(QUICK, seed=0))
    _, c = run(replace(QUICK, seed=1))
    assert_same(a, b)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_a_callback_that_returns_true_stops_the_run():
    log, _ = run()
    assert len(log) == 4
    pipe = tiny_pipeline()
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(2500.0)]) as trainer:
        assert len(trainer.run(lambda record: record["step"] == 2)) == 2
