"""What the U-Net is asked: text conditions, classifier-free guidance, one prediction. The same for a transformer in
Stable Diffusion 3's layout, which stands in the U-Net's place and predicts a velocity.

Classifier-free guidance (arXiv 2207.12598, in SD's convention): eps = eps_uncond + g (eps_cond - eps_uncond), so
g = 1 is the conditional prediction, g = 0 the unconditional one. Rows of a guided batch are [uncond, cond], as in
diffusers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from labkit.diffusion.adapters import use_adapters
from labkit.diffusion.devices import execution_device
from labkit.diffusion.schedule import Timestep, to_epsilon
from labkit.errors import LabkitWarning

_ROWS: ContextVar[tuple[str, ...] | None] = ContextVar("labels of the U-Net's rows", default=None)


@contextmanager
def labelled_rows(labels: Sequence[str]) -> Iterator[None]:
    """Inside, every row of a U-Net call is known to be "cond" or "uncond"; hooks read it with `row_labels`.

    `unet_output` labels its own calls. Use this around direct calls of a U-Net. Raises ValueError for other labels.
    """
    unknown = sorted(set(labels) - {"cond", "uncond"})
    if unknown:
        raise ValueError(f"row labels are 'cond' or 'uncond', got {unknown}")
    token = _ROWS.set(tuple(labels))
    try:
        yield
    finally:
        _ROWS.reset(token)


def row_labels() -> tuple[str, ...] | None:
    """The labels of the rows of the U-Net call that is going on, None if nobody labelled them."""
    return _ROWS.get()


@dataclass(frozen=True)
class PromptConditions:
    """Text conditions of B images. SDXL has all fields, Stable Diffusion 3 all but time_ids, Stable Diffusion the first
    two; the others are None.

    cond, uncond: [B, tokens, d]; pooled, pooled_uncond: [B, p]; time_ids: [B, 6].
    """

    cond: Tensor
    uncond: Tensor
    pooled: Tensor | None = None
    pooled_uncond: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.cond)

    def select(self, index: slice | Sequence[int]) -> PromptConditions:
        """The conditions of some rows: a slice or a list of row numbers (which may repeat)."""
        index = index if isinstance(index, slice) else list(index)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return PromptConditions(**{name: None if v is None else v[index] for name, v in values.items()})


def denoiser_of(pipe) -> nn.Module:
    """The network that a pipeline calls in every step: its U-Net, or the transformer that stands in its place.

    Raises ValueError for pipelines that have neither, and for transformers in another layout than Stable Diffusion 3's
    (FLUX packs its latents and has no rows for the negative prompt).
    """
    if getattr(pipe, "unet", None) is not None:
        return pipe.unet
    model = getattr(pipe, "transformer", None)
    if model is None or "joint_attention_dim" not in model.config or "pos_embed_max_size" not in model.config:
        raise ValueError(
            f"{type(pipe).__name__} calls {type(model).__name__}, expected a U-Net or an SD3Transformer2DModel: sample "
            "with its own call (for rounds of feedback, FeedbackLoop(..., call={}))"
        )
    return model


def has_text_encoder(pipe) -> bool:
    """Whether a pipeline can encode texts: SDXL's refiner has its second encoder only."""
    return any(getattr(pipe, name, None) is not None for name in ("text_encoder", "text_encoder_2"))


def check_size_condition(unet, pooled_width: int) -> None:
    """Raise ValueError unless a U-Net with pooled texts takes SDXL's six numbers on the picture's size and crop."""
    config = unet.config
    numbers = (config.projection_class_embeddings_input_dim - pooled_width) // config.addition_time_embed_dim
    if numbers != 6:
        kind = "it is SDXL's refiner" if numbers == 5 else f"pooled text of width {pooled_width}"
        raise ValueError(f"the U-Net takes {numbers} numbers on size and crop ({kind}), expected 6: use the base model")


def encode_prompts(
    pipe,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
) -> PromptConditions:
    """Encode prompts with the pipeline's own text encoder(s); equal (prompt, negative) pairs are encoded once.

    negative_prompts=None is the pipeline's default (the empty prompt; zeros for SDXL). height, width in pixels: SDXL's
    size condition, by default the pipeline's native size. Gradients flow if a text encoder requires them.
    """
    if not prompts:
        raise ValueError("got no prompts: expected at least one")
    if negative_prompts is not None and len(negative_prompts) != len(prompts):
        raise ValueError(f"got {len(negative_prompts)} negative prompts for {len(prompts)} prompts: give one each")
    if not has_text_encoder(pipe):
        raise ValueError(f"{type(pipe).__name__} has no text encoder: load one, or give embedded texts (`conditions`)")
    pairs = [(str(p), None if negative_prompts is None else str(negative_prompts[i])) for i, p in enumerate(prompts)]
    unique = list(dict.fromkeys(pairs))
    denoiser = denoiser_of(pipe)
    further = {} if hasattr(pipe, "unet") else {"prompt_2": None, "prompt_3": None}  # SD3 asks for them by name
    with _long_prompts_in_one_line(pipe, [p for p, _ in unique]):
        encoded = pipe.encode_prompt(
            prompt=[p for p, _ in unique],
            **further,
            device=execution_device(denoiser),
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=None if negative_prompts is None else [n for _, n in unique],
        )
    cond, uncond, *pooled = encoded  # SDXL and SD3 return two pooled embeddings as well
    extra = {}
    if pooled:
        extra = {"pooled": pooled[0], "pooled_uncond": pooled[1]}
    if pooled and not further:
        check_size_condition(denoiser, pooled[0].shape[-1])
        native = denoiser.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        height, width = height or native, width or native
        # original size, crop corner, target size
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=cond.dtype, device=cond.device)
        extra["time_ids"] = time_ids.expand(len(unique), -1)
    conditions = PromptConditions(cond=cond, uncond=uncond, **extra)
    return conditions.select([unique.index(pair) for pair in pairs])


def long_prompts(pipe, prompts: Sequence[str]) -> tuple[list[str], int]:
    """(The prompts of which a pipeline's text encoder does not read the end, how many tokens it reads).

    A pipeline with a T5 (Stable Diffusion 3) reads them further than CLIP does: none is long then.
    """
    tokenizer = getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
    if tokenizer is None or getattr(pipe, "tokenizer_3", None) is not None:
        return [], 0
    most = tokenizer.model_max_length
    candidates = [p for p in prompts if len(p.encode("utf-8", "replace")) + 2 > most]  # a token is a byte at least
    return [p for p in candidates if len(tokenizer(p, verbose=False)["input_ids"]) > most], most


@contextmanager
def _long_prompts_in_one_line(pipe, prompts: Sequence[str]) -> Iterator[None]:
    """Inside, diffusers prints nothing about prompts that are cut: that would be all of their tokens, each time."""
    cut, most = long_prompts(pipe, prompts)
    if not cut:
        yield
        return
    told = f"the text encoder reads {most} tokens of a prompt, the rest is cut: {cut[0][:60]!r}"
    warnings.warn(told + (f" and {len(cut) - 1} more" if len(cut) > 1 else ""), LabkitWarning, stacklevel=4)
    with _errors_only():
        yield


@contextmanager
def _errors_only() -> Iterator[None]:
    """Inside, diffusers and transformers say nothing but errors."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = [(log, log.get_verbosity()) for log in (diffusers_logging, transformers_logging)]
    try:
        for log, _ in before:
            log.set_verbosity_error()
        yield
    finally:
        for log, verbosity in before:
            log.set_verbosity(verbosity)


def unet_output(
    unet,
    x_t: Tensor,
    t: Timestep,
    conditions: PromptConditions,
    *,
    guidance_scale: float = 1.0,
    negative_model: Mapping[str, float] | nn.Module | None = None,
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): eps_uncond + g (eps_cond - eps_uncond), the U-Net's guided output
    [B, C, h, w] in float32, in whatever the network predicts (epsilon, v, ...).

    x_t: [B, C, h, w] (scaled by the scheduler where it wants that); t: int or LongTensor [B], for a transformer of flow
    matching 1000 sigma, a float Tensor [B] or []. One call of 2B rows, or of B rows when guidance_scale is 1
    (conditional only). Conditions with pooled text and no size condition say that `unet` is such a transformer.
    negative_model: the unconditional half is a call of its own, of another U-Net or of this one with exactly these
    adapters (name -> scale; {} is the bare base model).
    """
    if len(conditions) != len(x_t):
        raise ValueError(f"got conditions for {len(conditions)} images but {len(x_t)} latents: expected equal numbers")

    def call(labels: list[str], text: list[Tensor], pooled: list[Tensor | None], unet=unet) -> Tensor:
        device = execution_device(unet)

        def rows(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).to(device, unet.dtype)  # [B, ...] or [2B, ...]

        times = torch.cat([t] * len(text)).to(device) if isinstance(t, Tensor) and t.ndim == 1 else t
        if conditions.pooled is not None and conditions.time_ids is None:
            with labelled_rows([label for label in labels for _ in range(len(x_t))]):
                return unet(
                    hidden_states=rows([x_t] * len(text)),
                    timestep=torch.as_tensor(times, device=device).expand(len(text) * len(x_t)),
                    encoder_hidden_states=rows(text),
                    pooled_projections=rows(pooled),
                    return_dict=False,
                )[0].float()
        added = None
        if conditions.pooled is not None:
            added = {"text_embeds": rows(pooled), "time_ids": rows([conditions.time_ids] * len(text))}
        with labelled_rows([label for label in labels for _ in range(len(x_t))]):
            return unet(
                rows([x_t] * len(text)),
                times,
                encoder_hidden_states=rows(text),
                added_cond_kwargs=added,
                return_dict=False,
            )[0].float()

    c = conditions
    if guidance_scale == 1.0:
        return call(["cond"], [c.cond], [c.pooled])
    if negative_model is None:
        uncond, cond = call(["uncond", "cond"], [c.uncond, c.cond], [c.pooled_uncond, c.pooled]).chunk(2)
    else:
        other = isinstance(negative_model, nn.Module)
        with nullcontext() if other else use_adapters(unet, negative_model):
            uncond = call(["uncond"], [c.uncond], [c.pooled_uncond], unet=negative_model if other else unet)
        cond = call(["cond"], [c.cond], [c.pooled])
    return uncond + guidance_scale * (cond - uncond)


def predict_noise(
    pipe, x_t: Tensor, t: Timestep, conditions: PromptConditions, *, guidance_scale: float = 1.0
) -> Tensor:
    """The pipeline's guided noise prediction [B, C, h, w], float32, whatever its prediction_type. See `unet_output`."""
    output = unet_output(pipe.unet, x_t, t, conditions, guidance_scale=guidance_scale)
    scheduler = pipe.scheduler
    return to_epsilon(output, x_t.float(), t, scheduler.alphas_cumprod, scheduler.config.prediction_type)
