"""LoRA files and saved pipelines are read by plain diffusers, which draws the same picture, pixel for pixel."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_pipeline

from labkit.diffusion import AdapterError, adapter_names, add_lora, load_lora, save_lora, save_pipeline
from labkit.diffusion.lora_files import peft_state, read_lora
from labkit.models.sd_layout import build_sdxl


def add(model, name="dpo", seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    for p in add_lora(model, name, seed=seed, rank=2, **options):
        p.data.normal_(std=0.1, generator=generator)


def picture(pipe):
    """By diffusers itself."""
    options = {"num_inference_steps": 1, "output_type": "pt", "height": 64, "width": 64}
    return pipe("a portrait", generator=torch.Generator().manual_seed(0), **options).images


CASES = {
    "attention": lambda pipe: add(pipe.unet),
    "all layers, alpha 3": lambda pipe: add(pipe.unet, suffixes=None, alpha=3.0),
    "text encoder": lambda pipe: add(pipe.text_encoder),
    "both, all layers": lambda pipe: (add(pipe.unet, suffixes=None), add(pipe.text_encoder, suffixes=None, seed=1)),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_diffusers_draws_the_same_picture_from_the_file(tmp_path, case):
    tuned, plain, ours = tiny_pipeline(), tiny_pipeline(), tiny_pipeline()
    CASES[case](tuned)
    save_lora(tmp_path, tuned, "dpo")
    expected = picture(tuned)
    assert float((expected - picture(plain)).abs().max()) > 1e-3
    plain.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    load_lora(ours, tmp_path, "mine")
    assert torch.equal(picture(plain), expected) and torch.equal(picture(ours), expected)
    assert not any(p.requires_grad for p in [*ours.unet.parameters(), *ours.text_encoder.parameters()])


def test_stages_are_one_file_each_and_add_up_to_the_same_bits(tmp_path):
    tuned, plain = tiny_pipeline(), tiny_pipeline()
    for seed, stage in enumerate(("easy", "hard")):
        add(tuned.unet, stage, seed, suffixes=None)
        file = save_lora(tmp_path / f"{stage}.safetensors", tuned, stage)
        plain.load_lora_weights(str(file), weight_name=file.name, adapter_name=stage)
    plain.set_adapters(["easy", "hard"])
    assert torch.equal(picture(plain), picture(tuned))


def test_sdxl_with_both_text_encoders(tmp_path):
    tuned = build_sdxl()
    tuned.set_progress_bar_config(disable=True)
    expected = {}
    for seed, name in enumerate(("unet", "text_encoder", "text_encoder_2")):
        add(getattr(tuned, name), seed=seed)
    save_lora(tmp_path, tuned, "dpo")
    plain = build_sdxl()
    plain.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    for pipe in (tuned, plain):
        text, _, pooled, _ = pipe.encode_prompt("a portrait")
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        expected[pipe] = pooled, pipe.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
    assert all(torch.equal(a, b) for a, b in zip(expected[tuned], expected[plain], strict=True))


def test_a_saved_pipeline_holds_the_active_adapters_and_the_one_in_memory_keeps_its_bits(tmp_path):
    pipe = tiny_pipeline()
    add(pipe.unet, suffixes=None)
    add(pipe.text_encoder)
    before = picture(pipe)
    save_pipeline(pipe, tmp_path)
    assert torch.equal(picture(pipe), before) and adapter_names(pipe.unet) == ("dpo",)
    again = type(pipe).from_pretrained(str(tmp_path), safety_checker=None)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(picture(again), before, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_said_in_one_line(tmp_path):
    pipe = tiny_pipeline()
    with pytest.raises(AdapterError, match="no adapter named 'dpo' to save"):
        save_lora(tmp_path, pipe, "dpo")
    with pytest.raises(AdapterError, match="no LoRA file"):
        load_lora(pipe, tmp_path, "dpo")
    add(pipe.unet)
    path = save_lora(tmp_path, pipe, "dpo")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AdapterError, match="is damaged.*save it again"):
        load_lora(tiny_pipeline(), path, "dpo")


def test_a_file_that_fits_some_models_only_leaves_none_with_an_adapter(tmp_path):
    tuned = tiny_pipeline()
    add(tuned.unet)
    add(tuned.text_encoder)
    path = save_lora(tmp_path, tuned, "dpo")
    for name in ("unet", "text_encoder"):
        taken = tiny_pipeline()
        add(getattr(taken, name))
        with pytest.raises(AdapterError, match="is taken"):
            load_lora(taken, path, "dpo")
        found = {one: adapter_names(getattr(taken, one)) for one in ("unet", "text_encoder")}
        assert found == {"unet": (), "text_encoder": ()} | {name: ("dpo",)}


def kohya(pipe, name, alpha, dtype=torch.float32):
    """The adapter as kohya's trainer writes it."""
    state = {}
    for prefix, model in (("lora_unet", pipe.unet), ("lora_te", pipe.text_encoder)):
        for key, value in peft_state(model, name)[0].items():
            layer, _, side = key.removesuffix(".weight").rpartition(".")
            layer = f"{prefix}_{layer.replace('.', '_')}"
            state[f"{layer}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value.to(dtype)
            state[f"{layer}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return state


def test_a_lora_of_kohyas_trainer_is_read_with_its_alphas(tmp_path):
    tuned, ours = tiny_pipeline(), tiny_pipeline()
    for model in (tuned.unet, tuned.text_encoder):
        add(model)
    state, want = kohya(tuned, "dpo", alpha=1.0), tiny_pipeline()
    save_file(state, tmp_path / "kohya.safetensors")
    load_lora(ours, tmp_path / "kohya.safetensors", "old")
    want.load_lora_weights(dict(state))
    torch.testing.assert_close(picture(ours), picture(want), rtol=0, atol=1e-5)
    assert not torch.allclose(picture(ours), picture(tiny_pipeline()), atol=1e-3)
    path = save_lora(tmp_path / "again.safetensors", ours, "old")  # and now it is one of diffusers
    torch.testing.assert_close(read_lora(path)[0], read_lora(tmp_path / "kohya.safetensors", ours)[0])
    key = next(iter(state))
    for odd, match in (
        ({key.replace("lora_down", "hada_w1_a"): state[key]}, "LoHa, LoKr"),
        ({"emb_params": torch.ones(4, 8)}, "no LoRA of a Stable Diffusion|does not convert"),
        ({key: state[key]}, "no LoRA of a Stable Diffusion|does not convert"),
    ):
        save_file(odd, tmp_path / "odd.safetensors")
        with pytest.raises(AdapterError, match=match) as error:
            load_lora(tiny_pipeline(), tmp_path / "odd.safetensors", "old")
        assert "\n" not in str(error.value)
