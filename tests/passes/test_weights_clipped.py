import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.encoding import Spec, dequantize
from qgraph.passes.weights import weight_quantizer
from qgraph.passes.weights.clipped import clipped_rounding
from qgraph.passes.weights.grid import SHARES
from qgraph.passes.weights.rtn import round_to_nearest

SPECS = [
    Spec("int8", axis=1, narrow=True),
    Spec("int4", axis=1),
    Spec("uint4", symmetric=False, axis=1),
    Spec("int4", axis=0, block=4),
    Spec("int4"),
]


def heavy(rows, columns, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_t(2, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_never_worse_than_the_full_range(spec, rows, columns, seed):
    weight = heavy(rows, columns, seed)
    codes, encoding, loss = clipped_rounding(weight, spec)
    _, full, plain = round_to_nearest(weight, spec)
    assert encoding.scale.shape == full.scale.shape and encoding.block == full.block
    assert loss <= plain + 1e-12
    low, high = spec.codes()
    assert codes.astype(int).min() >= low and codes.astype(int).max() <= high


def test_the_best_share_of_each_channel_by_definition():
    weight = heavy(40, 6, 1)
    _, encoding, _ = clipped_rounding(weight, Spec("int4", axis=1, narrow=True))
    for column in range(6):
        w = weight[:, column].astype(np.float64)
        errors = []
        for share in SHARES:
            scale = np.float32(np.float32(np.abs(w).max()) * np.float32(share)) / np.float32(7)
            errors.append(((np.clip(np.rint(w / scale), -7, 7) * scale - w) ** 2).sum())
        want = np.abs(w).max() * SHARES[int(np.argmin(errors))] / 7
        np.testing.assert_allclose(encoding.scale[0, column], want, rtol=1e-5)
    assert len(np.unique(encoding.scale / np.abs(weight).max(axis=0))) > 1


def test_rows_that_data_does_not_use_count_for_nothing():
    weight = np.full((50, 1), 0.31, np.float32)
    weight[::2] = 0.17
    weight[0] = 2.0
    gram = np.eye(50)
    gram[0, 0] = 0
    codes, encoding, loss = clipped_rounding(weight, Spec("int4", axis=1), gram)
    back = dequantize(codes, encoding)
    plain = clipped_rounding(weight, Spec("int4", axis=1))
    unweighted = dequantize(plain[0], plain[1])
    assert np.abs(back - weight)[1:].mean() < np.abs(unweighted - weight)[1:].mean()
    assert loss >= 0


def test_is_registered():
    assert weight_quantizer("clipped") is clipped_rounding
