"""The DPO trainer on a flow-matching transformer in Stable Diffusion 3's layout, with random weights."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from processes import meet, run_apart
from safetensors.torch import load_file, save_file
from test_dpo_train import write
from tiny_models import tiny_pipeline, tiny_sd3_pipeline

from labkit.checkpoint import CheckpointError
from labkit.diffusion import (
    adapter_names,
    adapter_state,
    add_lora,
    base_fingerprint,
    image_generators,
    load_lora,
    merge_lora,
    sample,
    save_lora,
)
from labkit.diffusion.adapters import adapter_parameters
from labkit.dpo import (
    DPOConfig,
    DPOTrainer,
    PreferencePairs,
    Stage,
    dpo,
    fingerprints,
    mapo,
    run_stages,
    sft,
    statistics,
)
from labkit.dpo.flow import WEIGHTINGS, flow_dpo_loss
from labkit.dpo.hg import attach
from labkit.dpo.noise import draw_pairs, rows_of_step
from labkit.dpo.train import main

QUICK = DPOConfig(steps=4, batch_size=3, lr=1e-2, warmup=0, rank=2, log_every=1)


def make_pairs(n=7, seed=0, **options):
    """Winners of spread 1 around 0, losers of spread 0.5 around 0.8: nothing is symmetric in the two."""
    generator = torch.Generator().manual_seed(seed)
    winner, loser = (torch.randn(n, 4, 8, 8, generator=generator) for _ in range(2))
    return PreferencePairs(tuple(f"prompt {i % 3}" for i in range(n)), winner, 0.5 * loser + 0.8, **options)


def run(config=QUICK, pairs=None, pipe=None, terms=(), **options):
    with DPOTrainer(pipe or tiny_sd3_pipeline(), pairs or make_pairs(), config, terms or [dpo(200.0)], **options) as t:
        return t.run(), {k: p.detach().clone() for k, p in t.parameters.items()}


def numbers(log):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in log]


def assert_same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- one step by hand ----------------------------------------------------------------------------------------------


def text_of(pipe, prompt):
    """States [1, 16 + 256, 64] and pooled text [1, 64]: both CLIPs' last but one states side by side, zeros for T5."""
    states, pooled = [], []
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2])
        pooled.append(out.text_embeds)
    clip = torch.cat(states, -1)
    return torch.cat([clip, torch.zeros(1, 256, clip.shape[-1])], 1), torch.cat(pooled, -1)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_first_step_is_the_one_computed_by_hand(weighting):
    """Flow-DPO written out with diffusers' own calls: loss, gradient of every LoRA matrix, AdamW's first update."""
    config = replace(QUICK, steps=1, clip=1e9, weighting=weighting, prompt_dropout=0.4, t_window=(5, 980), seed=5)
    pairs, pipe, kappa = make_pairs(), tiny_sd3_pipeline(), 30.0
    hand = copy.deepcopy(pipe.transformer)
    start = {"lora_A": 0.3, "lora_B": 0.2}  # B = 0 would hide A

    def moved(parameters):
        for i, (key, p) in enumerate(sorted(parameters.items())):
            scale = start["lora_A" if "lora_A" in key else "lora_B"]
            p.data.copy_(scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))

    add_lora(hand, "dpo", seed=5, rank=2)
    own = adapter_parameters(hand, "dpo")
    moved(own)
    rows = rows_of_step(0, 3, 7, 5)
    index = [pair for pair, _ in rows]
    draws = draw_pairs(rows, (4, 8, 8), seed=5, t_window=(5, 980))
    fresh = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sigma, told = fresh.sigmas.flip(0)[draws.t], fresh.timesteps.flip(0)[draws.t]  # [3]
    shown = ["" if u < 0.4 else pairs.prompts[i] for i, u in zip(index, draws.uniform, strict=True)]
    assert "" in shown and set(shown) != {""}
    text, pooled = (torch.cat(parts) for parts in zip(*(text_of(pipe, p) for p in shown), strict=True))

    def error(model, clean):
        s = sigma.view(-1, 1, 1, 1)
        x = (1 - s) * clean + s * draws.noise
        v = model(hidden_states=x, timestep=told, encoder_hidden_states=text, pooled_projections=pooled).sample
        return (v - (draws.noise - clean)).square().mean((1, 2, 3))

    w, lo = error(hand, pairs.winner[index]), error(hand, pairs.loser[index])
    with torch.no_grad():
        ref_w, ref_l = error(pipe.transformer, pairs.winner[index]), error(pipe.transformer, pairs.loser[index])
    strength = kappa * (1 - sigma) ** 2 if weighting == "noise" else kappa
    by_hand = torch.log1p(torch.exp(strength * ((w - ref_w) - (lo - ref_l))))  # [3]
    assert (by_hand - math.log(2)).abs().min() > 1e-3
    errors = {"winner": w, "loser": lo, "ref_winner": ref_w, "ref_loser": ref_l}
    torch.testing.assert_close(flow_dpo_loss(**errors, t=sigma, kappa=kappa, weighting=weighting), by_hand)
    gradients = dict(zip(own, torch.autograd.grad(by_hand.mean(), list(own.values())), strict=True))

    with DPOTrainer(pipe, pairs, config, [dpo(kappa)]) as trainer:
        moved(trainer.parameters)
        before = {k: p.detach().clone() for k, p in trainer.parameters.items()}
        found, step = {}, trainer.optimizer.step
        trainer.optimizer.step = lambda: (found.update({k: p.grad.clone() for k, p in own_of(trainer)}), step())
        record = trainer.run()[0]
        assert trainer.config.model == "transformer"
        after = {k: p.detach().clone() for k, p in trainer.parameters.items()}
    assert record["loss"] == pytest.approx(float(by_hand.mean()), rel=1e-5)
    factor = (1 - sigma) ** 2 if weighting == "noise" else torch.ones(3)
    assert record["winner_error"] == pytest.approx(float((factor * w).mean()), rel=1e-5)
    assert record["d_l"] == pytest.approx(float((factor * (lo - ref_l)).mean()), rel=1e-4)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-4 * largest, msg=name)
        update = -config.lr * found[name] / (found[name].abs() + 1e-8)  # Adam's first step
        torch.testing.assert_close(after[name] - before[name], update, rtol=0, atol=1e-3 * config.lr, msg=name)
    assert any("add_k_proj" in name for name in gradients) and any("attn2" in name for name in gradients)


def own_of(trainer):
    return trainer.parameters.items()


# ---- the start and the edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_reference_is_the_base_and_training_starts_at_ln_2(weighting):
    pipe = tiny_sd3_pipeline()
    before = base_fingerprint(pipe.transformer)
    with DPOTrainer(pipe, make_pairs(), replace(QUICK, weighting=weighting), [dpo(2500.0)]) as trainer:
        step = trainer.pair_step([(0, 0), (3, 0), (5, 1)])
        assert torch.equal(step.winner_pred.detach(), step.ref_winner_pred) and not step.ref_winner_pred.requires_grad
        assert torch.equal(step.winner_error.detach(), step.ref_winner_error)
        first = trainer.run()[0]
        later = trainer.pair_step([(0, 0), (3, 0), (5, 1)])
        assert torch.equal(later.ref_winner_pred, step.ref_winner_pred)  # whatever the policy has become
        assert not torch.equal(later.winner_pred, step.winner_pred)
    assert first["dpo"] == pytest.approx(math.log(2), abs=1e-7) and first["accuracy"] == 0.5
    assert base_fingerprint(pipe.transformer) == before and adapter_names(pipe.transformer) == ()


def test_at_pure_noise_the_derived_weight_leaves_nothing_to_learn_and_the_constant_one_does():
    """Level 999 is sigma = 1: x_t is the noise itself for both pictures, and (1 - sigma)^2 is 0."""
    gradients = {}
    for weighting in WEIGHTINGS:
        config = replace(QUICK, t_window=(999, 1000), weighting=weighting)
        with DPOTrainer(tiny_sd3_pipeline(), make_pairs(), config, [dpo(200.0)]) as trainer:
            step = trainer.pair_step([(0, 0), (4, 0)])
            assert step.t.tolist() == [999, 999]
            seen = trainer.process.noised(make_pairs().winner[:2], step.noise, step.t)
            assert torch.equal(seen, step.noise)
            trainer.terms[0](step).sum().backward()
            gradients[weighting] = max(float(p.grad.abs().max()) for p in trainer.parameters.values())
    assert gradients["noise"] == 0.0 and gradients["constant"] > 1e-3


def test_the_cleanest_level_trains_with_finite_numbers():
    log, state = run(replace(QUICK, t_window=(0, 1)))
    assert all(math.isfinite(value) for record in log for value in record.values())
    assert all(bool(torch.isfinite(p).all()) for p in state.values())
    assert log[-1]["s50"] != 0.0


def test_swapped_labels_give_opposite_gradients_at_the_start():
    found = []
    for pairs in (make_pairs(), replace(make_pairs(), winner=make_pairs().loser, loser=make_pairs().winner)):
        with DPOTrainer(tiny_sd3_pipeline(), pairs, QUICK, [dpo(200.0)]) as trainer:
            trainer.terms[0](trainer.pair_step([(0, 0), (1, 0)])).mean().backward()
            found.append({k: p.grad.clone() for k, p in trainer.parameters.items()})
    largest = max(float(g.abs().max()) for g in found[0].values())
    assert largest > 0
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, -found[1][name], rtol=0, atol=1e-5 * largest)


def test_training_raises_the_logits_of_its_pairs():
    log, _ = run(replace(QUICK, steps=40, lr=3e-3, batch_size=7))
    assert sum(r["s50"] for r in log[-7:]) > 0 and sum(r["accuracy"] for r in log[-7:]) / 7 > 0.6


# ---- the same trainer ----------------------------------------------------------------------------------------------


def test_a_frozen_copy_and_a_switched_off_adapter_give_the_same_bits():
    a_log, a = run()
    b_log, b = run(replace(QUICK, reference="copy"))
    assert numbers(a_log) == numbers(b_log)
    assert_same(a, b)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    saving = replace(QUICK, steps=6, log_every=2, save_every=2, cached_draws=2, density="logit_normal")
    whole_log, whole = run(saving, folder=tmp_path / "whole")
    with DPOTrainer(tiny_sd3_pipeline(), make_pairs(), saving, [dpo(200.0)], folder=tmp_path / "cut") as trainer:
        trainer.run(steps=4)
    log, resumed = run(saving, folder=tmp_path / "cut")
    assert_same(resumed, whole)
    assert numbers(log) == numbers(whole_log) and [r["step"] for r in log] == [2, 4, 6]
    with pytest.raises(CheckpointError, match="density, weighting"):
        run(replace(saving, weighting="noise", density="uniform"), folder=tmp_path / "cut")
    with pytest.raises(CheckpointError, match="scheduler"):
        run(saving, folder=tmp_path / "cut", pipe=tiny_sd3_pipeline(shift=1.0))


def train_with_the_others(rank, folder):
    meet(rank, folder)
    _, state = run(replace(QUICK, batch_size=2, lr=1e-3))
    if rank == 0:
        save_file(state, folder / "out.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    assert run_apart(train_with_the_others, (0, tmp_path), (1, tmp_path)) == [0, 0]
    _, expected = run(replace(QUICK, batch_size=4, lr=1e-3))
    found = load_file(tmp_path / "out.safetensors")
    start = run(replace(QUICK, batch_size=2, lr=1e-3))[1]  # what a process alone would have trained
    assert found.keys() == expected.keys()

    def apart(a, b):  # Adam enlarges the rounding of gradients that are nearly 0: all weights together
        return float(torch.stack([(a[key] - b[key]).square().sum() for key in a]).sum().sqrt())

    assert apart(found, expected) < 0.02 * apart(start, expected)


def test_micro_batches_checkpointing_and_other_terms_work_as_on_a_u_net():
    with DPOTrainer(tiny_sd3_pipeline(), make_pairs(), QUICK, [dpo(200.0), sft(3.0)]) as whole:
        whole.optimizer.step = lambda: None
        expected = whole.step()
    config = replace(QUICK, micro_batch=2, checkpointing=True)
    with DPOTrainer(tiny_sd3_pipeline(), make_pairs(), config, [dpo(200.0), sft(3.0)]) as parts:
        parts.optimizer.step = lambda: None
        found = parts.step()
        assert parts.denoiser.is_gradient_checkpointing
    assert not parts.denoiser.is_gradient_checkpointing
    assert float(found["gradient_norm"]) == pytest.approx(float(expected["gradient_norm"]), rel=1e-4)
    log, _ = run(terms=[mapo()])
    assert "d_w" not in log[0] and log[0]["loss"] > 0


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_plain_diffusers_draws_the_same_picture_with_the_saved_lora(tmp_path, targets):
    """64 x 64 pixels of the tiny pipeline: with the adapter in memory, read back by labkit, and by plain diffusers."""
    pipe, plain = tiny_sd3_pipeline(), tiny_sd3_pipeline()

    def drawn(one):
        generator = torch.Generator().manual_seed(3)
        options = {"num_inference_steps": 3, "guidance_scale": 3.0, "max_sequence_length": 4, "output_type": "np"}
        return torch.from_numpy(one("prompt 1", generator=generator, **options).images)

    base = drawn(pipe)
    with DPOTrainer(pipe, make_pairs(), replace(QUICK, targets=targets, lr=3e-2), [dpo(200.0)]) as trainer:
        trainer.run()
        file = save_lora(tmp_path, pipe, "dpo")
        ours = drawn(pipe)
    assert torch.equal(drawn(pipe), base) and (ours - base).abs().max() > 0.02
    plain.load_lora_weights(tmp_path, weight_name=file.name)
    torch.testing.assert_close(drawn(plain), ours, rtol=0, atol=1e-5)
    again = tiny_sd3_pipeline()
    load_lora(again, file, "dpo")
    torch.testing.assert_close(drawn(again), ours, rtol=0, atol=1e-5)
    through = sample(again, ["prompt 1"], generators=image_generators(1, 0), steps=2)
    without = sample(tiny_sd3_pipeline(), ["prompt 1"], generators=image_generators(1, 0), steps=2)
    assert (through - without).abs().max() > 0.02


def test_a_run_goes_on_with_a_saved_lora(tmp_path):
    pipe = tiny_sd3_pipeline()
    with DPOTrainer(pipe, make_pairs(), QUICK, [dpo(200.0)]) as trainer:
        trainer.run()
        expected = {k: p.detach().clone() for k, p in trainer.parameters.items()}
        file = save_lora(tmp_path, pipe, "dpo")
    with DPOTrainer(tiny_sd3_pipeline(), make_pairs(), QUICK, [dpo(200.0)], start=file) as second:
        assert_same({k: p.detach() for k, p in second.parameters.items()}, expected)


def test_stages_go_on_from_each_other_and_leave_their_adapters_on_the_transformer():
    pipe = tiny_sd3_pipeline()
    model, before = pipe.transformer, base_fingerprint(pipe.transformer)
    pairs, config = [make_pairs(seed=seed) for seed in (0, 1)], replace(QUICK, steps=2)
    logs = run_stages(pipe, [Stage(n, p, [dpo(200.0)], config) for n, p in zip(("easy", "hard"), pairs, strict=True)])
    assert logs["easy"][0]["d_w"] == logs["hard"][0]["d_w"] == 0.0  # the reference of a stage is its own start
    assert adapter_names(model) == ("easy", "hard") and base_fingerprint(model) == before
    assert not any(p.requires_grad for p in model.parameters())
    trained = adapter_state(model, "hard")
    # the second stage alone, on a model that has the first one in its weights
    other = tiny_sd3_pipeline()
    attach(other.transformer, "easy", adapter_state(model, "easy"))
    merge_lora(other.transformer, "easy")
    alone = run_stages(other, [Stage("hard", pairs[1], [dpo(200.0)], config)])
    assert numbers(alone["hard"]) == numbers(logs["hard"])
    assert_same(adapter_state(other.transformer, "hard"), trained)


# ---- what cannot work ----------------------------------------------------------------------------------------------


def test_what_a_flow_model_does_not_have_is_refused_in_one_line():
    pipe, pairs = tiny_sd3_pipeline(), make_pairs()

    def refused(match, pipe=pipe, config=QUICK, terms=(), pairs=pairs):
        with pytest.raises(ValueError, match=match) as error:
            DPOTrainer(pipe, pairs, config, terms or [dpo(200.0)])
        assert "\n" not in str(error.value)

    refused("statistics matching is made of DDPM's step", terms=[statistics()])
    refused("of a flow model only the transformer", config=replace(QUICK, model="text_encoder"))
    refused("leaves the schedule's 1000", config=replace(QUICK, t_window=(0, 1001)))
    refused("'transformer', which this pipeline does not", tiny_pipeline(), replace(QUICK, model="transformer"))
    other = tiny_sd3_pipeline()
    other.scheduler = DDIMScheduler()
    refused("DDIMScheduler is no schedule of flow matching", other)
    other = tiny_pipeline()
    other.scheduler = FlowMatchEulerDiscreteScheduler()
    refused("schedule of flow matching, the U-Net was trained for another", other)
    wide = replace(pairs, winner=pairs.winner.repeat(1, 2, 1, 1), loser=pairs.loser.repeat(1, 2, 1, 1))
    refused("8 latent channels, the model takes 4", pairs=wide)
    assert adapter_names(pipe.transformer) == ()


def test_pairs_of_another_shift_or_text_encoder_are_refused():
    pipe = tiny_sd3_pipeline()
    known = fingerprints(pipe)
    assert set(known) == {"base", "vae", "text", "text_2", "scheduler"}
    for key, other in (("scheduler", tiny_sd3_pipeline(shift=1.0)), ("text_2", tiny_sd3_pipeline())):
        if key == "text_2":
            next(other.text_encoder_2.parameters()).data += 0.1
        assert {k for k in known if fingerprints(other)[k] != known[k]} == {key}
        with pytest.raises(ValueError, match=f"another {key}"):
            DPOTrainer(other, make_pairs(hashes=known), QUICK, [dpo(200.0)])
    pipe.scheduler.set_timesteps(7)  # a sampler was here
    assert fingerprints(pipe) == known


def test_the_logit_normal_density_draws_the_middle_more_often():
    t = draw_pairs([(i, 0) for i in range(4000)], (1, 1, 1), seed=0, t_window=(100, 900), density="logit_normal").t
    quarter = 100 + 800 / (1 + math.exp(0.67449))  # where a standard normal logit has its first quarter
    low, middle, high = torch.quantile(t.double(), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    assert t.min() >= 100 and t.max() < 900
    assert [low, middle, high] == pytest.approx([quarter, 500, 1000 - quarter], abs=15)
    flat = draw_pairs([(i, 0) for i in range(4000)], (1, 1, 1), seed=0, t_window=(100, 900)).t
    assert float(flat.double().std()) == pytest.approx(800 / 12**0.5, rel=0.05) and t.double().std() < 175


def test_a_configuration_file_trains_an_sd3_folder_and_plain_diffusers_reads_the_result(tmp_path):
    tiny_sd3_pipeline().save_pretrained(tmp_path / "model")
    config = {"steps": 2, "batch_size": 2, "rank": 2, "log_every": 1, "density": "logit_normal", "lr": 0.02}
    assert main([str(write(tmp_path, config=config))]) == 0
    assert {"adapter.safetensors", "log.jsonl", "grid-000002.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    plain = tiny_sd3_pipeline()
    plain.load_lora_weights(str(tmp_path / "out"), weight_name="adapter.safetensors", adapter_name="dpo")
    named = dict(plain.transformer.named_parameters())
    tensors = load_file(tmp_path / "out" / "adapter.safetensors")
    assert tensors and all(
        torch.equal(named[key.removeprefix("transformer.").replace(".weight", ".dpo.weight")], value)
        for key, value in tensors.items()
    )
