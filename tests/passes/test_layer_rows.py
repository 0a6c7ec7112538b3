import numpy as np
import pytest
from folds import normal
from harness import model, run_reference

from qgraph import onnx_io
from qgraph.passes.layer_rows import from_matrix, layout, to_matrix, weight_shape
from qgraph.passes.placement.layers import weight_axis

CONVS = {
    "plain": ("2,4,7,6", (6, 4, 1, 1), ""),
    "padded": ("2,4,7,6", (6, 4, 3, 3), "pads = [1, 0, 2, 1]"),
    "strided": ("2,4,9,8", (6, 4, 3, 2), "strides = [2, 3], pads = [1, 1, 1, 1]"),
    "dilated": ("1,4,9,8", (6, 4, 3, 2), "dilations = [2, 3]"),
    "grouped": ("2,4,7,6", (6, 2, 3, 3), "group = 2, pads = [1, 1, 1, 1]"),
    "depthwise": ("2,4,7,6", (4, 1, 3, 3), "group = 4"),
    "one axis": ("3,4,9", (5, 4, 3), "strides = [2], pads = [2, 0]"),
    "three axes": ("1,2,5,4,3", (3, 2, 2, 3, 2), "pads = [0, 1, 0, 1, 0, 1]"),
    "same upper": ("2,4,7,6", (6, 4, 4, 3), 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    "same lower": ("2,4,7,6", (6, 4, 4, 3), 'auto_pad = "SAME_LOWER", strides = [2, 2]'),
    "valid": ("2,4,7,6", (6, 4, 3, 3), 'auto_pad = "VALID"'),
}


def products(proto, x, count=10**6):
    """Rows of the layer's input times its weight as a matrix, and the layer's own results."""
    graph = onnx_io.load(proto)
    node = next(graph.nodes("Conv", "Gemm", "MatMul"))
    weight, axis = graph.array(node.inputs[1]), weight_axis(node)
    how = layout(graph, node)
    rows = how.rows(x, count, np.random.default_rng(0))
    matrix = to_matrix(weight, axis, how.groups)
    assert matrix.shape == weight_shape(graph, node)
    np.testing.assert_array_equal(from_matrix(matrix, weight.shape, axis), weight)
    found = np.einsum("rgk,gkn->rgn", rows, matrix).reshape(len(rows), -1)
    want = run_reference(proto, {"x": x})["y"]
    channels = 1 if node.op_type == "Conv" else -1
    return found, np.moveaxis(want, channels, -1).reshape(-1, found.shape[1])


@pytest.mark.parametrize("name", list(CONVS))
def test_convolutions(name):
    shape, weight, attributes = CONVS[name]
    attributes = f"<{attributes}>" if attributes else ""
    text = f"g (float[{shape}] x) => (y) {{ y = Conv {attributes} (x, w) }}"
    text = text.replace("=> (y)", f"=> (float[{','.join('abcde'[: shape.count(',') + 1])}] y)")
    proto = model(text, {"w": normal(1, *weight)})
    found, want = products(proto, normal(2, *map(int, shape.split(","))))
    np.testing.assert_allclose(found, want, atol=2e-5)


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("MatMul (x, w)", (8, 5)),
        ("Gemm (x, w)", (8, 5)),
        ("Gemm <transB = 1> (x, w)", (5, 8)),
    ],
)
def test_linear_layers(node, shape):
    proto = model(f"g (float[6,8] x) => (float[6,5] y) {{ y = {node} }}", {"w": normal(1, *shape)})
    found, want = products(proto, normal(2, 6, 8))
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_a_product_with_many_axes():
    proto = model(
        "g (float[2,3,8] x) => (float[2,3,5] y) { y = MatMul (x, w) }", {"w": normal(1, 8, 5)}
    )
    found, want = products(proto, normal(2, 2, 3, 8))
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_drawn_rows_are_some_of_all():
    text = "g (float[2,4,7,6] x) => (float[a,b,c,d] y) { y = Conv (x, w) }"
    proto = model(text, {"w": normal(1, 6, 4, 3, 3)})
    x = normal(2, 2, 4, 7, 6)
    found, want = products(proto, x, 9)
    assert found.shape == (9, 6)
    gaps = np.abs(found[:, None] - want[None]).max(axis=2)
    assert (gaps.min(axis=1) < 1e-5).all() and len(set(gaps.argmin(axis=1))) == 9


@pytest.mark.parametrize("shape", [(0, 4, 7, 6), (1, 4, 2, 6)])
def test_an_empty_input_or_result_has_no_rows(shape):
    proto = model(
        "g (float[a,4,h,i] x) => (float[a,b,c,d] y) { y = Conv (x, w) }",
        {"w": normal(1, 6, 4, 3, 3)},
    )
    graph = onnx_io.load(proto)
    how = layout(graph, next(graph.nodes("Conv")))
    rows = how.rows(np.zeros(shape, np.float32), 9, np.random.default_rng(0))
    assert rows.shape == (0, 1, 36)
