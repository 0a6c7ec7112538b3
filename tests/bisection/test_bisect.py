"""Whole bisections of artifacts with a planted failure."""

import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from planted import CNN, ruined
from typer.testing import CliRunner

import qgraph
from models.digits.data import load
from qgraph.cli import app
from qgraph.errors import AccuracyError, ArtifactError, ModelError, UsageError
from qgraph.pipeline import Pass, PassReport


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.05)
    monkeypatch.setattr("qgraph.runtime.choose._ROUNDS", 2)


@pytest.fixture(scope="module")
def images():
    digits = load()
    return {"image": digits.train_x[:60], "label": digits.train_y[:60]}


@pytest.fixture(scope="module")
def data(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "d.npz"
    np.savez(path, **images)
    return path


def compiled(model, folder, images, **options):
    try:
        qgraph.compile(
            model, output=folder, data={"image": images["image"]}, recipe="fast", **options
        )
    except AccuracyError:
        pass  # the artifact is kept: that is the one to look at
    return folder


@pytest.fixture(scope="module")
def broken(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ruined")
    path, name = ruined(folder)
    return compiled(path, folder / "a", images), name


def invoke(*args):
    return CliRunner().invoke(app, [str(each) for each in args])


def test_the_ruined_layer_is_found_with_its_cause(broken, data):
    artifact, name = broken
    result = invoke("bisect", artifact, "--data", data, "--min-sqnr", "15", "--json")
    assert result.exit_code == 1, result.stderr
    found = json.loads(result.stdout)
    assert found["first"]["name"] == "insert_qdq"
    assert found["guilty"] == [name]
    scores = {each["name"]: each["alone"]["value"] for each in found["units"]}
    assert min(scores, key=scores.get) == name
    assert found["restored"]["holds"]
    (cause,) = [each for each in found["causes"][name] if "weights of input" in each["what"]]
    assert cause["kind"] == "outlier channel"
    assert found["units"][-1]["accumulated"]["value"] < 15
    # What it advises is a command that does it.
    assert found["command"].endswith(f"--exclude {name}")


def test_the_advice_brings_the_accuracy_back(broken, images, data, tmp_path):
    artifact, name = broken
    source = qgraph.Artifact.load(artifact).manifest.source.path
    again = compiled(source, tmp_path / "a", images, exclude=[name])
    result = invoke("bisect", again, "--data", data, "--min-sqnr", "15")
    assert result.exit_code == 0, result.stdout
    assert "nothing is lost" in result.stdout


def test_with_a_metric(broken, images):
    artifact, name = broken
    digits = load()
    labelled = {"image": digits.train_x[:240], "label": digits.train_y[:240]}
    found = qgraph.bisect(artifact, data=labelled, metric="top1", max_drop="2%")
    assert found.unit == "drop of top1" and found.guilty == [name]
    assert found.restored.value <= 0.02


@dataclass(frozen=True)
class Halving(Pass):
    """Halves a bias, which no rounding explains."""

    name: ClassVar[str] = "halving"

    def run(self, graph, context):
        node = next(each for each in graph.nodes() if each.op_type == "Gemm")
        bias = graph.array(node.inputs[1])
        graph.set_input(node, 1, graph.constant("half", (bias * 0.5).astype(np.float32)))
        return PassReport(changed=1)


def test_a_pass_that_breaks_the_model_is_named(images, data, tmp_path):
    artifact = compiled(CNN, tmp_path / "a", images, passes=[Halving()])
    found = qgraph.bisect(artifact, data=str(data), min_sqnr_db=15, passes=[Halving()])
    assert found.first.name == "halving" and not found.units
    before = [each.score.value for each in found.passes[: found.passes.index(found.first)]]
    assert min(before) > 80 > found.first.score.value
    assert found.notes[0].startswith("halving should keep the model's numbers")


def test_other_precisions_end_with_the_pass(images, data, tmp_path):
    artifact = compiled(CNN, tmp_path / "a", images, precision="fp16")
    found = qgraph.bisect(artifact, data=str(data), min_sqnr_db=90)
    assert found.first is not None and not found.units and "--exclude" in found.notes[0]


def test_what_can_not_be_bisected(broken, data, tmp_path):
    artifact, _ = broken
    assert "pass --data" in invoke("bisect", artifact).stderr
    with pytest.raises(ArtifactError, match="is no artifact"):
        qgraph.bisect(tmp_path, data=str(data))
    with pytest.raises(UsageError, match="both --metric and --max-drop"):
        qgraph.bisect(artifact, data=str(data), metric="top1")
    with pytest.raises(ModelError, match="is not the 'ruined.onnx'"):
        qgraph.bisect(artifact, data=str(data), model=CNN)
    moved = tmp_path / "moved"
    shutil.copytree(artifact, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["source"]["path"] = str(tmp_path / "gone.onnx")
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="pass --model FILE"):
        qgraph.bisect(moved, data=str(data))
