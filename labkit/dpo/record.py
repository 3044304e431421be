"""What a run writes down: errors of winner and loser apart, logits, drift of the channel means, size of the update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from labkit.diffusion import AdapterError
from labkit.diffusion.adapters import adapter_layers
from labkit.dpo.equations import dpo_logit, implicit_accuracy
from labkit.dpo.terms import PairStep


def observed(step: PairStep) -> dict[str, Tensor]:
    """Per-pair numbers for the log: errors [B], and the channel means of the winner's change [B] per channel."""
    numbers = {"winner_error": step.winner_error, "loser_error": step.loser_error, "t": step.t}
    if step.ref_winner_error is not None:
        numbers |= {"ref_winner_error": step.ref_winner_error, "ref_loser_error": step.ref_loser_error}
    if step.ref_winner_pred is not None:
        drift = (step.winner_pred.detach() - step.ref_winner_pred).flatten(2).mean(2)  # [B, C]
        numbers |= {f"drift_{c}": drift[:, c] for c in range(drift.shape[1])}
    return numbers


class Window:
    """Collects per-pair numbers of some steps and makes one record of them.

    numbers: term losses, winner_error, loser_error, ref_winner_error, ref_loser_error, t, drift_c: [B] each.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.seconds = 0.0

    def add(self, *, seconds: float, **numbers: Tensor) -> None:
        self.seconds += seconds
        for key, value in numbers.items():
            self.values.setdefault(key, []).append(value)

    def table(self) -> dict[str, Tensor]:
        """All numbers so far, [pairs seen] each."""
        return {key: torch.cat(parts) for key, parts in self.values.items()}

    def record(self, kappa: float) -> dict[str, float]:
        """Means; with a reference also d_w, d_l, quantiles of s = -kappa D, accuracy, mean gradient weight."""
        table = {k: v for k, v in self.table().items() if k != "t"}
        record = {key: float(value.mean()) for key, value in table.items() if not key.startswith("ref_")}
        if "ref_winner_error" in table:
            d_w = table["winner_error"] - table["ref_winner_error"]
            d_l = table["loser_error"] - table["ref_loser_error"]
            errors = {n: table[f"{n}_error"] for n in ("winner", "loser", "ref_winner", "ref_loser")}
            s = dpo_logit(**errors, kappa=kappa)
            record |= {"d_w": float(d_w.mean()), "d_l": float(d_l.mean())}
            low, middle, high = torch.quantile(s, torch.tensor([0.1, 0.5, 0.9])).tolist()
            record |= {"s10": low, "s50": middle, "s90": high}
            record |= {"accuracy": float(implicit_accuracy(s)), "weight": float(torch.sigmoid(-s).mean())}
        return record | {"seconds": self.seconds}


class FrozenFlags:
    """Remembers which parameters train; `check` raises AdapterError if a library has changed that since."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.flags = {name: p.requires_grad for name, p in model.named_parameters()}

    def check(self) -> None:
        changed = [n for n, p in self.model.named_parameters() if self.flags.get(n) != p.requires_grad]
        if changed:
            raise AdapterError(
                f"requires_grad of {len(changed)} tensors changed during training (first: {changed[0]}): switch "
                "adapters with labkit.diffusion.use_adapters, not with the library's enable and disable"
            )


@torch.no_grad()
def update_norm(
    model: nn.Module, adapter: str, parameters: Mapping[str, nn.Parameter], start: nn.Module | None
) -> float:
    """|W - W_start| over all layers: of LoRA products B A, or of full weights against the copy (NaN if none)."""
    deltas = [
        layer.get_delta_weight(adapter)
        for layer in adapter_layers(model).values()
        if adapter in getattr(layer, "lora_A", {})
    ]
    if not deltas:
        before = dict(start.named_parameters()) if start is not None else {}
        deltas = [p - before[name] for name, p in parameters.items() if name in before]
    return float(torch.stack([d.float().square().sum() for d in deltas]).sum().sqrt()) if deltas else float("nan")
