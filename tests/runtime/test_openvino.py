import json
import sys
import types
from typing import Any

import numpy as np
import onnxruntime
import pytest
from runtime_models import small_cnn

from qgraph.errors import EngineError
from qgraph.runtime import backend, openvino
from qgraph.runtime import plugin as plugins
from qgraph.runtime.backend import EngineOptions, available_cores
from qgraph.runtime.executed import executed_ops
from qgraph.runtime.reference import open_reference

OPENVINO = backend("openvino")


def needs_openvino() -> None:
    if reason := OPENVINO.unavailable():
        pytest.skip(f"the OpenVINO engine can't run here: {reason}")


def test_precision_and_threads_are_always_written() -> None:
    config = openvino.provider_options(EngineOptions())
    assert json.loads(config["load_config"]) == {
        "CPU": {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(available_cores()),
        }
    }
    config = openvino.provider_options(EngineOptions(threads=3, float_precision="bf16"))
    assert json.loads(config["load_config"]) == {
        "CPU": {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": "3"}
    }


def test_a_cpu_that_the_plugin_does_not_serve_is_named() -> None:
    reason = OPENVINO.unavailable()
    vendor = openvino._cpuinfo("vendor_id")
    if vendor == "GenuineIntel":
        assert reason is None
        return
    assert reason is not None
    if "can't be imported" not in reason:
        assert "lists no CPU device" in reason and vendor in reason
    with pytest.raises(EngineError) as caught:
        OPENVINO.open(small_cnn().SerializeToString())
    assert str(caught.value) == reason


def test_asking_twice_registers_once() -> None:
    assert OPENVINO.unavailable() == OPENVINO.unavailable()
    names = [device.ep_name for device in onnxruntime.get_ep_devices()]
    assert names.count("CPUExecutionProvider") == 1


def test_missing_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    reason = OPENVINO.unavailable() or ""
    assert "onnxruntime-ep-openvino can't be imported" in reason
    assert "pip install 'qgraph[cpu]'" in reason


def test_plugin_that_fails_to_load_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin: Any = types.ModuleType("onnxruntime_ep_openvino")
    plugin.get_ep_name = lambda: "OpenVINOExecutionProvider"
    plugin.get_library_path = lambda: "/nonexistent/plugin.so"
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", plugin)
    monkeypatch.setattr(plugins, "register", plugins.register.__wrapped__)
    if plugins.devices(onnxruntime, plugin):
        pytest.skip("the real plugin is registered already and serves this CPU")
    reason = OPENVINO.unavailable() or ""
    assert "the plugin can't be loaded" in reason and "\n" not in reason


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_precision_that_the_cpu_lacks_is_refused(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    with pytest.raises(EngineError, match=f"does not compute in {precision}.*'f32'"):
        openvino._check_precision(precision)
    openvino._check_precision("f32")
    monkeypatch.setattr(openvino, "_cpu_flags", lambda: frozenset({"amx_bf16", "amx_fp16"}))
    openvino._check_precision(precision)


def test_float32_is_true_float32(rng: np.random.Generator) -> None:
    needs_openvino()
    model = small_cnn().SerializeToString()
    feeds = {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}
    with OPENVINO.open(model) as session, open_reference(model) as reference:
        got, want = session.run(feeds)["y"], reference.run(feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_nodes_run_on_the_plugin(rng: np.random.Generator) -> None:
    needs_openvino()
    feeds = {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}
    ops = executed_ops(small_cnn().SerializeToString(), feeds, OPENVINO)
    assert any(op.op_type == "Conv" and op.provider.startswith("OpenVINO") for op in ops)


def test_a_device_chosen_through_the_plugin_interface_runs(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The device of onnxruntime's own CPU provider goes the same way where OpenVINO has none.
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "CPUExecutionProvider"]
    monkeypatch.setattr(openvino, "_cpu_devices", lambda: devices)
    model = small_cnn().SerializeToString()
    feeds = {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}
    options = EngineOptions(threads=2, profile=True)
    with OPENVINO.open(model, options) as session, open_reference(model) as reference:
        got, want = session.run(feeds)["y"], reference.run(feeds)["y"]
        assert session.engine == "openvino" and session.executed()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
