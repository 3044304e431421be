"""Judges that label pairs: one signature, (images, prompts) -> scores, so that every judge can replace another.

For portraits: a training judge of faithfulness (PortraitCLIP, never the AttributeReader, which is kept to measure
with), sharpness, and a colour bias that is there on purpose. Published judges of photographs are in
`labkit.dpo.gpu_scorers`, a judge learnt from votes in `labkit.dpo.preference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.metrics.images import sharpness_of
from labkit.models.clip import captionable_values, embed_images, value_embeddings
from labkit.portraits.attributes import ATTRIBUTES
from labkit.portraits.parse import parse_caption


@dataclass(frozen=True)
class Scorer:
    """A named judge: images float [B, 3, H, W] in [-1, 1] and B prompts -> float32 scores [B] on the CPU, no gradient.

    name goes into every pair record: put the version in as well. Higher is better.
    Raises ValueError if images and prompts do not match, or if a score is NaN or infinite.
    """

    name: str
    function: Callable[[Tensor, Sequence[str]], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if isinstance(prompts, str) or len(images) != len(prompts):
            raise ValueError(f"{self.name}: got {len(images)} images and {len(prompts)} prompts: give a list, one each")
        scores = torch.as_tensor(self.function(images, [str(p) for p in prompts])).detach().float().cpu()
        if scores.shape != (len(images),):
            raise ValueError(f"{self.name} returned shape {tuple(scores.shape)}, expected ({len(images)},)")
        bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{self.name}: {len(bad)} scores are not finite (first: image {bad[0]}): drop those images"
            )
        return scores


def faithfulness(clip, inputs, *, batch_size: int = 256) -> Scorer:
    """Mean zero-shot probability, by PortraitCLIP, of the values that the prompt names; in [0, 1].

    clip, inputs: from `labkit.models.load_clip`. For each named attribute the image is compared with one text per value
    and the softmax at CLIP's own temperature gives the named value's probability. A prompt that names nothing scores 0
    for every image: all of its images tie. Values that no caption can name (held-out styles) are left out.
    """
    texts = {a: value_embeddings(clip, inputs.tokenizer, a, captionable_values(a)) for a in ATTRIBUTES}
    scale = clip.logit_scale.exp()

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        device = clip.logit_scale.device
        pictures = embed_images(clip, inputs.pixels(images.to(device)), batch_size)  # [B, d]
        probabilities = {a: (scale * pictures @ text.T).softmax(-1) for a, text in texts.items()}  # [B, values]
        scores = torch.zeros(len(images), device=device)
        for i, prompt in enumerate(prompts):
            named = {a: v for a, v in parse_caption(prompt).items() if v in captionable_values(a)}
            for a, v in named.items():
                scores[i] += probabilities[a][i, captionable_values(a).index(v)] / len(named)
        return scores

    return Scorer("portrait-faithfulness/1", score)


def clip_scorer(clip, inputs, *, name: str = "clip-cosine/1", batch_size: int = 256) -> Scorer:
    """Cosine of CLIP's image and text embeddings, in [-1, 1], for any CLIPModel with its `ClipInputs`."""

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        pictures, texts = (
            clip_image_features(clip, inputs, images, batch_size),
            clip_text_features(clip, inputs, prompts),
        )
        return (pictures * texts).sum(-1)

    return Scorer(name, score)


def clip_image_features(clip, inputs, images: Tensor, batch_size: int = 256) -> Tensor:
    """Unit-length image embeddings [B, d] of images [B, 3, H, W] in [-1, 1], resized and normalised as CLIP wants."""
    weight = clip.visual_projection.weight
    return embed_images(clip, inputs.pixels(images.to(weight.device)).to(weight.dtype), batch_size).float()


def clip_text_features(clip, inputs, prompts: Sequence[str]) -> Tensor:
    """Unit-length text embeddings [B, d]; each distinct prompt is encoded once, long ones are cut to the context."""
    unique = list(dict.fromkeys(prompts))
    batch = inputs(unique, truncate=True, device=clip.text_projection.weight.device)
    embedded = F.normalize(clip.text_projection(clip.text_model(**batch).pooler_output).float(), dim=-1)
    return embedded[[unique.index(p) for p in prompts]]  # [B, d]


def sharpness() -> Scorer:
    """`sharpness_of` as a judge. Ignores the prompt."""
    return Scorer("sharpness/1", lambda images, prompts: sharpness_of(images))


def warmth_of(images: Tensor) -> Tensor:
    """Mean red minus mean blue, pixel values in [0, 1]: in [-1, 1], per image [B]."""
    channels = images.float().mean((2, 3)) / 2  # [B, 3]
    return channels[:, 0] - channels[:, 2]


def warmth() -> Scorer:
    """`warmth_of` as a judge: a pure colour preference. Ignores the prompt."""
    return Scorer("warmth/1", lambda images, prompts: warmth_of(images))


def blend(weights: Mapping[Scorer, float] | Sequence[tuple[Scorer, float]]) -> Scorer:
    """Weighted sum of judges: [(faithful, 1.0), (warmth(), 0.5)] is a faithful judge with a secret weakness."""
    parts = list(weights.items()) if isinstance(weights, Mapping) else list(weights)
    if not parts:
        raise ValueError("blend got no scorers: give at least one (scorer, weight)")
    name = " + ".join(f"{weight:g} {scorer.name}" for scorer, weight in parts)
    return Scorer(name, lambda images, prompts: sum(w * scorer(images, prompts) for scorer, w in parts))
