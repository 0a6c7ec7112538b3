"""Inputs that are KV caches: data may leave them out, and they are then fed empty."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data.inputs import Feeds, InputLayout, InputSpec


def with_caches(layout: InputLayout, axes: Mapping[str, int]) -> InputLayout:
    """Note which inputs are caches.

    Args:
        layout: The model's inputs.
        axes: By name of a cache, its axis that counts tokens; see `qgraph.kv_cache`.
    """
    specs = tuple(replace(spec, grows=axes.get(spec.name)) for spec in layout.inputs)
    return replace(layout, inputs=specs)


def add_empty(feeds: Feeds, layout: InputLayout) -> Feeds:
    """Return feeds for all inputs, in the model's order, with caches of length 0 where none came.

    Args:
        feeds: Arrays with their batch axis, for every input that is no cache at least.
        layout: The model's inputs.
    """
    sizes = {
        dim: size
        for spec in layout.inputs
        if spec.name in feeds and spec.shape is not None
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    rows = len(next(iter(feeds.values()))) if layout.uniform else None
    return {
        spec.name: feeds[spec.name] if spec.name in feeds else _empty(spec, sizes, rows)
        for spec in layout.inputs
    }


def _empty(spec: InputSpec, sizes: Mapping[str, int], rows: int | None) -> NDArray[Any]:
    """Return a cache without tokens; a dynamic axis that no other input tells has size 1."""
    shape = [dim if isinstance(dim, int) else sizes.get(dim or "", 1) for dim in spec.shape or ()]
    if rows is not None:
        shape[0] = rows
    if spec.grows is not None:
        shape[spec.grows] = 0
    return np.zeros(shape, spec.dtype)
