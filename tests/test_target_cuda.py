"""Target `cuda`: weights in few bits, everything else in fp16, and layers left out by cost."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from harness import model, run_reference
from llamas import TINY, random_weights

import qgraph
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.context import Context
from qgraph.costs.table import CostTable, Row
from qgraph.flow import exact_passes, quantizing_passes
from qgraph.graph import Graph
from qgraph.passes.half import Half
from qgraph.passes.infer import InferShapes
from qgraph.passes.linear_to_matmul import LinearToMatMul
from qgraph.passes.weight_only.quantize import WeightOnly
from qgraph.pipeline import Pipeline
from qgraph.target import WeightOnlyRules, target

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
SMALL = ["weight_only.min_elements=1", "weight_only.group=16"]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", "off")


def windows(count=12, length=20, seed=0):
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(0, TINY.vocabulary, (1, length))} for _ in range(count)]


def both(graph_of, passes, feeds, name):
    """One output of a graph, quantized in float32 and then in fp16; and the latter's model."""
    context = Context(target=target("cuda"))
    graph = graph_of()
    Pipeline(passes).run(graph, context)
    simulated = run_reference(onnx_io.to_proto(graph), feeds)[name]
    Pipeline([Half()], given=graph.facts.present()).run(graph, context)
    proto = onnx_io.to_proto(graph)
    onnx.checker.check_model(proto)
    return simulated, run_reference(proto, feeds)[name], proto, graph


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_decoder_in_fp16_computes_what_its_weights_say(bits, symmetric):
    options = {"min_elements": 1, "group": 16, "bits": bits, "symmetric": symmetric}
    passes = [InferShapes(), LinearToMatMul(), WeightOnly(method="rtn", scaling=False, **options)]
    (feeds,) = windows(1, seed=9)
    simulated, got, proto, graph = both(
        lambda: Graph(build(TINY, random_weights())), passes, feeds, "logits"
    )
    assert relative(got, simulated) < 1e-2
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    products = [n for n in proto.graph.node if n.op_type == "MatMulNBits"]
    assert len(products) == 7 * TINY.layers
    for node in products:
        types = [kinds[name] for name in node.input[1:]]
        assert types == [onnx.TensorProto.UINT8, FLOAT16, onnx.TensorProto.UINT8][: len(types)]
        assert symmetric == (len(types) == 2)
    casts = [n for n in proto.graph.node if n.op_type == "Cast"]
    assert len(casts) < 10, "Casts between the layers"
    labels = [entry[0] for entry in graph.facts.plan.nodes.values()]
    assert labels.count(f"int{bits}") == 7 * TINY.layers


def linear(width=32):
    weight = np.random.default_rng(0).standard_normal((32, width)).astype(np.float32)
    text = f"g (float[M,32] x) => (float[M,{width}] y) {{ [layer] y = MatMul(x, w) }}"
    return onnx_io.load(model(text, {"w": weight}, opset=21))


def test_float_zero_points_are_rounded_with_the_scales():
    """Form `matmul_nbits` of a model that another target had written."""
    x = {"x": np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)}
    graph, options = linear(), {"min_elements": 1, "group": 16, "method": "hqq", "head": True}
    other = replace(target("cpu"), weight_only=WeightOnlyRules({"FloatZero": ("matmul_nbits",)}))
    Pipeline([WeightOnly(**options)]).run(graph, Context(target=other))
    want = run_reference(onnx_io.to_proto(graph), x)["y"]
    Pipeline([Half()], given=graph.facts.present()).run(graph, Context(target=target("cuda")))
    proto = onnx_io.to_proto(graph)
    [node] = [n for n in proto.graph.node if n.op_type == "MatMulNBits"]
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert [kinds[name] for name in node.input[2:]] == [FLOAT16, FLOAT16]
    assert relative(run_reference(proto, x)["y"], want) < 1e-2


def test_dequantized_weights_are_made_in_fp16():
    x = {"x": np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)}
    passes = [WeightOnly(min_elements=1, group=16, method="rtn", head=True)]
    graph = linear()
    Pipeline(passes).run(graph, Context())  # without a target: DequantizeLinear
    want = run_reference(onnx_io.to_proto(graph), x)["y"]
    Pipeline([Half()]).run(graph, Context(target=target("cuda")))
    proto = onnx_io.to_proto(graph)
    assert [n.op_type for n in proto.graph.node] == ["Cast", "DequantizeLinear", "MatMul", "Cast"]
    kinds = [t.data_type for t in proto.graph.initializer]
    assert FLOAT not in kinds and kinds.count(FLOAT16) == 1
    assert relative(run_reference(proto, x)["y"], want) < 1e-2


@pytest.mark.parametrize(("magnitude", "converted"), [(2e-3, True), (2e-4, False)])
def test_subnormal_scales_are_fine_while_they_keep_their_value(magnitude, converted):
    """Of 8 bits and small weights, all scales lie below float16's smallest normal number."""
    graph = linear()
    [node] = graph.nodes("MatMul")
    weight = graph.array(node.inputs[1]) * np.float32(magnitude)
    graph.set_input(node, 1, graph.constant("small", weight))
    graph.drop_unread_initializers()
    options = {"min_elements": 1, "group": 16, "method": "rtn", "head": True, "bits": 8}
    context = Context(target=target("cuda"))
    Pipeline([WeightOnly(**options)]).run(graph, context)
    [node] = [n for n in graph.nodes() if n.op_type == "MatMulNBits"]
    assert 0 < graph.array(node.inputs[2]).max() < 6.1e-5
    Pipeline([Half()], given=graph.facts.present()).run(graph, context)
    assert (graph.array(node.inputs[2]).dtype == np.float16) == converted


def test_a_dequantized_weight_of_an_integer_kernel_stays_in_float32():
    text = """g (float[2,4] x) => (float[2,4] y) {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        w = DequantizeLinear(c, s, z)  a = MatMul(d, w)
        p = QuantizeLinear(a, s, z)  e = DequantizeLinear(p, s, z)  y = Exp(e)
    }"""
    arrays = {"s": np.float32(0.1), "z": np.int8(0), "c": np.ones((4, 4), np.int8)}
    graph = onnx_io.load(model(text, arrays, opset=21))
    Pipeline([Half()]).run(graph, Context(target=target("cuda")))
    proto = onnx_io.to_proto(graph)
    assert {t.data_type for t in proto.graph.initializer} == {FLOAT, onnx.TensorProto.INT8}


# -- the target ------------------------------------------------------------------------------------


def test_fp16_is_the_default(tmp_path):
    decoder = build(TINY, random_weights())
    artifact = qgraph.compile(decoder, output=tmp_path / "out", target="cuda", data=windows())
    assert artifact.manifest.precision == "fp16" and artifact.manifest.nodes["fp16"] > 40
    assert artifact.manifest.accuracy.outputs[0]["sqnr_db"] > 45


class Told:
    """Keeps what a compile tells, in order."""

    def __init__(self):
        self.lines = []

    def stage(self, name):
        self.lines.append(name)

    def progress(self, what, done, total):
        pass

    def warn(self, line):
        self.lines.append(line)

    info = warn


def conv_net():
    weights = {"w": random(8, 3, 3, 3), "v": random(16, 8, 1, 1), "h": random(16, 16)}
    text = """g (float[1,3,8,8] x) => (float[1,16,6,6] y) {
        [a] a = Conv(x, w)  [r] r = Relu(a)  [b] b = Conv(r, v)  [y] y = Sigmoid(b)
    }"""
    return model(text, weights)


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
@pytest.mark.parametrize("make", [linear, conv_net])
def test_integers_are_fp16_and_that_is_told_first(precision, make, tmp_path):
    told = Told()
    options = {"target": "cuda", "precision": precision, "listener": told}
    artifact = qgraph.compile(make(), output=tmp_path / "o", **options)
    line = told.lines[0]
    assert line.startswith(
        f"{precision} is slow on cuda: onnxruntime's CUDA provider has no integer"
    )
    assert "2 to 6 times as long as in fp16; built fp16 instead (--force builds" in line
    manifest = artifact.manifest
    assert manifest.warnings[0] == line
    assert (manifest.precision, manifest.requested_precision) == ("fp16", precision)
    plain = qgraph.compile(make(), output=tmp_path / "p", target="cuda", precision="fp16")
    assert artifact.model_path.read_bytes() == plain.model_path.read_bytes()


def test_integers_at_a_known_batch_are_int8_weights_where_these_pay(tmp_path):
    weight = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    text = "g (float[M,2048] x) => (float[M,2048] y) { a = MatMul(x, w)  y = Neg(a) }"
    for batch, quantized in ((1, 1), (64, 0)):
        artifact = qgraph.compile(
            onnx_io.load(model(text, {"w": weight}, opset=21)),
            output=tmp_path / str(batch),
            target="cuda",
            precision="int8",
            settings=[f"weight_only.batch={batch}"],
        )
        assert artifact.manifest.precision == "int8-weights"
        assert "built int8-weights instead" in artifact.manifest.warnings[0]
        nodes = onnx.load(artifact.model_path).graph.node
        assert sum(node.op_type == "MatMulNBits" for node in nodes) == quantized


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_convolutions_stay_convolutions(precision, tmp_path):
    settings = ["weight_only.batch=1", "weight_only.min_elements=1"]
    artifact = qgraph.compile(
        conv_net(), output=tmp_path / "o", target="cuda", precision=precision, settings=settings
    )
    kinds = [node.op_type for node in onnx.load(artifact.model_path).graph.node]
    assert kinds.count("Conv") == 2 and "Transpose" not in kinds
    assert artifact.manifest.recipe["passes"]["linear_to_matmul"] == {"convolutions": False}
    forced = [*settings, "linear_to_matmul.convolutions=true"]
    artifact = qgraph.compile(
        conv_net(), output=tmp_path / "f", target="cuda", precision=precision, settings=forced
    )
    assert "Transpose" in [node.op_type for node in onnx.load(artifact.model_path).graph.node]


def test_force_builds_integers_that_the_provider_runs_in_float(tmp_path):
    data = [{"x": random(1, 3, 8, 8) * (i + 1)} for i in range(10)]
    artifact = qgraph.compile(
        conv_net(), output=tmp_path / "o", target="cuda", precision="int8", data=data, force=True
    )
    manifest = artifact.manifest
    assert manifest.precision == "int8" and "done all the same" in manifest.warnings[0]
    graph = onnx.load(artifact.model_path).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 2
    made = {node.output[0]: node.op_type for node in graph.node}
    for node in graph.node:
        if node.op_type == "Conv":
            assert [made.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
            # Of int32, as biases are on other targets, the CUDA provider has no DequantizeLinear.
            assert not any(made.get(name) for name in node.input[2:])
    assert {t.data_type for t in graph.initializer} <= {FLOAT, onnx.TensorProto.INT8}


def test_force_changes_nothing_where_nothing_is_replaced(tmp_path):
    artifact = qgraph.compile(
        linear(), output=tmp_path / "o", target="cuda", precision="fp16", force=True
    )
    assert not any("slow" in line for line in artifact.manifest.warnings)


def test_compile_to_int4(tmp_path):
    artifact = qgraph.compile(
        build(TINY, random_weights()),
        output=tmp_path / "out",
        target="cuda",
        precision="int4",
        data=windows(),
        settings=SMALL,
    )
    nodes = json.loads((artifact.path / "explain.json").read_text())["nodes"]
    assert nodes["layers.0.attn.q"][0] == "int4" and "gptq" in nodes["layers.0.attn.q"][1]
    assert nodes["logits"][0] == "fp16" and "makes a graph output" in nodes["logits"][1]
    assert [s.name for s in artifact.manifest.stages][-1] == "half"
    assert not artifact.manifest.warnings


def test_only_targets_that_say_so_get_fp16_behind_int4():
    names = [each.name for each in quantizing_passes("int4", {}, target("cpu"))]
    assert names == [each.name for each in quantizing_passes("int4", {})] and "half" not in names
    found = [each.name for each in quantizing_passes("int4", {}, target("cuda"))]
    assert found[: len(names)] == names and found[-1] == "half"


# -- costs -----------------------------------------------------------------------------------------


def costly(monkeypatch):
    """Times with which int4 pays for tall weights up to M = 4, and for wide ones always."""

    def row(kernel, block, depth, width, us):
        return Row(kernel=kernel, block=block, depth=depth, width=width, rows=(1, 16), us=us)

    products = (
        row("fp16", 0, 32, 64, (10, 10)),
        row("int4", 16, 32, 64, (5, 5)),
        row("fp16", 0, 64, 32, (10, 10)),
        row("int4", 16, 64, 32, (5, 20)),
    )
    table = CostTable(device="a GPU", engine="", date="", command="", products=products)
    monkeypatch.setattr("qgraph.costs.PAYS", 1.0)
    monkeypatch.setattr("qgraph.passes.weight_only.fitting.load_costs", lambda name: table)


def rewritten(name="cuda", **options):
    graph = Graph(build(TINY, random_weights()))
    chosen = {"weight_only": {"min_elements": 1, "group": 16, "method": "rtn", **options}}
    context = Context(target=target(name))
    passes = [*exact_passes(chosen), *quantizing_passes("int4", chosen, context.target)]
    stages = {stage.name: stage.report for stage in Pipeline(passes).run(graph, context)}
    return graph, stages["weight_only"]


@pytest.mark.parametrize(("batch", "left"), [(None, 0), (1, 0), (4, 0), (8, 2), (64, 2)])
def test_layers_that_int4_makes_slower_stay_in_fp16(monkeypatch, batch, left):
    costly(monkeypatch)
    graph, report = rewritten(batch=batch)
    down = {r.where: r.reason for r in report.refused if "times as long" in r.reason}
    tall = [name for name in down if name.endswith("mlp.down")]
    assert len(tall) == left
    assert sum(n.op_type == "MatMulNBits" for n in graph.nodes()) == 7 * TINY.layers - len(down)
    plan = graph.facts.plan.nodes
    assert all(plan[name] == ("fp16", f"{down[name]}; computes in float16") for name in down)
    assert not any(name.endswith(("mlp.up", "mlp.gate")) for name in down)


def test_the_reason_has_the_ratio_the_batch_and_the_source(monkeypatch):
    costly(monkeypatch)
    _, report = rewritten(batch=16)
    reasons = {r.where: r.reason for r in report.refused}
    assert reasons["layers.0.mlp.down"] == (
        "int4 would take 2.00 times as long as fp16 at batch 16 (measured on a GPU)"
    )


def test_a_target_without_times_says_that_the_batch_decides_nothing():
    graph, report = rewritten("cpu", batch=16)
    assert sum(n.op_type == "MatMulNBits" for n in graph.nodes()) == 7 * TINY.layers
    assert report.warnings == ["no times were measured for target cpu: batch=16 decides nothing"]


def test_shared_times_serve_other_targets(monkeypatch):
    costly(monkeypatch)
    cpu = dataclasses.replace(target("cpu"), costs="any")
    graph = Graph(build(TINY, random_weights()))
    passes = [LinearToMatMul(), WeightOnly(min_elements=1, group=16, method="rtn", batch=16)]
    report = Pipeline(passes).run(graph, Context(target=cpu))[-1].report
    # The table has no fp32, which is what the layers would be computed in.
    assert report.changed == 7 * TINY.layers


@pytest.mark.parametrize(("batch", "quantized"), [(1, True), (64, False)])
def test_the_shipped_times_leave_a_layer_in_fp16_where_a_batch_is_large(batch, quantized):
    weight = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    text = "g (float[M,2048] x) => (float[M,2048] y) { a = MatMul(x, w)  y = Neg(a) }"
    graph = onnx_io.load(model(text, {"w": weight}, opset=21))
    passes = [WeightOnly(method="rtn", scaling=False, clip="none", batch=batch)]
    report = Pipeline(passes).run(graph, Context(target=target("cuda")))[-1].report
    assert [n.op_type for n in graph.nodes()] == ["MatMulNBits" if quantized else "MatMul", "Neg"]
    assert report.changed == int(quantized)
    if not quantized:
        [reason] = [refusal.reason for refusal in report.refused]
        assert reason == (
            "int4 would take 1.63 times as long as fp16 at batch 64 "
            "(measured on NVIDIA H100 80GB HBM3)"
        )
