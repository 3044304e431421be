"""The two towers of a CLIPModel: texts and images in, unit vectors out; whatever version of transformers.

Works for PortraitCLIP and for `openai/clip-vit-*`. Long sentences are refused, never cut: the half about the second
image would be the half that is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import CLIPModel

from labkit.models.clip import embed_images
from labkit.models.clip_inputs import ClipInputs
from labkit.pairwise.equations import unit

Encoder = Callable[[Sequence[str]], Tensor]
"""texts -> unit vectors [N, d]"""


def as_tensor(features: object) -> Tensor:
    """The projected embedding of `get_text_features`: a tensor up to transformers 4, the `pooler_output` of an output
    object from 5 on."""
    if isinstance(features, Tensor):
        return features
    pooled = getattr(features, "pooler_output", None)
    if not isinstance(pooled, Tensor):
        raise TypeError(f"got {type(features).__name__}: expected a tensor or an output with pooler_output")
    return pooled


def check_vocabulary(clip: CLIPModel, inputs: ClipInputs) -> None:
    """Make sure that CLIP pools a sentence at its end.

    CLIP reads the text embedding at the first end-of-text token. Without one it reads position 0, and all sentences
    become one vector. A config with eos_token_id = 2 takes an old path that reads the largest token id instead, which
    is right only if the end-of-text token is the largest (as in OpenAI's own vocabulary).

    Raises:
        ValueError: the vocabulary has no end-of-text token, does not append it, or the config means another token.
    """
    tokenizer, configured = inputs.tokenizer, clip.config.text_config.eos_token_id
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("the tokenizer has no end-of-text token: set eos_token, CLIP reads the sentence there")
    ids = inputs(["a"])["input_ids"][0]
    if eos not in ids.tolist():
        raise ValueError(f"the tokenizer does not append its end-of-text token {eos}: every text would look the same")
    if configured == 2:
        if eos != max(tokenizer.get_vocab().values()):
            raise ValueError(
                f"eos_token_id is 2 in the config, so CLIP reads the largest token id, and {eos} is not the largest: "
                "set clip.config.text_config.eos_token_id and clip.text_model.eos_token_id to the tokenizer's"
            )
    elif configured != eos:
        raise ValueError(f"the config ends texts with token {configured}, the tokenizer with {eos}: make them equal")


class TextTower:
    """Texts -> unit vectors [N, d]. Token ids are remembered, equal texts of a call are encoded once, and padding is
    cut to the longest text of a batch (the text tower is causal: padding never matters). Differentiable under grad.

    Raises:
        ValueError: see `check_vocabulary`; a text without letters; a text longer than the context.
    """

    def __init__(self, clip: CLIPModel, inputs: ClipInputs, *, batch: int = 512):
        check_vocabulary(clip, inputs)
        self.clip, self.inputs, self.batch = clip, inputs, batch
        self.device = next(clip.text_model.parameters()).device
        self._rows: dict[str, Tensor] = {}

    def tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """Token ids of each text, int64 [its length], without padding."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        for text in new:
            if not any(c.isalpha() for c in text):
                raise ValueError(f"a text has no letters: {text[:60]!r}; write a sentence")
        if new:
            batch = self.inputs(new)
            for text, ids, mask in zip(new, batch["input_ids"], batch["attention_mask"], strict=True):
                self._rows[text] = ids[: int(mask.sum())]
        return [self._rows[text] for text in texts]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        unique = list(dict.fromkeys(texts))
        if not unique:
            raise ValueError("there are no texts: pass at least one")
        place = {text: k for k, text in enumerate(unique)}
        rows = torch.cat([self._encode(unique[k : k + self.batch]) for k in range(0, len(unique), self.batch)])
        return rows[[place[text] for text in texts]]

    def _encode(self, texts: list[str]) -> Tensor:
        rows = self.tokens(texts)
        length = max(len(row) for row in rows)
        pad = self.inputs.tokenizer.pad_token_id
        ids = torch.full((len(rows), length), self.inputs.tokenizer.eos_token_id if pad is None else pad)
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        for k, row in enumerate(rows):
            ids[k, : len(row)], mask[k, : len(row)] = row, 1
        features = self.clip.get_text_features(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        return unit(as_tensor(features))


@torch.no_grad()
def cache_embeddings(clip: CLIPModel, inputs: ClipInputs, images: Tensor, *, batch: int = 256) -> Tensor:
    """Unit image embeddings [N, d] of images [N, 3, H, W] in [-1, 1], computed once: the image tower is frozen."""
    return torch.cat([embed_images(clip, inputs.pixels(x)) for x in images.split(batch)])
