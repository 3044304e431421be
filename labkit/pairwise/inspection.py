"""Raising the alarm: how far a photograph is from that of a good part, by four measures, and what thresholds do.

A threshold is set on photographs of good parts so that a chosen share of them raises a false alarm; what it does to
other photographs is then counted. Accuracy alone would hide both errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.pairwise.equations import unit


def pixel_distance(photos: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute pixel difference [N] to one reference photograph [3, H, W]."""
    return (photos - reference).abs().mean((1, 2, 3))


def patch_distance(photos: Tensor, reference: Tensor, side: int = 8) -> Tensor:
    """The largest mean absolute difference [N] over patches of side x side pixels: sensitive to small defects."""
    gray = (photos - reference).abs().mean(1, keepdim=True)
    return F.avg_pool2d(gray, side, stride=side // 2).flatten(1).amax(1)


def embedding_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Length |u - u_ref| [N] of the raw difference of unit embeddings [N, d] and [d]."""
    return (unit(images) - unit(reference)).norm(dim=-1)


def sentence_alarm(images: Tensor, reference: Tensor, defects: Tensor) -> Tensor:
    """The best fit [N] of any defect sentence [K, d] ("the first has a scratch, the second has no scratch") to the raw
    difference u - u_ref: a change that no sentence describes counts for little, however large it is."""
    return ((unit(images) - unit(reference)) @ defects.T).amax(-1)


def alarm_threshold(good: Tensor, false_alarms: float) -> float:
    """The score that the given share of good parts [N] exceeds.

    Raises:
        ValueError: a share outside (0, 1), or fewer good parts than it takes to see it.
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms is {false_alarms}, expected a share between 0 and 1")
    if len(good) * false_alarms < 1:
        raise ValueError(
            f"{len(good)} good parts cannot show a rate of {false_alarms}: use at least {round(1 / false_alarms)}"
        )
    return float(torch.quantile(good.double(), 1 - false_alarms))


def alarm_rates(scores: Tensor, defective: Sequence[bool], threshold: float) -> dict[str, float]:
    """{"false_alarms": share of good parts above the threshold, "missed": share of defective parts not above it}.

    Raises:
        ValueError: no good or no defective part among them.
    """
    bad = torch.as_tensor(list(defective), dtype=torch.bool)
    if bad.all() or not bad.any():
        raise ValueError(f"{int(bad.sum())} of {len(bad)} parts are defective: both kinds are needed")
    alarm = scores.cpu() > threshold
    return {
        "false_alarms": float(alarm[~bad].double().mean()),
        "missed": float((~alarm[bad]).double().mean()),
    }
