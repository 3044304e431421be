"""Counting what a method costs: U-Net evaluations, and everything else that is called.

Unit: one U-Net forward on one image (one row of a batch), "NFE". A backward pass costs about two forwards, so a
training step on one row costs 3; with classifier-free guidance every image is two rows. A U-Net with gradient
checkpointing recomputes its forward in backward and is charged 1 more. VAE passes, text-encoder passes and reward calls
are counted separately: their price relative to the U-Net depends on the models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Counts:
    """Rows are images (or prompts) that went through; calls are batched calls."""

    unet_calls: int = 0
    unet_rows: int = 0
    unet_backward_rows: int = 0
    unet_recomputed_rows: int = 0
    vae_encode_rows: int = 0
    vae_decode_rows: int = 0
    vae_decode_backward_rows: int = 0
    text_rows: int = 0
    reward_calls: int = 0
    reward_rows: int = 0


def _rows(value: Any) -> int:
    """Number of rows of a call: the length of its first tensor or sequence."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim else 1
    return len(value) if hasattr(value, "__len__") else 1


class NFELedger:
    """Context manager that counts the calls of a pipeline's (or a U-Net's) models while it is open.

        with NFELedger(pipe) as ledger:
            ...
        print(ledger.nfe, ledger.seconds)

    Ledgers may be nested; each counts what happens inside it. A backward pass counts if it runs inside, whenever its
    forward inside ran. Nothing about the models changes but hooks that are removed on exit, also after an exception.
    A VAE that runs in tiles is counted per tile.
    """

    def __init__(self, pipe_or_unet):
        self.counts = Counts()
        self.seconds = 0.0
        self._models = pipe_or_unet
        self._handles: list[Any] = []
        self._started: float | None = None

    @property
    def nfe(self) -> int:
        """U-Net cost in forward-row equivalents: forwards + 2 per row of backward + 1 per row recomputed inside it."""
        c = self.counts
        return c.unet_rows + 2 * c.unet_backward_rows + c.unet_recomputed_rows

    def as_dict(self) -> dict[str, float]:
        """All counts with `nfe` and `seconds`, for tables and logs."""
        return {"nfe": self.nfe, **asdict(self.counts), "seconds": round(self.seconds, 3)}

    def __enter__(self) -> NFELedger:
        if self._started is not None:
            raise RuntimeError("this ledger is already open: use a new NFELedger for a nested count")
        unet = getattr(self._models, "unet", self._models)
        # counted on the way in: a checkpoint's recomputation stops before the way out
        self._handles.append(unet.register_forward_pre_hook(self._before_unet, with_kwargs=True))
        self._handles.append(unet.register_forward_hook(self._after_unet))
        vae = getattr(self._models, "vae", None)
        if vae is not None:  # encode() and decode() are no forward calls, their inner modules are
            self._handles.append(vae.encoder.register_forward_hook(self._adder("vae_encode_rows")))
            self._handles.append(vae.decoder.register_forward_hook(self._adder("vae_decode_rows", backward=True)))
        for name in ("text_encoder", "text_encoder_2"):
            if getattr(self._models, name, None) is not None:
                self._handles.append(getattr(self._models, name).register_forward_hook(self._adder("text_rows")))
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._started
        self._started = None
        while self._handles:
            self._handles.pop().remove()

    def scorer(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a reward function so that its calls are counted; rows are the length of its first argument."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.add_reward(_rows(args[0] if args else next(iter(kwargs.values()))))
            return function(*args, **kwargs)

        return counted

    def add_reward(self, rows: int) -> None:
        """Count one reward call on `rows` images (human labels count here as well)."""
        self.counts.reward_calls += 1
        self.counts.reward_rows += rows

    def _adder(self, field: str, *, backward: bool = False) -> Callable[..., None]:
        def add(field: str, rows: int) -> None:
            setattr(self.counts, field, getattr(self.counts, field) + rows)

        def on_gradient(rows: int) -> None:
            if self._started is not None:
                add(field.replace("_rows", "_backward_rows"), rows)

        def after(module: torch.nn.Module, args: tuple, output: Any) -> None:
            value = output if isinstance(output, Tensor) else output[0]
            rows = _rows(value)
            add(field, rows)
            if backward and value.requires_grad:
                value.register_hook(lambda _: on_gradient(rows))

        return after

    def _before_unet(self, unet: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.counts.unet_calls += 1
        self.counts.unet_rows += _rows(args[0] if args else kwargs["sample"])

    def _after_unet(self, unet: torch.nn.Module, args: tuple, output: Any) -> None:
        prediction = output[0]  # tuple and UNet2DConditionOutput alike
        rows = prediction.shape[0]
        if prediction.requires_grad:
            recomputes = getattr(unet, "is_gradient_checkpointing", False)

            def on_gradient(_: Tensor) -> None:
                if self._started is not None:
                    self.counts.unet_backward_rows += rows
                    self.counts.unet_recomputed_rows += rows if recomputes else 0

            prediction.register_hook(on_gradient)
