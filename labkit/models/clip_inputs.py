"""What a CLIPModel wants to be given: token ids from texts, normalised pixels from image tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class ClipInputs:
    """Callable: texts -> {"input_ids", "attention_mask"}, each int64 [N, context]; `pixels` does the same for images.

    Pixels are resized to the model's size (bicubic, antialiased) if they have another, and normalised with `mean` and
    `std`, which refer to [0, 1]: 0.5 and 0.5 leave [-1, 1] as it is (PortraitCLIP). Both stay differentiable.
    """

    def __init__(self, tokenizer, config, *, mean: Sequence[float], std: Sequence[float]):
        self.tokenizer = tokenizer
        self.context: int = config.text_config.max_position_embeddings
        self.image_size: int = config.vision_config.image_size
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(
        self, texts: Sequence[str], *, truncate: bool = False, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Padded token ids and mask. A text longer than the context is a ValueError unless truncate=True."""
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string: put it in a list")
        batch = self.tokenizer(list(texts), padding="max_length", max_length=self.context, truncation=truncate)
        for text, ids in zip(texts, batch["input_ids"], strict=True):
            if len(ids) > self.context:
                raise ValueError(
                    f"a text has {len(ids)} tokens, the context holds {self.context}: "
                    f"shorten {text[:60]!r} or pass truncate=True"
                )
        return {name: torch.tensor(batch[name], device=device) for name in ("input_ids", "attention_mask")}

    def pixels(self, images: Tensor) -> Tensor:
        """Image tensor [N, 3, H, W] in [-1, 1] -> pixel_values [N, 3, image_size, image_size]."""
        size = (self.image_size, self.image_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        if self.mean == self.std == (0.5, 0.5, 0.5):
            return images
        mean = torch.tensor(self.mean, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
        return (images / 2 + 0.5 - mean) / std
