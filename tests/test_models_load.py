"""Loaders: one call per tier, and one clear line for everything that can be wrong with files, devices and network."""

import json
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from labkit.diffusion import image_generators, sample
from labkit.errors import LabkitWarning
from labkit.models import LabkitError, ModelLoadError, checksums, data_dir, load, load_clip, load_pipeline, load_reader
from labkit.models.checksums import read_checksums, sha256, verify, write_checksums
from labkit.models.local_folder import OPENAI_MEAN, OPENAI_STD, pixel_statistics
from labkit.models.paths import local_model, models_dir
from labkit.models.sd_layout import clip_tokenizer
from tests.tiny_models import seeded, tiny_pipeline


def tiny_clip():
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    ids = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 1}
    text = tower | ids | {"max_position_embeddings": 16, "projection_dim": 16}
    vision = tower | {"image_size": 64, "patch_size": 16, "projection_dim": 16}
    return seeded(lambda: CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)), 0)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with a tiny pipeline (stored in fp16, as the real one) and a tiny CLIP, with checksums."""
    folder = tmp_path / "data"
    with load.quiet():
        pipe = tiny_pipeline()
        for component in ("unet", "vae", "text_encoder"):
            getattr(pipe, component).to(torch.float16)
        pipe.save_pretrained(str(folder / "portrait-sd"))
        tiny_clip().save_pretrained(str(folder / "portrait-clip"))
        clip_tokenizer(514, 16).save_pretrained(str(folder / "portrait-clip"))
    monkeypatch.setenv("LABKIT_DATA", str(folder))
    monkeypatch.delenv("LABKIT_MODELS", raising=False)
    write_checksums()
    return folder


def weights(folder):
    return folder / "portrait-sd" / "unet" / "diffusion_pytorch_model.safetensors"


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 450
    return text


@pytest.mark.parametrize("tier", ["smoke", "cpu"])
def test_small_tiers_load_float32_frozen_quiet_and_ready_to_sample(data, tier, capfd):
    pipe = load_pipeline(tier)
    modules = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert {p.dtype for m in modules for p in m.parameters()} == {torch.float32}
    assert {p.device.type for m in modules for p in m.parameters()} == {"cpu"}
    assert not any(p.requires_grad or m.training for m in modules for p in m.parameters())
    assert type(pipe.scheduler).__name__ == "DDIMScheduler" and not pipe.scheduler.config.set_alpha_to_one
    images = sample(pipe, "a hat", generators=image_generators(1, 0), steps=2)
    assert bool(torch.isfinite(images).all())
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_weights_are_those_of_the_files_rounded_to_fp16(data):
    original = tiny_pipeline().unet.state_dict()
    for name, value in load_pipeline("cpu").unet.state_dict().items():
        assert torch.equal(value, original[name].half().float()), name
    half = load_pipeline("cpu", dtype=torch.bfloat16)
    assert half.unet.dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16


def test_the_plain_library_loads_the_same_folder(data):
    from diffusers import StableDiffusionPipeline

    with load.quiet():
        pipe = StableDiffusionPipeline.from_pretrained(str(data / "portrait-sd"))
    assert torch.equal(pipe.unet.conv_in.weight.float(), load_pipeline("cpu").unet.conv_in.weight)


def test_the_variant_names_the_folder(data):
    (data / "portrait-sd").rename(data / "portrait-sd-base")
    write_checksums()
    assert load_pipeline("cpu", variant="portrait-sd-base").unet is not None
    with pytest.raises(ModelLoadError, match="portrait-sd is missing"):
        load_pipeline("cpu")
    with pytest.raises(ModelLoadError, match="variant is 'sd'"):
        load_pipeline("cpu", variant="sd")


def test_loading_leaves_the_libraries_logging_settings_alone(data):
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for module in (diffusers_logging, transformers_logging):
        module.enable_progress_bar()
        module.set_verbosity_warning()
    load_pipeline("cpu")
    for module in (diffusers_logging, transformers_logging):
        assert module.is_progress_bar_enabled() and module.get_verbosity() == 30


def test_the_gpu_tier_takes_a_local_folder_by_argument_or_from_labkit_models(data, tmp_path, monkeypatch):
    by_argument = load_pipeline("gpu", device="cpu", folder=data / "portrait-sd")
    (tmp_path / "models").mkdir()
    (data / "portrait-sd").rename(tmp_path / "models" / "stable-diffusion-v1-5")
    monkeypatch.setenv("LABKIT_MODELS", str(tmp_path / "models"))
    by_environment = load_pipeline("gpu", device="cpu")
    assert torch.equal(by_argument.unet.conv_in.weight, by_environment.unet.conv_in.weight)
    assert local_model(load.SD15) == models_dir() / "stable-diffusion-v1-5"


def test_fp16_files_are_taken_where_only_they_exist(data):
    for path in list((data / "portrait-sd").rglob("*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    pipe = load_pipeline("cpu", folder=data / "portrait-sd")
    assert pipe.unet.dtype == torch.float32


@pytest.mark.parametrize("old", [False, True])
def test_both_names_of_the_dtype_argument_are_known(monkeypatch, old):
    import diffusers

    monkeypatch.setattr(diffusers, "__version__", "0.39.1" if old else "1.2.0.dev0")
    assert load._dtype_argument(torch.float32) == {"torch_dtype" if old else "dtype": torch.float32}


def test_missing_folder_says_how_to_get_it(data, monkeypatch):
    monkeypatch.setenv("LABKIT_DATA", str(data / "nowhere"))
    with pytest.raises(ModelLoadError, match="portrait-sd is missing.*git checkout.*LABKIT_DATA.*make train") as error:
        load_pipeline("cpu")
    one_line(error)
    with pytest.raises(ModelLoadError, match="nothing is not a folder"):
        load_pipeline("cpu", folder=data / "nothing")


def test_a_missing_file_is_named(data):
    weights(data).unlink()
    with pytest.raises(ModelLoadError, match="diffusion_pytorch_model.safetensors is missing"):
        load_pipeline("cpu")
    with pytest.raises(ModelLoadError, match=r"no \*.safetensors in unet"):
        load_pipeline("cpu", folder=data / "portrait-sd")
    (data / "portrait-sd" / "model_index.json").unlink()
    with pytest.raises(ModelLoadError, match="incomplete: model_index.json is missing"):
        load_pipeline("cpu", folder=data / "portrait-sd")


def test_pickled_weights_are_not_opened(data):
    weights(data).rename(weights(data).with_suffix(".bin"))
    with pytest.raises(ModelLoadError, match="only pickled weights in unet: get the safetensors version"):
        load_pipeline("cpu", folder=data / "portrait-sd")


def test_one_changed_byte_is_noticed_by_the_checksum(data):
    content = bytearray(weights(data).read_bytes())
    content[-1] ^= 1
    weights(data).write_bytes(content)
    with pytest.raises(ModelLoadError, match="model.safetensors is damaged .*SHA-256.*git checkout") as error:
        load_pipeline("cpu")
    one_line(error)


def test_a_truncated_file_without_checksum_is_an_error_of_one_line(data):
    weights(data).write_bytes(weights(data).read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="could not be loaded, a file may be damaged") as error:
        load_pipeline("cpu", folder=data / "portrait-sd")
    one_line(error)
    assert error.value.__cause__ is not None


def test_damaged_json_is_an_error_of_one_line(data):
    index = data / "portrait-sd" / "model_index.json"
    index.write_text("{")
    with pytest.raises(ModelLoadError, match="model_index.json is damaged"):
        load_pipeline("cpu", folder=data / "portrait-sd")
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ModelLoadError, match="holds a FluxPipeline: expected StableDiffusionPipeline"):
        load_pipeline("cpu", folder=data / "portrait-sd")
    (data / "checksums.json").write_text("[")
    with pytest.raises(ModelLoadError, match="checksums.json is not readable"):
        load_pipeline("cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tier": "tpu"}, "tier is 'tpu', expected one of smoke, cpu, gpu"),
        ({"tier": "cpu", "dtype": torch.float16}, "float16 does not run on a CPU: use dtype=torch.float32"),
        ({"tier": "cpu", "dtype": torch.int8}, "dtype is torch.int8, expected torch.float32"),
        ({"tier": "cpu", "device": "gpu0"}, "'gpu0' is not a torch device"),
        ({"tier": "gpu"}, "no CUDA GPU was found: use tier='cpu'"),
        ({"tier": "cpu", "device": "cuda"}, "no CUDA GPU was found"),
    ],
)
def test_wrong_tiers_devices_and_dtypes(data, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match=message) as error:
        load_pipeline(**arguments)
    one_line(error)
    assert isinstance(error.value, LabkitError)


def test_without_network_the_hub_model_is_an_error_of_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("LABKIT_MODELS", raising=False)
    monkeypatch.setattr(load, "SD15", "labkit-test/no-such-model")
    for call in (lambda: load_pipeline("gpu", device="cpu"), lambda: load_clip("gpu", device="cpu")):
        with pytest.raises(ModelLoadError, match="could not be loaded from the hub .*check the network.*LABKIT_MODELS"):
            call()


def test_clip_loads_with_its_inputs(data):
    model, inputs = load_clip("cpu")
    batch = inputs(["a hat", "a red coat"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 16)
    assert batch["attention_mask"][0].sum() < 16
    features = model.text_model(**batch).pooler_output
    assert features.shape == (2, 32) and not features.requires_grad
    images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(inputs.pixels(images), images)  # PortraitCLIP takes [-1, 1] as it is
    with pytest.raises(ValueError, match="the context holds 16: shorten"):
        inputs(["a hat " * 20])
    assert inputs(["a hat " * 20], truncate=True)["input_ids"].shape == (1, 16)
    with pytest.raises(TypeError, match="put it in a list"):
        inputs("a hat")


def test_openai_clip_inputs_are_resized_and_normalised_and_stay_differentiable(data):
    statistics = {"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}
    (data / "portrait-clip" / "preprocessor_config.json").write_text(json.dumps(statistics))
    _, inputs = load_clip("gpu", device="cpu", folder=data / "portrait-clip")
    white = torch.ones((1, 3, 128, 96), requires_grad=True)
    pixels = inputs.pixels(white)
    assert pixels.shape == (1, 3, 64, 64)
    expected = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(pixels[0, :, 32, 32], expected, rtol=1e-4, atol=1e-4)
    pixels.sum().backward()
    assert white.grad.abs().sum() > 0
    (data / "portrait-clip" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="preprocessor_config.json is damaged"):
        load_clip("gpu", device="cpu", folder=data / "portrait-clip")


def test_folders_of_transformers_5_keep_their_statistics_elsewhere(data):
    folder = data / "portrait-clip"
    statistics = {"image_processor": {"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}, "processor_class": "CLIP"}
    (folder / "processor_config.json").write_text(json.dumps(statistics))
    assert load_clip("gpu", device="cpu", folder=folder)[1].mean == pytest.approx(OPENAI_MEAN)
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')  # of transformers 4
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}')
    assert pixel_statistics(folder) == {"mean": (0.4,) * 3, "std": (0.2,) * 3}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = 224
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(LabkitWarning, match="no processor_config.json"):
        assert pixel_statistics(folder)["mean"] == (0.5, 0.5, 0.5)


def without(path, name):
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: (f / "config.json").write_text('{"model_type": "siglip"}'), "holds a 'siglip' model"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
        (lambda f: without(f / "model.safetensors", "logit_scale"), "lacks 1 of CLIP's weights .first: logit_scale"),
        (lambda f: (f / "config.json").rename(f / "open_clip_config.json"), "open_clip checkpoint"),
    ],
)
def test_folders_that_are_no_clip_of_transformers_are_refused_in_one_line(data, change, match):
    change(data / "portrait-clip")
    with pytest.raises(ModelLoadError, match=match) as error:
        load_clip("gpu", device="cpu", folder=data / "portrait-clip")
    one_line(error)


def test_pictures_are_cropped_as_clips_processor_does(data):
    from transformers import CLIPImageProcessorPil

    _, inputs = load_clip("cpu")
    levels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    square = {"height": 64, "width": 64}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    theirs = torch.as_tensor(np.asarray(processor(Image.fromarray(levels))["pixel_values"])).float()
    torch.testing.assert_close(inputs.pixels(inputs.pictures([levels])), theirs, atol=1e-6, rtol=0)
    squashed = inputs.pictures([levels], fit="squash")
    assert float((squashed - theirs).abs().mean()) > 0.05  # what it was before


def test_missing_clip_and_reader_are_errors_of_one_line(data):
    (data / "portrait-clip" / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="model.safetensors is missing"):
        load_clip("cpu")
    with pytest.raises(ModelLoadError, match="attribute-reader is missing") as error:
        load_reader()
    one_line(error)


def test_the_reader_loads_frozen(data):
    from labkit.models.reader import AttributeReader

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = AttributeReader().eval()
    reader.save_pretrained(data / "attribute-reader")
    write_checksums(folders=["attribute-reader"])
    loaded = load_reader()
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    images = torch.zeros((2, 3, 64, 64))
    assert set(loaded.read(images)) == set(reader.read(images))
    (data / "attribute-reader" / "config.json").write_text(json.dumps({"attributes": {}}))
    with pytest.raises(ModelLoadError, match="config.json is damaged"):
        load_reader()


def test_data_dir_is_the_repositorys_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    assert data_dir().name == "data" and (data_dir().parent / "labkit").is_dir()
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path))
    assert data_dir() == tmp_path
    monkeypatch.delenv("LABKIT_MODELS", raising=False)
    assert models_dir() is None and local_model("a/b") is None


def test_checksums_cover_every_file_and_verify_counts_them(data):
    table = read_checksums()
    files = {p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file()} - {"checksums.json"}
    assert set(table) == files and list(table) == sorted(table)
    assert verify("portrait-sd") == sum(name.startswith("portrait-sd/") for name in files)
    assert verify("portraits") == 0


def test_one_folder_can_be_rewritten_and_the_others_stay(data):
    before = read_checksums()
    (data / "portrait-sd" / "model_index.json").write_text("{}")
    (data / "portrait-clip" / "config.json").write_text("{}")
    (data / "portrait-clip" / ".hidden").write_text("")
    (data / "portrait-clip" / "model.safetensors").unlink()
    after = write_checksums(folders=["portrait-clip"])
    assert after == read_checksums()
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"portrait-clip/config.json", "portrait-clip/model.safetensors"}
    assert "portrait-clip/model.safetensors" not in after and "portrait-clip/.hidden" not in after


def test_a_failed_write_keeps_the_old_table(data, monkeypatch):
    before = (data / "checksums.json").read_bytes()
    monkeypatch.setattr("labkit.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_checksums()
    assert (data / "checksums.json").read_bytes() == before
    assert sorted(p.name for p in data.iterdir()) == ["checksums.json", "portrait-clip", "portrait-sd"]


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = sha256(path)
    opened = []
    original = checksums.Path.open
    monkeypatch.setattr(checksums.Path, "open", lambda self, *a, **k: (opened.append(self), original(self, *a, **k))[1])
    assert sha256(path) == first and not opened
    path.write_bytes(b"two")
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    opened.clear()
    assert sha256(path) != first and opened == [path]
