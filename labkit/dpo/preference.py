"""A judge learnt from votes: Bradley-Terry on PortraitCLIP features, taught by a simulated art director.

    P(first beats second | prompt) = sigmoid(w . phi(first) - w . phi(second)),    phi = [image * text, image]

image and text are CLIP's unit embeddings, so the model has a part that depends on the prompt and one that is pure
taste. Fitting w is convex: the same votes give the same judge. (PickScore, arXiv 2305.01569, trains all of CLIP.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import safe_open, save_file
from torch import Tensor

from labkit.dpo.scorers import Scorer, clip_image_features, clip_text_features
from labkit.files import write_atomically
from labkit.portraits import PortraitSpec, allowed_values, random_caption, render_tensor, sample_specs
from labkit.portraits.attributes import ATTRIBUTES, colored_hair
from labkit.portraits.parse import parse_caption


def aligned_density(p_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The optimum of KL-regularised alignment, p* = p_ref exp(reward / beta) / Z (DPO of language models, 2305.18290,
    eq. 4; Diffusion-DPO has the same for whole trajectories).

    Args:
        p_ref: probabilities of the reference on a grid, [N], summing to 1. reward: [N]. beta > 0: weight of the KL.

    Returns:
        p*, [N], summing to 1.
    """
    return torch.softmax(p_ref.log() + reward / beta, 0)


@dataclass(frozen=True)
class ArtDirector:
    """A simulated voter who sees the truth (the spec) of two portraits.

    utility = faithful * share of the prompt's named attributes that are right + sum of taste[attribute][value].
    The vote is drawn with P = sigmoid(difference / noise); differences up to `indifferent` are called a tie.
    """

    taste: Mapping[str, Mapping[str, float]]
    faithful: float = 2.0
    noise: float = 0.25
    indifferent: float = 0.0

    def utility(self, spec: PortraitSpec, prompt: str) -> float:
        named = parse_caption(prompt)
        right = [getattr(spec, a) == v for a, v in named.items()]
        pleasing = sum(values.get(getattr(spec, a), 0.0) for a, values in self.taste.items())
        return self.faithful * float(np.mean(right) if right else 0.0) + pleasing

    def vote(self, first: PortraitSpec, second: PortraitSpec, prompt: str, rng: np.random.Generator) -> float:
        """1 the first, 0 the second, 0.5 a tie."""
        difference = self.utility(first, prompt) - self.utility(second, prompt)
        if abs(difference) <= self.indifferent:
            return 0.5
        return float(rng.random() < 0.5 + 0.5 * np.tanh(difference / self.noise / 2))  # sigmoid, without overflow


@dataclass(frozen=True)
class Votes:
    """n votes: prompts, the two portraits, outcome [n] (1 first, 0 second, 0.5 tie)."""

    prompts: tuple[str, ...]
    first: tuple[PortraitSpec, ...]
    second: tuple[PortraitSpec, ...]
    outcome: np.ndarray


def simulate_votes(director: ArtDirector, n: int, *, seed: int, changes: int = 3) -> Votes:
    """n duels of two portraits that each differ from the prompt's own in up to `changes` random attributes.

    Vote i depends on (seed, i) alone. The portraits are renders, so the truth is known without any reader.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least one vote")
    specs = sample_specs(n, seed=seed)
    prompts, first, second, outcome = [], [], [], []
    for i, spec in enumerate(specs):
        rng = np.random.default_rng([seed, i, 1])
        prompt = random_caption(spec, rng).text
        a, b = (_changed(spec, rng, changes) for _ in range(2))
        prompts.append(prompt)
        first.append(a)
        second.append(b)
        outcome.append(director.vote(a, b, prompt, rng))
    return Votes(tuple(prompts), tuple(first), tuple(second), np.array(outcome))


def _changed(spec: PortraitSpec, rng: np.random.Generator, changes: int) -> PortraitSpec:
    """The spec with up to `changes` attributes (not the art style) redrawn among what its style can draw."""
    names = [a for a in ATTRIBUTES if a != "style" and not (a == "hair_color" and spec.hair_style == "bald")]
    redrawn: dict[str, str] = {}
    for a in rng.permutation(names)[: int(rng.integers(0, changes + 1))]:
        values = colored_hair() if a == "hair_color" else allowed_values(spec.style, str(a))
        redrawn[str(a)] = str(rng.choice(values))
    if redrawn.get("hair_style") == "bald":
        redrawn.pop("hair_color", None)
    return spec.with_(**redrawn)


@dataclass(frozen=True)
class PreferenceModel:
    """Weights w [2d] of the score w . [image * text, image]; name: for pair records; votes: how many taught it."""

    weights: Tensor
    name: str = "portrait-preference/1"
    votes: int = 0

    def scorer(self, clip, inputs) -> Scorer:
        """The model as a judge: the difference of two scores is the log odds that the first is preferred."""

        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            return preference_features(clip, inputs, images, prompts) @ self.weights

        return Scorer(self.name, score)

    def save(self, path: str | Path) -> None:
        """One safetensors file; name and number of votes are in its metadata."""
        record = {"model": json.dumps({"name": self.name, "votes": self.votes})}
        weights = {"weights": self.weights.contiguous()}
        write_atomically(Path(path), lambda p: save_file(weights, str(p), metadata=record))

    @classmethod
    def load(cls, path: str | Path) -> PreferenceModel:
        with safe_open(str(path), "pt") as file:
            record = json.loads(file.metadata()["model"])
            return cls(file.get_tensor("weights"), record["name"], record["votes"])


@torch.no_grad()
def preference_features(clip, inputs, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """phi [n, 2d] on the CPU: [image * text, image], scaled to about unit variance per number."""
    pictures, texts = clip_image_features(clip, inputs, images), clip_text_features(clip, inputs, prompts)
    d = pictures.shape[1]
    return torch.cat([pictures * texts * d, pictures * d**0.5], 1).float().cpu()


def fit_bradley_terry(first: Tensor, second: Tensor, outcome: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """Bradley-Terry likelihood of votes (Diffusion-DPO, 2311.12908, eq. 4): weights [d] that minimise the mean
    cross-entropy of sigmoid(w . (first - second)) + ridge / 2 * |w|^2.

    first, second: features [n, d]; outcome [n]: 1, 0, or 0.5 for a tie. Newton steps; the problem is convex.
    Raises ValueError for shapes that differ, other outcomes, and votes that are all ties.
    """
    if first.shape != second.shape or outcome.shape != first.shape[:1]:
        raise ValueError(f"shapes {tuple(first.shape)}, {tuple(second.shape)}, {tuple(outcome.shape)} do not match")
    if not bool(torch.isin(outcome, torch.tensor([0.0, 0.5, 1.0], dtype=outcome.dtype)).all()):
        raise ValueError("outcome must hold 1 (first), 0 (second) and 0.5 (tie) only")
    if bool((outcome == 0.5).all()):
        raise ValueError("all votes are ties: nothing to learn from, ask about pairs that differ more")
    x, y = (first - second).double(), outcome.double()  # [n, d], [n]
    w = torch.zeros(x.shape[1], dtype=torch.float64)
    eye = torch.eye(len(w), dtype=torch.float64)

    def objective(w: Tensor) -> float:
        return float(F.binary_cross_entropy_with_logits(x @ w, y) + ridge / 2 * w @ w)

    for _ in range(50):
        p = torch.sigmoid(x @ w)  # [n]
        gradient = x.T @ (p - y) / len(x) + ridge * w
        if float(gradient.abs().max()) < 1e-10:
            break
        step = torch.linalg.solve((x.T * (p * (1 - p))) @ x / len(x) + ridge * eye, gradient)
        size = 1.0
        while objective(w - size * step) > objective(w) and size > 1e-6:
            size /= 2
        w = w - size * step
    return w.float()


def train_preference(votes: Votes, clip, inputs, *, ridge: float = 1e-3, name: str = "portrait-preference/1"):
    """A `PreferenceModel` from votes on renders."""
    first, second = (
        preference_features(clip, inputs, render_tensor(s), votes.prompts) for s in (votes.first, votes.second)
    )
    outcome = torch.tensor(votes.outcome, dtype=torch.float32)
    return PreferenceModel(fit_bradley_terry(first, second, outcome, ridge=ridge), name, len(outcome))


def vote_accuracy(scorer: Scorer, votes: Votes) -> float:
    """Share of the decided votes that the judge orders the same way (equal scores count half). NaN if all are ties."""
    first, second = (scorer(render_tensor(s), votes.prompts).numpy() for s in (votes.first, votes.second))
    decided = votes.outcome != 0.5
    agreed = np.where(first == second, 0.5, (first > second) == (votes.outcome == 1))
    return float(agreed[decided].mean()) if decided.any() else float("nan")
