"""An observer's state as arrays, and back: what a checkpoint of a calibration consists of."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Spec

Arrays = dict[str, NDArray[Any]]
# Longer arrays that are mostly zero (histograms) are kept as places and values.
DENSE = 4096


def state_of(observer: Any) -> Arrays:
    """Return everything that an observer, a dataclass, has seen.

    Numbers, lists of numbers and arrays are taken from its fields, and from those of dataclasses
    among them; a `Spec` is an option and left out.

    Raises:
        TypeError: A field is of another kind.
    """
    found: Arrays = {}
    for field in dataclasses.fields(observer):
        value = getattr(observer, field.name)
        if isinstance(value, Spec):
            continue
        if dataclasses.is_dataclass(value):
            inner = state_of(value)
            found |= {f"{field.name}.{key}": array for key, array in inner.items()}
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found |= _packed(field.name, value)
        elif isinstance(value, bool | int | float):
            found[field.name] = np.asarray(value)
        elif isinstance(value, list) and all(isinstance(each, float) for each in value):
            found[field.name] = np.asarray(value, np.float64)
        else:
            raise TypeError(f"{field.name!r} of {type(observer).__name__} has no form as an array")
    return found


def restore(observer: Any, state: Mapping[str, NDArray[Any]]) -> None:
    """Bring a new observer, made with the same options, to a saved state.

    Raises:
        ValueError: The state is that of another observer, or damaged.
    """
    for field in dataclasses.fields(observer):
        value = getattr(observer, field.name)
        if isinstance(value, Spec):
            continue
        if dataclasses.is_dataclass(value):
            head = f"{field.name}."
            restore(
                value, {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
            )
            continue
        if isinstance(value, np.ndarray):
            setattr(observer, field.name, _unpacked(field.name, state, value))
            continue
        saved = _field(state, field.name)
        if isinstance(value, list):
            if saved.ndim != 1 or saved.dtype != np.float64:
                raise ValueError(f"{field.name!r} is no list of numbers")
            setattr(observer, field.name, saved.tolist())
        else:
            if saved.shape != ():
                raise ValueError(f"{field.name!r} is no number")
            setattr(observer, field.name, type(value)(saved[()]))


def _packed(name: str, array: NDArray[Any]) -> Arrays:
    if array.ndim != 1 or array.size <= DENSE:
        return {name: array}
    places = np.flatnonzero(array)
    return {f"{name}@places": places.astype(np.int64), f"{name}@values": array[places]}


def _unpacked(name: str, state: Mapping[str, NDArray[Any]], like: NDArray[Any]) -> NDArray[Any]:
    if name in state:
        saved = state[name]
    else:
        places, values = _field(state, f"{name}@places"), _field(state, f"{name}@values")
        inside = places.size == 0 or (int(places.min()) >= 0 and int(places.max()) < like.size)
        if places.dtype != np.int64 or places.shape != values.shape or not inside:
            raise ValueError(f"{name!r} is damaged")
        saved = np.zeros(like.shape, values.dtype)
        saved[places] = values
    if saved.dtype != like.dtype or saved.shape != like.shape:
        raise ValueError(f"{name!r} has another form")
    return np.array(saved)


def _field(state: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in state:
        raise ValueError(f"{name!r} is missing")
    return state[name]
