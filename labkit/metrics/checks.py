"""Checks at the public boundary of every metric: one line that says what was wrong and how to fix it."""

from __future__ import annotations

import operator

import numpy as np
import torch
from torch import Tensor


def as_features(name: str, value: object, *, min_rows: int = 2) -> Tensor:
    """Return `value` as a detached floating [N, d] tensor; integers become float64, floats keep their dtype and device.

    Args:
        name: the argument's name, for the error message ("real", "fake", ...).
        value: tensor, array or nested list of shape [N, d].
        min_rows: the smallest N that the caller can use.

    Raises:
        TypeError: not convertible to a real-valued array.
        ValueError: not 2-D, no columns, fewer than `min_rows` rows, or NaN/inf entries.
    """
    if isinstance(value, Tensor):
        features = value.detach()
    else:
        try:
            features = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name} must be a [samples, features] tensor or array, got {type(value).__name__}: pass numbers"
            ) from error
    if features.is_complex():
        raise TypeError(f"{name} must be real-valued, got {features.dtype}: pass real features")
    if features.ndim != 2:
        raise ValueError(
            f"{name} must be 2-D [samples, features], got shape {tuple(features.shape)}: "
            "flatten each sample to one row and keep the sample axis"
        )
    n, d = features.shape
    if n < min_rows:
        raise ValueError(f"{name} has {n} sample(s) but at least {min_rows} are needed: pass more samples")
    if d < 1:
        raise ValueError(f"{name} has no feature columns, got shape {tuple(features.shape)}: pass [samples, features]")
    if not features.is_floating_point():
        features = features.double()
    if not all(bool(torch.isfinite(end)) for end in features.aminmax()):  # NaN spreads to both ends
        rows = int((~torch.isfinite(features)).any(dim=1).sum())
        raise ValueError(f"{name} has NaN or infinite values in {rows} of {n} rows: fix the extractor or drop the rows")
    return features


def same_width(real: Tensor, fake: Tensor, names: tuple[str, str] = ("real", "fake")) -> None:
    """Raise ValueError unless the two feature sets have the same number of columns."""
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"{names[0]} has {real.shape[1]} features but {names[1]} has {fake.shape[1]}: "
            "use the same extractor for both"
        )


def whole_number(name: str, value: object) -> int:
    """`value` as a Python int. Counts of NumPy and torch are taken too (their own arithmetic would overflow).

    Args:
        name: the argument's name, for the error message.
        value: an int, a NumPy integer, or an integer tensor of one element.

    Raises:
        TypeError: a bool, a float, or no number at all.
    """
    logical = isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) == torch.bool
    try:
        if logical:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}: pass a whole number such as 5") from None


def plain_list(values: object) -> list:
    """Values as a list of Python's own objects: the elements of a tensor would all count as different labels."""
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    return [value.item() if isinstance(value, Tensor | np.generic) else value for value in values]


def exact_copies(features: Tensor) -> int:
    """How many rows of [N, d] equal an earlier row in every bit: N minus the number of different rows."""
    bits = features.contiguous().view(torch.uint8).reshape(len(features), -1)
    pad = -bits.shape[1] % 8
    words = torch.nn.functional.pad(bits, (0, pad)).contiguous().view(torch.int64)  # [N, w]
    odd = torch.randint(2**62, (2, words.shape[1]), generator=torch.Generator().manual_seed(0)).to(words.device) | 1
    hashes = torch.stack([(words * weight).sum(dim=1) for weight in odd], dim=1)  # 128 bits of each row
    return len(features) - len(torch.unique(hashes, dim=0))


def check_k(k: object, n: int, name: str, *, queries: bool = False) -> int:
    """k as an int, the number of neighbours among the n samples of `name`.

    Args:
        queries: neighbours of other points: k <= n. False: a point is not its own neighbour, k < n.

    Raises:
        TypeError: k is not a whole number. ValueError: k is out of range.
    """
    k, most = whole_number("k", k), n if queries else n - 1
    if not 1 <= k <= most:
        raise ValueError(
            f"k = {k} but {name} has {n} samples, so k must be between 1 and {most}: lower k or add samples"
        )
    return k


def work_device(*tensors: Tensor) -> torch.device:
    """Where to compute: the tensors' device, or the CPU when they differ or the device has no float64 (MPS)."""
    devices = {tensor.device for tensor in tensors}
    device = devices.pop()
    return torch.device("cpu") if devices or device.type == "mps" else device


def plain_numbers(settings: object) -> None:
    """Make the numbers of NumPy and torch in a (frozen) dataclass Python's own, which JSON can hold; in place.

    Raises:
        TypeError: an array or tensor of more than one element.
    """
    for name, value in vars(settings).items():
        if isinstance(value, np.generic | np.ndarray | Tensor):
            if value.ndim:
                raise TypeError(f"{name} is {value!r}: pass one number")
            object.__setattr__(settings, name, value.item())
