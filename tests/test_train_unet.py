"""Training the U-Net: what the weights on latent cells change and what they do not."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from labkit.models import data_dir
from labkit.portraits import random_caption, sample_specs
from labkit.training.loop import LoopConfig, step_generator
from labkit.training.parts import caption_groups
from labkit.training.unet import CaptionGroups, Conditions, encode_images, evidence, train_unet


def tiny():
    """(U-Net, latents, text conditions), the same each time."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    latents = torch.randn(6, 8, 8, 8, generator=torch.Generator().manual_seed(1)).half()
    states = torch.randn(12, 5, 16, generator=torch.Generator().manual_seed(2)).half()
    return unet, latents, Conditions(states, 2, torch.zeros(5, 16))


def train_one_step(folder, cell_weight, groups=None):
    """A tiny U-Net after one step, and what it logged."""
    unet, latents, conditions = tiny()
    config = LoopConfig(steps=1, lr=1e-3, warmup=1)
    trained = train_unet(
        unet, latents, conditions, folder, config=config, batch=4, cell_weight=cell_weight, groups=groups
    )
    return trained.state_dict(), json.loads((folder / "log.jsonl").read_text("utf-8").splitlines()[-1])


def test_the_first_loss_is_that_of_diffusers_scheduler_and_the_weights_written_out(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.training.unet.native_bfloat16", lambda: False)
    _, log = train_one_step(tmp_path, None)
    unet, latents, conditions = tiny()
    draws = step_generator(LoopConfig(steps=1, lr=1e-3, warmup=1).seed, 0)
    index = torch.randint(6, (4,), generator=draws)
    captions = 2 * index + torch.randint(2, (4,), generator=draws)
    t = (torch.tensor([0, 250, 500, 750]) + torch.randint(1000, (1,), generator=draws)) % 1000
    noise = torch.randn(4, 8, 8, 8, generator=draws)
    empty = torch.rand(4, generator=draws) < 0.1
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noisy = scheduler.add_noise(latents[index].float(), noise, t)
    texts = conditions.states[captions].float() * ~empty[:, None, None]  # the empty prompt is zeros here
    with torch.no_grad():
        errors = (unet(noisy, t, texts).sample - noise).square().mean((1, 2, 3)).tolist()
    ratios = [float(a / (1 - a)) for a in scheduler.alphas_cumprod[t]]
    weights = [min(max(ratio, 0.05), 2.0) / ratio for ratio in ratios]
    assert min(weights) < 1 < max(weights)
    assert log["mse"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert log["weighted"] == pytest.approx(np.mean(np.multiply(weights, errors)), rel=1e-5)


def test_equal_cell_weights_change_nothing(tmp_path):
    plain, plain_log = train_one_step(tmp_path / "plain", None)
    equal, equal_log = train_one_step(tmp_path / "equal", torch.ones(8, 8))
    assert all(torch.equal(plain[k], equal[k]) for k in plain)
    assert plain_log["weighted"] == equal_log["weighted"]


def test_the_logged_mse_does_not_depend_on_cell_weights_but_the_training_does(tmp_path):
    corner = torch.zeros(8, 8)
    corner[0, 0] = 64.0
    plain, plain_log = train_one_step(tmp_path / "plain", None)
    heavy, heavy_log = train_one_step(tmp_path / "heavy", corner)
    assert heavy_log["mse"] == pytest.approx(plain_log["mse"], rel=1e-6)
    assert heavy_log["weighted"] != plain_log["weighted"]
    assert any(not torch.equal(plain[k], heavy[k]) for k in plain)


def test_evidence_of_a_beard_lies_in_the_face_and_that_of_the_background_outside():
    vae, specs = AutoencoderKL.from_pretrained(data_dir() / "portrait-sd" / "vae"), sample_specs(24, seed=5)
    encode = partial(encode_images, vae)
    beard, background = evidence(encode, specs, ["beard"]), evidence(encode, specs, ["background"])
    assert beard.mean().item() == pytest.approx(1.0, abs=1e-5)
    face = beard[3:7, 1:6].sum() / beard.sum()
    assert face > 0.9
    assert background[:2, [0, 7]].mean() > 5 * beard[:2, [0, 7]].mean()
    both = evidence(encode, specs, ["beard", "background"])
    assert torch.allclose(both, (beard + background) / 2)


def world(n=600, seed=3, beard_weight=1.0):
    """Portraits, two captions each, and their groups as in the recipe."""
    specs = sample_specs(n, seed=seed)
    rng = np.random.default_rng(seed)
    captions = [random_caption(s, rng) for s in specs for _ in range(2)]
    return specs, captions, caption_groups(specs, captions, beard_weight)


def test_the_images_of_a_group_fit_its_caption():
    specs, captions, groups = world()
    images, drawn = groups(64, torch.Generator().manual_seed(0))
    assert images.shape == drawn.shape == (64,)
    for i, c in zip(images.tolist(), drawn.tolist(), strict=True):
        own = specs[c // 2]
        assert all(getattr(specs[i], a) == getattr(own, a) for a in captions[c].named)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_group_shows_the_shares_of_the_images_that_fit(weight):
    specs, captions, groups = world(2000, beard_weight=weight)
    caption = next(
        k for k, c in enumerate(captions) if 1 <= len(c.named) <= 2 and "beard" not in c.named and "mood" not in c.named
    )
    named = captions[caption].named
    bald = specs[caption // 2].hair_style == "bald"
    fit = [
        s
        for s in specs
        if all(getattr(s, a) == getattr(specs[caption // 2], a) for a in named) and (s.hair_style == "bald") == bald
    ]
    share = np.average([s.beard == "none" for s in fit], weights=[1 if s.beard == "none" else weight for s in fit])
    generator = torch.Generator().manual_seed(1)
    rows = groups.members(torch.full((400,), caption), generator)  # [400, 4]
    count = np.array([[specs[i].beard == "none" for i in row] for row in rows.tolist()]).sum(1)
    assert set(count) <= {int(np.floor(4 * share)), int(np.ceil(4 * share))}  # four independent draws: 0 to 4
    assert abs(count.mean() / 4 - share) < 0.05
    # every image that fits has its turn: 400 groups of 4 draws
    times = np.bincount(rows.flatten().numpy(), minlength=len(specs))
    chance = {s: 1 if s.beard == "none" else weight for s in fit}
    expected = np.array([1600 * chance.get(s, 0) / sum(chance.values()) for s in specs])
    assert times[expected == 0].sum() == 0
    assert ((times - expected)[expected > 0] ** 2).mean() < 3 * expected[expected > 0].mean()


def test_groups_change_nothing_in_how_often_captions_and_values_meet():
    specs, captions, groups = world()
    generator = torch.Generator().manual_seed(2)
    images, drawn = (torch.cat(x).tolist() for x in zip(*[groups(48, generator) for _ in range(400)], strict=True))
    named = [len(c.named) for c in captions]
    assert np.mean([named[c] for c in drawn]) == pytest.approx(np.mean(named), abs=0.12)
    for attribute, value in (("beard", "none"), ("mood", "happy"), ("hair_style", "bald"), ("style", "personas")):
        of_world = np.mean([getattr(s, attribute) == value for s in specs])
        assert np.mean([getattr(specs[i], attribute) == value for i in images]) == pytest.approx(of_world, abs=0.02)
    bald = [specs[i].hair_style == "bald" for i, c in zip(images, drawn, strict=True) if not captions[c].named]
    own = [specs[k // 2].hair_style == "bald" for k, c in enumerate(captions) if not c.named]
    assert len(own) > 20 and np.mean(bald) == pytest.approx(np.mean(own), abs=0.06)


def test_weights_of_images_hold_for_groups_and_single_captions():
    specs, captions, groups = world(beard_weight=2.0)
    generator = torch.Generator().manual_seed(2)
    images, drawn = (torch.cat(x).tolist() for x in zip(*[groups(48, generator) for _ in range(400)], strict=True))
    none = np.array([s.beard == "none" for s in specs])
    expected = none.sum() / (none.sum() + 2 * (~none).sum())
    opened = np.array([len(captions[c].named) <= CaptionGroups.MOST - 1 for c in drawn])
    assert np.mean(none[images][opened]) == pytest.approx(expected, abs=0.03)
    assert np.mean(none[images][~opened]) == pytest.approx(expected, abs=0.03)


def test_groups_and_single_captions_take_turns():
    _, captions, groups = world()
    _, drawn = groups(48, torch.Generator().manual_seed(3))
    blocks = drawn.view(12, 4)
    grouped = [bool((row == row[0]).all()) and len(captions[row[0]].named) <= 5 for row in blocks]
    assert 4 <= sum(grouped) <= 8
    runs = "".join("g" if g else "s" for g in grouped)
    assert "ggg" not in runs and "sss" not in runs


def test_training_with_groups_trains(tmp_path):
    groups = CaptionGroups(torch.arange(6)[:, None] % 2, torch.zeros(12, 1, dtype=torch.bool), [0])
    plain, _ = train_one_step(tmp_path / "plain", None)
    grouped, log = train_one_step(tmp_path / "grouped", None, groups)
    assert log["mse"] > 0
    assert any(not torch.equal(plain[k], grouped[k]) for k in plain)


def test_a_batch_without_a_whole_group_has_single_captions():
    _, captions, groups = world()
    for seed in range(8):
        images, drawn = groups(3, torch.Generator().manual_seed(seed))
        assert torch.equal(images, drawn // 2) and all(len(captions[c].named) > 5 for c in drawn)
