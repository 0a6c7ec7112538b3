"""Precision fp8 for targets that take Q/DQ: what is in float8, what in fp16, and engines of it."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from harness import model, run_reference

import qgraph
from models.digits.data import load as load_digits
from qgraph import onnx_io
from qgraph.artifact import MODEL
from qgraph.context import Context
from qgraph.errors import DataError, UsageError
from qgraph.facts import Plan
from qgraph.flow import exact_passes, quantizing_passes
from qgraph.passes.plan import PlanQuantization
from qgraph.pipeline import Pipeline
from qgraph.runtime.tensorrt.library import load_library
from qgraph.target import target

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
DIGITS = Path(__file__).resolve().parents[3] / "models" / "digits"
FLOAT8, HALF = onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT16


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", "off")


def rand(*shape, seed=0, size=0.3):
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


ATTENTION = """g (float[2,20,32] x) => (float[2,20,32] y) {
    n = LayerNormalization(x, one, b)
    [q] q = MatMul(n, wq)  [k] k = MatMul(n, wk)  [v] v = MatMul(n, wv)
    qr = Reshape(q, heads)  kr = Reshape(k, heads)  vr = Reshape(v, heads)
    qt = Transpose <perm = [0, 2, 1, 3]> (qr)
    kt = Transpose <perm = [0, 2, 3, 1]> (kr)
    vt = Transpose <perm = [0, 2, 1, 3]> (vr)
    [scores] s = MatMul(qt, kt)  p = Softmax(s)  [context] o = MatMul(p, vt)
    ot = Transpose <perm = [0, 2, 1, 3]> (o)  j = Reshape(ot, joined)
    [out] m = MatMul(j, wo)  y = Add(m, x)
}"""
ATTENTION_ARRAYS = {
    **{f"w{name}": rand(32, 32, seed=ord(name), size=0.1) for name in "qkvo"},
    "one": np.ones(32, np.float32),
    "b": rand(32),
    "heads": np.array([2, 20, 2, 16]),
    "joined": np.array([2, 20, 32]),
}
CONVOLUTIONS = """g (float[1,3,8,8] x) => (float[1,32,8,8] y) {
    [first] a = Conv(x, w3)  ar = Relu(a)
    [dense] c = Conv(ar, w16)  cr = Relu(c)
    [depthwise] d = Conv <group = 32, pads = [1,1,1,1]> (cr, wd)
    [last] e = Conv(d, w32)  y = Add(e, cr)
}"""
CONVOLUTION_ARRAYS = {
    "w3": rand(16, 3, 1, 1),
    "w16": rand(32, 16, 1, 1),
    "wd": rand(32, 1, 3, 3),
    "w32": rand(32, 32, 1, 1),
}
CASES = {"attention": (ATTENTION, ATTENTION_ARRAYS), "convs": (CONVOLUTIONS, CONVOLUTION_ARRAYS)}


def data(proto, count=6):
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": rand(*shape, seed=seed, size=1.0)} for seed in range(count)]


def lowered(name):
    return written(model(*CASES[name]))


def written(proto):
    graph = onnx_io.load(proto)
    context = Context(target=target("tensorrt"), data=data(proto))
    options = {"calibrate": {"observer": "minmax"}}
    passes = [*exact_passes(options), *quantizing_passes("fp8", options, context.target)]
    Pipeline(passes).run(graph, context)
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out, full_check=True)
    return proto, out, graph


def entries(graph):
    return {name: kind for name, (kind, _) in graph.facts.plan.nodes.items()}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_float_model(name):
    proto, out, _ = lowered(name)
    (feeds,) = data(proto, 1)
    want, got = run_reference(proto, feeds)["y"], run_reference(out, feeds)["y"]
    noise = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 1e-3 < noise < 0.06


def test_all_products_of_attention_are_in_float8():
    _, out, graph = lowered("attention")
    found = entries(graph)
    assert {found[name] for name in ("q", "k", "v", "scores", "context", "out")} == {"fp8"}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in out.graph.initializer}
    pairs = [node for node in out.graph.node if node.op_type == "QuantizeLinear"]
    # x, q, k, v, the probabilities and the joined heads; q, k and v share what they read.
    assert len(pairs) == 6
    softmax = next(node.output[0] for node in out.graph.node if node.op_type == "Softmax")
    [probabilities] = [node for node in pairs if node.input[0] == softmax]
    assert arrays[probabilities.input[1]] == np.float16(1 / 448)
    for node in out.graph.node:
        if node.op_type.endswith("quantizeLinear") or node in pairs:
            assert arrays[node.input[2]].dtype == onnx.helper.tensor_dtype_to_np_dtype(FLOAT8)
            assert not arrays[node.input[2]].astype(np.float32).any()
            assert arrays[node.input[1]].dtype == np.float16


def test_few_channels_shortcuts_and_depthwise_stay_in_fp16():
    _, out, graph = lowered("convs")
    found = entries(graph)
    assert [found[n] for n in ("first", "dense", "depthwise", "last")] == [
        "fp16",
        "fp8",
        "fp16",
        "fp8",
    ]
    assert "fewer than 16 channels" in graph.facts.plan.nodes["depthwise"][1]
    assert sum(node.op_type == "QuantizeLinear" for node in out.graph.node) == 2
    kinds = {t.name: t.data_type for t in out.graph.initializer}
    assert set(kinds.values()) == {HALF, FLOAT8}
    assert set(graph.facts.plan.activations) == {"ar", "d"}


def test_int8_is_planned_as_before():
    graph = onnx_io.load(model(*CASES["convs"]))
    Pipeline([PlanQuantization()]).run(graph, Context(target=target("tensorrt")))
    assert isinstance(graph.facts.plan, Plan)
    assert {graph.facts.plan.nodes[n][0] for n in ("first", "dense", "depthwise", "last")} == {
        "int8"
    }


@pytest.mark.parametrize("observer", ["auto", "mse", "entropy"])
def test_observers_of_integers_are_refused(observer, tmp_path):
    proto = model(*CASES["convs"])
    with pytest.raises(UsageError, match=f"observer={observer} finds ranges for integers only"):
        qgraph.compile(
            proto,
            output=tmp_path / "o",
            target="tensorrt",
            precision="fp8",
            data=data(proto),
            settings=[f"calibrate.observer={observer}"],
        )


def test_which_capabilities_have_it():
    have = {name for name in target("gpu-nvidia").variants}
    found = {v for v in have if "fp8" in target(f"gpu-nvidia:{v}").precisions}
    assert found == {"8.9", "9.0", "10.0", "12.0"}
    proto = model(*CASES["convs"])
    with pytest.raises(UsageError, match="'gpu-nvidia:8.6' has no fp8"):
        qgraph.compile(proto, target="gpu-nvidia:8.6", precision="fp8", output="unused")
    with pytest.raises(DataError, match="fp8 for target 'tensorrt' needs calibration data"):
        qgraph.compile(proto, target="tensorrt", precision="fp8", output="unused")


# -- engines ---------------------------------------------------------------------------------------


def build(proto, capability):
    """Build for one compute capability; return what the builder complains of."""
    library = load_library()
    trt, log = library.module, library.logger()
    builder = trt.Builder(log)
    network = builder.create_network(library.network_flags())
    parser = trt.OnnxParser(network, log)
    assert parser.parse(proto.SerializeToString()), log.errors
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    engine = builder.build_serialized_network(network, config)
    return "" if engine is not None else " ".join(log.errors)


@needs_rtx
@pytest.mark.parametrize("capability", ["SM89", "SM120"])
@pytest.mark.parametrize("name", CASES)
def test_engines_are_built(name, capability):
    _, out, _ = lowered(name)
    assert build(out, capability) == ""


@needs_rtx
def test_channels_of_tiny_weights_are_built():
    """float16 has no number for what they reach, by 448; the builder refuses scales of 0."""
    sizes = np.where(np.arange(32) % 2, 1, 1e-6).astype(np.float32).reshape(32, 1, 1, 1)
    tiny = {"w16": CONVOLUTION_ARRAYS["w16"] * sizes}
    proto = model(CONVOLUTIONS, CONVOLUTION_ARRAYS | tiny)
    _, out, _ = written(proto)
    scales = [onnx.numpy_helper.to_array(t) for t in out.graph.initializer if "scale" in t.name]
    assert min(scale.min() for scale in scales) > 0
    assert build(out, "SM89") == ""


@needs_rtx
def test_older_gpus_are_refused_for_the_type():
    _, out, _ = lowered("convs")
    assert "fp8" in build(out, "SM86")


@needs_rtx
@pytest.mark.parametrize(("name", "count"), [("digits_vit", 18), ("digits_cnn", 5)])
def test_digits_are_built_and_answer_correctly(name, count, tmp_path):
    digits = load_digits()
    artifact = qgraph.compile(
        str(DIGITS / f"{name}.onnx"),
        output=tmp_path / "out",
        target="gpu-nvidia:8.9",
        precision="fp8",
        data={"image": digits.train_x[:60]},
    )
    manifest = artifact.manifest
    assert manifest.nodes["fp8"] == count and not manifest.warnings
    assert "built an engine" in manifest.timings[0].reason
    proto = onnx.load(artifact.path / MODEL)
    [logits] = run_reference(proto, {"image": digits.test_x}).values()
    assert (logits.argmax(axis=1) == digits.test_y).mean() > 0.97
