import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.encoding import Spec, dequantize
from qgraph.passes.weights.outliers import split_outliers
from qgraph.passes.weights.rtn import round_to_nearest


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(0, 12))
def test_rows_by_their_peak(rows, columns, seed, threshold):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    peak = rng.uniform(0, 10, rows)
    result = split_outliers(weight, peak, threshold=threshold)
    np.testing.assert_array_equal(result.outliers, np.flatnonzero(peak >= threshold))
    np.testing.assert_array_equal(result.regular, np.flatnonzero(peak < threshold))
    back = result.dequantize()
    np.testing.assert_array_equal(back[result.outliers], weight[result.outliers])
    if result.regular.size:
        # The same as int8 per output channel of those rows alone.
        part = weight[result.regular]
        codes, encoding, _ = round_to_nearest(part, Spec("int8", axis=1, narrow=True))
        np.testing.assert_array_equal(back[result.regular], dequantize(codes, encoding))
        np.testing.assert_array_equal(result.codes, codes)
        np.testing.assert_array_equal(result.scale, encoding.scale[0])
    assert result.loss == pytest.approx(
        ((weight - back) ** 2).sum() / (weight**2).sum(), rel=1e-5, abs=1e-12
    )


def test_the_product_in_two_parts_is_the_product_with_the_simulation():
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((32, 8)).astype(np.float32), rng.standard_normal((5, 32))
    x[:, [3, 20]] *= 30
    result = split_outliers(weight, np.abs(x).max(axis=0))
    assert result.outliers.tolist() == [3, 20]
    int8 = (x[:, result.regular] @ result.codes.astype(np.float64)) * result.scale
    both = int8 + x[:, result.outliers] @ result.weight
    np.testing.assert_allclose(both, x @ result.dequantize(), rtol=1e-6)


def test_outlier_rows_in_float_lower_the_loss_of_the_output():
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((64, 16)).astype(np.float32), rng.standard_normal((200, 64))
    x[:, [5, 9, 40]] *= 40
    gram, peak = x.T @ x, np.abs(x).max(axis=0)
    split = split_outliers(weight, peak, gram)
    whole = split_outliers(weight, peak, gram, threshold=np.inf)
    assert whole.outliers.size == 0 and split.outliers.tolist() == [5, 9, 40]
    assert split.loss < 0.05 * whole.loss
    assert split.bits() == (8 * 61 * 16 + 32 * 3 * 16 + 32 * 16 + 64 * 64) / (64 * 16)


def test_all_rows_on_either_side_and_zeros():
    weight = np.zeros((4, 3), np.float32)
    weight[1] = 2
    for threshold in (0.0, 5.0):
        result = split_outliers(weight, np.ones(4), threshold=threshold)
        np.testing.assert_array_equal(result.dequantize(), weight)


def test_refusals():
    with pytest.raises(ValueError, match="peaks"):
        split_outliers(np.ones((4, 3), np.float32), np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        split_outliers(np.ones((4, 3), np.float32), np.array([1, 2, np.nan, 3]))
    with pytest.raises(ValueError, match="not finite"):
        split_outliers(np.full((4, 3), np.inf, np.float32), np.ones(4))
