"""Random draws with one generator per image, so that an image does not depend on its neighbours in the batch."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def image_generators(n: int, seed: int, *, first: int = 0) -> list[torch.Generator]:
    """n CPU generators for the images number first .. first + n - 1 of the run `seed`.

    The stream of image i depends on (seed, i) alone: not on n, on `first` or on the order of work. Nearby seeds do not
    share images, as `manual_seed(seed + i)` would make them do (seed 0, image 1 = seed 1, image 0).
    """
    n, seed, first = map(operator.index, (n, seed, first))
    if n < 0 or first < 0 or seed < 0:
        raise ValueError(f"n, seed and first must not be negative, got n={n}, seed={seed}, first={first}")
    generators = []
    for i in range(first, first + n):
        state = int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0])
        generators.append(torch.Generator().manual_seed(state))
    return generators


def check_generators(generators: Sequence[torch.Generator], n: int) -> None:
    """Raise unless there are n distinct generators."""
    if isinstance(generators, torch.Generator) or not all(isinstance(g, torch.Generator) for g in generators):
        raise TypeError("generators must be a list of torch.Generator, one per image: see image_generators(n, seed)")
    if len(generators) != n:
        raise ValueError(f"got {len(generators)} generators for {n} images: expected one generator per image")
    if len({id(g) for g in generators}) != n:
        raise ValueError("the same generator was given for several images: each image needs a generator of its own")


def draw_noise(
    shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise of `shape` = [B, ...]; row i comes from generators[i] alone. Returns float32 on `device`.

    Always drawn in float32 on the generator's own device, then moved: a half-precision or GPU run with CPU generators
    starts from the same noise as a float32 CPU run. In float32 it is bitwise what diffusers' `randn_tensor` draws.
    """
    check_generators(generators, shape[0])
    rows = [torch.randn(tuple(shape[1:]), generator=g, device=g.device, dtype=torch.float32) for g in generators]
    if not rows:
        return torch.empty(tuple(shape), device=device)
    return torch.stack([row.to(device) for row in rows])  # [B, ...]
