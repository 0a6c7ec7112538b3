"""Constants are folded: exactly, within the limit, shapes included, Q/DQ and the rest left."""

import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from harness import apply, check_fires, check_stays, model, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.passes.cleanup.drop_dead import DropDead
from qgraph.passes.cleanup.fold_constants import FoldConstants
from qgraph.passes.normalize import Normalize

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "cleanup"
FOLD = [Normalize(), FoldConstants()]
F32, I64 = np.float32, np.int64


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


# -- arithmetic --------------------------------------------------------------------------------


def test_a_chain_of_constants() -> None:
    proto = model(
        """g (float[2, 3] x) => (float[2, 3] y) {
          t = Transpose <perm = [1, 0]> (w)
          r = Reshape (t, s)
          h = Cast <to = 10> (r)
          f = Cast <to = 1> (h)
          e = Exp (f)
          y = Add (x, e)
        }""",
        {"w": np.arange(6, dtype=F32).reshape(3, 2), "s": np.array([2, -1])},
    )
    out = check_fires([*FOLD, DropDead()], proto)
    assert ops(out) == ["Add"]
    (result,) = constants(out).values()
    want = np.exp(np.arange(6, dtype=F32).reshape(3, 2).T.reshape(2, 3))
    np.testing.assert_allclose(result, want, rtol=1e-6)


# Operator, attributes, inputs: what numpy or the definition gives.
CASES = {
    "trunc": ("Div", {}, [np.array([-7, 7, -8]), np.array([2, -2, 3])], np.array([-3, -3, -2])),
    "mod": ("Mod", {}, [np.array([-7, 7]), np.array([3, -3])], np.array([2, -2])),
    "even": ("Round", {}, [np.array([0.5, 1.5, 2.5, -0.5], F32)], np.array([0, 2, 2, -0.0], F32)),
    "nan": (
        "Max",
        {},
        [np.array([1, 5], F32), np.array([3, np.nan], F32)],
        np.array([3, np.nan], F32),
    ),
    "wrap": (
        "Add",
        {},
        [np.array([127], np.int8), np.array([1], np.int8)],
        np.array([-128], np.int8),
    ),
    "zero": ("Reciprocal", {}, [np.array([0.0, -0.0], F32)], np.array([np.inf, -np.inf], F32)),
    "range": ("Range", {}, [np.array(2), np.array(11), np.array(3)], np.array([2, 5, 8])),
    "where": (
        "Where",
        {},
        [np.array([True, False]), np.array([1, 2]), np.array(9)],
        np.array([1, 9]),
    ),
    "fill": (
        "ConstantOfShape",
        {"value": numpy_helper.from_array(np.array([7], np.int32))},
        [np.array([2, 2])],
        np.full((2, 2), 7, np.int32),
    ),
    "expand": (
        "Expand",
        {},
        [np.array([[1], [2]], F32), np.array([1, 3])],
        np.array([[1, 1, 1], [2, 2, 2]], F32),
    ),
    "gather": (
        "Gather",
        {"axis": 1},
        [np.arange(6).reshape(2, 3), np.array([-1, 0])],
        np.array([[2, 0], [5, 3]]),
    ),
    "mean": ("ReduceMean", {"keepdims": 0}, [np.arange(4, dtype=F32)], np.array(1.5, F32)),
    "half": (
        "Mul",
        {},
        [np.array([1.5, 60000], np.float16), np.array([2, 2], np.float16)],
        np.array([3, np.inf], np.float16),
    ),
    "matmul": (
        "MatMul",
        {},
        [np.eye(2, dtype=F32), np.array([[1, 2], [3, 4]], F32)],
        np.array([[1, 2], [3, 4]], F32),
    ),
    "down": (
        "Slice",
        {},
        [np.arange(3), np.array([-9]), np.array([-9]), np.array([0]), np.array([-1])],
        np.array([0]),
    ),
    "empty": ("Concat", {"axis": 0}, [np.zeros(0, I64), np.array([4])], np.array([4])),
    "bf16": (
        "Cast",
        {"to": onnx.TensorProto.BFLOAT16},
        [np.array([1.00390625], F32)],
        np.array([1.0], ml_dtypes.bfloat16),
    ),
}


def single(
    op_type: str, attributes: dict[str, object], inputs: list[np.ndarray], want: np.ndarray
) -> onnx.ModelProto:
    names = [f"i{index}" for index in range(len(inputs))]
    dtype = helper.np_dtype_to_tensor_dtype(want.dtype)
    node = helper.make_node(op_type, names, ["y"], name="folded", **attributes)
    last = helper.make_node("Reshape", ["y", "shape"], ["z"], name="last")
    graph = helper.make_graph(
        [node, last],
        "g",
        [helper.make_tensor_value_info("shape", 7, [want.ndim])],
        [helper.make_tensor_value_info("z", dtype, list(want.shape))],
        [numpy_helper.from_array(a, n) for a, n in zip(inputs, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str) -> None:
    op_type, attributes, inputs, want = CASES[name]
    out, reports, _ = apply([*FOLD, DropDead()], single(op_type, attributes, inputs, want))
    assert ops(out) == ["Reshape"], reports[1].refused
    (got,) = constants(out).values()
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_array_equal(got, want)
    if want.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


@given(
    op_type=st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Equal", "Less"]),
    shapes=st.sampled_from(
        [((3,), (3,)), ((2, 3), (3,)), ((), (4,)), ((2, 1), (1, 3)), ((0,), (1,))]
    ),
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.int32]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_elementwise_results_are_those_of_onnxruntime(op_type, shapes, dtype, seed) -> None:
    rng = np.random.default_rng(seed)
    inputs = [
        (rng.integers(1, 9, s) if np.issubdtype(dtype, np.integer) else rng.standard_normal(s) * 3)
        for s in shapes
    ]
    inputs = [np.abs(a).astype(dtype) if op_type == "Pow" else np.asarray(a, dtype) for a in inputs]
    out_type = np.bool_ if op_type in ("Equal", "Less") else dtype
    want = np.zeros(np.broadcast_shapes(*shapes), out_type)
    proto = single(op_type, {}, inputs, want)
    out, _, _ = apply([*FOLD, DropDead()], proto)
    assert ops(out) == ["Reshape"]
    feeds = {"shape": np.array(want.shape, I64)}
    before, after = run_reference(proto, feeds)["z"], run_reference(out, feeds)["z"]
    np.testing.assert_allclose(after, before, rtol=2e-6 if dtype == np.float32 else 1e-12)


def test_outputs_of_the_graph_keep_their_names() -> None:
    proto = model(
        """g (float[2] x) => (float[2] y, float[2] k) <float[2] w = {1, 2}> {
          k = Neg (w)
          y = Add (x, k)
        }"""
    )
    out = check_fires(FOLD, proto)
    assert sorted(ops(out)) == ["Add", "Identity"]


def test_a_graph_without_inputs() -> None:
    proto = model("g () => (float[2] y) <float[2] w = {1, 2}> { t = Neg (w)  y = Abs (t) }")
    out = check_fires(FOLD, proto)
    assert ops(out) == ["Identity"]


def test_identities_of_constants_are_no_obstacle() -> None:
    proto = model(
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> "
        "{ i = Identity (w)  n = Neg (i)  y = Add (x, n) }"
    )
    assert ops(check_fires(FOLD, proto)) == ["Add"]


def test_cast_like_of_a_constant() -> None:
    proto = model(
        "g (float16[2] x) => (float16[2] y) <float[2] w = {1, 2}> "
        "{ i = CastLike (w, x)  n = Neg (i)  y = Add (x, n) }"
    )
    assert ops(check_fires(FOLD, proto)) == ["Add"]


def test_several_outputs() -> None:
    proto = model(
        """g (float[2] x) => (float[2] y) <float[4] w = {1, 2, 3, 4}> {
          a, b = Split <axis = 0, num_outputs = 2> (w)
          t = Add (x, a)
          y = Mul (t, b)
        }"""
    )
    assert ops(check_fires(FOLD, proto)) == ["Add", "Mul"]


# -- what stays --------------------------------------------------------------------------------


def test_values_a_caller_may_override_are_no_constants() -> None:
    proto = model(
        "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> "
        "{ t = Neg (w)  y = Add (x, t) }"
    )
    check_stays(FOLD, proto)


def test_random_operators_stay() -> None:
    proto = model(
        """g (float[2, 3] x) => (float[2, 3] y) {
          r = RandomNormal <shape = [2, 3]> ()
          l = RandomUniformLike (w)
          b = Bernoulli (w)
          s = Sum (x, r, l, b)
          y = Relu (s)
        }""",
        {"w": np.zeros((2, 3), F32)},
    )
    check_stays(FOLD, proto)


def test_qdq_of_constants_stays() -> None:
    proto = model(
        """g (float[2, 2] x) => (float[2, 2] y) {
          d = DequantizeLinear (w, s, z)
          q = QuantizeLinear (f, s, z)
          e = DequantizeLinear (q, s, z)
          t = MatMul (x, d)
          y = Add (t, e)
        }""",
        {
            "w": np.array([[1, 2], [3, 4]], np.int8),
            "s": np.array(0.5, F32),
            "z": np.array(0, np.int8),
            "f": np.ones((2, 2), F32),
        },
    )
    check_stays(FOLD, proto)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.int4])
def test_casts_of_small_types_stay(dtype: type) -> None:
    proto = model(
        "g (float[2] x) => (float[2] y) { f = Cast <to = 1> (w)  y = Add (x, f) }",
        {"w": np.array([1, 2], dtype)},
    )
    out, (_, report), _ = apply(FOLD, proto)
    assert report.changed == 0 and ops(out) == ["Cast", "Add"]


def test_casts_to_small_types_stay() -> None:
    proto = model(
        """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}>
        { q = Cast <to = 17> (w)  f = Cast <to = 1> (q)  y = Add (x, f) }"""
    )
    out, _, _ = apply(FOLD, proto)
    assert ops(out) == ["Cast", "Cast", "Add"]


def test_strings_sequences_and_other_domains_stay() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
    g (float[2] x) => (float[2] y, string[2] z) <float[2] w = {1, 2}, string[2] s = {"a", "b"}> {
      c = acme.Neg (w)
      q = SequenceConstruct (w, w)
      i = Constant <value_int = 0> ()
      e = SequenceAt (q, i)
      t = Sum (x, c, e)
      y = Relu (t)
      z = StringConcat (s, s)
    }"""
    proto = onnx.parser.parse_model(text)
    out, (_, report), _ = apply(FOLD, proto)
    assert report.changed == 0
    assert ops(out) == ["Neg", "SequenceConstruct", "SequenceAt", "Sum", "Relu", "StringConcat"]


BOMBS = {
    "Expand": "{ b = Expand (one, big)",
    "Tile": "{ b = Tile (row, big)",
    "ConstantOfShape": "{ b = ConstantOfShape (big)",
    "Range": "{ r = Range (low, high, step)  b = Cast <to = 1> (r)",
    "Gather": "{ b = Gather (long, many)",
    "Pad": "{ b = Pad (row, wide)",
    "MatMul": "{ b = MatMul (column, wider)",
    "Add": "{ b = Add (column, wider)",
    "Where": "{ b = Where (yes, column, wider)",
}
BOMB_CONSTANTS = {
    "one": np.ones((1, 1), F32),
    "row": np.ones((1, 1), F32),
    "big": np.array([2000, 2000]),
    "low": np.array(0),
    "high": np.array(10**12),
    "step": np.array(1),
    "many": np.zeros(1000, I64),
    "long": np.ones((1, 5000), F32),
    "wide": np.array([0, 0, 0, 10**10]),
    "column": np.ones((3000, 1), F32),
    "wider": np.ones((1, 3000), F32),
    "yes": np.array(True),
}


@pytest.mark.parametrize("op_type", BOMBS)
def test_results_that_blow_up_are_refused_before_they_are_made(op_type: str) -> None:
    body = BOMBS[op_type]
    used = {
        k: v
        for k, v in BOMB_CONSTANTS.items()
        if k in body.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    proto = model(
        f"g (float[1] x) => (float y) {body} s = ReduceSum <keepdims = 0> (b) "
        "t = ReduceMax <keepdims = 0> (x)  y = Add (s, t) }",
        used,
    )
    graph = onnx_io.load(proto)
    start = time.perf_counter()
    report = FoldConstants().run(graph, Context())
    assert time.perf_counter() - start < 1, "it was made, and refused only then"
    assert [r for r in report.refused if "over fold_constants.max_bytes" in r.reason]
    assert not [n for n in report.details if n.startswith(op_type)]


def test_absurd_parameters_are_refused() -> None:
    proto = model(
        "g (float[1] x) => (float y) { b = ConstantOfShape (s)  r = ReduceSum <keepdims = 0> (b) "
        "t = ReduceMax <keepdims = 0> (x)  y = Add (r, t) }",
        {"s": np.array([2**40, 2**40])},
    )
    check_stays(FoldConstants(), proto, reason="unknown size")


def test_the_limit_is_on_growth() -> None:
    proto = model(
        "g (float[1000] x) => (float[1000] y) { n = Neg (w)  y = Add (x, n) }",
        {"w": np.ones(1000, F32)},
    )
    check_fires([Normalize(), FoldConstants(max_bytes=0)], proto)
    proto = model(
        "g (float[10, 1000] x) => (float[10, 1000] y) { e = Expand (w, s)  y = Add (x, e) }",
        {"w": np.ones(1000, F32), "s": np.array([10, 1])},
    )
    check_stays(FoldConstants(max_bytes=35_000), proto, reason="makes 40000 bytes of 4016")
    check_fires(FoldConstants(max_bytes=40_000), proto)
    with pytest.raises(UsageError, match="max_bytes must be 0 or more"):
        FoldConstants.with_options({"max_bytes": -1})


def test_an_operator_used_wrongly_ends_nothing() -> None:
    proto = model(
        "g (float[2] x, int64[1] n) => (float[N] y) { r = Reshape (w, n)  y = Add (x, r) }",
        {"w": np.ones(4, F32)},
    )
    graph = onnx_io.load(proto)
    (reshape,) = graph.nodes("Reshape")
    graph.set_input(reshape, 1, graph.constant("bad", np.array([3])))
    report = FoldConstants().run(graph, Context())
    assert report.changed == 0 and "can't be evaluated" in report.refused[0].reason


# -- speed -------------------------------------------------------------------------------------


def many(count: int) -> onnx.ModelProto:
    nodes, last = [], "w"
    for index in range(count):
        op_type = ("Neg", "Abs", "Add", "Mul")[index % 4]
        inputs = [last] if index % 4 < 2 else [last, "w"]
        nodes.append(helper.make_node(op_type, inputs, [f"v{index}"], name=f"n{index}"))
        last = f"v{index}"
    nodes.append(helper.make_node("Add", ["x", last], ["y"], name="last"))
    infos = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    graph = helper.make_graph(
        nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(np.ones(2, F32), "w")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_ten_thousand_foldable_nodes_take_linear_time() -> None:
    times = {}
    for count in (1_000, 10_000):
        graph = onnx_io.load(many(count))
        start = time.process_time()
        assert FoldConstants().run(graph, Context()).changed == count
        times[count] = time.process_time() - start
    assert times[10_000] < 30 * times[1_000], times
    assert times[10_000] < 5, times
