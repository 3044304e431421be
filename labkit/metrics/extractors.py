"""Feature extractors: callables from pictures to features [N, d] that know their fingerprint.

Factories return an `Extractor`; every one takes the same pictures (PIL, uint8 or float tensors), so each can replace
another. The metrics themselves only ever see features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.metrics.gaussian import Fingerprint, GaussianStats
from labkit.metrics.images import PIPELINES, ImagePipeline, batches, range_of


class Extractor:
    """pictures -> features [N, d] float32 on the CPU.

    Args:
        name: network and layer, for the fingerprint.
        network: function from the pipeline's output [B, 3, s, s] to features [B, d].
        pipeline: how pictures become network input.
        module: the nn.Module whose weights are hashed, moved to `device` and put into eval mode (None: `network` if it
            is one).
        device: where the network runs. batch_size: pictures per forward pass.
        dtype: of the network. float64 makes features independent of the batch size.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[Tensor], Tensor],
        pipeline: ImagePipeline,
        *,
        module: nn.Module | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.network, self.pipeline = name, network, pipeline
        self.module = network if module is None and isinstance(network, nn.Module) else module
        self.device, self.batch_size, self.dtype = torch.device(device), batch_size, dtype
        if self.module is not None:
            self.module.to(device=self.device, dtype=dtype).eval()

    def fitting(self, fit: str) -> Extractor:
        """The same network behind another way to make pictures square: "squash", "crop" or "clip"."""
        pipeline = replace(self.pipeline, fit=fit)
        options = {"device": self.device, "batch_size": self.batch_size, "dtype": self.dtype}
        return Extractor(self.name, self.network, pipeline, module=self.module, **options)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Name, sha256 of the weights (computed once) and image pipeline."""
        weights = weights_sha256(self.module) if self.module is not None else ""
        return Fingerprint(self.name, weights, self.pipeline.describe())

    @torch.no_grad()
    def __call__(self, images: object, *, value_range: tuple[float, float] | None = None) -> Tensor:
        """Features of a batch of pictures of any size.

        Args:
            images: tensor [N, 3, H, W] or a list of what `labkit.images.read_levels` takes (files, PIL, arrays, ...).
            value_range: of float pictures. None: the one that all of them together can have, see `labkit.images`.

        Raises:
            ValueError: pictures in another range or shape, or a network that does not return [N, d].
        """
        if self.module is not None and any(part.training for part in self.module.modules()):
            self.module.eval()  # somebody has called .train() since, on all of it or on a part
        if value_range is None:
            value_range = range_of(images)
        parts = []
        for batch in batches(images, self.batch_size):
            pixels = self.pipeline(batch, value_range=value_range).to(device=self.device, dtype=self.dtype)
            features = self.network(pixels)
            if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(pixels):
                shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                raise ValueError(f"{self.name} returned {shape} for {len(pixels)} images: it must return [N, d]")
            parts.append(features.float().cpu())
        if not parts:
            raise ValueError("there are no images: pass at least one")
        return torch.cat(parts)

    def stats(
        self, image_batches: Iterable[object], *, ddof: int = 1, value_range: tuple[float, float] | None = None
    ) -> GaussianStats:
        """Gaussian statistics of a stream of image batches, with the fingerprint; the features are not kept."""
        stats = GaussianStats(ddof=ddof, fingerprint=self.fingerprint)
        for batch in image_batches:
            stats.update(self(batch, value_range=value_range))
        return stats


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a module's state, in name order; the device does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def reader_extractor(reader: nn.Module | None = None, *, device: torch.device | str = "cpu") -> Extractor:
    """Penultimate features of the AttributeReader, the course's stand-in for Inception (None: load the shipped one)."""
    if reader is None:
        from labkit.models import load_reader

        reader = load_reader()
    return Extractor(
        "attribute-reader/penultimate", reader.features, PIPELINES["portrait-64"], module=reader, device=device
    )


def clip_extractor(
    tier: str = "cpu", *, clip: tuple[nn.Module, object] | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """Unit-norm image embeddings of a transformers CLIPModel.

    Args:
        tier: whose CLIP to load: PortraitCLIP ("smoke", "cpu") or a published one ("gpu").
        clip: what `labkit.models.load_clip` returns, if it is loaded already: (model, inputs), where inputs has
            `image_size`, `mean` and `std`.
    """
    model, inputs = clip or _load_clip(tier)
    pipeline = ImagePipeline(
        f"clip-{inputs.image_size}", inputs.image_size, "bicubic-antialias", tuple(inputs.mean), tuple(inputs.std)
    )

    def embed(pixels: Tensor) -> Tensor:
        return F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)

    name = f"clip-{model.config.vision_config.hidden_size}x{model.config.vision_config.num_hidden_layers}/image"
    return Extractor(name, embed, pipeline, module=model, device=device)


@torch.no_grad()
def clip_text_embeddings(
    texts: Sequence[str], tier: str = "cpu", *, clip: tuple[nn.Module, object] | None = None, batch_size: int = 64
) -> Tensor:
    """Unit-norm text embeddings [N, d] float32 on the CPU, to go with `clip_extractor` in `clip_score`."""
    model, inputs = clip or _load_clip(tier)
    device, parts = next(model.parameters()).device, []
    for start in range(0, len(texts), batch_size):
        tokens = inputs(list(texts[start : start + batch_size]))
        tokens = {name: tensor.to(device) for name, tensor in tokens.items()}
        parts.append(F.normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1).float().cpu())
    if not parts:
        raise ValueError("there are no texts: pass at least one")
    return torch.cat(parts)


def inception_extractor(
    weights: str | Path | None = None,
    *,
    layer: str = "pool3",
    pipeline: str = "clean-299",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Extractor:
    """The FID Inception network.

    Args:
        weights: a .safetensors file with the state dict of pytorch-fid's or torch-fidelity's network. None takes the
            weights from an installed torch-fidelity (extra `gpu`), which downloads them on first use.
        layer: "pool3" (2048 features: FID, KID), "logits" (1008, without bias: Inception Score), or a lower layer as
            in pytorch-fid: "pool1" (64), "pool2" (192), "preaux" (768). Their values are not FID.
        pipeline: "clean-299" (antialiased, as clean-fid), "legacy-299" (TF1 bilinear, as published FIDs and
            torch-fidelity) or "pytorch-fid-299". Values of different pipelines are not comparable.

    Raises:
        FileNotFoundError, ValueError: missing or foreign weights.
        ModuleNotFoundError: neither weights nor torch-fidelity.
    """
    from labkit.metrics.inception_net import LAYERS, load_fid_inception

    if layer not in LAYERS:
        raise ValueError(f"unknown layer {layer!r}: use one of {', '.join(LAYERS)}")
    names = [name for name in PIPELINES if name.endswith("-299")]
    if pipeline not in names:
        raise ValueError(f"unknown pipeline {pipeline!r}: use one of {', '.join(names)}")
    network = _inception_from_torch_fidelity() if weights is None else load_fid_inception(weights)
    function = network if layer == "pool3" else partial(network.features, layer=layer)
    return Extractor(
        f"inception-2015-12-05/{layer}", function, PIPELINES[pipeline], module=network, device=device, dtype=dtype
    )


def _inception_from_torch_fidelity() -> nn.Module:
    from labkit.metrics.inception_net import WANTED, from_state_dict

    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ModuleNotFoundError(f"no weights were given and torch-fidelity is not installed: {WANTED}") from error
    return from_state_dict(FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict(), "torch-fidelity")


def _load_clip(tier: str) -> tuple[nn.Module, object]:
    from labkit.models import load_clip

    return load_clip(tier)
