import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgraph.passes.weight_only import statistics
from qgraph.passes.weight_only.statistics import InputStatistics


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 99))
def test_sums_are_those_of_all_rows(lengths, experts, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((experts, n, 5)).astype(np.float32) for n in lengths]
    found = InputStatistics(5, experts, peaks=True)
    for part in parts:
        found.add(part if experts > 1 else part[0])
    rows = np.concatenate(parts, axis=1).astype(np.float64)
    count = max(rows.shape[1], 1)
    for expert, gram in zip(rows, found.gram(), strict=True):
        np.testing.assert_allclose(gram, expert.T @ expert / count, rtol=1e-4, atol=1e-6)
    size = np.abs(rows)
    np.testing.assert_allclose(found.peak(), size.max((0, 1), initial=0), rtol=1e-7)


def test_long_inputs_are_summed_up_in_pieces(monkeypatch):
    monkeypatch.setattr(statistics, "_BYTES", 0)
    x = np.random.default_rng(0).standard_normal((7, 1000, 3)).astype(np.float32)
    found = InputStatistics(3)
    for part in x:
        found.add(part)
    rows = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.gram()[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_is_noticed(value):
    x = np.ones((4, 3), np.float32)
    x[2, 1] = value
    found = InputStatistics(3)
    found.add(x)
    assert not found.finite()
