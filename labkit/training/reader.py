"""Training the AttributeReader on augmented renders and on VAE reconstructions of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.models.reader import AttributeReader, spec_indices
from labkit.portraits.spec import PortraitSpec
from labkit.training.loop import LoopConfig, run


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 2 pixels, gain and offset of 5 %, noise, and blur of a third of the batch; [B, 3, 64, 64] in
    about [-1, 1]."""
    b = len(x)
    dx, dy = torch.randint(-2, 3, (2,), generator=generator).tolist()
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")[..., 2 + dy : 66 + dy, 2 + dx : 66 + dx]
    gain = 1 + 0.05 * (2 * torch.rand(b, 1, 1, 1, generator=generator) - 1)
    offset = 0.05 * (2 * torch.rand(b, 1, 1, 1, generator=generator) - 1)
    x = (
        x * gain
        + offset
        + 0.06 * torch.rand(b, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
    )
    third = b // 3
    blurred = F.avg_pool2d(F.pad(x[:third], (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = torch.rand(third, 1, 1, 1, generator=generator)
    return torch.cat([torch.lerp(x[:third], blurred, mix), x[third:]])


def train_reader(
    images: np.ndarray,
    specs: Sequence[PortraitSpec],
    reconstructions: np.ndarray | None,
    folder: Path,
    *,
    steps: int,
    batch: int = 64,
) -> AttributeReader:
    """Cross-entropy summed over attributes.

    Args:
        images: uint8 [N, 64, 64, 3].
        reconstructions: uint8 [N, 64, 64, 3], what the VAE makes of the images; half of each batch. None: renders only.
    """
    torch.manual_seed(0)  # the initial weights
    reader, pixels, targets = AttributeReader(), torch.from_numpy(images), spec_indices(specs)
    decoded = torch.from_numpy(reconstructions) if reconstructions is not None else None

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(pixels), (batch,), generator=generator)
        chosen = pixels[index]
        if decoded is not None:
            half = torch.arange(batch) % 2 == 0
            chosen = torch.where(half[:, None, None, None], decoded[index], chosen)
        x = augment(chosen.permute(0, 3, 1, 2).float().div(127.5).sub(1.0), generator)
        logits = reader(x)
        losses = {name: F.cross_entropy(logits[name], targets[name][index]) for name in logits}
        return sum(losses.values()), {"loss": sum(v.item() for v in losses.values())}

    data = {"images": torch.from_numpy(images)}
    ema = run("reader", reader, loss, LoopConfig(steps=steps, lr=2e-3, ema=0.995, weight_decay=0.02), folder, data=data)
    reader.load_state_dict(ema)
    return reader.eval()
