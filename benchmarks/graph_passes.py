"""What normalize and the clean-up passes cost, beside loading, checking and saving.

    python benchmarks/graph_passes.py [--nodes 100 1000 10000 50000] [--opset 21]

Seconds of CPU time, all of it one thread, so that other work on the machine does not count; the
fastest of `--repeat` runs. Loading includes onnx's checker.
The last two columns are the sum of all passes, and that sum over load + save.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qgraph import onnx_io
from qgraph.passes.cleanup import CLEANUP
from qgraph.passes.normalize import Normalize
from qgraph.pipeline import Pipeline
from qgraph.registry import load as load_class

NODES_A_BLOCK = 21


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
    passes = [Normalize(), *(load_class(each)() for each in CLEANUP)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model(count, opset), path)
        start = time.process_time()
        graph = onnx_io.load(path)
        loaded = time.process_time()
        onnx_io.save(graph, path)
        saved = time.process_time()
        row = {"load": loaded - start, "save": saved - loaded}
        marks = [time.process_time()]
        Pipeline(passes, hooks=[lambda *_: marks.append(time.process_time())]).run(graph)
    times = [after - before for before, after in itertools.pairwise(marks)]
    row.update({each.name: seconds for each, seconds in zip(passes, times, strict=True)})
    row["sum"] = sum(times)
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
