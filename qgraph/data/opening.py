"""Open data of any kind: decide by what was given which source reads it."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qgraph.data import limits
from qgraph.data.arrays import memory_source, npy_source, npz_source, only_input
from qgraph.data.caches import with_caches
from qgraph.data.dataset import DataSet
from qgraph.data.folder import ARRAY_SUFFIXES, FileSource, find_files
from qgraph.data.functions import IterableSource, import_function, is_function_spec
from qgraph.data.image_options import ImageOptions
from qgraph.data.images import SUFFIXES as IMAGE_SUFFIXES
from qgraph.data.images import ImageSource
from qgraph.data.inputs import InputLayout, TensorLike, read_layout
from qgraph.data.random_data import RandomSource, is_random_spec
from qgraph.data.reader import Origin, SourceReader
from qgraph.data.selection import Stage
from qgraph.data.source import Source
from qgraph.errors import DataError, UsageError

Given = (
    str
    | os.PathLike[str]
    | np.ndarray[Any, Any]
    | Mapping[str, Any]
    | Iterable[Mapping[str, Any]]
    | Callable[[], Iterable[Mapping[str, Any]]]
)


def open_data(
    source: Given,
    inputs: Sequence[TensorLike],
    *,
    images: ImageOptions | None = None,
    caches: Mapping[str, int] | None = None,
    samples: int | None = None,
    seed: int = 0,
    labelled: bool = False,
) -> DataSet:
    """Open calibration or evaluation data for a model.

    `source` is one of

    - a `.npz` file, or a dict of arrays: keys are input names, the first axis counts samples;
      other keys of that length are labels;
    - a `.npy` file, or an array: the same, for a model with one input;
    - a folder of images: each one sample, preprocessed as `images` says; labels are in its
      `labels.csv` or follow from its sub-folders (see `qgraph.data.image_labels`);
    - a folder of `.npz`, `.npy` or TensorProto `.pb` files: each one sample or batch; of
      `input_K.pb` (K counts the inputs in the model's order), each folder one;
    - `package.module:function`, which is imported, called without arguments, and gives dicts;
      this runs its code;
    - `random`, or `random:AXIS=LENGTH,...` with lengths for dynamic axes: random values;
    - a function, generator, list or other iterable of dicts.

    A batch axis of size 1 is added to values that lack one; what carries several rows is cut into
    rows (see `qgraph.data.inputs`), and labels with it. The first sample is read and checked at once, except from
    functions and iterables.

    Args:
        source: See the table.
        inputs: The model's inputs: objects with `name`, `dtype` and `shape`.
        images: Preprocessing for a folder of images, and for uint8 arrays given to a model whose only
            input is a float image: of those, what [images] says of scale, mean, std and layout.
        caches: Inputs that are KV caches, with the axis that counts tokens (`kv_cache.cache_axes`):
            what the data leaves out of them is fed empty.
        samples: The most samples to use, 0 or None for all; of images a random draw, of other
            sources the first. Where the model fixes a batch size, this counts rows. Functions
            and iterables of unknown length give 512 where no number is said.
        seed: For random values and for the draw of images.
        labelled: Read what lies beside the inputs too, for `DataSet.labelled`.

    Raises:
        UsageError: A negative number of samples, or an unknown axis after `random:`.
        DataError: The data can't be read or doesn't fit; the message says what was expected.
        ModelError: The model's inputs can't be fed from data.
    """
    if samples is not None and samples < 0:
        raise UsageError(f"{samples} samples can't be used", fix="give a number of at least 1")
    layout = _with_images(with_caches(read_layout(inputs), caches or {}), images)
    layout = replace(layout, labelled=labelled)
    limit = samples or None
    found = _find(source, layout, images, limit, seed)
    if isinstance(found, IterableSource):
        if limit is None and not found.bounded:
            limit = limits.UNBOUNDED_SAMPLES * layout.batch
        return DataSet(SourceReader(found, layout, limit))
    reader = SourceReader(found, layout, limit)
    if isinstance(source, str | os.PathLike):
        place = os.fspath(source)
        arguments: dict[str, Any] = {"inputs": list(inputs), "images": images, "caches": caches}
        arguments |= {"samples": samples, "seed": seed, "labelled": labelled}
        reader.origin = Origin(place if found.random else os.path.abspath(place), arguments)
    data = DataSet(reader)
    next(iter(data))
    return data


def reopened(origin: Origin, stages: tuple[Stage, ...], digest: str | None) -> DataSet:
    """Open data again in another process: what a pickled `DataSet` becomes.

    Raises:
        DataError: It is not there, or not the same.
    """
    place = f"{origin.source} on {platform.node()}"
    try:
        data = open_data(origin.source, **origin.arguments)
    except DataError as error:
        raise DataError(
            f"can't be opened by a worker ({error})",
            where=place,
            fix="put it where every machine sees it under this path",
        ) from error
    return data.restored(stages, digest)


def _with_images(layout: InputLayout, images: ImageOptions | None) -> InputLayout:
    """Note how uint8 images become floats, where the model's only input takes such."""
    spec = layout.inputs[0]
    takes_floats = len(layout.inputs) == 1 and spec.dtype == np.float32
    if images is None or not takes_floats or len(spec.shape or ()) != 4:
        return layout
    return replace(layout, inputs=(replace(spec, images=images),))


def _find(
    given: Given, layout: InputLayout, images: ImageOptions | None, limit: int | None, seed: int
) -> Source:
    if isinstance(given, str) and is_random_spec(given):
        return RandomSource(given, layout, limit, seed)
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if isinstance(given, str) and is_function_spec(given) and not path.exists():
            return IterableSource(import_function(given), layout, given)
        return _open_path(path, layout, images, limit, seed)
    if isinstance(given, np.ndarray):
        return memory_source({only_input(layout, "data"): given}, layout)
    if isinstance(given, Mapping):
        return memory_source(given, layout)
    if callable(given) or isinstance(given, Iterable):
        return IterableSource(given, layout)
    raise DataError(
        f"data can't be read from a {type(given).__name__}",
        fix="give a path, arrays, a function, or an iterable of dicts",
    )


def _open_path(
    path: Path, layout: InputLayout, images: ImageOptions | None, limit: int | None, seed: int
) -> Source:
    try:
        folder, file = path.is_dir(), path.is_file()
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"can't be read ({error})", where=str(path)) from None
    suffix = path.suffix.lower()
    if folder:
        kind, files = find_files(path)
        if kind == "image":
            return ImageSource(files, path, layout, images, limit, seed)
        return FileSource(kind, files, path, layout)
    if file and suffix == ".npz":
        return npz_source(path, layout)
    if file and suffix == ".npy":
        return npy_source(path, layout)
    if file and suffix == ".pb":
        return FileSource(suffix, [path], path.parent, layout)
    if file and suffix in IMAGE_SUFFIXES:
        return ImageSource([path], path.parent, layout, images, limit, seed)
    if exists:
        kinds = ", ".join(sorted(ARRAY_SUFFIXES | IMAGE_SUFFIXES))
        raise DataError("is no data file", where=str(path), fix=f"give a folder or one of {kinds}")
    raise DataError(
        "there is no such file or folder",
        where=str(path) or "data",
        fix="give a path, package.module:function, or random",
    )
