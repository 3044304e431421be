"""Figures made of images: grids with captions and scores, before/after strips at fixed seeds, heat maps over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from labkit.course.i18n import t
from labkit.figures.base import CourseFigure, figure_style
from labkit.figures.images import as_pixel_list
from labkit.figures.layout import default_columns, draw_grid, expect_length


def image_grid(
    images: Any,
    captions: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    *,
    columns: int | None = None,
    title: str | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    frames: Mapping[int, str] | None = None,
    score_label: str = "",
    score_format: str = "{:.2f}",
    size: float | None = None,
    smooth: bool = True,
    alt: str | None = None,
    lang: str | None = None,
) -> CourseFigure:
    """Images of equal size in rows, each with its score and caption below it.

    Args:
        images: N images (PIL, uint8 [H, W, 3], float [3, H, W] in [-1, 1]) or a batch tensor [N, 3, H, W].
        captions: N texts; wrapped to the image's width, eight lines at most.
        scores: N numbers (NaN: none for this image), written as `score_format` with `score_label` in front.
        columns: images per row; by default whatever fills a notebook's width well.
        row_labels, column_labels: texts at the left of the rows and over the columns.
        frames: index -> role ("winner", "loser", "good", "bad", ...) or colour of a frame around that image.
        size: width of an image in inches; by default 1.1 to 1.7, fewer images being larger.
        smooth: enlarge smoothly; False shows the pixels as squares (latents, masks).
        alt: description for screen readers; by default made from captions and scores.
        lang: language of that description; by default the session's.

    Raises:
        ValueError: no images, or captions, scores or labels that do not match their number.
    """
    pixels = as_pixel_list(images)
    count = len(pixels)
    if count == 0:
        raise ValueError("no images to show; expected at least one")
    if columns is not None and columns < 1:
        raise ValueError(f"columns is {columns}; expected 1 or more")
    columns = min(columns or default_columns(count), count)
    rows = math.ceil(count / columns)
    captions = None if captions is None else [str(caption) for caption in captions]
    values = [] if scores is None else [float(score) for score in scores]
    expect_length("captions", captions, count)
    expect_length("scores", None if scores is None else values, count)
    expect_length("row_labels", row_labels, rows)
    expect_length("column_labels", column_labels, columns)
    score_texts = [
        "" if math.isnan(value) else f"{score_label} {score_format.format(value)}".strip() for value in values
    ]

    figure = draw_grid(
        pixels, columns, captions, score_texts, title, row_labels, column_labels, frames or {}, size, smooth
    )
    figure.alt = alt or _describe(pixels, captions, score_texts, title, lang)
    return figure


def strips(
    rows: Mapping[str, Any],
    *,
    seeds: Sequence[int] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    scores: Mapping[str, Sequence[float]] | None = None,
    **options: Any,
) -> CourseFigure:
    """Rows of images under one another, one row per stage or method, one column per seed.

    Args:
        rows: label -> N images; the same N in every row.
        seeds: the N seeds, written over the columns, so that a reader sees that only the model changed.
        captions, scores: label -> N texts or numbers; rows left out stay bare.
        options: `title`, `score_label`, `score_format`, `size`, `smooth`, `alt`, `lang`, `frames` of `image_grid`.

    Raises:
        ValueError: rows of different length.
    """
    lists = {label: as_pixel_list(images) for label, images in rows.items()}
    lengths = {label: len(images) for label, images in lists.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"rows of different length {lengths}; expected the same seeds in every row")
    columns = next(iter(lengths.values()))
    expect_length("seeds", seeds, columns)
    lang = options.get("lang")
    flat_captions = [text for label in lists for text in (captions or {}).get(label, [""] * columns)]
    flat_scores = [value for label in lists for value in (scores or {}).get(label, [math.nan] * columns)]
    return image_grid(
        [image for images in lists.values() for image in images],
        flat_captions if captions else None,
        flat_scores if scores else None,
        columns=columns,
        row_labels=list(lists) if columns else None,
        column_labels=[t("fig.seed", lang=lang, seed=seed) for seed in seeds] if seeds is not None else None,
        **{"alt": options.pop("alt", None) or _describe_strips(lists, seeds, scores, lang), **options},
    )


def before_after(
    before: Any,
    after: Any,
    *,
    labels: tuple[str, str] | None = None,
    seeds: Sequence[int] | None = None,
    scores: tuple[Sequence[float], Sequence[float]] | None = None,
    captions: tuple[Sequence[str], Sequence[str]] | None = None,
    **options: Any,
) -> CourseFigure:
    """Two strips at the same seeds: `before` above, `after` below.

    Args:
        before, after: N images each, image i of both made with the same seed and prompt.
        labels: names of the two rows; by default "before" and "after" in the learner's language.
        seeds: the N seeds. scores, captions: a pair, (of before, of after).
        options: as `strips`.
    """
    lang = options.get("lang")
    first, second = labels or (t("fig.before", lang=lang), t("fig.after", lang=lang))
    if first == second:
        raise ValueError(f"both rows are labelled {first!r}; expected two different labels")
    return strips(
        {first: before, second: after},
        seeds=seeds,
        scores=dict(zip((first, second), scores, strict=True)) if scores is not None else None,
        captions=dict(zip((first, second), captions, strict=True)) if captions is not None else None,
        **options,
    )


def heatmap_overlay(
    images: Any,
    heat: Any,
    captions: Sequence[str] | None = None,
    *,
    label: str,
    vmin: float | None = None,
    vmax: float | None = None,
    strength: float = 0.8,
    columns: int | None = None,
    title: str | None = None,
    size: float | None = None,
    alt: str | None = None,
    lang: str | None = None,
) -> CourseFigure:
    """Heat maps (attention, saliency, error) over images, on one common colour scale with a colour bar.

    Args:
        images: one image for all maps, or N images.
        heat: N maps (or one) as arrays or tensors [h, w]; enlarged smoothly to the image.
        label: what the colours mean, with unit; written at the colour bar.
        vmin, vmax: ends of the scale; by default the smallest and largest value of all maps.
        strength: 0 (image only) to 1 (where the map is high, only the map is seen).

    Raises:
        ValueError: numbers of images and maps differ, a map is not two-dimensional or not finite.
    """
    single = hasattr(images, "convert") or getattr(images, "ndim", 4) < 4
    pixels = as_pixel_list([images] if single else images)
    maps = [_as_map(one, index) for index, one in enumerate([heat] if getattr(heat, "ndim", 3) == 2 else heat)]
    if len(pixels) == 1:
        pixels = pixels * len(maps)
    if len(pixels) != len(maps) or not maps:
        raise ValueError(f"{len(pixels)} images and {len(maps)} maps; expected one map per image")
    low = min(float(one.min()) for one in maps) if vmin is None else vmin
    high = max(float(one.max()) for one in maps) if vmax is None else vmax
    norm = Normalize(low, high if high > low else low + 1e-9, clip=True)
    blended = [_blend(image, one, norm, strength) for image, one in zip(pixels, maps, strict=True)]
    columns = min(columns or default_columns(len(maps)), len(maps))
    expect_length("captions", captions, len(maps))
    figure = draw_grid(blended, columns, captions, [], title, None, None, {}, size, True, right=0.85)
    width, height = figure.get_size_inches()
    boxes = [axes.get_position() for axes in figure.axes]
    top, bottom = max(box.y1 for box in boxes), min(box.y0 for box in boxes)
    with figure_style():
        bar_axes = figure.add_axes((1 - 0.72 / width, bottom, 0.11 / width, top - bottom))
        bar = figure.colorbar(ScalarMappable(norm, "magma"), cax=bar_axes)
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=8, length=2)
        bar.locator = matplotlib.ticker.MaxNLocator(4)
        bar.outline.set_visible(False)
    peaks = [tuple(np.unravel_index(int(one.argmax()), one.shape)) for one in maps]
    items = _describe_peaks(maps, peaks, captions, lang)
    figure.alt = alt or t("fig.alt.heat", lang=lang, n=len(maps), label=label, items=items)
    return figure


def _blend(image: np.ndarray, heat: np.ndarray, norm: Normalize, strength: float) -> np.ndarray:
    """Colours of the map over a pale grey version of the image; the map's opacity grows with its value."""
    from PIL import Image

    side = 256
    height = round(side * image.shape[0] / image.shape[1])
    base = np.asarray(Image.fromarray(image).convert("L").resize((side, height), Image.Resampling.LANCZOS))
    base = (90 + base.astype(np.float32) * (165 / 255))[:, :, None] / 255  # [H, W, 1], dark tones lifted
    big = Image.fromarray(heat.astype(np.float32), mode="F").resize((side, height), Image.Resampling.BICUBIC)
    value = np.asarray(norm(np.asarray(big)), dtype=np.float32)  # [H, W] in [0, 1]
    colour = matplotlib.colormaps["magma"](value)[:, :, :3]
    opacity = (strength * (0.35 + 0.65 * value))[:, :, None]
    return np.rint(255 * (base * (1 - opacity) + colour * opacity)).astype(np.uint8)


def _as_map(heat: Any, index: int) -> np.ndarray:
    array = np.asarray(heat.detach().float().cpu() if hasattr(heat, "detach") else heat, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"map {index} has shape {array.shape}; expected two dimensions [h, w]")
    if not np.isfinite(array).all():
        raise ValueError(f"map {index} contains NaN or infinite values; check the step that made it")
    return array


def _describe(
    pixels: list[np.ndarray], captions: Sequence[str] | None, scores: Sequence[str], title: str | None, lang: str | None
) -> str:
    parts = []
    for index in range(min(len(pixels), 16)):
        words = [captions[index] if captions else "", f"({scores[index]})" if scores and scores[index] else ""]
        text = " ".join(str(word).replace("\n", " ") for word in words if word)
        parts += [f"{index + 1}: {text}"] if text else []
    values = {"n": len(pixels), "title": f"{title}: " if title else "", "items": "; ".join(parts)}
    return t("fig.alt.grid", lang=lang, **values).strip()


def _describe_strips(lists: Mapping[str, list], seeds: Any, scores: Any, lang: str | None) -> str:
    parts = []
    for label in lists:
        values = (scores or {}).get(label)
        mean = t("fig.alt.mean", lang=lang, value=float(np.mean(values))) if values is not None else ""
        parts.append(f"{label} ({mean})" if mean else label)
    columns = len(next(iter(lists.values())))
    words = {"lang": lang, "rows": "; ".join(parts), "n": columns}
    if seeds is None:
        return t("fig.alt.rows", **words)
    return t("fig.alt.strips", seeds=", ".join(map(str, seeds)), **words)


def _describe_peaks(
    maps: list[np.ndarray], peaks: list[tuple], captions: Sequence[str] | None, lang: str | None
) -> str:
    parts = []
    for index, (one, (row, column)) in enumerate(zip(maps, peaks, strict=True)):
        vertical = ("top", "middle", "bottom")[min(2, int(3 * (row + 0.5) / one.shape[0]))]
        side = ("left", "centre", "right")[min(2, int(3 * (column + 0.5) / one.shape[1]))]
        name = captions[index] if captions else str(index + 1)
        parts.append(t("fig.alt.peak", lang=lang, name=name, place=t(f"fig.place.{vertical}.{side}", lang=lang)))
    return "; ".join(parts)
