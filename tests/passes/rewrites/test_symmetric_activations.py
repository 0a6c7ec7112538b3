"""Codes with a zero point as symmetric int8, within the bound that the report gives."""

import re

import numpy as np
import onnx
import pytest
from harness import apply, check_fires, check_stays, model, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.rewrites.symmetric_activations import SymmetricActivations

PAIR = """net (float[4, 16] x) => (float[4, 16] y) {
  q = QuantizeLinear(x, s, zp)
  y = DequantizeLinear(q, s, zp)
}"""


def codes_of(proto):
    found = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {name: array for name, array in found.items() if array.dtype.kind in "iu"}


def bound_in(report) -> float:
    [line] = report.details
    found = re.search(r"at most (\S+)$", line)
    return float(found[1]) if found else 0.0


scales = st.floats(2.0**-20, 2.0**10, width=32)


@settings(max_examples=20, deadline=None)
@given(scales, st.booleans(), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_activations_move_by_no_more_than_the_report_says(scale, signed, zero, seed):
    zp = np.int8(zero - 128) if signed else np.uint8(zero)
    proto = model(PAIR, {"s": np.float32(scale), "zp": zp})
    out, reports, _ = apply(SymmetricActivations(), proto)
    report = reports[-1]
    if signed and zp == 0:
        assert report.changed == 0
        return
    assert report.changed == 1
    for array in codes_of(out).values():
        assert array.dtype == np.int8 and not array.any()
    # Far outside of the range on both sides, too.
    x = np.random.default_rng(seed).standard_normal((4, 16)).astype(np.float32) * scale * 300
    want, have = run_reference(proto, {"x": x})["y"], run_reference(out, {"x": x})["y"]
    moved = np.abs(want.astype(np.float64) - have).max()
    assert moved <= bound_in(report) * (1 + 1e-3) + 1e-5 * scale
    assert bound_in(report) <= 1.6 * scale


def test_the_middle_of_uint8_only_shifts_the_codes():
    proto = model(PAIR, {"s": np.float32(0.1), "zp": np.uint8(128)})
    out = check_fires(SymmetricActivations(), proto, changed=1)
    assert ops(out) == ["QuantizeLinear", "DequantizeLinear"]
    assert apply(SymmetricActivations(), proto)[1][-1].details[0].endswith("exact")


def test_an_absorbed_relu_comes_back():
    proto = model(PAIR, {"s": np.float32(0.1), "zp": np.uint8(0)})
    out, _, _ = apply(SymmetricActivations(), proto)
    assert ops(out) == ["Relu", "QuantizeLinear", "DequantizeLinear"]
    x = np.linspace(-30, 30, 64, dtype=np.float32).reshape(4, 16)
    assert run_reference(out, {"x": x})["y"].min() == 0


def test_no_clip_behind_a_relu():
    text = """net (float[4, 16] x) => (float[4, 16] y) {
      r = Relu(x)
      q = QuantizeLinear(r, s, zp)
      y = DequantizeLinear(q, s, zp)
    }"""
    out, _, _ = apply(
        SymmetricActivations(), model(text, {"s": np.float32(0.1), "zp": np.uint8(0)})
    )
    assert ops(out) == ["Relu", "QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize(("zero", "low", "high"), [(30, -3.0, 50.0), (220, -50.0, 3.5)])
def test_the_shorter_end_is_cut_off(zero, low, high):
    out, _, _ = apply(
        SymmetricActivations(), model(PAIR, {"s": np.float32(0.1), "zp": np.uint8(zero)})
    )
    assert ops(out)[0] == "Clip"
    x = np.linspace(low, high, 64, dtype=np.float32).reshape(4, 16)
    y = run_reference(out, {"x": x})["y"]
    assert y.min() >= -0.1 * zero - 0.15 and y.max() <= 0.1 * (255 - zero) + 0.15


def test_clip_can_be_left_out():
    out, _, _ = apply(
        SymmetricActivations(clip=False), model(PAIR, {"s": np.float32(0.1), "zp": np.uint8(30)})
    )
    assert ops(out) == ["QuantizeLinear", "DequantizeLinear"]


def test_one_scale_a_channel():
    text = """net (float[2, 3, 8] x) => (float[2, 3, 8] y) {
      q = QuantizeLinear<axis = 1>(x, s, zp)
      y = DequantizeLinear<axis = 1>(q, s, zp)
    }"""
    s, zp = np.array([0.1, 0.02, 0.3], np.float32), np.array([0, 128, 250], np.uint8)
    proto = model(text, {"s": s, "zp": zp})
    out, reports, _ = apply(SymmetricActivations(), proto)
    assert ops(out) == ["Max", "Min", "QuantizeLinear", "DequantizeLinear"]
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32) * 20
    moved = np.abs(run_reference(proto, {"x": x})["y"] - run_reference(out, {"x": x})["y"])
    assert moved.max() <= bound_in(reports[-1]) * 1.001 and moved[:, 1].max() < 1e-6


def test_a_quantized_constant_is_clipped_as_a_constant():
    text = """net (float[4, 4] x) => (float[4, 4] y) {
      q = QuantizeLinear(w, s, zp)
      d = DequantizeLinear(q, s, zp)
      y = MatMul(x, d)
    }"""
    w = np.linspace(-2, 5, 16, dtype=np.float32).reshape(4, 4)
    inits = {"w": w, "s": np.float32(0.02), "zp": np.uint8(10)}
    out, _, _ = apply(SymmetricActivations(), model(text, inits))
    assert ops(out) == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    clipped = next(
        onnx.numpy_helper.to_array(t) for t in out.graph.initializer if t.name == "w_clipped"
    )
    np.testing.assert_allclose(clipped.min(), -0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "inits", "reason"),
    [
        (
            "net (float[2] x) => (uint8[2] y) { y = QuantizeLinear(x, s, zp) }",
            {"s": np.float32(0.1), "zp": np.uint8(3)},
            "graph output",
        ),
        (
            PAIR,
            {"s": np.float32(0.1), "zp": np.uint16(3)},
            "uint16",
        ),
        (
            PAIR,
            {"s": np.float32(-0.1), "zp": np.uint8(3)},
            "not positive",
        ),
    ],
)
def test_what_stays(text, inits, reason):
    check_stays(SymmetricActivations(), model(text, inits), reason)
