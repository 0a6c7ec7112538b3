"""TensorRT inside onnxruntime, as far as it goes without a GPU: options, folders, reasons."""

import os
import sys
import types
from typing import Any

import numpy as np
import onnxruntime
import pytest
from runtime_models import small_cnn, text

import qgraph
from qgraph import onnx_io
from qgraph.errors import EngineError, UsageError
from qgraph.runtime import backend
from qgraph.runtime.assignment import Provided
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.onnxruntime_tensorrt import TensorRtOptions, kept
from qgraph.runtime.onnxruntime_tensorrt_rtx import TensorRtRtxOptions

TRT, RTX = backend("onnxruntime-tensorrt"), backend("onnxruntime-tensorrt-rtx")
BOTH = pytest.mark.parametrize("engine", [TRT, RTX], ids=lambda each: each.name)


@BOTH
def test_the_reason_is_one_line_with_what_to_do(engine: Any) -> None:
    reason = engine.unavailable()
    if reason is None:
        pytest.skip(f"{engine.name} can be used here")
    assert reason.startswith(f"{engine.name}: ") and "\n" not in reason and ";" in reason
    with pytest.raises(EngineError) as caught:
        engine.open(small_cnn().SerializeToString())
    assert str(caught.value) == reason


@BOTH
def test_options_are_checked_before_anything_is_loaded(engine: Any) -> None:
    model = small_cnn().SerializeToString()
    with pytest.raises(UsageError, match=f"unknown option of {engine.name} 'kep'; did you mean"):
        engine.open(model, EngineOptions(engine={"kep": True}))
    with pytest.raises(EngineError, match="bf16 is not offered"):
        engine.open(model, EngineOptions(float_precision="bf16"))


@BOTH
def test_nodes_that_fall_to_other_providers_are_reported(engine: Any) -> None:
    assert isinstance(engine, Provided) and engine.provider.endswith("ExecutionProvider")


def test_options_of_the_provider(tmp_path: Any) -> None:
    name, options = TensorRtOptions(int8=True, workspace_mb=2).provider(tmp_path)
    assert name == "TensorrtExecutionProvider"
    assert options == {
        "trt_fp16_enable": "0",
        "trt_int8_enable": "1",
        "trt_builder_optimization_level": "3",
        "trt_max_workspace_size": str(2 << 20),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert not any("cache" in key for key in TensorRtOptions().provider(None)[1])
    assert TensorRtRtxOptions(graph=True).provider(tmp_path) == {
        "enable_cuda_graph": "1",
        "nv_runtime_cache_path": str(tmp_path),
    }


@pytest.mark.parametrize(
    ("kind", "prefix"), [(TensorRtOptions, "trt_profile"), (TensorRtRtxOptions, "nv_profile")]
)
def test_shapes_come_in_threes(kind: Any, prefix: str) -> None:
    made = kind(min_shapes="x:1x3", opt_shapes="x:8x3", max_shapes="x:32x3").provider(None)
    options = made if isinstance(made, dict) else made[1]
    assert options[f"{prefix}_min_shapes"] == "x:1x3"
    assert options[f"{prefix}_max_shapes"] == "x:32x3"
    with pytest.raises(EngineError, match="min_shapes, max_shapes are missing; give all three"):
        kind(opt_shapes="x:8x3").provider(None)


def test_what_may_be_computed_in_follows_the_precision() -> None:
    found = {p: TRT.variants(p) for p in ("fp32", "fp16", "int8")}
    assert dict(found["fp32"][""].engine) == {}
    assert dict(found["fp16"][""].engine) == {"fp16": True}
    assert [dict(o.engine) for o in found["int8"].values()] == [
        {"int8": True},
        {"fp16": True, "int8": True},
    ]


def test_engines_are_kept_beside_the_model_where_that_can_be_written(tmp_path: Any) -> None:
    model = tmp_path / "model.onnx"
    folder = kept(model, True)
    assert folder == tmp_path / "model.onnx.engines" and folder.is_dir()
    assert kept(model, False) is None and kept(b"model", True) is None
    (tmp_path / "file.engines").write_text("in the way")
    assert kept(tmp_path / "file", True) is None
    if os.geteuid():
        folder.chmod(0o500)
        assert kept(model, True) is None


def test_a_plugin_that_can_not_be_loaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin: Any = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    plugin.get_ep_name = lambda: "NvTensorRTRTXExecutionProvider"
    plugin.get_library_path = lambda: "/nonexistent/plugin.so"
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    reason = RTX.unavailable() or ""
    assert reason.startswith("onnxruntime-tensorrt-rtx: the plugin can't be loaded: ")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    reason = RTX.unavailable() or ""
    assert "onnxruntime-ep-nv-tensorrt-rtx can't be imported" in reason
    assert "pip install 'qgraph[cpu,tensorrt-ep]'" in reason


def test_a_device_of_a_plugin_runs_with_its_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, rng: np.random.Generator
) -> None:
    """onnxruntime's own CPU device goes the way that the plugin's would."""
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "CPUExecutionProvider"]
    monkeypatch.setattr(type(RTX), "_devices", lambda self: devices)
    (tmp_path / "m.onnx").write_bytes(small_cnn().SerializeToString())
    feeds = {"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)}
    with RTX.open(tmp_path / "m.onnx") as session:
        assert session.engine == RTX.name and session.run(feeds)["y"].shape == (2, 8)
    assert (tmp_path / "m.onnx.engines").is_dir()


def test_compile_for_tensorrt_inside_onnxruntime(tmp_path: Any) -> None:
    if not all(each.unavailable() for each in (TRT, RTX)):
        pytest.skip("a TensorRT provider can be used here")
    net = text("g (float[N,3,8,8] x) => (float[N,3,8,8] y) { a = Relu(x) y = Sigmoid(a) }")
    data = [{"x": np.ones((1, 3, 8, 8), np.float32) * i} for i in range(6)]
    artifact = qgraph.compile(
        onnx_io.load(net), output=tmp_path / "o", target="tensorrt-ep", data=data
    )
    manifest = artifact.manifest
    assert (manifest.target, manifest.precision, manifest.engine) == ("tensorrt-ep", "int8", None)
    assert "onnxruntime-tensorrt: " in manifest.not_timed
    assert "onnxruntime-tensorrt-rtx: " in manifest.not_timed
    assert sorted(manifest.files) == ["encodings.json", "explain.json", "model.onnx"]
