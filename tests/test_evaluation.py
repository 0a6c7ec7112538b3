"""Scores of models and artifacts on labelled data, end to end."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from harness import model, run_reference
from realmodels import ROOT, shared

import qgraph
from models.digits.data import load
from qgraph.data import ImageOptions
from qgraph.errors import DataError, EngineError, ModelError, UsageError
from qgraph.evaluation import evaluate_all
from qgraph.metrics import metric
from qgraph.metrics.scoring import sided
from qgraph.recipe import Recipe
from qgraph.runtime.backend import TensorInfo

CNN = ROOT / "models" / "digits" / "digits_cnn.onnx"


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
    monkeypatch.setattr("qgraph.runtime.choose._ROUNDS", 2)
    monkeypatch.setattr("qgraph.metrics.bootstrap.RESAMPLES", 500)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The test images with labels, a copy of the model, and artifacts of it."""
    folder, data = tmp_path_factory.mktemp("digits"), load()
    # Blurred by noise, in steps of a pixel: on clean images the network makes no error.
    noise = np.random.default_rng(0).normal(0, 6, data.test_x.shape)
    x = (np.clip(np.rint(data.test_x * 16 + noise), 0, 16) / 16).astype(np.float32)
    found = SimpleNamespace(x=x, y=data.test_y, model=folder / "cnn.onnx", int8=folder / "int8")
    shutil.copy(CNN, found.model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
        qgraph.compile(found.model, output=found.int8, data={"image": data.train_x[:64]})
    found.data = {"image": found.x, "label": found.y}
    found.logits = run_reference(onnx.load(CNN), {"image": found.x})["logits"]
    return found


class Heard:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.done: list[int] = []

    def stage(self, name: str) -> None: ...

    def progress(self, what: str, done: int, total: int | None) -> None:
        self.done.append(done)
        assert total is None or done <= total

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    def info(self, line: str) -> None: ...


def test_a_model_scores_what_its_outputs_are_worth(digits: SimpleNamespace) -> None:
    found = qgraph.evaluate(digits.model, metric="top1", data=digits.data)
    hits = digits.logits.argmax(1) == digits.y
    assert found.score == hits.mean() and found.samples == len(digits.y)
    assert (found.metric, found.better, found.versus) == ("top1", "higher", None)
    assert found.engine == "onnxruntime-cpu" and found.notes == ()
    error = hits.std() / np.sqrt(len(hits))
    assert found.interval[0] == pytest.approx(found.score - 1.96 * error, abs=0.4 * error)
    assert found.interval[0] < found.score < found.interval[1]


def test_an_artifact_is_compared_with_its_original(digits: SimpleNamespace) -> None:
    heard = Heard()
    found = qgraph.evaluate(digits.int8, metric="top1", data=digits.data, listener=heard)
    with qgraph.open(digits.int8) as session:
        logits = session.run({"image": digits.x})["logits"]
    assert found.score == pytest.approx((logits.argmax(1) == digits.y).mean(), abs=0.003)
    versus = found.versus
    assert versus is not None and Path(versus.model) == digits.model.resolve()
    assert versus.score == (digits.logits.argmax(1) == digits.y).mean()
    assert versus.change == found.score - versus.score
    assert versus.change_interval[0] <= versus.change <= versus.change_interval[1]
    # The same samples are drawn for both, so the change is known far better than the scores.
    assert np.ptp(versus.change_interval) < np.ptp(versus.interval)
    assert heard.warnings == [] and heard.done == [*range(1, len(digits.y) + 1)]


def test_several_models_in_one_pass_over_data_that_is_read_once(digits: SimpleNamespace) -> None:
    items = ({"image": x, "label": y} for x, y in zip(digits.x[:50], digits.y[:50], strict=True))
    first, second = evaluate_all(
        [digits.int8, digits.model], metric="top5", data=items, versus=digits.model
    )
    assert first.samples == second.samples == 50
    assert second.versus is not None and first.versus is not None
    assert second.versus.change == 0 and second.versus.change_interval == (0, 0)
    assert first.versus.score == second.score


def test_agreement_with_the_original_needs_no_labels(digits: SimpleNamespace) -> None:
    with qgraph.open(digits.int8) as session:
        logits = np.concatenate([session.run({"image": x[None]})["logits"] for x in digits.x])
    found = qgraph.evaluate(digits.int8, metric="agreement", data={"image": digits.x})
    assert found.score == (logits.argmax(1) == digits.logits.argmax(1)).mean()
    assert found.versus is None
    with pytest.raises(UsageError, match="cnn.onnx: agreement compares with the original.*--vs"):
        qgraph.evaluate(digits.model, metric="agreement", data={"image": digits.x})


def test_an_original_that_is_gone_or_changed_is_a_warning(
    digits: SimpleNamespace, tmp_path: Path
) -> None:
    shutil.copy(CNN, tmp_path / "m.onnx")
    qgraph.compile(tmp_path / "m.onnx", output=tmp_path / "a", precision="fp32")
    (tmp_path / "m.onnx").unlink()
    heard, data = Heard(), {"image": digits.x[:5], "label": digits.y[:5]}
    found = qgraph.evaluate(tmp_path / "a", metric="top1", data=data, listener=heard)
    assert found.versus is None
    assert len(heard.warnings) == 1 and "not there any more" in heard.warnings[0]
    found = qgraph.evaluate(tmp_path / "a", metric="top1", data=data, versus=CNN, samples=4)
    assert found.versus is not None and found.samples == 4


def test_few_samples_and_samples_without_spread_are_said(digits: SimpleNamespace) -> None:
    right = np.flatnonzero(digits.logits.argmax(1) == digits.y)
    for count, notes in ((29, 2), (30, 1)):
        data = {"image": digits.x[right[:count]], "label": digits.y[right[:count]]}
        found = qgraph.evaluate(digits.model, metric="top1", data=data)
        assert (found.score, found.interval, len(found.notes)) == (1, (1, 1), notes)
    assert "no certainty" in found.notes[0]
    heard = Heard()
    qgraph.evaluate(digits.int8, metric="agreement", data="random", samples=3, listener=heard)
    assert heard.warnings == ["random data says nothing about accuracy"]


def test_integer_inputs_and_outputs_are_scored_as_the_original(
    digits: SimpleNamespace, tmp_path: Path
) -> None:
    images = ImageOptions(scale=1 / 16, mean=(0.0,), std=(1.0,), channels="gray")
    recipe = Recipe(name="digits", images=images)
    artifact = qgraph.compile(
        digits.model, output=tmp_path / "a", recipe=recipe, data={"image": load().train_x[:64]},
        io="uint8",
    )  # fmt: skip
    assert artifact.manifest.io is not None and artifact.manifest.io["outputs"]
    found = qgraph.evaluate(artifact, metric="top1", data=digits.data)
    assert found.versus is not None and abs(found.versus.change) < 0.02
    # Raw images serve as well: they become the original's floats, as the artifact's recipe says.
    pixels = np.rint(digits.x * 16).astype(np.uint8)
    again = qgraph.evaluate(artifact, metric="top1", data={"image": pixels, "label": digits.y})
    assert again == found


# -- data that is not one row of one input ---------------------------------------------------------


def test_pairs_run_the_model_once_for_each_side(tmp_path: Path) -> None:
    """An encoder whose embedding is [x, mean]: both sides have lengths of their own."""
    text = """enc (float[n, t] x, float[n, t] w) => (float[n, 2] e) {
      m = Mul(x, w)
      s = ReduceSum<keepdims = 1>(m, axis)
      c = ReduceSum<keepdims = 1>(w, axis)
      e = Concat<axis = 1>(s, c)
    }"""
    onnx.save(model(text, {"axis": np.array([1], np.int64)}), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 40, 3)).astype(np.float32)[:, :, :3]
    b = np.concatenate([b, b], axis=1)
    data = {"a.x": a, "a.w": np.ones_like(a), "b.x": b, "b.w": np.ones_like(b)}
    one, two = (np.stack([x.sum(1), np.full(40, x.shape[1])], 1) for x in (a, b))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    data["score"] = (one * two).sum(1) / lengths + 1
    found = qgraph.evaluate(tmp_path / "m.onnx", metric="spearman", data=data)
    assert found.score == pytest.approx(1, abs=1e-3) and found.samples == 40
    del data["b.w"]
    with pytest.raises(DataError, match="no array for input 'b.w'"):
        qgraph.evaluate(tmp_path / "m.onnx", metric="spearman", data=data)


def test_dynamic_axes_of_two_sides_differ_but_the_batch_does_not() -> None:
    inputs = [TensorInfo("ids", "int64", ("n", "t")), TensorInfo("mask", "int64", ("n", "t"))]
    shapes = [(info.name, info.shape) for info in sided(inputs, ("a.", "b."))]
    assert shapes == [
        ("a.ids", ("n", "a.t")), ("a.mask", ("n", "a.t")),
        ("b.ids", ("n", "b.t")), ("b.mask", ("n", "b.t")),
    ]  # fmt: skip
    assert sided(inputs, ("",)) == inputs


def test_models_may_differ_in_their_inputs(tmp_path: Path) -> None:
    texts = {
        "plain": "net (float[n, 3] x) => (float[n, 3] y) { y = Neg(x) }",
        "more": "net (float[n, 3] x, float[n, 3] w) => (float[n, 3] y) { y = Mul(x, w) }",
    }
    for name, text in texts.items():
        onnx.save(model(text), tmp_path / f"{name}.onnx")
    x = np.eye(3, dtype=np.float32)
    data = {"x": x, "w": x, "label": np.arange(3)}
    for first, second in (("plain", "more"), ("more", "plain")):
        found = qgraph.evaluate(
            tmp_path / f"{first}.onnx", metric="top1", data=data,
            versus=tmp_path / f"{second}.onnx",
        )  # fmt: skip
        scores = {first: found.score, second: found.versus.score if found.versus else None}
        assert scores == {"plain": 0, "more": 1}


def test_rows_of_a_fixed_batch_are_samples(tmp_path: Path) -> None:
    onnx.save(model("net (float[4, 3] x) => (float[4, 3] y) { y = Neg(x) }"), tmp_path / "m.onnx")
    x = -np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]
    labels = np.array([0, 1, 2, 1, 1, 2, 0, 0])
    found = qgraph.evaluate(tmp_path / "m.onnx", metric="top1", data={"x": x, "label": labels})
    assert (found.samples, found.score) == (8, 6 / 8)


def test_nan_is_an_error_that_names_the_sample(tmp_path: Path) -> None:
    onnx.save(model("net (float[n, 3] x) => (float[n, 3] y) { y = Log(x) }"), tmp_path / "m.onnx")
    x = np.ones((5, 3), np.float32)
    x[3, 1] = -1
    data = {"x": x, "label": np.zeros(5, np.int64)}
    with pytest.raises(ModelError, match=r"data: sample 3: .*m.onnx: output 'y' has NaN"):
        qgraph.evaluate(tmp_path / "m.onnx", metric="top1", data=data)
    # -inf is a score like others, but no log-likelihood that could be averaged.
    x[3, 1] = 0
    assert qgraph.evaluate(tmp_path / "m.onnx", metric="top1", data=data).score == 1
    text = "net (float[n, t, 3] x) => (float[n, t, 3] y) { y = Log(x) }"
    onnx.save(model(text), tmp_path / "lm.onnx")
    data = {"x": np.eye(3, dtype=np.float32)[None], "labels": np.array([[0, 0, 0]])}
    with pytest.raises(DataError, match="sample 0: .*lm.onnx: .* not finite"):
        qgraph.evaluate(tmp_path / "lm.onnx", metric="perplexity", data=data)


def test_labels_that_are_missing_or_wrong_name_the_sample(digits: SimpleNamespace) -> None:
    items = [{"image": x, "label": y} for x, y in zip(digits.x[:3], digits.y[:3], strict=True)]
    del items[1]["label"]
    with pytest.raises(DataError, match=r"data: sample 1: .*needs a label 'label'"):
        qgraph.evaluate(digits.model, metric="top1", data=items)
    items[1]["label"] = 10
    with pytest.raises(DataError, match="sample 1: .*class 10 is not among the output's 10"):
        qgraph.evaluate(digits.model, metric="top1", data=items)


def test_samples_without_a_score(tmp_path: Path) -> None:
    onnx.save(model("net (float[n, 3] x) => (float[n, 3] y) { y = Exp(x) }"), tmp_path / "m.onnx")
    x = np.random.default_rng(0).random((3, 3)).astype(np.float32)
    with pytest.raises(DataError, match="these 3 samples have no spearman"):
        data = {"a.x": x, "b.x": x[::-1].copy(), "score": np.ones(3)}
        qgraph.evaluate(tmp_path / "m.onnx", metric="spearman", data=data)


def test_engines_and_metrics_that_are_not_there(digits: SimpleNamespace) -> None:
    with pytest.raises(UsageError, match="unknown metric"):
        qgraph.evaluate(digits.model, metric="topp1", data=digits.data)
    with pytest.raises(UsageError, match="unknown backend"):
        qgraph.evaluate(digits.model, metric="top1", data=digits.data, engine="nix")
    with pytest.raises((EngineError, UsageError)):
        qgraph.evaluate(digits.model, metric="top1", data=digits.data, engine="tensorrt")


def test_a_metric_object_may_be_given(digits: SimpleNamespace) -> None:
    data = {"image": digits.x, "digit": digits.y, "label": digits.y * 0}
    found = qgraph.evaluate(digits.model, metric=metric("top1", label="digit"), data=data)
    assert found.score == (digits.logits.argmax(1) == digits.y).mean()


# -- real models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recipe", "want"),
    [("mobilenet_v2", "imagenet-mean", 56 / 72), ("efficientnet_lite0", "imagenet-half", 63 / 72)],
)
def test_real_classifiers_score_what_is_known_of_them(name: str, recipe: str, want: float) -> None:
    path = shared("models", f"{name}.onnx")
    with np.load(shared("data", "imagenet_calib200_224_u8.npz")) as data:
        arrays = {"input": data["x"][128:], "label": data["y"][128:]}
    found = qgraph.evaluate(os.fspath(path), metric="top1", data=arrays, recipe=recipe)
    assert found.score == pytest.approx(want)


def test_a_real_recogniser_reads_what_is_known_of_it() -> None:
    path = shared("models", "ppocrv6_rec_small.onnx")
    with np.load(shared("data", "ocr_lines_calib.npz")) as data:
        lines = list(zip(data["x"], data["w"], data["text"], strict=True))[50:]
    items = [
        {
            "x": np.repeat((x[None, None, :, :w].astype(np.float32) / 255 - 0.5) / 0.5, 3, axis=1),
            "text": str(text),
        }
        for x, w, text in lines
    ]
    found = qgraph.evaluate(path, metric="cer", data=items)
    # Without spaces it reads all 573 characters; of those with spaces it misses three.
    assert found.samples == 30 and found.score * sum(len(x["text"]) for x in items) < 4
