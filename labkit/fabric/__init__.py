"""FABRIC: personalising diffusion models with liked and disliked images, without training (arXiv 2307.10159)."""

from labkit.fabric.attention import (
    adain,
    attend_biased,
    attend_merged,
    attention_with_lse,
    moments,
    pool_tokens,
    reference_attention,
)
from labkit.fabric.cache import ReferenceCache
from labkit.fabric.loop import FeedbackLoop, Round, RoundSummary, drop_words, pairwise_diversity
from labkit.fabric.processor import FabricProcessor, Layer, Observation, SignStates
from labkit.fabric.references import Reference, ReferenceSet, alpha_bar_at, noised_reference, reference_noise
from labkit.fabric.schedule import SHAPES, depth_ramp, flat_mass, scheduled_weight, step_position, time_position
from labkit.fabric.session import Session, fabric
from labkit.fabric.settings import PRESETS, FabricError, FabricWarning, Preset, Settings
from labkit.fabric.unet import self_attentions

__all__ = [
    "FabricError",
    "FabricProcessor",
    "FabricWarning",
    "FeedbackLoop",
    "Layer",
    "Observation",
    "PRESETS",
    "Preset",
    "Reference",
    "ReferenceCache",
    "ReferenceSet",
    "Round",
    "RoundSummary",
    "SHAPES",
    "Session",
    "Settings",
    "SignStates",
    "adain",
    "alpha_bar_at",
    "attend_biased",
    "attend_merged",
    "attention_with_lse",
    "depth_ramp",
    "drop_words",
    "fabric",
    "flat_mass",
    "moments",
    "noised_reference",
    "pairwise_diversity",
    "pool_tokens",
    "reference_attention",
    "reference_noise",
    "scheduled_weight",
    "self_attentions",
    "step_position",
    "time_position",
]
