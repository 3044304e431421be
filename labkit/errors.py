"""Bases of what labkit raises and warns of on purpose: one line with what was wrong, what was expected, the cure."""


class LabkitError(Exception):
    """Caught by whoever wants to show labkit's own errors as one line and let every other one through."""


class LabkitWarning(UserWarning):
    """What was asked for was done, but it will probably not be what was meant."""


class ModelLoadError(LabkitError):
    """Weights are missing, damaged or do not fit the device or dtype asked for."""
