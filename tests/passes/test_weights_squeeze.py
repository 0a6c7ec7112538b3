import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import UsageError
from qgraph.passes.weights import matrix_quantizer
from qgraph.passes.weights.loss import relative_loss
from qgraph.passes.weights.squeeze import squeeze


def heavy(rows, columns, seed):
    return np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32)


def sensitivity(rows, columns, seed):
    return np.exp(np.random.default_rng(seed + 1).standard_normal((rows, columns)))


def least_cost(x, f, count):
    """Least sum f (x - level)^2 of any `count` levels, by dynamic programming over sorted runs."""
    order = np.argsort(x)
    x, f = x[order].astype(np.float64), f[order]
    n = len(x)
    runs = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        mass, moment, second = (np.cumsum(f[i:] * (x[i:] - x[i]) ** p) for p in range(3))
        runs[i, i + 1 :] = second - moment**2 / mass
    best = runs[0].copy()
    best[0] = 0
    for _ in range(count - 1):
        best = np.array(
            [
                min(best[i] + (runs[i, j] if i < j else 0) for i in range(j + 1))
                for j in range(n + 1)
            ]
        )
    return best[n]


@pytest.mark.parametrize(("rows", "most"), [(3, 1 + 1e-5), (60, 1 + 1e-5), (130, 1.02)])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_are_the_best_there_are_or_cost_little_more(rows, most, bits):
    ratios = []
    for seed in range(4):
        weight, f = heavy(rows, 1, seed), sensitivity(rows, 1, seed)
        result = squeeze(weight, bits=bits, largest=0, sensitive=0, sensitivity=f)
        cost = (f * (weight.astype(np.float64) - result.dequantize()) ** 2).sum()
        best = least_cost(weight[:, 0], f[:, 0], 2**bits)
        # float32 levels leave an error where the best is 0.
        ratios.append((cost + 1e-9) / (best + 1e-9))
    assert min(ratios) > 1 - 1e-5 and np.mean(ratios) < most


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_levels_are_the_means_of_what_is_nearest_to_them(bits, rows, columns, seed):
    weight, f = heavy(rows, columns, seed), sensitivity(rows, columns, seed)
    result = squeeze(weight, bits=bits, largest=0, sensitive=0, sensitivity=f)
    assert result.codes.dtype == np.uint8 and result.codebook.shape == (2**bits, columns)
    assert (np.diff(result.codebook, axis=0) >= 0).all()
    assert result.values.size == 0 and result.indices.shape == (0, 2)
    back = result.dequantize()
    distances = np.abs(weight[None] - result.codebook[:, None].astype(np.float64))
    np.testing.assert_allclose(np.abs(weight - back), distances.min(axis=0), rtol=1e-4, atol=1e-6)
    for n in range(columns):
        for code in np.unique(result.codes[:, n]):
            of = result.codes[:, n] == code
            mean = np.average(weight[of, n].astype(np.float64), weights=f[of, n])
            assert result.codebook[code, n] == pytest.approx(mean, rel=1e-4, abs=1e-5)


def test_few_distinct_weights_are_exact():
    weight = np.random.default_rng(0).choice([-3, -1, 0.5, 2], (50, 4)).astype(np.float32)
    result = squeeze(weight, bits=2, largest=0, sensitive=0)
    np.testing.assert_allclose(result.dequantize(), weight, atol=1e-6)


def test_the_sparse_part_holds_the_largest_and_the_most_sensitive_exactly():
    weight, f = heavy(100, 20, 1), sensitivity(100, 20, 1)
    result = squeeze(weight, largest=0.01, sensitive=0.005, sensitivity=f)
    flat = np.abs(weight).reshape(-1)
    want = set(np.argsort(-flat)[:20]) | set(
        np.argsort(-(f * weight.astype(np.float64) ** 2).reshape(-1))[:10]
    )
    rows, columns = result.indices.T
    assert set(rows * 20 + columns) == want and len(result.values) == len(want)
    assert (np.diff(rows * 20 + columns) > 0).all()
    back = result.dequantize()
    np.testing.assert_allclose(back[rows, columns], weight[rows, columns], rtol=1e-6)
    # The simulation, entry by entry.
    naive = np.array(
        [[result.codebook[result.codes[k, n], n] for n in range(20)] for k in range(100)]
    )
    np.testing.assert_array_equal(result.dense(), naive)
    for (k, n), value in zip(result.indices, result.values, strict=True):
        naive[k, n] = np.float32(naive[k, n] + value)
    np.testing.assert_array_equal(back, naive)


def test_outliers_do_not_pull_the_levels():
    weight = np.random.default_rng(2).standard_normal((90, 5)).astype(np.float32)
    spoilt = weight.copy()
    spoilt[7] = 50
    clean = squeeze(np.delete(weight, 7, axis=0), largest=0, sensitive=0)
    split = squeeze(spoilt, largest=5 / 450, sensitive=0)
    np.testing.assert_allclose(split.codebook, clean.codebook, atol=1e-5)


def test_the_gram_matrix_gives_the_sensitivity_and_the_loss():
    weight = heavy(64, 8, 3)
    x = np.random.default_rng(3).standard_normal((200, 64)) * np.logspace(-1, 1, 64)
    gram = x.T @ x
    result = squeeze(weight, gram)
    rows = np.broadcast_to(np.diag(gram)[:, None], weight.shape)
    same = squeeze(weight, sensitivity=rows)
    np.testing.assert_array_equal(result.codes, same.codes)
    assert result.loss == pytest.approx(relative_loss(weight, result.dequantize(), gram))
    blind = squeeze(weight)
    assert result.loss < 0.7 * relative_loss(weight, blind.dequantize(), gram)
    assert result.bits() == 4 + (32 * 16 * 8 + 64 * len(result.values)) / 512


def test_one_weight_gives_one_table_always():
    weight, f = heavy(50, 6, 4), sensitivity(50, 6, 4)
    one, other = squeeze(weight, sensitivity=f), squeeze(weight, sensitivity=f)
    np.testing.assert_array_equal(one.codebook, other.codebook)
    alone = squeeze(weight[:, 2:3], largest=0, sensitive=0, sensitivity=f[:, 2:3])
    both = squeeze(weight, largest=0, sensitive=0, sensitivity=f)
    np.testing.assert_allclose(both.codebook[:, 2:3], alone.codebook, rtol=1e-6)


def test_zero_weights_and_zero_sensitivity():
    for gram in (None, np.zeros((10, 10))):
        assert not squeeze(np.zeros((10, 3), np.float32), gram).dequantize().any()
    weight, f = heavy(30, 2, 5), np.ones((30, 2))
    f[:15] = 0
    assert np.isfinite(squeeze(weight, sensitivity=f).codebook).all()


def test_refusals_and_registration():
    weight = heavy(6, 2, 0)
    for options in ({"bits": 0}, {"bits": 9}, {"largest": 1.0}, {"sensitive": -0.1}):
        with pytest.raises(UsageError, match="1 to 8 bits"):
            squeeze(weight, **options)
    for wrong in (np.ones((6, 3)), -np.ones((6, 2)), np.full((6, 2), np.nan)):
        with pytest.raises(ValueError, match="sensitivity"):
            squeeze(weight, sensitivity=wrong)
    assert matrix_quantizer("squeeze") is squeeze
