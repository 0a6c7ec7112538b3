from pathlib import Path

import numpy as np
import onnx
import pytest
from runtime_models import affine, bf16, graph

from qgraph.errors import EngineError
from qgraph.runtime import backend
from qgraph.runtime.memory import peak_memory

CPU = backend("onnxruntime-cpu")
MIB = 1 << 20


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_and_activations_show_and_the_parents_memory_does_not(tmp_path: Path) -> None:
    ballast = np.ones(400 * MIB, np.uint8)
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.ones((4096, 4096), np.float32)}
    big = graph(nodes, {"x": (1, ["N", 4096])}, {"y": (1, ["N", 4096])}, weights)
    x = {"x": np.ones((1, 4096), np.float32)}
    found = peak_memory(save(big, tmp_path / "big.onnx"), CPU, x)
    assert 64 * MIB <= found.model_bytes < 400 * MIB
    assert found.peak_bytes > found.baseline_bytes > 20 * MIB
    feeds = {"x": np.ones((1, 3), np.float32), "w": np.ones(3, np.float32)}
    small = peak_memory(save(affine(), tmp_path / "small.onnx"), CPU, feeds)
    assert small.model_bytes < 32 * MIB
    assert small.peak_bytes < ballast.nbytes


def test_feeds_of_every_kind_reach_the_child(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Identity", ["s"], ["t"]),
        onnx.helper.make_node("Cast", ["b/1"], ["c"], to=1),
    ]
    model = graph(
        nodes,
        {"s": (8, ["N"]), "b/1": (16, ["N", 2])},
        {"t": (8, ["N"]), "c": (1, ["N", 2])},
        {},
    )
    feeds = {"s": np.array(["a", "long word ü"], object), "b/1": bf16([[1, 2]])}
    assert peak_memory(save(model, tmp_path / "m.onnx"), CPU, feeds).peak_bytes > 10 * MIB


def test_failures_come_back_in_one_line(tmp_path: Path) -> None:
    path = save(affine(), tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="input 'w': missing from the feeds"):
        peak_memory(path, CPU, {"x": np.ones((1, 3), np.float32)})
    with pytest.raises(EngineError, match="no such file"):
        peak_memory(tmp_path / "none.onnx", CPU, {})
    if reason := backend("openvino").unavailable():
        with pytest.raises(EngineError) as caught:
            peak_memory(path, backend("openvino"), {})
        assert reason in str(caught.value)


def test_takes_no_longer_than_allowed(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no result after 0\.01 s"):
        peak_memory(save(affine(), tmp_path / "m.onnx"), CPU, {}, timeout_s=0.01)
