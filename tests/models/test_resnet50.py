import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.zoo.resnet50 import SAMPLE, build


@pytest.fixture(scope="module")
def model():
    return build(size=64, seed=3)


def run(model, x, outputs):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in outputs
        if name not in known
    )
    return ort.InferenceSession(copy.SerializeToString(), options).run(outputs, {"input": x})


def test_it_is_the_published_architecture(model):
    onnx.checker.check_model(model, full_check=True)
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("Conv") == ops.count("BatchNormalization") == 53
    assert ops.count("Add") == 16 and ops.count("Relu") == 49
    trainable = sum(
        int(np.prod(weight.dims))
        for weight in model.graph.initializer
        if not weight.name.endswith((".mean", ".var"))
    )
    assert trainable == 25_557_032
    assert model.opset_import[0].version == 17
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"


def test_batchnorm_statistics_are_those_of_the_sample_in_onnxruntime(model):
    sample = np.random.default_rng(3).standard_normal(SAMPLE, np.float32)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    convs = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    for name, value in zip(convs, run(model, sample, convs), strict=True):
        stem = name.removesuffix(".conv")
        deviation = value.std((0, 2, 3))
        np.testing.assert_allclose(
            weights[f"{stem}.bn.mean"] / deviation, value.mean((0, 2, 3)) / deviation, atol=1e-3
        )
        np.testing.assert_allclose(np.sqrt(weights[f"{stem}.bn.var"]), deviation, rtol=1e-3)


def test_answers_are_finite_and_depend_on_the_input(model):
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    (logits,) = run(model, x, ["logits"])
    assert logits.shape == (2, 1000) and np.isfinite(logits).all()
    assert np.abs(logits).max() < 100
    assert np.abs(logits[0] - logits[1]).max() > 0.1
