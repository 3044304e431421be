"""Terms of the objective: what a training step knows of its pairs, turned into one number per pair.

A run minimises the sum of its terms; each is an equation of `labkit.dpo.equations` with its numbers filled in. It says
what it needs of the reference, so that a run of MaPO alone never calls one, and a run without statistics matching may
take the reference's errors from a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from labkit.dpo.equations import (
    conservative_dpo_loss,
    dpo_loss,
    epsilon_error,
    hinge_loss,
    ipo_loss,
    kappa_of,
    kto_loss,
    mapo_loss,
    npo_loss,
    sdpo_loss,
    sdpo_scale,
    statistics_loss,
    step_coefficient,
)

USUAL = 2500 / 16384  # kappa per element of the sum: 2500 on Stable Diffusion at 512 pixels, 78 for 512 elements
SMALLEST, LARGEST = 10.0, 1e6  # outside, a number in the mean convention is nearly always another convention's


@dataclass(frozen=True)
class PairStep:
    """B pairs at their timesteps: both images of a pair share t and noise. Predictions are epsilon, in float32.

    The reference's fields are None where no term needs them.
    """

    winner_pred: Tensor  # [B, C, h, w], with gradient
    loser_pred: Tensor
    noise: Tensor  # [B, C, h, w], the target of both
    t: Tensor  # [B]
    alphas_cumprod: Tensor  # [T]
    margin: Tensor | None = None  # [B] score gap
    ref_winner_error: Tensor | None = None  # [B]
    ref_loser_error: Tensor | None = None
    ref_winner_pred: Tensor | None = None  # [B, C, h, w]
    ref_loser_pred: Tensor | None = None

    @property
    def winner_error(self) -> Tensor:
        return epsilon_error(self.winner_pred, self.noise)  # [B]

    @property
    def loser_error(self) -> Tensor:
        return epsilon_error(self.loser_pred, self.noise)  # [B]

    @property
    def errors(self) -> dict[str, Tensor]:
        """The four errors of the pairs, [B] each, under the names of the equations' arguments."""
        return {
            "winner": self.winner_error,
            "loser": self.loser_error,
            "ref_winner": self.ref_winner_error,
            "ref_loser": self.ref_loser_error,
        }


NEEDS = ("nothing", "errors", "predictions")


@dataclass(frozen=True)
class Term:
    """name: for the log; function: PairStep -> [B]; settings: the numbers in it.

    needs: what of the reference ("nothing", "errors", "predictions").
    """

    name: str
    function: Callable[[PairStep], Tensor]
    settings: Mapping[str, float]
    needs: str = "errors"

    @property
    def kappa(self) -> float | None:
        """Strength of the logit per unit of mean error, or None for a term without a logit."""
        return next((self.settings[k] for k in ("kappa", "tau", "beta") if k in self.settings), None)

    def __call__(self, step: PairStep) -> Tensor:
        return self.function(step)


def dpo(kappa: float = 2500.0, *, label_smoothing: float = 0.0, margin_weight: float = 0.0) -> Term:
    """Diffusion-DPO. margin_weight m asks for s > m * margin (needs pairs with margins)."""

    def function(step: PairStep) -> Tensor:
        if not label_smoothing and not margin_weight:
            return dpo_loss(**step.errors, kappa=kappa)
        if margin_weight and step.margin is None:
            raise ValueError("margin_weight is set but the pairs have no margins: give PreferencePairs a margin")
        margin = margin_weight * step.margin if margin_weight else 0.0
        return conservative_dpo_loss(**step.errors, kappa=kappa, label_smoothing=label_smoothing, margin=margin)

    settings = {"kappa": kappa, "label_smoothing": label_smoothing, "margin_weight": margin_weight}
    return Term("dpo", function, settings)


def npo(kappa: float = 2500.0) -> Term:
    """Diffusion-NPO: DPO with swapped labels."""
    return Term("npo", lambda step: npo_loss(**step.errors, kappa=kappa), {"kappa": kappa})


def hinge(kappa: float = 2500.0) -> Term:
    """Hinge on the DPO logit."""
    return Term("hinge", lambda step: hinge_loss(**step.errors, kappa=kappa), {"kappa": kappa})


def ipo(tau: float = 2500.0) -> Term:
    """IPO; tau per unit of mean error. Scaled by tau^2, so that its gradient at the start is of DPO's size."""
    return Term("ipo", lambda step: tau**2 * ipo_loss(**step.errors, tau=tau), {"tau": tau})


def sdpo(kappa: float = 2500.0, *, mu: float = 0.5) -> Term:
    """Diffusion-SDPO: DPO whose loser gradient is scaled so that the winner's error does not rise to first order."""

    def function(step: PairStep) -> Tensor:
        g_w, g_l = step.winner_pred - step.noise, step.loser_pred - step.noise
        scale = sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=mu)
        return sdpo_loss(**step.errors, kappa=kappa, scale=scale)

    return Term("sdpo", function, {"kappa": kappa, "mu": mu})


def sft(weight: float = 1000.0) -> Term:
    """weight * winner error: the anchor that keeps winners likely. DPO's own pull at the start is kappa / 2."""
    return Term("sft", lambda step: weight * step.winner_error, {"weight": weight}, needs="nothing")


def mapo(*, weight: float = 0.1, scale: float = 1000.0) -> Term:
    """MaPO: no reference."""
    return Term(
        "mapo",
        lambda step: mapo_loss(winner=step.winner_error, loser=step.loser_error, weight=weight, scale=scale),
        {"weight": weight, "scale": scale},
        needs="nothing",
    )


def kto(beta: float = 1000.0) -> Term:
    """Diffusion-KTO with the winners as likes and the losers as dislikes; a pair's loss is the mean of its two."""

    def function(step: PairStep) -> Tensor:
        liked, disliked = kto_loss(
            liked=step.winner_error,
            ref_liked=step.ref_winner_error,
            disliked=step.loser_error,
            ref_disliked=step.ref_loser_error,
            beta=beta,
        )
        return (liked + disliked) / 2

    return Term("kto", function, {"beta": beta})


def statistics(weight: float = 10_000.0) -> Term:
    """HG-DPO's statistics matching on the winners; 10,000 is the paper's weight (c_t^2 is of order 1e-4)."""

    def function(step: PairStep) -> Tensor:
        c = step_coefficient(step.t, step.alphas_cumprod)
        return weight * statistics_loss(step.winner_pred, step.ref_winner_pred, c)

    return Term("statistics", function, {"weight": weight}, needs="predictions")


FACTORIES: dict[str, Callable[..., Term]] = {
    "dpo": dpo,
    "npo": npo,
    "hinge": hinge,
    "ipo": ipo,
    "sdpo": sdpo,
    "sft": sft,
    "mapo": mapo,
    "kto": kto,
    "statistics": statistics,
}


def terms_from(descriptions: Sequence[Mapping[str, object]], elements: int) -> list[Term]:
    """Terms from [{"name": "dpo", "kappa": 0.15, "convention": "sum"}, {"name": "sft", "weight": 1000}], as in YAML.

    convention ("mean" by default) goes with kappa; elements: numbers per latent.
    """
    terms = []
    for description in descriptions:
        options = dict(description)
        name = options.pop("name", None)
        if name not in FACTORIES:
            raise ValueError(f"term {name!r} is unknown: expected one of {', '.join(FACTORIES)}")
        convention = options.pop("convention", "mean")
        if convention not in ("mean", "sum"):
            raise ValueError(f"convention is {convention!r}, expected 'mean' or 'sum'")
        if convention == "sum":
            options["kappa"] = kappa_of(float(options["kappa"]), summed=True, half=False, elements=elements)
        terms.append(FACTORIES[name](**options))
    return terms


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


def check_terms(terms: Sequence[Term], elements: int) -> str:
    """What the terms need of the reference together. Raises ValueError for no terms, or kappa in another convention."""
    if not terms:
        raise ValueError("got no terms: give at least one, for example [dpo(kappa=2500.0)]")
    for term in terms:
        if term.kappa is not None:
            check_kappa(term.kappa, elements)
    return max((term.needs for term in terms), key=NEEDS.index)
