"""Training survives a kill: the resumed run ends with the same bits."""

from pathlib import Path

import pytest
import torch

from labkit.models.train import loop
from labkit.models.train.loop import LoopConfig, learning_rate, load_checkpoint, run


def fresh() -> torch.nn.Linear:
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.zero_()
    return model


def train(model: torch.nn.Module, folder: Path, *, stop_at: int | None = None, **options):
    def loss(step, generator):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=generator)
        value = (model(x) - x[:, :3]).square().mean()
        return value, {"loss": value.item()}

    return run("test", model, loss, LoopConfig(steps=12, lr=0.1, warmup=2, save_seconds=-1.0), folder, **options)


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole = train(fresh(), tmp_path / "whole", keep=(5,))
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), tmp_path / "killed", stop_at=7)
    resumed = train(fresh(), tmp_path / "killed")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert not torch.equal(whole["weight"], fresh().weight)
    assert (tmp_path / "whole" / "ema-5.safetensors").exists()


def test_a_failing_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    train(fresh(), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "save_file", full_disk)
    model = fresh()
    with pytest.raises(OSError, match="No space"):
        loop.save_checkpoint(path, model, {}, loop.Optimizer(model, LoopConfig(steps=1, lr=0.1)), 99)
    assert path.read_bytes() == before
    assert load_checkpoint(path, fresh(), {}, None) == 12


def test_the_learning_rate_rises_stays_and_falls():
    config = LoopConfig(steps=100, lr=1.0, warmup=10, decay=0.5)
    factors = [learning_rate(config, k) for k in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:50] == [1.0] * 40
    assert all(a > b for a, b in zip(factors[50:], factors[51:], strict=False))
    assert 0 < factors[-1] < 0.01
