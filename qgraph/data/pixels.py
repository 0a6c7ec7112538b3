"""The arithmetic that turns pixels into a model's floats."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data.image_options import ImageOptions


def normalize(pixels: NDArray[np.uint8], options: ImageOptions) -> NDArray[np.float32]:
    """Return `(pixels * scale - mean) / std`, float32 [..., channels]."""
    scaled = pixels.astype(np.float32) * np.float32(options.scale)
    mean, std = np.array(options.mean, np.float32), np.array(options.std, np.float32)
    return (scaled - mean) / std


def from_pixels(array: NDArray[np.uint8], images: ImageOptions) -> NDArray[Any]:
    """Turn raw images into the floats that [images] makes of image files.

    Args:
        array: uint8 [..., H, W, C] or [..., C, H, W], channels in the order of [images].
        images: The recipe's table.

    Returns:
        float32 in the layout of [images]; the array itself where no axis has the channels.
    """
    count = 1 if images.channels == "gray" else 3
    axes = {"NHWC": -1, "NCHW": -3}
    # Where both could be the channels, the layout is taken to be the model's.
    for layout in sorted(axes, key=lambda layout: layout != images.layout):
        if array.ndim >= 3 and array.shape[axes[layout]] == count:
            floats = normalize(np.moveaxis(array, axes[layout], -1), images)
            return np.ascontiguousarray(np.moveaxis(floats, -1, axes[images.layout]))
    return array
