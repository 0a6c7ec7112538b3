"""The CUDA provider's sessions: graphs, layouts, memory of the GPU. Needs one, and onnxruntime-gpu."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import qgraph
from models.zoo.llama import Config, shapes
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.errors import DataError, EngineError
from qgraph.graph import Graph
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.executed import executed_ops
from qgraph.runtime.ort_graphs import GraphSession
from qgraph.runtime.reference import open_reference

CUDA = backend("onnxruntime-cuda")
WAYS = ({}, {"nhwc": True}, {"graph": True}, {"graph": True, "nhwc": True})
TINY = Config(2, 64, 4, 2, 128, 96, 64)


@pytest.fixture(autouse=True)
def needs_cuda() -> None:
    if reason := CUDA.unavailable():
        pytest.skip(f"the CUDA engine can't run here: {reason}")


def cnn() -> bytes:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((32, 3, 3, 3)).astype(np.float32) * 0.2,
        "v": rng.standard_normal((16, 32, 3, 3)).astype(np.float32) * 0.1,
        "m": rng.standard_normal((16, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", 1, ["n", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return made


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 32, 32)).astype(np.float32)}


def opened(model: Any, **options: Any) -> Any:
    return CUDA.open(model, EngineOptions(engine=options))


def close(got: Any, want: np.ndarray) -> None:
    got = got if isinstance(got, np.ndarray) else got.numpy()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_to_run_gives_the_same_numbers(way: dict[str, Any]) -> None:
    model = cnn()
    with opened(model, **way) as session, open_reference(model) as reference:
        assert session.device == "cuda"
        bound = session.bind(images(2))
        for step in range(4):
            for count in (2, 3):
                feeds = images(count, step)
                want = reference.run(feeds)["y"]
                close(session.run(feeds)["y"], want)
                found = session.run_dlpack(feeds)["y"]
                assert found.__dlpack_device__()[0] == 2
                close(found, want)
            bound.update(images(2, step))
            bound.run()
            close(bound.outputs["y"], reference.run(images(2, step))["y"])
        if way.get("graph"):
            assert isinstance(session, GraphSession)
            assert session.refusal == "" and not session._given_up and len(session._bound) == 2


@pytest.mark.parametrize("way", WAYS[1:3], ids=str)
def test_memory_of_the_gpu_goes_in_and_comes_out(way: dict[str, Any]) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    model, feeds = cnn(), images(2)
    with opened(model, **way) as session, open_reference(model) as reference:
        want = reference.run(feeds)["y"]
        x = cupy.asarray(feeds["x"])
        for _ in range(4):
            close(cupy.asnumpy(cupy.from_dlpack(session.run_dlpack({"x": x})["y"])), want)
        kept = cupy.from_dlpack(session.run_dlpack({"x": x})["y"])
        session.run_dlpack({"x": x * 2})
        close(cupy.asnumpy(kept), want)
        with pytest.raises(DataError, match="lies on a device"):
            session.run({"x": x}) if not way.get("graph") else opened(model).run({"x": x})
        bound = session.bind({"x": x * 3})
        cupy.from_dlpack(bound.inputs["x"])[...] = x
        cupy.cuda.Stream.null.synchronize()
        bound.run()
        close(cupy.asnumpy(cupy.from_dlpack(bound.outputs["y"])), want)


def decoder() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s).astype(np.float32) * 0.1 for n, s in shapes(TINY).items()}
    return onnx_io.to_proto(Graph(build(TINY, weights, kv=True)))


def step(past: int, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(past)
    found = {"input_ids": rng.integers(0, TINY.vocabulary, (batch, 1))}
    for layer in range(TINY.layers):
        for part in ("key", "value"):
            shape = (batch, TINY.kv_heads, past, TINY.head_size)
            cache = rng.standard_normal(shape).astype(np.float32)
            found[f"past_key_values.{layer}.{part}"] = cache
    return found


def test_a_decoder_replays_its_step_and_still_takes_any_other() -> None:
    model = decoder().SerializeToString()
    with opened(model, graph=True) as session, open_reference(model) as reference:
        bound = session.bind(step(8, 2))
        close(bound.outputs["logits"], reference.run(step(8, 2))["logits"])
        for past in (0, 1, 2, 8, 8, 8):
            close(session.run(step(past))["logits"], reference.run(step(past))["logits"])
        bound.run()
        close(bound.outputs["logits"], reference.run(step(8, 2))["logits"])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_threads(way: dict[str, Any]) -> None:
    model = cnn()
    with opened(model, **way) as session, open_reference(model) as reference:
        wanted = [reference.run(images(1 + seed % 2, seed))["y"] for seed in range(4)]

        def work(seed: int) -> None:
            for _ in range(20):
                close(session.run(images(1 + seed % 2, seed))["y"], wanted[seed])
                close(session.run_dlpack(images(1 + seed % 2, seed))["y"], wanted[seed])

        with ThreadPoolExecutor(4) as pool:
            for each in [pool.submit(work, seed) for seed in range(4)]:
                each.result(120)
        futures = [session.submit(images(1 + seed % 2, seed)) for seed in range(4)]
        for want, future in zip(wanted, futures, strict=True):
            close(future.result(30)["y"], want)


def test_control_flow_is_refused_with_the_reason() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x, bool c) => (float[2,2] y) {
        y = If <then_branch = t () => (float[2,2] a) { a = Neg(x) },
                else_branch = e () => (float[2,2] b) { b = Abs(x) }> (c)
    }"""
    model = parser.parse_model(text).SerializeToString()
    with pytest.raises(EngineError, match="no CUDA graph can be captured"):
        opened(model, graph=True)
    x = np.ones((2, 2), np.float32)
    with opened(model) as session:
        close(session.run({"x": x, "c": np.array(True)})["y"], -x)


def test_tf32_is_off_unless_asked_for() -> None:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((512, 512)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [512, 512])],
        [helper.make_tensor_value_info("y", 1, [512, 512])],
        [weight],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    x = rng.standard_normal((512, 512)).astype(np.float32)
    want = x.astype(np.float64) @ numpy_helper.to_array(weight).astype(np.float64)
    errors = []
    for tf32 in (False, True):
        with opened(model, tf32=tf32) as session:
            errors.append(np.abs(session.run({"x": x})["y"] - want).max() / np.abs(want).max())
    assert errors[0] < 1e-5 < errors[1] < 1e-2


def test_nodes_that_fall_to_the_cpu_are_warned_of_with_their_cost(tmp_path: Any) -> None:
    """CUDA has no kernel for Det; Shape and what follows from it is no warning."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[n,8,8] x) => (float[n] y) <float one = {1}> {
        a = Relu(x)  d = Det(a)  y = Add(d, one)
    }"""
    artifact = qgraph.compile(
        onnx_io.load(parser.parse_model(text)),
        output=tmp_path / "o",
        target="cuda",
        precision="fp32",
        data=[{"x": np.random.default_rng(i).random((1, 8, 8), np.float32)} for i in range(4)],
    )
    [line] = [each for each in artifact.manifest.warnings if "did not run in CUDA" in each]
    assert "1 Det in CPU" in line and "ms (" in line


def test_the_fastest_way_is_stored_and_opened(tmp_path: Any) -> None:
    (tmp_path / "m.onnx").write_bytes(cnn())
    artifact = qgraph.compile(
        tmp_path / "m.onnx", output=tmp_path / "o", target="cuda", data=[images(1)] * 4
    )
    engine, timings = artifact.manifest.engine, artifact.manifest.timings
    assert engine is not None and engine.backend == "onnxruntime-cuda"
    working = [each for each in timings if each.p50_ms is not None]
    assert len(working) >= 5 and all(each.through_host_p50_ms for each in working)
    assert timings[0].candidate == engine.candidate
    with artifact.open() as session:
        assert isinstance(session, GraphSession) == bool(engine.options["engine"].get("graph"))
        np.testing.assert_allclose(
            session.run(images(3))["y"], _reference(cnn(), images(3)), atol=0.05
        )


def _reference(model: bytes, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with open_reference(model) as session:
        return session.run(feeds)["y"]


def test_the_profile_names_the_provider() -> None:
    ops = executed_ops(cnn(), images(1), CUDA, EngineOptions(engine={"graph": True}))
    assert {op.provider for op in ops if "Conv" in op.op_type} == {"CUDAExecutionProvider"}


def test_device_memory_is_measured(tmp_path: Any) -> None:
    from qgraph.runtime.memory import peak_memory

    (tmp_path / "m.onnx").write_bytes(cnn())
    found = peak_memory(tmp_path / "m.onnx", CUDA, images(8))
    assert found.device_bytes is not None and found.device_bytes > 0
