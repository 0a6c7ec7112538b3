"""One model, type and layout in plain onnxruntime, all batches: `python -m benchmarks.cuda_models.plain`.

A process of its own, so that memory starts clean. Session options are onnxruntime's defaults but for
TF32, which is off, the layout and CUDA graphs; a session's dynamic axes are fixed, inputs and outputs stay in
the device's memory. One JSON line a batch goes to stdout.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.cuda_models.workloads import WORKLOADS, feeds, sizes
from benchmarks.cuda_weights.timing import Device, bind, median_us, runner
from qgraph.runtime.onnxruntime_cuda import used_memory


def main() -> None:
    """Measure the job that is the only argument, as JSON."""
    job = json.loads(sys.argv[1])
    device = Device(job["provider"], job["seconds"])
    warm_up(Path(job["folder"]), device)
    base = used_memory()
    for batch in job["batches"]:
        found: dict[str, Any] = {"batch": batch}
        try:
            measure(job, device, batch, base, found)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base
            found["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        gc.collect()
        print(json.dumps(found), flush=True)


def warm_up(folder: Path, device: Device) -> None:
    """Bring up what every session needs of the device, before memory is looked at."""
    session = _open(folder / "warm.onnx", device, {}, nhwc=False)
    _runner(session, device, {"x": np.ones((8, 8), np.float32)})()


def measure(
    job: dict[str, Any], device: Device, batch: int, base: int | None, found: dict[str, Any]
) -> None:
    """Add times, the error and the memory of one batch to what was found."""
    name, quick = job["model"], job["quick"]
    given = feeds(name, batch, quick=quick)
    path = Path(job["folder"]) / f"{job['dtype']}.onnx"
    lengths, graphs = sizes(name, batch, quick=quick), device.graphs
    try:
        session = _open(path, device, lengths, nhwc=job["nhwc"], graphs=graphs)
    except Exception as refused:  # noqa: BLE001 - onnxruntime's errors have no common base
        found["no_graph"], graphs = str(refused).splitlines()[0], False
        session = _open(path, device, lengths, nhwc=job["nhwc"], graphs=False)
    for graph in (None, 1) if graphs else (None,):
        run, answer = _bound(session, device, given, WORKLOADS[name].answer, graph)
        key = "graph" if graph else "kernels"
        found[f"{key}_us"] = round(median_us(run, device), 1)
        found[f"{key}_error"] = error(answer(), np.load(Path(job["folder"]) / "answer.npy"))
        now = used_memory()
        if base is not None and now is not None:
            found[f"{key}_mb"] = round((now - base) / 2**20, 1)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the difference, relative to what was wanted, of the rows that both have."""
    rows = min(len(got), len(want))
    got, want = got[:rows].astype(np.float64), want[:rows].astype(np.float64)
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


def _open(
    path: Path, device: Device, lengths: dict[str, int], *, nhwc: bool, graphs: bool = False
) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for name, length in lengths.items():
        options.add_free_dimension_override_by_name(name, length)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.name == "cuda":
        ort.preload_dlls()
        settings = {"use_tf32": "0", "prefer_nhwc": str(int(nhwc))}
        settings["enable_cuda_graph"] = str(int(graphs))
        providers = [("CUDAExecutionProvider", settings), *providers]
    session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    if device.name == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("the CUDA provider did not start")
    return session


def _runner(session: Any, device: Device, given: dict[str, np.ndarray]) -> Any:
    binding = bind(session, device, given, {})
    for each in session.get_outputs():
        binding.bind_output(each.name, device.name)
    return runner(session, binding, graph=None)


def _bound(
    session: Any, device: Device, given: dict[str, np.ndarray], name: str, graph: Any
) -> Any:
    """A run on buffers of the device, and the answer that it leaves."""
    binding = bind(session, device, given, {})
    names = [each.name for each in session.get_outputs()]
    for each in names:
        binding.bind_output(each, device.name)
    runner(session, binding, graph=None)()
    values = dict(zip(names, binding.get_outputs(), strict=True))
    for each, value in values.items():
        binding.bind_ortvalue_output(each, value)
    return runner(session, binding, graph=graph), values[name].numpy


if __name__ == "__main__":
    main()
