"""Random samples, for trying a compile without data: never a basis for accuracy."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16, float8 and int4
import numpy as np
from numpy.typing import NDArray

from qgraph.data.inputs import InputLayout, InputSpec
from qgraph.data.source import Pending, Source
from qgraph.errors import DataError, unknown_name

_SPEC = re.compile(r"random(:[^=,]+=\d+(,[^=,]+=\d+)*)?")
_AXIS = 64
_SAMPLES = 64


def is_random_spec(text: str) -> bool:
    """Whether a text reads `random` or `random:AXIS=LENGTH,...`."""
    return _SPEC.fullmatch(text) is not None


class RandomSource(Source):
    """Standard normal floats, integers and booleans of 0 and 1, bytes over their whole range.

    Integers stay at 0 and 1 because most are token ids, masks or types, where anything larger
    may be out of range. Dynamic axes other than the batch get the length named in the source
    (`random:width=320`), else 64.
    """

    kind = "random"
    where = "random"
    random = True
    rows_per_item = 1

    def __init__(self, spec: str, layout: InputLayout, samples: int | None, seed: int) -> None:
        """Read the axis lengths.

        Raises:
            UsageError: An axis is named that no input has.
            DataError: An input of unknown rank, or of a type that has no random values.
        """
        pairs = [pair.split("=") for pair in spec.partition(":")[2].split(",") if pair]
        self._sizes = {name.strip(): int(size) for name, size in pairs}
        names = {d for s in layout.inputs for d in s.shape or () if isinstance(d, str)}
        for name in self._sizes:
            if name not in names:
                raise unknown_name("axis", name, names or {"(no named axes)"})
        self._layout, self._seed = layout, seed
        self._count = (samples or _SAMPLES) * (layout.batch if layout.uniform else 1)
        # Caches are fed empty unless a length was said for them.
        self._shapes = [(s, self._shape(s)) for s in layout.inputs if not self._left_out(s)]
        self._make(0)

    @property
    def count(self) -> int:
        """Number of rows."""
        return self._count

    def items(self) -> Iterator[Pending]:
        """Give one row after the other; each has its own seed, so any may be left out."""
        for index in range(self._count):
            yield Pending(f"random: sample {index}", partial(self._make, index))

    def digest(self) -> str:
        """Return what the values follow from."""
        return f"seed={self._seed} sizes={sorted(self._sizes.items())}"

    def describe(self) -> dict[str, Any]:
        """Return the seed and the lengths of dynamic axes."""
        return {"seed": self._seed, "axes": dict(self._sizes)}

    def _left_out(self, spec: InputSpec) -> bool:
        return spec.grows is not None and (spec.shape or ())[spec.grows] not in self._sizes

    def _shape(self, spec: InputSpec) -> tuple[int, ...]:
        if spec.shape is None:
            raise DataError(
                "has an unknown rank", where=f"random, input {spec.name!r}", fix="give real data"
            )
        batch_names = {s.shape[0] for s in self._layout.inputs if s.shape and s.batch_like}
        sizes: list[int] = []
        for axis, dim in enumerate(spec.shape):
            leads = axis == 0 and spec.batch_like
            if leads and (self._layout.uniform or not isinstance(dim, int)):
                sizes.append(1)
            elif isinstance(dim, int):
                sizes.append(dim)
            elif dim is not None and dim in self._sizes:
                sizes.append(self._sizes[dim])
            else:
                sizes.append(1 if dim is not None and dim in batch_names else _AXIS)
        return tuple(sizes)

    def _make(self, index: int) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng([self._seed, index])
        return {spec.name: _values(rng, spec, shape) for spec, shape in self._shapes}


def _values(rng: np.random.Generator, spec: InputSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = spec.dtype
    if dtype in (np.uint8, np.int8):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return rng.integers(low, high, shape, dtype, endpoint=True)
    if dtype.name.startswith(("int", "uint", "bool")):
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.name.startswith(("float", "bfloat")):
        return rng.standard_normal(shape, np.float32).astype(dtype)
    raise DataError(
        f"has the type {dtype.name}, which has no random values",
        where=f"random, input {spec.name!r}",
        fix="give real data",
    )
