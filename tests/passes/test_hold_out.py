import numpy as np
import pytest
from harness import model

from qgraph import onnx_io
from qgraph.passes.hold_out import Part, kept_sqnr

TEXT = "g (float[2] x) => (float[2] y, float[2] z) { y = Add (x, a)\n z = Neg (x) }"


def feeds(count):
    return [{"x": np.array([i, -i], np.float32)} for i in range(1, count + 1)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 9, 16])
def test_parts_are_disjoint_and_whole(count):
    data = feeds(count)
    rest, held = Part(data, held=False), Part(data, held=True)
    both = [list(rest), list(held)]
    assert [part.expected for part in (rest, held)] == [len(part) for part in both]
    numbers = sorted(int(sample["x"][0]) for part in both for sample in part)
    assert numbers == list(range(1, count + 1))
    assert list(held) == both[1]  # again


def test_without_a_length_nothing_is_expected():
    assert Part(iter(feeds(4)), held=True).expected is None


def test_sqnr_is_of_the_worst_output():
    before = onnx_io.load(model(TEXT, {"a": np.zeros(2, np.float32)}))
    after = onnx_io.load(model(TEXT, {"a": np.array([0.1, 0], np.float32)}))
    data = feeds(3)
    signal = sum((sample["x"].astype(np.float64) ** 2).sum() for sample in data)
    assert kept_sqnr(before, after, data) == pytest.approx(10 * np.log10(signal / 0.03), abs=1e-3)
    assert kept_sqnr(before, before, data) == np.inf
    assert kept_sqnr(before, after, []) is None
