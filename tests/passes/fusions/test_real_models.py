"""Real image classifiers: nothing is left to fold, and the numbers stay."""

import onnx
import pytest
from harness import assert_close, interface, ops, random_feeds, run_reference
from realmodels import shared

from qgraph import onnx_io
from qgraph.passes.cleanup import CLEANUP
from qgraph.passes.fusions import FUSIONS
from qgraph.passes.infer import InferShapes
from qgraph.pipeline import Pipeline
from qgraph.registry import load


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_no_batchnorm_and_no_pad_is_left(name: str) -> None:
    proto = onnx.load(shared("models", f"{name}.onnx"))
    graph = onnx_io.load(proto)
    clean = [load(each)() for each in CLEANUP]
    Pipeline([InferShapes(), *clean, *(load(each)() for each in FUSIONS)]).run(graph)
    result = onnx_io.to_proto(graph)
    left = {"BatchNormalization", "Pad", "Mul", "Sub"} & set(ops(result))
    assert not left
    assert interface(result) == interface(proto)
    feeds = random_feeds(proto, size=1)
    assert_close(run_reference(proto, feeds), run_reference(result, feeds))
