"""Slices that name no axes."""

import numpy as np
import onnx
from harness import check_fires, check_stays, model

from qgraph.passes.rewrites.slice_axes import SliceAxes

TEXT = """net (float[4,8] x) => (float[2,8] y) { y = Slice(x, a, b) }"""


def unchecked(text, weights):
    """ONNX's checker refuses what onnxruntime takes, so the harness's own model() can't be used."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def test_fewer_starts_than_axes_get_axes():
    proto = unchecked(TEXT, {"a": np.array([1], np.int64), "b": np.array([3], np.int64)})
    out = check_fires(SliceAxes(), proto, changed=1)
    axes = out.graph.node[0].input[3]
    (found,) = [t for t in out.graph.initializer if t.name == axes]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), [0])


def test_steps_behind_omitted_axes_stay():
    text = "net (float[4,8] x) => (float[2,8] y) { y = Slice(x, a, b, , s) }"
    weights = {"a": np.array([0]), "b": np.array([4]), "s": np.array([2])}
    out = check_fires(SliceAxes(), unchecked(text, weights), changed=1)
    assert out.graph.node[0].input[4] == "s" and out.graph.node[0].input[3]


def test_a_start_for_every_axis_needs_none():
    text = "net (float[4,8] x) => (float[2,4] y) { y = Slice(x, a, b) }"
    check_stays(SliceAxes(), model(text, {"a": np.array([1, 2]), "b": np.array([3, 6])}))


def test_named_axes_stay():
    text = "net (float[4,8] x) => (float[2,8] y) { y = Slice(x, a, b, c) }"
    weights = {"a": np.array([1]), "b": np.array([3]), "c": np.array([0])}
    check_stays(SliceAxes(), model(text, weights))


def test_a_computed_number_of_starts_stays():
    text = "net (float[4,8] x, int64[N] a, int64[N] b) => (float[H,W] y) { y = Slice(x, a, b) }"
    check_stays(SliceAxes(), model(text), "number of its starts is unknown")
