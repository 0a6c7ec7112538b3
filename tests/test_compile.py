"""End to end on the networks of models/digits, in real engines."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from harness import assert_close, model, run_reference

import qgraph
from models.digits.data import load as load_digits
from qgraph.artifact import Artifact
from qgraph.errors import AccuracyError, ArtifactError, DataError, ModelError, UsageError
from qgraph.graph import Graph
from qgraph.pipeline import Stage
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.executed import executed_ops

DIGITS = Path(__file__).resolve().parent.parent / "models" / "digits"
CNN, VIT, GRU = (DIGITS / f"digits_{name}.onnx" for name in ("cnn", "vit", "gru"))


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_digits()


@pytest.fixture(scope="module")
def calibration(digits: Any) -> dict[str, np.ndarray]:
    return {"image": digits.train_x[:100]}


@pytest.fixture(scope="module")
def cnn_int8(
    tmp_path_factory: pytest.TempPathFactory, calibration: dict[str, np.ndarray]
) -> Artifact:
    out = tmp_path_factory.mktemp("cnn") / "cnn.int8"
    return qgraph.compile(CNN, output=out, precision="int8", data=calibration)


class Heard:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.stages: list[str] = []
        self.progressed: set[str] = set()

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def progress(self, what: str, done: int, total: int | None) -> None:
        assert total is None or 0 < done <= total
        self.progressed.add(what)

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    def info(self, line: str) -> None:
        pass


def accuracy(artifact: Artifact, digits: Any) -> float:
    with artifact.open() as session:
        logits = session.run({"image": digits.test_x})["logits"]
    return float(np.mean(logits.argmax(1) == digits.test_y))


def original_accuracy(path: Path, digits: Any) -> float:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float(np.mean(session.run(None, {"image": digits.test_x})[0].argmax(1) == digits.test_y))


# -- int8 ------------------------------------------------------------------------------------------


def test_int8_answers_like_the_original(cnn_int8: Artifact, digits: Any) -> None:
    assert accuracy(cnn_int8, digits) >= original_accuracy(CNN, digits) - 0.01
    found = cnn_int8.manifest.accuracy
    assert found is not None and found.passed and found.data == "held out"
    assert found.samples == 20
    assert 20 < found.outputs[0]["sqnr_db"] < 60


def test_int8_really_runs_in_integers(cnn_int8: Artifact, digits: Any) -> None:
    feeds = {"image": digits.test_x[:1]}
    ran = executed_ops(cnn_int8.model_path, feeds, backend("onnxruntime-cpu"), EngineOptions())
    kinds = Counter(op.op_type for op in ran)
    original = Counter(node.op_type for node in onnx.load(CNN).graph.node)
    assert kinds["QLinearConv"] == original["Conv"]
    assert kinds["Conv"] == kinds["FusedConv"] == kinds["Gemm"] == kinds["BatchNormalization"] == 0


def test_the_file_is_plain_onnx(cnn_int8: Artifact) -> None:
    onnx.checker.check_model(str(cnn_int8.model_path), full_check=True)
    proto = onnx.load(cnn_int8.model_path)
    assert {entry.domain for entry in proto.opset_import} == {""}
    original = onnx.load(CNN)
    assert [v.name for v in proto.graph.output] == [v.name for v in original.graph.output]
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert cnn_int8.model_path.stat().st_size < 0.5 * CNN.stat().st_size


def test_the_manifest_tells_the_story(cnn_int8: Artifact) -> None:
    manifest = cnn_int8.manifest
    assert (manifest.target, manifest.precision, manifest.random_calibration) == (
        "cpu",
        "int8",
        False,
    )
    names = [stage.name for stage in manifest.stages]
    assert names.index("conv_batchnorm") < names.index("plan") < names.index("insert_qdq")
    assert (
        manifest.engine is not None
        and manifest.engine.backend == "onnxruntime-cpu"
        or (manifest.engine is not None and manifest.engine.backend == "openvino")
    )
    labels = [timing.candidate for timing in manifest.timings]
    assert "onnxruntime-cpu int8" in labels and "onnxruntime-cpu fp32 (before)" in labels
    assert manifest.source.bytes == CNN.stat().st_size
    assert sorted(manifest.files) == ["encodings.json", "explain.json", "model.onnx"]
    assert Artifact.load(cnn_int8.path).manifest == manifest


def test_every_node_and_value_is_explained(cnn_int8: Artifact) -> None:
    explained = json.loads((cnn_int8.path / "explain.json").read_text())
    assert sum(cnn_int8.manifest.nodes.values()) == len(explained["nodes"])
    assert all(reason for _, reason in explained["nodes"].values())
    assert explained["float"]["logits"] == "graph output"
    assert set(explained["quantized"]) == set(
        json.loads((cnn_int8.path / "encodings.json").read_text())["activations"]
    )


def test_excluded_nodes_stay_in_float(tmp_path: Path, calibration: Any) -> None:
    artifact = qgraph.compile(CNN, output=tmp_path / "out", data=calibration, exclude=["Gemm"])
    explained = json.loads((artifact.path / "explain.json").read_text())["nodes"]
    assert ["float", "excluded by 'Gemm'"] in explained.values()
    kinds = Counter(node.op_type for node in onnx.load(artifact.model_path).graph.node)
    assert kinds["Gemm"] == 1


def test_the_transformer_and_the_gru(tmp_path: Path, calibration: Any, digits: Any) -> None:
    for path in (VIT, GRU):
        artifact = qgraph.compile(path, output=tmp_path / path.stem, data=calibration)
        assert accuracy(artifact, digits) >= original_accuracy(path, digits) - 0.01, path.stem


def test_the_same_job_gives_the_same_file(
    cnn_int8: Artifact, tmp_path: Path, calibration: Any
) -> None:
    again = qgraph.compile(CNN, output=tmp_path / "again", precision="int8", data=calibration)
    assert again.model_path.read_bytes() == cnn_int8.model_path.read_bytes()


# -- other precisions ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CNN, VIT, GRU], ids=lambda p: p.stem)
def test_fp32_keeps_the_numbers(path: Path, tmp_path: Path, digits: Any) -> None:
    artifact = qgraph.compile(path, output=tmp_path / "out", precision="fp32")
    feeds = {"image": digits.test_x[:16]}
    want = run_reference(onnx.load(path), feeds)
    assert_close(want, run_reference(onnx.load(artifact.model_path), feeds))
    kinds = Counter(node.op_type for node in onnx.load(artifact.model_path).graph.node)
    assert kinds["BatchNormalization"] == kinds["Erf"] == kinds["Identity"] == 0


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8-dynamic"])
@pytest.mark.parametrize("path", [CNN, VIT, GRU], ids=lambda p: p.stem)
def test_other_precisions_answer(
    path: Path, precision: str, tmp_path: Path, digits: Any, calibration: Any
) -> None:
    artifact = qgraph.compile(path, output=tmp_path / "out", precision=precision, data=calibration)
    assert artifact.manifest.precision == precision
    assert accuracy(artifact, digits) >= original_accuracy(path, digits) - 0.01
    proto = onnx.load(artifact.model_path)
    types = {v.type.tensor_type.elem_type for v in [*proto.graph.input, *proto.graph.output]}
    assert types == {onnx.TensorProto.FLOAT}


def test_int8_without_data_falls_back_and_says_so(tmp_path: Path) -> None:
    heard = Heard()
    artifact = qgraph.compile(VIT, output=tmp_path / "out", precision="int8", listener=heard)
    assert artifact.manifest.requested_precision == "int8"
    assert artifact.manifest.precision == "int8-dynamic"
    assert any("int8-dynamic instead" in line for line in heard.warnings)


def test_random_data_is_marked(tmp_path: Path) -> None:
    artifact = qgraph.compile(CNN, output=tmp_path / "out", data="random", samples=8)
    assert artifact.manifest.random_calibration
    assert any("random" in line for line in artifact.manifest.warnings)


# -- what stays as it is ---------------------------------------------------------------------------


def test_a_quantized_model_is_left_intact(
    cnn_int8: Artifact, tmp_path: Path, calibration: Any
) -> None:
    heard = Heard()
    again = qgraph.compile(
        cnn_int8.model_path, output=tmp_path / "out", data=calibration, listener=heard
    )
    assert any("already quantized" in line and "intact" in line for line in heard.warnings)
    before, after = onnx.load(cnn_int8.model_path), onnx.load(again.model_path)
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    assert again.manifest.precision == "as is"


def test_a_custom_operator_passes_through(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (float[1,4] x) => (float[1,4] z) { a = Relu(x) b = com.microsoft.BiasGelu(a, c) z = Neg(b) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "c"))
    artifact = qgraph.compile(proto, output=tmp_path / "out", precision="fp32")
    kinds = [node.op_type for node in onnx.load(artifact.model_path).graph.node]
    assert kinds == ["Relu", "BiasGelu", "Neg"]


def test_the_callers_own_pass_and_hooks_run(tmp_path: Path, calibration: Any) -> None:
    seen: list[str] = []

    def hook(graph: Graph, stage: Stage) -> None:
        seen.append(stage.name)

    qgraph.compile(CNN, output=tmp_path / "out", data=calibration, hooks=[hook])
    assert seen[0] == "normalize" and seen[-1] == "drop_dead" and "calibrate" in seen


def test_it_can_be_heard(tmp_path: Path, calibration: Any) -> None:
    heard = Heard()
    qgraph.compile(CNN, output=tmp_path / "out", data=calibration, listener=heard)
    assert "calibrating" in heard.progressed and "verifying" in heard.stages
    assert heard.warnings == [w for w in heard.warnings if "fp32" in w]


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_missed_floor_fails_loudly_and_keeps_the_artifact(
    tmp_path: Path, calibration: Any
) -> None:
    recipe = tmp_path / "strict.toml"
    recipe.write_text('extends = "default"\n[verify]\nmin_sqnr_db = 90.0\n')
    with pytest.raises(AccuracyError, match=r"below 90 dB.*kept and marked as failed"):
        qgraph.compile(CNN, output=tmp_path / "out", data=calibration, recipe=recipe)
    kept = Artifact.load(tmp_path / "out").manifest.accuracy
    assert kept is not None and not kept.passed and kept.failures


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "cpuu"}, UsageError, "did you mean 'cpu'"),
        ({"precision": "int9"}, UsageError, "did you mean 'int8'"),
        ({"settings": ["calibrate.observr=x"]}, UsageError, "did you mean 'observer'"),
        ({"settings": ["calibrate.observer=minmx"]}, UsageError, "did you mean 'minmax'"),
        ({"settings": ["calibate.observer=minmax"]}, UsageError, "did you mean 'calibrate'"),
        (
            {"precision": "int4", "settings": ["weight_only.bits=3"]},
            UsageError,
            "weight_only.bits=3 is not int4; pass --bits 3",
        ),
        ({"recipe": "defalt"}, UsageError, "did you mean 'default'"),
        ({"data": {"imag": np.zeros((4, 1, 8, 8), np.float32)}}, DataError, "image"),
        ({"data": {"image": np.zeros((4, 1, 9, 8), np.float32)}}, DataError, "image"),
        ({"data": {"image": np.full((4, 1, 8, 8), np.nan, np.float32)}}, DataError, "NaN"),
        ({"data": "nothing.npz"}, DataError, "nothing.npz"),
    ],
    ids=lambda v: str(v)[:40] if isinstance(v, dict) else "",
)
def test_wrong_wishes_leave_nothing_behind(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        qgraph.compile(CNN, output=tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_models_leave_nothing_behind(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(CNN.read_bytes()[:5000])
    for path in (bad, tmp_path / "none.onnx"):
        with pytest.raises(ModelError, match=path.name):
            qgraph.compile(path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_not_touched(tmp_path: Path, calibration: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="in use"):
        qgraph.compile(CNN, output=tmp_path, data=calibration)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_compile_keeps_the_older_artifact(tmp_path: Path, calibration: Any) -> None:
    out = tmp_path / "out"
    first = qgraph.compile(CNN, output=out, precision="fp32")

    def stop(graph: Graph, stage: Stage) -> None:
        if stage.name == "insert_qdq":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qgraph.compile(CNN, output=out, data=calibration, hooks=[stop])
    assert Artifact.load(out).manifest == first.manifest
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_dynamic_axes_that_cannot_be_guessed_are_named(tmp_path: Path) -> None:
    proto = model(
        "g (float[n,m] x) => (float[p,q] z) { z = Reshape(x, s) }", {"s": np.int64([7, 5])}
    )
    with pytest.raises(DataError, match=r"guessed inputs \(x \[.*--data"):
        qgraph.compile(proto, output=tmp_path / "out", precision="fp32")
