"""Training PortraitCLIP with exact targets: which caption is true of which image is known, so no negative is a false
one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from labkit.models.clip import (
    captionable_values,
    embed_images,
    embed_text,
    new_clip,
    pool_text,
    retrieval_at_1,
    tokenize,
    zero_shot_accuracy,
)
from labkit.models.reader import spec_indices
from labkit.portraits.attributes import ATTRIBUTES, allowed_values
from labkit.portraits.captions import TEMPLATES, Caption, caption, describe, random_caption
from labkit.portraits.spec import PortraitSpec
from labkit.training.loop import LoopConfig, run

NAMES = tuple(ATTRIBUTES)


def truth_table(specs: Sequence[PortraitSpec], owners: Sequence[PortraitSpec], captions: Sequence[Caption]) -> Tensor:
    """bool [N, M]: caption j (written for `owners[j]`) is true of `specs[i]` when they agree in every attribute
    it names."""
    a, b = (torch.stack([spec_indices(s)[n] for n in NAMES], 1) for s in (specs, owners))  # [N, A], [M, A]
    named = torch.tensor([[n in c.named for n in NAMES] for c in captions])  # [M, A]
    return ((a[:, None] == b[None]) | ~named[None]).all(-1)


def multi_positive(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of softmax rows against the uniform distribution over the true columns; rows without a true
    column do not count."""
    count = truth.sum(1)
    loss = -(logits.log_softmax(1) * truth).sum(1) / count.clamp(min=1)
    return loss[count > 0].mean()


def edited(spec: PortraitSpec, named: frozenset[str], rng: np.random.Generator) -> PortraitSpec | None:
    """`spec` with one named attribute changed to another value that its style can draw: the source of a hard
    negative caption."""
    for attribute in rng.permutation(sorted(named - {"style"})):
        value = getattr(spec, attribute)
        choices = [
            v
            for v in allowed_values(spec.style, attribute)
            if v not in (value, "none" if attribute == "hair_color" else "")
        ]
        if choices:
            return spec.with_(**{attribute: choices[int(rng.integers(len(choices)))]})
    return None


def train_clip(
    images: np.ndarray,
    specs: Sequence[PortraitSpec],
    validation: tuple[Tensor, Sequence[PortraitSpec]],
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    steps: int,
    lr: float = 1e-3,
    batch: int = 64,
    start: CLIPModel | None = None,
) -> CLIPModel:
    """Symmetric multi-positive contrastive loss + hard negatives (own caption against copies with one attribute
    changed) + one attribute's
    values against each other (the zero-shot question itself)."""
    torch.manual_seed(0)  # the initial weights
    clip, pixels = start or new_clip(tokenizer), torch.from_numpy(images)
    if start is None:
        clip.logit_scale.data.fill_(np.log(10.0))
    questions = {
        (a, k): _shorten(tokenize(tokenizer, [describe({a: v}, template=k).text for v in captionable_values(a)]))
        for a in NAMES
        for k in range(TEMPLATES["en"])
    }
    indices = {a: torch.tensor([_index(a, s) for s in specs]) for a in NAMES}

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(pixels), (batch,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        x = pixels[index].permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
        own = [specs[i] for i in index.tolist()]
        captions = [random_caption(s, rng, full_share=0.3) for s in own]
        edits = [edited(s, c.named, rng) for s, c in zip(own, captions, strict=True)]
        pairs = [(i, _rewrite(captions[i], other, rng)) for i, other in enumerate(edits) if other][: batch // 2]
        texts = embed_text(clip, _shorten(tokenize(tokenizer, [c.text for c in captions] + [w.text for _, w in pairs])))
        pictures, scale = embed_images(clip, x), clip.logit_scale.exp().clamp(max=100)
        true, false, rows = texts[:batch], texts[batch:], [i for i, _ in pairs]
        logits = scale * pictures @ true.T
        truth = truth_table(own, own, captions)
        contrastive = (multi_positive(logits, truth) + multi_positive(logits.T, truth.T)) / 2
        margin = scale * (pictures[rows] * (true[rows] - false)).sum(-1)
        hard = F.softplus(-margin).mean()
        template = int(rng.integers(TEMPLATES["en"]))
        answers = {a: embed_text(clip, questions[a, template]) for a in NAMES}
        asked = _asked(scale * pictures, answers, indices, index)
        total = contrastive + hard + sum(asked.values())
        numbers = {"contrastive": contrastive.item(), "hard": hard.item()}
        return total, numbers | {f"asked.{k}": v.item() for k, v in asked.items()}

    config = LoopConfig(steps=steps, lr=lr, ema=0.995, weight_decay=0.05, warmup=min(200, steps // 5), decay=0.6)
    ema = run(
        "clip", clip, loss, config, folder, evaluate=_evaluation(tokenizer, validation), evaluate_every=250,
        data={"images": torch.from_numpy(images)},
    )  # fmt: skip
    clip.load_state_dict(ema)
    return clip.eval()


def train_image_tower(
    clip: CLIPModel,
    images: np.ndarray,
    specs: Sequence[PortraitSpec],
    validation: tuple[Tensor, Sequence[PortraitSpec]],
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    steps: int,
    batch: int = 64,
) -> CLIPModel:
    """Go on with the image tower and both projections: every attribute's values against each other, and full captions
    among the batch.

    The tower learns small shapes (mouths, hair outlines) much later than colours. The text transformer stays as it
    is, so its pooled states are computed once.
    """
    trained = ("vision_model.", "visual_projection.", "text_projection.")
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    pixels = torch.from_numpy(images)
    indices = {a: torch.tensor([_index(a, s) for s in specs]) for a in NAMES}
    scale = float(clip.logit_scale.detach().exp().clamp(max=100))
    with torch.no_grad():
        words = {
            a: torch.stack(
                [
                    pool_text(clip, tokenize(tokenizer, [describe({a: v}, template=k).text for v in values]))
                    for k in range(TEMPLATES["en"])
                ]
            )  # [templates, V, 128]
            for a in NAMES
            for values in [captionable_values(a)]
        }
        texts = [[caption(s).text for s in specs[i : i + 256]] for i in range(0, len(specs), 256)]
        sentences = torch.cat([pool_text(clip, _shorten(tokenize(tokenizer, part))) for part in texts])  # [N, 128]

    def project(pooled: Tensor) -> Tensor:
        return F.normalize(clip.text_projection(pooled), dim=-1)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(pixels), (batch,), generator=generator)
        pictures = embed_images(clip, pixels[index].permute(0, 3, 1, 2).float().div(127.5).sub(1.0))
        answers = {a: F.normalize(project(pooled).mean(0), dim=-1) for a, pooled in words.items()}
        asked = _asked(scale * pictures, answers, indices, index)
        matching = F.cross_entropy(scale * pictures @ project(sentences[index]).T, torch.arange(batch))
        numbers = {f"asked.{k}": v.item() for k, v in asked.items()}
        return sum(asked.values()) + matching, numbers | {"matching": matching.item()}

    config = LoopConfig(steps=steps, lr=1e-3, ema=0.995, weight_decay=0.05, warmup=100, decay=0.6, seed=1)
    ema = run(
        "clip images",
        clip,
        loss,
        config,
        folder,
        evaluate=_evaluation(tokenizer, validation),
        evaluate_every=250,
        data={"images": torch.from_numpy(images)},
    )
    clip.load_state_dict(ema)
    return clip.eval()


def _asked(
    pictures: Tensor, answers: dict[str, Tensor], indices: dict[str, Tensor], index: Tensor
) -> dict[str, Tensor]:
    """Per attribute: cross-entropy of the scaled embeddings [B, 128] against one answer per value [V, 128]; portraits
    whose value no caption can name (`indices` -1) are left out."""
    losses = {}
    for name, values in answers.items():
        target = indices[name][index]
        losses[name] = F.cross_entropy(pictures[target >= 0] @ values.T, target[target >= 0])
    return losses


def _evaluation(tokenizer: CLIPTokenizer, validation: tuple[Tensor, Sequence[PortraitSpec]]):
    """Retrieval among full captions, and zero-shot accuracy per attribute and at the worst one."""
    full = [caption(s).text for s in validation[1]]

    def evaluate(model: CLIPModel) -> dict[str, float]:
        zero_shot = zero_shot_accuracy(model, tokenizer, *validation)
        return {
            "retrieval": retrieval_at_1(model, tokenizer, validation[0], full),
            "zero_shot_min": min(zero_shot.values()),
        } | {f"zero_shot.{k}": v for k, v in zero_shot.items()}

    return evaluate


def _shorten(ids: Tensor) -> Tensor:
    """Cut the columns that are padding (id 0) in every row."""
    return ids[:, : int((ids != 0).sum(1).max())]


def _rewrite(original: Caption, changed: PortraitSpec, rng: np.random.Generator) -> Caption:
    """A caption of `changed` that names what `original` names; shaving a head takes its colour out of the words."""
    values = {a: getattr(changed, a) for a in original.named}
    return describe(values, template=int(rng.integers(TEMPLATES["en"])))


def _index(attribute: str, spec: PortraitSpec) -> int:
    values = captionable_values(attribute)
    value = getattr(spec, attribute)
    return values.index(value) if value in values else -1
