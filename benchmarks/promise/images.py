"""Labelled photographs for ImageNet classifiers, out of a folder or out of one .npz."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qgraph.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = 1000
SHORT, CROP = 256, 224

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def read_images(path: Path) -> tuple[Pixels, Labels]:
    """Return uint8 [n, 224, 224, 3], RGB, and the class of each.

    Args:
        path: A folder with files `nXXXXXXXX_name.JPEG`, at least one of each class, or an .npz with
            the arrays `x` and `y` that this function returns (see `write_images`).

    Raises:
        DataError: There are no such files or arrays, or classes are missing.
    """
    if path.is_dir():
        files = sorted(path.glob("n*_*.JPEG"))
        labels = classes([file.name for file in files], path)
        return np.stack([_read(file) for file in files]), labels
    try:
        with np.load(path) as data:
            pixels, labels = data["x"], data["y"]
    except (OSError, ValueError, KeyError) as error:
        fix = "name a folder of images, or an .npz with x and y"
        raise DataError(f"can't be read ({error})", where=str(path), fix=fix) from None
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), CROP, CROP, 3):
        raise DataError(
            f"x is {pixels.dtype} {list(pixels.shape)}, y has {len(labels)} classes",
            where=str(path),
            fix=f"give uint8 [n, {CROP}, {CROP}, 3] and a class for each",
        )
    return pixels, labels.astype(np.int64)


def write_images(folder: Path, file: Path) -> None:
    """Write the images of a folder into an .npz that `read_images` reads without decoding."""
    pixels, labels = read_images(folder)
    np.savez_compressed(file, x=pixels, y=labels)


def classes(names: Sequence[str], where: Path) -> Labels:
    """Number the classes, WordNet's identifiers in front of the names, in their order.

    Raises:
        DataError: Some of the 1,000 classes have no image, so that the others have no number.
    """
    identifiers = [name.partition("_")[0] for name in names]
    numbers = {each: number for number, each in enumerate(sorted(set(identifiers)))}
    if len(numbers) != CLASSES:
        raise DataError(
            f"has images of {len(numbers)} classes, not of {CLASSES}",
            where=str(where),
            fix="name a folder with files nXXXXXXXX_name.JPEG, one of each class at least",
        )
    return np.array([numbers[each] for each in identifiers], np.int64)


def _read(file: Path) -> Pixels:
    from PIL import Image as Images

    try:
        with Images.open(file) as image:
            return np.asarray(_centre(image.convert("RGB")), np.uint8)
    except OSError as error:
        raise DataError(f"can't be read as an image ({error})", where=str(file)) from None


def _centre(image: "Image") -> "Image":
    """Shrink to a short side of 256 pixels and cut 224 x 224 out of the middle."""
    from PIL import Image as Images

    short = min(image.size)
    width, height = (round(SHORT * side / short) for side in image.size)
    left, top = (width - CROP) // 2, (height - CROP) // 2
    shrunk = image.resize((width, height), Images.Resampling.BICUBIC)
    return shrunk.crop((left, top, left + CROP, top + CROP))
