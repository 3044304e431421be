"""What a training run does, and two presets.

`paper`: the released recipe for a real CLIP (tau 1, learning rate 1e-8, sentences as written, no rehearsal). In a
small model a step of 1e-8 changes nothing: give it a larger one. `robust`: for small models; both clause orders,
mirrored pairs, exact multi-positive targets, and rehearsal of captions against forgetting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from labkit.metrics.checks import plain_numbers

LOSSES = ("contrastive", "squared")


@dataclass(frozen=True)
class PairwiseConfig:
    """What a training run does; see `preset`.

    tau          temperature of the difference loss; a constant
    decay        learning-rate factor after every pass over the records
    both_orders  draw each sentence in either clause order, instead of the first as written
    mirrored     half of a batch are the other half's pairs with images and sentence exchanged: hard negatives
    true_targets multi-positive targets from the attributes, instead of the diagonal
    difference   weight of the difference loss; 0 leaves the captions alone (a control)
    rehearsal    weight of CLIP's own loss on captions, with CLIP's own temperature
    rehearsed    captions of a batch (0: as many as sentences)
    loss         "contrastive", or "squared" (to the difference that is not brought to length 1)
    """

    steps: int
    batch: int = 128
    lr: float = 5e-4
    tau: float = 0.1
    decay: float = 1.0
    both_orders: bool = True
    mirrored: bool = True
    true_targets: bool = True
    difference: float = 1.0
    rehearsal: float = 1.0
    rehearsed: int = 0
    loss: str = "contrastive"

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}, expected one of {', '.join(LOSSES)}")
        if self.steps < 1 or self.batch < 2 or not self.lr > 0 or not self.tau > 0:
            raise ValueError(
                f"steps {self.steps}, batch {self.batch}, lr {self.lr}, tau {self.tau}: expected at least 1 and 2, "
                "and both rates above 0"
            )
        if self.rehearsed < 0 or self.rehearsed == 1:
            raise ValueError(f"rehearsed is {self.rehearsed}, expected 0 or at least 2 captions")
        if min(self.difference, self.rehearsal) < 0 or self.difference + self.rehearsal == 0:
            raise ValueError("the weights of both losses are 0 or one is negative: nothing would be learnt")


PRESETS: dict[str, dict] = {
    "paper": {
        "batch": 512,
        "lr": 1e-8,
        "tau": 1.0,
        "decay": 0.9,
        "both_orders": False,
        "mirrored": False,
        "true_targets": False,
        "rehearsal": 0.0,
    },
    "robust": {},
}


def preset(name: str, *, steps: int, **changes: object) -> PairwiseConfig:
    """A preset with changes: preset("robust", steps=500), preset("paper", steps=500, lr=5e-4) for a small model."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return replace(PairwiseConfig(steps=steps, **PRESETS[name]), **changes)
