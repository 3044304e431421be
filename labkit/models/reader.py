"""AttributeReader: a small CNN that reads every attribute of a portrait from its pixels.

It is the gold judge of the course: lessons measure with it, and nothing may ever be trained against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labkit.files import write_atomically
from labkit.portraits.attributes import ATTRIBUTES
from labkit.portraits.spec import PortraitSpec

FEATURES = 128


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class AttributeReader(nn.Module):
    """Images [N, 3, 64, 64] in [-1, 1] -> one classification per attribute.

    The faces are aligned, so the 8x8 map is flattened rather than averaged: where a dark patch lies tells a beard
    from glasses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(3, 32, 2),  # 32 x 32
            _block(32, 64, 2),  # 16 x 16
            _block(64, 64, 1),
            _block(64, 96, 2),  # 8 x 8
            _block(96, 32, 1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32 * 8 * 8, FEATURES),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [N, number of values] per attribute."""
        if images.ndim != 4 or images.shape[1:] != (3, 64, 64):
            raise ValueError(f"images have shape {tuple(images.shape)}: expected [N, 3, 64, 64] in [-1, 1]")
        hidden = self.trunk(images)
        return {name: head(hidden) for name, head in self.heads.items()}

    def _batches(self, images: Tensor, batch: int) -> Iterator[Tensor]:
        """Parts of the images, wherever they lie, on the reader's device."""
        device = next(self.parameters()).device
        return (x.to(device) for x in images.split(batch))

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 256) -> Tensor:
        """Penultimate features [N, 128], float32, >= 0."""
        return torch.cat([self.trunk(x) for x in self._batches(images, batch)])

    @torch.no_grad()
    def probabilities(self, images: Tensor, batch: int = 256) -> dict[str, Tensor]:
        """Softmax probabilities [N, number of values] per attribute."""
        parts = [self(x) for x in self._batches(images, batch)]
        return {name: torch.cat([p[name] for p in parts]).softmax(-1) for name in ATTRIBUTES}

    def read(self, images: Tensor, batch: int = 256) -> dict[str, Tensor]:
        """The most probable value of each attribute as an index into `ATTRIBUTES[name]`: int64 [N] per attribute."""
        return {name: p.argmax(-1) for name, p in self.probabilities(images, batch).items()}

    def describe(self, images: Tensor) -> list[dict[str, str]]:
        """The readings in words: one dict attribute -> value per image."""
        read = self.read(images)
        return [{name: ATTRIBUTES[name][int(read[name][i])] for name in ATTRIBUTES} for i in range(len(images))]

    def correct(self, images: Tensor, specs: Sequence[PortraitSpec]) -> dict[str, Tensor]:
        """Whether each attribute is read as the spec says: bool [N] per attribute."""
        targets = spec_indices(specs)
        return {name: index.cpu() == targets[name] for name, index in self.read(images).items()}

    def accuracy(
        self, images: Tensor, specs: Sequence[PortraitSpec], named: Sequence[Iterable[str]] | None = None
    ) -> dict[str, float]:
        """Share of correctly read images per attribute.

        Args:
            named: for each image the attributes to judge (`Caption.named`); None judges all. An attribute that
            nobody names is left out.
        """
        correct = self.correct(images, specs)
        if named is None:
            return {name: hits.float().mean().item() for name, hits in correct.items()}
        judged = {name: torch.tensor([name in names for names in named]) for name in ATTRIBUTES}
        return {name: correct[name][mask].float().mean().item() for name, mask in judged.items() if mask.any()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` (fp16) and `config.json` (attributes and values, to notice a changed world)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.half() if v.dtype == torch.float32 else v for k, v in self.state_dict().items()}
        write_atomically(
            folder / "model.safetensors", lambda p: save_file({k: v.contiguous() for k, v in tensors.items()}, str(p))
        )
        config = json.dumps({"attributes": ATTRIBUTES, "features": FEATURES}, indent=1)
        write_atomically(folder / "config.json", config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AttributeReader:
        """Load in float32, evaluation mode.

        Raises:
            ValueError: the weights were trained for other attributes than this version of `labkit.portraits` draws.
        """
        folder = Path(folder)
        stored = {k: tuple(v) for k, v in json.loads((folder / "config.json").read_text("utf-8"))["attributes"].items()}
        if stored != ATTRIBUTES:
            raise ValueError(
                f"{folder} was trained for other attributes: retrain with `python -m labkit.training reader`"
            )
        reader = cls()
        reader.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()}
        )
        return reader.eval().requires_grad_(False)


def spec_indices(specs: Sequence[PortraitSpec]) -> dict[str, Tensor]:
    """Specs as class indices: int64 [N] per attribute."""
    return {name: torch.tensor([values.index(getattr(s, name)) for s in specs]) for name, values in ATTRIBUTES.items()}
