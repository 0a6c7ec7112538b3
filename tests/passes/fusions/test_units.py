import numpy as np
import onnx
import pytest
from formulas import Formula
from harness import model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from realmodels import ROOT, shared

from qgraph import onnx_io
from qgraph.passes.fusions.units import MarkUnits
from qgraph.pipeline import Pipeline

RNG = np.random.default_rng(0)


def mark(proto, infer=True):
    graph = onnx_io.load(proto)
    if infer:
        onnx_io.infer_shapes(graph)
    before = onnx_io.to_proto(graph)
    report = Pipeline([MarkUnits()]).run(graph)[0].report
    assert report.changed == 0 and onnx_io.to_proto(graph) == before
    check(graph)
    return graph.facts.units


def check(graph):
    """What must hold for every marking."""
    order = {node: i for i, node in enumerate(graph.main)}
    units = graph.facts.units
    kinds = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    anchors = [n for n in order if n.op_type in kinds and not n.domain]
    assert [u.anchor for u in units] == anchors
    seen = [node for u in units for node in u.nodes]
    assert len(seen) == len(set(seen)), "a node belongs to two units"
    for unit in units:
        for first, second in zip(unit.nodes, unit.nodes[1:], strict=False):
            assert [use.node for use in first.outputs[0].uses()] == [second]
            assert not first.outputs[0].is_graph_output() and order[first] < order[second]


def types(unit):
    return [node.op_type for node in unit.nodes]


def conv(f, x, **more):
    return f.op("Conv", x, f.const(RNG.standard_normal((4, 4, 3, 3))), pads=[1, 1, 1, 1], **more)


IMAGE = {"x": ["batch", 4, 6, 6]}
ACTIVATIONS = {
    "Relu": (),
    "HardSwish": (),
    "HardSigmoid": (),
    "Sigmoid": (),
    "Tanh": (),
    "Gelu": (),
    "Mish": (),
    "Elu": (),
    "LeakyRelu": (),
    "Clip": (0.0, 6.0),
    "PRelu": (np.ones((4, 1, 1)),),
}


def activated(f, x, op_type="Relu"):
    return f.op(op_type, x, *(f.const(value) for value in ACTIVATIONS[op_type]))


@pytest.mark.parametrize("op_type", list(ACTIVATIONS))
def test_each_activation(op_type):
    f = Formula()
    [unit] = mark(f.model(IMAGE, activated(f, conv(f, "x"), op_type)))
    assert unit.kind == "conv" and types(unit) == ["Conv", op_type]
    assert unit.activation.op_type == op_type and unit.bias is None and unit.residual is None


def test_swish():
    f = Formula(opset=24)
    [unit] = mark(f.model(IMAGE, f.op("Swish", conv(f, "x"))))
    assert types(unit) == ["Conv", "Swish"]


@pytest.mark.parametrize("op_type", ["Softmax", "Exp", "MaxPool", "Softplus"])
def test_other_operators_end_a_unit(op_type):
    f = Formula()
    more = {"kernel_shape": [2, 2]} if op_type == "MaxPool" else {}
    [unit] = mark(f.model(IMAGE, f.op(op_type, conv(f, "x"), **more)))
    assert types(unit) == ["Conv"]


def test_bounds_and_slopes_must_be_constant():
    f = Formula()
    [unit] = mark(f.model({**IMAGE, "top": []}, f.op("Clip", conv(f, "x"), f.const(0.0), "top")))
    assert types(unit) == ["Conv"]
    f = Formula()
    [unit] = mark(f.model({**IMAGE, "slope": [4, 1, 1]}, f.op("PRelu", conv(f, "x"), "slope")))
    assert types(unit) == ["Conv"]


def test_a_result_that_is_only_the_slope():
    f = Formula()
    [unit] = mark(f.model({**IMAGE, "z": IMAGE["x"]}, f.op("PRelu", "z", conv(f, "x"))))
    assert types(unit) == ["Conv"]


def test_clip_with_bounds_as_attributes():
    f = Formula(opset=10)
    [unit] = mark(f.model(IMAGE, f.op("Clip", conv(f, "x"), min=0.0, max=6.0)))
    assert types(unit) == ["Conv", "Clip"]


@pytest.mark.parametrize("flip", [0, 1])
def test_residual_then_activation(flip):
    f = Formula(lambda n: flip)
    y = activated(f, f.either("Add", conv(f, "x"), "x"))
    [unit] = mark(f.model(IMAGE, y))
    assert types(unit) == ["Conv", "Add", "Relu"]
    assert unit.residual.op_type == "Add" and unit.activation.op_type == "Relu"
    assert unit.output.name == y


def test_activation_then_add_is_no_residual():
    f = Formula()
    [unit] = mark(f.model(IMAGE, f.op("Add", activated(f, conv(f, "x")), "x")))
    assert types(unit) == ["Conv", "Relu"]


@pytest.mark.parametrize("flip", [0, 1])
def test_two_results_meet_and_the_later_takes_the_add(flip):
    f = Formula(lambda n: flip)
    early, late = conv(f, "x"), conv(f, "x")
    first, second = mark(f.model(IMAGE, activated(f, f.either("Add", early, late))))
    assert types(first) == ["Conv"] and types(second) == ["Conv", "Add", "Relu"]


def test_an_activated_result_leaves_the_add_to_the_other():
    f = Formula()
    early = conv(f, "x")
    late = activated(f, conv(f, "x"))
    first, second = mark(f.model(IMAGE, f.op("Add", early, late)))
    assert types(first) == ["Conv", "Add"] and types(second) == ["Conv", "Relu"]


def test_a_projected_shortcut():
    f = Formula()
    x = activated(f, conv(f, "x"))
    short = conv(f, x)
    y = conv(f, activated(f, conv(f, x)))
    units = mark(f.model(IMAGE, activated(f, f.op("Add", short, y))))
    assert [types(u) for u in units] == [
        ["Conv", "Relu"],
        ["Conv"],
        ["Conv", "Relu"],
        ["Conv", "Add", "Relu"],
    ]


def test_add_of_a_constant_is_no_residual():
    f = Formula()
    y = f.op("Add", conv(f, "x"), f.const(RNG.standard_normal((1, 4, 6, 6))))
    [unit] = mark(f.model(IMAGE, y))
    assert types(unit) == ["Conv"]


@pytest.mark.parametrize("shape", [["batch", 4, 1, 1], [4, 6, 6], [6], []])
def test_an_add_that_broadcasts_is_no_residual(shape):
    f = Formula()
    [unit] = mark(f.model({**IMAGE, "z": shape}, f.op("Add", conv(f, "x"), "z")))
    assert types(unit) == ["Conv"]


def test_symbolic_shapes_may_be_equal():
    f = Formula()
    shape = ["batch", 4, "height", "width"]
    y = f.op("Add", conv(f, "x"), "z")
    [unit] = mark(f.model({"x": shape, "z": shape}, y), infer=False)
    assert types(unit) == ["Conv", "Add"]


def test_a_result_added_to_itself_ends_a_unit():
    f = Formula()
    y = conv(f, "x")
    [unit] = mark(f.model(IMAGE, f.op("Add", y, y)))
    assert types(unit) == ["Conv"]


def test_a_result_read_twice_or_put_out_ends_a_unit():
    f = Formula()
    y = conv(f, "x")
    r = activated(f, y)
    assert types(mark(f.model(IMAGE, r, y))[0]) == ["Conv"]
    assert types(mark(f.model(IMAGE, f.op("Mul", r, y)))[0]) == ["Conv"]


def test_a_residual_read_twice_ends_a_unit():
    f = Formula()
    s = f.op("Add", conv(f, "x"), "x")
    [unit] = mark(f.model(IMAGE, activated(f, s), s))
    assert types(unit) == ["Conv", "Add"]


def test_transposed_convolution():
    f = Formula()
    y = f.op("ConvTranspose", "x", f.const(RNG.standard_normal((4, 2, 3, 3))))
    [unit] = mark(f.model(IMAGE, activated(f, y)))
    assert unit.kind == "conv_transpose" and types(unit) == ["ConvTranspose", "Relu"]


# -- Linear ------------------------------------------------------------------------------------

ROWS = {"x": ["batch", 5, 8]}


def linear(f, x, shape=(8,)):
    y = f.op("MatMul", x, f.const(RNG.standard_normal((8, 8))))
    return f.either("Add", y, f.const(RNG.standard_normal(shape)))


@pytest.mark.parametrize("flip", [0, 1])
def test_matmul_bias_residual_activation(flip):
    f = Formula(lambda n: flip)
    y = activated(f, f.either("Add", linear(f, "x"), "x"), "Gelu")
    [unit] = mark(f.model(ROWS, y))
    assert unit.kind == "linear" and types(unit) == ["MatMul", "Add", "Add", "Gelu"]
    assert (unit.bias.name, unit.residual.name) == ("add1", "add2")


def test_matmul_residual_without_bias():
    f = Formula()
    y = f.op("Add", "x", f.op("MatMul", "x", f.const(RNG.standard_normal((8, 8)))))
    [unit] = mark(f.model(ROWS, y))
    assert unit.bias is None and unit.residual is not None


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1, 8), (1,), ()])
def test_shapes_of_a_bias(shape):
    f = Formula()
    [unit] = mark(f.model(ROWS, linear(f, "x", shape=shape)))
    assert types(unit) == ["MatMul", "Add"] and unit.bias is not None


@pytest.mark.parametrize("shape", [(5, 8), (5, 1), (1, 1, 1, 8)])
def test_other_constants_are_no_bias(shape):
    f = Formula()
    [unit] = mark(f.model(ROWS, linear(f, "x", shape=shape)))
    assert types(unit) == ["MatMul"]


@pytest.mark.parametrize("behind", ["", "Transpose", "Cast", "Transpose+Cast"])
def test_weights_behind_views_are_weights(behind):
    f = Formula()
    dtype = np.float16 if "Cast" in behind else np.float32
    w = f.const(RNG.standard_normal((8, 8)), dtype)
    if "Transpose" in behind:
        w = f.op("Transpose", w, perm=[1, 0])
    if "Cast" in behind:
        w = f.op("Cast", w, to=TensorProto.FLOAT)
    [unit] = mark(f.model(ROWS, f.op("MatMul", "x", w)))
    assert unit.kind == "linear"


def test_gemm():
    f = Formula()
    y = f.op("Gemm", "x", f.const(np.ones((3, 8))), f.const(np.ones(3)), transB=1)
    [unit] = mark(f.model({"x": ["batch", 8]}, activated(f, y)))
    assert unit.kind == "linear" and types(unit) == ["Gemm", "Relu"]


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_products_of_two_activations(op_type):
    f = Formula()
    [unit] = mark(f.model({"x": [8, 8], "z": [8, 8]}, activated(f, f.op(op_type, "x", "z"))))
    assert unit.kind == "matmul" and types(unit) == [op_type, "Relu"]


@pytest.mark.parametrize("view", [False, True])
def test_the_mask_before_softmax_is_no_residual(view):
    f = Formula()
    s = f.op("Add", f.op("MatMul", "q", "k"), "mask")
    if view:
        s = f.op("Reshape", s, f.const([-1, 5, 5], np.int64))
    shape = ["batch", 5, 5]
    [unit] = mark(f.model({"q": shape, "k": shape, "mask": shape}, f.op("Softmax", s)))
    assert types(unit) == ["MatMul"]


def test_weights_that_a_caller_may_override_are_activations():
    proto = model(
        "m (float[2,8] x, float[8,8] w) => (float[2,8] y) { y = MatMul(x, w) }",
        {"w": np.ones((8, 8), np.float32)},
    )
    [unit] = mark(proto)
    assert unit.kind == "matmul"


def test_subgraphs_have_no_units_and_their_readers_count():
    f = Formula()
    y = conv(f, "x")
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("Conv", [y, next(iter(f.constants))], ["t"], pads=[1, 1, 1, 1])],
        "then",
        [],
        [value("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Relu", [y], ["e"])], "else", [], [value("e", TensorProto.FLOAT, None)]
    )
    f.nodes.append(helper.make_node("If", ["flag"], ["z"], then_branch=then, else_branch=other))
    proto = f.model({"x": [1, 4, 6, 6], "flag": []}, "z", types={"flag": bool})
    [unit] = mark(proto)
    assert types(unit) == ["Conv"]


def test_other_domains_are_barriers():
    proto = model(
        """<ir_version: 10, opset_import: ["" : 21, "custom" : 1]>
        m (float[2,8] x, float[8,8] w) => (float[2,8] y, float[2,8] z)
        { a = custom.MatMul(x, w) y = Relu(a) b = MatMul(x, w) z = custom.Relu(b) }"""
    )
    [unit] = mark(proto)
    assert unit.anchor.domain == "" and types(unit) == ["MatMul"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_networks_keep_the_rules(data):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)))
    values = ["x"]
    for _ in range(data.draw(st.integers(1, 14))):
        x, other = (data.draw(st.sampled_from(values)) for _ in range(2))
        kind = data.draw(st.sampled_from(["conv", "activation", "add", "constant", "pool"]))
        if kind == "conv":
            values.append(conv(f, x))
        elif kind == "activation":
            values.append(activated(f, x, data.draw(st.sampled_from(list(ACTIVATIONS)))))
        elif kind == "add":
            values.append(f.either("Add", x, other))
        elif kind == "constant":
            values.append(f.either("Add", x, f.const(np.ones((4, 1, 1)))))
        else:
            values.append(f.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    outputs = {values[-1], data.draw(st.sampled_from(values))} - {"x"}
    mark(f.model(IMAGE, *sorted(outputs)))


# -- real models -------------------------------------------------------------------------------


def test_digits_cnn():
    units = mark(onnx.load(ROOT / "models" / "digits" / "digits_cnn.onnx"))
    assert units and {u.kind for u in units} <= {"conv", "linear"}


def test_digits_vit():
    units = mark(onnx.load(ROOT / "models" / "digits" / "digits_vit.onnx"))
    kinds = [u.kind for u in units]
    assert (kinds.count("conv"), kinds.count("linear"), kinds.count("matmul")) == (1, 19, 6)
    assert sum(u.residual is not None for u in units) == 6


def test_minilm():
    units = mark(onnx.load(shared("models", "minilm_l6_v2.onnx")))
    kinds = [u.kind for u in units]
    assert (kinds.count("linear"), kinds.count("matmul")) == (36, 12)
    assert sum(u.residual is not None for u in units) == 12
    assert all(u.residual is None and u.bias is None for u in units if u.kind == "matmul")
