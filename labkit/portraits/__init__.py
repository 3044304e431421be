"""The world of the course: drawn portraits whose every attribute is known."""

from labkit.portraits.attributes import (
    ATTRIBUTES,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_STYLES,
    TRAINING_STYLES,
    allowed_values,
)
from labkit.portraits.captions import (
    TEMPLATES,
    Caption,
    attribute_name,
    caption,
    describe,
    differences,
    random_caption,
    value_name,
)
from labkit.portraits.dataset import build_dataset, load_dataset
from labkit.portraits.parse import unknown_words
from labkit.portraits.render import grainy, render, render_array, render_tensor
from labkit.portraits.sampling import contains, mislabelled, sample_specs
from labkit.portraits.spec import PortraitSpec

__all__ = [
    "ATTRIBUTES",
    "HELD_OUT_COMBINATIONS",
    "HELD_OUT_STYLES",
    "TEMPLATES",
    "TRAINING_STYLES",
    "Caption",
    "PortraitSpec",
    "allowed_values",
    "attribute_name",
    "build_dataset",
    "caption",
    "contains",
    "describe",
    "differences",
    "grainy",
    "load_dataset",
    "mislabelled",
    "random_caption",
    "render",
    "render_array",
    "render_tensor",
    "sample_specs",
    "unknown_words",
    "value_name",
]
