"""Latents that stay on disk: files of a few pairs each, of which a step reads its own rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from labkit.checkpoint import CheckpointError


class Shards:
    """One tensor [n, C, h, w] in several safetensors files, in their order; rows are read when they are asked for.

    It takes the place of a tensor in `PreferencePairs`: `shards[[3, 40]]` is a tensor [2, C, h, w] on the CPU.

    Args:
        files: the files. name: of the tensor in each.

    Attributes:
        shape, ndim, dtype: as a tensor's.

    Raises:
        CheckpointError: a file that is missing, damaged, or has rows of another shape.
    """

    ndim = 4

    def __init__(self, files: Sequence[Path], name: str) -> None:
        self.files, self.name = tuple(files), name
        first = self._read(0, slice(0, 1))
        shapes = [self._shape(number) for number in range(len(self.files))]
        odd = [str(file) for file, shape in zip(self.files, shapes, strict=True) if shape[1:] != shapes[0][1:]]
        if odd:
            raise CheckpointError(f"{odd[0]} holds latents of another shape than {self.files[0]}: delete it")
        self.ends = list(accumulate(shape[0] for shape in shapes))
        self.shape, self.dtype = torch.Size([self.ends[-1], *shapes[0][1:]]), first.dtype

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int | slice | Sequence[int]) -> Tensor:
        if isinstance(index, int):
            return self[[index]][0]
        rows = range(len(self))[index] if isinstance(index, slice) else [range(len(self))[int(i)] for i in index]
        if not rows:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        wanted: dict[int, list[int]] = {}  # file -> places in the result
        for place, row in enumerate(rows):
            wanted.setdefault(bisect_right(self.ends, row), []).append(place)
        out = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        for number, places in wanted.items():
            start = self.ends[number - 1] if number else 0
            inside = [rows[place] - start for place in places]
            low, high = min(inside), max(inside) + 1
            out[places] = self._read(number, slice(low, high))[[row - low for row in inside]]
        return out

    def parts(self) -> Iterator[Tensor]:
        """The whole, one file after the other."""
        return (self._read(number, slice(None)) for number in range(len(self.files)))

    def _shape(self, number: int) -> tuple[int, ...]:
        with self._open(number) as file:
            return tuple(file.get_slice(self.name).get_shape())

    def _read(self, number: int, rows: slice) -> Tensor:
        with self._open(number) as file:
            return file.get_slice(self.name)[rows]

    def _open(self, number: int):
        path = self.files[number]
        try:
            return safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): run again, it will be made anew") from error
