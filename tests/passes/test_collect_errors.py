import numpy as np
import pytest
from harness import model, run_reference

from qgraph import onnx_io
from qgraph.encoding import Spec, dequantize, encode_range, quantize
from qgraph.passes.collect_errors import channel_weights, encoding_errors

RNG = np.random.default_rng(0)


def rand(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


LAYERS = {
    "conv": ("y = Conv <pads=[1,1,1,1]> (x, w)", (4, 6, 3, 3), [1, 6, 5, 5], 1),
    "grouped": ("y = Conv <group=3> (x, w)", (6, 2, 1, 1), [1, 6, 5, 5], 1),
    "depthwise": ("y = Conv <group=6> (x, w)", (6, 1, 3, 3), [1, 6, 5, 5], 1),
    "transposed": ("y = ConvTranspose (x, w)", (6, 2, 2, 2), [1, 6, 5, 5], 1),
    "matmul": ("y = MatMul(x, w)", (6, 4), [3, 6], -1),
    "deep matmul": ("y = MatMul(x, w)", (6, 4), [2, 3, 6], -1),
    "gemm": ("y = Gemm(x, w)", (6, 4), [3, 6], -1),
    "gemm transposed": ("y = Gemm <transB=1> (x, w)", (4, 6), [3, 6], -1),
}


def net(body, shape, weights, rank):
    dims = ",".join(map(str, shape))
    outs = ",".join(f"D{i}" for i in range(rank))
    return model(f"g (float[{dims}] x) => (float[{outs}] y) {{ {body} }}", weights)


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_are_the_response_to_independent_errors(kind):
    body, weight, shape, axis = LAYERS[kind]
    proto = net(body, shape, {"w": rand(*weight)}, len(shape))
    graph = onnx_io.load(proto)
    found = channel_weights(graph, graph.inputs[0])
    assert found is not None and found[0] == axis and found[1].shape == (6,)
    # The middle element of a channel reaches every tap of the kernel.
    for channel in range(6):
        x = np.zeros(shape, np.float32)
        x[(*(n // 2 for n in shape[:-1]), channel) if axis == -1 else (0, channel, 2, 2)] = 1
        response = np.sum(run_reference(proto, {"x": x})["y"].astype(np.float64) ** 2)
        assert found[1][channel] == pytest.approx(response, rel=1e-5)


def test_readers_add_up_and_others_count_nothing():
    body = "a = MatMul(x, w)\n b = MatMul(x, v)\n r = Relu(x)\n y = Sum(a, b, r)"
    weights = {"w": rand(6, 6), "v": rand(6, 6)}
    graph = onnx_io.load(net(body, [3, 6], weights, 2))
    _, found = channel_weights(graph, graph.inputs[0])
    want = (weights["w"].astype(float) ** 2 + weights["v"].astype(float) ** 2).sum(1)
    assert found == pytest.approx(want)
    graph = onnx_io.load(net("y = Relu(x)", [3, 6], {}, 2))
    assert channel_weights(graph, graph.inputs[0]) is None


@pytest.mark.parametrize("spec", [Spec("uint8", symmetric=False), Spec("int8"), Spec("int16")])
@pytest.mark.parametrize("axis", [1, -1, None])
def test_errors_are_those_of_the_encoding(spec, axis):
    x = rand(2, 6, 5, 6)
    encodings = {
        "wide": encode_range(-4.0, 5.0, spec),
        "narrow": encode_range(-0.5, 0.25, spec),
    }
    weight = RNG.uniform(0, 3, 6)
    found = encoding_errors(x, encodings, None if axis is None else (axis, weight))
    factor = {1: weight[:, None, None], -1: weight, None: 1.0}[axis]
    for name, encoding in encodings.items():
        error = dequantize(quantize(x, encoding), encoding).astype(np.float64) - x
        # A 16-bit step is only 256 times as large as float32's own rounding.
        rel = 1e-3 if spec.dtype == "int16" else 1e-4
        assert found[name] == pytest.approx(float((error**2 * factor).sum()), rel=rel)


@pytest.mark.parametrize(
    ("shape", "axis", "kept"),
    [
        ((1, 3, 200, 210), 1, lambda x: x.reshape(1, 3, -1)[..., ::11]),
        ((2, 90, 30, 31), 1, lambda x: x.reshape(2, 90, -1)[..., ::7]),
        ((900, 150), -1, lambda x: x.T[:, ::7]),
        ((70_001,), 0, lambda x: x),
        ((70_001,), None, lambda x: x[::2]),
    ],
)
def test_positions_of_large_arrays_are_left_out_and_no_channels(shape, axis, kept):
    x, encoding = rand(*shape), encode_range(-1.5, 2.0, Spec("uint8", symmetric=False))
    weight = RNG.uniform(0, 3, 1 if axis is None else shape[axis])
    found = encoding_errors(
        x, {"a": encoding, "again": encoding}, None if axis is None else (axis, weight)
    )
    error = dequantize(quantize(x, encoding), encoding).astype(np.float64) - x
    squares = kept(error) ** 2
    if axis == 1:
        squares = squares * weight[:, None]
    elif axis is not None:
        squares = squares.T * weight
    assert found["a"] == found["again"] == pytest.approx(float(squares.sum()), rel=1e-5)


@pytest.mark.parametrize("x", [np.zeros((1, 3)), np.full((1, 3), 1e-42), np.full((1, 3), 3e38)])
@pytest.mark.filterwarnings("error")
def test_errors_are_positive_and_finite(x):
    encodings = {"a": encode_range(-1.0, 1.0, Spec("int8"))}
    found = encoding_errors(x.astype(np.float32), encodings, None)
    assert 0 < found["a"] < np.inf
