"""How much of a GPU the published models take, and which sizes fit: one function, `sizes_for`, with its forecast.

What a step costs is counted, not guessed: the full-width layout of `sd_layout` runs on PyTorch's meta device, where
tensors have sizes and no content, and every allocation and every multiplication is added up (`count`). `COSTS` holds
the result; `python -m labkit.models.sizing` counts again. What no count sees is assumed, in the constants below: the
CUDA context, the allocator's waste, and the share of a GPU's peak that such networks reach. So gigabytes and minutes
are a forecast; they were not compared with a GPU yet.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from labkit.errors import LabkitError
from labkit.models.paths import data_dir

CONTEXT_GB = 0.8  # CUDA, cuDNN and cuBLAS with their workspaces, before the first tensor
WASTE = 1.15  # what the caching allocator holds over what is in use
REACHED = 0.35  # share of the peak of a GPU's half-precision units
PEAKS = {"T4": 65.0, "V100": 112.0, "L4": 121.0, "A10": 125.0, "A100": 312.0, "H100": 756.0, "H200": 756.0}  # TFLOP/s
FREE_GB = {"T4": 14.5, "V100": 31.0, "L4": 22.0, "A10": 22.0, "A100": 78.0, "H100": 78.0, "H200": 138.0}  # 10^9 bytes
CPU_TFLOPS = 0.1  # of one core in single precision
FLOOR = "T4"  # the smallest GPU that the tier is planned for, 16 GB of which about 14.5 are free
FLOOR_GB = FREE_GB[FLOOR]


class TooSmall(LabkitError, RuntimeError):
    """The GPU has not enough free memory for one image."""


@dataclass(frozen=True)
class Cost:
    """Of one kind of work: gigabytes that are there whatever the batch, gigabytes and TFLOP of each row of the batch.

    A row is an image when sampling (guided: its U-Net calls have two rows), encoding or scoring, a pair when training.
    """

    fixed_gb: float
    row_gb: float
    row_tflop: float  # of one step of the sampler, or one step of training
    row_once_tflop: float = 0.0  # decoding, once per image


# (model, work) -> cost, in half precision, 512 x 512 pixels (SDXL: 1024 x 1024; portrait-flow: 64 x 64 pixels in single
# precision); decoding one image at a time. "train again" recomputes activations in backward.
COSTS: dict[tuple[str, str], Cost] = {
    ("sd15", "sample"): Cost(fixed_gb=2.4, row_gb=0.137, row_tflop=1.607, row_once_tflop=2.515),
    ("sd15", "train"): Cost(fixed_gb=2.16, row_gb=2.131, row_tflop=5.173),
    ("sd15", "train again"): Cost(fixed_gb=2.25, row_gb=1.319, row_tflop=6.352),
    ("sd15", "encode"): Cost(fixed_gb=0.17, row_gb=0.337, row_tflop=1.117),
    ("sdxl", "sample"): Cost(fixed_gb=10.0, row_gb=0.331, row_tflop=13.522, row_once_tflop=10.47),
    ("sdxl", "train"): Cost(fixed_gb=7.29, row_gb=15.682, row_tflop=42.6),
    ("sdxl", "train again"): Cost(fixed_gb=7.67, row_gb=9.652, row_tflop=52.854),
    ("sdxl", "encode"): Cost(fixed_gb=0.33, row_gb=2.697, row_tflop=4.879),
    ("portrait-flow", "sample"): Cost(fixed_gb=0.03, row_gb=0.001, row_tflop=0.00029, row_once_tflop=0.00068),
    ("portrait-flow", "train"): Cost(fixed_gb=0.04, row_gb=0.007, row_tflop=0.00105),
    ("pickscore", "score"): Cost(fixed_gb=1.97, row_gb=0.008, row_tflop=0.335),
}


@dataclass(frozen=True)
class Sizes:
    """What `sizes_for` chose, and what it will take."""

    batch_size: int
    checkpointing: bool
    gigabytes: float
    minutes: float

    def __str__(self) -> str:
        how = ", activations recomputed" if self.checkpointing else ""
        return f"batch {self.batch_size}{how}: about {self.gigabytes:.1f} GB and {self.minutes:.0f} minutes"


def sizes_for(
    work: str,
    *,
    model: str = "sd15",
    rows: int,
    steps: int,
    free_gb: float | None = None,
    peak_tflops: float | None = None,
    most: int = 64,
) -> Sizes:
    """The largest batch that fits, and a forecast.

    Args:
        work: "sample", guided images of `steps` steps each, or "train", `steps` steps of DPO with LoRA on `rows` pairs;
            "encode" and "score" (model "pickscore"), images once each.
        model: "sd15", "sdxl", or "portrait-flow" (give free_gb and peak_tflops of the CPU).
        rows: images in all, or pairs per step (gathered over micro-batches).
        free_gb: free memory in 10^9 bytes; by default that of the GPU, without one that of a T4.
        peak_tflops: of the GPU; by default looked up by its name, a T4's if it is unknown.
        most: no larger batch than this.

    Raises:
        TooSmall: not even one row fits; the message says how much would be needed.
    """
    if (model, work) not in COSTS:
        raise ValueError(f"no costs of {work!r} with {model!r}: there are {', '.join(map(' '.join, sorted(COSTS)))}")
    if rows < 1 or steps < 1:
        raise ValueError(f"rows={rows} and steps={steps} must be positive")
    free_gb = free_memory() if free_gb is None else free_gb
    peak_tflops = peak_of_gpu() if peak_tflops is None else peak_tflops
    plain, again = COSTS[model, work], COSTS.get((model, f"{work} again"))
    for cost, checkpointing in ((plain, False), (again, True)):
        if cost is None:
            break
        fits = int((free_gb - CONTEXT_GB - WASTE * cost.fixed_gb) / (WASTE * cost.row_gb) + 1e-9)
        if fits >= 1 and (fits >= min(rows, most) or again is None or checkpointing or fits >= 4):
            batch = min(fits, rows, most)
            return Sizes(batch, checkpointing, gigabytes(cost, batch), minutes(cost, rows, steps, peak_tflops))
    needed = gigabytes(again or plain, 1)
    raise TooSmall(
        f"{free_gb:.1f} GB are free, {work} with {model} needs {needed:.1f} GB for a single row: close other programs, "
        "or use the cpu tier"
    )


def gigabytes(cost: Cost, batch: int) -> float:
    """Memory of a batch in 10^9 bytes."""
    return CONTEXT_GB + WASTE * (cost.fixed_gb + batch * cost.row_gb)


def minutes(cost: Cost, rows: int, steps: int, peak_tflops: float) -> float:
    """Duration of all rows and steps."""
    return rows * (steps * cost.row_tflop + cost.row_once_tflop) / (REACHED * peak_tflops) / 60


def free_memory() -> float:
    """Free memory of the GPU in 10^9 bytes; of a T4 without one."""
    return torch.cuda.mem_get_info()[0] / 1e9 if torch.cuda.is_available() else FLOOR_GB


def gpu_name() -> str | None:
    """The name of the GPU that torch finds, None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def peak_of_gpu() -> float:
    """Peak of the GPU in half precision, TFLOP/s, by its name; that of a T4 if it is not known."""
    name = gpu_name() or FLOOR
    known = [peak for kind, peak in PEAKS.items() if kind in name.replace("-", " ").split()]
    return max(known, default=PEAKS[FLOOR])


# ---- counting ------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Inside, the bytes of tensors that are alive, and their peak; those that were there before do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self._known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._add((args, kwargs), counts=False)  # weights: a transposed one is a view of what was there before
        out = function(*args, **(kwargs or {}))
        self._add(out, counts=True)
        self.peak = max(self.peak, self.live)
        return out

    def _add(self, tree: object, *, counts: bool) -> None:
        for tensor in torch.utils._pytree.tree_leaves(tree):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._known:
                    size = storage.nbytes() if counts else 0
                    self._known.add(key)
                    self.live += size
                    weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def count(work: Callable[[], object]) -> tuple[float, float]:
    """(peak of living bytes in 10^9, TFLOP) of a piece of work, best on the meta device."""
    with FlopCounterMode(display=False) as flops, LiveBytes() as memory:
        work()
    return memory.peak / 1e9, flops.get_total_flops() / 1e12


def weights_gb(*models: nn.Module) -> float:
    """Parameters and buffers in 10^9 bytes."""
    return sum(t.numel() * t.element_size() for m in models for t in (*m.parameters(), *m.buffers())) / 1e9


class _Fused(torch.autograd.Function):
    """Attention block by block: what a fused kernel keeps and multiplies, without the table of all scores."""

    BLOCKS = 16

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for part, into in zip(q.tensor_split(_Fused.BLOCKS, -2), out.tensor_split(_Fused.BLOCKS, -2), strict=True):
            into.copy_(torch.matmul(torch.matmul(part, k.transpose(-1, -2)).softmax(-1), v))
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _ = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        parts = (x.tensor_split(_Fused.BLOCKS, -2) for x in (q, grad, dq))
        for part, g, into in zip(*parts, strict=True):
            share = torch.matmul(part, k.transpose(-1, -2)).softmax(-1)
            dv += torch.matmul(share.transpose(-1, -2), g)
            share = share * torch.matmul(g, v.transpose(-1, -2))
            into.copy_(torch.matmul(share, k))
            dk += torch.matmul(share.transpose(-1, -2), part)
        return dq, dk, dv


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, attention costs what the fused kernels of a GPU cost; elsewhere the meta device takes the long way."""
    original = F.scaled_dot_product_attention

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        if attn_mask is not None or is_causal:  # text encoders: 77 tokens, nothing to save
            return original(q, k, v, attn_mask, dropout_p, is_causal, **options)
        return _Fused.apply(q, k, v)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def counted_once(call: Callable[[int], object], *models: nn.Module) -> Cost:
    """The cost of one forward call of models on the meta device, `call(rows)`, per row."""
    with fused_attention(), torch.no_grad():
        (one, tflop), (two, _) = count(lambda: call(1)), count(lambda: call(2))
    return Cost(round(weights_gb(*models) + max(0.0, 2 * one - two), 2), round(two - one, 3), round(tflop, 3))


def counted_encoding(model: str) -> Cost:
    """The cost of encoding one image of the model's native size with its VAE."""
    from diffusers import AutoencoderKL

    from labkit.models.sd_layout import sd15_configs, sdxl_configs

    configs = (sd15_configs if model == "sd15" else sdxl_configs)("full")
    with torch.device("meta"):
        vae = AutoencoderKL(**configs["vae"]).eval()
    vae = vae if configs["vae"].get("force_upcast") else vae.half()
    side = 8 * configs["unet"]["sample_size"]
    return counted_once(lambda rows: vae.encode(torch.empty(rows, 3, side, side, device="meta", dtype=vae.dtype)), vae)


def counted_scoring() -> Cost:
    """The cost of scoring one image with PickScore, a CLIP ViT-H/14 at 224 x 224 pixels; its prompt is left out: it is
    read once for all of its candidates."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"num_attention_heads": 16, "projection_dim": 1024, "hidden_act": "gelu"}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "image_size": 224}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 49408}
    with torch.device("meta"):
        config = CLIPConfig(vision_config=vision | {"patch_size": 14} | shared, text_config=text | shared)
        clip = CLIPModel(config).half().eval()
    pixels = {"device": "meta", "dtype": torch.float16}
    return counted_once(lambda rows: clip.vision_model(torch.empty(rows, 3, 224, 224, **pixels)), clip)


def counted_flow(work: str) -> Cost:
    """The cost of "sample" or "train" with portrait-flow, as `data/` has it; LoRA of rank 16 on every linear layer."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from peft import LoraConfig

    from labkit.models.flow import TOKENS

    config = SD3Transformer2DModel.load_config(data_dir() / "portrait-flow" / "transformer")
    with torch.device("meta"):
        model = SD3Transformer2DModel.from_config(config).eval().requires_grad_(False)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(data_dir() / "portrait-sd" / "vae")).eval()
    channels, side = config["in_channels"], config["sample_size"]
    fixed = weights_gb(model, vae)

    def call(rows: int) -> Tensor:
        sizes = {"hidden_states": (channels, side, side), "encoder_hidden_states": (TOKENS, 128)}
        sizes |= {"pooled_projections": (128,), "timestep": ()}
        return model(**{name: torch.empty(rows, *size, device="meta") for name, size in sizes.items()}).sample

    def sample(batch: int) -> None:
        with torch.no_grad():
            call(2 * batch)

    def train(batch: int) -> None:
        sample(batch)  # the reference: two rows for a pair, too
        call(2 * batch).square().mean().backward()

    def decode() -> None:
        with torch.no_grad():
            vae.decode(torch.empty(1, channels, side, side, device="meta"))

    if work == "sample":
        (one, tflop), (two, _), (picture, once) = count(lambda: sample(1)), count(lambda: sample(2)), count(decode)
        row = two - one
        return Cost(round(fixed + max(0.0, picture - row), 2), round(row, 3), round(tflop, 5), round(once, 5))
    inner = [name for name, m in model.named_modules() if "." in name and isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.device("meta"):
        model.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=inner))
    fixed += 4 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e9  # as for the others
    model.train()
    (one, tflop), (two, _) = count(lambda: train(1)), count(lambda: train(2))
    return Cost(round(fixed + max(0.0, 2 * one - two), 2), round(two - one, 3), round(tflop, 5))


def counted(model: str, work: str) -> Cost:
    """The cost of `work` ("sample", "train", "train again" with activations recomputed) in the full-width layout;
    of "encode" and of PickScore's "score" as well."""
    if work == "score":
        return counted_scoring()
    if work == "encode":
        return counted_encoding(model)
    if model == "portrait-flow":
        return counted_flow(work)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from labkit.models.sd_layout import sd15_configs, sdxl_configs

    configs = (sd15_configs if model == "sd15" else sdxl_configs)("full")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**configs["unet"]).half().eval().requires_grad_(False)
        vae = AutoencoderKL(**configs["vae"]).eval().requires_grad_(False)
        text = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])).half()
        second = configs.get("text_encoder_2")
        texts = [text] + ([CLIPTextModelWithProjection(CLIPTextConfig(**second)).half()] if second else [])
    vae = vae if configs["vae"].get("force_upcast") else vae.half()  # SDXL's overflows in half precision
    fixed, side, width = (
        weights_gb(unet, vae, *texts),
        configs["unet"]["sample_size"],
        configs["unet"]["cross_attention_dim"],
    )

    def call(rows: int) -> Tensor:
        added = None
        if second:
            pooled = torch.empty(rows, second["projection_dim"], device="meta", dtype=torch.float16)
            added = {"text_embeds": pooled, "time_ids": torch.empty(rows, 6, device="meta", dtype=torch.float16)}
        x = torch.empty(rows, 4, side, side, device="meta", dtype=torch.float16)
        text = torch.empty(rows, 77, width, device="meta", dtype=torch.float16)
        t = torch.ones(rows, device="meta", dtype=torch.long)
        return unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]

    def sample(batch: int) -> None:
        with torch.no_grad():
            call(2 * batch)

    def train(batch: int) -> None:
        with torch.no_grad():
            call(2 * batch)  # the reference
        call(2 * batch).float().square().mean().backward()

    def decode() -> None:
        with torch.no_grad():
            vae.decode(torch.empty(1, 4, side, side, device="meta", dtype=vae.dtype))

    with fused_attention():
        if work == "sample":
            (one, tflop), (two, _), (picture, once) = count(lambda: sample(1)), count(lambda: sample(2)), count(decode)
            row = two - one
            return Cost(round(fixed + max(0.0, picture - row), 2), round(row, 3), round(tflop, 3), round(once, 3))
        with torch.device("meta"):
            unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        adapter = [p for p in unet.parameters() if p.requires_grad]
        for parameter in adapter:
            parameter.data = parameter.data.float()  # as labkit trains it
        trained = sum(p.numel() for p in adapter)
        fixed += 4 * 4 * trained / 1e9  # float32: weights, gradients and AdamW's two
        unet.train()
        if work == "train again":
            unet.enable_gradient_checkpointing()
        (one, tflop), (two, _) = count(lambda: train(1)), count(lambda: train(2))
    return Cost(round(fixed + max(0.0, 2 * one - two), 2), round(two - one, 3), round(tflop, 3))


def main() -> None:
    """Print `COSTS`."""
    for model, work in COSTS:
        print(f'    ("{model}", "{work}"): {counted(model, work)},', flush=True)


if __name__ == "__main__":
    main()
