"""Writing files: the old one whole, or the new one whole."""

import os

import pytest
import torch
from safetensors import safe_open

from labkit import errors
from labkit.files import write_atomically, write_tensors


@pytest.mark.parametrize("content", [b"\x00\xff", "é\r\n", lambda path: path.write_bytes(b"by a function")])
def test_the_new_content_is_there_and_nothing_else(tmp_path, content):
    path = write_atomically(tmp_path / "new" / "file.json", content)
    expected = {bytes: content, str: "é\r\n".encode()}.get(type(content), b"by a function")
    assert path.read_bytes() == expected
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_function_writes_a_path_with_the_same_ending(tmp_path):
    seen = []
    write_atomically(tmp_path / "picture.png", lambda path: (seen.append(path), path.write_text("x")))
    assert seen[0].suffix == ".png" and seen[0].parent == tmp_path and seen[0].name != "picture.png"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_stops_the_writer_leaves_the_old_file_and_no_other(tmp_path, error, monkeypatch):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def half(path):
        path.write_text("ne")
        raise error

    def stop(*_):
        raise error

    with pytest.raises(type(error)):
        write_atomically(target, half)
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(type(error)):
        write_atomically(target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_files_have_the_mode_that_open_gives_them(tmp_path):
    write_atomically(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_every_error_class_of_labkit_has_one_base():
    """All but colab.py's, which runs before labkit is installed, the hub's, which needs an extra, and the signal
    that ends a check from within."""
    import importlib
    import pkgutil

    import labkit

    found = []
    for module in pkgutil.walk_packages(labkit.__path__, "labkit."):
        if module.name.endswith("__main__") or module.name in ("labkit.authoring.colab", "labkit.camp.hub"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__.startswith("labkit."):
                if not issubclass(value, Warning):
                    found.append(value)
    found = [cls for cls in set(found) if cls.__name__ not in ("InstallError", "Stop")]
    assert len(found) > 12
    assert [cls for cls in found if not issubclass(cls, errors.LabkitError)] == []


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path):
    """safetensors alone orders its metadata anew in every file."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([7], dtype=torch.int64)}
    metadata = {f"key {i}": f'{{"é": "\\"{i}\\"\\n"}}' for i in range(12)}
    for order in (list(metadata), list(metadata)[::-1]):
        write_tensors(tmp_path / f"{order[0]}.safetensors", tensors, {key: metadata[key] for key in order})
    first, second = sorted(tmp_path.iterdir())
    assert first.read_bytes() == second.read_bytes()
    with safe_open(str(first), "pt") as file:
        assert file.metadata() == metadata
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {"b": [[0, 1, 2], [3, 4, 5]], "a": [7]}
