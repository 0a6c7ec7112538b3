"""The linter: what each rule finds, what it does not, what --fix makes of it."""

import importlib.util

import ml_dtypes
import numpy as np
import onnx
import pytest
from harness import model, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qgraph import onnx_io
from qgraph.errors import QGraphError
from qgraph.lint import RULE_SETS, SEVERITIES, fix, lint
from qgraph.passes.rewrites import REWRITES
from qgraph.registry import by_name, load
from qgraph.target import target

HAS_TENSORRT = any(importlib.util.find_spec(n) is not None for n in ("tensorrt", "tensorrt_rtx"))


def found(proto, name="tensorrt", engines=None):
    return lint(onnx_io.load(proto), target(name), engines, parse=False)


def rules(proto, name="tensorrt", engines=None):
    return {each.rule for each in found(proto, name, engines).findings}


def repaired(proto, name="tensorrt", engines=None):
    graph = onnx_io.load(proto)
    done = fix(graph, target(name), engines)
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out, full_check=True)
    return out, done


def one_node(op, inputs, types, domain="", opset=21, constants=None, out=1, **attributes):
    node = helper.make_node(op, inputs, ["y"], "node", domain=domain, **attributes)
    fed = [helper.make_tensor_value_info(n, *kind) for n, kind in types.items()]
    result = helper.make_tensor_value_info("y", out, None)
    result.type.tensor_type.shape.SetInParent()
    del result.type.tensor_type.shape.dim[:]
    made = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    graph = helper.make_graph([node], "net", fed, [result], made)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return proto


PAIR = """net (float[4, 16] x) => (float[4, 16] y) {
  q = QuantizeLinear(x, s, z)
  y = DequantizeLinear(q, s, z)
}"""


def pair(zero, scale=0.05):
    return model(PAIR, {"s": np.float32(scale), "z": zero})


# -- the rules themselves ----------------------------------------------------------------------


@pytest.mark.parametrize("reference", RULE_SETS)
def test_every_rule_is_complete(reference):
    found = load(reference)
    names = [rule.name for rule in found.rules]
    assert len(names) == len(set(names))
    for rule in found.rules:
        assert rule.severity in SEVERITIES and rule.what and rule.source
        assert (rule.check is None) is not (rule.scan is None)
        assert set(rule.fix) <= set(by_name(REWRITES))


def test_a_legal_model_has_no_findings():
    assert found(pair(np.int8(0))).findings == []
    assert found(pair(np.uint8(3)), "cpu").findings == []


@pytest.mark.parametrize(
    ("proto", "rule"),
    [
        (pair(np.int8(5)), "zero-point"),
        (pair(np.uint8(0)), "unsigned-codes"),
        (pair(np.int16(0)), "element-type"),
        (pair(np.int8(0), -0.1), "scale"),
        (
            model(
                "net (float[2] x) => (float[2] y) { b = DequantizeLinear(c, s)\n y = Add(b, x) }",
                {"c": np.array([1, 2], np.int32), "s": np.float32(0.1)},
            ),
            "int32-bias",
        ),
        (
            model(
                """net (float[2, 3] x) => (float[2, 3] y) {
                  q = QuantizeLinear<axis = 1>(x, s, z)
                  y = DequantizeLinear<axis = 1>(q, s, z)
                }""",
                {"s": np.ones(3, np.float32), "z": np.zeros(3, np.int8)},
            ),
            "channel-activation",
        ),
        (model("net (float[4] x) => (float[a] y) { y, i, j, k = Unique(x) }"), "operator"),
        (
            model("net (float[1, 2, 4, 4] x) => (float[1, 2, a, b] y, int64[1, 2, a, b] i) { y, i = MaxPool<kernel_shape = [2, 2]>(x) }"),
            "operator-form",
        ),
        (model("net (string[2] x) => (string[2] y) { y = Identity(x) }"), "element-type"),
        (model("net (double[2] x) => (double[2] y) { y = Sin(x) }"), "float64"),
        (one_node("Magic", ["x"], {"x": (1, [2])}, domain="my.own"), "operator"),
    ],
)  # fmt: skip
def test_tensorrt(proto, rule):
    assert rule in rules(proto)


def int4(depth, block, axis=0):
    shape = [depth, 32]
    shape[axis] = -(-shape[axis] // block)
    text = f"""net (float[3, {depth}] x) => (float[3, 32] y) {{
      d = DequantizeLinear<axis = {axis}, block_size = {block}>(w, s)
      y = MatMul(x, d)
    }}"""
    inits = {"w": np.ones((depth, 32), ml_dtypes.int4), "s": np.ones(shape, np.float32)}
    return model(text, inits)


@pytest.mark.parametrize(
    ("proto", "wanted"),
    [
        (int4(128, 64), set()),
        (int4(256, 128), set()),
        (int4(128, 32), {"int4-blocks"}),
        (int4(64, 16, axis=1), {"int4-blocks"}),
        (int4(160, 64), {"ragged-blocks"}),
    ],
)
def test_int4_blocks(proto, wanted):
    assert rules(proto) == wanted


def test_severity_is_that_of_the_target_not_of_one_engine():
    proto = pair(np.int8(5))
    both = found(proto, "cpu")
    assert not both.refused
    assert {(e.engine, e.severity) for e in both.findings} >= {("openvino", "falls back")}
    alone = found(proto, "cpu", ["openvino"])
    assert alone.refused and {e.severity for e in alone.findings} == {"refused"}
    assert [e.severity for e in both.findings] == sorted(
        (e.severity for e in both.findings), key=SEVERITIES.index
    )


def test_a_domain_that_nobody_knows_is_refused_by_onnxruntime():
    proto = one_node("Magic", ["x"], {"x": (1, [2])}, domain="my.own")
    assert "unknown-domain" in rules(proto, "cpu")


def test_the_models_own_functions_are_known_and_looked_into():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "my.own" : 1]>
        net (float[4] x) => (float[a] y) { y = my.own.pick(x) }
        <domain: "my.own", opset_import: ["" : 21]>
        pick (v) => (u) { u, i, j, k = Unique(v) }"""
    )
    [only] = found(proto).findings
    assert (only.rule, only.op) == ("operator", "Unique")


def test_hardware_without_an_engine_is_judged_by_its_data():
    proto = model("net (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    assert "fixed-shapes" in rules(proto, "edge-tpu")
    assert "zero-point" in rules(pair(np.int8(3)), "edge-tpu")
    fixed = model("net (float[8, 4] x) => (float[8, 4] y) { y = Relu(x) }")
    assert rules(fixed, "edge-tpu") == {"batch"}


def test_float_models_say_what_stays_float_and_are_not_changed():
    proto = model(
        """net (float[1, 32] x) => (float[1, 32] y) {
          m = MatMul(x, w)
          s = Softmax(m)
          y = Sin(s)
        }""",
        {"w": np.ones((32, 32), np.float32)},
    )
    graph = onnx_io.load(proto)
    before = ops(onnx_io.to_proto(graph))
    told = lint(graph, target("cpu"), parse=False)
    assert {each.op for each in told.unquantized} >= {"Softmax", "Sin"}
    assert all(each.reason for each in told.unquantized)
    assert ops(onnx_io.to_proto(graph)) == before and graph.facts.plan is None
    assert found(pair(np.int8(0)), "cpu").unquantized == []


# -- fixing --------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.booleans(), st.integers(0, 255), st.floats(2.0**-8, 1.0, width=32))
def test_any_pair_is_legal_for_tensorrt_afterwards(signed, zero, scale):
    proto = pair(np.int8(zero - 128) if signed else np.uint8(zero), scale)
    out, done = repaired(proto)
    assert not done.after.refused and found(out).findings == []


def test_a_qlinear_model_becomes_legal_and_keeps_its_numbers():
    """QLinearConv with an int32 bias and uint8 codes needs four rewrites, one after another."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    net (float[1, 3, 8, 8] x) => (float[1, 8, 8, 4] y) {
      q = QuantizeLinear(x, xs, xz)
      c = QLinearConv<pads = [1, 1, 1, 1]>(q, xs, xz, w, ws, wz, ys, yz, b)
      a = com.microsoft.QLinearAdd(c, ys, yz, c, ys, yz, as_, az)
      t = Transpose<perm = [0, 2, 3, 1]>(a)
      y = DequantizeLinear(t, as_, az)
    }"""
    proto = onnx.parser.parse_model(text)
    arrays = {
        "xs": np.float32(0.02), "xz": np.uint8(120),
        "w": rng.integers(-100, 100, (4, 3, 3, 3)).astype(np.int8),
        "ws": rng.uniform(0.005, 0.01, 4).astype(np.float32), "wz": np.zeros(4, np.int8),
        "ys": np.float32(0.05), "yz": np.uint8(110), "b": np.array([1, -2, 3000, 4], np.int32),
        "as_": np.float32(0.1), "az": np.uint8(128),
    }  # fmt: skip
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    assert found(proto).refused
    out, done = repaired(proto)
    assert not done.after.refused and found(out).findings == []
    assert {each.name for each in done.applied if each.changed} == {
        "qlinear_to_qdq", "float_bias", "dequantize_early", "symmetric_activations"
    }  # fmt: skip
    x = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    want, have = run_reference(proto, x)["y"], run_reference(out, x)["y"]
    # Half a step of every quantization on the way, old and new, and one code of the kernels.
    assert np.abs(want - have).max() <= 0.1 + 2 * (0.05 + 0.055) + 0.1
    assert np.corrcoef(want.ravel(), have.ravel())[0, 1] > 0.999


def test_matmul_nbits_is_upgraded_to_an_opset_with_blocks():
    codes = np.full((32, 2, 32), 0x97, np.uint8)
    proto = one_node(
        "MatMulNBits", ["x", "b", "s"], {"x": (1, [3, 128])}, domain="com.microsoft", opset=17,
        constants={"b": codes, "s": np.full((32, 2), 0.1, np.float32)}, K=128, N=32, bits=4, block_size=64,
    )  # fmt: skip
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [3, 32]))
    out, done = repaired(proto)
    assert ops(out) == ["DequantizeLinear", "MatMul"] and found(out).findings == []
    assert done.notes == ["opset 17 became 21"]
    x = {"x": np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32)}
    np.testing.assert_allclose(
        run_reference(out, x)["y"], run_reference(proto, x)["y"], rtol=1e-4, atol=1e-4
    )


def test_signed_activations_become_unsigned_on_a_cpu_and_nothing_moves():
    proto = pair(np.int8(5))
    out, done = repaired(proto, "cpu")
    assert done.after.findings == [] and [e.numerics for e in done.applied if e.changed] == [
        "exact"
    ]
    x = {"x": np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32) * 9}
    np.testing.assert_array_equal(run_reference(proto, x)["y"], run_reference(out, x)["y"])


def test_what_can_not_be_fixed_is_told_with_the_reason():
    proto = model(
        "net (float[2] x) => (uint8[2] y) { y = QuantizeLinear(x, s, z) }",
        {"s": np.float32(0.1), "z": np.uint8(3)},
    )
    _, done = repaired(proto)
    assert done.changed == 0 and done.after.refused
    reasons = [reason for each in done.applied for _, reason in each.refused]
    assert reasons == ["its codes are a graph output"]


# -- models that nobody vouches for ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu", "tensorrt", "edge-tpu"])
@pytest.mark.parametrize(
    "proto",
    [
        one_node("MatMulNBits", ["x"], {"x": (1, [2, 2])}, domain="com.microsoft"),
        one_node("QLinearAdd", ["x"], {"x": (2, [2])}, domain="com.microsoft", out=2),
        one_node("QLinearConcat", ["x", "x"], {"x": (2, [2])}, domain="com.microsoft", out=2),
        one_node("QuantizeLinear", ["x"], {"x": (1, [2])}, domain="com.microsoft", out=2),
        one_node("DequantizeLinear", [], {}, domain="com.microsoft"),
        one_node("MatMulIntegerToFloat", [], {}, domain="com.microsoft"),
        one_node("QGemm", ["x"] * 9, {"x": (2, [2])}, domain="com.microsoft", out=2),
    ],
)
def test_malformed_nodes_are_reported_never_a_crash(proto, name):
    try:
        graph = onnx_io.load(proto)
    except QGraphError:
        return
    fix(graph, target(name))
    assert lint(graph, target(name)).as_json()


# -- TensorRT's own parser ------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_TENSORRT, reason="neither tensorrt nor tensorrt_rtx is installed")
@pytest.mark.parametrize(
    "proto",
    [
        pair(np.int8(0)),
        pair(np.int8(5)),
        pair(np.uint8(128)),
        pair(np.int16(0)),
        pair(np.int8(0), -0.1),
        int4(128, 64),
        int4(128, 32),
        int4(160, 64),
        model("net (float[4] x) => (float[a] y) { y, i, j, k = Unique(x) }"),
        model("net (string[2] x) => (string[2] y) { y = Identity(x) }"),
        model("net (uint16[2] x) => (uint16[2] y) { y = Identity(x) }"),
        model("net (float[1, 2, 8, 8] x) => (float[1, 2, a, b] y) { y = AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(x) }"),
        model("net (float[4, 4] x, int64[1] a) => (float[b, c] y) { y = ReduceSum(x, a) }"),
    ],
)  # fmt: skip
def test_the_rules_refuse_what_tensorrts_parser_refuses(proto):
    from qgraph.lint.parser import ask
    from qgraph.lint.view import View

    graph = onnx_io.load(proto)
    assert found(proto).refused is bool(ask(View(graph, target("tensorrt"))))


@pytest.mark.skipif(not HAS_TENSORRT, reason="neither tensorrt nor tensorrt_rtx is installed")
def test_the_parser_has_the_last_word():
    """Something no rule knows: a wrong number of scales."""
    text = """net (float[2, 3] x) => (float[2, 3] y) {
      q = QuantizeLinear<axis = 1>(x, s, z)
      y = DequantizeLinear<axis = 1>(q, s, z)
    }"""
    proto = model(text, {"s": np.ones(2, np.float32), "z": np.zeros(2, np.int8)})
    told = lint(onnx_io.load(proto), target("tensorrt"))
    assert told.refused
