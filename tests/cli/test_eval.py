"""eval, on plain models and on artifacts whose original is beside them."""

import shutil

import numpy as np
import onnx
import pytest
from realmodels import ROOT

import qgraph
from models.digits.data import load
from qgraph.metrics import metrics

CNN = ROOT / "models" / "digits" / "digits_cnn.onnx"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("qgraph.metrics.bootstrap.RESAMPLES", 200)


@pytest.fixture
def labelled(tmp_path):
    digits = load()
    noise = np.random.default_rng(0).normal(0, 0.4, (60, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", image=digits.test_x[:60] + noise, label=digits.test_y[:60])
    return tmp_path / "d.npz"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    shutil.copy(CNN, folder / "cnn.onnx")
    data = {"image": load().train_x[:32]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
        patch.setattr("qgraph.runtime.choose._ROUNDS", 2)
        qgraph.compile(folder / "cnn.onnx", output=folder / "cnn.int8", recipe="fast", data=data)
    return folder


@pytest.fixture
def artifact(compiled, monkeypatch):
    monkeypatch.chdir(compiled)
    return "cnn.int8"


def test_an_artifact_stands_beside_its_original(invoke, invoke_json, artifact, labelled):
    args = ("eval", artifact, "--metric", "top1", "--data", labelled)
    found = invoke_json(*args)
    (result,) = found["results"]
    assert found["metric"] == "top1" and found["data"] == str(labelled)
    assert result["model"] == artifact and result["better"] == "higher"
    assert result["samples"] == 60 and 0.3 < result["score"] < 1
    versus = result["versus"]
    assert versus["model"].endswith("cnn.onnx")
    assert versus["change"] == pytest.approx(result["score"] - versus["score"])
    low, high = versus["change_interval"]
    assert low <= versus["change"] <= high

    shown = invoke(*args)
    assert shown.exit_code == 0 and shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert lines[0] == f"top1 (higher is better), 60 samples of {labelled}"
    assert lines[2].startswith(versus["model"]) and lines[3].startswith(artifact)
    assert f"{result['score']:.4f}" in lines[3] and f"{versus['change']:+.4f}" in lines[3]
    assert f"{low:+.4f} to {high:+.4f}" in lines[3]


def test_several_models_and_options(invoke, invoke_json, artifact, labelled):
    args = ("--metric", "top5", "--data", labelled, "--samples", "20")
    found = invoke_json("eval", artifact, CNN, *args, "--vs", CNN, "--engine", "onnxruntime-cpu")
    assert [result["model"] for result in found["results"]] == [artifact, str(CNN)]
    assert all(result["samples"] == 20 for result in found["results"])
    assert found["results"][1]["versus"]["change"] == 0
    shown = invoke("eval", artifact, CNN, *args, "--vs", CNN)
    assert "20 samples are few: the intervals are wide" in shown.stdout
    assert shown.stdout.count("cnn.onnx") == 1  # scored once, shown once


def test_a_model_alone_has_no_columns_of_changes(invoke, labelled):
    shown = invoke("eval", CNN, "--metric", "top1", "--data", labelled)
    assert "change" not in shown.stdout and "95% interval" in shown.stdout


def test_agreement_and_functions(invoke_json, artifact, labelled, compiled):
    found = invoke_json("eval", artifact, "--metric", "agreement", "--data", labelled)
    assert 0.5 < found["results"][0]["score"] <= 1 and found["results"][0]["versus"] is None
    (compiled / "eval_scores.py").write_text(
        "def wrong(outputs, labels): return outputs['logits'].argmax(1) != labels['label']\n"
        "wrong.better = 'lower'\n"
    )
    args = ("--data", labelled, "--engine", "onnxruntime-cpu")
    wrong = invoke_json("eval", artifact, "--metric", "eval_scores:wrong", *args)["results"][0]
    right = invoke_json("eval", artifact, "--metric", "top1", *args)["results"][0]
    assert wrong["better"] == "lower" and wrong["score"] == pytest.approx(1 - right["score"])
    assert wrong["interval"] == pytest.approx([1 - bound for bound in right["interval"][::-1]])


def test_outputs_and_labels_by_name(invoke, tmp_path):
    text = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "net (float[n, 3] x) => (float[n, 3] y, float[n, 3] z) { y = Neg(x) z = Identity(x) }"
    )
    onnx.save(text, tmp_path / "m.onnx")
    x = np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x, true=np.arange(3), label=np.zeros(3, int))
    args = ("eval", tmp_path / "m.onnx", "--metric", "top1", "--data", tmp_path / "d.npz")
    both = invoke(*args)
    assert both.exit_code == 2 and "name one with --output" in both.stderr
    assert " 1.0000 " in invoke(*args, "--output", "z", "--label", "true").stdout
    assert " 0.3333 " in invoke(*args, "--output", "z").stdout


@pytest.mark.parametrize(
    ("args", "code", "what"),
    [
        (("--metric", "top1"), 2, "pass --data D"),
        (("--data", "random"), 2, "--metric"),
        (("--metric", "to1", "--data", "random"), 2, "did you mean 'top1'?"),
        (("--metric", "top1", "--data", "random"), 1, "needs a label"),
        (("--metric", "agreement", "--data", "random"), 2, "--vs"),
        (("--metric", "top1", "--data", "nowhere.npz"), 1, "no such file"),
        (("--metric", "nowhere:f", "--data", "random"), 1, "can't be imported"),
        (("--metric", "top1", "--data", "random", "--vs", "no.onnx"), 1, "no.onnx"),
    ],
)
def test_errors_are_one_line(invoke, args, code, what):
    result = invoke("eval", CNN, *args)
    assert result.exit_code == code and what in result.stderr and "bug" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if "error" in line]) == 1


def test_help_names_every_metric(invoke):
    shown = " ".join(invoke("eval", "--help", env={"COLUMNS": "200"}).stdout.split())
    assert all(name in shown for name in metrics())
