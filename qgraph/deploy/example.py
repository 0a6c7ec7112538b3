"""Feeds that a model takes, of data or found by running it: for warm-up and for trying it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qgraph.errors import QGraphError

if TYPE_CHECKING:
    from qgraph.artifact import Artifact
    from qgraph.data import Feeds
    from qgraph.graph import Graph
    from qgraph.runtime.backend import Session, TensorInfo

# Lengths that dynamic axes are tried with, all of them at once, beside `random_feeds`' own.
_LENGTHS = (1, 8, 32, 224)


def find_example(session: "Session", graph: "Graph") -> "Feeds | None":
    """Return feeds of batch 1 with which the model runs, or None.

    A decoder with a cache gets one token behind another, so that no axis is empty.

    Args:
        session: The model, opened.
        graph: Its structure.
    """
    for feeds in _candidates(session, graph):
        try:
            session.run(feeds)
        except QGraphError:
            continue
        return feeds
    return None


def first_sample(artifact: "Artifact", inputs: "Sequence[TensorInfo]", source: str) -> "Feeds":
    """Return the first sample of data, as the artifact takes it.

    Raises:
        DataError: It can't be read or does not fit.
    """
    from qgraph.data import open_data
    from qgraph.interface import raw_images
    from qgraph.kv_cache import cache_axes_of
    from qgraph.runnable import image_options, runnable

    run = runnable(artifact.path)
    images = raw_images(run.io) or image_options(run, None)
    caches = cache_axes_of(run.model, inputs)
    data = open_data(source, inputs, images=images, caches=caches, samples=1)
    return dict(next(iter(data)))


def takes_zeros(session: "Session", example: "Feeds") -> bool:
    """Whether the model runs on zeros of the example's shapes, which servers warm up with."""
    zeros = {
        name: np.full(x.shape, "", object) if x.dtype == object else np.zeros_like(x)
        for name, x in example.items()
    }
    try:
        session.run(zeros)
    except QGraphError:
        return False
    return True


def _candidates(session: "Session", graph: "Graph") -> "Iterator[Feeds]":
    from qgraph.kv_cache import find_caches
    from qgraph.runtime.feeds import random_feeds

    if find_caches(graph):
        try:
            yield _step(session, graph)
        except QGraphError:
            pass
    tries: list[dict[str, int]] = [{}]
    tries += [
        {
            f"{info.name}:{axis}": length
            for info in session.inputs
            for axis, dim in enumerate(info.shape)
            if axis and not isinstance(dim, int)
        }
        for length in _LENGTHS
    ]
    for sizes in tries:
        try:
            yield random_feeds(session.inputs, np.random.default_rng(0), sizes)
        except QGraphError:
            continue


def _step(session: "Session", graph: "Graph") -> "Feeds":
    from qgraph.decoder import Decoder, context_length
    from qgraph.kv_cache import find_caches

    decoder = Decoder(session, find_caches(graph), context_length(graph))
    decoder.step([0])
    return dict(decoder.feeds([0]))
