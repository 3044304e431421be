"""What FABRIC needs to know of a U-Net: its self-attentions, and what one of its calls was given."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from labkit.fabric.processor import Layer
from labkit.fabric.settings import FabricError

JOINT = ("SD3Transformer2DModel", "FluxTransformer2DModel")  # one attention over image and text: see `joint`


def self_attentions(unet) -> list[tuple[Layer, nn.Module]]:
    """Every `attn1` of a U-Net with its depth, in the order down, middle, up.

    The depth is that of the block, 0 (outermost) .. 1 (middle), and all layers of a block share it, as in the official
    code: i / n for the i-th of n down blocks, mirrored on the way up, whether a block has attention or not.
    """
    from diffusers.models.attention import BasicTransformerBlock

    down, up = len(unet.down_blocks), len(unet.up_blocks)
    blocks = [
        *((f"down_blocks.{i}", block, i / down) for i, block in enumerate(unet.down_blocks)),
        ("mid_block", unet.mid_block, 1.0),
        *((f"up_blocks.{i}", block, 1 - (i + 1) / up) for i, block in enumerate(unet.up_blocks)),
    ]
    found = []
    for path, block, depth in blocks:
        for name, module in () if block is None else block.named_modules(prefix=path):
            if isinstance(module, BasicTransformerBlock) and module.attn1 is not None:
                if not module.only_cross_attention:
                    found.append((Layer(f"{name}.attn1", depth), module.attn1))
    return found


def is_joint(pipe) -> bool:
    """Whether the pipeline's model is one of the `JOINT` ones, compiled or not."""
    model = getattr(pipe, "transformer", None)
    return type(getattr(model, "_orig_mod", model)).__name__ in JOINT


def unet_of(pipe):
    from diffusers import UNet2DConditionModel

    unet = getattr(pipe, "unet", None)
    if is_compiled(unet):
        raise FabricError(
            "the U-Net is compiled, and what was compiled does not ask attention processors: open the session on the "
            "plain U-Net (pipe.unet = pipe.unet._orig_mod after torch.compile, else load it again)"
        )
    if not isinstance(unet, UNet2DConditionModel):
        other = getattr(pipe, "transformer", None)
        held = "no UNet2DConditionModel" if other is None else f"a transformer of another kind ({type(other).__name__})"
        raise FabricError(
            f"{type(pipe).__name__} holds {held}: FABRIC reads the attention of UNet2DConditionModel, "
            f"{' and '.join(JOINT)}"
        )
    if not self_attentions(unet):
        raise FabricError("the U-Net has no self-attention: FABRIC has nowhere to show references")
    return unet


def is_compiled(model) -> bool:
    """Whether torch.compile has been applied to a model: as a wrapper, in place, to its forward or to parts of it."""
    if hasattr(model, "_orig_mod"):
        return True
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for module in modules
    )


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
