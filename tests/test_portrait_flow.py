"""PortraitFlow: its training, its pipeline, and both papers on it, with the shipped weights."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tiny_models import seeded

from labkit.diffusion import encode_images, image_generators, labelled_rows, sample, sample_latents
from labkit.diffusion.flow import flow_latents
from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, dpo
from labkit.errors import LabkitWarning, ModelLoadError
from labkit.fabric import fabric, reference_noise
from labkit.fabric.references import Reference, encode_reference
from labkit.models import data_dir, load_flow, load_pipeline
from labkit.models.checksums import verify
from labkit.models.flow import TOKENS
from labkit.portraits import caption, render_tensor, sample_specs
from labkit.training import evaluate, loop, parts
from labkit.training.export import export_flow
from labkit.training.flow import FlowConditions, new_transformer, noise_levels, train_flow
from labkit.training.loop import LoopConfig, step_generator

PROMPTS = ["a happy person with red hair", "a calm person"]
SHIPPED = data_dir() / "portrait-flow"


@pytest.fixture(scope="module")
def pipe():
    return load_flow()


# ---- the pipeline --------------------------------------------------------------------------------------------------


def test_it_is_small_and_its_parts_are_those_of_portrait_sd(pipe, tmp_path):
    weights = list(SHIPPED.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) < 10e6 and len(weights) == 1
    other = load_pipeline("cpu")
    for mine, its in ((pipe.vae, other.vae), (pipe.text_encoder, other.text_encoder)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), its.parameters(), strict=True))
    assert pipe.transformer.dtype == torch.float32 and not pipe.transformer.training
    assert not any(p.requires_grad for p in pipe.transformer.parameters())
    with pytest.raises(ModelLoadError, match="is incomplete"):
        load_flow(folder=SHIPPED.parent)
    export_flow(seeded(new_transformer, 3), tmp_path)
    assert not torch.equal(load_flow(folder=tmp_path).transformer.proj_out.weight, pipe.transformer.proj_out.weight)


def test_texts_are_what_the_u_net_is_given_cut_to_the_longest_caption(pipe):
    states, negative, pooled, _ = pipe.encode_prompt(PROMPTS, negative_prompt="a sad person")
    assert states.shape == negative.shape == (2, TOKENS, 128) and pooled.shape == (2, 128)
    unets = load_pipeline("cpu").encode_prompt(PROMPTS, "cpu", 1, False)[0]  # 40 tokens
    torch.testing.assert_close(states, unets[:, :TOKENS], rtol=0, atol=1e-5)
    ends = [len(ids) - 1 for ids in pipe.tokenizer(PROMPTS)["input_ids"]]
    torch.testing.assert_close(pooled, states[[0, 1], ends], rtol=0, atol=1e-5)
    twice = pipe.encode_prompt(PROMPTS, num_images_per_prompt=2)[0]
    assert torch.equal(twice[0], twice[1]) and torch.equal(twice[::2], states)
    longest = max(len(pipe.tokenizer(caption(s).text)["input_ids"]) for s in sample_specs(300, seed=4))
    assert longest <= TOKENS
    with pytest.warns(LabkitWarning, match="its end is cut off"):
        pipe.encode_prompt("a person " * 30)
    with pytest.raises(ValueError, match="prompt_2 and prompt_3"):
        pipe.encode_prompt("a", "b")
    with pytest.raises(ValueError, match="got 3 negative prompts for 2 prompts"):
        pipe.encode_prompt(PROMPTS, negative_prompt=["a"] * 3)


def test_sampler_pipeline_and_plain_diffusers_draw_the_same_pictures(pipe, tmp_path):
    start = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"latents": start, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt"}
    theirs = pipe(PROMPTS, **options).images
    ours = sample(pipe, PROMPTS, generators=image_generators(2, 0), latents=start, steps=3, guidance_scale=3.0)
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=0, atol=1e-5)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt(PROMPTS), strict=True))
    pipe.save_pretrained(tmp_path)
    none = dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))
    plain = StableDiffusion3Pipeline.from_pretrained(tmp_path, local_files_only=True, **none)
    plain.set_progress_bar_config(disable=True)
    torch.testing.assert_close(plain(**embeds, **options).images, theirs, rtol=0, atol=1e-5)


# ---- both papers ---------------------------------------------------------------------------------------------------


def test_fabric_with_the_picture_itself_as_reference_changes_nothing(pipe):
    """The row is the reference as its pass sees it: it reads its own keys and values, at any weight."""
    picture = render_tensor(sample_specs(1, seed=6))[0]
    reference = Reference(picture)
    x0 = encode_reference(pipe, reference, 64, 64)
    sigma = torch.tensor([0.7])
    x = flow_latents(x0[None], reference_noise(reference.key, 0, 700.0, x0.shape)[None], sigma)
    other = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(4))
    states, _, pooled, _ = pipe.encode_prompt("a person", do_classifier_free_guidance=False)
    call = {"hidden_states": torch.cat([x, other]), "timestep": 1000 * sigma.repeat(2), "return_dict": False}
    call |= {"encoder_hidden_states": states.repeat(2, 1, 1), "pooled_projections": pooled.repeat(2, 1)}
    with torch.no_grad(), labelled_rows(["cond", "cond"]):
        before = pipe.transformer(**call)[0]
        for text in (None, "a person"):
            with fabric(pipe, liked=[picture], reference_prompt=text, max_weight=2.0, end=1.0):
                after = pipe.transformer(**call)[0]
            torch.testing.assert_close(after[:1], before[:1], rtol=0, atol=1e-4)
            assert (after[1] - before[1]).abs().max() > 1e-3


def test_fabric_moves_a_sampled_picture_and_leaves_the_model_as_it_was(pipe):
    liked = render_tensor(sample_specs(1, seed=6))[0]
    options = {"generators": image_generators(1, 0), "steps": 4}
    plain = sample_latents(pipe, ["a person"], **options).latents
    with fabric(pipe, liked=[liked], steps=4, end=1.0) as session:
        moved = sample_latents(pipe, ["a person"], generators=image_generators(1, 0), steps=4).latents
    assert session.active_calls == 4 and (moved - plain).abs().max() > 1e-3
    again = sample_latents(pipe, ["a person"], generators=image_generators(1, 0), steps=4).latents
    assert torch.equal(again, plain)


def test_a_dpo_step_starts_at_ln_2_and_prefers_the_winners(pipe):
    images = render_tensor(sample_specs(8, seed=7))
    latents = encode_images(pipe, images)
    pairs = PreferencePairs(tuple(PROMPTS * 2), latents[:4], latents[4:])
    config = DPOConfig(steps=6, batch_size=4, lr=3e-3, warmup=0, rank=4, log_every=1, density="logit_normal")
    with DPOTrainer(pipe, pairs, config, [dpo(500.0)]) as trainer:
        log = trainer.run()
    assert log[0]["dpo"] == pytest.approx(math.log(2), abs=1e-6) and log[0]["d_w"] == 0.0
    assert log[-1]["s50"] > 0 and log[-1]["dpo"] < math.log(2)


# ---- training ------------------------------------------------------------------------------------------------------


def test_noise_levels_are_logit_normal_and_stratified():
    levels = torch.cat([noise_levels(64, torch.Generator().manual_seed(i)) for i in range(60)])
    logits = torch.logit(levels.double())
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.02) and float(logits.std()) == pytest.approx(1.0, abs=0.03)
    one = noise_levels(64, torch.Generator().manual_seed(0))
    assert bool((one.diff() > 0).all()) and 0 < one[0] < 0.2 and 0.9 < one[-1] < 1


def made_conditions(n=6, variants=2):
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(n * variants, 40, 128, generator=generator).half()
    ends = torch.arange(n * variants) + 3
    empty = torch.randn(40, 128, generator=generator).half()
    return states, ends, FlowConditions(states, ends, variants, empty, 1), empty


def test_dropped_captions_are_the_empty_prompt_with_its_own_end():
    states, ends, conditions, empty = made_conditions()
    rows = torch.tensor([4, 0, 11])
    text, pooled = conditions(rows, torch.Generator().manual_seed(0), 0.0)
    assert torch.equal(text, states[rows, :TOKENS].float())
    assert torch.equal(pooled, states[rows, ends[rows]].float())
    text, pooled = conditions(rows, torch.Generator().manual_seed(0), 1.0)
    assert torch.equal(text[2], empty[:TOKENS].float()) and torch.equal(pooled[0], empty[1].float())


def test_an_untrained_model_predicts_nothing_so_the_first_loss_is_the_velocity_s_own_size(tmp_path):
    """Zero output: the error is |eps - x_0|^2, computed here from the step's own draws."""
    latents = torch.randn(6, 8, 8, 8, generator=torch.Generator().manual_seed(1)).half() + 0.5
    _, _, conditions, _ = made_conditions()
    torch.manual_seed(0)
    model = new_transformer()
    config = LoopConfig(steps=2, lr=1e-3, warmup=1, seed=5)
    corner = torch.zeros(8, 8)
    corner[1, 2] = 64.0
    train_flow(model, latents, conditions, tmp_path / "one", config=config, batch=4, cell_weight=corner)
    log = json.loads((tmp_path / "one" / "log.jsonl").read_text("utf-8").splitlines()[-1])
    expected = []
    for step in range(2):
        generator = step_generator(5, step)
        index = torch.randint(6, (4,), generator=generator)
        torch.randint(2, (4,), generator=generator)
        noise_levels(4, generator)
        target = torch.randn(4, 8, 8, 8, generator=generator) - latents[index].float()
        expected.append((float(target.square().mean()), float(target[:, :, 1, 2].square().mean())))
    first = np.mean([e[0] for e in expected]), np.mean([e[1] for e in expected])
    assert log["mse"] == pytest.approx(first[0], rel=0.05) and log["weighted"] == pytest.approx(first[1], rel=0.1)


def test_the_first_loss_asks_the_model_at_the_level_of_the_noise_and_with_the_caption(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.training.flow.native_bfloat16", lambda: False)
    latents = torch.randn(6, 8, 8, 8, generator=torch.Generator().manual_seed(1)).half()

    def talking():
        torch.manual_seed(0)
        model = new_transformer()
        for module in (model.proj_out, model.norm_out.linear):  # zero at the start: every answer would be alike
            torch.nn.init.normal_(module.weight, std=0.1)
        return model

    states, ends, conditions, empty = made_conditions()
    train_flow(talking(), latents, conditions, tmp_path, config=LoopConfig(steps=1, lr=1e-3, warmup=1, seed=5), batch=4)
    log = json.loads((tmp_path / "log.jsonl").read_text("utf-8").splitlines()[-1])
    draws = step_generator(5, 0)
    index = torch.randint(6, (4,), generator=draws)
    rows = 2 * index + torch.randint(2, (4,), generator=draws)
    sigma = noise_levels(4, draws)
    x0, noise = latents[index].float(), torch.randn(4, 8, 8, 8, generator=draws)
    text, pooled = conditions(rows, draws, 0.1)
    level = sigma[:, None, None, None]
    with torch.no_grad():
        said = talking()((1 - level) * x0 + level * noise, text, pooled, 1000 * sigma).sample
    assert log["mse"] == pytest.approx(float((said - (noise - x0)).square().mean()), rel=1e-4)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    latents = torch.randn(6, 8, 8, 8, generator=torch.Generator().manual_seed(1)).half()

    def trained(folder):
        torch.manual_seed(0)
        config = LoopConfig(steps=4, lr=1e-3, warmup=1, seed=5, save_seconds=0.0)
        model = train_flow(new_transformer(), latents, made_conditions()[2], folder, config=config, batch=4)
        return model.state_dict()

    class Stop(Exception):
        pass

    whole = trained(tmp_path / "whole")
    saved, original = [], loop.save_checkpoint

    def save_and_stop(*arguments, **options):
        original(*arguments, **options)
        saved.append(1)
        if len(saved) == 2:
            raise Stop

    loop.save_checkpoint = save_and_stop
    try:
        with pytest.raises(Stop):
            trained(tmp_path / "cut")
    finally:
        loop.save_checkpoint = original
    resumed = trained(tmp_path / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not torch.equal(whole["proj_out.weight"], torch.zeros_like(whole["proj_out.weight"]))


def test_exported_alone_it_is_measured_and_the_other_folders_stay_as_they_are(tmp_path, monkeypatch):
    out, work = tmp_path / "data", tmp_path / "work"
    shutil.copytree(data_dir(), out, ignore=shutil.ignore_patterns("studies", "portrait-flow"))
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    seeded(new_transformer, 3).save_pretrained(work / "flow" / "model")
    (work / "flow" / "log.jsonl").write_text('{"step": 50, "mse": 1.9}\n{"step": 60, "mse": 1.8}\n')
    monkeypatch.setenv("LABKIT_DATA", str(out))
    monkeypatch.setattr(evaluate, "STEPS", 1)
    monkeypatch.setattr(evaluate, "sample_specs", lambda n, **options: sample_specs(min(n, 6), **options))
    parts.flow_export(parts.Folders(work, out))
    changed = {p for p, content in before.items() if (out / p).read_bytes() != content}
    assert {p.as_posix() for p in changed} == {"checksums.json", "evaluation.json", "training.json"}
    assert json.loads((out / "training.json").read_text())["flow"]["steps"] == 60
    results, old = (
        json.loads(text) for text in ((out / "evaluation.json").read_text(), before[Path("evaluation.json")])
    )
    assert {k: v for k, v in results.items() if k != "portrait-flow"} == {
        k: old[k] for k in old if k != "portrait-flow"
    }
    card = (out / "portrait-flow" / "README.md").read_text("utf-8")
    assert "1 Euler steps, guidance 3" in card and "60 steps" in card and "loss-flow.png" in card
    assert verify("portrait-flow", out) == 5  # weights, two configurations, the card and its curve
    assert load_pipeline("cpu", variant="portrait-flow").transformer.config.num_layers == 5
