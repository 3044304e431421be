"""Published judges of photographs for the gpu tier, through transformers, with the signature of all scorers.

    pickscore     CLIP ViT-H/14 fine-tuned on Pick-a-Pic (arXiv 2305.01569): logit scale * cosine
    hpsv2.1       the same on HPDv2 (arXiv 2306.09341)
    imagereward   BLIP with cross-attention and an MLP (arXiv 2304.05977): (output - mean) / std
    aesthetic     an MLP on CLIP ViT-L/14 image embeddings (LAION): about 1 .. 10, ignores the prompt
    clip-iqa      CLIP asked whether it is a good or a bad photo (arXiv 2207.12396): 0 .. 1, ignores the prompt

Only safetensors are read, never pickles. PickScore comes from the hub as it is, and CLIP-IQA needs no weights but those
of the tier's CLIP; of the others only pickles are published by their authors, so give a folder (`folder=` or
LABKIT_MODELS/<name>) with config and model.safetensors in the layout that the builders below describe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from labkit.dpo.scorers import Scorer, clip_image_features, clip_text_features
from labkit.models import ModelLoadError, load_clip
from labkit.models.paths import local_model

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PICKSCORE = "yuvalkirstain/PickScore_v1"
IMAGEREWARD_MEAN, IMAGEREWARD_STD = 0.16717362830052426, 1.0333394966054072
NAMES = ("pickscore", "hpsv2.1", "imagereward", "aesthetic", "clip-iqa")
OPPOSITES = {
    "quality": ("Good photo.", "Bad photo."),
    "sharpness": ("Sharp photo.", "Blurry photo."),
    "noisiness": ("Clean photo.", "Noisy photo."),
    "brightness": ("Bright photo.", "Dark photo."),
    "colourfulness": ("Colorful photo.", "Dull photo."),
    "contrast": ("High contrast photo.", "Low contrast photo."),
    "naturalness": ("Natural photo.", "Synthetic photo."),
}  # of the paper's and of torchmetrics' questions; American spelling is part of what CLIP read


def load_scorer(name: str, device: torch.device | str = "cuda", *, folder: str | Path | None = None) -> Scorer:
    """One of NAMES, ready to be called. Raises ModelLoadError if its weights are not there."""
    if name not in NAMES:
        raise ModelLoadError(f"scorer is {name!r}, expected one of {', '.join(NAMES)}")
    source = Path(folder) if folder is not None else local_model(name)
    if name == "clip-iqa":
        return clip_iqa(*load_clip("gpu", device, folder=source))
    if name == "pickscore" and source is None:
        source = local_model(PICKSCORE)
    if source is None and name != "pickscore":
        raise ModelLoadError(f"{name} is published as a pickle only: convert it to safetensors and give its folder=")
    if name in ("pickscore", "hpsv2.1"):
        clip, inputs = load_clip("gpu", device, folder=source if source is not None else hub_folder(PICKSCORE))
        return clip_preference(name, clip, inputs)
    if name == "aesthetic":
        clip, inputs = load_clip("gpu", device)
        head = mlp(clip.config.projection_dim)
        load_strictly(head, load_file(source / "model.safetensors"), source)
        return aesthetic(clip, inputs, head.to(device).eval().requires_grad_(False))
    return load_imagereward(source, device)


def hub_folder(repository: str) -> Path:
    """Download (or find in the cache) the files of a hub model that transformers needs, no pickles."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:
        raise ModelLoadError(
            f"{repository} could not be fetched ({type(error).__name__}): put a copy into LABKIT_MODELS or give folder="
        ) from error


def clip_preference(name: str, clip, inputs) -> Scorer:
    """PickScore and HPSv2: logit scale * cosine, so that sigmoid(score_a - score_b) is P(a is preferred)."""

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        pictures, texts = clip_image_features(clip, inputs, images), clip_text_features(clip, inputs, prompts)
        return clip.logit_scale.exp() * (pictures * texts).sum(-1)

    return Scorer(name, score)


def mlp(width: int) -> nn.Sequential:
    """The head that LAION's aesthetic predictor and ImageReward share: five linear layers without activations.

    The dropouts keep the published numbering 0, 2, 4, 6, 7 of the linear layers.
    """
    return nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip


def aesthetic(clip, inputs, head: nn.Module) -> Scorer:
    """LAION's aesthetic predictor: the head on unit-length CLIP image embeddings."""
    return Scorer("aesthetic", lambda images, prompts: head(clip_image_features(clip, inputs, images)).squeeze(-1))


def clip_iqa(clip, inputs, *, asks: str = "quality") -> Scorer:
    """CLIP-IQA: the probability, by CLIP, of the better one of two opposite sentences; the prompt is not read.

    Here with any CLIPModel at its own picture size. The paper has the ResNet-50 tower without its position embedding,
    which keeps pictures at their size: values of the two are not to be compared.

    Args:
        asks: one of OPPOSITES.
    """
    if asks not in OPPOSITES:
        raise ValueError(f"asks is {asks!r}, expected one of {', '.join(OPPOSITES)}")
    with torch.no_grad():
        both = clip_text_features(clip, inputs, OPPOSITES[asks])  # [2, d]

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        logits = clip.logit_scale.exp() * clip_image_features(clip, inputs, images) @ both.T  # [B, 2]
        return logits.softmax(-1)[:, 0]

    return Scorer(f"clip-iqa-{asks}/1", score)


class ImageRewardNet(nn.Module):
    """BLIP's vision tower, its text encoder with cross-attention, and the MLP on the first text token."""

    def __init__(self, config):
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.mlp = mlp(config.text_config.hidden_size)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """pixels [B, 3, S, S] normalised; input_ids, attention_mask [B, T] -> rewards [B]."""
        seen = self.vision_model(pixel_values=pixels).last_hidden_state  # [B, patches + 1, d]
        read = self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=seen
        ).last_hidden_state  # [B, T, d]
        return (self.mlp(read[:, 0]).squeeze(-1) - IMAGEREWARD_MEAN) / IMAGEREWARD_STD


def imagereward(net: ImageRewardNet, tokenizer, *, image_size: int = 224, context: int = 35) -> Scorer:
    """The network as a judge. Images are resized (bicubic, antialiased); prompts are cut to `context` tokens."""
    device = next(net.parameters()).device
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        images = F.interpolate(images.to(device).float(), (image_size, image_size), mode="bicubic", antialias=True)
        pixels = (images.clamp(-1, 1) / 2 + 0.5 - mean) / std
        tokens = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=context, return_tensors="pt"
        )
        return net(pixels, tokens["input_ids"].to(device), tokens["attention_mask"].to(device))

    return Scorer("imagereward", score)


def imagereward_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the published ImageReward checkpoint -> names of `ImageRewardNet`; unused parts are dropped."""
    renamed = {}
    for name, tensor in published.items():
        if name.startswith("mlp.layers."):
            renamed["mlp." + name.removeprefix("mlp.layers.")] = tensor
        elif name.startswith("blip.text_encoder.") and not name.endswith("position_ids"):
            renamed[name.removeprefix("blip.")] = tensor
        elif name.startswith("blip.visual_encoder."):
            renamed["vision_model." + _vision_name(name.removeprefix("blip.visual_encoder."))] = tensor
    return renamed


def _vision_name(name: str) -> str:
    whole = {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding",
        "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
        "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
        "norm.weight": "post_layernorm.weight",
        "norm.bias": "post_layernorm.bias",
    }
    if name in whole:
        return whole[name]
    name = name.replace("blocks.", "encoder.layers.").replace(".attn.proj.", ".self_attn.projection.")
    return name.replace(".attn.", ".self_attn.").replace(".norm1.", ".layer_norm1.").replace(".norm2.", ".layer_norm2.")


def load_imagereward(folder: Path, device: torch.device | str) -> Scorer:
    """From a folder with a BlipConfig (config.json), a BERT tokenizer and model.safetensors in either naming."""
    from transformers import AutoTokenizer, BlipConfig

    if not (folder / "model.safetensors").is_file() or not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{folder} needs config.json (a BlipConfig), a tokenizer and model.safetensors: convert it"
        )
    state = load_file(folder / "model.safetensors")
    net = ImageRewardNet(BlipConfig.from_pretrained(str(folder), local_files_only=True))
    load_strictly(net, imagereward_state(state) if any(k.startswith("blip.") for k in state) else state, folder)
    net.eval().requires_grad_(False).to(device)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return imagereward(net, tokenizer, image_size=net.vision_model.config.image_size)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Every weight of the module from the state, none left over; otherwise a ModelLoadError of one line."""
    state = {name.removeprefix("layers."): tensor for name, tensor in state.items()}
    buffers = {name for name, _ in module.named_buffers()}
    missing = sorted(set(module.state_dict()) - set(state) - buffers)
    unknown = sorted(set(state) - set(module.state_dict()))
    if missing or unknown:
        raise ModelLoadError(f"{source} does not fit: missing {missing[:2]}, unknown {unknown[:2]}: convert it again")
    module.load_state_dict(state, strict=False)
