"""Detection heads are recognised and left in float, on every target, with the reason."""

import numpy as np
import pytest
from harness import model, run_reference
from quantsim import quantize_model, samples

from qgraph import onnx_io
from qgraph.passes.placement.heads import REASON, detection_heads


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4


# Distribution focal loss over 4 sides of 16 bins, anchors of a 4 x 4 grid, 5 classes.
DFL = """yolo (float[1,3,8,8] image) => (float[1,9,16] boxes) {
    a = Conv<strides = [2,2], pads = [1,1,1,1]>(image, w1, c1)
    s = Sigmoid(a)
    f = Mul(a, s)
    g = Conv(f, w2, c2)
    h = Conv(f, w3, c3)
    k = Concat<axis = 1>(g, h)
    r = Reshape(k, flat)
    sides, classes = Split<axis = 1>(r, parts)
    bins = Reshape(sides, split)
    t = Transpose<perm = [0,2,1,3]>(bins)
    p = Softmax<axis = 1>(t)
    d = Conv(p, expectation)
    e = Reshape(d, joined)
    lt, rb = Split<axis = 1, num_outputs = 2>(e)
    x1 = Sub(grid, lt)
    x2 = Add(grid, rb)
    m = Concat<axis = 1>(x1, x2)
    q = Mul(m, strides)
    v = Sigmoid(classes)
    boxes = Concat<axis = 1>(q, v)
}"""
DFL_WEIGHTS = {
    "w1": rand(16, 3, 3, 3),
    "c1": rand(16),
    "w2": rand(64, 16, 1, 1, seed=1),
    "c2": rand(64),
    "w3": rand(5, 16, 1, 1, seed=2),
    "c3": rand(5),
    "flat": np.array([1, 69, 16]),
    "parts": np.array([64, 5]),
    "split": np.array([1, 4, 16, 16]),
    "expectation": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
    "joined": np.array([1, 4, 16]),
    "grid": rand(1, 2, 16, seed=3) + np.float32(2),
    "strides": np.full((1, 16), 8, np.float32),
}
# Offsets within a cell, sizes as powers of the anchors', one scale.
ANCHORS = """yolo (float[1,3,8,8] image) => (float[1,48,9] boxes) {
    a = Conv<strides = [2,2], pads = [1,1,1,1]>(image, w1, c1)
    f = Relu(a)
    g = Conv(f, w2, c2)
    r = Reshape(g, cells)
    t = Transpose<perm = [0,1,3,4,2]>(r)
    s = Sigmoid(t)
    xy, wh, rest = Split<axis = 4>(s, parts)
    x2 = Mul(xy, two)
    x3 = Add(x2, grid)
    x4 = Mul(x3, stride)
    w4 = Pow(wh, two)
    w5 = Mul(w4, anchors)
    k = Concat<axis = 4>(x4, w5, rest)
    boxes = Reshape(k, rows)
}"""
ANCHOR_WEIGHTS = {
    "w1": rand(16, 3, 3, 3),
    "c1": rand(16),
    "w2": rand(27, 16, 1, 1, seed=1),
    "c2": rand(27),
    "cells": np.array([1, 3, 9, 4, 4]),
    "parts": np.array([2, 2, 5]),
    "two": np.float32(2),
    "grid": rand(1, 1, 4, 4, 2),
    "stride": np.float32(8),
    "anchors": np.abs(rand(1, 3, 1, 1, 2)) * 16,
    "rows": np.array([1, 48, 9]),
}
HEADS = {"dfl": (DFL, DFL_WEIGHTS), "anchors": (ANCHORS, ANCHOR_WEIGHTS)}


@pytest.mark.parametrize("hardware", ["cpu", "tensorrt", "npu"])
@pytest.mark.parametrize("name", HEADS)
def test_layers_are_quantized_and_the_head_is_not(name, hardware):
    proto = model(*HEADS[name])
    case = quantize_model(proto, hardware=hardware)
    plan = case.facts.plan
    layers = {"a_Conv", "g_Conv", "h_Conv"} & set(plan.nodes)
    assert {n for n, _ in plan.weights} == layers
    behind = proto.graph.node[[n.output[0] for n in proto.graph.node].index("g") :]
    head = [f"{n.output[0]}_{n.op_type}" for n in behind]
    left = {n: why for n, (kind, why) in plan.nodes.items() if n in head and n not in layers}
    assert len(left) == len(head) - len(layers & set(head))
    assert set(left.values()) == {REASON}
    # The head computes in float: its arithmetic adds nothing to the error of the layers' codes.
    feeds = samples(proto, 1, seed=5)[0]
    want, got = run_reference(proto, feeds)["boxes"], run_reference(case.after, feeds)["boxes"]
    noise = float(np.square(want - got).sum())
    assert 10 * np.log10(float(np.square(want).sum()) / noise) > 30


def test_the_layer_that_takes_a_mean_is_no_layer():
    heads = detection_heads(onnx_io.load(model(DFL, DFL_WEIGHTS)))
    assert any(node.op_type == "Conv" for node in heads)
    other = {**DFL_WEIGHTS, "expectation": rand(1, 16, 1, 1)}
    heads = detection_heads(onnx_io.load(model(DFL, other)))
    assert heads and not any(node.op_type == "Conv" for node in heads)


@pytest.mark.parametrize(
    "body",
    [
        "y = Sigmoid(c)",
        "s = Sigmoid(c)  y = Mul(s, k)",
        "s = Sigmoid(c)  y = Concat<axis = 1>(s, c)",
        "m = Mul(c, k)  y = Concat<axis = 1>(m, c)",
        "s = Sigmoid(c)  m = Mul(s, one)  y = Concat<axis = 1>(m, c)",
        "s = Sigmoid(c)  m = Mul(s, k)  z = Concat<axis = 1>(m, c)  y = Conv(z, v)",
    ],
)
def test_other_endings_are_no_heads(body):
    weights = {
        "w": rand(4, 3, 1, 1),
        "k": rand(1, 4, 1, 1),
        "one": np.float32(2),
        "v": rand(4, 8, 1, 1),
    }
    text = f"g (float[1,3,8,8] x) => (float[a,b,c_,d] y) {{ c = Conv(x, w)  {body} }}"
    used = {key: value for key, value in weights.items() if f"{key})" in text}
    assert not detection_heads(onnx_io.load(model(text, used)))


def test_what_selects_boxes_is_a_head():
    text = """g (float[1,3,4,4] x) => (int64[n,3] y) {
        c = Conv(x, w)
        s, b = Split<axis = 1>(c, parts)
        f = Reshape(b, rows)
        p = Reshape(s, scores)
        y = NonMaxSuppression(f, p)
    }"""
    weights = {
        "w": rand(5, 3, 1, 1),
        "parts": np.array([1, 4]),
        "rows": np.array([1, 16, 4]),
        "scores": np.array([1, 1, 16]),
    }
    heads = detection_heads(onnx_io.load(model(text, weights)))
    assert [n.op_type for n in sorted(heads, key=lambda n: n.op_type)] == [
        "NonMaxSuppression",
        "Reshape",
        "Reshape",
        "Split",
    ]


def test_a_network_without_convolutions_has_no_head():
    text = """g (float[4,8] x) => (float[4,16] y) {
        a = MatMul(x, w)  s = Sigmoid(a)  m = Mul(s, k)  y = Concat<axis = 1>(m, s)
    }"""
    heads = detection_heads(onnx_io.load(model(text, {"w": rand(8, 8), "k": rand(8)})))
    assert not heads
