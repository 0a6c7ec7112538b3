"""Targets as data, and compiling for those without an engine on this machine."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from harness import model, ops

import qgraph
from models.digits.data import load as load_digits
from qgraph import onnx_io
from qgraph.encoding import Spec
from qgraph.errors import DataError, EngineError, ModelError, UsageError
from qgraph.passes import all_passes
from qgraph.recipe import load_recipe, with_settings
from qgraph.runtime import backends
from qgraph.target import PRECISIONS, target, targets
from qgraph.target_fit import check_shapes, too_large

DIGITS = Path(__file__).resolve().parent.parent / "models" / "digits"
EACH = pytest.mark.parametrize("name", list(targets()))


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


NET = """net (float[1,3,8,8] x) => (float[1,5,8,8] y) {
    [one] a = Conv(x, w, b)  [relu] r = Relu(a)  [two] c = Conv(r, v)  [end] y = Sigmoid(c)
}"""
WEIGHTS = {"w": rand(16, 3, 1, 1), "b": rand(16), "v": rand(5, 16, 1, 1, seed=1)}
DATA = [{"x": rand(1, 3, 8, 8, seed=i)} for i in range(20)]


def compile_net(tmp_path, name, **options):
    options = {"precision": "int8", "data": DATA, "output": tmp_path / "out"} | options
    return qgraph.compile(model(NET, WEIGHTS), target=name, **options)


# -- the data --------------------------------------------------------------------------------------


def test_the_targets():
    assert list(targets()) == [
        "cpu",
        "cpu-x86",
        "cuda",
        "tensorrt",
        "tensorrt-ep",
        "gpu-nvidia",
        "mobile-arm",
        "edge-tpu",
        "npu",
    ]


@EACH
def test_each_is_complete(name):
    each = target(name)
    assert each.summary and set(each.precisions) <= set(PRECISIONS)
    assert each.default_precision in each.precisions
    assert set(each.engines) <= set(backends())
    assert bool(each.engines) != bool(each.no_engine)
    assert all(rule.source for rule in each.rules)
    assert set(Counter(rule.op for rule in each.rules).values()) <= {1}
    assert not {rule.op for rule in each.rules} & set(each.left_float)
    for op in [*(rule.op for rule in each.rules), *each.left_float, *each.absorbs, *each.fused]:
        assert onnx.defs.has(op), op
    assert each.weight.symmetric and each.weight.narrow
    for settings in each.settings.values():
        passes = with_settings(load_recipe("default"), list(settings)).passes
        for key in passes:
            all_passes()[key].with_options(passes[key])


def test_cpu_and_tensorrt_are_opposites():
    cpu, tensorrt = target("cpu"), target("tensorrt")
    assert cpu.activation == Spec("uint8", symmetric=False) and cpu.placement == "nodes"
    assert tensorrt.activation == Spec("int8", symmetric=True) and tensorrt.placement == "units"
    assert {r.role(2) for r in cpu.rules if r.op == "Conv"} == {"bias"}
    assert {r.role(2) for r in tensorrt.rules if r.op == "Conv"} == {"other"}
    assert cpu.absorbs and not tensorrt.absorbs


def test_cpu_x86_is_cpu():
    cpu, other = target("cpu"), target("cpu-x86")
    assert dataclasses.replace(other, name=cpu.name, summary=cpu.summary) == cpu


@pytest.mark.parametrize(
    ("capability", "has", "lacks"),
    [
        ("7.5", {"int8", "fp16"}, {"bf16", "fp8", "int4"}),
        ("8.0", {"int8", "bf16", "int4"}, {"fp8"}),
        ("8.9", {"int8", "fp8", "int4"}, {"fp4"}),
        ("9.0", {"fp8"}, {"fp4"}),
        ("12.0", {"fp8", "fp4"}, set()),
    ],
)
def test_what_a_compute_capability_has(capability, has, lacks):
    formats = set(target("gpu-nvidia").variants[capability])
    assert has <= formats and not lacks & formats
    variant = target(f"gpu-nvidia:{capability}")
    assert variant.name == f"gpu-nvidia:{capability}"
    # Only what qgraph compiles to is promised.
    assert variant.precisions == tuple(
        p for p in target("tensorrt").precisions if p in formats
    ) and {"fp32", "fp16", "int8"} <= set(variant.precisions)
    assert variant.rules == target("tensorrt").rules


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorr", "did you mean 'tensorrt'"),
        ("gpu-nvidia:8.8", "unknown variant of gpu-nvidia '8.8'; did you mean '8."),
        ("gpu-nvidia:7.0", "unknown variant of gpu-nvidia '7.0'"),
        ("cpu:avx2", "target 'cpu' has no variants; write cpu"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(UsageError, match="unknown|variants") as caught:
        target(name)
    assert words in str(caught.value)


def test_activations_with_a_scale_a_channel_are_refused():
    with pytest.raises(UsageError, match="a scale for each channel of an activation"):
        dataclasses.replace(target("cpu"), activation=Spec("uint8", symmetric=False, axis=1))
    with pytest.raises(UsageError, match="one scale a tensor"):
        dataclasses.replace(target("npu"), activations={"w8a16": Spec("int16", axis=1)})


@pytest.mark.parametrize(
    ("rows", "group", "block"),
    [(256, 128, 128), (192, 128, 64), (96, 128, None), (160, 64, None), (100, 0, 0)],
)
def test_group_lengths_where_only_whole_ones_are_taken(rows, group, block):
    rules = target("tensorrt").weight_only
    assert rules.whole_blocks and rules.block_for(rows, group) == block
    assert target("cpu").weight_only.block_for(rows, group) == group


# -- what does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("N,3,8,8", "input x float32 [N, 3, 8, 8]: target 'edge-tpu' takes fixed shapes only"),
        ("2,3,8,8", "input x float32 [2, 3, 8, 8]: target 'edge-tpu' takes batches of 1 only"),
    ],
)
def test_shapes_that_a_target_does_not_take(shape, words, tmp_path):
    proto = model(f"g (float[{shape}] x) => (float[a,b,c,d] y) {{ y = Relu(x) }}")
    with pytest.raises(ModelError) as caught:
        qgraph.compile(proto, target="edge-tpu", data=DATA, output=tmp_path / "out")
    assert words in str(caught.value) and not (tmp_path / "out").exists()
    check_shapes(onnx_io.load(proto), target("cpu"))


def test_a_vector_has_no_batch_axis():
    proto = model("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    check_shapes(onnx_io.load(proto), target("edge-tpu"))


def test_memory():
    edge = target("edge-tpu")
    assert too_large(edge, 8 << 20) is None and too_large(target("cpu"), 1 << 40) is None
    assert "target edge-tpu has" in str(too_large(edge, (8 << 20) + 1))


def test_a_model_beyond_the_memory_is_warned_of(tmp_path, monkeypatch):
    small = dataclasses.replace(target("mobile-arm"), memory=100)
    monkeypatch.setattr("qgraph.job.named_target", lambda name: small)
    artifact = compile_net(tmp_path, "mobile-arm")
    assert any("expect it to be slow" in line for line in artifact.manifest.warnings)


def test_integers_need_data_where_there_is_nothing_else(tmp_path):
    for name, precision in (("tensorrt", "int8"), ("npu", "w8a16")):
        with pytest.raises(DataError, match=f"{precision} for target '{name}' needs calibration"):
            compile_net(tmp_path, name, precision=precision, data=None)


def test_precisions_that_a_target_lacks(tmp_path):
    for name, precision in (("tensorrt", "bf16"), ("edge-tpu", "fp32"), ("cpu", "w8a16")):
        with pytest.raises(UsageError, match=f"target '{name}' has no {precision}"):
            compile_net(tmp_path, name, precision=precision)


# -- compiling for them ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobile-arm", "edge-tpu", "npu"])
def test_without_an_engine_nothing_is_timed_and_the_artifact_is_verified(name, tmp_path):
    artifact = compile_net(tmp_path, name)
    manifest = artifact.manifest
    assert manifest.engine is None and manifest.timings == [] and manifest.target == name
    assert manifest.not_timed.startswith(f"no engine of {name} runs here: ")
    assert manifest.accuracy.passed and manifest.accuracy.data == "held out"
    assert manifest.accuracy.outputs[0]["sqnr_db"] > 25
    assert ops(onnx.load(artifact.model_path)).count("QuantizeLinear") >= 2
    with pytest.raises(EngineError, match="no engine can run it here"):
        artifact.open()


def test_tensorrt_without_tensorrt(tmp_path, monkeypatch):
    monkeypatch.setattr("qgraph.runtime.tensorrt.library.MODULES", {"no_such_module": "TensorRT"})
    artifact = compile_net(tmp_path, "gpu-nvidia:8.9")
    manifest = artifact.manifest
    assert manifest.target == "gpu-nvidia:8.9" and manifest.engine is None
    assert "no_such_module" in manifest.not_timed and "pip install" in manifest.not_timed
    assert [t.candidate for t in manifest.timings] == ["tensorrt int8"]
    assert manifest.timings[0].p50_ms is None and manifest.timings[0].reason
    explained = json.loads((artifact.path / "explain.json").read_text())
    assert explained["nodes"]["relu"][0] == "fused"
    assert explained["quantized"]["r"] == ["int8", "read by Conv two"]
    assert explained["float"]["a"] == "inside the kernel of one"


@pytest.mark.parametrize(
    ("name", "precision", "dtype", "symmetric"),
    [
        ("mobile-arm", "int8", np.int8, False),
        ("edge-tpu", "int8", np.int8, True),
        ("npu", "int8", np.uint8, False),
        ("npu", "w8a16", np.uint16, False),
    ],
)
def test_activations_have_the_type_that_the_target_wants(
    name, precision, dtype, symmetric, tmp_path
):
    artifact = compile_net(tmp_path, name, precision=precision)
    proto = onnx.load(artifact.model_path)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    zeros = [arrays[n.input[2]] for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    assert zeros and all(zero.dtype == dtype for zero in zeros)
    assert symmetric == (not any(zero.any() for zero in zeros))
    weights = [
        arrays[n.input[0]]
        for n in proto.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in arrays
    ]
    assert {w.dtype for w in weights} == {np.dtype(np.int8), np.dtype(np.int32)}
    assert artifact.manifest.precision == precision
    assert set(artifact.manifest.nodes) <= {precision, "int8", dtype(0).dtype.name, "float"}


def test_depthwise_convolutions_stay_in_int8_on_phones(tmp_path):
    text = """net (float[1,4,8,8] x) => (float[1,4,8,8] y) {
        [one] a = Conv<group = 4>(x, w)  [two] c = Conv(a, v)  y = Sigmoid(c)
    }"""
    proto = model(text, {"w": rand(4, 1, 1, 1), "v": rand(4, 4, 1, 1)})
    data = [{"x": rand(1, 4, 8, 8, seed=i)} for i in range(8)]
    artifact = qgraph.compile(
        proto, target="mobile-arm", precision="int8", data=data, output=tmp_path / "out"
    )
    nodes = json.loads((artifact.path / "explain.json").read_text())["nodes"]
    assert nodes["one"][0] == nodes["two"][0] == "int8"


def test_transposed_convolutions_run_in_integers_on_devices(tmp_path):
    text = """net (float[1,4,4,4] x) => (float[1,6,8,8] y) {
        a = ConvTranspose<strides = [2,2]>(x, w, b)  y = Sigmoid(a)
    }"""
    proto = model(text, {"w": rand(4, 6, 2, 2), "b": rand(6)})
    data = [{"x": rand(1, 4, 4, 4, seed=i)} for i in range(8)]
    artifact = qgraph.compile(
        proto, target="npu", precision="int8", data=data, output=tmp_path / "out"
    )
    assert artifact.manifest.nodes == {"int8": 1, "float": 1}
    assert artifact.manifest.accuracy.outputs[0]["sqnr_db"] > 30


def test_16_bit_activations_leave_the_error_of_the_weights(tmp_path):
    digits = load_digits()
    found = {}
    for precision in ("int8", "w8a16"):
        artifact = qgraph.compile(
            DIGITS / "digits_cnn.onnx",
            target="npu",
            precision=precision,
            data={"image": digits.train_x[:100]},
            output=tmp_path / precision,
        )
        found[precision] = artifact.manifest.accuracy.outputs[0]["sqnr_db"]
    assert found["w8a16"] > found["int8"] + 4


def test_the_users_settings_win_over_the_targets(tmp_path):
    artifact = compile_net(
        tmp_path, "npu", precision="w8a16", settings=["calibrate.observer=mean-minmax"]
    )
    stages = {stage.name: stage.options for stage in artifact.manifest.stages}
    assert stages["calibrate"]["observer"] == "mean-minmax"
    artifact = compile_net(tmp_path, "npu", precision="w8a16")
    stages = {stage.name: stage.options for stage in artifact.manifest.stages}
    assert stages["calibrate"]["observer"] == "minmax"
    assert stages["plan"]["precision"] == "w8a16"


@pytest.mark.parametrize("name", targets())
def test_every_form_of_weights_in_few_bits_exists(name):
    from qgraph.passes.weight_forms import FORMS

    known = {reference.partition(":")[2] for reference in FORMS}
    for forms in target(name).weight_only.forms.values():
        assert forms and set(forms) <= known
