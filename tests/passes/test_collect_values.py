import importlib
import threading
import time

import numpy as np
import pytest
from harness import model, run_reference

from qgraph import onnx_io
from qgraph.errors import DataError
from qgraph.passes.collect_values import AT_LEAST, rereadable, watch

NET = """g (float[N,8] x, float[N,8] z) => (float[N,4] y) {
    a = MatMul(x, w)
    r = Relu(a)
    y = MatMul(r, v)
}"""
# By its name the package gives the function `backend`.
BACKEND = importlib.import_module("qgraph.runtime.backend")
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((8, 6)).astype(np.float32),
    "v": RNG.standard_normal((6, 4)).astype(np.float32),
}
OPEN = NET.replace("(float[N,4] y)", "(float[N,4] y, float[N,6] a, float[N,6] r)")
NAMES = ["a", "r", "x", "y"]


def data(count=5, rows=3):
    return [
        {k: RNG.standard_normal((rows + i, 8)).astype(np.float32) for k in "xz"}
        for i in range(count)
    ]


def graph():
    return onnx_io.load(model(NET, WEIGHTS))


def seen(samples, names=NAMES, memory=1 << 20, **options):
    found = []
    timing = watch(
        graph(),
        names,
        samples,
        lambda i, n, v: found.append((i, n, v.copy())),
        memory=memory,
        **options,
    )
    return found, timing


def check(found, samples, names=NAMES):
    assert sorted((i, n) for i, n, _ in found) == sorted(
        (i, n) for i in range(len(samples)) for n in names
    )
    for index, name, value in found:
        want = {**samples[index], **run_reference(model(OPEN, WEIGHTS), samples[index])}[name]
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)


def test_values_are_those_of_the_unoptimised_model():
    samples = data()
    found, timing = seen(samples)
    check(found, samples)
    assert (timing.samples, timing.runs, timing.groups) == (5, 5, 1)
    assert 0 < timing.inference < timing.seconds
    assert timing.line().startswith("5 samples in ") and "not in inference" in timing.line()


@pytest.mark.parametrize("names", [["x"], ["x", "z"], ["r"], ["y"]])
def test_inputs_and_outputs_can_be_watched_alone(names):
    samples = data(2)
    check(seen(samples, names)[0], samples, names)


def test_a_small_budget_splits_values_and_runs_the_data_again():
    samples = data()
    # First sample: x 96 bytes, a and r 72 each, y 48.
    steps = []
    found, timing = seen(samples, memory=AT_LEAST * 170, progress=lambda *args: steps.append(args))
    check(found, samples)
    assert timing.groups == 2 and timing.runs == 10 and timing.samples == 5
    assert steps[-1] == ("calibrating", 10, 10) and "2 groups" in timing.line()
    found, timing = seen(samples, memory=1)
    check(found, samples)
    assert timing.groups == 4


def test_a_generator_is_read_once_and_never_again():
    samples = data()
    found, timing = seen(s for s in samples)
    check(found, samples)
    assert timing.groups == 1
    with pytest.raises(DataError, match="can be read only once; raise calibrate.memory_mb"):
        seen((s for s in samples), memory=1)
    assert rereadable(samples) and not rereadable(iter(samples))


def test_what_is_refused_names_sample_and_value():
    def refuse(index, name, value):
        if index == 2 and name == "r":
            raise ValueError("bad")

    with pytest.raises(DataError, match="sample 2 makes 'r' NaN or infinite"):
        watch(graph(), NAMES, data(), refuse, memory=1 << 20)
    assert threading.active_count() < 50


def test_samples_run_side_by_side_but_never_two_of_one_value(monkeypatch):
    monkeypatch.setattr(BACKEND, "available_cores", lambda: 4)
    samples, inside, threads, lock = data(40), set(), set(), threading.Lock()

    def see(index, name, value):
        with lock:
            assert name not in inside
            inside.add(name)
            threads.add(threading.get_ident())
        time.sleep(0.001)
        with lock:
            inside.remove(name)

    timing = watch(graph(), NAMES, samples, see, memory=1 << 20)
    assert timing.samples == 40 and len(threads) == 4 and threading.get_ident() not in threads


def test_the_first_sample_that_is_refused_is_named(monkeypatch):
    monkeypatch.setattr(BACKEND, "available_cores", lambda: 4)

    def see(index, name, value):
        if index == 3:
            time.sleep(0.05)
        if index >= 3:
            raise ValueError("bad")

    with pytest.raises(DataError, match="sample 3 makes"):
        watch(graph(), NAMES, data(20), see, memory=1 << 20)


def test_a_buffer_may_be_used_again_for_the_next_sample():
    samples = [{k: RNG.standard_normal((3, 8)).astype(np.float32) for k in "xz"} for _ in range(12)]
    buffer = {k: np.zeros((3, 8), np.float32) for k in "xz"}

    def generate():
        for sample in samples:
            for name, array in sample.items():
                buffer[name][:] = array
            yield buffer

    check(seen(generate())[0], samples)


@pytest.mark.parametrize("memory", [1, 500, 1 << 20])
@pytest.mark.parametrize("cores", [1, 2, 16])
def test_cores_and_memory_change_nothing(monkeypatch, cores, memory):
    monkeypatch.setattr(BACKEND, "available_cores", lambda: cores)
    samples = data()
    found, timing = seen(samples, memory=memory)
    check(found, samples)
    assert timing.groups == (4 if memory == 1 else 2 if memory == 500 else 1)


def test_no_samples():
    with pytest.raises(DataError, match="has no samples"):
        seen([])


def test_the_graph_is_not_changed():
    given = graph()
    before = onnx_io.to_proto(given)
    watch(given, NAMES, data(), lambda *_: None, memory=1)
    assert onnx_io.to_proto(given) == before
