"""Source made of image files, preprocessed as the recipe says, one image at a time."""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data import limits
from qgraph.data.digest import files_digest
from qgraph.data.image_labels import NAME, image_labels
from qgraph.data.image_options import ImageOptions
from qgraph.data.inputs import InputLayout, InputSpec, shape_text
from qgraph.data.pixels import normalize
from qgraph.data.source import Pending, Source
from qgraph.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_EIGHT_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


class ImageSource(Source):
    """Images in the order of their names, or an evenly random draw of them.

    Where there are more images than samples asked for, the images are drawn with the seed and
    kept in order: the first ones of a folder sorted by class would all show the same.
    """

    kind = "images"
    rows_per_item = 1

    def __init__(
        self,
        files: Sequence[Path],
        root: Path,
        layout: InputLayout,
        options: ImageOptions | None,
        samples: int | None,
        seed: int,
    ) -> None:
        """Check that the model takes images and that the recipe says how to make them.

        Raises:
            DataError: No preprocessing options, or no single input that takes images.
        """
        self.where, self._root = str(root), root
        if options is None:
            raise DataError(
                "is a folder of images, and the recipe has no [images] table",
                where=self.where,
                fix="choose a recipe that has one, such as imagenet-mean, or write one",
            )
        self._options, self._input = options, _image_input(layout, self.where)
        if self._input.dtype.kind in "iu" and not options.raw:
            raise DataError(
                f"input {self._input.name!r} takes {self._input.dtype.name}, but [images] scales",
                where=self.where,
                fix="set scale = 1, mean = [0], std = [1]",
            )
        self._found = len(files)
        labels = image_labels(files, root) if layout.labelled else None
        self._labels = None if labels is None else dict(zip(files, labels, strict=True))
        wanted = None if samples is None else samples * (layout.batch if layout.uniform else 1)
        if wanted is not None and wanted < len(files):
            drawn = np.random.default_rng(seed).choice(len(files), wanted, replace=False)
            files = [files[i] for i in sorted(drawn)]
        self._files = list(files)

    @property
    def count(self) -> int:
        """Number of images used."""
        return len(self._files)

    def items(self) -> Iterator[Pending]:
        """Give the images in order; each is read when its item is loaded."""
        for index, file in enumerate(self._files):
            yield Pending(f"{file}: sample {index}", partial(self._load, file))

    def digest(self) -> str:
        """Hash names and contents of the images, and the preprocessing."""
        return f"{files_digest(self._files, self._root)} {self._options.model_dump_json()}"

    def key(self) -> str:
        """Hash names and every byte of the images, and the preprocessing."""
        found = files_digest(self._files, self._root, whole=True)
        return f"{found} {self._options.model_dump_json()}"

    def describe(self) -> dict[str, Any]:
        """Return the preprocessing and how many images there were."""
        return {"found": self._found, "images": self._options.model_dump(mode="json")}

    def _load(self, file: Path) -> dict[str, NDArray[Any]]:
        array: NDArray[Any] = load_image(file, self._options)
        if self._input.dtype.kind not in "iu":
            array = normalize(array, self._options)
        array = array.transpose(2, 0, 1) if self._options.layout == "NCHW" else array
        wanted = self._input.shape or (None,) * 4
        if any(isinstance(w, int) and w != g for w, g in zip(wanted[1:], array.shape, strict=True)):
            raise DataError(
                f"input {self._input.name!r} expects {shape_text(wanted)}, the image gives "
                f"{shape_text((1, *array.shape))}",
                where=str(file),
                fix="set resize, crop, layout or channels in the recipe's [images]",
            )
        item = {self._input.name: np.ascontiguousarray(array[None])}
        return item if self._labels is None else item | {NAME: np.array(self._labels[file])}


def load_image(file: Path, options: ImageOptions) -> NDArray[np.uint8]:
    """Decode, resize and crop one image.

    Returns:
        uint8 [height, width, channels], channels in the order that the options name.

    Raises:
        DataError: Missing, truncated, not an 8-bit image, too many pixels, smaller than the crop.
    """
    from PIL import Image, UnidentifiedImageError

    bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                _check_size(image.size, file)
                if image.mode not in _EIGHT_BIT:
                    raise DataError(
                        f"is not an 8-bit image (mode {image.mode})",
                        where=str(file),
                        fix="convert it to 8 bits, or save the tensors as .npz",
                    )
                image.load()
                pixels = _crop(_resize(_channels(image, options), options, file), options, file)
    except bomb:
        raise DataError("has too many pixels", where=str(file), fix="shrink the image") from None
    except (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"can't be read as an image ({reason})", where=str(file)) from None
    array = np.asarray(pixels, np.uint8)
    array = array[:, :, None] if array.ndim == 2 else array
    return array[:, :, ::-1] if options.channels == "BGR" else array


def _image_input(layout: InputLayout, where: str) -> InputSpec:
    """Return the only input, which has to have the rank of a batch of images."""
    spec = layout.inputs[0]
    if len(layout.inputs) == 1 and (spec.shape is None or len(spec.shape) == 4):
        return spec
    listed = "; ".join(map(str, layout.inputs))
    raise DataError(
        f"images can't feed this model ({listed})",
        where=where,
        fix="give a .npz with a key for each input",
    )


def _check_size(size: tuple[int, int], file: Path) -> None:
    width, height = size
    if width * height > limits.MAX_PIXELS:
        raise DataError(
            f"has {width} x {height} pixels, more than {limits.MAX_PIXELS:,}",
            where=str(file),
            fix="shrink the image",
        )


def _channels(image: "Image.Image", options: ImageOptions) -> "Image.Image":
    return image.convert("L" if options.channels == "gray" else "RGB")


def _resize(image: "Image.Image", options: ImageOptions, file: Path) -> "Image.Image":
    """Resize; a single number is the shorter side, the longer one is rounded down."""
    from PIL import Image

    if options.resize is None:
        return image
    width, height = image.size
    if isinstance(options.resize, int):
        short = min(width, height)
        size = (options.resize * width // short, options.resize * height // short)
    else:
        size = (options.resize[1], options.resize[0])
    _check_size(size, file)
    return image.resize(size, Image.Resampling[options.interpolation.upper()])


def _crop(image: "Image.Image", options: ImageOptions, file: Path) -> "Image.Image":
    if options.crop is None:
        return image
    crop = options.crop
    high, wide = (crop, crop) if isinstance(crop, int) else crop
    width, height = image.size
    if width < wide or height < high:
        raise DataError(
            f"is {height} x {width} (height x width), smaller than the crop {high} x {wide}",
            where=str(file),
            fix="set a larger resize in the recipe's [images]",
        )
    left, top = round((width - wide) / 2), round((height - high) / 2)
    return image.crop((left, top, left + wide, top + high))
