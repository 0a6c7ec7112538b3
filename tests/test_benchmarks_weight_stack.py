"""The benchmark of deep decoders, on a tiny one."""

import sys

import onnx
import pytest

from benchmarks import weight_stack
from models.zoo.llama import Config


def test_weights_are_drawn_into_the_file_and_quantized_from_there(tmp_path):
    config = Config(2, 128, 1, 1, 256, weight_stack.VOCABULARY, 64)
    model = tmp_path / "stack.onnx"
    weight_stack.write(model, config)
    onnx.checker.check_model(model)
    row = weight_stack.quantize("rtn", str(model), str(tmp_path / "packed.onnx"), 1, 8)
    assert row["layers"] == 14 and row["seconds"] > 0 < row["cpu"]
    assert row["rss"] >= row["anonymous"] > 0
    floats = (tmp_path / "stack.onnx.data").stat().st_size
    assert row["bytes"] < floats
    assert len({t.tobytes() for t in _matrices(model)}) == 16


def _matrices(path):
    tensors = (onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer)
    return [t for t in tensors if t.ndim == 2 and t.size > 10_000]


def test_a_row_for_every_depth_and_recipe(monkeypatch, capsys):
    sizes = ["--width", "128", "--hidden", "256", "--windows", "1", "--length", "8"]
    monkeypatch.setattr(sys, "argv", ["weight_stack", *sizes, "--blocks", "1", "--recipes", "rtn"])
    assert weight_stack.main() == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| rtn | 1 |") and row.endswith("| 1.00, 1.00, 1.00 |")


def test_a_failing_child_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["weight_stack", "--recipes", "none", "--blocks", "1"])
    with pytest.raises(RuntimeError, match="none"):
        weight_stack.main()
