"""One side of a comparison: whatever holds pictures, or what somebody has already computed from them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from labkit.errors import LabkitError
from labkit.images import ImageFolder, Range, read_folder
from labkit.metrics import GaussianStats
from labkit.metrics.checks import as_features

PICTURE_KEYS = ("image", "images", "pixel_values", "img")


class MeasureError(LabkitError, ValueError):
    """Two sides that cannot be compared, or a metric that cannot be computed from them."""


@dataclass(frozen=True)
class Source:
    """One side. Exactly one of `folder`, `pictures`, `features` and `stats` is set.

    Attributes:
        name: for the report. folder: files. pictures: a batch, a list, or an iterable of batches.
        features: [N, d]. stats: mean and covariance. unreadable: name -> reason of files that are left out.
        shapes: (height, width) -> how many pictures of the folder have it, as far as they have been read.
    """

    name: str
    folder: ImageFolder | None = None
    pictures: object = None
    features: Tensor | None = field(default=None, repr=False)
    stats: GaussianStats | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter, repr=False)

    @property
    def has_pictures(self) -> bool:
        return self.folder is not None or self.pictures is not None

    def batches(self, size: int) -> Iterator[object]:
        """The pictures in batches; labels of a DataLoader are dropped."""
        if self.folder is not None:
            self.shapes.clear()
            for batch in self.folder.batches(size):
                self.shapes.update(levels.shape[:2] for levels in batch)
                yield batch
        elif isinstance(self.pictures, Tensor | np.ndarray | list | tuple):
            yield self.pictures  # extractors cut it
        else:
            yield from (pictures_of(batch) for batch in self.pictures)

    def kinds(self) -> set[str]:
        """File endings, ".jpg" and ".jpeg" as one; empty for anything but a folder."""
        names = () if self.folder is None else self.folder.names
        return {Path(name).suffix.lower().replace("jpeg", "jpg") for name in names}


def pictures_of(batch: object) -> object:
    """The pictures of one batch of a DataLoader: the batch, its first member, or what it has under "image".

    Raises:
        MeasureError: a mapping without pictures.
    """
    if isinstance(batch, Mapping):
        for key in PICTURE_KEYS:
            if key in batch:
                return batch[key]
        raise MeasureError(f"a batch has the keys {sorted(batch)}: expected one of {', '.join(PICTURE_KEYS)}")
    if isinstance(batch, tuple | list) and len(batch) >= 1 and isinstance(batch[0], Tensor) and batch[0].ndim == 4:
        return batch[0]  # (images, labels)
    if isinstance(batch, tuple) and len(batch) == 2:
        return [batch[0]]  # one (image, label) of a data set
    return batch


def read_source(source: object, *, skip: bool = False, value_range: Range | None = None, name: str = "") -> Source:
    """One side from a path or an object.

    Args:
        source: a folder of pictures; an .npz file with `mu` and `sigma` (pytorch-fid, clean-fid), `feats` [N, d]
            (clean-fid), or `arr_0` uint8 [N, H, W, 3] (sample batches of guided diffusion) or features [N, d]; an
            .npy file of either; a .safetensors or .json file of `GaussianStats.save`; a GaussianStats; features [N, d];
            a tensor [N, 3, H, W], an array [N, H, W, 3] or a list of pictures; a DataLoader or data set of pictures,
            (picture, label) or mappings.
        skip: leave unreadable files out (they are named) instead of stopping at the first.
        value_range: of float files.

    Raises:
        ImageError, MeasureError, FileNotFoundError: one line that names the file or folder.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        label = name or path.name or str(path)
        kind = path.suffix.lower()
        if kind in (".pth", ".pt", ".pkl"):
            raise MeasureError(f"{path} is a pickle, which labkit never opens: give a folder, or statistics as .npz")
        if kind in (".npz", ".npy", ".safetensors", ".json"):
            return _from_file(path, label)
        folder = read_folder(path, value_range=value_range)
        bad = folder.unreadable() if skip else {}
        if len(bad) == len(folder):
            raise MeasureError(f"none of the {len(bad)} pictures in {path} can be read: {next(iter(bad.values()))}")
        kept = folder.only(name for name in folder.names if name not in bad)
        return Source(label, folder=kept, unreadable=bad)
    label = name or type(source).__name__
    if isinstance(source, GaussianStats):
        return Source(label, stats=source)
    if isinstance(source, ImageFolder):
        return Source(name or source.root.name, folder=source)
    if isinstance(source, Tensor | np.ndarray):
        if source.ndim == 2:
            return Source(label, features=as_features(label, source))
        if source.ndim != 4:
            raise MeasureError(
                f"{label} of shape {tuple(source.shape)}: expected pictures [N, 3, H, W] or features [N, d]"
            )
        return Source(label, pictures=source)
    if isinstance(source, Image.Image) or not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise MeasureError(f"{label} is no set of pictures: expected a folder, a list, a batch or a DataLoader")
    if isinstance(source, list | tuple) and source and isinstance(source[0], tuple):
        source = [picture for picture, *_ in source]
    return Source(label, pictures=source)


def _from_file(path: Path, label: str) -> Source:
    if not path.is_file():
        raise FileNotFoundError(f"no statistics file {path}: check the path")
    kind = path.suffix.lower()
    if kind not in (".npz", ".npy"):
        return Source(label, stats=GaussianStats.load(path))
    try:
        if kind == ".npy":
            tables = {"arr_0": np.load(path, allow_pickle=False)}
            found = [f"an array of shape {tables['arr_0'].shape}"]
        else:
            with np.load(path, allow_pickle=False) as file:
                tables = {key: file[key] for key in ("feats", "arr_0", "mu", "sigma", "n") if key in file.files}
                found = list(file.files)
    except Exception as error:  # numpy and zipfile raise many kinds: it is not such a file
        raise MeasureError(f"{path} is not readable as {kind} ({type(error).__name__}): copy it again") from error
    if "feats" in tables:
        return Source(label, features=as_features(path.name, tables["feats"]))
    if "mu" in tables and "sigma" in tables:
        n = tables.get("n")
        if n is not None and n.size != 1:
            raise MeasureError(f"{path} has {n.size} numbers n: expected one, the number of pictures")
        n = None if n is None else int(n.reshape(()))
        return Source(label, stats=GaussianStats.from_moments(mean=tables["mu"], covariance=tables["sigma"], n=n))
    if "arr_0" in tables and tables["arr_0"].ndim == 4:
        return Source(label, pictures=tables["arr_0"])
    if "arr_0" in tables and tables["arr_0"].ndim == 2:
        return Source(label, features=as_features(path.name, tables["arr_0"]))
    raise MeasureError(
        f"{path} holds {', '.join(found) or 'nothing'}: expected mu and sigma, feats [N, d], or arr_0, pictures "
        "[N, H, W, 3] or features [N, d]"
    )
