"""Where bfloat16 is worth having."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_FLOAT32 = ContextVar("_FLOAT32", default=False)


@contextmanager
def float32_only() -> Iterator[None]:
    """Inside, whatever leaves its precision to the machine ("auto") computes in float32: for numbers that must not
    depend on where they were made."""
    token = _FLOAT32.set(True)
    try:
        yield
    finally:
        _FLOAT32.reset(token)


def native_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether training in bfloat16 is faster there than in float32: the device multiplies it in hardware, and a CPU
    does so in vector registers.

    A CPU that emulates it takes seven times as long as in float32, or more (the course's U-Net on an AVX2 machine). One
    that has tiles (AMX) gains nothing on networks as small as the course's, and loses in the backward pass: 60 steps
    of ten pairs take 45 s in bfloat16 and 34 s in float32 (Xeon, two cores; a step alone 1.5 times as long). Never
    inside of `float32_only`.
    """
    if _FLOAT32.get():
        return False
    kind = torch.device(device).type
    if kind == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") and not can.get("amx_bf16"))
    return kind == "cuda" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
