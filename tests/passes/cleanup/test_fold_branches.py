"""Decided Ifs give way to their branch, and constants fold inside bodies."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from harness import apply, check_fires, model, ops, run_reference
from onnx import numpy_helper

from qgraph.passes.cleanup.drop_dead import DropDead
from qgraph.passes.cleanup.fold_constants import FoldConstants
from qgraph.passes.normalize import Normalize

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "cleanup"
FOLD = [Normalize(), FoldConstants()]
F32, I64 = np.float32, np.int64


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


# -- branches ----------------------------------------------------------------------------------

BRANCH = """g (float[2] x, bool c) => (float[2] y, float[2] z) <float[2] w = {{1, 2}}> {{
  size = Size (x)
  e = Equal (size, {number})
  y, u = If (e) <
    then_branch = a () => (float[2] p, float[2] q) <float[2] k = {{3, 4}}> {{
      p = Add (x, k)
      h = Neg (w)
      q = Mul (p, h)
    }},
    else_branch = b () => (float[2] p, float[2] q) {{
      p = Sub (x, w)
      q = If (c) <then_branch = d () => (float[2] k) {{ k = Neg (p) }},
                  else_branch = f () => (float[2] k) {{ k = Add (p, p) }}>
    }}
  >
  z = Relu (u)
}}"""


@pytest.mark.parametrize(
    ("number", "want"), [("two", ["Add", "Mul", "Relu"]), ("three", ["Sub", "If", "Relu"])]
)
def test_a_decided_if_is_inlined(number: str, want: list[str]) -> None:
    extra = {"two": np.array(2), "three": np.array(3)}
    proto = model(BRANCH.format(number=number), {number: extra[number]})
    out = check_fires([*FOLD, DropDead()], proto)
    assert ops(out) == want
    for condition in (True, False):
        feeds = {"x": np.array([-5, 7], F32), "c": np.array(condition)}
        before, after = run_reference(proto, feeds), run_reference(out, feeds)
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_branch_that_returns_a_constant_and_one_value_twice() -> None:
    proto = model(
        """g (float[2] x) => (float[2] y, float[2] z, float[2] k) <bool c = {1}> {
          y, z, k = If (c) <
            then_branch = a () => (float[2] p, float[2] q, float[2] r)
              <float[2] r = {3, 4}> { p = Neg (x)  q = Identity (p) },
            else_branch = b () => (float[2] p, float[2] q, float[2] r)
              { p = Abs (x)  q = Abs (x)  r = Abs (x) }
          >
        }"""
    )
    out = check_fires(FOLD, proto)
    assert "If" not in ops(out)


def test_constants_fold_inside_bodies() -> None:
    proto = model(
        """g (float[2] x, int64 n, bool c) => (float[2] y) <float[2] w = {1, 2}> {
          y = Loop (n, c, x) <
            body = l (int64 i, bool go, float[2] a) => (bool more, float[2] b) {
              more = Identity (go)
              s = Shape (w)
              f = Cast <to = 1> (s)
              h = Mul (w, f)
              b = Add (a, h)
            }
          >
        }"""
    )
    out, _, _ = apply([*FOLD, DropDead()], proto)
    (loop,) = out.graph.node
    assert [n.op_type for n in loop.attribute[0].g.node] == ["Identity", "Add"]
    feeds = {"x": np.zeros(2, F32), "n": np.array(3), "c": np.array(True)}
    np.testing.assert_array_equal(run_reference(out, feeds)["y"], [6, 12])


def test_bodies_of_two_ifs_may_use_the_same_names() -> None:
    text = """g (float[2] x) => (float[2] y) <bool c = {1}> {
      a = If (c) <
        then_branch = t () => (float[2] r) <float[2] k = {1, 2}> { n = Neg (x)  r = Add (n, k) },
        else_branch = e () => (float[2] s) { s = Neg (x) }>
      b = If (c) <
        then_branch = t () => (float[2] r) <float[2] k = {3, 4}> { n = Abs (a)  r = Mul (n, k) },
        else_branch = e () => (float[2] s) { s = Neg (a) }>
      y = Sub (a, b)
    }"""
    # Not normalized, which would have given them names of their own.
    out = check_fires(FoldConstants(), model(text), changed=2)
    assert ops(out) == ["Neg", "Add", "Abs", "Mul", "Sub"]
