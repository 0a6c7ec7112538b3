"""A residual addition and RMSNormalization as one operator."""

import numpy as np
import pytest
from harness import check_fires, check_stays, model, ops

from qgraph.context import Context
from qgraph.passes.contrib.skip_rmsnorm import SkipRMSNorm

SCALE = {"scale": np.linspace(0.5, 2, 8, dtype=np.float32)}
NEXT = "z = Add(s, n)"


def chain(shape="[B,T,8]", other="[B,T,8]", norm="axis=-1", then=NEXT):
    return model(
        f"""g (float{shape} x, float{other} y) => (float{shape} z) {{
            s = Add(x, y)
            n = RMSNormalization<{norm}>(s, scale)
            {then}
        }}""",
        SCALE,
        opset=23,
        ir_version=11,
    )


@pytest.mark.parametrize("shape, norm", [("[B,T,8]", "axis=-1"), ("[B,8]", "axis=1, epsilon=0.1")])
def test_a_sum_that_is_read_again(shape, norm):
    out = check_fires(SkipRMSNorm(), chain(shape, shape, norm), changed=1)
    assert ops(out) == ["SkipSimplifiedLayerNormalization", "Add"]
    assert list(out.graph.node[0].output[1:3]) == ["", ""] and len(out.graph.node[0].output) == 4


def test_a_sum_for_the_norm_alone():
    out = check_fires(SkipRMSNorm(), chain(then="z = Identity(n)"), changed=1)
    assert len(out.graph.node[0].output) == 1


def test_a_sum_that_is_a_graph_output():
    text = """g (float[B,T,8] x, float[B,T,8] y) => (float[B,T,8] s, float[B,T,8] n) {
        s = Add(x, y)
        n = RMSNormalization<axis=-1>(s, scale)
    }"""
    check_fires(SkipRMSNorm(), model(text, SCALE, opset=23, ir_version=11), changed=1)


def test_two_norms_of_one_sum():
    then = "a = RMSNormalization<axis=-1>(s, scale)\nz = Add(n, a)"
    out = check_fires(SkipRMSNorm(), chain(then=then), changed=1)
    assert ops(out) == ["SkipSimplifiedLayerNormalization", "RMSNormalization", "Add"]


@pytest.mark.parametrize(
    "proto, reason",
    [
        (chain(other="[1,T,8]"), "one shape"),
        (chain(other="[B,U,8]"), "one shape"),
        (chain("[B,2,T,8]", "[B,2,T,8]"), "known width"),
        (chain(norm="axis=-1, stash_type=11"), "float32"),
        (chain("[B,3,8]", "[B,3,8]", norm="axis=1"), "more than the last axis"),
    ],
)
def test_stays(proto, reason):
    check_stays(SkipRMSNorm(), proto, reason)


def test_a_bias_and_other_operators_are_no_case():
    text = """g (float[B,T,8] x) => (float[B,T,8] n) {
        s = Mul(x, x)
        n = RMSNormalization<axis=-1>(s, scale)
    }"""
    (report,) = check_stays(SkipRMSNorm(), model(text, SCALE, opset=23, ir_version=11))
    assert not report.refused


def test_an_excluded_norm_stays():
    check_stays(SkipRMSNorm(), chain(), "excluded", Context(exclude=("RMSNorm*",)))
