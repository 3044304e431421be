"""The models of the course: where they are, how they are loaded and checked.

Modules, in the order of use:

    load            `load_pipeline`, `load_clip`, `load_reader`, `load_flow`: one call for every tier
    paths           where data and weights are
    checksums       `data/checksums.json`: a damaged download is noticed before it is used
    clip            PortraitCLIP and what the course asks of it; clip_inputs: what any CLIP wants to be given
    reader          AttributeReader: every attribute of a portrait from its pixels
    flow            PortraitFlow: Stable Diffusion 3's pipeline with one small text encoder
    published       what the gpu tier takes from the hub; fetch downloads it
    local_folder    what a local model folder has, checked before anything is loaded from it
    sizing          how much of a GPU the published models take, and which sizes fit
    sd_layout       the published layouts with random weights, for tests
"""

from labkit.errors import LabkitError, ModelLoadError
from labkit.models.load import load_clip, load_flow, load_pipeline, load_reader
from labkit.models.paths import data_dir, models_dir

__all__ = [
    # what notebooks call
    "load_pipeline",
    "load_clip",
    "load_reader",
    "load_flow",
    # where files are
    "data_dir",
    "models_dir",
    # what can go wrong
    "LabkitError",
    "ModelLoadError",
]
