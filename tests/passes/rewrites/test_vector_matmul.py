"""Vectors in front of stacks of matrices."""

import numpy as np
import pytest
from harness import check_fires, check_stays, model, ops

from qgraph.passes.rewrites.vector_matmul import VectorMatMul


def weights(*shape):
    return {"w": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def test_it_becomes_a_row():
    text = "net (float[4] x) => (float[2,3,5] y) { y = MatMul(x, w) }"
    out = check_fires(VectorMatMul(), model(text, weights(2, 3, 4, 5)), changed=1)
    assert ops(out) == ["Unsqueeze", "MatMul", "Squeeze"]


@pytest.mark.parametrize(
    ("left", "right", "result"),
    [((4,), (4, 5), (5,)), ((3, 4), (2, 4, 5), (2, 3, 5)), ((2, 3, 4), (4,), (2, 3))],
)
def test_other_products_stay(left, right, result):
    shapes = [",".join(map(str, each)) for each in (left, result)]
    text = f"net (float[{shapes[0]}] x) => (float[{shapes[1]}] y) {{ y = MatMul(x, w) }}"
    check_stays(VectorMatMul(), model(text, weights(*right)))
