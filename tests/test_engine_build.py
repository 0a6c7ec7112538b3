"""What the builder refuses stays in float, and is said so: with a library that really refuses."""

import importlib.util
import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
from harness import model, ops

import qgraph
from qgraph import engine_build, onnx_io
from qgraph.errors import EngineError
from qgraph.job import resolve
from qgraph.runtime.builder import BuildRequest, NotBuiltError
from qgraph.runtime.tensorrt.backend import TensorRt
from qgraph.runtime.tensorrt.library import MODULES
from qgraph.runtime.tensorrt.plan import PLAN, RECORD, plan_of

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None
    or importlib.util.find_spec("tensorrt") is not None,
    reason="TensorRT-RTX (tensorrt-rtx-cu13 on PyPI) is not the library that is used",
)
# One product in fp8, which cards of compute capability 8.0 do not have, behind one in int8.
MIXED = """net (float[N,32] x) => (float[N,32] y) {
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  w = DequantizeLinear<axis = 1>(c, ws)
  [in_int8] a = MatMul(d, w)
  q2 = QuantizeLinear(a, s2, z8)
  d2 = DequantizeLinear(q2, s2, z8)
  w2 = DequantizeLinear(c8, s8)
  [in_fp8] y = MatMul(d2, w2)
}"""


def mixed():
    rng = np.random.default_rng(0)
    return model(
        MIXED,
        {
            "s": np.float32(0.03),
            "z": np.int8(0),
            "ws": np.full(32, 0.01, np.float32),
            "c": rng.integers(-127, 128, (32, 32)).astype(np.int8),
            "s2": np.float32(0.1),
            "z8": np.zeros((), ml_dtypes.float8_e4m3fn),
            "c8": rng.standard_normal((32, 32)).astype(ml_dtypes.float8_e4m3fn),
            "s8": np.float32(0.02),
        },
    )


def compiled(tmp_path, *settings):
    onnx.save(mixed(), tmp_path / "mixed.onnx")
    return qgraph.compile(
        tmp_path / "mixed.onnx",
        target="tensorrt",
        output=tmp_path / "out",
        settings=["tensorrt.shapes=['x:1x32,4x32,8x32']", *settings],
    )


@needs_rtx
def test_where_all_units_run_none_is_dropped(tmp_path):
    artifact = compiled(tmp_path, "tensorrt.sm=['8.9']")
    assert not any("stay in float" in line for line in artifact.manifest.warnings)
    assert ops(onnx.load(artifact.model_path)).count("QuantizeLinear") == 2
    plan = artifact.manifest.plan
    assert plan is not None and plan["capabilities"] == ["8.9"]
    assert plan["profiles"] == [{"x": [[1, 32], [4, 32], [8, 32]]}]
    assert {PLAN, RECORD} <= set(artifact.manifest.files)
    found = plan_of(artifact.model_path)
    assert found is not None and found.model_dump(mode="json") == plan
    assert (artifact.path / PLAN).stat().st_size == plan["bytes"]


@needs_rtx
def test_the_unit_that_the_builder_refuses_stays_in_float(tmp_path):
    artifact = compiled(tmp_path, "tensorrt.sm=['8.0']")
    (line,) = [each for each in artifact.manifest.warnings if "stay in float" in each]
    assert line.startswith("in_fp8 ") and "fp8_e4m3" in line
    graph = onnx_io.load(artifact.model_path)
    fp8 = {node.op_type for node in graph.nodes() if node.name == "in_fp8"}
    assert fp8 == {"MatMul"} and ops(onnx.load(artifact.model_path)).count("QuantizeLinear") == 1
    explained = json.loads((artifact.path / "explain.json").read_text())
    assert explained["nodes"]["in_fp8"][0] == "float"
    assert "refuses it" in explained["nodes"]["in_fp8"][1]
    assert plan_of(artifact.model_path) is not None
    assert not [file for file in artifact.path.iterdir() if file.name.startswith(".")]


class RefusesUnits:
    """TensorRT-RTX's own builder, which refuses some nodes besides, where they read codes.

    Its refusals are the library's: nothing on PyPI refuses int8 of any form that was tried.
    """

    def __init__(self, *names: str) -> None:
        self.names, self.engine = names, TensorRt()

    def build(self, path, request=None):
        graph = onnx_io.load(path)
        for node in graph.nodes():
            reads = any(v is not None and v.producer() is not None for v in node.inputs)
            if (
                node.name in self.names
                and reads
                and any(
                    graph.is_standard(v.producer(), "DequantizeLinear")
                    for v in node.inputs
                    if v is not None and v.producer() is not None
                )
            ):
                error = NotBuiltError(f"refuses {node.name}", where="tensorrt")
                error.reasons = (f"Could not find any implementation for node {node.name}.",)
                raise error
        return self.engine.build(path, request or BuildRequest())

    def write(self, built, path):
        return self.engine.write(built, path)

    def cannot_build(self):
        return self.engine.cannot_build()


@needs_rtx
def test_a_model_that_is_refused_in_float_too_is_an_error(tmp_path):
    with pytest.raises(EngineError, match="refuses the model"):
        compiled(tmp_path, "tensorrt.sm=['7.5']")  # which has no float32 products


@needs_rtx
def test_units_are_found_by_name_and_counts_follow(tmp_path, monkeypatch):
    refusing = RefusesUnits("in_int8")
    monkeypatch.setattr(engine_build, "backend", lambda name: refusing)
    job = resolve("tensorrt", "int8", None, (), ["tensorrt.sm=['8.9']"], None)
    path = tmp_path / "model.onnx"
    onnx.save(mixed(), path)
    built = engine_build.build_engine(job, path, {"x": (2, 32)})
    assert built is not None
    assert built.dropped == {"in_int8": "Could not find any implementation for node in_int8."}
    (tmp_path / "explain.json").write_text(json.dumps({"nodes": {"in_int8": ["int8", "why"]}}))
    assert engine_build.note_dropped(built, tmp_path, {"int8": 2}) == {"int8": 1, "float": 1}


@needs_rtx
def test_a_model_of_which_every_unit_is_refused_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_build, "backend", lambda name: RefusesUnits("in_int8", "in_fp8"))
    job = resolve("tensorrt", "int8", None, (), ["tensorrt.sm=['8.9']"], None)
    onnx.save(mixed(), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="refuses all 2 quantized units: Could not find"):
        engine_build.build_engine(job, tmp_path / "model.onnx", {"x": (2, 32)})


def test_targets_without_a_builder_build_nothing(tmp_path):
    job = resolve("cpu", "int8", None, (), [], None)
    assert engine_build.build_engine(job, tmp_path / "none.onnx", {}) is None
    assert (
        engine_build.build_engine(
            replace(job, target=qgraph.target.target("edge-tpu")), tmp_path / "none.onnx", {}
        )
        is None
    )
    assert MODULES
