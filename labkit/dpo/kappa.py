"""One meaning for the strength of DPO: kappa, per unit of the element MEAN of the squared error.

    s = -kappa D,      D = (e_w - e_ref,w) - (e_l - e_ref,l),      e = mean over the elements of (eps_hat - eps)^2

The published numbers called beta mean different things (Diffusion-DPO, arXiv 2311.12908, eq. 14, and public code):

    recipe            error    logit              kappa here
    "diffusers-sd"    mean     -beta D            beta           (2500 in its README)
    "diffusers-sdxl"  mean     -beta / 2 D        beta / 2       (5000)
    "official"        mean     -beta / 2 D        beta / 2       (5000)
    "paper"           sum      -beta D_sum        beta * d       (d elements per latent)
"""

from __future__ import annotations

import math

RECIPES = ("diffusers-sd", "diffusers-sdxl", "official", "paper")
CONVENTIONS = ("mean", "sum")
USUAL = 2500 / 16384  # per element of the sum: 2500 on Stable Diffusion at 512 pixels, 78 for latents of 512 elements
SMALLEST, LARGEST = 10.0, 1e6  # outside, a number in the mean convention is nearly always another convention's


def kappa_of(beta: float, recipe: str, elements: int) -> float:
    """The kappa (mean convention) of a published beta for latents of `elements` = C * h * w numbers."""
    factors = {"diffusers-sd": 1.0, "diffusers-sdxl": 0.5, "official": 0.5, "paper": float(elements)}
    if recipe not in factors:
        raise ValueError(f"recipe is {recipe!r}, expected one of {', '.join(RECIPES)}")
    return beta * factors[recipe]


def beta_of(kappa: float, recipe: str, elements: int) -> float:
    """The inverse of `kappa_of`: what to write into the other code to get this kappa."""
    return kappa / kappa_of(1.0, recipe, elements)


def to_mean(kappa: float, convention: str, elements: int) -> float:
    """kappa in the mean convention; convention "sum" is per unit of the squared error SUMMED over the elements."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}, expected 'mean' or 'sum'")
    return kappa * elements if convention == "sum" else kappa


def check_kappa(kappa: float, elements: int) -> float:
    """Return kappa if it can be meant in the mean convention, else raise a ValueError that names the right value.

    10 .. 1e6 pass: wider than the useful range (from about USUAL per element up), narrower than the confusion of mean
    and sum, which is a factor of `elements` (16,384 for Stable Diffusion at 512 pixels).
    """
    start = f"start at {USUAL * elements:.0f}"
    if not math.isfinite(kappa) or kappa <= 0:
        raise ValueError(f"kappa is {kappa}: expected a positive number, {start}")
    if kappa < SMALLEST:
        raise ValueError(
            f"kappa = {kappa:g} is too small per element mean: a value per element sum is {kappa * elements:g} here "
            f"({elements} elements); the beta 0.1 of language models has no counterpart, {start}"
        )
    if kappa > LARGEST:
        raise ValueError(
            f"kappa = {kappa:g} is too large per element mean: divided by the {elements} elements of a latent it is "
            f"{kappa / elements:g}; {start}"
        )
    return kappa
