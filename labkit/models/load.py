"""One call for every tier: `load_pipeline`, `load_clip`, `load_reader`; `load_flow` for the flow-matching transformer.

smoke and cpu load the small models shipped in data/ (checked against data/checksums.json); gpu loads Stable Diffusion
1.5 and OpenAI's CLIP from the hub, or from a local folder given by argument or under LABKIT_MODELS. Weights are
safetensors only and come back in eval mode and frozen (a trainer unfreezes what it trains). Whatever can go wrong is a
ModelLoadError of one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labkit.errors import ModelLoadError
from labkit.models.checksums import verify
from labkit.models.local_folder import absent_parts, check_clip, check_layout, file_variant, need, pixel_statistics
from labkit.models.paths import data_dir, local_model

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPModel

    from labkit.models.clip_inputs import ClipInputs
    from labkit.models.flow import PortraitFlowPipeline
    from labkit.models.reader import AttributeReader

TIERS = ("smoke", "cpu", "gpu")
FLOW = "portrait-flow"
VARIANTS = ("portrait-sd", "portrait-sd-base", FLOW)
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
CLIP_GPU = "openai/clip-vit-large-patch14"  # the text tower of Stable Diffusion 1.5


def load_pipeline(
    tier: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    variant: str = "portrait-sd",
    folder: str | Path | None = None,
) -> StableDiffusionPipeline | StableDiffusionXLPipeline | StableDiffusion3Pipeline:
    """The text-to-image pipeline of a tier, with a DDIM scheduler, no safety checker and no progress bar.

    device   default: the CPU for smoke and cpu, the GPU for gpu.
    dtype    default: float32, or float16 for the gpu tier on a GPU. float16 on a CPU is an error.
    variant  smoke, cpu: "portrait-sd", a spoilt checkpoint "portrait-sd-base", or "portrait-flow" (`load_flow`).
             Without effect on the gpu tier.
    folder   a local folder in diffusers layout (Stable Diffusion, SDXL or Stable Diffusion 3) to load instead of the
             tier's own model. Stable Diffusion 3 keeps its scheduler of flow matching.

    The scheduler is DDIM with set_alpha_to_one=False and clip_sample=False, built from the folder's own betas, offset
    and prediction type: the settings under which every step has a finite log-probability.
    SDXL's VAE overflows in float16 and stays in float32 (for a plain `pipe(...)` call, `pipe.vae.to(torch.float16)`:
    diffusers then casts it up and down itself).
    """
    device, dtype = _device_and_dtype(tier, device, dtype)
    if variant not in VARIANTS:
        raise ModelLoadError(f"variant is {variant!r}, expected one of {', '.join(VARIANTS)}")
    if variant == FLOW and folder is None and tier != "gpu":
        return load_flow(device, dtype)
    source = _source(tier, folder, shipped=variant, hub=SD15)
    with quiet():
        from diffusers import (
            DDIMScheduler,
            StableDiffusion3Pipeline,
            StableDiffusionPipeline,
            StableDiffusionXLPipeline,
        )

        pipeline_class: Any = StableDiffusionPipeline
        options: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        if isinstance(source, Path):
            name = check_layout(source)
            if name == "StableDiffusionXLPipeline":
                pipeline_class, options = StableDiffusionXLPipeline, {}
            elif name == "StableDiffusion3Pipeline":
                pipeline_class, options = StableDiffusion3Pipeline, dict.fromkeys(absent_parts(source))
            elif name != "StableDiffusionPipeline":
                raise ModelLoadError(
                    f"{source} holds a {name}: expected StableDiffusionPipeline, StableDiffusionXLPipeline or "
                    "StableDiffusion3Pipeline"
                )
        pipe = _load(
            lambda: pipeline_class.from_pretrained(
                str(source),
                use_safetensors=True,
                **_dtype_argument(dtype),
                **file_variant(source, dtype),
                **_local(source),
                **options,
            ),
            source,
        )
        if pipeline_class is not StableDiffusion3Pipeline:
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False, clip_sample=False)
        _frozen(pipe).to(device)
        if dtype == torch.float16 and pipeline_class is StableDiffusionXLPipeline:
            pipe.vae.to(torch.float32)
    if tier == "gpu":
        pipe.vae.enable_slicing()  # one picture at a time: decoding dozens at once asks for more than a T4 has
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_flow(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, folder: str | Path | None = None
) -> PortraitFlowPipeline:
    """PortraitFlow: the transformer and scheduler of data/portrait-flow with the VAE and text encoder of portrait-sd.

    folder: what `python -m labkit.training flow-export` has written elsewhere.
    """
    device, dtype = _device_and_dtype("cpu", device, dtype)
    source, shared = _source("cpu", folder, shipped=FLOW, hub=""), _source("cpu", None, shipped="portrait-sd", hub="")
    for part in ("transformer", "scheduler"):
        need(source / part / ("config.json" if part == "transformer" else "scheduler_config.json"), source)
    with quiet():
        from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
        from transformers import CLIPTextModel, CLIPTokenizer

        from labkit.models.flow import PortraitFlowPipeline

        options = {"local_files_only": True, "use_safetensors": True}
        transformer = _load(
            lambda: SD3Transformer2DModel.from_pretrained(source / "transformer", **_dtype_argument(dtype), **options),
            source,
        )
        vae = _load(lambda: AutoencoderKL.from_pretrained(shared / "vae", **_dtype_argument(dtype), **options), shared)
        vae.register_to_config(shift_factor=0.0)  # Stable Diffusion 3's pipeline reads it
        text = _load(lambda: CLIPTextModel.from_pretrained(shared / "text_encoder", dtype=dtype, **options), shared)
        pipe = PortraitFlowPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(source / "scheduler", local_files_only=True),
            vae=vae,
            text_encoder=text,
            tokenizer=CLIPTokenizer.from_pretrained(shared / "tokenizer", local_files_only=True),
            **dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")),
        )
        _frozen(pipe).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_clip(
    tier: str, device: torch.device | str | None = None, *, folder: str | Path | None = None
) -> tuple[CLIPModel, ClipInputs]:
    """(CLIPModel in float32, the function that makes its inputs from texts and image tensors) of a tier."""
    device, _ = _device_and_dtype(tier, device, torch.float32)
    source = _source(tier, folder, shipped="portrait-clip", hub=CLIP_GPU)
    with quiet():
        from transformers import CLIPModel, CLIPTokenizer

        from labkit.models.clip_inputs import ClipInputs

        if isinstance(source, Path):
            check_clip(source)
        options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True, **_local(source)}
        model, info = _load(lambda: CLIPModel.from_pretrained(str(source), **options), source)
        if missing := sorted(info["missing_keys"]):  # transformers would draw them at random and say so in its log
            raise ModelLoadError(
                f"{source} lacks {len(missing)} of CLIP's weights (first: {missing[0]}): copy the model again"
            )
        tokenizer = _load(lambda: CLIPTokenizer.from_pretrained(str(source), **_local(source)), source)
    model.eval().requires_grad_(False).to(device)
    return model, ClipInputs(tokenizer, model.config, **pixel_statistics(source))


def load_reader(device: torch.device | str = "cpu", *, folder: str | Path | None = None) -> AttributeReader:
    """The AttributeReader, the gold judge of the course: the same for every tier. Nothing may be trained against it."""
    source = _source("cpu", folder, shipped="attribute-reader", hub="")
    need(source / "config.json", source)
    need(source / "model.safetensors", source)
    from labkit.models.reader import AttributeReader

    return _load(lambda: AttributeReader.from_pretrained(source), source).to(device)


def _frozen(pipe: Any) -> Any:
    """The pipeline with all its networks in eval mode and without gradients."""
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return pipe


def _device_and_dtype(
    tier: str, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Fill in the tier's defaults and refuse combinations that cannot run."""
    if tier not in TIERS:
        raise ModelLoadError(f"tier is {tier!r}, expected one of {', '.join(TIERS)}")
    try:
        device = torch.device(device if device is not None else ("cuda" if tier == "gpu" else "cpu"))
    except RuntimeError:
        raise ModelLoadError(f"device {device!r} is not a torch device: use 'cpu', 'cuda' or 'cuda:0'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            "no CUDA GPU was found: use tier='cpu', or device='cpu' to run this tier slowly on the CPU"
        )
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device {device} does not exist: there are {torch.cuda.device_count()} GPUs, counted from 0"
        )
    dtype = dtype or (torch.float16 if tier == "gpu" and device.type == "cuda" else torch.float32)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ModelLoadError(f"dtype is {dtype}, expected torch.float32, torch.bfloat16 or torch.float16")
    if dtype == torch.float16 and device.type == "cpu":
        raise ModelLoadError("float16 does not run on a CPU: use dtype=torch.float32 (or torch.bfloat16) there")
    return device, dtype


def _source(tier: str, folder: str | Path | None, *, shipped: str, hub: str) -> Path | str:
    """The folder to load, or the hub's name of the model. A folder inside data/ is checked against its checksums."""
    if folder is not None:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise ModelLoadError(f"{path} is not a folder: give the folder that holds the model")
        return path
    if tier == "gpu":
        return local_model(hub) or hub
    path = data_dir() / shipped
    if not path.is_dir():
        raise ModelLoadError(
            f"{path} is missing: get it with git checkout, set LABKIT_DATA to a data folder, or run `make train`"
        )
    verify(shipped)
    return path


def _load(load: Callable[[], Any], source: Path | str) -> Any:
    """Run a loader; turn whatever it raises into a ModelLoadError of one line (the cause stays attached)."""
    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"
        if isinstance(source, Path):
            raise ModelLoadError(
                f"{source} could not be loaded, a file may be damaged ({reason}): copy the model again"
            ) from error
        raise ModelLoadError(
            f"{source} could not be loaded from the hub ({reason}): check the network, or put a copy into "
            f"LABKIT_MODELS/{source.split('/')[-1]} or give folder="
        ) from error


def _dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """diffusers renamed torch_dtype to dtype in 0.42; an older one would ignore the new name."""
    import diffusers

    major, minor = (int(part) for part in diffusers.__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 42) else "torch_dtype": dtype}


def _local(source: Path | str) -> dict[str, bool]:
    """A local folder is never completed from the network."""
    return {"local_files_only": True} if isinstance(source, Path) else {}


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, diffusers and transformers show no loading bars and only errors; their settings come back afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggings = (diffusers_logging, transformers_logging)
    before = [(log, log.is_progress_bar_enabled(), log.get_verbosity()) for log in loggings]
    try:
        for log, _, _ in before:
            log.disable_progress_bar()
            log.set_verbosity_error()
        yield
    finally:
        for log, bars, verbosity in before:
            if bars:
                log.enable_progress_bar()
            log.set_verbosity(verbosity)
