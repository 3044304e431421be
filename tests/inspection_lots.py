"""Lots of pictures for the tests of labkit.inspection."""

import numpy as np
from PIL import Image


def save(path, seed, size=(24, 16)):
    """A picture of random pixels, size (width, height), the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
