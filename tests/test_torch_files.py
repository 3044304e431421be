"""Tensors of files of torch are read without unpickling: what they hold, and everything else refused."""

import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from labkit.metrics import torch_files
from labkit.metrics.torch_files import TorchFileError, read_torch_tensors


@pytest.fixture(autouse=True)
def nothing_is_unpickled(monkeypatch):
    def never(*args, **options):
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, never)


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
def test_a_state_dict_is_read_bit_for_bit_in_every_layout_of_torch(tmp_path, options):
    base = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm2d(4))
    state = network.state_dict()  # an OrderedDict with versions as an attribute
    state |= {"turned": base.T[1:4], "whole": base, "half": base.half(), "brain": base.bfloat16(), "empty": base[:0]}
    state["parameter"] = torch.nn.Parameter(base + 1)
    torch.save(OrderedDict(state), tmp_path / "net.pth", **options)
    found = read_torch_tensors(tmp_path / "net.pth")
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert not found[name].requires_grad
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pt", **options)
    assert torch.equal(read_torch_tensors(tmp_path / "checkpoint.pt")["turned"], base.T[1:4])


class Evil:
    def __reduce__(self):
        return os.system, ("echo run",)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (Evil(), r"calls (posix|nt)\.system, which no state dict needs"),
        ({"weight": torch.ones(2), "more": Evil()}, r"calls (posix|nt)\.system"),
        (torch.nn.Linear(2, 2), "instruction NEWOBJ|holds a whole network|calls "),
        ([torch.ones(2)], "holds no dict of tensors"),
        ({}, "holds no dict of tensors"),
        ({"weight": torch.ones(2), "epoch": 3}, "holds 'epoch', which is no tensor"),
        ({"weight": torch.ones(2, dtype=torch.complex64)}, "numbers of the kind"),
    ],
)
def test_whatever_else_a_file_of_torch_holds_is_refused_in_one_line(tmp_path, capfd, content, match, options):
    torch.save(content, tmp_path / "odd.pth", **options)
    with pytest.raises(TorchFileError, match=match) as error:
        read_torch_tensors(tmp_path / "odd.pth")
    assert str(error.value).startswith("odd.pth ") and "\n" not in str(error.value)
    assert "run" not in capfd.readouterr().out


def test_other_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "net.pth"

    def refused(match):
        with pytest.raises(TorchFileError, match=match):
            read_torch_tensors(path)

    with pytest.raises(FileNotFoundError, match="no file"):
        read_torch_tensors(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    refused("is a pickle, but not of a state dict")
    path.write_bytes(b"x")
    refused("no readable file of torch")
    torch.save({"a": torch.ones(300)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-8])
    refused("storage .* is cut off")
    torch.save({"a": torch.ones(300)}, path)
    path.write_bytes(path.read_bytes()[:-30])
    refused("no readable file of torch")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/code/__torch__.py", "")
    refused("TorchScript program")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "")
    refused("has no state dict")


def test_a_tensor_cannot_reach_beyond_its_numbers(tmp_path):
    torch.save({"a": torch.ones(4)}, tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (program,) = (name for name in files if name.endswith("data.pkl"))
    shape = b"K\x04\x85"  # BININT1 4, TUPLE1
    assert files[program].count(shape) == 1
    for changed, match in (
        (files[program].replace(shape, b"K\x05\x85"), "reaches beyond its storage"),
        (files[program][:-1], "no readable"),
    ):
        with zipfile.ZipFile(tmp_path / "longer.pth", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, changed if name == program else content)
        with pytest.raises(TorchFileError, match=match):
            read_torch_tensors(tmp_path / "longer.pth")
    assert torch_files.LARGEST_PROGRAM > len(files[program])
