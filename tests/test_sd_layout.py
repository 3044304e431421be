"""Random-weight folders: the module trees of SD 1.5 and SDXL, loaded by `load_pipeline` and run by the sampler."""

import shutil

import pytest
import torch

from labkit.diffusion import (
    NFELedger,
    add_lora,
    encode_images,
    encode_prompts,
    image_generators,
    lora_targets,
    sample,
    sample_latents,
)
from labkit.models import load, load_pipeline
from labkit.models.sd_layout import (
    build_sd15,
    clip_tokenizer,
    clip_vocabulary,
    sd15_configs,
    sdxl_configs,
    write_layout,
)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return load_pipeline("gpu", device="cpu", folder=write_layout(tmp_path_factory.mktemp("sd15") / "model"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return load_pipeline("gpu", device="cpu", folder=write_layout(tmp_path_factory.mktemp("sdxl") / "model", "sdxl"))


def meta_unet(config):
    """The U-Net of a configuration without memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def tree(model) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


def test_full_width_configurations_have_the_published_parameter_counts():
    """dpo.md 5.4: 859.5M and 2567M parameters; rank-8 LoRA on attention 1.594M for SD 1.5."""
    unet = meta_unet(sd15_configs("full")["unet"])
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in meta_unet(sdxl_configs("full")["unet"]).parameters()) == 2_567_463_684
    layers = [unet.get_submodule(name) for name in lora_targets(unet)]
    assert sum(8 * (layer.in_features + layer.out_features) for layer in layers) == 1_594_368


def test_the_reduced_trees_are_the_full_trees(sd15, sdxl):
    assert tree(sd15.unet) == tree(meta_unet(sd15_configs("full")["unet"]))
    assert tree(sdxl.unet) == tree(meta_unet(sdxl_configs("full")["unet"]))
    assert sum(name.endswith("attn1") for name in tree(sd15.unet)) == 16
    assert sum(name.endswith("attn1") for name in tree(sdxl.unet)) == 70
    assert len(sd15.text_encoder.encoder.layers) == 12 and len(sdxl.text_encoder_2.text_model.encoder.layers) == 32


def test_sd15_loads_as_the_course_needs_it(sd15):
    assert type(sd15).__name__ == "StableDiffusionPipeline" and sd15.safety_checker is None
    config = sd15.scheduler.config
    assert type(sd15.scheduler).__name__ == "DDIMScheduler"
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (config.steps_offset, config.set_alpha_to_one, config.clip_sample) == (1, False, False)
    assert config.prediction_type == "epsilon" and sd15.vae.config.scaling_factor == 0.18215


def test_sd15_samples_as_its_own_call_does(sd15):
    start = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}
    theirs = sd15(["a cat", "a dog"], latents=start, **options).images
    with NFELedger(sd15) as ledger:
        mine = sample_latents(
            sd15, ["a cat", "a dog"], generators=image_generators(2, 0), latents=start, steps=2, guidance_scale=5.0
        )
    torch.testing.assert_close(mine.latents, theirs, rtol=1e-4, atol=1e-4)
    assert ledger.nfe == 8
    assert encode_images(sd15, sample(sd15, "a cat", generators=image_generators(1, 0), steps=1)).shape == (1, 4, 8, 8)


def test_sdxl_samples_as_its_own_call_does_with_its_added_conditions(sdxl):
    conditions = encode_prompts(sdxl, ["a cat", "a dog"], height=64, width=32)
    assert conditions.cond.shape == (2, 77, 48 + 80) and conditions.pooled.shape == (2, 80)
    assert conditions.time_ids.tolist() == [[64, 32, 0, 0, 64, 32]] * 2
    start = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}
    theirs = sdxl(["a cat", "a dog"], latents=start, **options).images
    with NFELedger(sdxl) as ledger:
        mine = sample_latents(
            sdxl, ["a cat", "a dog"], generators=image_generators(2, 0), latents=start, steps=2, guidance_scale=5.0
        )
    torch.testing.assert_close(mine.latents, theirs, rtol=1e-4, atol=1e-4)
    assert ledger.nfe == 8 and ledger.counts.text_rows == 4  # zeros are its negative: two prompts in two encoders


def test_float16_sdxl_keeps_its_vae_in_float32(tmp_path, monkeypatch):
    folder = write_layout(tmp_path / "model", "sdxl")
    # float16 does not run on a CPU and is refused there: look at the loading alone
    monkeypatch.setattr(load, "_device_and_dtype", lambda *_: (torch.device("cpu"), torch.float16))
    pipe = load_pipeline("gpu", folder=folder)
    assert (pipe.unet.dtype, pipe.text_encoder_2.dtype, pipe.vae.dtype) == (torch.float16, torch.float16, torch.float32)


def test_adapters_find_their_places_in_both(sd15, sdxl):
    assert len(lora_targets(sd15.unet)) == 128 and len(lora_targets(sdxl.unet)) == 560
    assert len(lora_targets(sd15.text_encoder)) == 48 and len(lora_targets(sdxl.text_encoder_2)) == 128
    model = build_sd15().text_encoder
    assert len(add_lora(model, "style", seed=0, rank=2)) == 96


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    a, b, c = build_sd15(), build_sd15(), build_sd15(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(a.unet.state_dict()[name], b.unet.state_dict()[name])
    assert not torch.equal(a.unet.state_dict()[name], c.unet.state_dict()[name])
    assert a.unet.conv_out.weight.abs().max() > 0


def test_the_tokenizer_is_clips_byte_pair_encoding():
    tokenizer = clip_tokenizer(600)
    ids = tokenizer("A hat!")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 598 and ids[-1] == tokenizer.eos_token_id == 599
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a hat !"
    assert tokenizer("a")["input_ids"] == tokenizer("A")["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer("眼鏡 é", add_special_tokens=False)["input_ids"]
    padded = tokenizer("a hat", padding="max_length", max_length=77)["input_ids"]
    assert len(padded) == 77 and padded[-1] == 599
    vocabulary, merges = clip_vocabulary(49408)
    assert len(vocabulary) == 49408 and len(merges) == 48894
    assert sorted(vocabulary.values()) == list(range(49408))
    assert vocabulary["<|startoftext|>"] == 49406 and vocabulary["<|endoftext|>"] == 49407


def test_wrong_calls_are_refused(tmp_path):
    (tmp_path / "something").write_text("here")
    with pytest.raises(ValueError, match="is not empty"):
        write_layout(tmp_path)
    with pytest.raises(ValueError, match="kind is 'sd3'"):
        write_layout(tmp_path / "new", "sd3")
    with pytest.raises(ValueError, match="width is 'half'"):
        sd15_configs("half")
    with pytest.raises(ValueError, match="vocabulary size is 100"):
        clip_vocabulary(100)


@pytest.mark.optin
def test_the_full_width_folder_loads_and_steps(tmp_path):
    """5 GB of memory, 4 GB of disk, about a minute."""
    folder = write_layout(tmp_path / "full", width="full")
    pipe = load_pipeline("gpu", device="cpu", folder=folder)
    assert sum(p.numel() for p in pipe.unet.parameters()) == 859_520_964
    with NFELedger(pipe) as ledger:
        out = sample_latents(
            pipe, "a cat", generators=image_generators(1, 0), steps=1, guidance_scale=1.0, height=128, width=128
        )
    assert ledger.nfe == 1 and bool(torch.isfinite(out.latents).all())
    shutil.rmtree(folder)  # pytest would keep it
