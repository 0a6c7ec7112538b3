"""Chains that only rearrange become one node or none."""

import itertools

import numpy as np
import onnx
import pytest
from harness import apply, check_fires, check_stays, model, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.cleanup.merge_transposes import MergeTransposes
from qgraph.passes.normalize import Normalize

MERGE = [Normalize(), MergeTransposes()]


def chain(body: str, *, shape: str = "2, 3, 4", out: str = "A, B, C", **extra) -> onnx.ModelProto:
    return model(
        f"g (float[{shape}] x) => (float[{out}] y) {{ a = Neg (x)  {body}  y = Neg (t) }}", extra
    )


@pytest.mark.parametrize("first", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("second", list(itertools.permutations(range(3))))
def test_two_transposes(first: tuple, second: tuple) -> None:
    proto = chain(
        f"b = Transpose <perm = {list(first)}> (a)  t = Transpose <perm = {list(second)}> (b)"
    )
    out = check_fires(MERGE, proto, changed=1)
    inverse = tuple(first[axis] for axis in second) == (0, 1, 2)
    assert ops(out) == (["Neg", "Neg"] if inverse else ["Neg", "Transpose", "Neg"])


def test_transposes_without_perm() -> None:
    assert ops(check_fires(MERGE, chain("b = Transpose (a)  t = Transpose (b)"))) == ["Neg", "Neg"]


def test_a_long_chain_becomes_one() -> None:
    names = ["a", *"bcdef", "t"]
    body = "  ".join(
        f"{after} = Transpose <perm = [1, 2, 0]> ({before})"
        for before, after in itertools.pairwise(names)
    )
    # Six turns of three axes are none, merged pair by pair.
    assert ops(check_fires(MERGE, chain(body))) == ["Neg", "Neg"]


def test_the_first_stays_where_others_read_it() -> None:
    proto = model(
        """g (float[2, 3, 4] x) => (float[A, B, C] y, float[D, E, F] z) {
          a = Transpose <perm = [1, 2, 0]> (x)
          b = Transpose <perm = [1, 2, 0]> (a)
          y = Neg (b)
          z = Neg (a)
        }"""
    )
    out = check_fires(MERGE, proto, changed=1)
    assert ops(out) == ["Transpose", "Transpose", "Neg", "Neg"]
    assert [list(n.input) for n in out.graph.node[:2]] == [["x"], ["x"]]


def test_between_an_input_and_an_output_one_node_stays() -> None:
    proto = model(
        """g (float[2, 3] x) => (float[2, 3] y) {
          a = Transpose <perm = [1, 0]> (x)
          y = Transpose <perm = [1, 0]> (a)
        }"""
    )
    assert ops(check_fires(MERGE, proto)) == ["Transpose"]


def test_other_nodes_between_stay() -> None:
    check_stays(MERGE, chain("b = Transpose (a)  c = Abs (b)  t = Transpose (c)"))


@pytest.mark.parametrize(
    ("first", "extra"),
    [
        ("b = Reshape (a, s)", {"s": np.array([4, 6])}),
        ("b = Reshape (a, s)", {"s": np.array([0, -1])}),
        ("b = Unsqueeze (a, s)", {"s": np.array([0, -1])}),
        ("b = Flatten <axis = 2> (a)", {}),
    ],
)
@pytest.mark.parametrize("target", [[3, 8], [-1, 2], [2, 3, 4], [1, -1]])
def test_reshape_behind_what_reshapes(first: str, extra: dict, target: list[int]) -> None:
    out_dims = "A, B, C"[: 3 * len(target) - 2]
    proto = chain(f"{first}  t = Reshape (b, r)", out=out_dims, r=np.array(target), **extra)
    out = check_fires(MERGE, proto, changed=1)
    assert ops(out) == (["Neg", "Neg"] if target == [2, 3, 4] else ["Neg", "Reshape", "Neg"])


def test_reshape_behind_squeeze() -> None:
    proto = chain(
        "b = Squeeze (a, s)  t = Reshape (b, r)",
        shape="1, 6, N",
        out="A, B",
        s=np.array([0]),
        r=np.array([-1, 3]),
    )
    assert ops(check_fires(MERGE, proto)) == ["Neg", "Reshape", "Neg"]


def test_copied_axes_are_those_of_the_value_between() -> None:
    proto = chain(
        "b = Reshape (a, s)  t = Reshape (b, r)",
        out="A, B",
        s=np.array([4, 6]),
        r=np.array([0, -1]),
    )
    out = check_fires(MERGE, proto, changed=1)
    assert ops(out) == ["Neg", "Reshape", "Neg"]
    check_stays(
        MERGE,
        chain(
            "b = Reshape (a, s)  t = Reshape (b, r)",
            shape="N, 3, 4",
            out="A, B, C",
            s=np.array([-1, 6]),
            r=np.array([0, 2, 3]),
        ),
    )


def test_allowzero_copies_nothing() -> None:
    proto = chain(
        "b = Reshape (a, s)  t = Reshape <allowzero = 1> (b, r)",
        shape="N, 0",
        out="A, B",
        s=np.array([0, 0]),
        r=np.array([0, 5]),
    )
    out, reports, _ = apply(MERGE, proto)
    assert reports[-1].changed == 1
    got = run_reference(out, {"x": np.zeros((3, 0), np.float32)})["y"]
    assert got.shape == (0, 5)


def test_computed_targets_stay() -> None:
    proto = model(
        """g (float[2, 3, 4] x, int64[2] n) => (float[A, B] y) {
          a = Neg (x)
          b = Flatten (a)
          t = Reshape (b, n)
          y = Neg (t)
        }"""
    )
    _, reports, _ = apply(MERGE, proto)
    assert reports[-1].changed == 0


@pytest.mark.parametrize("axes", [[0], [1], [-1], [0, 2], [-1, 1]])
@pytest.mark.parametrize("shape", ["1, 1, 1", "1, N, 1", "1, 1, 1, M"])
def test_squeeze_and_unsqueeze(axes: list[int], shape: str) -> None:
    rank = shape.count(",") + 1
    proto = chain(
        "b = Unsqueeze (a, s)  t = Squeeze (b, s)",
        shape=shape,
        out=", ".join("ABCD"[:rank]),
        s=np.array(axes),
    )
    assert ops(check_fires(MERGE, proto)) == ["Neg", "Neg"]


def test_unsqueeze_behind_squeeze_of_the_same_axes() -> None:
    proto = chain(
        "b = Squeeze (a, s)  t = Unsqueeze (b, s)",
        shape="1, N, 1, M",
        out="A, B, C, D",
        s=np.array([2, 0]),
    )
    assert ops(check_fires(MERGE, proto)) == ["Neg", "Neg"]


def test_squeeze_of_other_axes_stays() -> None:
    proto = chain(
        "b = Unsqueeze (a, s)  t = Squeeze (b, q)",
        shape="N, 1",
        out="A, B",
        s=np.array([0]),
        q=np.array([2]),
    )
    check_stays(MERGE, proto)


def test_in_subgraphs_with_the_first_outside() -> None:
    proto = model(
        """g (float[2, 3] x, bool c) => (float[A, B] y) {
          a = Transpose (x)
          y = If (c) <
            then_branch = d () => (float[C, D] p) { p = Transpose (a) },
            else_branch = e () => (float[E, F] q) { r = Transpose (a)  q = Neg (r) }>
        }"""
    )
    out = check_fires(MERGE, proto, changed=2)
    bodies = {attr.name: attr.g for node in out.graph.node for attr in node.attribute}
    # A body can't return a value of the graph around it.
    assert [n.op_type for n in bodies["then_branch"].node] == ["Transpose"]
    assert [n.op_type for n in bodies["else_branch"].node] == ["Neg"]
    assert ops(out) == ["If"]


STEPS = st.sampled_from(["Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"])


@given(st.lists(STEPS, min_size=2, max_size=6), st.booleans(), st.data())
@settings(max_examples=120, deadline=None)
def test_random_chains_compute_the_same(steps: list[str], known: bool, data: st.DataObject) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 1, 6)
    value, lines, extra, last = -x, [], {}, "a"
    for index, op_type in enumerate(steps):
        name, here = f"k{index}", f"v{index}"
        rank = value.ndim
        if op_type == "Transpose":
            perm = data.draw(st.permutations(range(rank)))
            value = value.transpose(perm)
            call = f"Transpose <perm = {list(perm)}> ({last})" if rank else f"Transpose ({last})"
        elif op_type == "Flatten":
            axis = data.draw(st.integers(0, rank))
            value = value.reshape(int(np.prod(value.shape[:axis])), -1)
            call = f"Flatten <axis = {axis}> ({last})"
        elif op_type == "Reshape":
            target = data.draw(
                st.sampled_from([[-1], [0, -1], [2, 6], [3, -1], [4, 1, 3], [2, 1, 6]])
            )
            value = value.reshape([value.shape[i] if n == 0 else n for i, n in enumerate(target)])
            extra[name], call = np.array(target), f"Reshape ({last}, {name})"
        elif op_type == "Unsqueeze":
            axis = data.draw(st.integers(-rank - 1, rank))
            value = np.expand_dims(value, axis)
            extra[name], call = np.array([axis]), f"Unsqueeze ({last}, {name})"
        else:
            ones = [axis for axis, size in enumerate(value.shape) if size == 1]
            if not ones:
                continue
            axis = data.draw(st.sampled_from(ones))
            value = value.squeeze(axis)
            axis -= data.draw(st.sampled_from([0, rank]))
            extra[name], call = np.array([axis]), f"Squeeze ({last}, {name})"
        lines.append(f"{here} = {call}")
        last = here
    dims = ", ".join("ABCDEFGHIJ"[: value.ndim])
    proto = model(
        f"g (float[{'2' if known else 'N'}, 1, 6] x) => (float[{dims}] y) "
        f"{{ a = Neg (x)  {'  '.join(lines)}  y = Neg ({last}) }}",
        extra,
    )
    out, _, _ = apply(MERGE, proto)
    got = run_reference(out, {"x": x})["y"]
    assert got.shape == value.shape
    np.testing.assert_array_equal(got, -value)
    assert len(ops(out)) <= len(ops(proto))
