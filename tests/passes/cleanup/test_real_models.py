"""Clean-up of real models: what must be gone is gone, and the numbers stay."""

from collections import Counter

import numpy as np
import onnx
import pytest
from harness import assert_close, interface, random_feeds, run_reference
from realmodels import shared

from qgraph import onnx_io
from qgraph.graph import Graph
from qgraph.passes.cleanup import CLEANUP
from qgraph.passes.normalize import Normalize
from qgraph.pipeline import Pipeline
from qgraph.registry import load

pytestmark = pytest.mark.slow


def cleaned(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto, Graph]:
    path = shared("models", name)
    graph = onnx_io.load(path)
    Pipeline([Normalize(), *(load(each)() for each in CLEANUP)]).run(graph)
    before, after = onnx.load(path), onnx_io.to_proto(graph)
    onnx.checker.check_model(after, full_check=True)
    assert interface(after) == interface(before)
    return before, after, graph


def counts(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph.walk())


def test_lite0_has_no_shape_chain_left() -> None:
    before, after, graph = cleaned("efficientnet_lite0.onnx")
    left = counts(graph)
    assert set(left) == {
        "Add",
        "BatchNormalization",
        "Clip",
        "Conv",
        "Gemm",
        "GlobalAveragePool",
        "Pad",
        "Reshape",
    }
    assert all(graph.is_constant(node.inputs[1]) for node in graph.nodes("Pad", "Reshape"))
    for batch in (1, 2):
        feeds = random_feeds(before, batch, batch)
        assert_close(run_reference(before, feeds), run_reference(after, feeds))


def test_ppocr_keeps_its_numbers_at_every_width() -> None:
    before, after, graph = cleaned("ppocrv6_rec_small.onnx")
    assert counts(graph)["Identity"] == 0 and graph.opset == 21
    rng = np.random.default_rng(0)
    for batch, width in ((1, 320), (2, 200)):
        feeds = {"x": rng.standard_normal((batch, 3, 48, width)).astype(np.float32)}
        assert_close(run_reference(before, feeds), run_reference(after, feeds))


def test_silero_keeps_its_numbers_through_its_ifs() -> None:
    before, after, graph = cleaned("silero_vad.onnx")
    assert counts(graph)["Constant"] == 0 and len(list(graph.walk())) < 200
    rng = np.random.default_rng(0)
    for samples, rate in ((576, 16000), (288, 8000), (512, 16000)):
        feeds = {
            "input": rng.standard_normal((1, samples)).astype(np.float32) / 10,
            "state": rng.standard_normal((2, 1, 128)).astype(np.float32) / 10,
            "sr": np.array(rate, np.int64),
        }
        want, got = run_reference(before, feeds), run_reference(after, feeds)
        # One number has no range: its own scale is that of a probability.
        np.testing.assert_allclose(got.pop("output"), want.pop("output"), atol=1e-6)
        assert_close(want, got)
