"""What a CLIPModel wants to be given: token ids from texts, normalised pixels from image tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.images import ImageError, fit_levels, read_levels, read_tensor


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

    def pictures(
        self, images: Iterable[object], *, fit: str = "clip", value_range: tuple[float, float] | None = None
    ) -> Tensor:
        """Pictures of any kind and size (files, PIL, arrays, tensors, see `labkit.images`) as the model's processor
        crops them: float32 [N, 3, image_size, image_size] in [-1, 1], for `pixels` and `cache_embeddings`.

        Args:
            fit: "clip" (shorter side to image_size, then a crop at the centre), "crop" or "squash". Squashed
                photographs are other pictures to the model.
            value_range: of float pictures.

        Raises:
            ImageError: a picture that cannot be read, by name; or no pictures.
        """
        rows = []
        for i, image in enumerate(images):
            levels = read_levels(image, value_range=value_range, what=f"image {i}")
            rows.append(read_tensor(fit_levels(levels, self.image_size, fit)))
        if not rows:
            raise ImageError("there are no pictures: pass at least one")
        return torch.stack(rows)

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
