from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from runtime_models import affine, graph, qdq_conv, small_cnn

from qgraph.errors import EngineError, ModelError, UsageError
from qgraph.runtime import backend
from qgraph.runtime.reference import open_reference


def cnn_feeds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)}


def test_agrees_with_onnx_reference(rng: np.random.Generator) -> None:
    model, feeds = small_cnn(), cnn_feeds(rng)
    with open_reference(model.SerializeToString()) as session:
        assert session.engine == "reference"
        got = session.run(feeds)["y"]
    want = ReferenceEvaluator(model).run(None, feeds)[0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_quantized_conv_is_computed_as_written(rng: np.random.Generator) -> None:
    model = qdq_conv()
    feeds = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    with open_reference(model.SerializeToString(), ["c"]) as session:
        got = session.run(feeds)
    want = ReferenceEvaluator(model).run(None, feeds)[0]
    # Equal codes, up to one step where the float sums round differently.
    assert np.abs(got["y"] - want).max() <= 0.05 + 1e-6
    assert np.mean(got["y"] == want) > 0.99
    assert got["c"].shape == (1, 4, 6, 6)


@pytest.mark.parametrize("by_path", [True, False])
def test_intermediate_tensors(by_path: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    model, feeds, path = small_cnn(), cnn_feeds(rng), tmp_path / "m.onnx"
    onnx.save(model, path)
    source = path if by_path else model.SerializeToString()
    with open_reference(source, ["c", "b", "c", "y"]) as session:
        got = session.run(feeds)
    assert list(got) == ["y", "c", "b"]
    scale, shift, mean, var = (
        onnx.numpy_helper.to_array(item)[:, None, None] for item in model.graph.initializer[1:]
    )
    normal = (got["c"] - mean) / np.sqrt(var + 1e-5) * scale + shift
    np.testing.assert_allclose(got["b"], normal, rtol=1e-4, atol=1e-5)
    assert [info.name for info in onnx.load(path).graph.output] == ["y"]


def test_intermediate_tensors_of_a_model_with_external_data(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    onnx.save(
        small_cnn(), folder / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    feeds = cnn_feeds(rng)
    monkeypatch.chdir(tmp_path)
    with (
        open_reference(Path("here/m.onnx"), ["c"]) as session,
        open_reference(small_cnn().SerializeToString(), ["c"]) as inline,
    ):
        np.testing.assert_array_equal(session.run(feeds)["c"], inline.run(feeds)["c"])
    assert {item.name for item in folder.iterdir()} == {"m.onnx", "w"}


def test_unknown_tensor_and_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown tensor 'pp'; did you mean 'p'"):
        open_reference(affine().SerializeToString(), ["pp"])
    with pytest.raises(ModelError, match="no such file"):
        open_reference(tmp_path / "none.onnx", ["p"])
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ModelError, match="not an ONNX model"):
        open_reference(tmp_path / "bad.onnx", ["p"])
    with pytest.raises(EngineError, match="refuses"):
        open_reference(tmp_path / "bad.onnx")


def test_int4_weights_stay_exact_where_the_optimized_engine_rounds_activations(
    rng: np.random.Generator,
) -> None:
    # Optimized and prepacked, it becomes MatMulNBits with int8 activations.
    k, n = 64, 32
    codes = rng.integers(-8, 8, (k, n)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, (k // 32, n)).astype(np.float32)
    packed = onnx.helper.make_tensor("wq", onnx.TensorProto.INT4, [k, n], codes.reshape(-1))
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["wq", "s"], ["wd"], axis=0, block_size=32),
        onnx.helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    model = graph(nodes[1:], {"x": (1, ["N", k]), "wd": (1, [k, n])}, {"y": (1, ["N", n])}, {})
    del model.graph.input[1]
    model.graph.node.insert(0, nodes[0])
    model.graph.initializer.extend([packed, onnx.numpy_helper.from_array(scale, "s")])
    onnx.checker.check_model(model)
    x = rng.standard_normal((4, k)).astype(np.float32)
    want = x.astype(np.float64) @ (codes * np.repeat(scale, 32, 0).astype(np.float64))
    with open_reference(model.SerializeToString()) as session:
        got = session.run({"x": x})["y"]
    assert np.abs(got - want).max() < 1e-6 * np.abs(want).max()


def test_batchnorm_is_not_folded() -> None:
    # As written (1e25 * 1e-25) * 1e-25; folded, the weight 1e-25 * 1e-25 underflows to zero.
    tiny, ones, zeros = (np.full(1, value, np.float32) for value in (1e-25, 1, 0))
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
        onnx.helper.make_node("BatchNormalization", ["c", "tiny", "zeros", "zeros", "ones"], ["y"]),
    ]
    weights = {"w": tiny.reshape(1, 1, 1, 1), "tiny": tiny, "ones": ones, "zeros": zeros}
    model = graph(nodes, {"x": (1, [1, 1, 1, 1])}, {"y": (1, [1, 1, 1, 1])}, weights)
    feeds = {"x": np.full((1, 1, 1, 1), 1e25, np.float32)}
    with open_reference(model.SerializeToString()) as session:
        got = session.run(feeds)["y"]
    np.testing.assert_allclose(got, ReferenceEvaluator(model).run(None, feeds)[0], rtol=1e-4)
    assert got.item() == pytest.approx(1e-25, rel=1e-4)
    with backend("onnxruntime-cpu").open(model.SerializeToString()) as session:
        assert session.run(feeds)["y"].item() == 0.0
