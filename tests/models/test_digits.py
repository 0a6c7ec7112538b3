import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.digits.data import HERE, NPZ, load

ACCURACY = json.loads((HERE / "accuracy.json").read_text())
NAMES = ["digits_cnn.onnx", "digits_gru.onnx", "digits_vit.onnx"]


def logits(name, x, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(str(HERE / name), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": x})[0]


def test_accuracy_lists_every_committed_model():
    assert sorted(ACCURACY["models"]) == NAMES == sorted(p.name for p in HERE.glob("*.onnx"))


@pytest.mark.parametrize("name", NAMES)
def test_model_is_valid_small_and_has_a_dynamic_batch(name):
    path = HERE / name
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert path.stat().st_size == ACCURACY["models"][name]["bytes"] < 1_000_000
    assert model.opset_import[0].version == ACCURACY["models"][name]["opset"]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param and not batch.dim_value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "level",
    [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL],
    ids=["unoptimised", "default"],
)
def test_model_reaches_exactly_the_committed_accuracy(name, level):
    digits = load()
    correct = int((logits(name, digits.test_x, level).argmax(1) == digits.test_y).sum())
    row = ACCURACY["models"][name]
    assert (correct, len(digits.test_y)) == (row["test_correct"], row["test_images"])
    assert row["test_accuracy"] == correct / len(digits.test_y)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_do_not_depend_on_each_other(name):
    x = load().test_x[:5]
    one_by_one = np.concatenate([logits(name, x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(logits(name, x), one_by_one, rtol=1e-4, atol=1e-4)


def test_models_hold_the_patterns_that_they_are_for():
    ops = {
        name: Counter(node.op_type for node in onnx.load(HERE / name).graph.node) for name in NAMES
    }
    cnn, gru, vit = (ops[name] for name in NAMES)
    assert cnn["Conv"] == cnn["BatchNormalization"] == 7 and cnn["Add"] == 2
    assert gru["GRU"] == 1 and gru["Shape"]
    assert vit["LayerNormalization"] == 0 and vit["ReduceMean"] >= 14
    assert vit["Erf"] == vit["Softmax"] == 3
    groups = [
        attribute.i
        for node in onnx.load(HERE / "digits_cnn.onnx").graph.node
        for attribute in node.attribute
        if attribute.name == "group"
    ]
    assert max(groups) == 24


def test_data_is_in_range_disjoint_and_small():
    digits = load()
    assert digits.train_x.shape == (256, 1, 8, 8) and digits.test_x.shape == (400, 1, 8, 8)
    assert digits.train_x.dtype == digits.test_x.dtype == np.float32
    assert digits.train_x.min() == digits.test_x.min() == 0
    assert digits.train_x.max() == digits.test_x.max() == 1
    assert set(digits.train_y) == set(digits.test_y) == set(range(10))
    calibration = {image.tobytes() for image in digits.train_x}
    assert not calibration & {image.tobytes() for image in digits.test_x}
    assert NPZ.stat().st_size < 100_000
