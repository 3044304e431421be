"""Pushing one sample up or down in density by changing its initial noise a little (method i).

    maximise or minimise  rho(F(G(z + delta)))   over the box  max |delta| <= eps,  delta = 0 at the start

"sign" and "gradient" are the two readings of `labkit.density.equations.push_step` (Algorithm 1 of arXiv 2407.08659; 10
sign steps of eps / 4 reach the box's wall); "random" takes random signs, the control. A sign step has a fixed length
and can jump over a maximum, so the best iterate is kept (released code: the last one); so may the control. The score
that is climbed may be a stand-in, so the ends are scored again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from labkit.density.equations import push_step

METHODS, KEEP = ("sign", "gradient", "random"), ("best", "last")


@dataclass(frozen=True)
class Perturbation:
    """B perturbed samples.

    Attributes:
        z: [B, ...] the changed noise; delta: [B, ...] the change.
        before, after: [B] float64, the exact score of both ends.
        climbed: [steps + 1, B] the score that was climbed, at the start and after each step.
        kept: [B] int64, the number of steps after which each sample was kept.
    """

    z: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    before: Tensor
    after: Tensor
    climbed: Tensor = field(repr=False)
    kept: Tensor

    @property
    def promised(self) -> Tensor:
        """What the climbed score says of the kept samples, [B] float64."""
        return self.climbed.gather(0, self.kept[None])[0]


def perturb(
    score: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    exact: Callable[[Tensor], Tensor],
    direction: str,
    eps: float = 0.1,
    steps: int = 10,
    step_size: float | None = None,
    method: str = "sign",
    keep: str = "best",
    generator: torch.Generator | None = None,
) -> Perturbation:
    """Change noise z [B, ...] within +-eps per coordinate to raise or lower its score.

    Args:
        score: z -> [B], differentiable, one row not depending on another; what is climbed.
        exact: z -> [B]; the judge, called on z and on z + delta without gradients.
        direction: "up" (more typical) or "down" (rarer).
        step_size: default eps / 4. method: "sign", "gradient" or "random" (which needs a generator).
        keep: "best", of the start and all iterates the one that the climbed score likes most (for "down" least); "last"
            as in the released code.

    z is not modified and no model parameter receives a gradient.

    Raises:
        ValueError: unknown direction, method or keep, eps < 0, steps < 0, a score without gradient or not finite.
    """
    if direction not in ("up", "down"):
        raise ValueError(f"direction is {direction!r}, expected 'up' (more typical) or 'down' (rarer)")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    if keep not in KEEP:
        raise ValueError(f"keep is {keep!r}, expected one of {', '.join(KEEP)}")
    if not eps >= 0 or steps < 0:
        raise ValueError(f"eps = {eps} and steps = {steps} must not be negative")
    if method == "random" and generator is None:
        raise ValueError("method 'random' draws signs: pass generator=torch.Generator().manual_seed(...)")
    z = z.detach()
    towards = 1.0 if direction == "up" else -1.0
    length = eps / 4 if step_size is None else step_size
    delta, climbed, path = torch.zeros_like(z), [], []
    for _ in range(steps):
        path.append(delta)
        if method == "random":
            with torch.no_grad():
                climbed.append(_checked(score(z + delta), len(z)))
            uphill = torch.randint(2, z.shape, generator=generator).to(z) * 2 - 1
        else:
            value, gradient = _value_and_gradient(score, z + delta)
            climbed.append(value)
            uphill = towards * gradient
        delta = push_step(delta, uphill, length, eps, raw=method == "gradient")
    with torch.no_grad():
        climbed.append(_checked(score(z + delta), len(z)))
        path.append(delta)
        values = torch.stack(climbed)  # [steps + 1, B]
        kept = (towards * values).argmax(dim=0) if keep == "best" else torch.full((len(z),), steps)
        delta = torch.stack([path[step][i] for i, step in enumerate(kept.tolist())])
        before, after = (_checked(exact(x), len(z)) for x in (z, z + delta))
    return Perturbation(z + delta, delta, before, after, values, kept)


def _value_and_gradient(score: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Score [B] and its gradient [B, ...]. Rows do not mix, so the gradient of the sum is each row's own."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        value = score(z)
        if not value.requires_grad:
            raise ValueError("the score does not depend on z: compute it with gradients, all the way from the noise")
        (gradient,) = torch.autograd.grad(value.sum(), z)  # reaches z alone: parameters get no .grad
    if not bool(torch.isfinite(gradient).all()):
        raise ValueError("the gradient of the score is not finite: use fewer steps, or float32")
    return _checked(value, len(z)), gradient


def _checked(value: Tensor, n: int) -> Tensor:
    value = value.detach().double().cpu()
    if value.shape != (n,) or not bool(torch.isfinite(value).all()):
        raise ValueError(f"the score must be {n} finite numbers, got shape {tuple(value.shape)}: one per sample")
    return value
