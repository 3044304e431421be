"""The world of the course: drawn portraits whose every attribute is known.

Modules, in the order in which to read them:

    attributes      the attributes and which of their values each art style can draw
    spec            `PortraitSpec`, the ground truth of one portrait
    sampling        specs at random: marginals, correlations and rare combinations under control
    render          from a spec to pixels
    captions        captions that leave attributes open, and sentences about differences
    parse           English captions read back
    dataset         portraits on disk

The names below are in the order of use; everything else is imported from its module.
"""

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
    # what a portrait is
    "ATTRIBUTES",
    "PortraitSpec",
    "allowed_values",
    "attribute_name",
    "value_name",
    # drawing
    "sample_specs",
    "render",
    "render_array",
    "render_tensor",
    "grainy",
    # saying
    "caption",
    "random_caption",
    "describe",
    "differences",
    "Caption",
    "TEMPLATES",
    "unknown_words",
    # what is kept out of training, and what is wrong in it
    "TRAINING_STYLES",
    "HELD_OUT_STYLES",
    "HELD_OUT_COMBINATIONS",
    "contains",
    "mislabelled",
    # on disk
    "load_dataset",
    "build_dataset",
]
