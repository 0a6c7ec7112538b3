"""int8 and bf16 against fp32 on this CPU, every engine, one run.

    python -m benchmarks.cpu_int8 [MODEL.onnx DATA.npz ...]

Without arguments: a ResNet-50 with random weights from models/zoo and the networks of
models/digits. Compiles each to fp32, bf16 and int8 and times, in turn in one run, the original in
onnxruntime's CPU provider and the artifacts, each in the engine that its compile chose; `at p10`
compares the tenth percentiles, which other work on a shared machine disturbs least. Targets: int8
never slower than the fp32 artifact; at least 1.5 times as fast as the original on MobileNetV2, and
5 times on ResNet-50 with AMX.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import qgraph
from qgraph.artifact import Artifact
from qgraph.runtime import backend
from qgraph.runtime.bench import bench

ROOT = Path(__file__).resolve().parent.parent


def workloads(folder: Path) -> list[tuple[str, Any]]:
    """(model path, data) pairs: the command line's, or the default ones."""
    given = sys.argv[1:]
    if given:
        return list(zip(given[::2], given[1::2], strict=True))
    from models.digits.data import load
    from models.zoo.resnet50 import build

    resnet = folder / "resnet50.onnx"
    model = build()
    resnet.write_bytes(model.SerializeToString())
    name = model.graph.input[0].name
    images = np.random.default_rng(0).standard_normal((8, 3, 224, 224)).astype(np.float32)
    digits = {"image": load().train_x[:128]}
    found: list[tuple[str, Any]] = [(str(resnet), {name: images})]
    found += [(str(p), digits) for p in sorted((ROOT / "models" / "digits").glob("*.onnx"))]
    return found


def main() -> int:
    """Compile, time, print one table."""
    columns = ("p10 ms", "p50 ms", "p90 ms", "times as fast", "at p10", "SQNR dB")
    table = Table("model", "artifact", "engine", *columns)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for model, data in workloads(folder):
            stem = Path(model).stem
            artifacts = {
                precision: _compile(model, folder / f"{stem}.{precision}", precision, data)
                for precision in ("fp32", "bf16", "int8")
            }
            feeds = _one_sample(data, artifacts["fp32"])
            sessions = {"original": backend("onnxruntime-cpu").open(Path(model))}
            sessions |= {name: artifact.open() for name, artifact in artifacts.items()}
            rows = bench(sessions, feeds, seconds=4.0)
            for row in rows:
                sqnr = "" if row.name == "original" else _sqnr(artifacts[row.name])
                table.add_row(
                    stem,
                    row.name,
                    row.engine,
                    f"{row.p10_ms:.2f}",
                    f"{row.p50_ms:.2f}",
                    f"{row.p90_ms:.2f}",
                    f"{1 / row.relative_time:.2f}",
                    f"{rows[0].p10_ms / row.p10_ms:.2f}",
                    sqnr,
                )
            for session in sessions.values():
                session.close()
    Console(width=120).print(table)
    return 0


def _compile(model: str, output: Path, precision: str, data: Any) -> Artifact:
    try:
        return qgraph.compile(model, output=output, precision=precision, data=data)
    except qgraph.QGraphError as error:
        # Random weights may miss the recipe's floor; the artifact is kept and can be timed.
        print(f"note: {error}", file=sys.stderr)
        return Artifact.load(output)


def _one_sample(data: Any, artifact: Artifact) -> dict[str, Any]:
    if isinstance(data, str):
        with np.load(data) as arrays, artifact.open() as session:
            return {info.name: arrays[info.name][:1] for info in session.inputs}
    return {name: array[:1] for name, array in data.items()}


def _sqnr(artifact: Artifact) -> str:
    accuracy = artifact.manifest.accuracy
    found = [o["sqnr_db"] for o in accuracy.outputs if o["sqnr_db"] is not None] if accuracy else []
    return ", ".join(v if isinstance(v, str) else f"{v:.1f}" for v in found)


if __name__ == "__main__":
    sys.exit(main())
