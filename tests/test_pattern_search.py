"""What the matcher does to stay fast and to see the whole before its parts."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import pytest
from formulas import Formula
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph import onnx_io
from qgraph.pattern import const, match, maybe, one_of, op, possible, scalar, var
from qgraph.pipeline import Fusion, Reject

SHAPE = {"x": [2, 4]}
OPS = ["Add", "Mul", "Relu", "Div", "Clip"]


@st.composite
def patterns(draw, depth=2):
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from([var("a"), var("b"), const("c"), scalar(2.0), maybe("d")]))
    if draw(st.integers(0, 4)) == 0:
        return one_of(draw(patterns(depth - 1)), draw(patterns(depth - 1)))
    name = draw(st.sampled_from(OPS))
    count = {"Relu": 1, "Clip": 3}.get(name, 2)
    return getattr(op, name)(*(draw(patterns(depth - 1)) for _ in range(count)))


@st.composite
def graphs(draw):
    f = Formula()
    values = ["x"]
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(OPS))

        def pick():
            return f.const(2.0) if draw(st.booleans()) else draw(st.sampled_from(values))

        if name == "Relu":
            values.append(f.op("Relu", draw(st.sampled_from(values))))
        elif name == "Clip":
            values.append(f.op("Clip", draw(st.sampled_from(values)), f.const(0.0)))
        else:
            values.append(f.op(name, draw(st.sampled_from(values)), pick()))
    return onnx_io.load(f.model(SHAPE, values[-1]))


def slow_match(graph, pattern, node):
    """All ways to match, without looking ahead: a few lines against the real matcher's many."""

    def fit(pattern, value, bound):
        if hasattr(pattern, "choices"):
            for choice in pattern.choices:
                yield from fit(choice, value, bound)
        elif hasattr(pattern, "types"):
            maker = value.producer() if value is not None else None
            if maker is not None:
                yield from at(pattern, maker, bound)
        elif value is None:
            if pattern.optional:
                yield bound
        elif pattern.scalar is not None:
            if graph.scalar(value) == pattern.scalar:
                yield bound
        elif (not pattern.constant or graph.is_constant(value)) and (
            bound[0].get(pattern.name, value) is value
        ):
            yield {**bound[0], pattern.name: value}, bound[1]

    def at(pattern, node, bound):
        if node.op_type not in pattern.types or len(node.inputs) > len(pattern.inputs):
            return
        inputs = [*node.inputs, *[None] * (len(pattern.inputs) - len(node.inputs))]
        orders = [inputs, inputs[::-1]] if node.op_type in {"Add", "Mul"} else [inputs]
        for order in orders:
            states = [(bound[0], bound[1] | {node})]
            for each, value in zip(pattern.inputs, order, strict=True):
                states = [after for state in states for after in fit(each, value, state)]
            yield from states

    def private(nodes):
        return all(
            use.node in nodes for inner in nodes - {node} for use in inner.outputs[0].uses()
        ) and not any(inner.outputs[0].is_graph_output() for inner in nodes - {node})

    return any(private(nodes) for _, nodes in fit(pattern, node.outputs[0], ({}, frozenset())))


@settings(max_examples=300, deadline=None)
@given(patterns(), graphs())
def test_the_matcher_finds_what_a_plain_one_finds(pattern, graph):
    if not hasattr(pattern, "types"):
        return
    present = {node.op_type for node in graph.nodes()}
    for node in graph.nodes():
        found = match(graph, pattern, node) is not None
        assert found == slow_match(graph, pattern, node)
        assert not found or possible(pattern, present)


def test_possible_needs_every_operator():
    pattern = op.Add(one_of(op.Erf(var("x")), op.Tanh(var("x"))), const("c"))
    assert possible(pattern, {"Add", "Tanh"})
    assert not possible(pattern, {"Add", "Mul"}) and not possible(pattern, {"Erf", "Tanh"})


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        (np.float32, 0.70710, True),
        (np.float32, 0.7080, False),
        (np.float16, 0.70710678, True),
        (np.float16, 0.7090, False),
        (ml_dtypes.bfloat16, 0.70710678, True),
        (ml_dtypes.bfloat16, 0.72, False),
    ],
)
@pytest.mark.parametrize("node", [False, True])
def test_scalars_in_each_type(dtype, value, fits, node):
    f = Formula(dtype=dtype)
    proto = f.model(SHAPE, f.op("Mul", "x", f.const(value)))
    if node:
        tensor = proto.graph.initializer.pop()
        proto.graph.node.insert(
            0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        )
    graph = onnx_io.load(proto)
    root = next(graph.nodes("Mul"))
    found = match(graph, op.Mul(var("x"), scalar(0.70710678)), root)
    assert (found is not None) == fits


@dataclass(frozen=True)
class Halving(Fusion):
    """Relu(x) / 2, with or without an Add behind it."""

    name = "halving"
    pattern = one_of(
        op.Add(op.Div(op.Relu(var("x")), scalar(2.0)), const("shift")),
        op.Div(op.Relu(var("x")), scalar(2.0)),
    )
    largest_first = True
    reason = ""

    def rewrite(self, graph, m):
        if self.reason:
            return Reject(self.reason)
        return graph.insert("Elu", [m.value("x")], before=m.root).outputs[0]


@dataclass(frozen=True)
class Refusing(Halving):
    reason = "no"


def halved():
    f = Formula()
    return onnx_io.load(
        f.model(SHAPE, f.op("Add", f.op("Div", f.op("Relu", "x"), f.const(2.0)), f.const(1.0)))
    )


def test_largest_first_takes_the_whole():
    graph = halved()
    assert Halving().run(graph, None).changed == 1
    assert [n.op_type for n in graph.nodes()] == ["Elu"]


def test_a_part_refused_for_the_same_reason_is_said_once():
    report = Refusing().run(halved(), None)
    assert [(r.where, r.reason) for r in report.refused] == [("add2", "no")]


def test_inner_nodes_read_twice_inside_are_removed():
    f = Formula()
    r = f.op("Relu", "x")
    graph = onnx_io.load(f.model(SHAPE, f.op("Div", r, f.op("Exp", r))))

    @dataclass(frozen=True)
    class Diamond(Fusion):
        name = "diamond"
        _relu = op.Relu(var("x"), bind="relu")
        pattern = op.Div(_relu, op.Exp(_relu))

        def rewrite(self, graph, m):
            return graph.insert("Elu", [m.value("x")], before=m.root).outputs[0]

    assert Diamond().run(graph, None).changed == 1
    assert [n.op_type for n in graph.nodes()] == ["Elu"]


def test_walk_enters_bodies_behind_their_node():
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["b"], name="inner")],
        "body",
        [],
        [onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [2, 4])],
    )
    f = Formula()
    f.op("Abs", "x")
    f.nodes.append(
        onnx.helper.make_node("If", ["flag"], ["y"], name="if", then_branch=body, else_branch=body)
    )
    graph = onnx_io.load(f.model({**SHAPE, "flag": []}, f.op("Neg", "y"), types={"flag": bool}))
    assert [n.name for n in graph.walk()] == ["abs0", "if", "inner", "inner", "neg2"]
