"""FABRIC: personalising diffusion models with liked and disliked images, without training (arXiv 2307.10159).

Modules in the order in which they are read:

    equations       the paper's equations, one function each
    settings        what can be set, and the settings of published implementations (`PRESETS`)
    references      liked and disliked images: hashed, encoded, and their noise
    session         `with fabric(pipe, liked=..., disliked=...):` around any pipeline
    processor       the hook on one self-attention layer
    joint           the same for transformers in which image and text attend to each other; `joint_session`: SD3, FLUX
    reference_pass  the U-Net call that fills the hooks; `cache` keeps what it computed, `unet` says what a call is,
                    `caller` who makes it and which rows read what
    attention       eq. 2 in two other forms (mass and table), pooling, AdaIN
    schedule        when feedback acts, and how strongly
    loop            rounds of feedback; `history` keeps them on disk

The names below are those that lessons use, in the order of use; everything else is imported from its module.
"""

from labkit.fabric.attention import attention_table
from labkit.fabric.cache import ReferenceCache
from labkit.fabric.equations import flat_mass, noised_reference, pairwise_diversity, weighted_attention
from labkit.fabric.loop import FeedbackLoop
from labkit.fabric.references import Reference, reference_noise
from labkit.fabric.session import fabric
from labkit.fabric.settings import PRESETS, FabricError, FabricWarning, Settings
from labkit.fabric.unet import self_attentions

__all__ = [
    # the equations
    "noised_reference",
    "weighted_attention",
    "flat_mass",
    "pairwise_diversity",
    # feedback for a pipeline
    "Reference",
    "reference_noise",
    "self_attentions",
    "fabric",
    "Settings",
    "PRESETS",
    "FabricError",
    "FabricWarning",
    # looking inside
    "attention_table",
    "ReferenceCache",
    # rounds
    "FeedbackLoop",
]
