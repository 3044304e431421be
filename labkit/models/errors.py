"""Errors with one line each: what was wrong, what was expected, how to fix it."""


class LabkitError(Exception):
    """Base of the errors that labkit raises about files, models and settings."""


class ModelLoadError(LabkitError):
    """Weights are missing, damaged or do not fit the device or dtype asked for."""
