"""What all passes but calibration cost, beside loading, checking and saving.

    python -m benchmarks.graph_passes [--nodes 100 1000 10000 50000] [--opset 21]

The passes of an int8 compile, with made-up ranges in calibration's place. Seconds of CPU time, all
of it one thread, so that other work on the machine does not count; the fastest of `--repeat` runs.
Loading includes onnx's checker. The last two columns are the sum of all passes, and that sum over
load + save: the target is at most 2, and the same for every size.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.calibrate import encode
from qgraph.passes.cleanup import CLEANUP
from qgraph.passes.fusions import FUSIONS
from qgraph.pipeline import Pass, PassReport, Pipeline
from qgraph.registry import by_name
from qgraph.target import target

NODES_A_BLOCK = 21
GROUPS = {
    **dict.fromkeys(by_name(CLEANUP), "clean up"),
    **dict.fromkeys(by_name(FUSIONS), "fuse"),
}


class MadeUpRanges(Pass):
    """Stands where calibration would, since what that costs is another benchmark's question."""

    name = "ranges"
    needs = frozenset({"plan"})
    gives = frozenset({"ranges", "encodings"})

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Give every planned value the range -1 to 1."""
        assert graph.facts.plan is not None
        graph.facts.ranges = dict.fromkeys(graph.facts.plan.activations, (-1.0, 1.0))
        graph.facts.encodings = encode(graph.facts.plan, graph.facts.ranges)
        return PassReport()


def block(index: int, source: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Return 21 nodes: half of them arithmetic, half what exporters leave around it."""
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: list[str], **attributes: object) -> str:
        result = f"{op_type}_{index}_{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [result], name=result, **attributes))
        return result

    axis = add("Constant", [], value=numpy_helper.from_array(np.array(1)))
    open_end = add("Constant", [], value=numpy_helper.from_array(np.array([-1])))
    front = add("Constant", [], value=numpy_helper.from_array(np.array([0])))
    linear = add("Add", [add("MatMul", [source, f"w{index}"]), f"b{index}"])
    one, other = add("Sigmoid", [linear]), add("Sigmoid", [linear])
    gated = add("Mul", [add("Mul", [linear, one]), other])
    same = add("Identity", [add("Cast", [gated], to=TensorProto.FLOAT)])
    back = add("Transpose", [add("Transpose", [same], perm=[1, 0])], perm=[1, 0])
    channels = add("Unsqueeze", [add("Gather", [add("Shape", [back]), axis]), front])
    shape = add("Concat", [open_end, channels], axis=0)
    shaped = add("Relu", [add("Reshape", [back, shape])])
    result = add("Add", [shaped, source])
    add("Neg", [result])  # nobody reads it
    weights = [
        numpy_helper.from_array(np.full((8, 8), index % 97, np.float32) / 800, f"w{index}"),
        numpy_helper.from_array(np.full(8, index, np.float32) / 1e6, f"b{index}"),
    ]
    assert len(nodes) == NODES_A_BLOCK
    return nodes, weights, result


def model(count: int, opset: int) -> onnx.ModelProto:
    """Return a model of about `count` nodes."""
    nodes, weights, last = [], [], "x"
    for index in range(max(count // NODES_A_BLOCK, 1)):
        more, tensors, last = block(index, last)
        nodes += more
        weights += tensors
    sides = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8])] for name in ("x", last)
    ]
    graph = helper.make_graph(nodes, "blocks", *sides, weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset > 20 else 8
    )


def measure(count: int, opset: int) -> dict[str, float]:
    """Return seconds by step, for one model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model(count, opset), path)
        start = time.process_time()
        graph = onnx_io.load(path)
        loaded = time.process_time()
        onnx_io.save(graph, path)
        saved = time.process_time()
        row = {"load": loaded - start, "save": saved - loaded}
        quantizing = flow.quantizing_passes("int8", {})
        passes = [
            *flow.exact_passes({}),
            *(MadeUpRanges() if each.name == "calibrate" else each for each in quantizing),
        ]
        marks = [time.process_time()]
        pipeline = Pipeline(passes, hooks=[lambda *_: marks.append(time.process_time())])
        pipeline.run(graph, Context(target=target("cpu")))
    for each, (before, after) in zip(passes, itertools.pairwise(marks), strict=True):
        group = GROUPS.get(each.name, each.name)
        row[group] = row.get(group, 0.0) + after - before
    row["sum"] = marks[-1] - marks[0]
    row["ratio"] = row["sum"] / (row["load"] + row["save"])
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1_000, 10_000, 50_000])
    parser.add_argument("--opset", type=int, default=21)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    header = False
    for count in options.nodes:
        rows = [measure(count, options.opset) for _ in range(options.repeat)]
        best = min(rows, key=lambda row: row["sum"])
        if not header:
            print(" | ".join(["nodes".rjust(6), *(name.rjust(8) for name in best)]))
            header = True
        cells = (f"{best[name]:.4f}".rjust(max(len(name), 8)) for name in best)
        print(" | ".join([str(count).rjust(6), *cells]))


if __name__ == "__main__":
    main()
