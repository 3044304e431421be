"""Training survives a kill: the resumed run ends with the same bits."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import meet, run_apart
from safetensors.torch import load_file, save_file

from labkit.checkpoint import CheckpointError
from labkit.optim import average_gradients
from labkit.training import loop
from labkit.training.loop import LoopConfig, Optimizer, learning_rate, load_checkpoint, run, save_checkpoint


def fresh() -> torch.nn.Linear:
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.zero_()
    return model


def train(
    model: torch.nn.Module, folder: Path, *, stop_at: int | None = None, save_seconds: float = -1.0, **options
) -> dict[str, torch.Tensor]:
    def loss(step, generator):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=generator)
        value = (model(x) - x[:, :3]).square().mean()
        return value, {"loss": value.item()}

    config = LoopConfig(steps=12, lr=0.1, warmup=2, save_seconds=save_seconds)
    return run("test", model, loss, config, folder, **options)


def saved_step(path: Path) -> int:
    model = fresh()
    return load_checkpoint(path, model, {}, Optimizer(model, LoopConfig(steps=1, lr=0.1)))[0]


def test_a_run_whose_rate_falls_towards_its_end_does_not_go_on_to_another_end(tmp_path):
    model = fresh()

    def trained(steps, decay, folder):
        config = LoopConfig(steps=steps, lr=0.1, warmup=0, decay=decay)
        run("test", model, lambda step, generator: (model(torch.ones(1, 4)).square().sum(), {}), config, folder)

    for steps in (3, 5):
        trained(steps, 0.0, tmp_path / "constant")
    trained(3, 0.5, tmp_path / "falling")
    with pytest.raises(CheckpointError, match="differs in steps: choose a new folder"):
        trained(5, 0.5, tmp_path / "falling")


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole = train(fresh(), tmp_path / "whole", keep=(5,))
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), tmp_path / "killed", stop_at=7)
    resumed = train(fresh(), tmp_path / "killed")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert not torch.equal(whole["weight"], fresh().weight)
    assert (tmp_path / "whole" / "ema-5.safetensors").exists()


def test_a_run_with_dropout_and_batch_norm_resumes_with_the_same_bits_and_leaves_the_global_generator_alone(tmp_path):
    def net():
        net = torch.nn.Sequential(fresh(), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 3))
        with torch.no_grad():
            net[3].weight.copy_(torch.eye(3))
            net[3].bias.zero_()
        return net

    torch.manual_seed(1)
    whole = train(net(), tmp_path / "whole")
    torch.manual_seed(2)
    model = net()
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path / "killed", stop_at=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    resumed = train(net(), tmp_path / "killed")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_run_between_two_saves_goes_on_from_the_last_one(tmp_path, monkeypatch):
    """A clock that advances one second each time the loop looks at it; what came after the last save is done again."""
    clock = iter(range(10_000))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    options = {"save_seconds": 2.5}
    whole = train(fresh(), tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), tmp_path / "killed", stop_at=8, **options)
    assert 0 < saved_step(tmp_path / "killed" / "checkpoint.safetensors") < 8
    resumed = train(fresh(), tmp_path / "killed", **options)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_resumed_run_forgets_what_was_logged_after_its_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), tmp_path, stop_at=7)
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 7, 9)))  # 9: logged, then killed
    train(fresh(), tmp_path)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [5, 7, 12]


def test_a_finished_run_is_not_trained_again(tmp_path):
    whole = train(fresh(), tmp_path)
    again = train(fresh(), tmp_path, stop_at=0)  # would raise at its first step
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_kept_weights_are_the_average_after_that_step(tmp_path):
    """EMA with decay min(0.5, (1 + k) / (10 + k)), written out beside the run."""
    seen, model = [], fresh()

    def loss(step, generator):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return model(torch.randn(8, 4, generator=generator)).square().mean(), {}

    ema = run("t", model, loss, LoopConfig(steps=12, lr=0.1, warmup=1, ema=0.5), tmp_path, keep=(4, 9))
    seen.append(model.state_dict())
    expected = seen[0]
    for step, live in enumerate(seen[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {k: decay * expected[k] + (1 - decay) * live[k] for k in live}
        if step + 1 in (4, 9):
            kept = load_file(tmp_path / f"ema-{step + 1}.safetensors")
            assert all(torch.allclose(kept[k], expected[k], atol=1e-6) for k in live)
    assert all(torch.allclose(ema[k], expected[k], atol=1e-6) for k in ema)
    assert sorted(p.name for p in tmp_path.glob("ema-*")) == ["ema-4.safetensors", "ema-9.safetensors"]


def test_evaluation_sees_the_average_and_changes_nothing(tmp_path):
    seen = []

    def evaluate(model):
        seen.append((model.training, model.weight.detach().clone()))
        return {"score": 7.0}

    plain = train(fresh(), tmp_path / "plain")
    model = fresh()
    measured = train(model, tmp_path / "measured", evaluate=evaluate, evaluate_every=12)
    assert all(torch.equal(plain[k], measured[k]) for k in plain)
    ((training, weight),) = seen
    assert not training
    assert torch.equal(weight, measured["weight"])
    assert not torch.equal(weight, model.weight)  # the live weights are back
    (record,) = [json.loads(line) for line in (tmp_path / "measured" / "log.jsonl").read_text("utf-8").splitlines()]
    assert record["step"] == 12
    assert record["score"] == 7.0
    assert {"loss", "gradient_norm", "seconds"} <= set(record)


def test_steps_and_seeds_have_generators_of_their_own():
    draws = {
        (seed, step): tuple(torch.rand(3, generator=loop.step_generator(seed, step)).tolist())
        for seed in range(3)
        for step in range(50)
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[2, 7] == tuple(torch.rand(3, generator=loop.step_generator(2, 7)).tolist())


def train_with_the_other(rank, folder):
    meet(rank, folder)
    p = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    for i, q in enumerate(p):
        q.grad = torch.arange(q.numel()).view_as(q) * 1.0 + 10 * i + 100 * rank
    average_gradients(p)
    for i, q in enumerate(p):
        assert torch.equal(q.grad, torch.arange(q.numel()).view_as(q) * 1.0 + 10 * i + 50), q.grad
    model = fresh()

    def loss(step, generator):
        x = torch.randn(8, 4, generator=generator)
        return (model(x) - x[:, :3]).square().mean(), {}

    ema = run("two", model, loss, LoopConfig(steps=6, lr=0.1, warmup=2), folder / "run")
    save_file(ema, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_with_both_batches(tmp_path):
    """Gradients are the mean over the processes, so process r's batch of step k is draw 2 k + r of one process."""
    assert run_apart(train_with_the_other, (0, tmp_path), (1, tmp_path)) == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors")["weight"] for rank in (0, 1))
    assert torch.equal(first, second)

    model = fresh()

    def loss(step, _):
        x = torch.cat([torch.randn(8, 4, generator=loop.step_generator(0, 2 * step + r)) for r in (0, 1)])
        return (model(x) - x[:, :3]).square().mean(), {}

    alone = run("one", model, loss, LoopConfig(steps=6, lr=0.1, warmup=2), tmp_path / "one")
    assert torch.allclose(first, alone["weight"], atol=1e-5)


def test_a_failing_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    train(fresh(), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    before = path.read_bytes()

    def full_disk(tensors, filename, **_):
        Path(filename).write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    model = fresh()
    with pytest.raises(CheckpointError, match="No space.*intact"):
        loop.save_checkpoint(path, model, {}, loop.Optimizer(model, LoopConfig(steps=1, lr=0.1)), 99)
    assert path.read_bytes() == before
    assert saved_step(path) == 12
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.safetensors", "log.jsonl"}


def test_weights_without_optimizer_state_go_on_with_a_new_warm_up(tmp_path):
    published = {k: v + 1 for k, v in fresh().state_dict().items()}
    model = fresh()
    model.load_state_dict(published)
    save_checkpoint(tmp_path / "checkpoint.safetensors", model, published, None, 6, fresh=6)
    with pytest.raises(KeyboardInterrupt):  # and a kill after that keeps the step of the new start
        train(fresh(), tmp_path, stop_at=9)
    ema = train(fresh(), tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [12]
    assert not torch.equal(ema["weight"], published["weight"])
    config = LoopConfig(steps=100, lr=1.0, warmup=10, decay=0.1)
    assert [round(learning_rate(config, k, fresh=40), 3) for k in (40, 44, 49, 60)] == [0.1, 0.5, 1.0, 1.0]
    whole = tmp_path / "whole"
    whole.mkdir()
    save_checkpoint(whole / "checkpoint.safetensors", model, published, None, 6, fresh=6)
    assert all(torch.equal(v, ema[k]) for k, v in train(fresh(), whole).items())


def test_the_learning_rate_rises_stays_and_falls():
    config = LoopConfig(steps=100, lr=1.0, warmup=10, decay=0.5)
    factors = [learning_rate(config, k) for k in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:50] == [1.0] * 40
    assert all(a > b for a, b in zip(factors[50:], factors[51:], strict=False))
    assert 0 < factors[-1] < 0.01
