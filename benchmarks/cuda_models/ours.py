"""One model as `qgraph compile --target cuda` makes and opens it: `python -m benchmarks.cuda_models.ours`.

A process does one step of these, and prints a JSON line: `compile` it; `choose` the engine for a batch as `compile --batch N`
would; `measure` it as a user opens it; `int8`, what a request of int8 builds. They are apart because onnxruntime's
profiler, once it ran, makes every later kernel of a process slower: ResNet-50 in a CUDA graph 0.59 ms for 0.53.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import qgraph
from benchmarks.cuda_models.plain import error, warm_up
from benchmarks.cuda_models.workloads import WORKLOADS, feeds
from benchmarks.cuda_weights.timing import Device, median_us
from qgraph.artifact import Artifact
from qgraph.engine_choice import select_engine
from qgraph.errors import AccuracyError
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.runtime.onnxruntime_cuda import used_memory
from qgraph.target import target


def main() -> None:
    """Do the step of the job that is the only argument, as JSON."""
    job = json.loads(sys.argv[1])
    steps = {"compile": compile_it, "choose": choose, "measure": measure, "int8": asked_for_int8}
    found: dict[str, Any] = {} if job["batch"] is None else {"batch": job["batch"]}
    try:
        steps[job["step"]](job, found)
    except Exception as caught:  # noqa: BLE001 - all is told, and the rest goes on
        found["failure"] = f"{type(caught).__name__}: {str(caught).splitlines()[0]}"
    print(json.dumps(found), flush=True)


def compile_it(job: dict[str, Any], found: dict[str, Any]) -> None:
    """Compile; note how long that took."""
    start = time.perf_counter()
    compiled(job, Path(job["folder"]) / "ours", "fp16")
    found["compiled_s"] = round(time.perf_counter() - start, 1)


def compiled(job: dict[str, Any], folder: Path, precision: str, *settings: str) -> Artifact:
    """Compile as a user would."""
    rows = feeds(job["model"], 4, quick=job["quick"])
    samples = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(4)]
    try:
        return qgraph.compile(
            folder.parent / "fp32.onnx",
            output=folder,
            target="cuda",
            precision=precision,
            data=samples,
            settings=list(settings),
        )
    except AccuracyError:
        # A random network amplifies rounding; errors are in the table.
        return Artifact.load(folder)


def choose(job: dict[str, Any], found: dict[str, Any]) -> None:
    """Choose engine and options: the manifest's for one row, anew for more."""
    artifact = Artifact.load(Path(job["folder"]) / job["artifact"])
    if job["provider"] == "cpu":
        found |= {"engine": "onnxruntime-cpu", "options": {}}
        return
    start, engine = time.perf_counter(), artifact.manifest.engine
    if job["batch"] == 1 and engine is not None:
        found |= {"candidate": engine.candidate, "warnings": artifact.manifest.warnings}
        found |= {"engine": engine.backend, "options": engine.options}
        timings = artifact.manifest.timings
    else:
        given = feeds(job["model"], job["batch"], quick=job["quick"])
        chosen = select_engine(target("cuda"), "fp16", artifact.model_path, None, given)
        found |= {"candidate": chosen.candidate, "warnings": chosen.warnings}
        found |= {"engine": chosen.backend, "options": chosen.options}
        timings = chosen.timings
    found["timings"] = [each.model_dump() for each in timings]
    found["choosing_s"] = round(time.perf_counter() - start, 1)


def measure(job: dict[str, Any], found: dict[str, Any]) -> None:
    """Measure times on the device and through numpy, the error of both, and memory."""
    artifact = Artifact.load(Path(job["folder"]) / job["artifact"])
    device = Device(job["provider"], job["seconds"])
    warm_up(Path(job["folder"]), device)
    given = feeds(job["model"], job["batch"], quick=job["quick"])
    before, options = used_memory(), EngineOptions(**job["options"])
    with backend(job["engine"]).open(artifact.model_path, options) as session:
        found |= timed(session, given, device, job)
        after = used_memory()
        if before is not None and after is not None:
            found["mb"] = round((after - before) / 2**20, 1)


def timed(
    session: Session, given: dict[str, np.ndarray], device: Device, job: dict[str, Any]
) -> dict[str, Any]:
    """Times on the device and through numpy, and the error of both."""
    answer = WORKLOADS[job["model"]].answer
    want = np.load(Path(job["folder"]) / "answer.npy")
    bound = session.bind(given)
    found: dict[str, Any] = {"us": round(median_us(bound.run, device), 1)}
    value: Any = bound.outputs[answer]
    found["error"] = error(value if isinstance(value, np.ndarray) else value.numpy(), want)
    found["numpy_us"] = round(median_us(lambda: session.run(given), device), 1)
    found["numpy_error"] = error(session.run(given)[answer], want)
    return found


def asked_for_int8(job: dict[str, Any], found: dict[str, Any]) -> None:
    """Compile what a request of int8 gives at batch 1."""
    folder = Path(job["folder"])
    settings = ["weight_only.batch=1"] if job["model"].startswith("decoder") else []
    artifact = compiled(job, folder / "int8", "int8", *settings)
    plain = Artifact.load(folder / "ours")
    found |= {"precision": artifact.manifest.precision, "nodes": artifact.manifest.nodes}
    found["told_first"] = artifact.manifest.warnings[0]
    found["same_file"] = artifact.model_path.read_bytes() == plain.model_path.read_bytes()


if __name__ == "__main__":
    main()
