"""Engines compared layer by layer, with two that really run here."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from harness import model

from models.digits.data import load as load_digits
from qgraph.errors import UsageError
from qgraph.runtime import backend
from qgraph.runtime.compare_layers import compare_layers

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"


def cpu(path):
    return backend("onnxruntime-cpu").open(path)


def samples(count=2):
    return [{"image": row[None]} for row in load_digits().test_x[:count]]


def test_every_layer_is_compared_in_order():
    found = compare_layers(DIGITS, samples(), cpu)
    nodes = onnx.load(DIGITS).graph.node
    assert len(found) >= len([n for n in nodes if n.op_type in ("Conv", "Relu", "Gemm")])
    assert all(each.sqnr_db is not None and each.sqnr_db > 80 for each in found)
    made = {name: place for place, node in enumerate(nodes) for name in node.output}
    places = [made[each.name] for each in found]
    assert places == sorted(places) and found[-1].samples == 2


def test_the_layer_that_differs_is_found(tmp_path):
    text = """net (float[1,8] x) => (float[1,8] y) {
      a = Mul(x, s)
      b = Relu(a)
      y = Add(b, b)
    }"""
    right, wrong = (model(text, {"s": np.float32(value)}) for value in (2.0, 2.1))
    onnx.save(right, tmp_path / "m.onnx")

    def other(path):
        proto = onnx.load(path)
        proto.graph.initializer[0].CopyFrom(wrong.graph.initializer[0])
        return cpu(proto.SerializeToString())

    feeds = [{"x": np.linspace(-1, 1, 8, dtype=np.float32)[None]}]
    found = {each.name: each.sqnr_db for each in compare_layers(tmp_path / "m.onnx", feeds, other)}
    assert list(found) == ["a", "b", "y"]
    assert all(value == pytest.approx(26.0, abs=0.1) for value in found.values())


def test_only_what_is_named():
    name = onnx.load(DIGITS).graph.node[0].output[0]
    found = compare_layers(DIGITS, samples(1), cpu, [name])
    assert found[0].name == name and len(found) == 2
    with pytest.raises(UsageError, match="unknown intermediate value 'nonsense'"):
        compare_layers(DIGITS, samples(1), cpu, ["nonsense"])
