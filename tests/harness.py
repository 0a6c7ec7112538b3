"""What every pass is held to: fires, stays put, interface kept, numbers, a second run is quiet."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.pipeline import Pass, PassReport, Pipeline
from qgraph.runtime.exact_products import overflows, with_exact_products

RTOL = 1e-4  # of the output's range, for exact passes (DESIGN.md)


def model(
    text: str,
    initializers: Mapping[str, np.ndarray] | None = None,
    opset: int = 21,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """Parse `name (float[N,3] x) => (float[N,4] y) { ... }` and add initializers by name."""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
    proto = onnx.parser.parse_model(text if text.lstrip().startswith("<") else head + text)
    for name, array in (initializers or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def interface(proto: onnx.ModelProto) -> list[bytes]:
    init = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in init]
    return [v.SerializeToString(deterministic=True) for v in [*inputs, *proto.graph.output]]


def run_reference(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Run without any optimisation: ORT at its default level would do the pass's work itself."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if overflows():
        proto = with_exact_products(copy.deepcopy(proto))
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def random_feeds(proto: onnx.ModelProto, seed: int = 0, size: int = 2) -> dict[str, np.ndarray]:
    """Standard normal floats, small ints, for every input; unknown axes get `size`."""
    rng = np.random.default_rng(seed)
    init = {t.name for t in proto.graph.initializer}
    feeds: dict[str, np.ndarray] = {}
    for value in proto.graph.input:
        if value.name in init:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value or size for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[value.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            feeds[value.name] = rng.integers(0, 4, shape).astype(dtype)
    return feeds


def assert_close(
    expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], rtol: float = RTOL
) -> None:
    assert list(expected) == list(got)
    for name, want in expected.items():
        have = got[name]
        assert have.shape == want.shape and have.dtype == want.dtype, name
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(have, want, err_msg=name)
            continue
        assert (np.isnan(want) == np.isnan(have)).all(), name
        finite = np.isfinite(want)
        np.testing.assert_array_equal(have[~finite], want[~finite], err_msg=name)
        span = np.ptp(want[finite]) if finite.any() else 0.0
        error = np.abs(have[finite] - want[finite]).max(initial=0.0)
        assert error <= rtol * max(float(span), 1e-6), f"{name}: error {error}, range {span}"


def apply(
    passes: Pass | Sequence[Pass],
    proto: onnx.ModelProto,
    context: Context | None = None,
) -> tuple[onnx.ModelProto, list[PassReport], Graph]:
    graph = onnx_io.load(proto)
    sequence = [passes] if isinstance(passes, Pass) else list(passes)
    stages = Pipeline(sequence).run(graph, context)
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out, full_check=True)
    return out, [s.report for s in stages], graph


def check_fires(
    passes: Pass | Sequence[Pass],
    proto: onnx.ModelProto,
    *,
    changed: int | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    rtol: float = RTOL,
    context: Context | None = None,
) -> onnx.ModelProto:
    """The (last) pass rewrites; interface and numbers stay; a second run changes nothing."""
    out, reports, _ = apply(passes, proto, context)
    count = reports[-1].changed
    assert count > 0, f"did not fire; refused: {reports[-1].refused}"
    assert changed is None or count == changed, f"changed {count} times, expected {changed}"
    assert interface(out) == interface(proto)
    for seed in range(2):
        data = feeds or random_feeds(proto, seed)
        assert_close(run_reference(proto, data), run_reference(out, data), rtol)
    last = passes if isinstance(passes, Pass) else passes[-1]
    if not last.needs:
        _, reports, _ = apply(last, out, context)
        assert reports[-1].changed == 0, f"second run changed: {reports[-1].details}"
    return out


def check_stays(
    passes: Pass | Sequence[Pass],
    proto: onnx.ModelProto,
    reason: str | None = None,
    context: Context | None = None,
) -> list[PassReport]:
    """The (last) pass leaves the graph alone; with `reason`, it says why."""
    out, reports, _ = apply(passes, proto, context)
    assert reports[-1].changed == 0, f"fired: {reports[-1].details}"
    if isinstance(passes, Pass):
        before = onnx_io.to_proto(onnx_io.load(proto))
        assert [n.op_type for n in out.graph.node] == [n.op_type for n in before.graph.node]
    if reason is not None:
        reasons = [r.reason for r in reports[-1].refused]
        assert any(reason in r for r in reasons), f"no refusal with {reason!r}: {reasons}"
    return reports


def ops(proto: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in proto.graph.node]
