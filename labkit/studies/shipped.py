"""Results that a lesson would spend minutes on, made once for the seed of its live run and shipped in half precision.

A shelf is one file with what decided it in its header: seed, sizes, weights, what was asked for. Asked under other
conditions it has nothing, and the lesson computes as ever. What a learner designs or decides is never shipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from safetensors import safe_open
from torch import Tensor

from labkit.files import write_tensors
from labkit.models.checksums import STUDIES, read_checksums, sha256, verify, write_checksums
from labkit.models.paths import data_dir
from labkit.studies.store import weights_of
from labkit.studies.study import Study, StudyError

FOLDER = "shipped"
SEED = 100  # of the live runs: 100 + the lesson's seed, which is 0 by default; studies record seeds below 100 alone


@dataclass(frozen=True)
class Shelf:
    """One file of the data folder.

    Attributes:
        study: whose weights decide the tensors. decide: the sizes that do. inputs: seed and sizes -> what else does, as
            text: prompts, or the digest of a file.
    """

    file: str
    study: Study
    decide: tuple[str, ...]
    inputs: Callable[[int, SimpleNamespace], str]

    def conditions(self, seed: int, sizes: SimpleNamespace) -> dict[str, str]:
        """What decides the tensors, as the file's header says it."""
        decided = {name: getattr(sizes, name) for name in self.decide}
        inputs = hashlib.sha256(self.inputs(seed, sizes).encode()).hexdigest()[:16]
        about = {"seed": seed, "sizes": decided, "weights": weights_of(self.study), "inputs": inputs}
        return {name: json.dumps(value, sort_keys=True) for name, value in about.items()}

    def read(self, seed: int, sizes: SimpleNamespace, names: Iterable[str] | None = None) -> dict[str, Tensor] | None:
        """Float32 tensors by name (all, or some); None where the file is missing or was made under other conditions.

        Raises:
            StudyError: the file is damaged: it cannot be read, or is not the one of the data folder's checksums.
        """
        path = data_dir() / FOLDER / self.file
        if not path.is_file():
            return None
        wanted, listed = self.conditions(seed, sizes), read_checksums().get(f"{FOLDER}/{self.file}")
        if listed is not None and sha256(path) != listed:
            raise StudyError(f"{path} differs from checksums.json: restore the data folder")
        try:
            with safe_open(str(path), "pt") as file:
                if file.metadata() != wanted:
                    return None
                return {name: file.get_tensor(name).float() for name in (file.keys() if names is None else names)}
        except Exception as error:
            raise StudyError(f"{path} cannot be read ({type(error).__name__}): restore the data folder") from error

    def write(self, tensors: Mapping[str, Tensor], seed: int, sizes: SimpleNamespace) -> Path:
        """Write the tensors in half precision, and their checksum."""
        half = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
        path = write_tensors(data_dir() / FOLDER / self.file, half, self.conditions(seed, sizes))
        write_checksums(folders=[FOLDER])
        return path


def check_tensors() -> None:
    """Raise a ModelLoadError if tensors beside the records of studies are not those that the data folder lists."""
    verify(STUDIES)


Bar = Callable[[], Iterable[object]]  # makes a progress bar over as many items as there will be ticks


def ticking(bar: Bar) -> Callable[..., None]:
    """Start a progress bar; every call of what is returned moves it by one, whatever its arguments."""
    items = iter(bar())

    def tick(*_: object) -> None:
        next(items, None)

    tick()
    return tick
