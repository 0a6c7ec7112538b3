"""The arithmetic that turns pixels into a model's floats."""

import numpy as np
from numpy.typing import NDArray

from qgraph.data.image_options import ImageOptions


def normalize(pixels: NDArray[np.uint8], options: ImageOptions) -> NDArray[np.float32]:
    """Return `(pixels * scale - mean) / std`, float32 [..., channels]."""
    scaled = pixels.astype(np.float32) * np.float32(options.scale)
    mean, std = np.array(options.mean, np.float32), np.array(options.std, np.float32)
    return (scaled - mean) / std
