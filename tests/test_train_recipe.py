"""The whole recipe from nothing, with a few portraits and a step or two of each part."""

import json

import pytest
import torch

from labkit.models import load_clip, load_flow, load_pipeline, load_reader
from labkit.models.checksums import verify
from labkit.portraits import load_dataset, sample_specs
from labkit.training import evaluate, parts
from labkit.training.__main__ import main

SIZES = {
    "TRAIN_SIZE": 48,
    "READER_SIZE": 16,
    "VALIDATION_SIZE": 8,
    "VAE_STEPS": 2,
    "DECODER_STEPS": 1,
    "READER_STEPS": 2,
    "CLIP_STEPS": 2,
    "CLIP_IMAGE_STEPS": 1,
    "CLIP_BOTH_STEPS": 1,
    "UNET_STEPS": 3,
    "BASE_STEPS": 1,
    "BASE_SIZE": 12,
    "BASE_BATCH": 4,
    "FLOW_STEPS": 2,
    "FLOW_BATCH": 4,
    "FLOW_SIZE": 16,
    "PARALLEL": {},
}


@pytest.mark.slow
def test_make_train_goes_from_nothing_to_model_cards(tmp_path, monkeypatch):
    for name, value in SIZES.items():
        monkeypatch.setattr(parts, name, value)
    monkeypatch.setattr(evaluate, "sample_specs", lambda n, **options: sample_specs(min(n, 6), **options))
    monkeypatch.setattr(evaluate, "STEPS", 1)
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "none"))  # main sets it to --out; this restores it after the test
    work, out = tmp_path / "work", tmp_path / "out"
    assert main(["all", "--work", str(work), "--out", str(out)]) == 0

    assert len(load_dataset(out / "portraits")[1]) == 8
    final, base = load_pipeline("cpu"), load_pipeline("cpu", variant="portrait-sd-base")
    difference = [
        (a - b).abs().max().item() for a, b in zip(final.unet.parameters(), base.unet.parameters(), strict=True)
    ]
    assert max(difference) > 0
    load_clip("cpu"), load_reader()
    results = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert results["portrait-sd"]["seconds_16_images"] > 0
    record = json.loads((out / "training.json").read_text("utf-8"))
    assert {part: entry["steps"] for part, entry in record.items()} == {
        "vae": 2, "decoder": 1, "clip": 2, "clip-images": 1, "clip-both": 1, "reader": 2, "unet": 3,
        "base": 1, "flow": 2,
    }  # fmt: skip
    models = ("portrait-sd", "portrait-sd-base", "portrait-clip", "attribute-reader", "portrait-flow")
    for model in models:
        card = (out / model / "README.md").read_text("utf-8")
        assert "sha256" in card and "loss-" in card
    assert all(verify(model) for model in models)
    flow = load_flow()
    assert bool(flow.transformer.proj_out.weight.any()) and set(results) == {"parts", *models} - {
        "portrait-clip", "attribute-reader"
    }  # fmt: skip

    # a run that is restored from shipped weights exports what it was restored from
    again = tmp_path / "again"
    assert main(["restore", "--work", str(again), "--out", str(out)]) == 0
    assert main(["export", "--work", str(again), "--out", str(out)]) == 0
    restored = load_pipeline("cpu", variant="portrait-sd-base")
    assert all(torch.equal(a, b) for a, b in zip(base.unet.parameters(), restored.unet.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(final.vae.parameters(), restored.vae.parameters(), strict=True))
    again = load_flow().transformer
    assert all(torch.equal(a, b) for a, b in zip(flow.transformer.parameters(), again.parameters(), strict=True))
