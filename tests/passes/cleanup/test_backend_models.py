"""Normalize and every clean-up pass on all of onnx's backend models: valid, same numbers."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from backendmodels import as_feed, models
from harness import interface

from qgraph import onnx_io
from qgraph.passes.cleanup import CLEANUP
from qgraph.passes.normalize import Normalize
from qgraph.pipeline import Pipeline
from qgraph.registry import load

# Half-precision operators run in single precision there, so folding rounds where ORT does not.
TOLERANCE = {np.dtype(np.float16): (2e-3, 1e-3)}


def session(proto: onnx.ModelProto) -> ort.InferenceSession | None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # noqa: BLE001 - an operator that onnxruntime does not have
        return None


def results(proto: onnx.ModelProto, feeds: list[Any], names: list[str]) -> list[Any] | None:
    opened = session(proto)
    if opened is None:
        return None
    wanted = {each.name for each in opened.get_inputs()}
    try:
        return opened.run(
            None, {n: as_feed(v) for n, v in zip(names, feeds, strict=False) if n in wanted}
        )
    except Exception:  # noqa: BLE001 - as above, or data that is wrong on purpose
        return None


def fully_valid(proto: onnx.ModelProto) -> bool:
    """Whether shape inference takes the original, which it does for all but one."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_clean_up_keeps_every_backend_model() -> None:
    passes = [Normalize(), *(load(each)() for each in CLEANUP)]
    compared = shrunk = 0
    for name, proto, feeds in models():
        standard = {o.domain: o.version for o in proto.opset_import}.get("", 99)
        if standard < 9:
            continue
        graph = onnx_io.load(proto)
        Pipeline(passes).run(graph)
        out = onnx_io.to_proto(graph)
        onnx.checker.check_model(out, full_check=fully_valid(proto))
        assert interface(out) == interface(proto), name
        for each in passes[1:]:
            report = each.run(graph, None)  # type: ignore[arg-type]
            assert report.changed == 0, f"{name}: {each.name} again: {report.details}"
        shrunk += len(out.graph.node) < len(proto.graph.node)
        names = [value.name for value in proto.graph.input]
        want = results(proto, feeds, names)
        if want is None or "dropout" in name or "bernoulli" in name:
            continue
        got = results(out, feeds, names)
        assert got is not None, f"{name}: onnxruntime runs the original, not the result"
        for a, b in zip(want, got, strict=True):
            if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub":
                continue
            assert a.shape == b.shape and a.dtype == b.dtype, name
            rtol, atol = TOLERANCE.get(a.dtype, (1e-4, 1e-5))
            np.testing.assert_allclose(b, a, rtol, atol, err_msg=name)
        compared += 1
    assert compared > 1300 and shrunk > 100
