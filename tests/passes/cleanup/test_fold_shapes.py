"""Shape chains fold as far as dimensions are known, and give what onnxruntime gives."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from harness import apply, check_fires, model, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qgraph.passes.cleanup.drop_dead import DropDead
from qgraph.passes.cleanup.fold_constants import FoldConstants
from qgraph.passes.normalize import Normalize

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "cleanup"
FOLD = [Normalize(), FoldConstants()]
F32, I64 = np.float32, np.int64


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


# -- shapes ------------------------------------------------------------------------------------


def read(name: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model((GOLDEN / f"{name}.txt").read_text())
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_shape_chain_as_in_the_golden_files() -> None:
    before, after = read("shape_chain.before"), read("shape_chain.after")
    out = check_fires([*FOLD, DropDead()], before)
    want = [(n.op_type, len(n.input)) for n in after.graph.node]
    assert [(n.op_type, len(n.input)) for n in out.graph.node] == want
    for node, other in zip(out.graph.node, after.graph.node, strict=True):
        have, wanted = constants(out), constants(after)
        got = [have[name].tolist() for name in node.input if name in have]
        assert got == [wanted[name].tolist() for name in other.input if name in wanted]


def shaped(body: str, *, shape: str = "N, 3, 8, 10", out: str = "int64[K] y", **extra) -> list:
    """Run a chain on Shape(x); return what is left and the folded results."""
    proto = model(f"g (float[{shape}] x) => ({out}) {{ s = Shape (x) {body} }}", extra)
    result = check_fires([*FOLD, DropDead()], proto)
    return ops(result)


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        (
            "c = Gather (s, one)  y = Unsqueeze (c, zero)",
            {"one": np.array(1), "zero": np.array([0])},
        ),
        ("y = Slice (s, a, b)", {"a": np.array([1]), "b": np.array([3])}),
        (
            "y = Slice (s, a, b, z, c)",
            {"a": np.array([-1]), "b": np.array([0]), "z": np.array([0]), "c": np.array([-2])},
        ),
        (
            "t = Gather (s, i)  d = Div (t, two)  y = Mul (d, d)",
            {"i": np.array([2, 3]), "two": np.array([2])},
        ),
        ("t = Gather (s, i)  p = ReduceProd (t)  y = Identity (p)", {"i": np.array([1, -1])}),
        (
            "t = Slice (s, a, b)  c = Cast <to = 6> (t)  y = Cast <to = 7> (c)",
            {"a": np.array([1]), "b": np.array([9])},
        ),
        (
            "t = Slice (s, a, b)  u = Concat <axis = 0> (t, a, t)  y = Add (u, a)",
            {"a": np.array([1]), "b": np.array([9])},
        ),
        (
            "e = Equal (s, m)  w = Where (e, one, s)  y = Slice (w, a, b)",
            {"m": np.array([-1]), "one": np.array([1]), "a": np.array([1]), "b": np.array([4])},
        ),
        ("t = Sub (s, s)  y = Identity (t)", {}),
        # ONNX takes a start before the first element for the first when it goes down.
        (
            "t = Concat <axis = 0> (five, s)  y = Slice (t, c, c, z, d)",
            {
                "five": np.array([5]),
                "c": np.array([-9]),
                "z": np.array([0]),
                "d": np.array([-1]),
            },
        ),
        # Division of integers cuts off towards zero.
        (
            "n = Sub (s, ten)  t = Div (n, two)  y = Gather (t, i)",
            {"i": np.array([1, 2]), "ten": np.array([10]), "two": np.array([2])},
        ),
    ],
)
def test_known_parts_of_a_shape_fold(body: str, extra: dict[str, np.ndarray]) -> None:
    left = shaped(body, **extra)
    assert left == ["Identity"]  # it carries the output's name


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        ("c = Gather (s, i)  y = Unsqueeze (c, i1)", {"i": np.array(0), "i1": np.array([0])}),
        ("y = Slice (s, a, b)", {"a": np.array([0]), "b": np.array([2])}),
        ("t = Mul (s, two)  y = Identity (t)", {"two": np.array([2])}),
        ("y = ReduceProd (s)", {}),
    ],
)
def test_unknown_parts_stay(body: str, extra: dict[str, np.ndarray]) -> None:
    proto = model(f"g (float[N, 3, 8, 10] x) => (int64[K] y) {{ s = Shape (x) {body} }}", extra)
    _, (_, report), _ = apply(FOLD, proto)
    assert report.changed == 0


@pytest.mark.parametrize(("start", "end", "want"), [(0, 4, 4), (-1, 9, 1), (1, -1, 2), (3, 1, 0)])
def test_shape_with_start_and_end(start: int, end: int, want: int) -> None:
    proto = model(
        f"""g (float[2, 3, 8, 10] x) => (int64[{want}] y)
        {{ y = Shape <start = {start}, end = {end}> (x) }}"""
    )
    out = check_fires(FOLD, proto)
    (got,) = constants(out).values()
    low, high, _ = slice(start, end).indices(4)
    assert got.tolist() == [2, 3, 8, 10][low:high]


def test_size_and_range_and_constant_of_shape() -> None:
    proto = model(
        """g (float[2, 3] x) => (float[6] y) {
          n = Size (x)
          r = Range (zero, n, one)
          s = Shape (r)
          c = ConstantOfShape (s)
          f = Cast <to = 1> (r)
          t = Add (f, c)
          v = Reshape (x, s)
          y = Add (v, t)
        }""",
        {"zero": np.array(0), "one": np.array(1)},
    )
    assert ops(check_fires(FOLD, proto)) == ["Reshape", "Add"]


@given(
    dims=st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=1, max_size=5),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_random_shape_arithmetic_is_that_of_onnxruntime(dims, data) -> None:
    """Chains of shape operators, some dimensions unknown, against an unoptimised run."""
    nodes, extra, last, length = [], {}, "s", len(dims)
    for step in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["Gather", "Slice", "Concat", "Add", "Mul", "Sub", "Div"]))
        name, here = f"k{step}", f"v{step}"
        if kind == "Gather":
            picks = data.draw(st.lists(st.integers(-length, length - 1), min_size=1, max_size=4))
            extra[name], length = np.array(picks), len(picks)
            nodes.append(f"{here} = Gather ({last}, {name})")
        elif kind == "Slice":
            step_by = data.draw(st.sampled_from([1, 2, -1]))
            start, end = (data.draw(st.integers(-9, 9)) for _ in "ab")
            low = max(start, -length) if step_by < 0 else start  # as ONNX clamps
            kept = len(range(length)[slice(low, end, step_by)])
            if not kept:
                continue
            parts = {f"{name}a": start, f"{name}b": end, f"{name}z": 0, f"{name}c": step_by}
            extra |= {key: np.array([value]) for key, value in parts.items()}
            nodes.append(f"{here} = Slice ({last}, {', '.join(parts)})")
            length = kept
        elif kind == "Concat":
            extra[name] = np.array([data.draw(st.integers(-1, 9))])
            nodes.append(f"{here} = Concat <axis = 0> ({name}, {last}, {name})")
            length += 2
        else:
            low = 1 if kind == "Div" else -3
            extra[name] = np.array([data.draw(st.integers(low, 4))])
            nodes.append(f"{here} = {kind} ({last}, {name})")
        last = here
    shape = ", ".join("?" if dim is None else str(dim) for dim in dims)
    proto = model(
        f"g (float[{shape}] x) => (int64[K] y) {{ s = Shape (x) {' '.join(nodes)} "
        f"y = Abs ({last}) }}",
        extra,
    )
    out, _, _ = apply([*FOLD, DropDead()], proto)
    feeds = {"x": np.zeros([7 if dim is None else dim for dim in dims], F32)}
    np.testing.assert_array_equal(run_reference(out, feeds)["y"], run_reference(proto, feeds)["y"])
    if None not in dims:
        assert ops(out) == ["Identity"]


def reshaped(shape: str, target: str, **extra: np.ndarray) -> onnx.ModelProto:
    return model(
        f"""g (float[{shape}] x, float[M, 6] z) => (float y) {{
          s = Shape (x)
          n = Gather (s, zero)
          m = Shape (z)
          {target}
          r = Reshape (x, t)
          a = ReduceSum <keepdims = 0> (r)
          b = ReduceSum <keepdims = 0> (z)
          y = Add (a, b)
        }}""",
        {"zero": np.array([0]), **extra},
    )


@pytest.mark.parametrize(
    ("target", "want"),
    [
        ("t = Concat <axis = 0> (n, k)", [0, -1]),
        ("t = Concat <axis = 0> (n, twelve)", [0, 12]),
        ("t = Concat <axis = 0> (twelve, n)", [12, -1]),
        ("h = Mul (n, twelve)  t = Concat <axis = 0> (h, one)", [-1, 1]),
    ],
)
def test_the_target_of_a_reshape_settles(target: str, want: list[int]) -> None:
    proto = reshaped("N, 3, 4", target, k=np.array([-1]), twelve=np.array([12]), one=np.array([1]))
    out = check_fires([*FOLD, DropDead()], proto)
    assert "Shape" not in ops(out)
    (reshape,) = [n for n in out.graph.node if n.op_type == "Reshape"]
    assert constants(out)[reshape.input[1]].tolist() == want


@pytest.mark.parametrize(
    "target",
    [
        # Two numbers are open, and neither is an axis of x at that place.
        "h = Mul (n, two)  d = Div (twelve, n)  t = Concat <axis = 0> (h, d, k)",
        "d = Div (n, two)  t = Concat <axis = 0> (d, k)",
        # A known 0 would copy an axis.
        "h = Mul (n, two)  t = Concat <axis = 0> (zero, h)",
    ],
)
def test_an_open_target_stays(target: str) -> None:
    proto = reshaped("N, 3, 4", target, k=np.array([-1]), two=np.array([2]), twelve=np.array([12]))
    out, _, _ = apply([*FOLD, DropDead()], proto)
    assert "Shape" in ops(out)


def test_allowzero_takes_no_copies() -> None:
    proto = reshaped("N, 3, 4", "t = Concat <axis = 0> (n, twelve)", twelve=np.array([12]))
    for node in proto.graph.node:
        if node.op_type == "Reshape":
            node.attribute.append(helper.make_attribute("allowzero", 1))
    out = check_fires([*FOLD, DropDead()], proto)
    (reshape,) = [n for n in out.graph.node if n.op_type == "Reshape"]
    assert constants(out)[reshape.input[1]].tolist() == [-1, 12]


def test_pads_that_open_shapes_behind_them() -> None:
    """Pads are known only after folding, and only then is the batch axis behind them."""
    proto = model(
        """g (float[N, 3, 8, 8] x) => (float[N, 192] y) {
          p = ConstantOfShape <value = int64[1] {0}> (eight)
          a = Pad (x, p)
          s = Shape (a)
          n = Gather (s, zero)
          t = Concat <axis = 0> (n, rest)
          y = Reshape (a, t)
        }""",
        {"eight": np.array([8]), "zero": np.array([0]), "rest": np.array([-1])},
    )
    assert ops(check_fires([*FOLD, DropDead()], proto)) == ["Pad", "Reshape"]
