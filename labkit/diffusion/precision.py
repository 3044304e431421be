"""Where bfloat16 is worth having."""

from __future__ import annotations

import torch


def native_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether the device multiplies bfloat16 in hardware.

    A CPU that emulates it takes seven times as long as in float32, or more (the course's U-Net on an AVX2 machine).
    """
    kind = torch.device(device).type
    if kind == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return kind == "cuda" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
