"""Tries a rewrite on samples that it has not seen."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qgraph import onnx_io
from qgraph.graph import Graph
from qgraph.passes.collect import sample_count
from qgraph.passes.collect_values import Feeds

# One sample in so many is held out, beginning with the second.
HOLD_ONE_IN = 4


@dataclass
class Part:
    """One part of some samples: every fourth, or all others. Can be read as often as they can."""

    data: Iterable[dict[str, Any]]
    held: bool

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Give the samples of this part."""
        for index, feeds in enumerate(self.data):
            if (index % HOLD_ONE_IN == 1) == self.held:
                yield feeds

    @property
    def expected(self) -> int | None:
        """How many there are, for progress; None where that isn't known."""
        total = sample_count(self.data)
        if total is None:
            return None
        held = (total + HOLD_ONE_IN - 2) // HOLD_ONE_IN
        return held if self.held else total - held


def kept_sqnr(before: Graph, after: Graph, data: Iterable[Feeds], limit: int = 32) -> float | None:
    """SQNR in dB of a float graph's outputs after a rewrite, the worst of all outputs.

    Args:
        before: The graph as it was.
        after: The graph rewritten, with the same interface.
        data: Samples.
        limit: How many to run at most.

    Returns:
        The SQNR over all samples; infinite where nothing changed, None without samples.

    Raises:
        EngineError: onnxruntime is missing or refuses a graph.
    """
    from qgraph.runtime import observing_backend
    from qgraph.runtime.compare import Comparison

    comparison = Comparison()
    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        paths = [Path(folder) / "before.onnx", Path(folder) / "after.onnx"]
        for graph, path in zip((before, after), paths, strict=True):
            onnx_io.save(graph, path)
        first, second = (observing_backend(path).open(path) for path in paths)
        with first, second:
            for feeds in islice(data, limit):
                comparison.add(first.run(feeds), second.run(feeds))
    found = [r.sqnr_db for r in comparison.results() if r.sqnr_db is not None]
    return min(found, default=None)
