"""A residual addition and LayerNormalization as one operator."""

import numpy as np
import pytest
from harness import check_fires, check_stays, model, ops

from qgraph.passes.contrib.skip_layernorm import SkipLayerNorm

CONSTANTS = {
    "scale": np.linspace(0.5, 2, 8, dtype=np.float32),
    "bias": np.linspace(-1, 1, 8, dtype=np.float32),
}


def chain(other="[B,T,8]", norm="axis=-1, epsilon=0.01", parameters="scale, bias"):
    return model(
        f"""g (float[B,T,8] x, float{other} y) => (float[B,T,8] z) {{
            s = Add(x, y)
            n = LayerNormalization<{norm}>(s, {parameters})
            z = Add(s, n)
        }}""",
        {name: array for name, array in CONSTANTS.items() if name in parameters},
    )


@pytest.mark.parametrize("parameters", ["scale, bias", "scale"])
def test_a_sum_that_is_read_again(parameters):
    out = check_fires(SkipLayerNorm(), chain(parameters=parameters), changed=1)
    assert ops(out) == ["SkipLayerNormalization", "Add"]


@pytest.mark.parametrize(
    "proto, reason",
    [
        (chain(other="[T,8]"), "one shape"),
        (chain(norm="axis=-1, stash_type=11"), "float32"),
    ],
)
def test_stays(proto, reason):
    check_stays(SkipLayerNorm(), proto, reason)


def test_statistics_that_are_read_stay():
    text = """g (float[B,T,8] x, float[B,T,8] y) => (float[B,T,8] n, float[B,T,1] m) {
        s = Add(x, y)
        n, m = LayerNormalization<axis=-1>(s, scale, bias)
    }"""
    check_stays(SkipLayerNorm(), model(text, CONSTANTS))
