import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from runtime_models import affine, bf16, graph, small_cnn, text

from qgraph.errors import DataError, EngineError, UsageError
from qgraph.runtime import backend, backends
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.runtime.ort_session import OrtSession, type_from_ort

CPU = backend("onnxruntime-cpu")
X, W = np.array([[1, -2, 3]], np.float32), np.array([2, 2, -1], np.float32)


def opened(model: onnx.ModelProto, **options: Any) -> Session:
    return CPU.open(model.SerializeToString(), EngineOptions(**options))


@pytest.mark.parametrize("make", [affine, small_cnn])
def test_agrees_with_onnx_reference(make: Any, rng: np.random.Generator) -> None:
    model = make()
    shapes = {"x": (2, 3) if make is affine else (2, 3, 16, 16), "w": (3,)}
    feeds = {
        info.name: rng.standard_normal(shapes[info.name]).astype(np.float32)
        for info in model.graph.input
    }
    expected = ReferenceEvaluator(model).run(None, feeds)
    with opened(model) as session:
        assert isinstance(session, Session)
        got = session.run(feeds)
    assert list(got) == [info.name for info in model.graph.output]
    for want, have in zip(expected, got.values(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


def test_inputs_and_outputs_are_described() -> None:
    with opened(affine()) as session:
        assert [str(info) for info in session.inputs] == ["x float32 [N, 3]", "w float32 [3]"]
        assert [str(info) for info in session.outputs] == ["y float32 [N, 3]", "z float32 [N, 3]"]


@pytest.mark.parametrize(
    ("ort", "name"),
    [
        ("tensor(float)", "float32"),
        ("tensor(double)", "float64"),
        ("tensor(float16)", "float16"),
        ("tensor(bfloat16)", "bfloat16"),
        ("tensor(float8e4m3fn)", "float8e4m3fn"),
        ("tensor(int64)", "int64"),
        ("tensor(string)", "string"),
        ("seq(tensor(float))", "seq(float32)"),
    ],
)
def test_type_names(ort: str, name: str) -> None:
    assert type_from_ort(ort) == name


def test_only_named_outputs_come_back_in_that_order() -> None:
    with opened(affine()) as session:
        assert list(session.run({"x": X, "w": W}, ["z"])) == ["z"]
        assert list(session.run({"x": X, "w": W}, ["z", "y", "z"])) == ["z", "y"]
        with pytest.raises(UsageError, match="unknown output 'zz'; did you mean 'z'"):
            session.run({"x": X, "w": W}, ["zz"])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": X}, r"^input 'w': missing from the feeds \(given: x\); pass w float32 \[3\]$"),
        ({}, r"input 'x': missing from the feeds \(given: nothing\); pass x float32 \[N, 3\]"),
        ({"x": X, "w": W, "v": W}, r"input 'v': the model has no such input; .* w float32 \[3\]"),
        ({"x": X, "w": W, "ww": W}, r"input 'ww': .*did you mean 'w'"),
        ({"x": X, "w": W.astype(np.float64)}, r"input 'w': dtype is float64, expected float32"),
        ({"x": X, "w": bf16(W)}, r"input 'w': dtype is bfloat16, expected float32"),
        ({"x": X[0], "w": W}, r"input 'x': shape is \[3\], expected \[N, 3\]"),
        ({"x": X[:, :2], "w": W}, r"input 'x': shape is \[1, 2\], expected \[N, 3\]"),
    ],
)
def test_wrong_feeds_name_the_input(feeds: dict[str, Any], message: str) -> None:
    with opened(affine()) as session, pytest.raises(DataError, match=message):
        session.run(feeds)


def test_strided_and_foreign_byte_order_feeds_are_read_right() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    with opened(affine()) as session:
        straight = session.run({"x": x.copy(), "w": W})["z"]
        np.testing.assert_array_equal(straight, -(x * W))
        np.testing.assert_array_equal(session.run({"x": x, "w": W})["z"], straight)
        np.testing.assert_array_equal(
            session.run({"x": x.astype(">f4"), "w": W.astype(">f4")})["z"], straight
        )


def test_empty_batch() -> None:
    with opened(affine()) as session:
        got = session.run({"x": np.zeros((0, 3), np.float32), "w": W})
    assert got["y"].shape == (0, 3)


def test_scalar_keeps_its_rank() -> None:
    with opened(text("g (float x) => (float y) { y = Neg(x) }")) as session:
        assert session.run({"x": np.asarray(np.float32(2))})["y"].shape == ()


def test_overridable_initializer_may_be_fed() -> None:
    model = text("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2]))
    ones = np.ones(2, np.float32)
    with opened(model) as session:
        np.testing.assert_array_equal(session.run({"x": ones})["y"], [1, 2])
        np.testing.assert_array_equal(session.run({"x": ones, "w": ones * 5})["y"], [5, 5])


FLOATS = [
    (np.dtype(np.float16), onnx.TensorProto.FLOAT16),
    (np.dtype(ml_dtypes.bfloat16), onnx.TensorProto.BFLOAT16),
    (np.dtype(ml_dtypes.float8_e4m3fn), onnx.TensorProto.FLOAT8E4M3FN),
    (np.dtype(ml_dtypes.float8_e5m2), onnx.TensorProto.FLOAT8E5M2),
]


@pytest.mark.parametrize(("dtype", "code"), FLOATS, ids=lambda value: str(value))
@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_small_floats_come_and_go_bit_exact(
    dtype: np.dtype[Any], code: int, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    nodes = [
        onnx.helper.make_node("Identity", ["x"], ["y"]),
        onnx.helper.make_node("Cast", ["x"], ["f"], to=1),
    ]
    both = {"y": (code, ["N", 3]), "f": (1, ["N", 3])}
    x = rng.standard_normal(shape).astype(dtype)
    with opened(graph(nodes, {"x": (code, ["N", 3])}, both, {})) as session:
        got = session.run({"x": x})
        only = session.run({"x": x}, ["f"])
    assert got["y"].dtype == dtype and got["y"].shape == shape
    assert got["y"].tobytes() == x.tobytes()
    np.testing.assert_array_equal(got["f"], x.astype(np.float32))
    np.testing.assert_array_equal(only["f"], got["f"])
    assert got["y"].flags.writeable


def test_strided_bfloat16_is_read_right() -> None:
    model = text("g (bfloat16[N, M] x) => (bfloat16[N, M] y) { y = Identity(x) }")
    x = bf16(np.arange(6).reshape(2, 3)).T
    with opened(model) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], x)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
@settings(max_examples=25, deadline=None)
def test_strings_come_and_go(words: list[str]) -> None:
    with opened(text("g (string[N] s) => (string[N] t) { t = Identity(s) }")) as session:
        for array in (np.array(words, object), np.array(words, np.dtypes.StringDType())):
            assert list(session.run({"s": array})["t"]) == words


def test_string_feeds_hold_strings_only() -> None:
    model = text("g (string[N] s) => (string[N] t) { t = Identity(s) }")
    with opened(model) as session:
        assert list(session.run({"s": np.array(["ü".encode()])})["t"]) == ["ü"]
        with pytest.raises(DataError, match=r"input 's': element \[1\] is int, expected str"):
            session.run({"s": np.array(["a", 1], object)})
        with pytest.raises(DataError, match="dtype is float32, expected string"):
            session.run({"s": W})


def test_sequences_are_refused_by_name() -> None:
    model = text(
        "g (float[2] x) => (seq(float[2]) s, float[2] y) { s = SequenceConstruct(x) y = Neg(x) }"
    )
    x = np.ones(2, np.float32)
    with opened(model) as session:
        with pytest.raises(EngineError, match=r"output 's' is a seq\(float32\)"):
            session.run({"x": x})
        np.testing.assert_array_equal(session.run({"x": x}, ["y"])["y"], -x)


def test_failing_run_is_one_line_and_the_session_lives_on() -> None:
    with opened(text("g (float[N] a, float[M] b) => (float[K] c) { c = Add(a, b) }")) as session:
        two, three = np.ones(2, np.float32), np.ones(3, np.float32)
        with pytest.raises(EngineError, match="^onnxruntime-cpu: failed while running: ") as caught:
            session.run({"a": two, "b": three})
        assert "\n" not in str(caught.value) and "[ONNXRuntimeError]" not in str(caught.value)
        np.testing.assert_array_equal(session.run({"a": two, "b": two})["c"], [2, 2])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    # An initializer that nothing reads and a failing node both make ONNX Runtime log.
    model = text(
        "g (float[N] a, float[M] b) => (float[K] c) <float[2] unused = {1, 2}> { c = Add(a, b) }"
    )
    with opened(model, profile=True) as session, pytest.raises(EngineError):
        session.run({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})
    for name in backends():
        backend(name).unavailable()
    with pytest.raises(EngineError):
        CPU.open(b"not a model")
    assert capfd.readouterr() == ("", "")


def test_close_releases_threads_and_memory() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("counts threads in /proc, which this system lacks")
    gc.collect()
    before = _threads()
    session = opened(affine(), threads=4)
    assert isinstance(session, OrtSession)
    inner = weakref.ref(session._session)
    assert _threads() == before + 3
    session.run({"x": X, "w": W})
    session.close()
    gc.collect()
    assert inner() is None and _threads() == before
    with pytest.raises(EngineError, match="the session is closed; open it again"):
        session.run({"x": X, "w": W})
    session.close()


def test_with_closes_even_after_an_error() -> None:
    session = opened(affine())
    with pytest.raises(RuntimeError, match="mine"), session:
        raise RuntimeError("mine")
    with pytest.raises(EngineError, match="closed"):
        session.run({"x": X, "w": W})


def test_results_outlive_the_session_and_the_next_run() -> None:
    with opened(affine()) as session:
        first = session.run({"x": X, "w": W})["z"]
        kept = first.copy()
        session.run({"x": X * 9, "w": W})
    gc.collect()
    np.testing.assert_array_equal(first, kept)


def test_threads_share_a_session() -> None:
    failures: list[str] = []
    with opened(affine()) as session:

        def work(seed: int) -> None:
            for step in range(50):
                x = np.full((4, 3), seed * 100 + step, np.float32)
                if not np.array_equal(session.run({"x": x, "w": W})["z"], -(x * W)):
                    failures.append(f"{seed}:{step}")

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures


def test_closing_during_runs_ends_in_an_engine_error_only() -> None:
    session = opened(affine())
    started = threading.Event()

    def work() -> None:
        while True:
            session.run({"x": X, "w": W})
            started.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        assert started.wait(10)
        session.close()
        with pytest.raises(EngineError, match="closed"):
            running.result(10)


def _threads() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Threads:")))


def test_string_input_beside_a_bfloat16_output_is_refused_in_one_line() -> None:
    model = text(
        "g (string[N] s, bfloat16[N] x) => (string[N] t, bfloat16[N] y)"
        " { t = Identity(s) y = Identity(x) }"
    )
    feeds = {"s": np.array(["a"], object), "x": bf16([1])}
    with opened(model) as session:
        with pytest.raises(EngineError, match="non-string"):
            session.run(feeds)
        assert list(session.run(feeds, ["t"])["t"]) == ["a"]
