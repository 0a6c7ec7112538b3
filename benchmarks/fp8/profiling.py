"""Where the time of a run goes, by operator.

    python -m benchmarks.fp8.profiling MODEL.onnx BATCH LENGTH WIDTH PROVIDER

prints microseconds by operator as JSON. It runs in a process of its own, which waits for every kernel
(`CUDA_LAUNCH_BLOCKING`), so that onnxruntime's profile gives a kernel's time to its own operator and
not to the one that waits next. Launches then add some microseconds to each.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.cuda_weights.timing import Device, bind, room

RUNS = 3


def by_operator(path: Path, device: Device, shape: tuple[int, int, int]) -> dict[str, float]:
    """Return microseconds of a run by operator and provider, longest first, from another process."""
    command = [sys.executable, "-m", "benchmarks.fp8.profiling", str(path), *map(str, shape)]
    done = subprocess.run(
        [*command, device.name],
        env=os.environ | {"CUDA_LAUNCH_BLOCKING": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-300:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _profile(path: str, shape: tuple[int, ...], device: Device) -> dict[str, float]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    for name, length in zip(("batch", "length"), shape, strict=False):
        options.add_free_dimension_override_by_name(name, length)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/run"
        cuda = [("CUDAExecutionProvider", {"use_tf32": "0"})] if device.name == "cuda" else []
        session = ort.InferenceSession(path, options, [*cuda, "CPUExecutionProvider"])
        feeds = {"x": np.random.default_rng(0).standard_normal(shape, np.float32)}
        binding = bind(session, device, feeds, {"y": room(device, shape, np.float32)})
        for _ in range(2 + RUNS):
            session.run_with_iobinding(binding)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _sums(events)


def _sums(events: list[dict]) -> dict[str, float]:
    """Sum up the last runs' kernels by operator and provider."""
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    runs = sorted(e["ts"] for e in events if e.get("name") == "model_run")
    first = runs[-RUNS] if len(runs) >= RUNS else 0
    total: defaultdict[str, float] = defaultdict(float)
    for event in nodes:
        if event["ts"] >= first:
            where = event["args"].get("provider", "").removesuffix("ExecutionProvider")
            total[f"{event['args'].get('op_name', '?')}, {where}"] += event["dur"] / RUNS
    return {op: round(us, 1) for op, us in sorted(total.items(), key=lambda pair: -pair[1])}


if __name__ == "__main__":
    model, *lengths, provider = sys.argv[1:]
    print(json.dumps(_profile(model, tuple(map(int, lengths)), Device(provider))))
