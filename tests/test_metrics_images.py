"""The image pipeline (rounding, resizing, range), extractors and their fingerprints, the FID Inception network."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from labkit.metrics import GaussianStats, ImagePipeline
from labkit.metrics.extractors import (
    Extractor,
    clip_extractor,
    clip_text_embeddings,
    inception_extractor,
    reader_extractor,
    weights_sha256,
)
from labkit.metrics.images import PIPELINES, resize_levels, to_levels, uint8_images
from labkit.metrics.inception_net import FidInception, from_state_dict, load_fid_inception

ROOT = Path(__file__).parents[1]


def pictures(n: int, height: int = 24, width: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def tiny_network(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())


SMALL = ImagePipeline("tiny-8", 8)

# ---- levels and ranges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_all_256_levels_survive_the_round_trip(value_range):
    levels = torch.arange(256, dtype=torch.uint8)
    low, high = value_range
    floats = levels.float() / 255 * (high - low) + low
    assert torch.equal(to_levels(floats, value_range=value_range), levels)
    truncated = ((floats - low) / (high - low) * 255).to(torch.uint8)
    if value_range == (-1.0, 1.0):
        assert not torch.equal(truncated, levels)  # this is what the rounding is for


def test_uint8_passes_through_and_overshoot_is_clamped():
    x = pictures(2)
    assert to_levels(x) is x
    assert to_levels(torch.tensor([-1.3, 1.2])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("values", "value_range"),
    [([0.0, 255.0], (-1.0, 1.0)), ([-1.0, 1.0], (0.0, 1.0)), ([torch.nan, 0.0], (-1.0, 1.0)), ([0.0, 1.0], (1.0, 0.0))],
)
def test_a_wrong_range_is_an_error_not_a_dark_picture(values, value_range):
    with pytest.raises(ValueError, match="image values run from|low < high"):
        to_levels(torch.tensor(values), value_range=value_range)


def test_every_kind_of_picture_gives_the_same_pixels():
    batch = pictures(3)
    arrays = [image.permute(1, 2, 0).numpy() for image in batch]
    floats = batch.float() / 127.5 - 1
    want = SMALL(batch)
    assert want.shape == (3, 3, 8, 8) and want.dtype == torch.float32
    for same in (list(batch), arrays, [Image.fromarray(a) for a in arrays], floats, list(floats), np.stack(arrays)):
        assert torch.equal(SMALL(same), want)
    assert torch.equal(SMALL(floats / 2 + 0.5, value_range=(0, 1)), want)
    assert torch.equal(SMALL(batch[0]), want[:1])
    mixed = [batch[0], pictures(1, 40, 30, seed=1)[0]]  # sizes may differ in a list
    assert torch.equal(SMALL(mixed)[0], want[0])
    assert uint8_images(Image.new("L", (5, 4)))[0].shape == (3, 4, 5)


@pytest.mark.parametrize("bad", [torch.zeros(2, 1, 8, 8), torch.zeros(8, 8), [], ["a.png"], np.zeros((8, 8, 3)), 3])
def test_other_shapes_are_refused(bad):
    with pytest.raises(ValueError, match="image") as error:
        SMALL(bad)
    assert "\n" not in str(error.value)


# ---- resizing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [13, 60])
def test_bicubic_antialias_is_pillows_filter(size):
    x = pictures(1, 40, 33)
    ours = resize_levels(x.float(), size, "bicubic-antialias")[0]
    for channel in range(3):
        plane = Image.fromarray(x[0, channel].numpy().astype(np.float32), mode="F")
        theirs = torch.from_numpy(np.array(plane.resize((size, size), Image.Resampling.BICUBIC))).clamp(0, 255)
        torch.testing.assert_close(ours[channel], theirs, atol=0.02, rtol=0)


def test_tf1_bilinear_samples_from_the_corner():
    x = torch.tensor([0.0, 10.0, 20.0, 30.0]).view(1, 1, 1, 4).expand(1, 3, 4, 4)
    up = resize_levels(x, 8, "bilinear-tf1")[0, 0]
    assert up[0].tolist() == [0, 5, 10, 15, 20, 25, 30, 30]
    assert torch.equal(up[0], up[5])
    down = resize_levels(x, 2, "bilinear-tf1")[0, 0, 0]
    assert down.tolist() == [0, 20]  # every second pixel, nothing averaged: the aliasing of published FIDs


def test_resizes_differ_and_the_right_size_is_untouched():
    x = pictures(1, 64, 64).float()
    outputs = [resize_levels(x, 20, r) for r in ("bicubic-antialias", "bilinear-antialias", "bilinear", "bilinear-tf1")]
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert float((a - b).abs().mean()) > 1
    assert resize_levels(x, 64, "bilinear") is x
    with pytest.raises(ValueError, match="unknown resize"):
        ImagePipeline("x", 8, "lanczos")


def test_fid_scaling_is_minus_128_over_128():
    for name in ("clean-299", "legacy-299"):
        x = PIPELINES[name](
            torch.tensor([0, 128, 255], dtype=torch.uint8).repeat(299, 100)[None, :, :299].expand(3, 299, 299)
        )
        assert x[0, 0, 0, :3].tolist() == pytest.approx([-1, 0, 127 / 128], abs=1e-6)
    assert "bicubic-antialias 299x299" in PIPELINES["clean-299"].describe()


# ---- extractors ---------------------------------------------------------------------------------------------------


def test_extractor_batches_sets_eval_mode_and_streams_statistics():
    network = tiny_network().train()
    extractor = Extractor("tiny/conv", network, SMALL, batch_size=4)
    x = pictures(10)
    features = extractor(x)
    assert features.shape == (10, 4 * 36) and not network.training
    torch.testing.assert_close(features, Extractor("tiny/conv", network, SMALL, batch_size=3)(list(x)))
    stats = extractor.stats(x.split(3))
    whole = GaussianStats.from_features(features)
    torch.testing.assert_close(stats.covariance, whole.covariance, rtol=1e-4, atol=1e-6)
    assert stats.n == 10 and stats.fingerprint == extractor.fingerprint


def test_fingerprint_tells_weights_and_pipelines_apart():
    a = Extractor("tiny/conv", tiny_network(), SMALL).fingerprint
    assert a == Extractor("tiny/conv", tiny_network(), SMALL).fingerprint
    assert a.differences(Extractor("tiny/conv", tiny_network(1), SMALL).fingerprint)[0].startswith("weights")
    other = Extractor("tiny/conv", tiny_network(), ImagePipeline("tiny-8", 8, "bilinear")).fingerprint
    assert a.differences(other)[0].startswith("pipeline")
    module = tiny_network()
    before = weights_sha256(module)
    module[1].running_mean[0] += 1  # buffers count
    assert weights_sha256(module) != before
    assert Extractor("pixels", lambda x: x.flatten(1), SMALL).fingerprint.weights == ""


def test_an_extractor_that_does_not_return_rows_is_refused():
    with pytest.raises(ValueError, match=r"must return \[N, d\]"):
        Extractor("maps", lambda x: x, SMALL)(pictures(2))
    with pytest.raises(ValueError, match="no images"):
        Extractor("maps", lambda x: x.flatten(1), SMALL)([])


class Reader(torch.nn.Module):
    """The interface of labkit.models.reader.AttributeReader that the extractor uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 5)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (3, 64, 64) and images.min() >= -1 and images.max() <= 1
        return self.linear(images.mean(dim=(2, 3)))


def test_reader_extractor_feeds_64_pixel_images_in_minus_one_one():
    extractor = reader_extractor(Reader())
    x = pictures(3, 64, 64).float() / 127.5 - 1
    torch.testing.assert_close(extractor(x), extractor.module.features(x).detach(), rtol=1e-4, atol=1e-5)
    assert extractor(pictures(2, 100, 90)).shape == (2, 5)
    assert (
        extractor.fingerprint.extractor == "attribute-reader/penultimate" and len(extractor.fingerprint.weights) == 64
    )


@pytest.fixture(scope="module")
def clip():
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = tower | {
        "vocab_size": 30,
        "max_position_embeddings": 8,
        "eos_token_id": 29,
        "bos_token_id": 28,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(
            text_config=text, vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=12
        )
        model = CLIPModel(config).eval()

    class Inputs:
        image_size, mean, std = 16, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)

        def __call__(self, texts):
            ids = [([28] + [1 + ord(c) % 26 for c in text][:6] + [29] + [0] * 7)[:8] for text in texts]
            ids = torch.tensor(ids)
            return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    return model, Inputs()


def test_clip_extractor_and_texts_give_unit_embeddings_like_transformers(clip):
    model, inputs = clip
    x = pictures(3, 16, 16)
    images = clip_extractor(clip=clip)(x)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (inputs.mean, inputs.std))
    texts = clip_text_embeddings(["a cat", "dogs", "x"], clip=clip, batch_size=2)
    tokens = inputs(["a cat", "dogs", "x"])
    with torch.no_grad():
        want = model(pixel_values=(x.float() / 255 - mean) / std, **tokens)
    torch.testing.assert_close(images, want.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, want.text_embeds, rtol=1e-4, atol=1e-5)
    assert "clip-16" in clip_extractor(clip=clip).fingerprint.pipeline
    with pytest.raises(ValueError, match="no texts"):
        clip_text_embeddings([], clip=clip)


def test_an_extractor_goes_back_to_eval_after_somebody_trained():
    network = tiny_network()
    extractor = Extractor("tiny", network, SMALL)
    want = extractor(pictures(6))
    network.train()
    assert torch.equal(extractor(pictures(6)), want) and torch.equal(extractor(pictures(6)), want)
    next(network.children()).train()  # a part of it alone
    assert torch.equal(extractor(pictures(6)), want) and not any(part.training for part in network.modules())
    assert extractor.fitting("crop").pipeline.fit == "crop"


# ---- the FID network ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception():
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = FidInception()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in network.state_dict().items():
        if "running_var" in name or name.endswith("bn.weight"):
            state[name] = torch.ones(tensor.shape)
        elif name.endswith("num_batches_tracked"):
            continue
        else:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
            state[name] = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
    return state


def test_fid_inception_has_the_published_architecture():
    with torch.device("meta"):
        network = FidInception()
    assert (
        sum(p.numel() for p in network.parameters()) == 23_850_960
    )  # Inception-v3 without auxiliary head, 1008 classes
    names = set(network.state_dict())
    assert {
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_5b.branch_pool.bn.bias",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
    } <= names
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.eps == 0.001


def test_inception_extractor_from_a_local_file(tmp_path, inception):
    path = tmp_path / "fid.safetensors"
    save_file(inception, path)
    extractor = inception_extractor(path, pipeline="legacy-299")
    features = extractor(pictures(1, 32, 32))
    assert features.shape == (1, 2048) and bool((features >= 0).all()) and float(features.std()) > 0
    logits = inception_extractor(path, layer="logits", pipeline="legacy-299")(pictures(1, 32, 32))
    torch.testing.assert_close(logits, features @ inception["fc.weight"].T, rtol=1e-4, atol=1e-4)
    assert extractor.fingerprint.weights == weights_sha256(load_fid_inception(path))
    torch.save(inception, tmp_path / "pt_inception.pth")  # as pytorch-fid distributes them
    assert load_fid_inception(tmp_path / "pt_inception.pth").fc.weight.equal(inception["fc.weight"])
    theirs = inception_extractor(path, pipeline="legacy-299", layer="pool1")
    assert theirs.fingerprint.weights == extractor.fingerprint.weights
    assert theirs(pictures(1, 32, 32)).shape == (1, 64)
    x = torch.zeros(1, 3, 80, 80)
    widths = {layer: theirs.module.features(x, layer=layer).shape[1] for layer in ("pool2", "preaux", "logits")}
    assert widths == {"pool2": 192, "preaux": 768, "logits": 1008}


def test_inception_weights_from_torch_fidelity_when_it_is_installed(monkeypatch, inception):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = lambda name, layers: types.SimpleNamespace(state_dict=lambda: inception)
    package = types.ModuleType("torch_fidelity")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    extractor = inception_extractor()
    assert torch.equal(extractor.module.fc.weight, inception["fc.weight"])
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ModuleNotFoundError, match="safetensors"):
        inception_extractor()


def test_foreign_weights_are_refused(tmp_path, inception):
    with pytest.raises(FileNotFoundError, match="no FID Inception weights at"):
        inception_extractor(tmp_path / "none.safetensors")
    (tmp_path / "fid.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="fid.safetensors is not readable as safetensors"):
        inception_extractor(tmp_path / "fid.safetensors")
    (tmp_path / "fid.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="fid.pt is no readable file of torch"):
        inception_extractor(tmp_path / "fid.pt")
    (tmp_path / "fid.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="neither .pth nor .safetensors"):
        inception_extractor(tmp_path / "fid.bin")
    (tmp_path / "fid.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="not readable"):
        inception_extractor(tmp_path / "fid.safetensors")
    with pytest.raises(ValueError, match="other parameters"):
        from_state_dict({k: v for k, v in inception.items() if k != "fc.bias"}, "file")
    with pytest.raises(ValueError, match=r"fc.bias is \(1000,\)"):
        from_state_dict(inception | {"fc.bias": torch.zeros(1000)}, "file")
    for options in ({"layer": "pool9"}, {"pipeline": "portrait-64"}):
        with pytest.raises(ValueError, match="unknown"):
            inception_extractor("x", **options)
