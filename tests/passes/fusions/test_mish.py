import numpy as np
import pytest
from formulas import Formula
from harness import check_fires, check_stays, ops

from qgraph.passes.fusions.mish import Mish

SHAPE = {"x": ["batch", 8]}


def mish(f):
    return f.either("Mul", "x", f.op("Tanh", f.op("Softplus", "x")))


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("opset", [18, 21, 24])
def test_both_orders(flip, opset):
    f = Formula(lambda n: flip, opset=opset)
    assert ops(check_fires(Mish(), f.model(SHAPE, mish(f)), changed=1)) == ["Mish"]


def test_large_values_stay_finite():
    f = Formula()
    feeds = {"x": np.array([[-200, -90, -20, 0, 20, 90, 200, 1]], np.float32)}
    check_fires(Mish(), f.model(SHAPE, mish(f)), feeds=feeds)


def test_float16():
    f = Formula(dtype=np.float16)
    check_fires(Mish(), f.model(SHAPE, mish(f)), rtol=2e-3)


@pytest.mark.parametrize("opset", [13, 17])
def test_before_opset_18_it_says_so(opset):
    f = Formula(opset=opset)
    check_stays(Mish(), f.model(SHAPE, mish(f)), f"Mish needs opset 18, the model has {opset}")


def test_another_value_in_the_gate_stays():
    f = Formula()
    y = f.op("Mul", "x", f.op("Tanh", f.op("Softplus", "z")))
    check_stays(Mish(), f.model({**SHAPE, "z": SHAPE["x"]}, y))


def test_a_gate_read_elsewhere_stays():
    f = Formula()
    plus = f.op("Softplus", "x")
    gate = f.op("Tanh", plus)
    y = f.op("Mul", "x", gate)
    check_stays(Mish(), f.model(SHAPE, y, plus))
    check_stays(Mish(), f.model(SHAPE, y, gate))
    check_stays(Mish(), f.model(SHAPE, f.op("Sub", y, gate)))
