"""Terms of the objective: what a training step knows of its pairs, turned into one number per pair.

A run minimises the sum of its terms. Each says what it needs of the reference, so that a run of MaPO alone never calls
one, and a run without statistics matching may take the reference's errors from a cache.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from labkit.dpo.kappa import check_kappa, to_mean
from labkit.dpo.losses import (
    epsilon_error,
    hinge_loss,
    ipo_loss,
    kto_loss,
    mapo_loss,
    pair_difference,
    scale_gradient,
    sdpo_scale,
    sigmoid_loss,
    statistics_loss,
)


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
    def difference(self) -> Tensor:
        """D [B]."""
        return pair_difference(
            winner=self.winner_error,
            loser=self.loser_error,
            ref_winner=self.ref_winner_error,
            ref_loser=self.ref_loser_error,
        )

    def swapped(self) -> PairStep:
        """The same pairs with their labels exchanged."""
        return replace(
            self,
            winner_pred=self.loser_pred,
            loser_pred=self.winner_pred,
            ref_winner_error=self.ref_loser_error,
            ref_loser_error=self.ref_winner_error,
            ref_winner_pred=self.ref_loser_pred,
            ref_loser_pred=self.ref_winner_pred,
        )


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
        s = -kappa * step.difference
        if margin_weight:
            if step.margin is None:
                raise ValueError("margin_weight is set but the pairs have no margins: give PreferencePairs a margin")
            s = s - margin_weight * step.margin
        return sigmoid_loss(s, label_smoothing=label_smoothing)

    settings = {"kappa": kappa, "label_smoothing": label_smoothing, "margin_weight": margin_weight}
    return Term("dpo", function, settings)


def npo(kappa: float = 2500.0) -> Term:
    """Diffusion-NPO (2505.11245): DPO with swapped labels, to train the model that guidance then points away from."""
    inner = dpo(kappa)
    return Term("npo", lambda step: inner(step.swapped()), {"kappa": kappa})


def hinge(kappa: float = 2500.0) -> Term:
    """Hinge on the DPO logit."""
    return Term("hinge", lambda step: hinge_loss(-kappa * step.difference), {"kappa": kappa})


def ipo(tau: float = 2500.0) -> Term:
    """IPO; tau per unit of mean error. Scaled by tau^2, so that its gradient at the start is of DPO's size."""
    return Term("ipo", lambda step: tau**2 * ipo_loss(step.difference, tau=tau), {"tau": tau})


def sdpo(kappa: float = 2500.0, *, mu: float = 0.5) -> Term:
    """Diffusion-SDPO: DPO whose loser gradient is scaled so that the winner's error does not rise to first order."""

    def function(step: PairStep) -> Tensor:
        scale = sdpo_scale(
            winner_residual=step.winner_pred - step.noise, loser_residual=step.loser_pred - step.noise, mu=mu
        )
        loser = scale_gradient(step.loser_error, scale)
        difference = pair_difference(
            winner=step.winner_error, loser=loser, ref_winner=step.ref_winner_error, ref_loser=step.ref_loser_error
        )
        return sigmoid_loss(-kappa * difference)

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
        return weight * statistics_loss(step.winner_pred, step.ref_winner_pred, step.t, step.alphas_cumprod)

    return Term("statistics", function, {"weight": weight}, needs="predictions")


def weighted(term: Term, weights: Tensor) -> Term:
    """The term with its loss at timestep t multiplied by weights[t] (weights [T], not negative).

    Where in the noise a preference is to count; for a plain window use `DPOConfig.t_window`, which draws no other t.
    """
    if weights.ndim != 1 or not bool((weights >= 0).all()):
        raise ValueError(f"weights have shape {tuple(weights.shape)}: expected one number >= 0 per timestep")
    settings = {**term.settings, "t_weights": float(zlib.crc32(weights.double().numpy().tobytes()))}  # for checkpoints

    def function(step: PairStep) -> Tensor:
        return weights.to(step.noise)[step.t] * term(step)

    return replace(term, function=function, settings=settings)


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
        if "convention" in options:
            options["kappa"] = to_mean(float(options["kappa"]), str(options.pop("convention")), elements)
        terms.append(FACTORIES[name](**options))
    return terms


def check_terms(terms: Sequence[Term], elements: int) -> str:
    """What the terms need of the reference together. Raises ValueError for no terms, or kappa in another convention."""
    if not terms:
        raise ValueError("got no terms: give at least one, for example [dpo(kappa=2500.0)]")
    for term in terms:
        if term.kappa is not None:
            check_kappa(term.kappa, elements)
    return max((term.needs for term in terms), key=NEEDS.index)
