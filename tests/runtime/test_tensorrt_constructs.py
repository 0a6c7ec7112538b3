"""Which constructs TensorRT(-RTX) builds, and which it refuses, by which rule of the linter."""

import importlib.util

import numpy as np
import onnx
import pytest
from constructs import CONSTRUCTS, REFUSED, TAKEN_ANYWAY, Construct

from qgraph import onnx_io
from qgraph.errors import EngineError
from qgraph.graph import Graph
from qgraph.lint import fix
from qgraph.lint.check import lint
from qgraph.runtime.builder import BuildRequest
from qgraph.runtime.tensorrt.backend import TensorRt
from qgraph.runtime.tensorrt.library import MODULES
from qgraph.runtime.tensorrt.options import TensorRtOptions
from qgraph.target import target

TENSORRT = target("tensorrt")
needs_builder = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in MODULES),
    reason="neither tensorrt_rtx nor tensorrt is installed (tensorrt-rtx-cu13 on PyPI)",
)
# What both libraries can do is not the same.
rtx = importlib.util.find_spec("tensorrt") is None
ACCEPTED = [name for name in CONSTRUCTS if name not in REFUSED]
KNOWN = [name for name, rule in REFUSED.items() if rtx or rule != "plugin"]
# Refusals that the linter's rewrites repair.
REPAIRED = (
    "attention operator",
    "attention with a past",
    "crop",
    "layer normalization whose mean is read",
    "slice of fewer starts",
    "vector by a stack",
    "qlinear conv",
    "matmul nbits",
    "int32 bias",
    "zero point",
)


def proto(construct: Construct) -> onnx.ModelProto:
    made = onnx.parser.parse_model(construct.text)
    for name, array in construct.weights.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return made


def build(graph: Graph, construct: Construct, folder):
    path = folder / "m.onnx"
    onnx_io.save(graph, path)
    shapes = (construct.shapes,) if construct.shapes else ()
    return TensorRt().build(path, BuildRequest(options=TensorRtOptions(shapes=shapes)))


@needs_builder
@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name, tmp_path):
    graph = onnx_io.load(proto(CONSTRUCTS[name]))
    refused = [
        each.rule
        for each in lint(graph, TENSORRT, parse=False).findings
        if each.severity == "refused"
    ]
    assert refused == []
    assert build(graph, CONSTRUCTS[name], tmp_path).record["bytes"] > 100


@needs_builder
@pytest.mark.parametrize("name", KNOWN)
def test_refused(name, tmp_path):
    graph = onnx_io.load(proto(CONSTRUCTS[name]))
    found = [
        each for each in lint(graph, TENSORRT, parse=False).findings if each.severity == "refused"
    ]
    assert found and found[0].rule == REFUSED[name] and found[0].node
    if name in TAKEN_ANYWAY:
        build(graph, CONSTRUCTS[name], tmp_path)
        return
    with pytest.raises(EngineError, match="refuses the model") as caught:
        build(graph, CONSTRUCTS[name], tmp_path)
    assert "\n" not in str(caught.value)


@needs_builder
@pytest.mark.parametrize("name", REPAIRED)
def test_refused_and_repaired(name, tmp_path):
    graph = onnx_io.load(proto(CONSTRUCTS[name]))
    done = fix(graph, TENSORRT)
    assert done.changed and not done.after.refused
    assert build(graph, CONSTRUCTS[name], tmp_path).record["bytes"] > 100


@needs_builder
def test_the_parser_joins_the_rules(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
    net (float[4] x, int64[1] k) => (float[A] y, float[4] z) {
        [by_rule] y = Unique(x)
        [by_both] z = my.Strange(x)
    }"""
    findings = lint(onnx_io.load(onnx.parser.parse_model(text)), TENSORRT).findings
    assert sorted((each.node, each.rule) for each in findings) == [
        ("by_both", "operator"),
        ("by_rule", "operator"),
    ]
    # What no rule knows the parser says, by the node's name.
    resize = """net (float[1,3,4,4] x, float[4] s) => (float[A,B,C,D] y) {
        [up] y = Resize<mode = "nearest">(x, , s)
    }"""
    graph = onnx_io.load(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>{resize}')
    )
    (found,) = [each for each in lint(graph, TENSORRT).findings if each.severity == "refused"]
    assert (found.rule, found.node, found.op) == ("parser", "up", "Resize")
    assert found.source.startswith("the parser of TensorRT") and found.detail


def test_the_list_is_long_enough():
    assert len(ACCEPTED) >= 100 and len(REFUSED) >= 25 and set(REFUSED) <= set(CONSTRUCTS)
