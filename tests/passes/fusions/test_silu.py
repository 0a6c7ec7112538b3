import numpy as np
import pytest
from formulas import Formula
from harness import apply, check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import UsageError
from qgraph.passes.fusions.silu import Silu

SHAPE = {"x": ["batch", 8]}


def silu(f, alpha=1.0):
    inner = "x" if alpha == 1.0 else f.scaled("x", alpha)
    return f.either("Mul", "x", f.op("Sigmoid", inner))


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from([1.0, 1.702, 0.5, -2.0]))
def test_in_every_order(data, alpha):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)), opset=24)
    out = check_fires(Silu(), f.model(SHAPE, silu(f, alpha)), changed=1)
    assert ops(out) == ["Swish"]
    written = {a.name: a.f for a in out.graph.node[0].attribute}.get("alpha", 1.0)
    assert written == pytest.approx(alpha, rel=1e-6)


def test_float16():
    f = Formula(dtype=np.float16, opset=24)
    assert ops(check_fires(Silu(), f.model(SHAPE, silu(f)), rtol=2e-3)) == ["Swish"]


@pytest.mark.parametrize("opset", [13, 21, 23])
def test_before_opset_24_it_says_so(opset):
    f = Formula(opset=opset)
    check_stays(Silu(), f.model(SHAPE, silu(f)), f"Swish needs opset 24, the model has {opset}")


def test_the_sigmoid_form_of_gelu_is_recognised():
    f = Formula(opset=21)
    check_stays(Silu(), f.model(SHAPE, silu(f, 1.702)), "the sigmoid approximation of Gelu")


@pytest.mark.parametrize("opset", [25, 26])
def test_after_opset_24_it_says_why(opset):
    f = Formula(opset=opset)
    proto = f.model(SHAPE, silu(f))
    check_stays(Silu(), proto, f"onnxruntime does not run Swish at opset {opset}")
    out, _, _ = apply(Silu(opsets=(24, opset)), proto)
    assert ops(out) == ["Swish"]


def test_the_option_reads_from_a_recipe():
    assert Silu.with_options({"opsets": [24, 25]}) == Silu(opsets=(24, 25))
    with pytest.raises(UsageError, match="silu"):
        Silu.with_options({"opsets": "all"})


def test_a_slope_for_each_channel_is_refused():
    f = Formula(opset=24)
    inner = f.op("Mul", "x", f.const(np.arange(8)))
    proto = f.model(SHAPE, f.op("Mul", "x", f.op("Sigmoid", inner)))
    check_stays(Silu(), proto, "not one number")


def test_division_by_zero_is_refused():
    f = Formula(opset=24)
    inner = f.op("Div", "x", f.const(0.0))
    check_stays(Silu(), f.model(SHAPE, f.op("Mul", "x", f.op("Sigmoid", inner))), "not one number")


def test_a_gate_of_another_value_stays():
    f = Formula(opset=24)
    check_stays(Silu(), f.model({**SHAPE, "z": SHAPE["x"]}, f.op("Mul", "x", f.op("Sigmoid", "z"))))


def test_a_gate_read_elsewhere_stays():
    f = Formula(opset=24)
    gate = f.op("Sigmoid", "x")
    y = f.op("Mul", "x", gate)
    check_stays(Silu(), f.model(SHAPE, y, gate))
    check_stays(Silu(), f.model(SHAPE, f.op("Add", y, gate)))


def test_a_sigmoid_of_another_domain_stays():
    proto = model(
        """<ir_version: 10, opset_import: ["" : 24, "custom" : 1]>
        m (float[2,8] x) => (float[2,8] y) { s = custom.Sigmoid(x) y = Mul(x, s) }"""
    )
    check_stays(Silu(), proto)
