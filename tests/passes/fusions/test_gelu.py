import math

import numpy as np
import onnx
import pytest
from formulas import Formula
from harness import check_fires, check_stays, ops
from hypothesis import given, settings
from hypothesis import strategies as st
from realmodels import shared

from qgraph import onnx_io
from qgraph.passes.fusions.gelu import Gelu
from qgraph.passes.fusions.layernorm import LayerNorm

SHAPE = {"x": ["batch", 5, 8]}


def erf_gate(f, x="x", root=0.5**0.5):
    return f.op("Erf", f.scaled(x, root))


def tanh_gate(f, x="x", cubic=0.044715):
    slope = math.sqrt(2 / math.pi)
    if f.choose(2):  # k x (1 + c x^2)
        square = f.op("Pow", x, f.const(2.0)) if f.choose(2) else f.op("Mul", x, x)
        inner = f.either("Add", f.scaled(square, cubic), f.const(1.0))
        return f.op("Tanh", f.product(x, inner, by=slope))
    how = f.choose(3)
    if how == 0:
        term = f.scaled(f.op("Pow", x, f.const(3.0)), cubic)
    elif how == 1:
        term = f.product(x, f.op("Pow", x, f.const(2.0)), by=cubic)
    else:
        term = f.product(x, x, x, by=cubic)
    return f.op("Tanh", f.scaled(f.either("Add", x, term), slope))


def gelu(f, gate):
    if f.choose(4) == 3:
        return f.either("Mul", "x", f.either("Add", f.scaled(gate, 0.5), f.const(0.5)))
    return f.product("x", f.either("Add", gate, f.const(1.0)), by=0.5)


def approximate(proto):
    node = next(n for n in proto.graph.node if n.op_type == "Gelu")
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_erf_form_in_every_order(data):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)))
    out = check_fires(Gelu(), f.model(SHAPE, gelu(f, erf_gate(f))), changed=1)
    assert ops(out) == ["Gelu"] and approximate(out) == {}


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_tanh_form_in_every_order(data):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)))
    out = check_fires(Gelu(), f.model(SHAPE, gelu(f, tanh_gate(f))), changed=1)
    assert ops(out) == ["Gelu"] and approximate(out) == {"approximate": b"tanh"}


@pytest.mark.parametrize("gate", [erf_gate, tanh_gate])
def test_float16_constants_match(gate):
    f = Formula(dtype=np.float16)
    out = check_fires(Gelu(), f.model(SHAPE, gelu(f, gate(f))), rtol=2e-3)
    assert ops(out) == ["Gelu"]


def test_constants_in_nodes_match():
    f = Formula()
    proto = f.model(SHAPE, gelu(f, erf_gate(f)))
    nodes = [
        onnx.helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer
    ]
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)
    del proto.graph.initializer[:]
    out = check_fires(Gelu(), proto, changed=1)
    assert [op for op in ops(out) if op != "Constant"] == ["Gelu"]


def test_the_truncated_root_of_exporters_matches():
    f = Formula()
    gate = f.op("Erf", f.op("Div", "x", f.const(1.4142)))
    check_fires(Gelu(), f.model(SHAPE, gelu(f, gate)), changed=1)


def test_several_in_a_row():
    f = Formula()
    first = gelu(f, erf_gate(f))
    gate = erf_gate(f, first)
    y = f.product(first, f.op("Add", gate, f.const(1.0)), by=0.5)
    assert ops(check_fires(Gelu(), f.model(SHAPE, y), changed=2)) == ["Gelu", "Gelu"]


def test_input_and_result_may_be_read_elsewhere():
    f = Formula()
    y = gelu(f, erf_gate(f))
    out = check_fires(Gelu(), f.model(SHAPE, f.op("Add", y, "x"), y), changed=1)
    assert ops(out) == ["Gelu", "Add"]


@pytest.mark.parametrize("opset", [13, 17, 19])
def test_before_opset_20_it_says_so(opset):
    f = Formula(opset=opset)
    reason = f"Gelu needs opset 20, the model has {opset}"
    reports = check_stays(Gelu(), f.model(SHAPE, gelu(f, erf_gate(f))), reason)
    assert len(reports[-1].refused) == 1


def test_opset_20_is_enough():
    f = Formula(opset=20)
    check_fires(Gelu(), f.model(SHAPE, gelu(f, tanh_gate(f))), changed=1)


def test_constants_that_add_axes_are_refused():
    f = Formula(constant_rank=4)
    proto = f.model(SHAPE, gelu(f, erf_gate(f)))
    check_stays(Gelu(), proto, "a constant has more axes")


def test_constants_of_no_more_axes_than_the_input_match():
    f = Formula(constant_rank=3)
    check_fires(Gelu(), f.model(SHAPE, gelu(f, erf_gate(f))), changed=1)


@pytest.mark.parametrize("root", [0.7, 0.72, 1.0])
def test_another_divisor_is_another_function(root):
    f = Formula()
    check_stays(Gelu(), f.model(SHAPE, gelu(f, erf_gate(f, root=root))))


def test_another_cubic_factor_is_another_function():
    f = Formula()
    check_stays(Gelu(), f.model(SHAPE, gelu(f, tanh_gate(f, cubic=0.05))))


def test_another_input_in_the_gate_is_another_function():
    f = Formula()
    proto = f.model({**SHAPE, "z": SHAPE["x"]}, gelu(f, erf_gate(f, x="z")))
    check_stays(Gelu(), proto)


def test_erf_as_graph_output_stays():
    f = Formula()
    gate = erf_gate(f)
    check_stays(Gelu(), f.model(SHAPE, gelu(f, gate), gate))


def test_erf_read_twice_stays():
    f = Formula()
    gate = erf_gate(f)
    check_stays(Gelu(), f.model(SHAPE, gelu(f, gate), f.op("Neg", gate)))


def test_inside_a_branch_of_if():
    f = Formula()
    y = gelu(f, erf_gate(f))
    inner = f.model({"x": [2, 8]}, y).graph
    del inner.input[:]
    other = Formula()
    other.nodes.append(onnx.helper.make_node("Identity", ["x"], ["same"]))
    plain = other.model({"x": [2, 8]}, "same").graph
    del plain.input[:]
    outer = Formula()
    outer.nodes.append(
        onnx.helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=plain)
    )
    proto = outer.model({"flag": [], "x": [2, 8]}, "y", types={"flag": bool})
    out = check_fires(Gelu(), proto, changed=1)
    bodies = {a.name: [n.op_type for n in a.g.node] for a in out.graph.node[0].attribute}
    assert bodies == {"then_branch": ["Gelu"], "else_branch": ["Identity"]}


def test_upgraded_model_fuses():
    f = Formula(opset=13)
    graph = onnx_io.load(f.model(SHAPE, gelu(f, erf_gate(f))))
    assert onnx_io.upgrade_opset(graph, 21) is None
    check_fires(Gelu(), onnx_io.to_proto(graph), changed=1)


@pytest.mark.slow
def test_minilm_has_none_left():
    graph = onnx_io.load(shared("models", "minilm_l6_v2.onnx"))
    assert onnx_io.upgrade_opset(graph, 21) is None
    onnx_io.infer_shapes(graph)
    feeds = {
        "input_ids": np.arange(1000, 1024).reshape(2, 12),
        "attention_mask": np.repeat([[1], [1]], 12, axis=1),
    }
    feeds["attention_mask"][1, 7:] = 0
    out = check_fires([LayerNorm(), Gelu()], onnx_io.to_proto(graph), changed=6, feeds=feeds)
    assert "Erf" not in ops(out) and "Sqrt" not in ops(out)
    assert ops(out).count("LayerNormalization") == 13


def test_text_recogniser_has_none_left():
    graph = onnx_io.load(shared("models", "ppocrv6_rec_small.onnx"))
    assert onnx_io.upgrade_opset(graph, 21) is None
    for node in list(graph.nodes("Identity")):
        if not node.outputs[0].is_graph_output():
            graph.replace(node.outputs[0], node.inputs[0])
            graph.remove(node)
    onnx_io.infer_shapes(graph)
    assert Gelu().run(graph, None).changed == 13 and not list(graph.nodes("Erf"))
