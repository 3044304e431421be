"""The models of the course: where they are, how they are loaded and checked."""

from labkit.errors import LabkitError, ModelLoadError
from labkit.models.load import load_clip, load_flow, load_pipeline, load_reader
from labkit.models.paths import data_dir, models_dir

__all__ = [
    "LabkitError",
    "ModelLoadError",
    "data_dir",
    "load_clip",
    "load_flow",
    "load_pipeline",
    "load_reader",
    "models_dir",
]
