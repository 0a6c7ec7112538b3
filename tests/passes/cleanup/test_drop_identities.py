"""Nodes that do nothing go, and only those."""

import numpy as np
import onnx
import pytest
from harness import apply, check_fires, check_stays, model, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qgraph.passes.cleanup.drop_identities import DropIdentities
from qgraph.passes.normalize import Normalize

DROP = [Normalize(), DropIdentities()]
F32 = np.float32


def around(
    body: str,
    *,
    shape: str = "2, 3",
    out: str | None = None,
    dtype: str = "float",
    opset: int = 21,
    **extra: np.ndarray,
) -> onnx.ModelProto:
    """`body` computes t from a; a node stands before and behind it."""
    return model(
        f"""g ({dtype}[{shape}] x) => ({dtype}[{out or shape}] y) {{
          a = Mul (x, x)
          {body}
          y = Add (t, t)
        }}""",
        extra,
        opset=opset,
        ir_version=10 if opset > 20 else 8,
    )


NOTHING = {
    "Identity": ("t = Identity (a)", {}),
    "Dropout": ("t = Dropout (a)", {}),
    "Dropout with ratio": ("t = Dropout (a, r, f)", {"r": F32(0.5), "f": np.array(False)}),
    "Cast": ("t = Cast <to = 1> (a)", {}),
    "CastLike": ("t = CastLike (a, x)", {}),
    "Add": ("t = Add (a, k)", {"k": F32(0)}),
    "Add left": ("t = Add (k, a)", {"k": np.zeros(3, F32)}),
    "Sub": ("t = Sub (a, k)", {"k": np.zeros((1, 1), F32)}),
    "Mul": ("t = Mul (a, k)", {"k": np.ones((2, 3), F32)}),
    "Mul left": ("t = Mul (k, a)", {"k": F32(1)}),
    "Div": ("t = Div (a, k)", {"k": np.ones(1, F32)}),
    "Pow": ("t = Pow (a, k)", {"k": np.array(1, np.int64)}),
    "Slice": ("t = Slice (a, s, e)", {"s": np.array([0, 0]), "e": np.array([2, 2**63 - 1])}),
    "Slice negative": (
        "t = Slice (a, s, e, d, n)",
        {"s": np.array([-9]), "e": np.array([3]), "d": np.array([-1]), "n": np.array([1])},
    ),
    "Pad": ("t = Pad (a, p)", {"p": np.zeros(4, np.int64)}),
    "Tile": ("t = Tile (a, n)", {"n": np.array([1, 1])}),
    "Concat": ("t = Concat <axis = 1> (a)", {}),
    "Sum": ("t = Sum (a)", {}),
    "Max": ("t = Max (a)", {}),
    "Min": ("t = Min (a)", {}),
    "Mean": ("t = Mean (a)", {}),
    "Reshape": ("t = Reshape (a, s)", {"s": np.array([2, 3])}),
    "Reshape copying": ("t = Reshape (a, s)", {"s": np.array([0, -1])}),
    "Expand": ("t = Expand (a, s)", {"s": np.array([1, 3])}),
    "Transpose": ("t = Transpose <perm = [0, 1]> (a)", {}),
    "Flatten": ("t = Flatten <axis = -1> (a)", {}),
    "Unsqueeze": ("t = Unsqueeze (a, n)", {"n": np.zeros(0, np.int64)}),
    "Clip": ("t = Clip (a)", {}),
    "Reduce": ("t = ReduceSum <noop_with_empty_axes = 1> (a)", {}),
    "Neg Neg": ("n = Neg (a)  t = Neg (n)", {}),
}


@pytest.mark.parametrize("name", NOTHING)
def test_drops(name: str) -> None:
    body, extra = NOTHING[name]
    out = check_fires(DROP, around(body, **extra), changed=1)
    left = [op for op in ops(out) if op != "Neg"]
    assert left == ["Mul", "Add"]


@pytest.mark.parametrize("op_type", ["Relu", "Abs", "Ceil", "Floor", "Round", "Sign"])
def test_the_second_of_two_goes(op_type: str) -> None:
    out = check_fires(DROP, around(f"n = {op_type} (a)  t = {op_type} (n)"), changed=1)
    assert ops(out) == ["Mul", op_type, "Add"]


def test_not_not() -> None:
    proto = model(
        "g (bool[2] x) => (bool[2] y) { a = Not (x)  b = Not (a)  c = Xor (x, b)  y = Not (c) }"
    )
    assert ops(check_fires(DROP, proto, changed=1)) == ["Not", "Xor", "Not"]


SOMETHING = {
    "Cast": ("h = Cast <to = 10> (a)  t = Cast <to = 1> (h)", {}),
    "Add 1": ("t = Add (a, k)", {"k": F32(1)}),
    "Add nearly 0": ("t = Add (a, k)", {"k": np.array([0, 0, 1e-30], F32)}),
    "Sub from 0": ("t = Sub (k, a)", {"k": F32(0)}),
    "Div of 1": ("t = Div (k, a)", {"k": F32(1)}),
    "Pow of 1": ("t = Pow (k, a)", {"k": F32(1)}),
    "Slice": (
        "t0 = Slice (a, s, e)  t = Concat <axis = 1> (t0, t0, t0)",
        {"s": np.array([0, 0]), "e": np.array([2, 1])},
    ),
    "Slice reversed": (
        "t = Slice (a, s, e, d, n)",
        {"s": np.array([-1]), "e": np.array([-9]), "d": np.array([1]), "n": np.array([-1])},
    ),
    "Pad": (
        "p0 = Pad (a, p)  t = Slice (p0, z, e)",
        {"p": np.array([0, 0, 0, 1]), "z": np.array([0, 0]), "e": np.array([2, 3])},
    ),
    "Transpose": ("b = Transpose (a)  t = Reshape (b, s)", {"s": np.array([2, 3])}),
    "Clip": ("t = Clip (a, k)", {"k": F32(-1)}),
    "Reduce": ("s = ReduceSum (a)  t = Add (s, a)", {}),
    "Reduce L1": (
        "t = ReduceL1 <noop_with_empty_axes = 0, keepdims = 1> (a, n)",
        {"n": np.array([0])},
    ),
    "Relu Abs": ("n = Abs (a)  t = Neg (n)", {}),
}


@pytest.mark.parametrize("name", SOMETHING)
def test_leaves(name: str) -> None:
    body, extra = SOMETHING[name]
    proto = around(body, out="2, 3" if name != "Reduce L1" else "1, 3", **extra)
    _, reports, _ = apply(DROP, proto)
    assert reports[-1].changed == 0, reports[-1].details


@pytest.mark.parametrize(
    ("shape", "constant", "grows"),
    [
        ("3", (1, 3), True),
        ("3", (2, 3), True),
        ("1", (4,), True),
        ("N", (1,), False),
        ("N, 1", (1, 5), True),
        ("N", (3,), True),
        ("", (), False),
        ("", (1,), True),
    ],
)
def test_neutral_elements_that_broadcast(shape: str, constant: tuple, grows: bool) -> None:
    rank = max(len([s for s in shape.split(",") if s]), len(constant))
    out = ", ".join("ABC"[:rank])
    kinds = [f"float[{s}]" if s else "float" for s in (shape, out)]
    proto = model(
        f"g ({kinds[0]} x) => ({kinds[1]} y) {{ a = Neg (x)  t = Mul (a, k)  y = Neg (t) }}",
        {"k": np.ones(constant, F32)},
    )
    _, reports, _ = apply(DROP, proto)
    assert reports[-1].changed == (0 if grows else 1)


def test_without_a_known_rank_only_scalars_are_neutral() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
    g (float[2] x) => (float[K] y, float[L] z) <float s = {{0}}, float[1] v = {{0}}> {{
      a = acme.Mystery (x)  t = Add (a, {k})  y = Neg (t)  z = Neg (x) }}"""
    for name, changed in (("s", 1), ("v", 0)):
        _, reports, _ = apply(DROP, onnx.parser.parse_model(text.format(k=name)))
        assert reports[-1].changed == changed


def test_dropout_that_is_no_identity() -> None:
    proto = model(
        """g (float[2, 3] x, bool train) => (float[2, 3] y, bool[2, 3] m) {
          a, m = Dropout (x)
          b = Dropout (a, , train)
          y = Neg (b)
        }"""
    )
    check_stays(DROP, proto)


def test_old_opsets_write_attributes() -> None:
    proto = model(
        """g (float[2, 3] x) => (float[2, 3] y) {
          a = Slice <starts = [0], ends = [9], axes = [1]> (x)
          p = Pad <pads = [0, 0, 0, 0]> (a)
          u = Unsqueeze <axes = [0]> (p)
          v = Squeeze <axes = [0]> (u)
          c = Clip (v)
          d = Dropout <ratio = 0.5> (c)
          n = Neg (d)
          m = Clip <min = 0.0> (n)
          y = Slice <starts = [0], ends = [2], axes = [0]> (m)
        }""",
        opset=9,
        ir_version=4,
    )
    # Not normalized, which would upgrade it and tell the last Slice how much there is to take.
    out, (report,), _ = apply([DropIdentities()], proto)
    assert ops(out) == ["Unsqueeze", "Squeeze", "Neg", "Clip", "Slice"] and report.changed == 4
    x = np.arange(6, dtype=F32).reshape(2, 3) - 3
    np.testing.assert_array_equal(run_reference(out, {"x": x})["y"], np.maximum(-x, 0))


def test_a_name_between_input_and_output_needs_a_node() -> None:
    proto = model(
        """g (float[2] x) => (float[2] y, float[2] z, float[2] k) <float[2] w = {1, 2}> {
          y = Identity (x)
          k = Identity (w)
          z = Identity (y)
        }"""
    )
    # z could only read y, which is an output itself.
    check_stays(DropIdentities(), proto)


def test_an_output_takes_the_place_of_its_source() -> None:
    proto = model(
        "g (float[2] x) => (float[2] y) { a = Neg (x)  b = Identity (a)  y = Identity (b) }"
    )
    out = check_fires(DropIdentities(), proto, changed=2)
    assert ops(out) == ["Neg"] and list(out.graph.node[0].output) == ["y"]


def test_in_subgraphs() -> None:
    proto = model(
        """g (float[2] x, bool c, int64 n) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
          a = Identity (x)
          y = If (c) <
            then_branch = b () => (float[2] p) { i = Identity (a)  j = Neg (i)  p = Identity (j) },
            else_branch = d () => (float[2] q) { q = Identity (a) }>
          z = Loop (n, c, a) <
            body = l (int64 i, bool go, float[2] s) => (bool more, float[2] r) {
              more = Identity (go)
              u = Identity (s)
              r = Add (u, w)
            }>
        }"""
    )
    out = check_fires(DropIdentities(), proto, changed=4)
    bodies = {a.name: a.g for node in out.graph.node for a in node.attribute}
    assert [n.op_type for n in bodies["then_branch"].node] == ["Neg"]
    # A body must not return a value of the graph around it, nor its own input.
    assert [n.op_type for n in bodies["else_branch"].node] == ["Identity"]
    assert [n.op_type for n in bodies["body"].node] == ["Identity", "Add"]


def test_a_long_chain_goes_in_one_sweep() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["v0"])]
    nodes += [helper.make_node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(500)]
    nodes.append(helper.make_node("Abs", ["v500"], ["y"]))
    infos = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert ops(check_fires(DropIdentities(), proto, changed=500)) == ["Neg", "Abs"]


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    symbolic=st.lists(st.booleans(), min_size=3, max_size=3),
    target=st.lists(st.sampled_from([-1, 0, 1, 2, 3, 6]), min_size=1, max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_reshapes_that_change_the_shape_are_never_dropped(shape, symbolic, target) -> None:
    x = np.arange(np.prod(shape), dtype=F32).reshape(shape)
    if target.count(-1) > 1 or any(n == 0 and i >= len(shape) for i, n in enumerate(target)):
        return
    try:
        want = x.reshape([shape[i] if n == 0 else n for i, n in enumerate(target)])
    except ValueError:
        return
    dims = ", ".join("ABC"[i] if symbolic[i] else str(n) for i, n in enumerate(shape))
    out_dims = ", ".join("PQR"[: len(target)])
    proto = model(
        f"g (float[{dims}] x) => (float[{out_dims}] y) "
        "{ a = Neg (x)  r = Reshape (a, s)  y = Neg (r) }",
        {"s": np.array(target)},
    )
    out, _, _ = apply(DROP, proto)
    np.testing.assert_array_equal(run_reference(out, {"x": x})["y"], want)
    if want.shape == tuple(shape) and not any(symbolic[: len(shape)]):
        assert "Reshape" not in ops(out)


@given(
    size=st.integers(1, 4),
    start=st.integers(-6, 6),
    end=st.integers(-6, 6),
    step=st.sampled_from([1, 2, -1]),
    known=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_slices_that_cut_are_never_dropped(size, start, end, step, known) -> None:
    x = np.arange(size, dtype=F32)
    parts = {"s": start, "e": end, "d": 0, "n": step}
    proto = model(
        f"g (float[{size if known else 'N'}] x) => (float[M] y) "
        "{ a = Neg (x)  r = Slice (a, s, e, d, n)  y = Neg (r) }",
        {name: np.array([value]) for name, value in parts.items()},
    )
    out, _, _ = apply(DROP, proto)
    # Not numpy's slice: that clamps a start below the first element differently.
    want = run_reference(proto, {"x": x})["y"]
    np.testing.assert_array_equal(run_reference(out, {"x": x})["y"], want)
    if known and want.shape == x.shape and step == 1:
        assert "Slice" not in ops(out)
