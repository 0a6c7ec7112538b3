"""Backend 'openvino': Intel's OpenVINO as a plugin execution provider of ONNX Runtime.

Settings, and why: `INFERENCE_PRECISION_HINT` is always written, since without it the plugin runs
float32 models in bfloat16 on machines with AMX; ONNX Runtime gets one thread, since its idle pool
would spin against OpenVINO's threads.
"""

import json
import platform
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qgraph.errors import EngineError, QGraphError
from qgraph.runtime.backend import EngineOptions, FloatPrecision, available_cores
from qgraph.runtime.options import no_options
from qgraph.runtime.ort_session import OrtSession, session_options
from qgraph.runtime.plugin import plugin_devices

# Instruction sets with which the CPU computes in the precision; without one, OpenVINO would
# silently compute in float32.
_CPU_FLAGS: dict[FloatPrecision, frozenset[str]] = {
    "bf16": frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert"}),
    "f16": frozenset({"avx512_fp16", "amx_fp16", "avx_ne_convert"}),
}


class OpenVino:
    """OpenVINO on an Intel CPU, with ONNX Runtime's CPU provider for nodes it refuses."""

    name = "openvino"

    def unavailable(self) -> str | None:
        """None when the plugin offers a CPU device, else the reason and what to do."""
        try:
            _cpu_devices()
        except QGraphError as error:
            return str(error)
        return None

    def variants(
        self, precision: str, operators: Collection[str] = (), asked: BaseModel | None = None
    ) -> Mapping[str, EngineOptions]:
        """True float32 in the float parts, which it does not do by itself with AMX, or bf16."""
        return {"": EngineOptions(float_precision="bf16" if precision == "bf16" else "f32")}

    def open(self, model: Path | bytes, options: EngineOptions | None = None) -> OrtSession:
        """Open a model; see `qgraph.runtime.backend.Backend.open`.

        Raises:
            EngineError: The plugin is missing, offers no CPU device or refuses the model, or the
                CPU can't compute in the float precision asked for.
            ModelError: The file does not exist.
        """
        chosen = options or EngineOptions()
        no_options(chosen, self.name)
        devices = _cpu_devices()
        _check_precision(chosen.float_precision)
        ort_options = session_options(threads=1)
        ort_options.add_provider_for_devices(devices, provider_options(chosen))
        return OrtSession(model, ort_options, engine=self.name, profile=chosen.profile)


def provider_options(options: EngineOptions) -> dict[str, str]:
    """The plugin's options: `load_config` holds OpenVINO properties as JSON."""
    properties = {
        "INFERENCE_PRECISION_HINT": options.float_precision,
        # Always said: OpenVINO does not see a container's CPU quota.
        "INFERENCE_NUM_THREADS": str(options.threads or available_cores()),
    }
    return {"load_config": json.dumps({"CPU": properties})}


def _cpu_devices() -> list[Any]:
    """OpenVINO's CPU devices, with the plugin registered once a process.

    Raises:
        EngineError: The plugin is missing, can't be loaded, or lists no CPU device.
    """
    devices = plugin_devices(
        "onnxruntime_ep_openvino",
        "openvino",
        "run `pip install 'qgraph[cpu]'` (the plugin exists for Linux on x86-64)",
    )
    cpu = [device for device in devices if device.device.type.name == "CPU"]
    if not cpu:
        raise EngineError(
            f"the plugin lists no CPU device: it serves Intel CPUs, this one is {_cpu_vendor()}",
            where="openvino",
            fix="use the backend 'onnxruntime-cpu'",
        )
    return cpu


def _check_precision(precision: FloatPrecision) -> None:
    needed = _CPU_FLAGS.get(precision)
    if needed and not needed & _cpu_flags():
        raise EngineError(
            f"this CPU does not compute in {precision} (it has none of: "
            f"{', '.join(sorted(needed))})",
            where="openvino",
            fix="use float_precision 'f32'",
        )


@cache
def _cpu_flags() -> frozenset[str]:
    return frozenset(_cpuinfo("flags").split())


def _cpu_vendor() -> str:
    return _cpuinfo("vendor_id") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, "")
