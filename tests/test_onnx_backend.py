"""Every model of onnx's backend tests loads, saves and loads again unchanged."""

from pathlib import Path

import onnx
from backendmodels import models, normalised

from qgraph import onnx_io


def test_every_backend_model_round_trips(tmp_path: Path) -> None:
    count = 0
    for name, proto, _ in models():
        out = onnx_io.to_proto(onnx_io.load(proto))
        assert normalised(out) == normalised(proto), name
        again = onnx_io.to_proto(onnx_io.load(out))
        assert again.SerializeToString(deterministic=True) == out.SerializeToString(
            deterministic=True
        ), name
        count += 1
    assert count > 1500


def test_backend_models_with_tensors_survive_external_data(tmp_path: Path) -> None:
    count = 0
    for name, proto, _ in models():
        if not any(len(tensor.raw_data) > 1024 for tensor in proto.graph.initializer):
            continue
        onnx_io.save(onnx_io.load(proto), tmp_path / "m.onnx", external=True)
        assert (tmp_path / "m.onnx.data").stat().st_size > 1024
        again = onnx_io.to_proto(onnx_io.load(tmp_path / "m.onnx"))
        assert normalised(again) == normalised(proto), name
        count += 1
    assert count > 3
    assert onnx.load(tmp_path / "m.onnx").graph.initializer
