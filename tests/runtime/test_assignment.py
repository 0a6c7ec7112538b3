"""Nodes that ran elsewhere than in the engine's own provider: found, told apart, with their cost."""

import numpy as np
from runtime_models import text

from qgraph.runtime import backend
from qgraph.runtime.assignment import describe, left_behind, strays
from qgraph.runtime.backend import EngineOptions, ExecutedOp
from qgraph.runtime.executed import executed_ops

CPU = backend("onnxruntime-cpu")
FLOAT, INT = ("float32",), ("int64",)


def op(kind: str, provider: str, ins: tuple[str, ...], outs: tuple[str, ...], us: float = 0.0):
    return ExecutedOp(kind.lower(), kind, f"{provider}ExecutionProvider", ins, outs, us)


RAN = [
    op("Conv", "CUDA", FLOAT * 2, FLOAT, 10),
    op("Shape", "CPU", FLOAT, INT, 1),
    op("Gather", "CPU", INT * 2, INT, 1),
    op("MemcpyToHost", "CUDA", FLOAT, FLOAT, 250),
    op("GridSample", "CPU", FLOAT * 2, FLOAT, 1500),
    op("GridSample", "CPU", FLOAT * 2, FLOAT, 500),
    op("ArgMax", "CPU", FLOAT, INT, 500),
]


def test_computed_shapes_are_no_strays():
    assert [each.op_type for each in strays(RAN, "CUDAExecutionProvider")] == [
        "GridSample",
        "GridSample",
        "ArgMax",
    ]


def test_the_warning_has_kinds_and_cost():
    [line] = describe(RAN, "CUDAExecutionProvider", 5.0)
    assert line == (
        "3 nodes did not run in CUDA: 2 GridSample in CPU, 1 ArgMax in CPU; they took 2.500 ms of "
        "5.000 ms (50%), and 1 copies between the two 0.250 ms"
    )
    assert describe(RAN[:4], "CUDAExecutionProvider", 5.0) == []
    assert describe(RAN, "CPUExecutionProvider", 5.0)[0].startswith("2 nodes did not run in CPU")


def test_a_real_profile_tells_shapes_from_work(tmp_path):
    """All runs on the CPU here, so that all but the shapes would be strays on a GPU."""
    body = """g (float[N, 4] x) => (float[M, 4] z) <int64 zero = {0}, int64 one = {1}> {
        s = Shape(x)  n = Gather(s, zero)  r = Range(zero, n, one)  y = Neg(x)  z = Gather(y, r)
    }"""
    model = tmp_path / "model.onnx"
    model.write_bytes(text(body).SerializeToString())
    feeds = {"x": np.ones((3, 4), np.float32)}
    ran = executed_ops(model, feeds, CPU)
    # Range and the last Gather became one Slice.
    assert {"Shape", "Gather", "Unsqueeze"} <= {each.op_type for each in ran}
    found = {each.op_type for each in strays(ran, "CUDAExecutionProvider")}
    assert found == {"Neg", "Slice"}
    # An engine without a provider of its own has nothing to report.
    assert left_behind(CPU, model, feeds, EngineOptions(), 1.0) == []


class Picky(type(CPU)):
    provider = "CUDAExecutionProvider"


def test_an_engine_with_a_provider_is_asked_what_ran(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(text("g (float[N] x) => (float[N] y) { y = Neg(x) }").SerializeToString())
    feeds = {"x": np.ones(3, np.float32)}
    [line] = left_behind(Picky(), model, feeds, EngineOptions(), 1.0)
    assert line.startswith("1 nodes did not run in CUDA: 1 Neg in CPU; they took 0.0")
    [line] = left_behind(Picky(), model, {}, EngineOptions(), 1.0)
    assert line.startswith("which nodes ran where is unknown: input 'x': missing")
