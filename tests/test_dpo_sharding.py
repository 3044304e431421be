"""FSDP: the frozen base lies in parts over the processes, and a run gives the numbers of one that has it whole."""

import json
from dataclasses import replace

import pytest
import torch
from processes import meet, run_apart
from safetensors.torch import load_file, save_file
from tiny_models import tiny_pipeline, tiny_sd3_pipeline

from labkit.diffusion import base_fingerprint, denoiser_of, save_lora
from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, dpo
from labkit.dpo.sharding import blocks_of, shard_base

CONFIG = DPOConfig(steps=4, batch_size=4, lr=1e-3, warmup=0, rank=2, log_every=1, save_every=2)
PIPES = {"unet": tiny_pipeline, "transformer": tiny_sd3_pipeline}


def make_pairs(n=7):
    generator = torch.Generator().manual_seed(0)
    winner, loser = (torch.randn(n, 4, 8, 8, generator=generator) for _ in range(2))
    return PreferencePairs(tuple(f"prompt {i % 3}" for i in range(n)), winner, loser)


def train_in_parts(rank, folder, kind):
    """Two steps, a checkpoint, a new trainer on a new pipeline that goes on to the fourth."""
    meet(rank, folder)
    config = replace(CONFIG, batch_size=2, sharded=True)
    for steps in (2, None):
        pipe = PIPES[kind]()
        network = denoiser_of(pipe)
        whole, fingerprint = sum(p.numel() for p in network.parameters()), base_fingerprint(network)
        with DPOTrainer(pipe, make_pairs(), config, [dpo(2500.0)], folder=folder / "run") as trainer:
            adapter = sum(p.numel() for p in trainer.parameters.values())
            held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in network.parameters())
            log = trainer.run(steps=steps)
            found = {name: p.detach().clone() for name, p in trainer.parameters.items()}
            if rank == 0:
                save_lora(folder / "lora.safetensors", pipe, config.adapter)
        assert base_fingerprint(network) == fingerprint  # of the whole, gathered: training left it alone
    if rank == 0:
        save_file(found, folder / "out.safetensors")
        facts = {"share": (held - adapter) / whole, "log": log}
        (folder / "facts.json").write_text(json.dumps(facts), "utf-8")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", PIPES)
def test_a_base_in_parts_trains_stops_and_resumes_as_a_whole_one_with_twice_the_batch(kind, tmp_path):
    assert run_apart(train_in_parts, (0, tmp_path, kind), (1, tmp_path, kind)) == [0, 0]
    facts, found = json.loads((tmp_path / "facts.json").read_text("utf-8")), load_file(tmp_path / "out.safetensors")
    assert facts["share"] == pytest.approx(0.5, abs=0.02)  # rows that do not divide by two are padded
    with DPOTrainer(PIPES[kind](), make_pairs(), CONFIG, [dpo(2500.0)], folder=tmp_path / "one") as trainer:
        log = trainer.run()
        expected = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)
    for mine, its in zip(facts["log"], log, strict=True):
        assert mine["winner_error"] == pytest.approx(its["winner_error"], rel=1e-5)
        assert mine["loss"] == pytest.approx(its["loss"], abs=2e-3)  # kappa times the rounding of an error, 1e-7
    plain = PIPES[kind]()
    plain.load_lora_weights(str(tmp_path), weight_name="lora.safetensors", adapter_name="dpo")  # as any other LoRA file
    named = dict(denoiser_of(plain).named_parameters())
    assert all(torch.equal(named[name], value) for name, value in found.items())


def test_blocks_are_gathered_one_after_the_other():
    unet = tiny_pipeline().unet
    assert blocks_of(unet) == [*unet.down_blocks, *unet.up_blocks, unet.mid_block]
    transformer = tiny_sd3_pipeline().transformer
    assert blocks_of(transformer) == list(transformer.transformer_blocks)


def test_what_cannot_be_sharded_is_refused_in_one_line():
    with pytest.raises(ValueError, match="needs several processes"):
        shard_base(tiny_pipeline().unet, [])
    for options in (
        {"trainable": "full", "reference": "copy"},
        {"reference": "copy"},
        {"model": "text_encoder"},
    ):
        with pytest.raises(ValueError, match="sharded spreads the frozen base"):
            replace(CONFIG, sharded=True, **options)
    pipe = tiny_pipeline()
    before = base_fingerprint(pipe.unet)
    with pytest.raises(ValueError, match="accelerate launch"):
        DPOTrainer(pipe, make_pairs(), replace(CONFIG, sharded=True, save_every=0), [dpo(2500.0)])
    assert base_fingerprint(pipe.unet) == before and not hasattr(pipe.unet, "peft_config")
