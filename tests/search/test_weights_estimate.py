"""What is estimated of rounded weights, beside what each of them does when it is put in."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from harness import model
from onnx import numpy_helper
from planted import WIDTH, tanh_stack

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.encoding import Spec, dequantize
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_forms import put
from qgraph.passes.weight_forms.matmul_nbits import matmul_nbits
from qgraph.passes.weight_only.layers import find_layers
from qgraph.passes.weight_only.solve import Settings
from qgraph.passes.weights.rtn import round_to_nearest
from qgraph.search.weights.data_rounding import data_loss
from qgraph.search.weights.estimate import MOST, family, interpolated, probed
from qgraph.search.weights.inject import output_losses
from qgraph.search.weights.kinds import FLOAT, Kind
from qgraph.search.weights.local import local_losses

FOUR, EIGHT = Kind(4, 64), Kind(8, 128)
KINDS = [FLOAT, EIGHT, FOUR]


def settings(kind):
    return Settings("rtn", Spec(f"uint{kind.bits}", False, axis=0, block=kind.group))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """More layers than are measured one by one, and one that four bits ruin."""
    path = tanh_stack(tmp_path_factory.mktemp("deep"), layers=24, ruined="g11")
    graph = onnx_io.load(path)
    layers, _ = find_layers(graph, exclude=(), head=False, least=4096)
    rng = np.random.default_rng(2)
    samples = [{"t0": rng.normal(size=(64, WIDTH)).astype(np.float32)} for _ in range(3)]
    return path, graph, layers, samples


def rounded(array, kind):
    codes, encoding, _ = round_to_nearest(array, settings(kind).spec)
    return dequantize(codes, encoding)


def brute_force(path, name, kind, samples):
    """Replace one initializer and run both models in onnxruntime."""
    proto = onnx.load(path)
    results = []
    for replaced in (False, True):
        if replaced:
            (tensor,) = [t for t in proto.graph.initializer if t.name == name]
            array = rounded(numpy_helper.to_array(tensor), kind)
            tensor.CopyFrom(numpy_helper.from_array(array, name))
        session = ort.InferenceSession(proto.SerializeToString())
        results.append(np.concatenate([session.run(["y"], feeds)[0] for feeds in samples]))
    exact, got = results
    return float(np.sum((got - exact) ** 2) / np.sum(exact**2))


def test_own_losses_are_those_of_the_layers_results(deep):
    path, graph, layers, samples = deep
    found = local_losses(graph, layers, [KINDS] * 24, settings, samples, Context())
    session = ort.InferenceSession(path)
    proto = onnx.load(path)
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    proto.graph.output.append(onnx.helper.make_tensor_value_info("m11", 1, None))
    session = ort.InferenceSession(proto.SerializeToString())
    x = np.concatenate([session.run(["m11"], feeds)[0] for feeds in samples]).astype(np.float64)
    for place, kind in enumerate(KINDS[1:], 1):
        error = x @ (rounded(arrays["w11"], kind) - arrays["w11"])
        expected = np.sum(error**2) / np.sum((x @ arrays["w11"]) ** 2)
        assert found.losses[11][place] == pytest.approx(expected, rel=1e-3)
    assert found.losses[11][0] == 0 and not found.drafts


def test_injected_losses_are_those_of_the_model_with_the_weight_replaced(deep, tmp_path):
    path, graph, layers, samples = deep
    drafts = {(i, FOUR): rounded(layers[i].matrix(graph), FOUR) for i in (0, 11, 23)}
    told = []
    found = output_losses(graph, layers, drafts, samples, tmp_path, lambda *each: told.append(each))
    for (layer, kind), loss in found.items():
        expected = brute_force(path, f"w{layer}", kind, samples)
        assert loss == pytest.approx(expected, rel=1e-3)
    assert told[-1] == (3, 3) and not list(tmp_path.iterdir())
    assert [v.name for v in graph.inputs] == ["t0"]


def test_estimates_between_are_near_the_truth_and_find_the_ruined_layer(deep, tmp_path):
    path, graph, layers, samples = deep
    kinds, shapes = [KINDS] * 24, [family(graph, layer) for layer in layers]
    assert len(set(shapes)) == 1
    probes = probed(kinds, shapes, 16)
    assert len(probes) <= 16 and {kind for _, kind in probes} == {FOUR}
    found = local_losses(
        graph, layers, kinds, settings, samples, Context(), lambda *each: each in probes
    )
    assert set(found.drafts) == probes
    carried = output_losses(graph, layers, found.drafts, samples, tmp_path)
    output, measured = interpolated(kinds, shapes, found.losses, carried)
    assert sum(bool(each[2]) for each in measured) == len(probes) < 24
    for layer in range(24):
        for place in (1, 2):
            expected = brute_force(path, f"w{layer}", kinds[layer][place], samples)
            assert 0.4 < output[layer][place] / expected < 2.5
    assert np.argmax([each[2] for each in output]) == 11


def test_few_layers_are_measured_in_every_way_and_kinds_of_layers_apart():
    few = [KINDS] * 4
    assert probed(few, [(128, 128)] * 4) == {(i, kind) for i in range(4) for kind in KINDS[1:]}
    shapes = [(128, 128), (128, 256)] * 20
    assert len(probed([KINDS] * 400, shapes * 10)) <= MOST
    chosen = sorted(layer for layer, _ in probed([KINDS] * 40, shapes, 12))
    for odd in (0, 1):
        own = [layer for layer in chosen if layer % 2 == odd]
        assert len(own) == 6 and {own[0], own[-1]} == {odd, 38 + odd}
        assert own[1] - own[0] < own[3] - own[2]
    # A gain of 10 in one family, 1 in the other, whatever stands between.
    local = [np.array([0.0, 0.01, 0.1])] * 40
    carried = {(layer, FOUR): 1.0 if layer % 2 else 0.1 for layer in chosen}
    output, _ = interpolated([KINDS] * 40, shapes, local, carried)
    assert [round(each[1], 6) for each in output] == [0.01, 0.1] * 20
    # Layers that must stay in float are not injected.
    fixed = [[FLOAT]] * 20 + [KINDS] * 20
    assert min(layer for layer, _ in probed(fixed, shapes)) >= 20


@pytest.mark.parametrize("block", [32, 64])
def test_what_rounding_data_loses_is_what_the_kernel_loses(block):
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(64, 128)) * np.exp(rng.normal(size=128))).astype(np.float32)
    weight = rng.normal(0, 0.1, (128, 96)).astype(np.float32)
    results = []
    for level in (0, 4):
        proto = model(
            "agraph (float[N, 128] x) => (float[N, 96] y) { y = MatMul (x, w) }", {"w": weight}
        )
        graph = onnx_io.load(proto)
        codes, encoding, loss = round_to_nearest(weight, settings(Kind(4, block)).spec)
        (node,) = graph.nodes("MatMul")
        quantized = QuantizedWeight(codes, encoding, loss)
        put(graph, node, matmul_nbits(graph, node, quantized, accuracy_level=level))
        session = ort.InferenceSession(onnx_io.to_proto(graph).SerializeToString())
        results.append(session.run(None, {"x": x})[0])
    expected = np.sum((results[1] - results[0]) ** 2) / np.sum(results[0] ** 2)
    assert data_loss(x, rounded(weight, Kind(4, block)), block) == pytest.approx(expected, rel=0.3)
    assert data_loss(np.zeros_like(x), weight, block) == 0
