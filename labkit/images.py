"""The one image reader of labkit: whatever holds a picture -> levels uint8 [H, W, 3], or a float tensor in [-1, 1].

Everybody who takes other people's pictures (metrics, FABRIC, PC-CLIP, DPO pairs, inspection) reads them here, so that a
picture is the same picture everywhere. Files are read as a viewer shows them: turned as the camera says (EXIF),
transparency on white, palettes and CMYK converted, 16 bits cut to 8.

A float says nothing about its range. It is converted when the caller declares it, or when the values leave one reading:

    below -0.25, within [-2, 2]           [-1, 1]: diffusion models, whose decoders overshoot
    above 2, within about [0, 255]        [0, 255]: levels
    within [0, 1]                         refused: [0, 1] or the brighter half of [-1, 1]?
    NaN, or anything else                 refused: normalised with a mean and std, latents, ...
"""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from labkit.errors import LabkitError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"})
CAMERAS = {
    ".raw",
    ".dng",
    ".nef",
    ".cr2",
    ".cr3",
    ".arw",
    ".orf",
    ".rw2",
    ".raf",
    ".pef",
}  # of which Pillow sees a preview
NO_DECODER = frozenset({".heic", ".heif", ".psd", ".svg"} | CAMERAS)  # pictures, but not for Pillow
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000")  # what files of SUFFIXES hold
MAX_PIXELS = 80_000_000  # 240 MB once decoded
FITS = ("squash", "crop", "clip")
INTEGER_RANGES = ((0, 255), (0, 65535))

Range = tuple[float, float]


class ImageError(LabkitError, ValueError):
    """A picture that cannot be read, or that could be read in two ways.

    Attributes:
        reason: what is wrong with it, without its name and the cure (for lists of many files).
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def read_levels(image: object, *, value_range: Range | None = None, what: str = "image") -> np.ndarray:
    """One picture as uint8 RGB levels [H, W, 3].

    Args:
        image: a path; bytes of a file; a PIL picture of any mode; an array or tensor [H, W], [H, W, C] or [C, H, W]
            with C = 1, 3 or 4 (the fourth is alpha, laid on white). uint8, uint16 (of 65535), bool, other integers
            (0..255) or floats. Where both layouts fit, tensors are [C, H, W] and arrays [H, W, C].
        value_range: (low, high) of the floats: (0, 1), (-1, 1) or (0, 255); for integers (0, 255) or (0, 65535), any
            other is not meant for them. None: only what has one reading is converted. Floats are rounded to the
            nearest level.
        what: how an error names the picture; files are named by their path.

    Raises:
        ImageError: no picture, a damaged file, or values that could be read in two ways.
    """
    if isinstance(image, str | os.PathLike):
        return read_file(image, value_range=value_range)
    if isinstance(image, bytes | bytearray):
        image = _opened(BytesIO(image), what)
    if isinstance(image, Image.Image):
        return _from_pil(image, value_range, what)
    return _with_alpha(_levels_of(_array(image, what), value_range, what))


def read_tensor(image: object, *, value_range: Range | None = None, what: str = "image"):
    """One picture as a float32 tensor [3, H, W] in [-1, 1] on the CPU (a float tensor stays on its device).

    As `read_levels`, but RGB and grey floats keep their digits: they are only moved to [-1, 1] (and clamped there), not
    rounded.
    """
    import torch

    if not isinstance(image, str | os.PathLike | bytes | bytearray | Image.Image):
        array = _array(image, what)
        if array.dtype.kind == "f" and array.shape[2] != 4:
            low, high = _checked_range(array, value_range, what)
            device = image.device if isinstance(image, torch.Tensor) else "cpu"
            values = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).to(device)  # [C, H, W]
            if (low, high) != (-1.0, 1.0):
                values = (values - low) * (2 / (high - low)) - 1
            return values.expand(3, -1, -1).clamp(-1, 1).contiguous()
    levels = read_levels(image, value_range=value_range, what=what)
    tensor = torch.from_numpy(np.array(levels)).float() / 127.5 - 1.0  # as labkit.diffusion.from_uint8
    return tensor.permute(2, 0, 1).contiguous()


def read_file(path: str | os.PathLike, *, value_range: Range | None = None) -> np.ndarray:
    """The picture in a file as uint8 levels [H, W, 3], as a viewer shows it.

    Args:
        value_range: of files with float values (mode F) or 32-bit integers.

    Raises:
        ImageError: names the file: missing, damaged, more than one frame, more than MAX_PIXELS, no decoder.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"no image file {path}: check the path")
    if path.suffix.lower() in NO_DECODER:
        raise _named(str(path), f"nothing here decodes {path.suffix.lower()}: save it as PNG or JPEG")
    with _opened(path, str(path)) as picture:
        return _from_pil(picture, value_range, str(path))


def value_range_of(smallest: float, largest: float, what: str = "image") -> Range:
    """The one range that float values between `smallest` and `largest` can mean.

    Raises:
        ImageError: NaN, or values that could be read in two ways; says what to declare.
    """
    if -2 <= smallest < -0.25 and largest <= 2:  # decoders overshoot, as far as a declared range may
        return -1.0, 1.0
    if -0.25 <= smallest and 2 < largest <= 256:
        return 0.0, 255.0
    span = f"{what} has values from {smallest:.4g} to {largest:.4g}"
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ImageError(f"{span}: check the step that made it, half precision may have overflowed")
    if -0.25 <= smallest and largest <= 2:
        raise ImageError(
            f"{span}, which can be [0, 1] or part of [-1, 1]: declare value_range=(0, 1) or value_range=(-1, 1)"
        )
    raise ImageError(
        f"{span}, expected [0, 1], [-1, 1] or [0, 255]: pass pixels before any normalisation, and declare value_range"
    )


def common_range(images: Iterable[object]) -> Range | None:
    """The value range of all float pictures or batches of a list, decided together; None if there are none.

    Pictures of one source have one range: a bright one that alone could be read in two ways is settled by the others.

    Raises:
        ImageError: values that could be read in two ways.
    """
    spans = [_span(image) for image in images]
    spans = [span for span in spans if span is not None]
    if not spans:
        return None
    lows, highs = zip(*spans, strict=True)
    return value_range_of(float(np.min(lows)), float(np.max(highs)), "the set of images")  # NaN stays NaN


def fit_levels(levels: np.ndarray, size: int | tuple[int, int], how: str = "squash") -> np.ndarray:
    """Bring levels [H, W, 3] to size (height, width) with Pillow's bicubic filter; the same size is left alone.

    Args:
        size: one side of a square, or (height, width).
        how: "squash" (both sides at once: photographs are distorted), "crop" (the largest centred part of that aspect
            ratio, then resized) or "clip" (the shorter side to the size, then a crop at the centre, the digits of
            transformers' CLIPImageProcessor).

    Returns:
        uint8 [height, width, 3].
    """
    if how not in FITS:
        raise ImageError(f"unknown way to fit {how!r}: use one of {', '.join(FITS)}")
    try:
        height = width = operator.index(size)
    except TypeError:
        height, width = map(operator.index, size)
    h, w = levels.shape[:2]
    if (h, w) == (height, width):
        return levels
    if how == "crop":
        top, left, h, w = centre_box(h, w, height, width)
        levels = levels[top : top + h, left : left + w]
    picture = Image.fromarray(levels)
    if how != "clip":
        return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    if height * w >= width * h:  # the side that lacks most is brought to its size
        new_h, new_w = height, max(width, int(height * w / h))
    else:
        new_h, new_w = max(height, int(width * h / w)), width
    picture = picture.resize((new_w, new_h), Image.Resampling.BICUBIC)
    top, left = (new_h - height) // 2, (new_w - width) // 2
    return np.asarray(picture)[top : top + height, left : left + width]


def centre_box(h: int, w: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest centred part of h x w that has the aspect ratio height : width."""
    h, w, height, width = map(operator.index, (h, w, height, width))  # NumPy's small integers overflow
    crop_h, crop_w = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
    return (h - crop_h) // 2, (w - crop_w) // 2, crop_h, crop_w


@dataclass(frozen=True)
class ImageFolder(Sequence):
    """The pictures of a folder by name, in the order of their names; `folder[i]` reads one as uint8 [H, W, 3].

    Attributes:
        root: the folder. names: paths below it, with "/", sorted by code point: the same on every machine.
        value_range: for files with float values.
        faults: name -> why what is there cannot be read by its name; asking for it raises.
    """

    root: Path
    names: tuple[str, ...] = field(repr=False)
    value_range: Range | None = None
    faults: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.only(self.names[index])
        if self.names[index] in self.faults:
            raise _named(str(self.path(index)), self.faults[self.names[index]])
        return read_file(self.root / self.names[index], value_range=self.value_range)

    def only(self, names: Iterable[str]) -> ImageFolder:
        """The same folder with some of its names."""
        return ImageFolder(self.root, tuple(names), self.value_range, self.faults)

    def path(self, index: int) -> Path:
        """Where a picture lies."""
        return self.root / self.names[index]

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """The pictures as lists of at most `size`, in order: sizes may differ."""
        for start in range(0, len(self), size):
            yield [self[i] for i in range(start, min(start + size, len(self)))]

    def unreadable(self) -> dict[str, str]:
        """Name -> reason of every file that cannot be read; decodes all of them once."""
        found = {}
        for i, name in enumerate(self.names):
            try:
                self[i]
            except (ImageError, OSError) as error:
                found[name] = getattr(error, "reason", str(error)).replace(str(self.root / name), name)
        return found


@dataclass(frozen=True)
class FolderContents:
    """What lies in a folder, by names below it with "/", hidden files apart; no picture has been decoded.

    Attributes:
        pictures: files whose names end as those of pictures do, in the order of their names. others: files that hold no
            picture.
        faults: what hides pictures from this program -> why: folders that may not be read, links to folders, names that
            are no UTF-8, pictures whose names end as something else.
    """

    pictures: tuple[str, ...]
    others: tuple[str, ...]
    faults: Mapping[str, str]


def look_into(folder: str | os.PathLike, *, recursive: bool = True) -> FolderContents:
    """Sort what lies in a folder (and its subfolders) into pictures, other files, and what hides pictures.

    Raises:
        ImageError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder: give the folder that holds the pictures")
    pictures, others, faults = [], [], {}
    for path, fault in _entries(folder, recursive):
        name = path.relative_to(folder).as_posix()
        readable = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # as text can hold it
        if fault or readable != name:
            faults[readable] = fault or "its name is no UTF-8: rename it"
        elif path.suffix.lower() in SUFFIXES | NO_DECODER:
            pictures.append(name)
        elif kind := _kind(path):
            faults[name] = f"holds a picture ({kind}), its name ends otherwise: rename it"
        else:
            others.append(name)
    return FolderContents(tuple(sorted(pictures)), tuple(sorted(others)), dict(sorted(faults.items())))


def _entries(folder: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    """Every visible file below a folder with "", and what hides files from this program with the reason."""
    refused: list[OSError] = []
    for where, folders, files in os.walk(folder, onerror=refused.append):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in folders:
            if (Path(where) / name).is_symlink():
                yield Path(where) / name, "a link to a folder: put the pictures themselves here"
        for name in files:
            if not name.startswith("."):
                yield Path(where) / name, ""
    for error in refused:
        yield Path(error.filename), f"a folder that may not be read ({error.strerror})"


def _kind(path: Path) -> str:
    """ "JPEG", ... for a picture by its content, "" for anything else."""
    try:
        with Image.open(path, formats=KINDS) as picture:
            return picture.format or ""
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


def read_folder(folder: str | os.PathLike, *, recursive: bool = True, value_range: Range | None = None) -> ImageFolder:
    """The pictures of a folder (and its subfolders); nothing is decoded yet.

    Hidden files and those that hold no picture are left out. What nothing here can read stays in the list, so that it
    is named when it is read: kinds without a decoder (.heic, .svg, ...) and the faults of `look_into`.

    Raises:
        ImageError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    found = look_into(folder, recursive=recursive)
    if not found.pictures and not found.faults:
        below = "" if recursive else " itself (subfolders are not read)"
        raise ImageError(f"{folder}{below} holds no pictures: expected {', '.join(sorted(SUFFIXES))}")
    return ImageFolder(folder, tuple(sorted({*found.pictures, *found.faults})), value_range, found.faults)


def _opened(source: Path | BytesIO, what: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit here
        try:
            return Image.open(source)
        except Exception as error:  # noqa: BLE001 - a decoder may raise anything; whatever it is, the file is named
            raise _damaged(what, error) from error


def _damaged(what: str, error: Exception) -> ImageError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ImageError(f"{what} cannot be read as a picture ({reason[:160]}): copy it again, or leave it out", reason)


def _named(what: str, reason: str) -> ImageError:
    return ImageError(f"{what}: {reason}", reason)


def _from_pil(picture: Image.Image, value_range: Range | None, what: str) -> np.ndarray:
    width, height = picture.size
    if not width or not height:
        raise ImageError(f"{what} is an empty picture of {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise _named(what, f"{width} x {height} pixels, at most {MAX_PIXELS // 10**6} million are read")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # MPO: a photograph with a preview behind it
        raise _named(what, f"{frames} frames, expected one picture per file: save one frame as PNG")
    from_png = picture.format == "PNG"
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode == "F":
            return _with_alpha(_levels_of(np.asarray(picture)[..., None], value_range, what))
        if picture.mode.startswith("I"):
            return _with_alpha(_sixteen_bits(picture, value_range, what, from_png))
        if not picture.has_transparency_data:
            return np.asarray(picture.convert("RGB"))
        picture = picture.convert("RGBA")
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - truncated files show only here
        raise _damaged(what, error) from error
    return _on_white(picture)


def _on_white(rgba: Image.Image) -> np.ndarray:
    ground = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(ground, rgba).convert("RGB"))


def _sixteen_bits(picture: Image.Image, value_range: Range | None, what: str, from_png: bool) -> np.ndarray:
    """Modes I;16 (always of 65535) and I (32 bits: of 65535 from a PNG or with such values, else to be declared)."""
    values = np.asarray(picture).astype(np.int64)[..., None]  # [H, W, 1]
    largest = int(values.max(initial=0))
    value_range = _of_integers(value_range)
    if value_range is None:
        if picture.mode == "I" and not from_png and 0 < largest <= 255:
            raise ImageError(
                f"{what} has 32-bit integers up to {largest}, which can be 8 or 16 bits: "
                "declare value_range=(0, 255) or (0, 65535)"
            )
        value_range = (0, 65535)
    return _integer_levels(values, value_range, what)


def _array(image: object, what: str) -> np.ndarray:
    """An array or tensor as [H, W, C], C = 1, 3 or 4; floats as float32."""
    is_tensor = hasattr(image, "detach")
    if is_tensor:
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{what} is a {type(image).__name__}: expected a path, a PIL picture, an array or a tensor")
    shape = tuple(image.shape)
    if image.ndim == 2:
        image = image[..., None]
    elif image.ndim == 3:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        if first and (is_tensor or not last):
            image = image.transpose(1, 2, 0)
        elif not last:
            raise ImageError(f"{what} has shape {shape}: expected [H, W, C] or [C, H, W] with 1, 3 or 4 channels")
    else:
        raise ImageError(f"{what} has shape {shape}: expected one picture, [H, W], [H, W, C] or [C, H, W]")
    if not image.size:
        raise ImageError(f"{what} has shape {shape}: an empty picture")
    return image.astype(np.float32) if image.dtype.kind == "f" else image


def _levels_of(array: np.ndarray, value_range: Range | None, what: str) -> np.ndarray:
    """[H, W, C] of any number type -> uint8 [H, W, C]."""
    if array.dtype == np.uint8 and value_range in (None, (-1, 1), (0, 1), (0, 255)):  # a range is that of the floats
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind in "iu":
        default = (0, 65535) if array.dtype == np.uint16 else (0, 255)
        return _integer_levels(array.astype(np.int64), _of_integers(value_range) or default, what)
    if array.dtype.kind != "f":
        raise ImageError(f"{what} has the type {array.dtype}: expected uint8, uint16 or floats")
    low, high = _checked_range(array, value_range, what)
    levels = (array - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(levels.clip(0, 255)).astype(np.uint8)


def _of_integers(value_range: Range | None) -> Range | None:
    """The declared range if integers can have it; None for that of the floats beside them."""
    return value_range if value_range is not None and tuple(value_range) in INTEGER_RANGES else None


def _integer_levels(values: np.ndarray, value_range: Range, what: str) -> np.ndarray:
    most = {(0, 65535): 65535}.get(tuple(value_range), 255)
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest > most:
        raise ImageError(
            f"{what} has integers from {smallest} to {largest}, expected 0 to {most}: "
            "pass uint8, or declare value_range=(0, 65535) for 16 bits"
        )
    return (values if most == 255 else (values + 128) // 257).astype(np.uint8)


def _checked_range(array: np.ndarray, value_range: Range | None, what: str) -> Range:
    """The declared range if the values lie in or near it, else the only one they can have."""
    smallest, largest = float(array.min()), float(array.max())
    if value_range is None:
        return value_range_of(smallest, largest, what)
    return check_declared(smallest, largest, value_range, what)


def check_declared(smallest: float, largest: float, value_range: Range, what: str = "image") -> Range:
    """The declared (low, high) as floats; decoders overshoot, so half the width outside it is let through.

    Raises:
        ImageError: NaN, values further outside, or no range.
    """
    low, high = (float(v) for v in value_range)
    if not high > low:
        raise ImageError(f"value_range must be (low, high) with low < high, got {value_range}")
    margin = 0.5 * (high - low)
    if not (smallest >= low - margin and largest <= high + margin):  # False for NaN too
        raise ImageError(
            f"{what} values run from {smallest:.4g} to {largest:.4g}, expected [{low:g}, {high:g}]: "
            "pass value_range=(0, 1), (-1, 1) or (0, 255), whichever they are"
        )
    return low, high


def _with_alpha(levels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1, 3 or 4] -> [H, W, 3]; transparency on white."""
    if levels.shape[2] == 4:
        return _on_white(Image.fromarray(np.ascontiguousarray(levels)))
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3)))


def _span(image: object) -> Range | None:
    """Smallest and largest value of a float picture, None for every other kind."""
    if isinstance(image, Image.Image) and image.mode == "F":
        image = np.asarray(image)
    if hasattr(image, "detach") and image.is_floating_point() and image.numel():
        low, high = image.detach().aminmax()
        return float(low), float(high)
    if isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.size:
        return float(image.min()), float(image.max())
    return None
