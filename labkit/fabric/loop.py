"""Rounds of feedback (arXiv 2307.10159, algorithm 1 and section 5): generate, like, dislike, generate again.

Round r draws its images from the generators of the images r B .. r B + B - 1 of the loop's seed, so a loop with other
feedback starts every round from the same noise. Images are rounded to 8 bit when they are made: what is shown, stored
and referred to is the same picture, and a loop read back from disk goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.diffusion import from_uint8, image_generators, sample, to_uint8
from labkit.fabric.cache import ReferenceCache
from labkit.fabric.equations import pairwise_diversity
from labkit.fabric.history import described, read_rounds, write_round
from labkit.fabric.references import Reference, ReferenceSet
from labkit.fabric.session import fabric
from labkit.fabric.settings import PRESETS, FabricError, Preset, Settings

Score = Callable[[Tensor], "Tensor | Sequence[float]"]


@dataclass(frozen=True, eq=False)
class Round:
    """One round: its images [B, 3, H, W] in [-1, 1], the prompts they were made with, and what was said of them."""

    images: Tensor
    prompts: tuple[str, ...]
    liked: tuple[int, ...] = ()
    disliked: tuple[int, ...] = ()


@dataclass(frozen=True)
class RoundSummary:
    """Scores of one round and its in-batch diversity (None without an embedding or with one image)."""

    best: float
    mean: float
    worst: float
    diversity: float | None


class FeedbackLoop:
    """A session of feedback on one prompt.

    prompt, negative_prompt   texts; `prompt` may be set to another one between rounds
    images, steps, guidance_scale   how each round samples; by default as the preset says, else 4, 20 and 6.0
    settings, overrides       as in `fabric`; the name of a preset also sets how rounds sample and how many there are
    call                      further arguments of the pipeline's own call (height, width, image, strength,
                              control_image, ...): rounds are then `pipe(...)`, whatever kind of pipeline that is.
                              None: they are `labkit.diffusion.sample`
    noise                     "fresh": the references' noise differs between rounds, as in the paper. "fixed": it is
                              the same in all rounds, so the reference pass of older references comes from the cache
    most                      keep only so many latest references of each sign
    dropout                   probability with which each word of the prompt is left out, per image
    initial                   references to begin with, for example uploads
    folder                    write images and state there after every change; an existing history is resumed
    """

    def __init__(
        self,
        pipe,
        prompt: str,
        *,
        images: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        settings: Settings | str | None = None,
        seed: int = 0,
        noise: str = "fresh",
        most: int | None = None,
        dropout: float = 0.0,
        initial: ReferenceSet | None = None,
        folder: str | Path | None = None,
        cache: ReferenceCache | None = None,
        call: Mapping[str, Any] | None = None,
        **overrides,
    ):
        preset = Preset(settings or Settings())
        if isinstance(settings, str):
            if settings not in PRESETS:
                raise FabricError(f"no preset {settings!r}: there are {', '.join(PRESETS)}")
            preset = PRESETS[settings]
        images = (preset.images or 4) if images is None else images
        steps = (preset.steps or 20) if steps is None else steps
        if guidance_scale is None:
            guidance_scale = 6.0 if preset.guidance_scale is None else preset.guidance_scale
        if images < 1 or steps < 1:
            raise FabricError(f"images={images} and steps={steps} must be positive")
        if noise not in ("fresh", "fixed"):
            raise FabricError(f"noise is {noise!r}, expected 'fresh' or 'fixed'")
        if not 0.0 <= dropout < 1.0:
            raise FabricError(f"dropout is {dropout}, expected 0 .. 1 (1 excluded)")
        if call is None and getattr(pipe, "unet", None) is None:
            raise FabricError(
                f"{type(pipe).__name__} has no U-Net, for which rounds are sampled here: give call={{}}, or arguments "
                "of the pipeline's own call, call={'height': 1024}; rounds are then made by the pipeline itself"
            )
        self.pipe, self.prompt, self.negative_prompt = pipe, prompt, negative_prompt
        self.images, self.steps, self.guidance_scale = images, steps, guidance_scale
        self.settings, self.preset = replace(preset.settings, **overrides), preset
        self.call = None if call is None else dict(call)
        self.seed, self.noise, self.most, self.dropout = seed, noise, most, dropout
        self.initial = ReferenceSet() if initial is None else initial
        self.cache = ReferenceCache() if cache is None and noise == "fixed" else cache
        self.folder = None if folder is None else Path(folder)
        self.rounds: tuple[Round, ...] = ()
        if self.folder is not None:
            stored = read_rounds(self.folder, self._configuration())
            self.rounds = tuple(Round(from_uint8(r.pop("pixels")), **r) for r in stored)

    @property
    def references(self) -> ReferenceSet:
        """All references that the next round will see, oldest first."""
        liked = [Reference(r.images[i], (-1, 1)) for r in self.rounds for i in r.liked]
        disliked = [Reference(r.images[i], (-1, 1)) for r in self.rounds for i in r.disliked]
        return self.initial.added(liked=liked, disliked=disliked, most=self.most)

    def generate(self) -> Tensor:
        """Sample the next round: images [B, 3, H, W] in [-1, 1]. Without references this is plain sampling."""
        number, references = len(self.rounds), self.references
        generators = image_generators(self.images, self.seed, first=number * self.images)
        prompts = [drop_words(self.prompt, self.dropout, g) for g in generators]
        seed = self.seed + (number if self.noise == "fresh" else 0)
        with fabric(
            self.pipe, liked=references.liked, disliked=references.disliked, settings=self.settings, seed=seed,
            steps=self.steps, cache=self.cache,
        ):  # fmt: skip
            images = self._images(prompts, generators)
        self.rounds += (Round(from_uint8(to_uint8(images.cpu())), tuple(prompts)),)
        self._store()
        return self.rounds[-1].images

    def _images(self, prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        if self.call is None:
            return sample(
                self.pipe, prompts, generators=generators, steps=self.steps, guidance_scale=self.guidance_scale,
                negative_prompts=self.negative_prompt,
            )  # fmt: skip
        negative = None if self.negative_prompt is None else [self.negative_prompt] * self.images
        made = self.pipe(
            prompt=prompts, negative_prompt=negative, num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale, generator=generators, output_type="pt", **self.call,
        )  # fmt: skip
        return made.images.float() * 2 - 1  # "pt" gives [0, 1]

    def feedback(self, *, liked: Sequence[int] = (), disliked: Sequence[int] = ()) -> ReferenceSet:
        """What is liked and disliked of the latest round, by image number; replaces what was said of it before."""
        if not self.rounds:
            raise FabricError("there is no round to judge yet: call generate() first")
        liked, disliked = tuple(liked), tuple(disliked)
        bad = [i for i in liked + disliked if not 0 <= i < self.images]
        if bad or set(liked) & set(disliked):
            raise FabricError(
                f"image numbers are 0 .. {self.images - 1}, each liked or disliked, got {liked}, {disliked}"
            )
        self.rounds = (*self.rounds[:-1], replace(self.rounds[-1], liked=liked, disliked=disliked))
        self._store()
        return self.references

    def undo(self) -> None:
        """Take back the latest step: the feedback on the latest round, or that round if it has none."""
        if not self.rounds:
            raise FabricError("there is nothing to undo")
        last = self.rounds[-1]
        kept = (replace(last, liked=(), disliked=()),) if last.liked or last.disliked else ()
        self.rounds = self.rounds[:-1] + kept
        self._store()

    def reset(self) -> None:
        """Back to the beginning: no rounds, the initial references."""
        self.rounds = ()
        self._store()

    def run(self, score: Score, rounds: int | None = None, *, dislikes: bool = True) -> list[RoundSummary]:
        """Let an oracle give feedback until there are `rounds` rounds: the best image is liked, the worst disliked.

        By default as many rounds as the preset says, else 3.
        """
        rounds = (self.preset.rounds or 3) if rounds is None else rounds
        while len(self.rounds) < rounds:
            scores = torch.as_tensor(score(self.generate())).flatten()
            worst = (int(scores.argmin()),) if dislikes and len(scores) > 1 else ()
            best = int(scores.argmax())
            self.feedback(liked=(best,), disliked=tuple(i for i in worst if i != best))
        return self.summaries(score)

    def summaries(self, score: Score, embed: Callable[[Tensor], Tensor] | None = None) -> list[RoundSummary]:
        """Best, mean and worst score of each round, and its diversity if `embed` gives features [B, d]."""
        result = []
        for one in self.rounds:
            scores = torch.as_tensor(score(one.images)).float().flatten()
            spread = pairwise_diversity(embed(one.images)) if embed is not None and self.images > 1 else None
            result.append(RoundSummary(float(scores.max()), float(scores.mean()), float(scores.min()), spread))
        return result

    def _configuration(self) -> dict:
        names = ("images", "steps", "guidance_scale", "negative_prompt", "seed", "noise", "most", "dropout")
        initial = {"liked": [r.key for r in self.initial.liked], "disliked": [r.key for r in self.initial.disliked]}
        settings = asdict(self.settings) | {"depths": list(self.settings.depths)}  # as JSON gives it back
        shared = {"settings": settings, "initial": initial, "call": described(self.call)}
        return shared | {name: getattr(self, name) for name in names}

    def _store(self) -> None:
        if self.folder is not None:
            write_round(self.folder, self._configuration(), self.rounds)


def drop_words(prompt: str, probability: float, generator: torch.Generator) -> str:
    """Leave out each word with a probability (prompt dropout, section 5.4); one word at least is kept."""
    words = prompt.split()
    if probability == 0 or len(words) < 2:
        return prompt
    draws = torch.rand(len(words), generator=generator)
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= probability]
    return " ".join(kept or [words[int(draws.argmax())]])
