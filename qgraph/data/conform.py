"""Make one item of a source fit the model's inputs, or say what doesn't fit."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data.caches import add_empty
from qgraph.data.inputs import Dim, Feeds, InputLayout, InputSpec, Sample, shape_text
from qgraph.data.pixels import from_pixels
from qgraph.errors import DataError

_PREPROCESS = (
    "scale it as in training and save it as {want}, "
    "or give a folder of images with a recipe such as imagenet-mean"
)


def check_names(keys: Sequence[str], layout: InputLayout, where: str) -> None:
    """Raise a DataError unless every input has its key, caches aside."""
    names = layout.names
    missing = [name for name in layout.required if name not in keys]
    if not missing:
        return
    others = [key for key in keys if key not in names]
    near = difflib.get_close_matches(missing[0], others, n=1, cutoff=0.5)
    fix = f"rename {near[0]!r} to {missing[0]!r}" if near else "name the arrays as the inputs"
    raise DataError(
        f"has no array for input {missing[0]!r} "
        f"(keys: {', '.join(keys) or 'none'}; inputs: {', '.join(names)})",
        where=where,
        fix=fix,
    )


def conform(item: Mapping[str, Any], layout: InputLayout, where: str) -> list[Sample]:
    """Turn one item into rows that fit the model.

    Args:
        item: An array-like for each input; caches may be missing, other keys are labels, or left
            aside where the layout wants none.
        layout: The model's inputs.
        where: File and sample, for messages.

    Returns:
        Samples with a first axis of size 1 for each row, or one that is already whole: an item of
        the model's own batch size, or of a model without a batch axis.

    Raises:
        DataError: A wrong type, rank or shape, inputs that disagree, NaN or infinity.
    """
    feeds: Feeds = {}
    batched = False
    for spec in layout.inputs:
        if spec.grows is not None and spec.name not in item:
            continue
        place = f"{where}, input {spec.name!r}"
        array = _as_array(item[spec.name], place)
        if spec.images is not None and array.dtype == np.uint8:
            array = from_pixels(array, spec.images)
        array = _convert(array, spec.dtype, place)
        feeds[spec.name] = _fit(array, spec, layout, place)
        batched |= layout.uniform and array.ndim == feeds[spec.name].ndim
        _check_finite(array, place)
    feeds = add_empty(feeds, layout)
    _check_axes(feeds, layout, where)
    others = {k: v for k, v in item.items() if layout.labelled and k not in feeds}
    if not layout.uniform:
        return [Sample(feeds, _labels(others, 1, where, batched=False))]
    rows = {len(array) for array in feeds.values()}
    if len(rows) > 1:
        sizes = ", ".join(f"{name} {len(array)}" for name, array in feeds.items())
        raise DataError(f"inputs differ in their number of rows ({sizes})", where=where)
    count = rows.pop()
    labels = _labels(others, count, where, batched=batched)
    if count in (1, layout.batch):
        return [Sample(feeds, labels)]
    return [Sample(_row(feeds, i), _row(labels, i)) for i in range(count)]


def _as_array(value: Any, place: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"is not an array ({error})", where=place) from None


def _labels(
    values: Mapping[str, Any], rows: int, where: str, *, batched: bool
) -> dict[str, NDArray[Any]]:
    """Return labels whose first axis counts the item's rows, as the inputs' does.

    Args:
        values: By name.
        rows: Rows of the item.
        where: File and sample, for messages.
        batched: Whether the item's own values carry the axis of rows.
    """
    labels: dict[str, NDArray[Any]] = {}
    for name, value in values.items():
        place = f"{where}, label {name!r}"
        array = _as_array(value, place)
        if not (batched and array.ndim and len(array) == rows):
            if rows > 1:
                raise DataError(
                    f"has the shape {shape_text(array.shape)} beside inputs of {rows} rows",
                    where=place,
                    fix=f"give it a first axis of {rows}",
                )
            array = array[None]
        labels[str(name)] = array
    return labels


def _row(arrays: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
    return {name: array[index : index + 1] for name, array in arrays.items()}


def _fit(array: NDArray[Any], spec: InputSpec, layout: InputLayout, place: str) -> NDArray[Any]:
    """Return the array with its batch axis, once its shape is known to fit."""
    if spec.shape is None:
        return array
    first = spec.shape[0] if spec.shape else None
    addable = spec.batch_like and (layout.uniform or not isinstance(first, int) or first == 1)
    full = array[None] if addable and array.ndim == len(spec.shape) - 1 else array
    wanted: tuple[Dim, ...] = spec.shape
    if layout.uniform and full.ndim and (len(full) == 1 or not isinstance(first, int)):
        wanted = (None, *spec.shape[1:])  # rows: grouped to the model's batch size later
    fits = full.ndim == len(wanted) and all(
        not isinstance(want, int) or want == got
        for want, got in zip(wanted, full.shape, strict=True)
    )
    if not fits or (layout.uniform and len(full) == 0):
        fix = "make the data's shape fit the model's"
        if sorted(map(str, full.shape)) == sorted(map(str, spec.shape)):
            fix = "transpose the axes (NCHW against NHWC?)"
        got = shape_text(array.shape)
        raise DataError(f"expected {shape_text(spec.shape)}, got {got}", where=place, fix=fix)
    return full


def _check_axes(feeds: Feeds, layout: InputLayout, where: str) -> None:
    """Raise a DataError where two axes of one name differ in length."""
    seen: dict[str, tuple[int, str]] = {}
    for spec in layout.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            size = feeds[spec.name].shape[axis] if isinstance(dim, str) else 0
            if not isinstance(dim, str) or (axis == spec.grows and size == 0):
                continue
            other = seen.setdefault(dim, (size, spec.name))
            if other[0] != size:
                raise DataError(
                    f"axis {dim!r} is {other[0]} in input {other[1]!r} and {size} in {spec.name!r}",
                    where=where,
                    fix="give the inputs of one sample equal lengths",
                )


def _check_finite(array: NDArray[Any], place: str) -> None:
    if _family(array.dtype) != "float":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    bad = np.argwhere(~finite)[0].tolist()
    value = array[tuple(bad)]
    kind = "NaN" if np.isnan(value) else "infinity"
    raise DataError(f"has {kind} at index {bad}", where=place, fix="remove that sample")


def _family(dtype: np.dtype[Any]) -> str:
    """Return float, int, bool, complex, string or other; the ml_dtypes types count as numbers."""
    name = dtype.name
    if name.startswith(("float", "bfloat")):
        return "float"
    if name.startswith(("int", "uint")):
        return "int"
    kinds = {"b": "bool", "c": "complex", "U": "string", "O": "string"}
    return kinds.get(dtype.kind, "other")


def _convert(array: NDArray[Any], want: np.dtype[Any], place: str) -> NDArray[Any]:
    """Return the array in the input's type where no value is lost, else raise a DataError.

    Floats may be rounded to the input's precision, as the model would do itself, but not
    overflow; integers must keep every value.
    """
    have = array.dtype
    if have == want and want != object:
        return array
    if have.kind == "V" and have.names is None and have.itemsize == want.itemsize:
        return array.view(want)  # numpy files store bfloat16 and fp8 as raw bytes
    pair = (_family(have), _family(want))
    if pair == ("string", "string"):
        return _strings(array, place)
    if pair == ("float", "float"):
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(want)
        lost = ~np.isfinite(cast) & np.isfinite(array)
        return _kept(array, cast, lost, place)
    if pair in {("int", "int"), ("bool", "int"), ("int", "bool")}:
        cast = array.astype(want)
        changed = (cast.astype(have) != array) | ((cast < 0) != (array < 0))
        return _kept(array, cast, changed, place)
    fix = f"convert it to {_type_text(want)}"
    if pair == ("int", "float"):
        fix = f"save it as {want.name}"
        fix = _PREPROCESS.format(want=want.name) if have == np.uint8 else fix
    raise DataError(
        f"is {_type_text(have)}, the model takes {_type_text(want)}",
        where=place,
        fix=fix,
    )


def _type_text(dtype: np.dtype[Any]) -> str:
    return "strings" if _family(dtype) == "string" else dtype.name


def _kept(
    array: NDArray[Any], cast: NDArray[Any], lost: NDArray[np.bool_], place: str
) -> NDArray[Any]:
    if not np.any(lost):
        return cast
    value = array[tuple(np.argwhere(lost)[0])]
    raise DataError(
        f"has the {array.dtype.name} value {value}, which {cast.dtype.name} can't hold",
        where=place,
        fix=f"keep values within {cast.dtype.name}",
    )


def _strings(array: NDArray[Any], place: str) -> NDArray[Any]:
    if array.dtype == object and not all(isinstance(value, str) for value in array.flat):
        raise DataError("has objects that are no strings", where=place)
    return array.astype(object)
