"""Parts of the data: to calibrate with, to search with, and to prove the promise with."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qgraph.data import DataSet, Feeds, open_data
from qgraph.data.image_options import ImageOptions
from qgraph.data.inputs import Sample
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.kv_cache import cache_axes
from qgraph.metrics.metric import Metric
from qgraph.metrics.scoring import sided

# Of the samples: never used by the search; of the rest: to verify choices, not to calibrate.
PROOF = 1 / 3
SEARCH = 1 / 2
LEAST = 12
# Samples whose errors are measured unit by unit.
SENSITIVITY = 24


@dataclass(frozen=True)
class Parts:
    """Samples that have no row in common.

    Attributes:
        data: All of them.
        calibration: Feeds of the model, to calibrate with.
        sensitivity: Some of the same, with labels where the metric reads one run's outputs.
        first: The labelled samples that those are from.
        search: Labelled samples to verify choices on.
        proof: Labelled samples that nothing was chosen by.
    """

    data: DataSet
    calibration: list[Feeds]
    sensitivity: list[Sample]
    first: DataSet
    search: DataSet
    proof: DataSet


def open_parts(
    given: Any,
    graph: Graph,
    metric: Metric,
    images: ImageOptions | None,
    samples: int | None,
    calibration: int | None,
) -> Parts:
    """Open labelled data and split it.

    Args:
        given: See `qgraph.data.open_data`.
        graph: The original.
        metric: Decides which inputs and labels are read.
        images: Preprocessing of images.
        samples: Use at most so many samples.
        calibration: Calibrate with at most so many.

    Raises:
        DataError: There are too few, they are random, or they can be read only once.
    """
    inputs, caches = graph.signature(), cache_axes(graph)
    data = open_data(
        given,
        sided(inputs, metric.sides),
        images=images,
        caches={side + name: axis for side in metric.sides for name, axis in caches.items()},
        samples=samples,
        labelled=True,
    )
    if data.random:
        raise DataError("random data proves nothing", fix="pass labelled samples with --data")
    if not data.rereadable:
        raise DataError("the data can be read only once", where=data.where, fix="pass a file")
    if data.count is not None and data.count < LEAST:
        raise DataError(
            f"{data.count} samples are too few to search and to prove",
            where=data.where,
            fix=f"give at least {LEAST}, better hundreds",
        )
    rest, proof = data.split(PROOF)
    first, search = rest.split(SEARCH)
    labelled = first
    if calibration is not None and first.count is not None and first.count > calibration:
        _, first = first.split(calibration)
    names = [info.name for info in inputs]
    feeds = [
        {name: sample[side + name] for name in names if side + name in sample}
        for sample in islice(first, calibration)
        for side in metric.sides
    ]
    if metric.sides == ("",):
        some = _spread(list(islice(first.labelled(), calibration)), SENSITIVITY)
    else:
        some = [Sample(each, {}) for each in _spread(feeds, SENSITIVITY)]
    return Parts(data, feeds, some, labelled, search, proof)


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, evenly spread."""
    step = max(1.0, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


def calibrating(graph: Graph, held_out: float, feeds: Sequence[Feeds]) -> DataSet:
    """Return what an ordinary compile calibrates with, of the same samples.

    Args:
        graph: The model.
        held_out: What the recipe keeps out of it.
        feeds: The samples.
    """
    data = open_data(feeds, graph.signature(), caches=cache_axes(graph))
    return data.split(held_out)[0]
