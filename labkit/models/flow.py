"""PortraitFlow: Stable Diffusion 3's pipeline with one small text encoder, that of PortraitSD."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from labkit.errors import LabkitWarning

TOKENS = 32  # the longest caption of the course has 32 tokens; every further one would only cost time


class PortraitFlowPipeline(StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` with an `encode_prompt` for one CLIP text encoder; all else is diffusers' own.

    The transformer is given the encoder's last states [B, 32, 128], as the U-Net of PortraitSD is, and the state at the
    end of the text [B, 128] as pooled text. The second CLIP and T5 are None. Plain `StableDiffusion3Pipeline` loads a
    saved folder too (`text_encoder_2=None` and so on) and runs it, given these embeddings in place of a prompt.
    """

    needed_encoders = ("text_encoder",)  # what `encode_prompt` calls

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: None = None,
        prompt_3: None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: None = None,
        negative_prompt_3: None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        **unused,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """(states, states of the negative prompt, pooled, pooled of the negative prompt), as the base class returns
        them; the negative prompt is empty by default, and None without guidance.

        Raises:
            ValueError: a text for an encoder that this pipeline does not have.
        """
        if any((prompt_2, prompt_3, negative_prompt_2, negative_prompt_3)):
            raise ValueError(
                "prompt_2 and prompt_3 are for further text encoders, this pipeline has one: leave them out"
            )
        device = device or self._execution_device
        if prompt_embeds is None:
            prompt_embeds, pooled_prompt_embeds = self._encode(prompt, device, num_images_per_prompt)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            rows = len(prompt_embeds) // num_images_per_prompt
            texts = negative_prompt or ""
            texts = [texts] * rows if isinstance(texts, str) else list(texts)
            if len(texts) != rows:
                raise ValueError(
                    f"got {len(texts)} negative prompts for {rows} prompts: give one for each, or a string"
                )
            encoded = self._encode(texts, device, num_images_per_prompt)
            negative_prompt_embeds, negative_pooled_prompt_embeds = encoded
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def _encode(self, texts: str | Sequence[str], device, copies: int) -> tuple[Tensor, Tensor]:
        """States [B * copies, 32, 128] and pooled text [B * copies, 128]."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        lengths = [len(ids) for ids in self.tokenizer(texts)["input_ids"]]
        if max(lengths) > TOKENS:
            warnings.warn(
                f"a prompt has {max(lengths)} tokens, PortraitFlow reads {TOKENS}: its end is cut off",
                LabkitWarning,
                stacklevel=4,
            )
        ids = self.tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        encoded = self.text_encoder(ids["input_ids"].to(device))
        states, pooled = encoded.last_hidden_state, encoded.pooler_output
        return states.repeat_interleave(copies, 0), pooled.repeat_interleave(copies, 0)
