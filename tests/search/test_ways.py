"""Units in half precision, in float8, and by weights in few bits, beside integers and floats."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from harness import model
from planted import CNN, cancelling, outlier, tanh_stack

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.passes.half import Half
from qgraph.runtime import backend
from qgraph.runtime.reference import open_reference
from qgraph.search import compile_within
from qgraph.search.emulate import emulate
from qgraph.search.ways import Way, way, weight_way

no_gpu = pytest.mark.skipif(
    backend("onnxruntime-cuda").unavailable() is None, reason="a GPU is here"
)
ROUNDED = ("weight_only.method=rtn", "weight_only.clip=none")


@pytest.fixture(scope="module")
def rows():
    return {"t0": np.random.default_rng(1).normal(size=(120, 2048)).astype(np.float32)}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return cancelling(tmp_path_factory.mktemp("cancelling"))


def search(network, rows, folder, **options):
    given = {"max_drop": "20%", "target": "cuda", "recipe": "fast", "settings": ROUNDED, **options}
    artifact = compile_within(network, data=rows, output=folder / "a", **given)
    units = {unit["name"]: unit for unit in artifact.read_json("search.json")["units"]}
    return artifact, units


def losses(unit):
    return {each["way"]: each["loss"] for each in unit["ways"]}


@pytest.mark.parametrize(
    "one", [Way("fp32"), Way("fp16", "fp16"), Way("int8"), Way("int8", "fp16"), Way("fp8", "fp16"),
            weight_way(4, 32), weight_way(8, 128, "fp16")], ids=lambda one: one.name,
)  # fmt: skip
def test_names_say_which_way_it_is(one):
    assert way(one.name) == one
    assert one.fits(one.name) and one.fits(one.unit) and not one.fits("int3")


def test_lines_ask_for_any_group_or_one():
    assert weight_way(4, 32).fits("int4") and weight_way(4, 32).fits("int4:32")
    assert not weight_way(4, 32).fits("int4:64") and not weight_way(8, 32).fits("int8")
    assert weight_way(8, 32).fits("int8-weights") and weight_way(8, 32).weight == (8, 32)


# -- half precision on an engine without it --------------------------------------------------------


def halved(text, dtype, tmp_path, **constants):
    graph = onnx_io.load(_saved(text, tmp_path, constants))
    Half(dtype=dtype).run(graph, Context())
    assert emulate(graph)
    onnx_io.save(graph, tmp_path / "emulated.onnx")
    return tmp_path / "emulated.onnx"


def _saved(text, tmp_path, constants):
    onnx.save(model(text, constants), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


TEXT = """agraph (float[N, 8] x) => (float[N, 8] y) {
    a = Add (x, far)
    b = Reshape (a, shape)
    c = Sub (b, far)
    y = Mul (c, third)
}"""
CONSTANTS = {"far": np.float32(1000), "third": np.float32(1 / 3), "shape": np.array([-1, 8])}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_operator_rounds_as_the_type_does(dtype, tmp_path):
    import ml_dtypes

    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    with backend("onnxruntime-cpu").open(halved(TEXT, dtype, tmp_path, **CONSTANTS)) as session:
        got = session.run({"x": x})["y"]

    def rounded(array):
        return array.astype(kind).astype(np.float32)

    far, third = rounded(np.float32(1000)), rounded(np.float32(1 / 3))
    want = rounded(rounded(rounded(rounded(x) + far) - far) * third)
    np.testing.assert_array_equal(got, want)
    assert np.abs(want - x / 3).max() > 0.05, "nothing was lost: the test tests nothing"


def test_what_has_no_half_in_it_is_left_alone(tmp_path):
    graph = onnx_io.load(_saved(TEXT, tmp_path, CONSTANTS))
    before = Counter(node.op_type for node in graph.nodes())
    assert not emulate(graph)
    assert Counter(node.op_type for node in graph.nodes()) == before


# -- searches --------------------------------------------------------------------------------------


@no_gpu
def test_the_layer_that_half_precision_ruins_stays_in_float32(network, rows, tmp_path):
    everything = ["g0=fp16", "g1=fp16", "g3=fp16"]
    artifact, units = search(
        network, rows, tmp_path, assign=[*everything, "g2=fp16", "y=fp32"], max_drop="100%"
    )
    whole = {row["name"]: row for row in artifact.read_json("search.json")["whole"]}
    assert whole["fp16"]["drop"] > 0.5, "float16 was to ruin the model"
    assert losses(units["g2"])["fp16"] > 0.1
    artifact, units = search(
        network, rows, tmp_path / "b", assign=[*everything, "g2=fp32", "y=fp32", "low=fp32"]
    )
    assert artifact.manifest.promise.holds and artifact.manifest.precision == "fp16"
    assert artifact.manifest.promise.relative_time < 0.9
    assert {name for name, unit in units.items() if unit["precision"] == "fp32"} == {
        "g2",
        "y",
        "low",
    }
    graph = onnx.shape_inference.infer_shapes(onnx.load(artifact.model_path)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert [kinds[f"g{i}"] for i in range(4)] == [half, half, full, half]
    assert kinds["far2"] == full
    # What the sweep said of single layers adds up to what the model gets wrong.
    emulated = onnx_io.load(artifact.model_path)
    assert emulate(emulated)
    onnx_io.save(emulated, tmp_path / "emulated.onnx")
    with open_reference(tmp_path / "emulated.onnx") as ours, open_reference(network) as theirs:
        got, exact = (next(iter(each.run(rows).values())) for each in (ours, theirs))
    predicted = sum(losses(units[f"g{i}"])["fp16"] for i in (0, 1, 3))
    found = np.square(got - exact).sum() / np.square(exact).sum()
    # Neighbours in half share the rounding of the value between them, which counts for both.
    assert predicted / 4 < found < 1.5 * predicted
    # One Cast where half begins and one where it ends, twice.
    assert Counter(node.op_type for node in graph.node)["Cast"] == 4


@no_gpu
def test_a_search_leaves_it_in_float32_of_its_own(network, rows, tmp_path):
    artifact, units = search(network, rows, tmp_path)
    promise = artifact.manifest.promise
    assert promise.holds and promise.relative_time < 0.95
    assert way(units["g2"]["precision"]).rest == "fp32"
    assert losses(units["g2"])["fp16"] > 1000 * losses(units["g1"])["fp16"]
    assert losses(units["g1"])["int8-weights:128"] < losses(units["g1"])["int4:32"]
    reference = onnx_io.load(artifact.model_path)
    assert {"MatMulNBits"} <= {node.op_type for node in reference.nodes()}


@no_gpu
def test_a_product_in_float8_among_float16(network, rows, tmp_path):
    assign = ["g0=fp8", "g1=fp16", "g2=fp32", "g3=fp16", "y=fp32", "low=fp32"]
    artifact, units = search(
        network, rows, tmp_path, assign=assign, max_drop="100%", optimize="size"
    )
    assert units["g0"]["precision"] == "fp8+fp16" and artifact.manifest.precision == "fp8"
    operators = {node.name: node.op_type for node in onnx.load(artifact.model_path).graph.node}
    assert [operators[f"g{i}"] for i in range(4)] == ["GemmFloat8", *["MatMul"] * 3]
    # 4 binary digits, in both operands.
    assert 1e-4 < losses(units["g0"])["fp8+fp16"] < 0.1


@no_gpu
def test_it_is_said_where_there_is_nothing_to_choose(searched, tmp_path, invoke):
    """Kernels this small take their start in any precision."""
    np.savez(tmp_path / "d.npz", **searched)
    result = invoke(
        "compile", CNN, "--target", "cuda", "--data", tmp_path / "d.npz", "--max-drop", "5%",
        "--metric", "top1", "--recipe", "fast", "--pareto", "-o", tmp_path / "a",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    warnings = json.loads((tmp_path / "a" / "manifest.json").read_text())["warnings"]
    assert any("there is no front" in line for line in warnings)


def test_codes_and_few_bits_stand_side_by_side_on_a_cpu(tmp_path):
    network = tanh_stack(tmp_path)
    rows = {"t0": np.random.default_rng(1).normal(size=(60, 128)).astype(np.float32)}
    assign = ["g0=int8", "g1=int4:32", "g2=fp32", "g3=int8-weights", "y=fp32"]
    artifact, units = search(
        network, rows, tmp_path, target="cpu", optimize="size", assign=assign, max_drop="100%"
    )
    got = {name: unit["precision"] for name, unit in units.items() if name.startswith("g")}
    kinds = {"g0": "int8", "g1": "int4:32", "g2": "fp32"}
    assert {name: got[name].partition("+")[0] for name in kinds} == kinds
    assert got["g3"].startswith("int8-weights:")
    proto = onnx.load(artifact.model_path)
    made = {out: node for node in proto.graph.node for out in node.output}
    operators = {node.name: node.op_type for node in proto.graph.node}
    assert operators["g1"] == "MatMulNBits" and operators["g2"] == "MatMul"
    first = next(node for node in proto.graph.node if node.name == "g0")
    assert {made[name].op_type for name in first.input} == {"DequantizeLinear"}
    with artifact.open() as session, open_reference(network) as exact:
        ours, theirs = (next(iter(each.run(rows).values())) for each in (session, exact))
    assert np.square(ours - theirs).sum() < 0.02 * np.square(theirs).sum()


def test_scales_of_run_time_and_fewer_bits_are_ways_too(tmp_path):
    network = tanh_stack(tmp_path)
    rows = {"t0": np.random.default_rng(1).normal(size=(60, 128)).astype(np.float32)}
    wanted = {"g0": "int8-dynamic", "g1": "int4:32", "g2": "fp32", "g3": "int2:32"}
    assign = [*(f"{name}={kind}" for name, kind in wanted.items()), "y=fp32"]
    artifact, units = search(
        network, rows, tmp_path, target="cpu", optimize="size", assign=assign, max_drop="100%"
    )
    got = {name: units[name]["precision"].partition("+")[0] for name in wanted}
    assert got == wanted
    nodes = {node.name: node for node in onnx.load(artifact.model_path).graph.node}
    operators = {node.op_type for node in nodes.values()}
    assert {
        "DynamicQuantizeLinear",
        "MatMulInteger",
    } <= operators and "QuantizeLinear" not in operators
    bits = {name: {a.name: a.i for a in nodes[name].attribute}["bits"] for name in ("g1", "g3")}
    assert bits == {"g1": 4, "g3": 2} and nodes["g2"].op_type == "MatMul"


def test_what_run_time_scales_lose_is_what_the_sweep_says(tmp_path):
    network = tanh_stack(tmp_path)
    # Samples of very different sizes: each has its own scale.
    x = np.random.default_rng(1).normal(size=(60, 128)) * np.logspace(-3, 0, 60)[:, None]
    rows = {"t0": x.astype(np.float32)}
    assign = ["g0=int8-dynamic", "*=fp32"]
    artifact, units = search(
        network, rows, tmp_path, target="cpu", assign=[*reversed(assign)], max_drop="100%",
        optimize="size",
    )  # fmt: skip
    mine = units["g0"]["precision"]
    assert mine.startswith("int8-dynamic") and units["g1"]["precision"] == "fp32"
    with artifact.open() as session, open_reference(network) as exact:
        pairs = [[next(iter(s.run({"t0": r[None]}).values())) for s in (session, exact)]
                 for r in rows["t0"]]  # fmt: skip
    ours, theirs = (np.concatenate(each) for each in zip(*pairs, strict=True))
    found = np.square(ours - theirs).sum() / np.square(theirs).sum()
    assert losses(units["g0"])[mine] == pytest.approx(found, rel=0.3)


def test_tensorrt_builds_codes_with_floats_in_half(searched, tmp_path):
    artifact = compile_within(
        CNN, data=searched, metric="top1", max_drop="100%", optimize="size", target="tensorrt",
        recipe="fast", assign=["*=int8+fp16"], output=tmp_path / "a",
    )  # fmt: skip
    units = artifact.read_json("search.json")["units"]
    assert {u["precision"] for u in units if u["op"] == "Conv"} == {"int8+fp16"}
    proto = onnx.shape_inference.infer_shapes(onnx.load(artifact.model_path))
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    results = [n.output[0] for n in proto.graph.node if n.op_type in ("Conv", "DequantizeLinear")]
    assert {kinds[name] for name in results} == {onnx.TensorProto.FLOAT16}
    _build_engine(artifact)


def _build_engine(artifact):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 on PyPI builds without a GPU")
    from qgraph.runtime.builder import BuildRequest
    from qgraph.runtime.tensorrt.backend import TensorRt
    from qgraph.runtime.tensorrt.options import TensorRtOptions

    shapes = ("image:1x1x8x8,1x1x8x8,1x1x8x8",)
    built = TensorRt().build(
        artifact.model_path, BuildRequest(options=TensorRtOptions(shapes=shapes))
    )
    assert built.engine


def test_tensorrt_has_products_in_float8_beside_integers(searched, tmp_path):
    artifact = compile_within(
        CNN, data=searched, metric="top1", max_drop="100%", optimize="size", target="tensorrt",
        recipe="fast", assign=["Conv=int8+fp16", "*features.3*=fp8", "*features.4*=fp8"],
        output=tmp_path / "a",
    )  # fmt: skip
    units = {unit["name"]: unit for unit in artifact.read_json("search.json")["units"]}
    assert artifact.manifest.precision == "int8"
    proto = onnx.shape_inference.infer_shapes(onnx.load(artifact.model_path))
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    made = {out: node for node in proto.graph.node for out in node.output}
    codes = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}
    seen = Counter()
    for node in (node for node in proto.graph.node if node.op_type == "Conv"):
        way_ = units[node.name]["precision"]
        seen[way_] += 1
        if way_ == "fp16":
            continue
        pairs = [made[name] for name in node.input[:2]]
        assert {pair.op_type for pair in pairs} == {"DequantizeLinear"}
        assert {kinds[pair.input[0]] for pair in pairs} == {codes[way_.partition("+")[0]]}
        assert {kinds[pair.output[0]] for pair in pairs} == {onnx.TensorProto.FLOAT16}
    assert seen["fp8+fp16"] == 3 and seen["int8+fp16"] >= 3
    # What the sweep said of each adds up to about what the model gets wrong.
    emulated = onnx_io.load(artifact.model_path)
    assert emulate(emulated)
    onnx_io.save(emulated, tmp_path / "emulated.onnx")
    feeds = {"image": searched["image"]}
    with open_reference(tmp_path / "emulated.onnx") as ours, open_reference(CNN) as theirs:
        got, exact = (next(iter(each.run(feeds).values())) for each in (ours, theirs))
    found = np.square(got - exact).sum() / np.square(exact).sum()
    predicted = sum(losses(unit)[unit["precision"]] for unit in units.values())
    assert predicted / 2 < found < 2 * predicted
    _build_engine(artifact)


# -- activations of 16 bits ------------------------------------------------------------------------

NPU = """name = "an NPU"
bandwidth_gb_s = 0.01
[tflops]
fp32 = 0.001
int8 = 0.02
w8a16 = 0.01
[backends.vendor]
runs = { fp32 = "fp32", int8 = "int8", w8a16 = "w8a16" }
codes = ["int8", "w8a16"]
fused = ["Relu"]
efficiency = 0.5
launch_us = 1
"""


def on_npu(network, data, folder, **options):
    (folder / "npu.toml").write_text(NPU)
    given = {"target": "npu", "device": str(folder / "npu.toml"), "recipe": "fast"} | options
    artifact = compile_within(network, data=data, output=folder / "a", **given)
    return artifact, {unit["name"]: unit for unit in artifact.read_json("search.json")["units"]}


def test_16_bits_stand_among_8_where_it_is_asked_for(searched, tmp_path):
    artifact, units = on_npu(
        CNN, searched, tmp_path, metric="top1", max_drop="100%",
        assign=["*=int8", "*features.1/*=w8a16", "*features.3/*=w8a16"],
    )  # fmt: skip
    proto = onnx.load(artifact.model_path)
    onnx.checker.check_model(proto, full_check=True)
    made = {out: node for node in proto.graph.node for out in node.output}
    known = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    seen = Counter()
    for node in (node for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "Add")):
        kind = units[node.name]["precision"]
        seen[kind] += 1
        data, *others = (made[name] for name in node.input)
        width = {"int8": np.uint8, "w8a16": np.uint16}[kind]
        assert known[data.input[2]].dtype == width
        if node.op_type == "Add":
            assert known[others[0].input[2]].dtype == width
            continue
        weight, bias = others
        assert known[weight.input[0]].dtype == np.int8
        # The accumulator counts in steps of the data's scale by the weight's.
        step = known[data.input[1]] * known[weight.input[1]]
        np.testing.assert_allclose(known[bias.input[1]], step, rtol=1e-6)
    assert seen["w8a16"] == 4 and seen["int8"] >= 5
    feeds = {"image": searched["image"]}
    with open_reference(artifact.model_path) as ours, open_reference(CNN) as theirs:
        got, exact = (next(iter(each.run(feeds).values())) for each in (ours, theirs))
    found = np.square(got - exact).sum() / np.square(exact).sum()
    predicted = sum(losses(unit)[unit["precision"]] for unit in units.values())
    assert predicted / 2 < found < 2 * predicted


def test_16_bits_are_for_what_8_ruin(tmp_path):
    """Codes of 16 bits cost twice the time: what 8 bits do not ruin gets 8."""
    network, rows = outlier(tmp_path)
    minmax = ("calibrate.observer=minmax",)
    artifact, units = on_npu(network, {"x": rows}, tmp_path, max_drop="5%", settings=minmax)
    whole = {row["name"]: row for row in artifact.read_json("search.json")["whole"]}
    assert whole["int8"]["drop"] > 0.2, "8 bits were to ruin the model"
    assert artifact.manifest.promise.holds
    kinds = {name: unit["precision"] for name, unit in units.items() if unit["op"] == "MatMul"}
    assert kinds == {"g0": "int8", "g1": "w8a16", "y": "int8"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("g0=int5", "can't read --assign"),
        ("g0=int4:", "can't read --assign"),
        ("g0=fp16:32", "can't read --assign"),
        ("g0=int8+int8", "can't read --assign"),
        ("h0=int4", "fits no node"),
        ("g0=fp8", "not to be had on this target; choose among fp32"),
        ("g0=int4:48", "not to be had on this target"),
    ],
)
def test_lines_that_ask_for_what_is_not_to_be_had(line, message, tmp_path):
    rows = {"t0": np.random.default_rng(1).normal(size=(60, 128)).astype(np.float32)}
    with pytest.raises(UsageError, match=message) as caught:
        search(tanh_stack(tmp_path), rows, tmp_path, target="cpu", assign=[line])
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()
