"""What FABRIC needs to know of a U-Net: its self-attentions, and what one of its calls was given."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from labkit.fabric.processor import Layer
from labkit.fabric.settings import FabricError


def self_attentions(unet) -> list[tuple[Layer, nn.Module]]:
    """Every `attn1` of a U-Net with its depth, in the order down, middle, up."""
    from diffusers.models.attention import BasicTransformerBlock

    parts: dict[str, list] = {"down_blocks": [], "mid_block": [], "up_blocks": []}
    for name, module in unet.named_modules():
        if isinstance(module, BasicTransformerBlock) and module.attn1 is not None and not module.only_cross_attention:
            parts[name.split(".")[0]].append((f"{name}.attn1", module.attn1))
    down, middle, up = parts.values()
    depths = (
        [i / len(down) for i in range(len(down))],
        [1.0] * len(middle),
        [1 - (i + 1) / len(up) for i in range(len(up))],
    )
    found = zip([*down, *middle, *up], [d for part in depths for d in part], strict=True)
    return [(Layer(name, depth), attn) for (name, attn), depth in found]


def unet_of(pipe):
    from diffusers import UNet2DConditionModel

    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, UNet2DConditionModel):
        held = "a transformer" if hasattr(pipe, "transformer") else "no UNet2DConditionModel"
        raise FabricError(
            f"{type(pipe).__name__} holds {held}: FABRIC reads the self-attention of a UNet2DConditionModel"
        )
    if not self_attentions(unet):
        raise FabricError("the U-Net has no self-attention: FABRIC has nowhere to show references")
    return unet


def call_arguments(unet, args: tuple, kwargs: dict) -> dict:
    """The call's arguments by name."""
    names = list(inspect.signature(type(unet).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def one_timestep(t) -> float:
    if isinstance(t, Tensor) and t.ndim and not bool((t == t.flatten()[0]).all()):
        raise FabricError(
            "the rows of one U-Net call have different timesteps: expected one, references are noised to it"
        )
    return float(t.flatten()[0]) if isinstance(t, Tensor) else float(t)
