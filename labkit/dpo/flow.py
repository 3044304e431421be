"""Flow-DPO: the DPO loss of models that predict a velocity (Stable Diffusion 3, FLUX). Beside `equations`, not in it.

Source: "Improving Video Generation with Human Feedback" (arXiv 2501.13918), section on Flow-DPO. Rectified flow goes
along a straight line from a latent x_0 (t = 0) to noise eps (t = 1):

    x_t = (1 - t) x_0 + t eps,       v = dx_t / dt = eps - x_0,       hence      eps = x_t + (1 - t) v       (*)

A prediction v_theta at x_t is therefore also one of the noise, eps_theta = x_t + (1 - t) v_theta, with the same x_t, so
that

    ||eps_theta - eps||^2 = (1 - t)^2 ||v_theta - v||^2        noise error = (1 - t)^2 x velocity error

Diffusion-DPO (arXiv 2311.12908, eq. 14) with the noise error is thus a loss on velocity errors e^v whose strength
depends on time. With D^v = (e^v_w - e^v_ref,w) - (e^v_l - e^v_ref,l), of errors that are summed over elements,

    loss = -log sigmoid(-beta_t / 2 D^v),        beta_t = beta (1 - t)^2     derived             weighting "noise"
                                                 beta_t = beta               used by authors     weighting "constant"

The derived weight fades out towards pure noise. The authors report reward hacking with it and train with a constant
beta, which they compare with DDPM's dropping the weights of its bound; so "constant" is the default here.

The trainer reaches both with the terms that U-Nets have, by the noise that it reads from a velocity (`process`): with
x_t + (1 - t) v of (*) errors are those of the noise, with v + x_0, whose distance to eps is that of v to its target,
they are velocity errors.

As everywhere in this package errors are means over elements and kappa is the strength per unit of mean error: of a
printed beta it is `kappa_of(beta, summed=True, half=True, elements=C * h * w)`.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from labkit.diffusion.flow import flow_latents, noise_of_velocity, velocity_target
from labkit.dpo.equations import dpo_logit, epsilon_error

__all__ = ["WEIGHTINGS", "flow_dpo_loss", "flow_latents", "noise_of_velocity", "velocity_error", "velocity_target"]

WEIGHTINGS = ("constant", "noise")


def velocity_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The error e^v as a mean over elements, in float32 whatever comes in.

    Args:
        prediction: v_theta(x_t, t), [B, ...].
        target: v, of the same shape.

    Returns:
        e^v, [B].
    """
    return epsilon_error(prediction, target)  # the same mean, of another target


def flow_dpo_loss(
    *,
    winner: torch.Tensor,
    loser: torch.Tensor,
    ref_winner: torch.Tensor,
    ref_loser: torch.Tensor,
    t: torch.Tensor,
    kappa: float,
    weighting: str = "constant",
) -> torch.Tensor:
    """The Flow-DPO loss (arXiv 2501.13918) of pairs, from their velocity errors.

    Args:
        winner, loser, ref_winner, ref_loser: velocity errors of both latents under the policy and under the frozen
            reference, [B] each; a pair shares t, and usually the noise.
        t: time of each pair, [B], 0 (clean) .. 1 (noise).
        kappa: strength per unit of mean error (above: of a printed beta).
        weighting: "constant", as the authors train, or "noise", beta (1 - t)^2 as derived: then the loss is that of
            Diffusion-DPO (`labkit.dpo.equations.dpo_loss`) on the errors of the noise.

    Returns:
        The loss of each pair, [B]; log 2 where the policy is the reference.

    Raises:
        ValueError: an unknown weighting, or times outside 0 .. 1 (a timestep was given instead).
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}, expected one of {', '.join(WEIGHTINGS)}")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t goes up to {float(t.max()):g}, expected 0 (clean) .. 1 (noise): divide timesteps by 1000")
    strength = kappa * (1 - t.float()) ** 2 if weighting == "noise" else kappa
    s = dpo_logit(winner=winner, loser=loser, ref_winner=ref_winner, ref_loser=ref_loser, kappa=1.0)
    return -logsigmoid(strength * s)
