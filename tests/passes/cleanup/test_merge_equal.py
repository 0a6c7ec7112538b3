"""Equal nodes and equal constants are kept once."""

import time

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
from qgraph.passes.cleanup.drop_dead import DropDead
from qgraph.passes.cleanup.merge_equal import MergeEqual

F32 = np.float32


def test_equal_nodes_and_what_they_lead_to() -> None:
    proto = model(
        """g (float[2, 3] x) => (float[2, 3] y) {
          a = Transpose <perm = [1, 0]> (x)
          b = Transpose <perm = [1, 0]> (x)
          c = LeakyRelu <alpha = 0.1> (a)
          d = LeakyRelu <alpha = 0.1> (b)
          e = Add (c, d)
          y = Transpose (e)
        }"""
    )
    out = check_fires(MergeEqual(), proto, changed=2)
    assert ops(out) == ["Transpose", "LeakyRelu", "Add", "Transpose"]


@pytest.mark.parametrize(
    "pair",
    [
        "a = LeakyRelu <alpha = 0.1> (x)  b = LeakyRelu <alpha = 0.2> (x)",
        "a = LeakyRelu <alpha = 0.0> (x)  b = LeakyRelu <alpha = -0.0> (x)",
        "a = Relu (x)  b = Abs (x)",
        "a = Sub (x, z)  b = Sub (z, x)",
        "a = Cast <to = 10> (x)  a2 = Cast <to = 1> (a)  b = Cast <to = 16> (x)  b2 = Cast <to = 1> (b)",
        "a = Clip (x, z)  b = Clip (x, , z)",
        "a = RandomNormalLike (x)  b = RandomNormalLike (x)",
        "a = Bernoulli (x)  b = Bernoulli (x)",
        "q = QuantizeLinear (x, z)  a = DequantizeLinear (q, z)  b = DequantizeLinear (q, z)",
        "q = QuantizeLinear (x, z)  r = QuantizeLinear (x, z)"
        + "  a = DequantizeLinear (q, z)  b = DequantizeLinear (r, z)",
    ],
)
def test_different_or_random_nodes_stay(pair: str) -> None:
    last = "(a2, b2)" if "a2" in pair else "(a, b)"
    proto = model(f"g (float x, float z) => (float y) {{ {pair}  y = Add {last} }}")
    check_stays(MergeEqual(), proto)


def test_other_domains_may_have_a_state() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
        g (float[2] x) => (float[2] y) { a = acme.Next (x)  b = acme.Next (x)  y = Add (a, b) }"""
    )
    check_stays(MergeEqual(), proto)


def test_omitted_outputs_are_not_there_to_be_read() -> None:
    proto = model(
        """g (float[1, 1, 4] x) => (float[1, 1, 2] y, int64[1, 1, 2] i) {
          y = MaxPool <kernel_shape = [2], strides = [2]> (x)
          u, i = MaxPool <kernel_shape = [2], strides = [2]> (x)
        }"""
    )
    check_stays(MergeEqual(), proto)


def test_nodes_with_several_outputs() -> None:
    proto = model(
        """g (float[4] x) => (float[2] y) {
          a, b = Split <axis = 0, num_outputs = 2> (x)
          c, d = Split <axis = 0, num_outputs = 2> (x)
          e = Sub (a, d)
          f = Sub (b, c)
          y = Mul (e, f)
        }"""
    )
    assert ops(check_fires(MergeEqual(), proto, changed=1)) == ["Split", "Sub", "Sub", "Mul"]


def test_an_output_and_an_inner_value() -> None:
    proto = model(
        "g (float[2] x) => (float[2] y, float[2] z) { a = Neg (x)  z = Abs (a)  y = Neg (x) }"
    )
    out = check_fires(MergeEqual(), proto, changed=1)
    assert ops(out) == ["Neg", "Abs"] and [n.output[0] for n in out.graph.node] == ["y", "z"]


def test_two_outputs_stay_two() -> None:
    check_stays(
        MergeEqual(),
        model("g (float[2] x) => (float[2] y, float[2] z) { y = Neg (x)  z = Neg (x) }"),
    )


def test_outer_nodes_serve_subgraphs_and_not_the_other_way_round() -> None:
    proto = model(
        """g (float[2] x, bool c) => (float[2] y, float[2] z, float[2] k) {
          a = Neg (x)
          y = If (c) <
            then_branch = d () => (float[2] p) { b = Neg (x)  q = Abs (x)  p = Add (b, q) },
            else_branch = e () => (float[2] s) { r = Abs (x)  t = Abs (x)  s = Mul (r, t) }>
          k = Abs (x)
          z = Add (a, k)
        }"""
    )
    out = check_fires(MergeEqual(), proto, changed=2)
    bodies = {attr.name: attr.g for node in out.graph.node for attr in node.attribute}
    assert [n.op_type for n in bodies["then_branch"].node] == ["Abs", "Add"]
    assert [n.op_type for n in bodies["else_branch"].node] == ["Abs", "Mul"]
    assert ops(out) == ["Neg", "If", "Abs", "Add"]


# -- constants ---------------------------------------------------------------------------------


def reading(*arrays: np.ndarray) -> onnx.ModelProto:
    """A model that reads each array once, by nodes that differ."""
    names = [f"w{index}" for index in range(len(arrays))]
    nodes = [
        helper.make_node("Cast", [name], [f"c{name}"], to=1, name=f"n{name}") for name in names
    ]
    nodes += [
        helper.make_node("LeakyRelu", [f"c{name}"], [f"r{name}"], alpha=float(index))
        for index, name in enumerate(names)
    ]
    outputs = [
        helper.make_tensor_value_info(f"r{name}", 1, list(array.shape))
        for name, array in zip(names, arrays, strict=True)
    ]
    tensors = [numpy_helper.from_array(a, n) for n, a in zip(names, arrays, strict=True)]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def kept(*arrays: np.ndarray) -> int:
    """How many of the arrays are left, after checking that every reader reads the same as before."""
    proto = reading(*arrays)
    out, _, _ = apply([MergeEqual(), DropDead()], proto)
    want, got = run_reference(proto, {}), run_reference(out, {})
    for name, array in want.items():
        assert array.tobytes() == got[name].tobytes()
    return len(out.graph.initializer)


ODD_NAN = np.array([0x7FC00001], np.uint32).view(F32)


@pytest.mark.parametrize(
    ("arrays", "left"),
    [
        ([np.ones(3, F32), np.ones(3, F32), np.ones(3, F32)], 1),
        ([np.array([0.0], F32), np.array([-0.0], F32)], 2),
        ([np.array([np.nan], F32), np.array([np.nan], F32)], 1),
        ([np.array([np.nan], F32), ODD_NAN], 2),
        ([np.ones(3, F32), np.ones((3, 1), F32)], 2),
        ([np.zeros(2, F32), np.zeros(2, np.int32)], 2),
        ([np.zeros(2, np.float16), np.zeros(2, ml_dtypes.bfloat16)], 2),
        ([np.array(1, np.int64), np.array([1], np.int64)], 2),
        ([np.zeros((0, 3), F32), np.zeros((0, 3), F32), np.zeros((3, 0), F32)], 2),
    ],
)
def test_constants_are_equal_by_their_bytes(arrays: list[np.ndarray], left: int) -> None:
    assert kept(*arrays) == left


@pytest.mark.parametrize("place", [0, 5_000, 29_999])
def test_large_constants_are_told_apart_wherever_they_differ(place: int) -> None:
    one = np.zeros(30_000, F32)
    other = one.copy()
    other[place] = 1e-30
    assert kept(one, other) == 2
    assert kept(one, other, one.copy(), other.copy()) == 2


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, np.nan]), min_size=2, max_size=2),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_as_many_are_left_as_there_are_different_ones(rows: list[list[float]]) -> None:
    arrays = [np.array(row, F32) for row in rows]
    assert kept(*arrays) == len({array.tobytes() for array in arrays})


def test_interface_constants_stay() -> None:
    proto = model(
        """g (float[2] x, float[2] d) => (float[2] y, float[2] k)
        <float[2] d = {1, 2}, float[2] k = {1, 2}, float[2] w = {1, 2}> {
          a = Add (x, d)
          b = Mul (a, k)
          y = Sub (b, w)
        }"""
    )
    check_stays(MergeEqual(), proto)


def test_constants_of_one_subgraph() -> None:
    proto = model(
        """g (float[2] x, bool c) => (float[2] y) {
          y = If (c) <
            then_branch = d () => (float[2] p) <float[2] k = {1, 2}, float[2] l = {1, 2}>
              { q = Add (x, k)  p = Mul (q, l) },
            else_branch = e () => (float[2] s) <float[2] m = {1, 2}> { s = Mul (x, m) }>
        }"""
    )
    out = check_fires(MergeEqual(), proto, changed=1)
    out, _, _ = apply([MergeEqual(), DropDead()], proto)
    bodies = {attr.name: attr.g for attr in out.graph.node[0].attribute}
    assert [t.name for t in bodies["then_branch"].initializer] == ["k"]


def test_external_constants(tmp_path) -> None:
    rng = np.random.default_rng(0)
    big = rng.standard_normal(5000).astype(F32)
    proto = reading(big, big.copy(), rng.standard_normal(5000).astype(F32))
    onnx_io.save(onnx_io.load(proto), tmp_path / "m.onnx", external=True)
    graph = onnx_io.load(tmp_path / "m.onnx")
    assert MergeEqual().run(graph, Context()).changed == 2  # the constant, and the Cast of it


def test_many_ifs_take_linear_time() -> None:
    def ifs(count: int) -> onnx.ModelProto:
        nodes = [helper.make_node("Identity", ["x"], ["v0"], name="first")]
        for index in range(count):
            bodies = [
                helper.make_graph(
                    [helper.make_node(op, [f"v{index}"], [f"{op}{index}"])],
                    op,
                    [],
                    [helper.make_tensor_value_info(f"{op}{index}", 1, [2])],
                )
                for op in ("Neg", "Abs")
            ]
            nodes.append(
                helper.make_node(
                    "If",
                    ["c"],
                    [f"v{index + 1}"],
                    name=f"if{index}",
                    then_branch=bodies[0],
                    else_branch=bodies[1],
                )
            )
        infos = [
            helper.make_tensor_value_info("x", 1, [2]),
            helper.make_tensor_value_info("c", 9, []),
        ]
        out = helper.make_tensor_value_info(f"v{count}", 1, [2])
        graph = helper.make_graph(nodes, "g", infos, [out])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    times = []
    for count in (200, 2_000):
        graph = onnx_io.load(ifs(count))
        start = time.process_time()
        MergeEqual().run(graph, Context())
        times.append(time.process_time() - start)
    assert times[1] < 30 * max(times[0], 1e-3), times
