"""What can be set, checked once, and the settings that the published implementations use, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from labkit.errors import LabkitError, LabkitWarning
from labkit.fabric.schedule import SHAPES

BACKENDS = ("sdpa", "lse")
CLOCKS = ("steps", "training")
NOISES = ("step", "image")


class FabricError(LabkitError):
    """FABRIC cannot do what it was asked for."""


class FabricWarning(LabkitWarning):
    """The result will probably not be what was meant."""


@dataclass(frozen=True)
class Settings:
    """How references are weighted, when, and where.

    max_weight, min_weight   weight of a reference token inside and outside the window; 1 counts it like an own token
    start, end               the window as fractions of the denoising process, 0 is pure noise
    shape                    "boxcar", "linear" or "cosine" inside the window
    clock                    window in "steps" (the paper's code) or "training" time (its web UI)
    end_included             whether the step at `end` is inside a window in steps (True in the paper's code)
    negative_scale           weight of dislikes relative to likes
    bottleneck_scale         ramp over the blocks of the U-Net, from 1 outermost to this in the middle: 1 is flat
    depths                   only blocks between these depths read references: 0 is outermost, 1 the middle of the U-Net
    count_normalized         divide by the number of references of a sign, so that eight weigh like one
    zero_padding             the sign with fewer references, or none, is filled up with tokens whose K and V are zero:
                             they draw attention and give nothing (so does the ComfyUI node)
    mass_cap                 largest share of attention that the references of a sign may get ("lse" only)
    backend                  "sdpa": one call with a bias. "lse": two attentions merged, which gives the mass
    reference_prompt         text of the reference pass; None takes the text of the generated rows themselves
    noise                    references get new noise in every "step", or one noise per "image" for all steps
    pool                     average K and V of references over pool x pool tokens (approximate, faster)
    adain                    own queries and keys take the references' mean and variance first (StyleAligned)
    fused                    references that are not in the cache are more rows of the generation's own U-Net call, not
                             a call of their own: the same numbers from fewer calls. At most `chunk` references
    """

    max_weight: float = 0.8
    min_weight: float = 0.0
    start: float = 0.0
    end: float = 0.8
    shape: str = "boxcar"
    clock: str = "training"
    end_included: bool = True
    negative_scale: float = 0.5
    bottleneck_scale: float = 1.0
    depths: tuple[float, float] = (0.0, 1.0)
    count_normalized: bool = False
    zero_padding: bool = False
    mass_cap: float | None = None
    backend: str = "sdpa"
    reference_prompt: str | None = ""
    noise: str = "step"
    pool: int = 1
    adain: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        for name in ("max_weight", "min_weight", "negative_scale", "bottleneck_scale"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise FabricError(f"{name} is {getattr(self, name)}, expected a finite number of at least 0 (0 is off)")
        choices = {"shape": tuple(SHAPES), "clock": CLOCKS, "backend": BACKENDS, "noise": NOISES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise FabricError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name in ("start", "end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise FabricError(f"{name} is {getattr(self, name)}, expected 0 (pure noise) .. 1 (clean image)")
        low, high = self.depths
        if not 0.0 <= low <= high <= 1.0:
            raise FabricError(f"depths are {low} and {high}, expected 0 (outermost) .. 1 (middle), smaller one first")
        if self.mass_cap is not None and not 0.0 <= self.mass_cap <= 1.0:
            raise FabricError(f"mass_cap is {self.mass_cap}, expected 0 .. 1 or None")
        if self.mass_cap is not None and self.backend != "lse":
            raise FabricError("mass_cap needs the mass on references: set backend='lse'")
        if self.pool < 1:
            raise FabricError(f"pool is {self.pool}, expected 1 (off) or a number of tokens along a side")


@dataclass(frozen=True)
class Preset:
    """Settings of a published implementation and, where it says so, how it samples (None: left to its user)."""

    settings: Settings
    steps: int | None = None
    guidance_scale: float | None = None
    images: int | None = None
    rounds: int | None = None


def _steps(max_weight: float, min_weight: float, start: float, end: float, **options) -> Settings:
    return Settings(max_weight, min_weight, start, end, **({"clock": "steps"} | options))


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # arXiv 2307.10159v1: every step; steps, guidance and negative scale are those of the code released with it
        "paper": Preset(_steps(0.8, 0.8, 0.0, 1.0), 20, 6.0, 4, 3),
        "paper-preference": Preset(_steps(0.1, 0.1, 0.0, 1.0), 20, 6.0, 4, 3),
        # sd-fabric/fabric: both evaluations since September 2023 and as first released, the single-round script, the
        # defaults of generate(), the notebook
        "repo": Preset(_steps(0.3, 0.0, 0.0, 0.8), 20, 6.0, 4, 3),
        "repo-first": Preset(_steps(0.8, 0.1, 0.0, 1.0), 20, 6.0, 4, 3),
        "repo-single-round": Preset(_steps(0.8, 0.05, 0.33, 0.66), 20, 7.0, 4),
        "repo-generate": Preset(_steps(1.0, 0.1, 0.33, 0.66), 20, 8.0, 1),
        "repo-notebook": Preset(_steps(0.8, 0.0, 0.0, 0.8), 20, 6.0, 4),
        "diffusers": Preset(_steps(0.8, 0.05, 0.33, 0.66), 20, 7.0, 4),
        "webui": Preset(Settings(0.8, 0.0, 0.0, 0.8, clock="training")),
        # ssitu/ComfyUI_fabric, the simple node
        "comfy": Preset(_steps(1.0, 0.0, 0.0, 0.8, negative_scale=1.0, end_included=False, zero_padding=True)),
        # the linear decay over time of pull request 11, dislikes left out
        "linear-decay": Preset(_steps(0.9, 0.05, 0.0, 0.8, shape="linear", negative_scale=0.0), 100, 6.0, 1),
    }
)
