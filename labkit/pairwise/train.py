"""Finetuning the text tower on differences; the image tower stays frozen and its embeddings are cached.

As in the paper, the blocks of the text transformer learn and nothing else: no token embedding, no final norm, no
projection.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from transformers import CLIPModel

from labkit.errors import LabkitError
from labkit.models.clip_inputs import ClipInputs
from labkit.optim import update
from labkit.pairwise.config import PairwiseConfig
from labkit.pairwise.equations import (
    contrastive_loss,
    difference,
    duplicate_floor,
    squared_loss,
    two_sided_cross_entropy,
)
from labkit.pairwise.evaluate import mirror_cosine
from labkit.pairwise.pairs import Codes, Values, matching
from labkit.pairwise.records import DifferenceRecord
from labkit.pairwise.towers import TextTower
from labkit.pairwise.wording import Wording


class PairwiseError(LabkitError, ValueError):
    """A run that cannot go on, or pictures and sentences that cannot be trained on."""


WATCHED = 64  # sentences whose mirrors the run card watches


@dataclass
class RunCard:
    """What was trained and how it went; `asdict(card)` goes into a JSON file.

    drift           |w - w0| / |w0| over all trained weights
    mirror_cosine   mean cosine of sentences and their mirrors before and after: a number to watch, not a goal
    """

    config: dict
    records: int
    dropped: int
    trainable: int
    seconds: float = 0.0
    seconds_per_1000_pairs: float = 0.0
    loss: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    drift: float = 0.0
    mirror_cosine: tuple[float, float] = (0.0, 0.0)
    history: list[dict] = field(default_factory=list)


def trainable_parameters(clip: CLIPModel) -> list[torch.nn.Parameter]:
    """Freeze everything but the text transformer's blocks; the parameters that will be trained."""
    clip.requires_grad_(False)
    parameters = list(clip.text_model.encoder.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def copy_with_shared_images(clip: CLIPModel) -> CLIPModel:
    """A copy whose text side is its own and whose frozen image tower is the original object."""
    shared = (clip.vision_model, clip.visual_projection)
    return copy.deepcopy(clip, {id(module): module for module in shared})


def train_pairwise(
    clip: CLIPModel,
    inputs: ClipInputs,
    images: Tensor,
    values: Sequence[Values],
    records: Sequence[DifferenceRecord],
    config: PairwiseConfig,
    *,
    wording: Wording,
    generator: torch.Generator,
    captions: Sequence[tuple[str, Mapping[str, str] | None]] | None = None,
    monitor: Callable[[int, CLIPModel], Mapping[str, float]] | None = None,
    every: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> tuple[CLIPModel, RunCard]:
    """Train a copy of `clip` on difference records; the original stays as it is.

    Args:
        images: cached unit embeddings [N, d] of the frozen image tower (see `cache_embeddings`).
        values: the attributes of the N images (for exact targets).
        records: sentences about pairs of these images, from any writer.
        captions: for rehearsal, one (caption, the values that it names) per image. {}: it names nothing and is true of
            every image ("a portrait"); None: nobody knows what it names, so it is true of its own image alone.
        generator: draws the batches and every choice; the same generator state gives the same run.
        monitor: called as monitor(step, model) every `every` steps and at the end; its numbers go into the history.
        on_step: called after every step (progress bars).

    Raises:
        ValueError: no records or no usable pair, or rehearsal without captions.
    """
    if not records:
        raise ValueError("there are no records: write some sentences first")
    if config.rehearsal and (captions is None or len(captions) != len(images)):
        raise ValueError(f"rehearsal needs one caption for each of the {len(images)} images: pass captions=")
    foreign = {a for _, named in captions or () for a in named or ()} - set(wording)
    if config.rehearsal and foreign:
        raise ValueError(f"captions name {', '.join(sorted(foreign))}, which the wording does not know: widen wording")
    if config.rehearsal and sum(named == {} for _, named in captions) > len(captions) / 2:
        raise ValueError(
            "most captions name nothing, so each would count as true of every image: pass None where the "
            "attributes are not known"
        )
    pairs = torch.tensor([(r.first, r.second) for r in records])  # [R, 2]
    usable = (difference(images[pairs[:, 0]], images[pairs[:, 1]]) != 0).any(-1).nonzero().squeeze(-1)  # row numbers
    if len(usable) == 0:
        raise ValueError(f"all {len(records)} pairs have identical embeddings: pair different images")
    model = copy_with_shared_images(clip).eval()  # eval: CLIP has no dropout to switch on, and none is wanted
    torch.randint(2**31, (1,), generator=generator)  # nothing needs it, but the batches of measured runs follow it
    parameters = trainable_parameters(model)
    before = [p.detach().clone() for p in parameters]
    tower = TextTower(model, inputs)
    tower.tokens([text for r in records for text in (*r.sentences, *r.mirrored)])  # over-long ones are found now
    if config.rehearsal:
        tower.tokens([text for text, _ in captions])
    optimizer = torch.optim.Adam(parameters, lr=config.lr)
    codes, scale = Codes(wording), model.logit_scale.detach().exp()
    per_pass = max(1, math.ceil(len(usable) / config.batch))
    card = RunCard(asdict(config), len(records), len(records) - len(usable), sum(p.numel() for p in parameters))
    watched = [records[k] for k in usable[:WATCHED].tolist()]
    mirrors = [r.sentences[0] for r in watched], [r.mirrored[0] for r in watched]
    opposed = mirror_cosine(tower, *mirrors)
    clock = 0.0
    for step in range(config.steps):
        start = time.perf_counter()
        loss = torch.zeros((), device=images.device)
        if config.difference:
            count = config.batch // 2 if config.mirrored else config.batch
            drawn = usable[torch.randint(len(usable), (count,), generator=generator)].tolist()
            part, floor = _difference_loss(tower, images, values, [records[k] for k in drawn], config, codes, generator)
            loss = loss + config.difference * part
            card.loss.append(float(part.detach()))
            card.floor.append(floor)
        if config.rehearsal:
            loss = loss + config.rehearsal * _caption_loss(
                tower, images, values, captions, config, codes, scale, generator
            )
        _check_finite(loss, step, model)
        loss.backward()
        update(optimizer, lr=config.lr * config.decay ** (step // per_pass))
        clock += time.perf_counter() - start
        if monitor and (step + 1 == config.steps or (every and (step + 1) % every == 0)):
            with torch.no_grad():
                card.history.append({"step": step + 1, **monitor(step + 1, model)})
        if on_step:
            on_step(step + 1)
    model.requires_grad_(False)
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise PairwiseError(f"weights are not finite after step {config.steps}: lower lr, or train in float32")
    moved = sum((p.detach() - b).square().sum() for p, b in zip(parameters, before, strict=True))
    card.drift = float((moved / sum(b.square().sum() for b in before).clamp(min=1e-12)).sqrt())
    card.mirror_cosine = opposed, mirror_cosine(tower, *mirrors)
    card.seconds = clock
    card.seconds_per_1000_pairs = clock / (config.steps * config.batch) * 1000
    return model, card


def _difference_loss(tower, images, values, batch, config, codes, generator) -> tuple[Tensor, float]:
    """The difference loss of one batch of records, and the floor that repeated sentences imply."""
    sides = [(record, False) for record in batch]
    if config.mirrored:  # the same words with "first" and "second" exchanged: only reading tells them apart
        sides += [(record, True) for record in batch]
    other = (torch.rand(len(sides), generator=generator) < 0.5) & config.both_orders
    texts, first, second = [], [], []
    for (record, turned), swapped in zip(sides, other.tolist(), strict=True):
        choice = record.mirrored if turned else record.sentences
        texts.append(choice[-1 if swapped else 0])
        first.append(record.second if turned else record.first)
        second.append(record.first if turned else record.second)
    text = tower(texts)  # [B, d]
    if config.loss == "squared":
        return squared_loss(text, images[first], images[second]), 0.0
    positives = None
    if config.true_targets:
        said = [r.statement.mirrored() if turned else r.statement for r, turned in sides]
        truth = codes.truth([values[i] for i in first], [values[j] for j in second], said).T  # [sentences, pairs]
        positives = (truth | _own(texts, torch.tensor([not s.attributes for s in said]))).to(text.device)
    floor = duplicate_floor(positives) if positives is not None else 0.0
    return contrastive_loss(text, difference(images[first], images[second]), config.tau, positives), floor


def _caption_loss(tower, images, values, captions, config, codes, scale, generator) -> Tensor:
    """CLIP's own loss on a batch of images and captions, each caption counted as true wherever it is."""
    index = torch.randint(len(images), (config.rehearsed or config.batch,), generator=generator).tolist()
    chosen = [captions[i] for i in index]
    texts = tower([text for text, _ in chosen])  # [B, d]
    unknown = torch.tensor([named is None for _, named in chosen])
    truth = matching(codes.of([values[i] for i in index]), codes.of([named or {} for _, named in chosen])).T
    truth = (truth & ~unknown[:, None]) | _own([text for text, _ in chosen], unknown)
    return two_sided_cross_entropy(scale * texts @ images[index].T, truth.to(texts.device))


def _own(texts: Sequence[str], unknown: Tensor) -> Tensor:
    """bool [B, B]: what is true without knowing attributes: the diagonal, and equal texts among the unknown ones."""
    number = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    codes = torch.tensor([number[text] for text in texts])
    same = (codes[:, None] == codes[None]) & unknown[:, None] & unknown[None]
    return torch.eye(len(texts), dtype=torch.bool) | same


def _check_finite(loss: Tensor, step: int, model: CLIPModel) -> None:
    """Raise PairwiseError at the first loss that is no number."""
    if not bool(torch.isfinite(loss.detach())):
        kind = next(model.text_model.parameters()).dtype
        cure = "train in float32" if kind == torch.float16 else "lower lr"
        raise PairwiseError(f"the loss is {float(loss)} at step {step + 1} with weights in {kind}: {cure}")
