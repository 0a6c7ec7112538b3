import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qgraph.passes.weight_only.boundary import Boundary


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.integers(0, 9)), max_size=12),
    st.integers(0, 400),
)
def test_gives_back_what_was_put_whatever_fits(puts, memory):
    expected = {}
    with Boundary(memory) as boundary:
        for sample, name, value in puts:
            boundary.drop(sample, [name])
            expected[sample, name] = np.full(10, value)
            boundary.put(sample, {name: expected[sample, name]})
        for (sample, name), array in expected.items():
            np.testing.assert_array_equal(boundary.get(sample, [name])[name], array)


def test_files_are_gone_afterwards():
    with Boundary(0) as boundary:
        boundary.put(0, {"x": np.ones(5)})
        (path,) = boundary._arrays.values()
        assert os.path.isfile(path)
        boundary.drop(0, ["x", "never put"])
        assert not os.path.exists(path)
        boundary.put(0, {"x": np.ones(5)})
        (path,) = boundary._arrays.values()
    assert not os.path.exists(path)


def test_memory_is_free_again_once_dropped():
    with Boundary(80) as boundary:
        for sample in range(20):
            boundary.put(sample, {"x": np.ones(10)})
            assert isinstance(boundary._arrays[sample, "x"], np.ndarray)
            boundary.drop(sample, ["x"])
