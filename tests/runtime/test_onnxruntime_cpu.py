import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from runtime_models import affine, small_cnn

from qgraph.errors import EngineError, ModelError, QGraphError, UsageError
from qgraph.runtime import backend, backends
from qgraph.runtime.backend import Backend, EngineOptions, Session, available_cores

CPU = backend("onnxruntime-cpu")


def opened(model: onnx.ModelProto, **options: Any) -> Session:
    return CPU.open(model.SerializeToString(), EngineOptions(**options))


def test_registered_backends_keep_the_contract() -> None:
    assert set(backends()) >= {"onnxruntime-cpu", "onnxruntime-cuda", "openvino"}
    assert all(isinstance(item, Backend) for item in backends().values())
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        backend("openvin")


def test_bad_models_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="refuses the model: INVALID_PROTOBUF"):
        CPU.open(b"not a model")
    with pytest.raises(ModelError, match="none.onnx: no such file"):
        CPU.open(tmp_path / "none.onnx")
    unknown = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21, "made.up": 1]>'
        "g (float[N] a) => (float[N] b) { b = made.up.Frob(a) }"
    )
    with pytest.raises(EngineError, match="Frob") as caught:
        opened(unknown)
    assert "\n" not in str(caught.value)


def test_model_by_path_with_external_data(tmp_path: Path, rng: np.random.Generator) -> None:
    model, path = small_cnn(), tmp_path / "cnn.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    x = {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}
    with CPU.open(path) as by_path, opened(small_cnn()) as by_bytes:
        np.testing.assert_array_equal(by_path.run(x)["y"], by_bytes.run(x)["y"])


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_products_of_large_codes_are_exact_on_every_cpu(kind: str) -> None:
    # Without VNNI, sums of two products of uint8 and int8 overflow 16 bits unless told otherwise.
    codes = np.full((64, 8), 127, np.int8)
    codes = codes if kind == "MatMul" else codes.T.reshape(8, 64, 1, 1)
    shape = "1, 64" if kind == "MatMul" else "1, 64, 1, 1"
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 17]> g (float[{shape}] x) => (y)
        <float s = {{1.0}}, uint8 z = {{0}}, float big = {{10000.0}}> {{
            q = QuantizeLinear(x, s, z)
            a = DequantizeLinear(q, s, z)
            b = DequantizeLinear(codes, s)
            c = {kind}(a, b)
            d = QuantizeLinear(c, big, z)
            y = DequantizeLinear(d, big, z)
        }}"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(codes, "codes"))
    x = np.full([int(n) for n in shape.split(",")], 255, np.float32)
    with opened(model) as session:
        got = session.run({"x": x})["y"]
    assert np.unique(got).tolist() == [round(64 * 255 * 127 / 10000) * 10000]


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="threads is -1"):
        EngineOptions(threads=-1)
    with pytest.raises(UsageError, match="choose one of: f32, bf16, f16"):
        EngineOptions(float_precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="float_precision bf16 is not offered"):
        opened(affine(), float_precision="bf16")


def test_available_cores_obeys_the_affinity_mask() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity masks")
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, mask)
    assert 1 <= available_cores() <= len(mask)


def test_missing_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("onnxruntime-cpu", "openvino"):
        reason = backend(name).unavailable()
        assert reason is not None and "pip install 'qgraph[cpu]'" in reason
        assert "onnxruntime-gpu" in reason
        with pytest.raises(QGraphError, match="can't be imported"):
            backend(name).open(b"")


def test_left_over_onnxruntime_folder_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    assert "without its main files" in (CPU.unavailable() or "")


def test_importing_the_runtime_imports_no_engine() -> None:
    code = (
        "import sys, qgraph.runtime as r, qgraph.runtime.choose, qgraph.runtime.reference;"
        "r.backends(); print([m for m in sys.modules if m.startswith('onnxruntime')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
