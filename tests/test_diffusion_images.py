"""Latents, image tensors and pictures: scaling, rounding, sizes."""

import numpy as np
import pytest
import torch
from PIL import Image

from labkit.diffusion import (
    decode_latents,
    encode_images,
    from_pil,
    from_uint8,
    image_generators,
    scale_latents,
    to_pil,
    to_uint8,
    unscale_latents,
    vae_scale_factor,
)
from tests.tiny_models import tiny_vae


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


def images(n: int = 2, size: int = 16):
    return torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_all_256_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(to_uint8(from_uint8(levels)), levels)


def test_rounding_is_to_the_nearest_level_not_down():
    value = torch.full((1, 3, 1, 1), 99.6 / 127.5 - 1)
    assert to_uint8(value).flatten().tolist() == [100, 100, 100]
    noise = images(4, 32)
    error = to_uint8(noise).astype(float) - (noise.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    assert abs(error).max() <= 0.5 + 1e-4 and abs(error.mean()) < 0.01  # truncation has a mean of -0.5


def test_values_outside_the_range_are_clamped_and_nan_is_refused():
    extremes = torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert to_uint8(extremes)[0, 0].tolist() == [[0, 0, 0], [255, 255, 255]]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))


def test_pictures_round_trip_and_other_modes_become_rgb():
    pictures = to_pil(images())
    assert pictures[0].mode == "RGB" and pictures[0].size == (16, 16)
    assert np.array_equal(to_uint8(from_pil(pictures)), np.stack([np.asarray(p) for p in pictures]))
    assert from_pil([pictures[0].convert("L")]).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="one common size"):
        from_pil([Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))])


def test_encode_and_decode_are_the_vaes_own_with_its_scaling_factor(vae):
    x = images()
    expected = vae.encode(x).latent_dist.mode() * 0.5
    assert torch.equal(encode_images(vae, x), expected)
    latents = torch.randn((2, 4, 2, 2), generator=torch.Generator().manual_seed(1))
    assert torch.equal(decode_latents(vae, latents), vae.decode(latents / 0.5).sample)
    assert vae_scale_factor(vae) == 8


def test_a_sampled_encoding_has_one_stream_per_image_and_the_posteriors_spread(vae):
    x = images(3)
    together = encode_images(vae, x, generators=image_generators(3, 7))
    alone = encode_images(vae, x[2:], generators=image_generators(1, 7, first=2))
    torch.testing.assert_close(together[2:], alone, rtol=1e-5, atol=1e-5)
    posterior = vae.encode(x[:1].expand(200, -1, -1, -1)).latent_dist
    draws = encode_images(vae, x[:1].expand(200, -1, -1, -1), generators=image_generators(200, 3)) / 0.5
    ratio = (draws - posterior.mode()).std(0) / posterior.std[0]
    assert 0.9 < float(ratio.mean()) < 1.1


def test_batch_size_does_not_change_the_result(vae):
    x = images(3)
    torch.testing.assert_close(encode_images(vae, x, batch_size=2), encode_images(vae, x), rtol=1e-5, atol=1e-5)
    z = encode_images(vae, x)
    torch.testing.assert_close(decode_latents(vae, z, batch_size=1), decode_latents(vae, z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"shift_factor": 0.3},
        {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [0.5, 1.0, 2.0, 4.0]},
    ],
    ids=["shift", "per_channel"],
)
def test_shift_and_per_channel_statistics_are_honoured(config):
    vae = tiny_vae()
    vae.register_to_config(**config)
    z = torch.randn((2, 4, 2, 2), generator=torch.Generator().manual_seed(2))
    scaled = scale_latents(z, vae)
    torch.testing.assert_close(unscale_latents(scaled, vae), z, rtol=1e-6, atol=1e-6)
    if "shift_factor" in config:
        torch.testing.assert_close(scaled, (z - 0.3) * 0.5)
    else:
        torch.testing.assert_close(scaled[:, 3], (z[:, 3] - 0.4) / 4.0 * 0.5)


def test_gradients_flow_through_decoding(vae):
    latents = torch.zeros((1, 4, 2, 2), requires_grad=True)
    decode_latents(vae, latents).sum().backward()
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 20, 16), "multiples of 8, for example 16x16"),
        ((1, 3, 4, 4), "multiples of 8, for example 8x8"),
    ],
)
def test_sizes_that_the_vae_cannot_take_are_refused(vae, shape, message):
    with pytest.raises(ValueError, match=message):
        encode_images(vae, torch.zeros(shape))


def test_other_wrong_inputs_are_refused(vae):
    with pytest.raises(ValueError, match="float tensor .N, 3, H, W."):
        encode_images(vae, torch.zeros((1, 1, 16, 16)))
    with pytest.raises(ValueError, match="float tensor .N, 3, H, W."):
        to_uint8(torch.zeros((1, 3, 16, 16), dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected \[N, 4, h, w\]"):
        decode_latents(vae, torch.zeros((1, 8, 2, 2)))
    with pytest.raises(ValueError, match="uint8 array"):
        from_uint8(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="batch_size is 0"):
        decode_latents(vae, torch.zeros((1, 4, 2, 2)), batch_size=0)
