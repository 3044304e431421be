"""A diffusion pipeline as a stream of numbered candidates, and its noise as the variable of a perturbation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labkit.diffusion import decode_latents, encode_prompts, image_generators, sample_latents
from labkit.diffusion.sample import initial_latents


class CandidateStream:
    """Candidate i of a deterministic sampler (DDIM, eta 0): its noise depends on (seed, i) alone.

    Args:
        prompts: one for all, or a list that is gone through again and again: candidate i has prompts[i % len].
        noise_scale: the initial noise is multiplied by it ("temperature", the nearest thing to truncation that a
            diffusion model has); 1 is the model as it was trained.
        batch_size: U-Net rows per forward pass (twice that under guidance).
    """

    def __init__(
        self,
        pipe,
        prompts: str | Sequence[str],
        *,
        seed: int,
        steps: int = 20,
        guidance_scale: float = 3.0,
        noise_scale: float = 1.0,
        batch_size: int = 32,
    ) -> None:
        self.pipe, self.seed, self.steps = pipe, seed, steps
        self.guidance_scale, self.noise_scale, self.batch_size = guidance_scale, noise_scale, batch_size
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        with torch.no_grad():
            self.conditions = encode_prompts(pipe, prompts)  # of all prompts, encoded once

    def noise(self, first: int, count: int) -> Tensor:
        """Initial noise [count, C, h, w] of candidates first .. first + count - 1, scaled."""
        return self.noise_scale * initial_latents(self.pipe, image_generators(count, self.seed, first=first))

    @torch.no_grad()
    def __call__(self, first: int, count: int) -> Tensor:
        """Images [count, 3, H, W] in [-1, 1]: the `generate` of `importance_sample`."""
        return self._images(self.noise(first, count), first, grad_steps=0).clamp(-1, 1)

    def images(self, z: Tensor, first: int, *, checkpoint: bool = True) -> Tensor:
        """Images [B, 3, H, W] of candidates first .. first + B - 1 made from noise z [B, C, h, w], with gradients.

        Clamped to [-1, 1] without cutting the gradient. checkpoint: recompute the U-Net in backward, as one pass keeps
        all steps otherwise.
        """
        images = self._images(z, first, grad_steps=self.steps, checkpoint=checkpoint)
        return images + (images.detach().clamp(-1, 1) - images.detach())

    def latents(self, z: Tensor, first: int, **options) -> Tensor:
        """Final latents [B, C, h, w] of candidates first .. first + B - 1 made from noise z [B, C, h, w].

        options: of `sample_latents`, for instance grad_steps.
        """
        rows = [(first + i) % len(self.conditions) for i in range(len(z))]
        return sample_latents(
            self.pipe, None, generators=image_generators(len(z), self.seed, first=first), steps=self.steps,
            guidance_scale=self.guidance_scale, latents=z, conditions=self.conditions.select(rows),
            batch_size=self.batch_size, **options,
        ).latents  # fmt: skip

    def _images(self, z: Tensor, first: int, **options) -> Tensor:
        return decode_latents(self.pipe, self.latents(z, first, **options), batch_size=self.batch_size)

    def scorer(
        self, network: Callable[[Tensor], Tensor], score: Callable[[Tensor], Tensor], first: int
    ) -> Callable[[Tensor], Tensor]:
        """z -> score(network(images)), differentiable: what `perturb` climbs for candidates from `first` on.

        Args:
            network: image tensors [B, 3, H, W] in [-1, 1] -> features [B, d], with gradients and no uint8 rounding.
            score: features -> [B], `PseudoDensity.soft_score` or `MLPScorer.soft_score`.
        """
        return lambda z: score(network(self.images(z, first)))

    def judge(self, score: Callable[[Tensor], Tensor], first: int) -> Callable[[Tensor], Tensor]:
        """z -> score(images), without gradients: what `perturb` re-scores with. `score` takes pictures in [-1, 1], so
        that it can use the same image pipeline (rounding included) as for the reals."""
        return lambda z: score(self._images(z, first, grad_steps=0).clamp(-1, 1))
