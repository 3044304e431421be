"""Training the U-Net: what the weights on latent cells change and what they do not."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from labkit.models import data_dir
from labkit.models.train.loop import LoopConfig
from labkit.models.train.unet import Conditions, evidence, train_unet
from labkit.portraits import sample_specs


def train_one_step(folder, cell_weight):
    """A tiny U-Net after one step, and what it logged."""
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
    conditions = Conditions(states, 2, torch.zeros(5, 16))
    config = LoopConfig(steps=1, lr=1e-3, warmup=1)
    trained = train_unet(unet, latents, conditions, folder, config=config, batch=4, cell_weight=cell_weight)
    return trained.state_dict(), json.loads((folder / "log.jsonl").read_text("utf-8").splitlines()[-1])


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
    beard, background = evidence(vae, specs, ["beard"]), evidence(vae, specs, ["background"])
    assert beard.mean().item() == pytest.approx(1.0, abs=1e-5)
    face = beard[3:7, 1:6].sum() / beard.sum()
    assert face > 0.9
    assert background[:2, [0, 7]].mean() > 5 * beard[:2, [0, 7]].mean()
    both = evidence(vae, specs, ["beard", "background"])
    assert torch.allclose(both, (beard + background) / 2)
