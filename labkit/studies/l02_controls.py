"""Lesson 02, second round: why two expectations failed. CMMD with a narrower kernel; the permutation test with more
pictures.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from labkit.metrics import cmmd
from labkit.portraits import sample_specs
from labkit.studies import l02

N, TESTS, PAINTED = 128, 20, 256


def median_kernel(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """CMMD between renders at N pictures a side, one number for each of several disjoint rounds: as they are ("same")
    and with half of the variety ("alike"), both with the kernel as wide as the median distance of "same"."""
    world, generator = l02.renders(seed, sizes.renders, sizes.others), torch.Generator().manual_seed(seed + 1)
    count = min(sizes.rounds, len(world.real) // N, len(world.other) // N)
    rows, columns = (l02.chunks(x, N, count, generator) for x in (world.real, world.other))
    spoilt = l02.more_alike(world.other_clip)
    found: dict[str, list[float]] = {"same": [], "alike": []}
    for i, j in zip(rows, columns, strict=True):
        same = cmmd(real=world.real_clip[i], fake=world.other_clip[j], sigma="median", normalise=False)
        alike = cmmd(real=world.real_clip[i], fake=spoilt[j], sigma=same.sigma, normalise=False)
        found["same"].append(float(same))
        found["alike"].append(float(alike))
    return {name: np.array(values) for name, values in found.items()}


def many_pictures(seed: int, sizes: SimpleNamespace) -> dict[str, float]:
    """Share of permutation tests at N pictures a side that sound for PortraitSD, and for renders."""
    world, net = l02.renders(seed, sizes.renders, sizes.others), l02.networks()
    asked = sample_specs(PAINTED, seed=9000 + seed, **l02.LAW)
    fakes = {"model": net.features(l02.painted(asked, seed, sizes, sizes.guidance)), "same": world.other}
    return {
        name: l02.null_alarms(world.real, fake, N, TESTS, sizes.null_rounds, torch.Generator().manual_seed(seed + 3))
        for name, fake in fakes.items()
    }


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, float | np.ndarray]:
    """An arm of the second round."""
    return {"median_kernel": median_kernel, "many_pictures": many_pictures}[arm](seed, sizes)
