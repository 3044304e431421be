"""Bases of what labkit raises and warns of on purpose: one line with what was wrong, what was expected, the cure."""

from __future__ import annotations

import re
from collections.abc import Mapping


class LabkitError(Exception):
    """Caught by whoever wants to show labkit's own errors as one line and let every other one through."""


class LabkitWarning(UserWarning):
    """What was asked for was done, but it will probably not be what was meant."""


class ModelLoadError(LabkitError):
    """Weights are missing, damaged or do not fit the device or dtype asked for."""


def in_options(error: object, options: Mapping[str, str]) -> str:
    """The message of an error for somebody who uses a command: its advice to pass a Python argument is replaced.

    Args:
        options: argument -> what the command advises in its place, {"folder": "give --model FOLDER"}.
    """
    text = str(error)
    for name, advice in options.items():
        text = re.sub(rf"\b(declare|pass|give|use) {name}\b(=.*)?$", lambda _, advice=advice: advice, text)
    return text
