"""What the model's inputs look like, and which of their axes is the batch.

The batch rule, for every source: a value with one axis less than the input gets a batch axis of
size 1 in front; a value of the input's rank is taken as it is. Where the first axis of every
input is the batch (`InputLayout.uniform`), a value that carries several rows is cut into rows,
and the rows are put together again in groups of the size that the model fixes (1 if it fixes
none). In other models (a recurrent state `[2, b, 128]`, a scalar input) each value is one sample.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qgraph.data.image_options import ImageOptions
from qgraph.errors import ModelError

Feeds = dict[str, NDArray[Any]]
"""One sample: an array for each input name, with the batch axis that the model expects."""


class Sample(NamedTuple):
    """One sample and what is known of it.

    Attributes:
        feeds: An array for each input name, with the batch axis that the model expects.
        labels: Arrays under names that are no inputs; the first axis counts the sample's rows.
    """

    feeds: Feeds
    labels: dict[str, NDArray[Any]]


Dim = int | str | None
"""Axis length, the name of a dynamic axis, or None for a dynamic axis without a name."""

_TIME_WORDS = ("seq", "time", "length", "frames", "tokens", "steps", "samples", "past")
_ORT_NAMES = {"float": "float32", "double": "float64", "string": "object"}


class TensorLike(Protocol):
    """Anything that describes an input: `TensorInfo`, an `onnx_ir.Value`, an ORT `NodeArg`."""

    @property
    def name(self) -> Any:
        """Name of the input."""

    @property
    def shape(self) -> Any:
        """Axis lengths, names or None; None where the rank is unknown."""


@dataclass(frozen=True)
class InputSpec:
    """One model input.

    Attributes:
        name: Its name.
        dtype: numpy type of its elements; `object` for strings.
        shape: Axis lengths, names or None; None where the rank is unknown.
        images: How uint8 images become this input's floats; None where it takes none.
        grows: Axis that counts the tokens of a KV cache, which data may leave out; None for others.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None
    images: ImageOptions | None = None
    grows: int | None = None

    @property
    def batch_like(self) -> bool:
        """Whether the first axis may be the batch: there is one and it isn't named like time."""
        if not self.shape:
            return False
        first = self.shape[0]
        named_time = isinstance(first, str) and any(w in first.lower() for w in _TIME_WORDS)
        return not named_time

    def __str__(self) -> str:
        """Return name, type and shape as messages print them."""
        dtype = "string" if self.dtype == object else self.dtype.name
        return f"{self.name}: {dtype} {shape_text(self.shape)}"


@dataclass(frozen=True)
class InputLayout:
    """All inputs of a model.

    Attributes:
        inputs: The inputs, in the model's order.
        uniform: Whether the first axis of every input is the batch.
        batch: Rows in one sample: the size that the model fixes for the batch, or 1.
        free: Whether samples can be put together along the batch axis.
        labelled: Whether arrays under names that are no inputs are read too, as labels.
    """

    inputs: tuple[InputSpec, ...]
    uniform: bool
    batch: int
    free: bool
    labelled: bool = False

    @property
    def names(self) -> list[str]:
        """Input names, in the model's order."""
        return [spec.name for spec in self.inputs]

    @property
    def required(self) -> list[str]:
        """Names of the inputs that data must have: all that are no caches."""
        return [spec.name for spec in self.inputs if spec.grows is None]


def read_layout(inputs: Iterable[TensorLike]) -> InputLayout:
    """Describe the model's inputs and find their batch axis.

    Args:
        inputs: Objects with `name`, `shape`, and `dtype` (numpy, `onnx_ir.DataType` or a name).

    Raises:
        ModelError: There are no inputs, two of one name, or one that isn't a tensor.
    """
    specs = tuple(_spec(one) for one in inputs)
    names = [spec.name for spec in specs]
    if not specs or len(set(names)) != len(names):
        raise ModelError(f"the model needs inputs with distinct names, it has {names}")
    uniform = _uniform(specs)
    firsts = {spec.shape[0] for spec in specs if spec.shape} if uniform else set()
    fixed = [first for first in firsts if isinstance(first, int)]
    return InputLayout(specs, uniform, fixed[0] if fixed else 1, uniform and not fixed)


def shape_text(shape: Sequence[Dim] | None) -> str:
    """Return a shape as messages print it: `[n, 3, 224, ?]`."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def _spec(one: TensorLike) -> InputSpec:
    name = str(one.name)
    shape = None if one.shape is None else tuple(_dim(d) for d in one.shape)
    raw = getattr(one, "dtype", None)
    return InputSpec(
        name, _dtype(raw if raw is not None else getattr(one, "type", None), name), shape
    )


def _dim(raw: Any) -> Dim:
    raw = getattr(raw, "value", raw)  # onnx_ir.SymbolicDim
    if isinstance(raw, str):
        return raw or None
    return None if raw is None or int(raw) < 0 else int(raw)


def _dtype(raw: Any, name: str) -> np.dtype[Any]:
    """Return the numpy type of an input, from whichever form it is described in."""
    try:
        if hasattr(raw, "numpy"):
            known: np.dtype[Any] = np.dtype(raw.numpy())
            return known
        if isinstance(raw, str):
            text = raw.removeprefix("tensor(").removesuffix(")")
            import ml_dtypes  # noqa: F401 - gives numpy the names bfloat16, float8_e4m3fn, int4

            return np.dtype(_ORT_NAMES.get(text, text))
        if raw is not None:
            told: np.dtype[Any] = np.dtype(raw)
            return told
    except TypeError:
        pass
    raise ModelError(
        f"has the type {raw}, which can't be fed from data",
        where=f"input {name!r}",
        fix="give the model plain tensor inputs",
    )


def _uniform(specs: Sequence[InputSpec]) -> bool:
    """Whether the first axis of every input is one and the same batch axis."""
    if not all(spec.batch_like for spec in specs):
        return False
    shapes = [spec.shape for spec in specs if spec.shape]
    if max(len(shape) for shape in shapes) < 2:
        return False  # vectors only: the axis is as likely a length as a batch
    firsts = {shape[0] for shape in shapes}
    names = {first for first in firsts if isinstance(first, str)}
    sizes = {first for first in firsts if isinstance(first, int)}
    inner = {dim for shape in shapes for dim in shape[1:]}
    return len(names) <= 1 and len(sizes) <= 1 and 0 not in sizes and not names & inner
