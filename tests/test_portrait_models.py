"""What data/ ships loads with plain diffusers, is small, and does what its card says (less some room for rounding)."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from labkit.diffusion import image_generators, sample
from labkit.models import data_dir, load_clip, load_pipeline, load_reader
from labkit.models.checksums import CHECKSUMS, read_checksums, sha256
from labkit.models.clip import retrieval_at_1, zero_shot_accuracy
from labkit.models.load import quiet
from labkit.portraits import caption, load_dataset, render_array, render_tensor
from labkit.training.parts import validation_specs

SPECS = validation_specs()


@pytest.fixture(scope="module")
def pictures():
    """The first 256 of them, [256, 3, 64, 64]."""
    return render_tensor(SPECS[:256])


def test_the_frozen_validation_set_is_what_the_world_draws():
    images, specs = load_dataset(data_dir() / "portraits")
    assert specs == SPECS
    assert all((images[i] == render_array(specs[i])).all() for i in range(0, 512, 64))


def test_every_shipped_file_has_its_checksum():
    """A card that is edited by hand needs `write_checksums`, or nothing loads."""
    table = read_checksums()
    files = [f for f in data_dir().rglob("*") if f.is_file() and f.name != CHECKSUMS and not f.name.startswith(".")]
    files = [f for f in files if f.parent.name != "studies" or f.suffix == ".safetensors"]  # records hold digests
    assert {f.relative_to(data_dir()).as_posix(): sha256(f) for f in files} == table


def test_all_weights_together_stay_below_70_mb_and_shipped_latents_below_4():
    """60 MB for the weights of the lessons (models, and the adapter that is shipped), 10 MB for portrait-flow, the
    second kind of model; 4 MB for latents, features and scores that lessons need not compute."""
    sizes = {f.relative_to(data_dir()): f.stat().st_size for f in data_dir().rglob("*.safetensors")}
    latents = {p for p in sizes if p.parts[0] in ("catalogue", "studies") or p.name.startswith("pools-")}
    flow = {p for p in sizes if p.parts[0] == "portrait-flow"}
    weigh = [sum(sizes[p] for p in some) for some in (latents, flow, sizes.keys() - latents - flow)]
    assert weigh[0] <= 4e6 and weigh[1] <= 10e6 and weigh[2] <= 60e6, weigh


@pytest.mark.parametrize("variant", ["portrait-sd", "portrait-sd-base"])
def test_plain_from_pretrained_gives_what_load_pipeline_gives(variant):
    with quiet():
        plain = StableDiffusionPipeline.from_pretrained(str(data_dir() / variant), local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    start = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = plain("a happy person", latents=start, num_inference_steps=4, guidance_scale=3.0, output_type="np").images
    ours = sample(
        load_pipeline("cpu", variant=variant),
        ["a happy person"],
        generators=image_generators(1, 0),
        latents=start,
        steps=4,
        guidance_scale=3.0,
    )
    assert torch.allclose(torch.from_numpy(theirs).permute(0, 3, 1, 2), ours.clamp(-1, 1) / 2 + 0.5, atol=1e-4)


def test_the_text_tower_of_portrait_sd_is_the_one_of_portrait_clip():
    clip, _ = load_clip("cpu")
    tower = load_pipeline("cpu").text_encoder.state_dict()
    for name, value in clip.text_model.state_dict().items():
        other = tower[name] if name in tower else tower[f"text_model.{name}"]
        assert torch.equal(value, other), name


def test_the_tokenizer_names_its_special_tokens():
    _, inputs = load_clip("cpu")
    ids = (inputs.tokenizer.pad_token_id, inputs.tokenizer.bos_token_id, inputs.tokenizer.eos_token_id)
    assert len(set(ids)) == 3
    assert inputs.tokenizer.eos_token_id != 2
    assert load_clip("cpu")[0].config.text_config.eos_token_id == inputs.tokenizer.eos_token_id


def test_the_reader_reads_clean_renders(pictures):
    accuracy = load_reader().accuracy(pictures, SPECS[:256])
    assert min(accuracy.values()) >= 0.99, accuracy


def test_the_decoder_keeps_what_the_reader_looks_for(pictures):
    vae, images, specs = load_pipeline("cpu").vae, pictures[:160], SPECS[:160]
    with torch.no_grad():
        decoded = torch.cat(
            [vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1) for x in images.split(64)]
        )
    accuracy = load_reader().accuracy(decoded, specs)
    assert min(accuracy.values()) >= 0.97, accuracy
    error = (decoded - images).div(2).square().mean()
    assert -10 * error.log10() >= 33


def test_portrait_sd_and_the_base_share_the_vae():
    first, second = (load_pipeline("cpu", variant=v).vae.state_dict() for v in ("portrait-sd", "portrait-sd-base"))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_clip_finds_the_caption_of_an_image(pictures):
    clip, inputs = load_clip("cpu")
    assert retrieval_at_1(clip, inputs.tokenizer, pictures, [caption(s).text for s in SPECS[:256]]) >= 0.98
    scores = zero_shot_accuracy(clip, inputs.tokenizer, pictures, SPECS[:256])
    assert min(scores.values()) >= 0.95, json.dumps(scores)


def test_the_base_is_less_faithful_than_portrait_sd():
    specs, reader = SPECS[:24], load_reader()
    captions = [caption(s) for s in specs]
    named = [c.named for c in captions]
    mean = {}
    for variant in ("portrait-sd", "portrait-sd-base"):
        pipe = load_pipeline("cpu", variant=variant)
        prompts = [c.text for c in captions]
        images = sample(pipe, prompts, generators=image_generators(24, 0), steps=10, guidance_scale=3.0)
        accuracy = reader.accuracy(images, specs, named)
        mean[variant] = sum(accuracy.values()) / len(accuracy)
    assert mean["portrait-sd"] > mean["portrait-sd-base"] + 0.05, mean
    assert mean["portrait-sd"] > 0.7, mean
