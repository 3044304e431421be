"""PortraitCLIP: a transformers `CLIPModel` with its own small vocabulary, and what the course asks of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from labkit.portraits.attributes import ATTRIBUTES, TRAINING_STYLES
from labkit.portraits.captions import TEMPLATES, describe
from labkit.portraits.spec import PortraitSpec

CONTEXT = 40
SPECIAL_TOKENS = (
    "<|pad|>",
    "<|unk|>",
    "<|startoftext|>",
    "<|endoftext|>",
)  # eos = 3: an eos of 2 takes an old path in transformers


def train_tokenizer(captions: Sequence[str], vocab_size: int = 600) -> CLIPTokenizer:
    """A byte-pair vocabulary in CLIP's format: lower case, `</w>` marks the end of a word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<|unk|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions, *letters], trainer)
    import json

    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    pad, unk, bos, eos = SPECIAL_TOKENS
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=merges,
        pad_token=pad,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        model_max_length=CONTEXT,
    )


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained architecture: ViT 64/8 of width 128 with 4 layers, text transformer of width 128 with 3 layers,
    projection 128."""
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "projection_dim": 128,
        "hidden_act": "quick_gelu",
    }
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = tower | ids | {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "max_position_embeddings": CONTEXT}
    vision = tower | {"image_size": 64, "patch_size": 8, "num_hidden_layers": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids, int64 [N, 40], padded.

    Raises:
        ValueError: a text is longer than the context; it would lose its end silently.
    """
    ids = tokenizer(list(texts), padding="max_length", max_length=CONTEXT, truncation=False)["input_ids"]
    for text, row in zip(texts, ids, strict=True):
        if len(row) > CONTEXT:
            raise ValueError(f"a text has {len(row)} tokens, the context holds {CONTEXT}: shorten {text[:60]!r}")
    return torch.tensor(ids)


def pool_text(clip: CLIPModel, ids: Tensor) -> Tensor:
    """The text transformer's state [N, 128] at the end of each text, before the projection."""
    ids = ids.to(clip.text_projection.weight.device)
    mask = (ids != clip.config.text_config.pad_token_id).long()
    return clip.text_model(input_ids=ids, attention_mask=mask).pooler_output


def embed_text(clip: CLIPModel, ids: Tensor) -> Tensor:
    """Unit-length text embeddings [N, 128]."""
    return F.normalize(clip.text_projection(pool_text(clip, ids)), dim=-1)


def embed_images(clip: CLIPModel, images: Tensor, batch: int = 256) -> Tensor:
    """Unit-length image embeddings [N, 128] of images [N, 3, 64, 64] in [-1, 1], on CLIP's device."""
    device = clip.visual_projection.weight.device
    parts = [
        clip.visual_projection(clip.vision_model(pixel_values=x.to(device)).pooler_output) for x in images.split(batch)
    ]
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def value_embeddings(clip: CLIPModel, tokenizer: CLIPTokenizer, attribute: str, values: Sequence[str]) -> Tensor:
    """One unit vector [number of values, 128] per value: the mean over all paraphrases that name this attribute
    alone."""
    rows = []
    for value in values:
        texts = [describe({attribute: value}, template=k).text for k in range(TEMPLATES["en"])]
        rows.append(F.normalize(embed_text(clip, tokenize(tokenizer, texts)).mean(0), dim=-1))
    return torch.stack(rows)


def captionable_values(attribute: str) -> tuple[str, ...]:
    """The values that training captions can name: no held-out styles, and no colour of absent hair."""
    if attribute == "style":
        return TRAINING_STYLES
    return tuple(v for v in ATTRIBUTES[attribute] if not (attribute == "hair_color" and v == "none"))


@torch.no_grad()
def zero_shot_accuracy(
    clip: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, specs: Sequence[PortraitSpec]
) -> dict[str, float]:
    """Per attribute: share of images whose nearest value embedding is the true one (bald heads are left out of the
    hair colour)."""
    pictures, out = embed_images(clip, images), {}
    for attribute in ATTRIBUTES:
        values = captionable_values(attribute)
        rows = [i for i, spec in enumerate(specs) if getattr(spec, attribute) in values]
        truth = torch.tensor([values.index(getattr(specs[i], attribute)) for i in rows])
        scores = pictures[rows] @ value_embeddings(clip, tokenizer, attribute, values).T  # [N, values]
        out[attribute] = (scores.argmax(-1).cpu() == truth).float().mean().item()
    return out


@torch.no_grad()
def retrieval_at_1(clip: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, captions: Sequence[str]) -> float:
    """Share of images whose nearest caption among all is their own (or one with the same words)."""
    texts = embed_text(clip, tokenize(tokenizer, captions))
    best = (embed_images(clip, images) @ texts.T).argmax(-1)
    return sum(captions[i] == captions[j] for i, j in enumerate(best.tolist())) / len(captions)
