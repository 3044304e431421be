"""New words for a text tower: whole tokens instead of letters.

PortraitCLIP's vocabulary comes from captions, and no caption says "first" or "second". It would spell them, "f ir s t",
with letters whose embeddings were never trained: half of a sentence's tokens would carry nothing, and the two markers
would hardly differ. A new word gets a random embedding as long as a trained one. The paper's scope stays: embeddings
are not trained, the blocks learn what the word does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from transformers import CLIPModel

from labkit.models.clip_inputs import ClipInputs
from labkit.pairwise.train import copy_with_shared_images


def with_words(
    clip: CLIPModel, inputs: ClipInputs, words: Sequence[str], *, seed: int = 0
) -> tuple[CLIPModel, ClipInputs]:
    """A copy of both that knows these words; words that are one token already stay as they are.

    Texts without any of the new words are read exactly as before.

    Raises:
        ValueError: something that is not one lower-case word.
    """
    for word in words:
        if not word.isalpha() or word != word.lower():
            raise ValueError(f"{word!r} is no lower-case word: pass words of letters alone")
    special = len(inputs.tokenizer("")["input_ids"])
    new = [w for w in dict.fromkeys(words) if len(inputs.tokenizer(w)["input_ids"]) > special + 1]
    model, known = copy_with_shared_images(clip), copy.copy(inputs)
    known.tokenizer = copy.deepcopy(inputs.tokenizer)
    known.tokenizer.add_tokens([AddedToken(w, single_word=True, normalized=True) for w in new])
    old = model.text_model.embeddings.token_embedding
    noise = torch.randn(len(new), old.embedding_dim, generator=torch.Generator().manual_seed(seed))
    length = old.weight.detach().norm(dim=1).quantile(0.9)  # most tokens of the vocabulary were never trained
    rows = torch.cat([old.weight.detach(), (noise / noise.norm(dim=1, keepdim=True) * length).to(old.weight)])
    model.text_model.embeddings.token_embedding = torch.nn.Embedding.from_pretrained(rows)
    model.config.text_config.vocab_size = len(rows)
    return model, known
