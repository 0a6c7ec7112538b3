"""How long searches take, in runs of the original over the data, as models grow."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from qgraph.errors import AccuracyError
from qgraph.search import compile_within


def chain(units: int, folder: Path) -> Path:
    """A network of `units` convolutions with ReLU, in residual pairs, and a classifier."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index in range(units - 1):
        weight = rng.normal(0, (2 / (16 * 9)) ** 0.5, (16, 16, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(
            helper.make_node(
                "Conv", [value, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        value = f"r{index}"
    weights.append(numpy_helper.from_array(rng.normal(0, 0.3, (16, 10)).astype(np.float32), "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["p"], "pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["f", "head"], ["y"], "gemm"))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "chain", [info("x", 1, ["n", 16, 16, 16])], [info("y", 1, ["n", 10])], weights
    )
    path = folder / f"chain{units}.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


def growth(counts: Sequence[int], folder: Path) -> Table:
    """Search times of chains of several lengths."""
    table = Table("units", "search, s", "in runs of the original over the data", "per unit")
    images = np.random.default_rng(1).normal(size=(192, 16, 16, 16)).astype(np.float32)
    for count in counts:
        output = folder / f"chain{count}"
        try:
            compile_within(
                chain(count, folder),
                data={"x": images},
                max_drop="2%",
                recipe="fast",
                output=output,
            )
        except AccuracyError as error:
            print(f"note: {error}", file=sys.stderr)
        found = json.loads((output / "search.json").read_text())
        evaluations = found["plain_evaluations"]
        seconds = sum(found["seconds"].values())
        row = (str(count), f"{seconds:.1f}", f"{evaluations:.1f}", f"{evaluations / count:.2f}")
        table.add_row(*row)
        print(*row, found["seconds"], sep=" | ", flush=True)
    return table
