"""`with fabric(pipe, ...)` for Stable Diffusion 3 and FLUX: what a session must know of joint-attention transformers.

The session itself is `session`; here is what is different: the names of the call's arguments, flow matching in place of
a diffusion schedule, packed latents (FLUX), and which rows are unconditional. SD3 stacks them like a U-Net's pipeline;
FLUX makes a call of its own for the negative prompt, and without one (its guidance is distilled) there is no
unconditional row that dislikes could act through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from labkit.diffusion import execution_device, row_labels
from labkit.fabric.cache import digest_of
from labkit.fabric.caller import Caller, labels_of
from labkit.fabric.joint import JOINT_PROCESSORS, JointProcessor, flow_reference, joint_attentions, transformer_of
from labkit.fabric.processor import Layer
from labkit.fabric.reference_pass import Job, ReferencePass
from labkit.fabric.session import Session
from labkit.fabric.settings import FabricError
from labkit.fabric.unet import call_arguments, one_timestep

MODEL_TIME = 1000  # FLUX is given sigma, SD3 1000 sigma


class JointPass(ReferencePass):
    """The reference pass of a transformer. `sigma_of` gives the noise level of a timestep."""

    def __init__(self, pipe, settings, context, cache, **options):
        for name in ("adain", "fused"):
            if getattr(settings, name):
                raise FabricError(f"{name} works with U-Nets only: leave it out for {type(pipe).__name__}")
        super().__init__(pipe, settings, context, cache, **options)
        self.sigma_of = None
        self.text_options: dict[str, Any] = {}  # how the running pipeline encodes texts

    def _model(self, pipe):
        return pipe.transformer

    def _check_texts(self) -> None:
        needed = getattr(type(self.pipe), "needed_encoders", ("text_encoder", "text_encoder_2"))
        if any(getattr(self.pipe, name, None) is None for name in needed):
            raise FabricError(
                f"{type(self.pipe).__name__} has no text encoder for the reference prompt: load one, or give "
                "reference_prompt=None (the text of the generated rows)"
            )

    def size_of(self, call: dict) -> torch.Size:
        if "img_ids" not in call:
            return call["sample"].shape[2:]
        ids, tokens = call["img_ids"].reshape(-1, 3), call["sample"].shape[1]  # FLUX: one token for 2 x 2 of the latent
        height, width = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
        if height * width != tokens:
            raise FabricError(
                f"{tokens} image tokens on a grid of {height} x {width}: FABRIC needs the picture alone, no image "
                "beside it (Kontext)"
            )
        return torch.Size((2 * height, 2 * width))

    def _noised(self, latent: Tensor, noise: Tensor, t: float) -> Tensor:
        return flow_reference(latent, noise, self.sigma_of(t))

    @torch.no_grad()
    def _text(self, call: dict, rows: tuple[int, ...], size: torch.Size) -> tuple:
        """(text [1, tokens, d], pooled [1, p], None, digest) of the reference rows."""
        prompt, sigma = self.settings.reference_prompt, torch.tensor(self.sigma_of(self.context.t))
        if prompt is None:
            text, pooled = (call[name][list(rows)] for name in ("encoder_hidden_states", "pooled_projections"))
            if not bool((text == text[:1]).all() and (pooled == pooled[:1]).all()):
                raise FabricError(
                    "the rows have different texts: give reference_prompt='' or one text for all references"
                )
            text, pooled = text[:1], pooled[:1]
        else:
            key = str(self.text_options)
            if key not in self._texts:
                ask = {"device": execution_device(self.unet)} | self.text_options
                if "img_ids" in call:
                    self._texts[key] = self.pipe.encode_prompt(prompt, None, **ask)[:2]
                else:
                    encoded = self.pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False, **ask)
                    self._texts[key] = encoded[0], encoded[2]
            text, pooled = self._texts[key]
        return text, pooled, None, digest_of(text, pooled, sigma, call.get("guidance"))

    def _run(self, jobs: list[Job], call: dict) -> None:
        own, self.context.text_tokens = self.context.text_tokens, jobs[0].text.shape[1]
        try:
            super()._run(jobs, call)
        finally:
            self.context.text_tokens = own

    def _arguments(self, jobs: list[Job], call: dict) -> dict:
        """No ControlNet residuals, no image prompt, no skipped layers: references and their text alone."""
        sample, n, t = call["sample"], len(jobs), call["timestep"]
        x = torch.stack([job.x for job in jobs])  # [R, C, h, w]
        x = pack(x) if "img_ids" in call else x
        channels, given = self.unet.config.in_channels, x.shape[-1 if "img_ids" in call else 1]
        if channels != given:
            raise FabricError(f"the transformer takes {channels} channels, the references have {given}: expected equal")
        text = torch.cat([job.text for job in jobs]).to(sample.device, sample.dtype)
        lora = {k: v for k, v in (call.get("joint_attention_kwargs") or {}).items() if k == "scale"}
        arguments = {
            "hidden_states": x.to(sample.device, sample.dtype),
            "encoder_hidden_states": text,
            "pooled_projections": torch.cat([job.pooled for job in jobs]).to(sample.device, sample.dtype),
            "timestep": t.flatten()[:1].repeat(n),
            "joint_attention_kwargs": lora or None,
        }
        if "img_ids" in call:
            ids, guidance = call["txt_ids"], call.get("guidance")
            same = ids.shape[-2] == text.shape[1]
            arguments["img_ids"] = call["img_ids"]
            arguments["txt_ids"] = ids if same else ids.new_zeros(text.shape[1], 3)
            arguments["guidance"] = None if guidance is None else guidance[:1].repeat(n)
        return arguments


class JointSession(Session):
    """A `Session` on an SD3Transformer2DModel or a FluxTransformer2DModel."""

    kind = "transformer"
    processors = JOINT_PROCESSORS
    hook = JointProcessor
    reader = JointPass

    def __init__(self, pipe, references, settings, **options):
        self._only_conditional = self._read_unconditional = False
        super().__init__(pipe, references, settings, **options)
        self._pass.sigma_of = self.sigma_at

    def sigma_at(self, t: float) -> float:
        """The noise level of a timestep: the scheduler's while a pipeline is running, else t / train steps."""
        steps = self.scheduler.config.num_train_timesteps
        if not self._own_loop:
            timesteps = self.scheduler.timesteps.float().cpu()
            index = int((timesteps - t).abs().argmin())
            if abs(float(timesteps[index]) - t) <= 1e-2 * max(1.0, t):  # half precision rounds FLUX's timesteps
                return float(self.scheduler.sigmas[index])
        return min(max(t / steps, 0.0), 1.0)

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None and self._only_conditional and not self._read_unconditional:
            super()._without_unconditional()
        super().__exit__(kind, error, traceback)

    # ---- what a call is ----------------------------------------------------------------------------------------------

    def _model(self, pipe):
        return transformer_of(pipe)

    def _layers(self):
        return joint_attentions(self.unet)

    def _arguments(self, args: tuple, kwargs: dict) -> dict:
        call = call_arguments(self.unet, args, kwargs)
        self._context.text_tokens = call["encoder_hidden_states"].shape[1]
        return call | {"sample": call["hidden_states"]}

    def _timestep(self, call: dict) -> float:
        return one_timestep(call["timestep"]) * (MODEL_TIME if "img_ids" in call else 1)

    def _labels(self, call: dict, caller: Caller | None) -> tuple[str, ...]:
        labels = joint_labels(call, caller)
        self._read_unconditional |= "uncond" in labels
        return labels

    def _running(self, call: dict) -> list[Layer]:
        skipped = call.get("skip_layers") or ()
        return [layer for layer, _ in self._attentions if int(layer.name.split(".")[1]) not in skipped]

    def _without_unconditional(self) -> None:
        self._only_conditional = True  # they may have a call of their own: known on leaving

    def _listen(self, caller: Caller | None) -> None:
        super()._listen(caller)
        length = None if caller is None else caller.variables.get("max_sequence_length")
        self._pass.text_options = {} if length is None else {"max_sequence_length": length}

    def _read_schedule(self) -> None:
        config = self.scheduler.config
        flow = "FlowMatch" in type(self.scheduler).__name__ or config.get("use_flow_sigmas")
        if not flow or config.get("invert_sigmas"):
            raise FabricError(
                f"{type(self.scheduler).__name__} is no schedule of flow matching whose sigma goes from 1 to 0: "
                "references cannot be noised to its steps"
            )

    def _train_steps(self) -> int:
        return self.scheduler.config.num_train_timesteps + 1  # so that noise is t = train steps, not one less

    def _timesteps(self) -> list[float]:
        if self.steps is not None and self._own_loop and self.scheduler.config.get("use_dynamic_shifting"):
            raise FabricError(
                "the scheduler's timesteps depend on the size of the picture: call its set_timesteps(..., mu=...) "
                "yourself and leave out steps, or take clock='training'"
            )
        return super()._timesteps()


def pack(latents: Tensor) -> Tensor:
    """FLUX's tokens: [N, C, h, w] -> [N, h/2 w/2, 4 C], one token for every square of 2 x 2, channels first."""
    n, c, h, w = latents.shape
    squares = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)  # [N, h/2, w/2, C, 2, 2]
    return squares.reshape(n, h * w // 4, 4 * c)


def joint_labels(call: Mapping[str, Any], caller: Caller | None) -> tuple[str, ...]:
    """ "cond" or "uncond" for every row, as `labels_of` for U-Nets.

    SD3 stacks [uncond, cond], and its call with skipped layers (skip-layer guidance) is conditional. FLUX's rows are
    all of one kind: those of the call whose text is the negative one are unconditional.

    Raises:
        FabricError: the rows cannot be told apart with certainty.
    """
    rows = len(call["sample"])
    if row_labels() is not None or caller is None:
        return labels_of(call, caller)
    if call.get("skip_layers") is not None:
        return ("cond",) * rows
    if "do_true_cfg" not in caller.variables:
        return labels_of(call, caller)
    if not caller.variables["do_true_cfg"]:
        return ("cond",) * rows
    text, found = call["encoder_hidden_states"], {}
    for label, name in (("cond", "prompt_embeds"), ("uncond", "negative_prompt_embeds")):
        known = caller.variables.get(name)
        if known is text:
            return (label,) * rows
        found[label] = isinstance(known, Tensor) and known.shape == text.shape and bool((known.to(text) == text).all())
    if found["cond"] == found["uncond"]:
        raise FabricError(
            "it cannot be told whether this call's text is the prompt or the negative prompt: wrap the call in "
            "labkit.diffusion.labelled_rows([...])"
        )
    return ("cond" if found["cond"] else "uncond",) * rows
