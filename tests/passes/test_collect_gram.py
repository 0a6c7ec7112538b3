import numpy as np
import pytest
from harness import model

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.passes import collect_gram
from qgraph.passes.collect_gram import FirstSamples, Gram, Wanted, collect_grams
from qgraph.passes.layer_rows import Layout

TEXT = "g (float[n,6] x) => (float[n,6] y) { a = Tanh (x)\n b = Neg (a)\n y = Exp (b) }"


def collect(data, names=("x", "a", "b"), seed=0, **options):
    wanted = [Wanted(name, Layout(), 6) for name in names]
    settings = {"rows": 10**6, "samples": 100, "memory": 1 << 30, "label": "looking"} | options
    context = Context(data=data, seed=seed)
    return collect_grams(onnx_io.load(model(TEXT)), wanted, context, **settings)


def arrays(count=9, rows=7, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((rows, 6)).astype(np.float32) + 2} for _ in range(count)]


def test_sums_against_float64():
    data = arrays()
    x = np.concatenate([each["x"] for each in data]).astype(np.float64)
    for gram, values in zip(collect(data), (x, np.tanh(x), -np.tanh(x)), strict=True):
        assert gram.rows == len(x)
        np.testing.assert_allclose(gram.matrix(centred=False)[0], values.T @ values, rtol=1e-5)
        inner = values - values.mean(axis=0)
        np.testing.assert_allclose(gram.matrix(centred=True)[0], inner.T @ inner, atol=1e-3)


@pytest.mark.parametrize("step", [1, 5, 700])
def test_groups_and_rows_a_few_at_a_time(step):
    rows = np.random.default_rng(1).standard_normal((700, 3, 4)).astype(np.float32) + 1
    gram = Gram.empty(3, 4)
    for start in range(0, 700, step):
        gram.add(rows[start : start + step])
    for group in range(3):
        x = rows[:, group].astype(np.float64)
        for centred in (False, True):
            inner = x - x.mean(axis=0) * centred
            found = gram.matrix(centred=centred)[group]
            np.testing.assert_allclose(found, inner.T @ inner, atol=1e-3)


def test_memory_and_threads_change_nothing():
    data = arrays(rows=200)
    usual = collect(data, rows=300)
    for memory in (1 << 30, 1):
        for _ in range(3):
            for first, second in zip(usual, collect(data, rows=300, memory=memory), strict=True):
                for centred in (False, True):
                    np.testing.assert_array_equal(
                        first.matrix(centred=centred), second.matrix(centred=centred)
                    )
    other = collect(data, rows=300, seed=1)[0]
    assert not np.array_equal(other.total, usual[0].total)


def test_samples_that_end_early_wait_for_their_turn():
    queue = collect_gram._InOrder(0)
    got = [[tag for _, (tag,) in queue.put(i, [i])] for i in (2, 0, 3, 1, 4)]  # type: ignore[list-item]
    assert got == [[], [0], [], [1, 2, 3], [4]]


def test_rows_are_drawn_evenly_over_the_first_samples():
    data = arrays(count=9, rows=50)
    (gram,) = collect(data, names=("x",), rows=40, samples=4)
    assert gram.rows == 40
    (gram,) = collect(data, names=("x",), rows=1, samples=4)
    assert gram.rows == 12, "twice the length of a row at least"


def test_an_endless_generator_of_samples_is_cut():
    class Endless:
        rereadable = True
        expected = None

        def __iter__(self):
            while True:
                yield arrays(1)[0]

    first = FirstSamples(Endless(), 5)
    assert len(list(first)) == 5 and first.rereadable
    (gram,) = collect(Endless(), names=("x",), samples=5)
    assert gram.rows == 5 * 7


def test_an_infinite_value_is_named():
    data = arrays()
    data[3]["x"][2, 1] = np.inf
    with pytest.raises(DataError, match="sample 3 makes 'x' NaN or infinite"):
        collect(data)


def test_no_data_is_an_error():
    with pytest.raises(DataError, match="looking needs data"):
        collect(None)
