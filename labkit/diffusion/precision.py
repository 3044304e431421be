"""Where bfloat16 is worth having."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch

_DECIDED: ContextVar[bool | None] = ContextVar("_DECIDED", default=None)


@contextmanager
def in_bfloat16(decided: bool) -> Iterator[None]:
    """Inside, whatever leaves its precision to the machine ("auto") computes in bfloat16, or never does: for numbers
    that another machine made."""
    token = _DECIDED.set(decided)
    try:
        yield
    finally:
        _DECIDED.reset(token)


def float32_only() -> AbstractContextManager[None]:
    """Inside, whatever leaves its precision to the machine computes in float32: for numbers that must not depend on
    where they were made."""
    return in_bfloat16(False)


def native_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether training in bfloat16 is faster there than in float32: the device multiplies it in hardware, and a CPU
    does so in vector registers.

    A CPU that emulates it takes seven times as long as in float32, or more (the course's U-Net on an AVX2 machine). One
    that has tiles (AMX) gains nothing on networks as small as the course's, and loses in the backward pass: 60 steps
    of ten pairs take 45 s in bfloat16 and 34 s in float32 (Xeon, two cores; a step alone 1.5 times as long). Inside of
    `in_bfloat16` the answer is the one given there.
    """
    if (decided := _DECIDED.get()) is not None:
        return decided
    kind = torch.device(device).type
    if kind == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") and not can.get("amx_bf16"))
    return kind == "cuda" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
