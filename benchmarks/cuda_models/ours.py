"""One model as `qgraph compile --target cuda` makes and opens it: `python -m benchmarks.cuda_models.ours`.

It is compiled once; for every batch the engine is chosen as `compile --batch N` would, and the artifact opened
with what was chosen. One JSON line a batch goes to stdout, then one for the request of int8.
"""

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import qgraph
from benchmarks.cuda_models.plain import error
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
    """Measure the job that is the only argument, as JSON."""
    job = json.loads(sys.argv[1])
    device = Device(job["provider"], job["seconds"])
    folder = Path(job["folder"])
    start = time.perf_counter()
    artifact = compiled(job, folder / "ours", "fp16")
    print(json.dumps({"compiled_s": round(time.perf_counter() - start, 1)}), flush=True)
    for batch in job["batches"]:
        found: dict[str, Any] = {"batch": batch}
        try:
            measure(job, device, artifact, batch, found)
        except Exception as caught:  # noqa: BLE001 - all is told, and the rest goes on
            found["failure"] = f"{type(caught).__name__}: {str(caught).splitlines()[0]}"
        gc.collect()
        print(json.dumps(found), flush=True)
    if job["int8"]:
        print(json.dumps({"int8": asked_for_int8(job, device, artifact, folder)}), flush=True)


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


def measure(
    job: dict[str, Any], device: Device, artifact: Artifact, batch: int, found: dict[str, Any]
) -> None:
    """Add the choice, times, the error and the memory of one batch to what was found."""
    given = feeds(job["model"], batch, quick=job["quick"])
    start = time.perf_counter()
    name, options = chosen(job, artifact, batch, given, found)
    found["choosing_s"] = round(time.perf_counter() - start, 1)
    before = used_memory()
    with backend(name).open(artifact.model_path, options) as session:
        found |= timed(session, given, device, job)
        after = used_memory()
        if before is not None and after is not None:
            found["mb"] = round((after - before) / 2**20, 1)


def chosen(
    job: dict[str, Any],
    artifact: Artifact,
    batch: int,
    given: dict[str, np.ndarray],
    found: dict[str, Any],
) -> tuple[str, EngineOptions]:
    """Engine and options: the manifest's for one row, chosen anew for more."""
    if job["provider"] == "cpu":
        return "onnxruntime-cpu", EngineOptions()
    if batch == 1 and artifact.manifest.engine is not None:
        engine = artifact.manifest.engine
        found["candidate"], found["warnings"] = engine.candidate, artifact.manifest.warnings
        timings = artifact.manifest.timings
        name, options = engine.backend, engine.options
    else:
        selection = select_engine(target("cuda"), "fp16", artifact.model_path, None, given)
        found["candidate"], found["warnings"] = selection.candidate, selection.warnings
        timings, name, options = selection.timings, selection.backend, selection.options
    found["timings"] = [each.model_dump() for each in timings]
    return name, EngineOptions(**options)


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


def asked_for_int8(
    job: dict[str, Any], device: Device, plain: Artifact, folder: Path
) -> dict[str, Any]:
    """What a request of int8 gives at batch 1, and how long it takes beside fp16."""
    settings = ["weight_only.batch=1"] if job["model"] == "decoder" else []
    artifact = compiled(job, folder / "int8", "int8", *settings)
    found: dict[str, Any] = {
        "precision": artifact.manifest.precision,
        "nodes": artifact.manifest.nodes,
    }
    found["told_first"] = artifact.manifest.warnings[0]
    found["same_file"] = artifact.model_path.read_bytes() == plain.model_path.read_bytes()
    given = feeds(job["model"], 1, quick=job["quick"])
    for key, each in (("fp16_us", plain), ("int8_us", artifact)):
        opened = (
            backend("onnxruntime-cpu").open(each.model_path)
            if job["provider"] == "cpu"
            else each.open()
        )
        with opened as session:
            found[key] = timed(session, given, device, job)["us"]
    return found


if __name__ == "__main__":
    main()
