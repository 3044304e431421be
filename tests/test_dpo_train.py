"""The DPO command line: a configuration runs, resumes, and says in one line what is wrong with it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes import run_apart
from safetensors.torch import load_file
from tiny_models import tiny_pipeline

from labkit.dpo.pairs import PairSet, make_row
from labkit.dpo.train import main, read_config, winner_worse

ROOT = Path(__file__).resolve().parents[1]


def write(folder: Path, **changes) -> Path:
    """Pairs, a tiny pipeline and a configuration in `folder`; returns the configuration's path."""
    generator = torch.Generator().manual_seed(0)
    rows = tuple(make_row(f"easy-{i}", f"prompt {i}", i, 2 * i, 2 * i + 1, margin=1.0) for i in range(4))
    PairSet(rows, torch.randn(8, 4, 8, 8, generator=generator)).save(folder / "pairs")
    if not (folder / "model").exists():
        tiny_pipeline().save_pretrained(str(folder / "model"), safe_serialization=True)
    content = {
        "pairs": str(folder / "pairs"),
        "output": str(folder / "out"),
        "pipeline": {"tier": "cpu", "folder": str(folder / "model")},
        "terms": [{"name": "dpo", "kappa": 2500}],
        "config": {"steps": 2, "batch_size": 2, "rank": 2, "log_every": 1, "save_every": 1},
        "grid": {"prompts": ["a", "b"], "every": 2, "steps": 1},
    } | changes
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def test_a_configuration_runs_and_goes_on_where_it_stopped(tmp_path):
    assert main([str(write(tmp_path))]) == 0
    out = tmp_path / "out"
    assert {"adapter.safetensors", "checkpoint.safetensors", "log.jsonl", "grid-000002.png"} <= set(os.listdir(out))
    plain = tiny_pipeline()
    plain.load_lora_weights(str(out), weight_name="adapter.safetensors", adapter_name="dpo")
    tensors = load_file(out / "adapter.safetensors")
    loaded = dict(plain.unet.named_parameters())
    named = {key.removeprefix("unet.").replace(".weight", ".dpo.weight"): value for key, value in tensors.items()}
    assert named and all(torch.equal(loaded[key], value) for key, value in named.items())
    longer = {"steps": 3, "batch_size": 2, "rank": 2, "log_every": 1, "save_every": 1}
    assert main([str(write(tmp_path, config=longer))]) == 0
    assert len((out / "log.jsonl").read_text().splitlines()) == 3


def test_what_is_wrong_with_a_configuration_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(ValueError, match="config.stepz"):
        read_config(write(tmp_path, config={"stepz": 1}))
    with pytest.raises(ValueError, match="one process draws the grid"):
        read_config(write(tmp_path, config={"sharded": True}))
    path = write(tmp_path, terms=[{"name": "dpo", "kappa": 0.1}])
    assert main([str(path)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("labkit.dpo.train: kappa = 0.1 is too small")


def test_stopping_waits_for_several_records_in_a_row():
    stop = winner_worse(2)
    assert [stop({"d_w": d}) for d in (1.0, -1.0, 1.0, 1.0)] == [False, False, False, True]
    never = winner_worse(0)
    assert not any(never({"d_w": 1.0}) for _ in range(5))


def as_accelerate_launches(rank, port, path):
    """One of two processes with the variables that `accelerate launch --cpu --num_processes 2` sets."""
    from accelerate import PartialState

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    PartialState._reset_state()  # a fork knows what the test's process has found out about itself
    sys.exit(main([str(path)]))


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    (tmp_path / "two").mkdir(), (tmp_path / "one").mkdir()
    path = write(tmp_path / "two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert run_apart(as_accelerate_launches, (0, port, path), (1, port, path)) == [0, 0]
    assert len((tmp_path / "two" / "out" / "log.jsonl").read_text().splitlines()) == 2
    config = {"steps": 2, "batch_size": 4, "rank": 2, "log_every": 1, "save_every": 1}
    assert main([str(write(tmp_path / "one", config=config))]) == 0
    found, expected = (load_file(tmp_path / n / "out" / "adapter.safetensors") for n in ("two", "one"))
    assert found.keys() == expected.keys()
    assert any(bool(value.any()) for name, value in expected.items() if "lora_B" in name or "lora.up" in name)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-6)


@pytest.mark.optin  # the launcher itself takes three Pythons; what its processes do, the test above shows
def test_two_processes_of_accelerate_launch_train_together(tmp_path):
    path = write(tmp_path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["-m", "labkit.dpo.train", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 2
