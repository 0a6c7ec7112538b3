"""Runs a graph on a few samples and keeps some rows of values: what layer-wise searches look at."""

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.graph import Graph


def channel_rows(
    graph: Graph,
    names: Sequence[str],
    context: Context,
    what: str,
    *,
    samples: int = 32,
    rows: int = 1024,
) -> dict[str, NDArray[np.float32]]:
    """Return rows of the named values, drawn evenly from the first samples.

    Args:
        graph: Float graph; it is not changed.
        names: Float values of the outermost graph whose last axis runs over channels.
        context: Has the data and the seed.
        what: What to call this in progress reports.
        samples: How many samples to run at most.
        rows: How many rows to keep of each value at most.

    Returns:
        float32 [rows, channels] by name; values that were empty in every sample are left out.

    Raises:
        EngineError: onnxruntime is missing or refuses the graph.
        DataError: There is no data, or it makes a value NaN or infinite.
    """
    from qgraph.runtime import observing_backend
    from qgraph.runtime.backend import EngineOptions

    if context.data is None:
        raise DataError(f"{what} needs data", fix="pass --data")
    rng = np.random.default_rng(context.seed)
    share = max(1, rows // samples)
    kept: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        path = Path(folder) / "observed.onnx"
        onnx_io.save(_observed(graph, names), path)
        with observing_backend(path).open(path, EngineOptions()) as session:
            for index, feeds in enumerate(islice(context.data, samples)):
                for name, array in session.run(feeds).items():
                    if array.size == 0:
                        continue
                    flat = array.reshape(-1, array.shape[-1])
                    if not np.isfinite(flat).all():
                        raise DataError(
                            f"sample {index} makes {name!r} NaN or infinite", fix="check the data"
                        )
                    chosen = rng.permutation(len(flat))[:share]
                    kept[name].append(flat[chosen].astype(np.float32))
                context.progress(what, index + 1, samples)
    return {name: np.concatenate(parts) for name, parts in kept.items() if parts}


def _observed(graph: Graph, names: Sequence[str]) -> Graph:
    copy = Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)
    values = {v.name: v for v in [*copy.main.inputs, *(o for n in copy.nodes() for o in n.outputs)]}
    copy.main.outputs.clear()
    copy.main.outputs.extend(values[name] for name in names)
    return copy
