"""Training the decoder: what the weights of portraits and pixels change and what they do not."""

import itertools

import pytest
import torch

from labkit.portraits import PortraitSpec, render_array, sample_specs
from labkit.portraits.render import HAIR, SKIN
from labkit.training.parts import faintness
from labkit.training.vae import new_vae, train_decoder


@pytest.fixture
def images():
    return torch.stack([torch.from_numpy(render_array(s).copy()) for s in sample_specs(3, seed=4)]).numpy()


def one_step(images, folder, **weights):
    """The untrained autoencoder before and after one step of its decoder on two portraits."""
    torch.manual_seed(0)
    vae = new_vae()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    latents = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    latents[1:] = latents[0]  # so that the portraits alone tell one run from another
    validation = torch.zeros(1, 3, 64, 64)
    return before, train_decoder(vae, images, latents, validation, folder, steps=1, batch=2, **weights).state_dict()


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_equal_weights_change_nothing_and_the_encoder_stays(images, tmp_path):
    before, plain = one_step(images, tmp_path / "plain")
    _, equal = one_step(images, tmp_path / "equal", weights=torch.ones(3), pixel_weight=torch.ones(64, 64))
    assert same(plain, equal)
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], plain[k])}
    assert changed == {"decoder", "post_quant_conv"}


def test_portraits_are_drawn_by_their_weights(images, tmp_path):
    _, third = one_step(images, tmp_path / "third", weights=torch.tensor([0.0, 0.0, 2.0]))
    _, alike = one_step(images[[1, 0, 2]], tmp_path / "alike", weights=torch.tensor([0.0, 0.0, 1.0]))
    _, first = one_step(images, tmp_path / "first", weights=torch.tensor([1.0, 0.0, 0.0]))
    assert same(third, alike)
    assert not same(third, first)


def test_pixels_without_weight_have_no_say(images, tmp_path):
    other = images.copy()
    other[:, :10, :10] = 255 - other[:, :10, :10]
    weight = torch.ones(64, 64)
    weight[:11, :11] = 0  # the differences to the next row and column too
    _, a = one_step(images, tmp_path / "a", pixel_weight=weight)
    _, b = one_step(other, tmp_path / "b", pixel_weight=weight)
    _, seen = one_step(other, tmp_path / "seen")
    _, plain = one_step(images, tmp_path / "plain")
    assert same(a, b)
    assert not same(seen, plain)


def test_a_beard_is_the_fainter_the_nearer_its_colour_is_to_the_skin():
    spec = sample_specs(1, seed=0, rare=[({"hair_style": "short", "style": "personas"}, 1.0)])[0]
    values = {(s, h): faintness(spec.with_(skin=s, hair_color=h)) for s, h in itertools.product(SKIN, HAIR)}
    assert max(values, key=values.get) == ("tan", "blonde")
    assert values["tan", "blonde"] == pytest.approx(150 / (1 + 21**2 + 20**2) ** 0.5)
    assert sum(v == 1 for v in values.values()) == len(values) / 2
    bald = spec.with_(hair_style="bald", hair_color="none")
    assert isinstance(bald, PortraitSpec) and faintness(bald) == values[spec.skin, "black"]
