"""What a contender costs: every U-Net row, forward and backward, every decoded picture, every question to the reward.

`NFELedger` counts rows; here they become one number. A decoded picture costs a fixed number of U-Net forwards, taken
from the operations that both need (a ratio that no clock disturbs); backward is twice that again. Reward queries are a
second column and not converted: their price may be a matrix product or a person's minute.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from labkit.diffusion import Counts, decode_latents, encode_prompts, unet_output
from labkit.errors import LabkitError


@dataclass(frozen=True)
class Prices:
    """In forwards of the U-Net on one row: `decode` for one picture through the VAE's decoder."""

    decode: float

    def nfe(self, counts: Counts) -> float:
        """Everything that was called, in U-Net forwards: a backward pass costs two."""
        c = counts
        unet = c.unet_rows + 2 * c.unet_backward_rows + c.unet_recomputed_rows
        return unet + self.decode * (c.vae_decode_rows + 2 * c.vae_decode_backward_rows)

    def sampled(self, steps: int, *, rows: int = 1) -> float:
        """One picture that is sampled in `steps` steps of `rows` rows each (2 with guidance) and looked at."""
        return steps * rows + self.decode


@torch.no_grad()
def prices(pipe) -> Prices:
    """The prices of a pipeline's own models, from counted operations."""
    unet, size = pipe.unet, pipe.unet.config.sample_size
    x = torch.zeros(1, unet.config.in_channels, size, size, device=unet.device)
    conditions = encode_prompts(pipe, [""])

    def operations(call) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    forward = operations(lambda: unet_output(unet, x, 0, conditions))
    decode = operations(lambda: decode_latents(pipe, x))
    return Prices(decode=decode / forward)


class BudgetError(LabkitError, ValueError):
    """A budget that does not pay for one update; the message names the number that does."""


def updates_for(nfe: float, price: float, name: str, *, fixed: float = 0.0) -> int:
    """How many updates of a price fit into a budget beside fixed costs.

    Raises:
        BudgetError: not even one.
    """
    if nfe < fixed + price:
        raise BudgetError(f"{name}: a budget of {nfe:.0f} NFE is too small, one update needs {fixed + price:.0f}")
    return int((nfe - fixed + 1e-6) // price)
