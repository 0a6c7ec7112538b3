"""Artifacts made by hand: any model with a manifest, without a compile."""

from pathlib import Path

import numpy as np
import onnx
from harness import model
from onnx import TensorProto, helper

from qgraph.artifact import MANIFEST, MODEL
from qgraph.file_hashes import file_records
from qgraph.manifest import Accuracy, Engine, Manifest, Source


def linear(shape: str = "N,4", out: str = "N,3") -> onnx.ModelProto:
    """Return a matrix product of x [shape] that gives y [out]."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    return model(f"m (float[{shape}] x) => (float[{out}] y) {{ y = MatMul(x, w) }}", {"w": weight})


def identity(
    shape: list, kind: int = TensorProto.FLOAT, out: list | None = None
) -> onnx.ModelProto:
    """Return y [out, or shape] = x [shape] of any type."""
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", kind, shape if out is None else out)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def write_artifact(
    folder: Path,
    proto: onnx.ModelProto,
    *,
    engine: str = "onnxruntime-cpu",
    options: dict | None = None,
    external: bool = False,
    passed: bool = True,
    extra: dict[str, bytes] | None = None,
    **changed: object,
) -> Path:
    """Write a model and what a compile would have said about it."""
    folder.mkdir(parents=True)
    more = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(proto, folder / MODEL, **(more if external else {}))
    for name, content in (extra or {}).items():
        (folder / name).write_bytes(content)
    fields = {
        "qgraph_version": "0",
        "created": "2026-01-01T00:00:00+00:00",
        "packages": {"onnxruntime": "1.31.1"},
        "source": Source(name="m.onnx", sha256="0" * 64, bytes=1),
        "target": "cpu",
        "requested_precision": "fp32",
        "precision": "fp32",
        "recipe": {},
        "engine": Engine(backend=engine, options=options or {}),
        "accuracy": Accuracy(
            samples=1,
            data="held out",
            outputs=[],
            passed=passed,
            failures=[] if passed else ["output 'y': SQNR 3.0 dB is below 15 dB"],
        ),
        "original_bytes": 1,
        "artifact_bytes": 1,
        "files": file_records(folder),
    }
    manifest = Manifest(**(fields | changed))
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
