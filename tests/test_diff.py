import copy

import numpy as np
import onnx
import pytest
from harness import model
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph import onnx_io
from qgraph.diff import diff

RNG = np.random.default_rng(0)
W, V = (RNG.standard_normal((4, 4)).astype(np.float32) for _ in range(2))
TEXT = """net (float[n, 4] x) => (float[n, 4] y) {
  a = MatMul(x, w)
  b = Relu(a)
  c = MatMul(b, v)
  y = Softmax<axis = 1>(c)
}"""


def net(text: str = TEXT, **arrays) -> onnx.ModelProto:
    proto = model(text, {"w": W, "v": V, **arrays})
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    return proto


def compare(a: onnx.ModelProto, b: onnx.ModelProto):
    return diff(onnx_io.load(a), onnx_io.load(b))


def rename(proto: onnx.ModelProto, suffix: str) -> onnx.ModelProto:
    """Give every node, constant and inner value another name."""
    renamed = copy.deepcopy(proto)
    graph = renamed.graph
    kept = {v.name for v in [*graph.input, *graph.output]}
    for node in graph.node:
        node.name += suffix
        for names in (node.input, node.output):
            names[:] = [n if n in kept or not n else n + suffix for n in names]
    for tensor in graph.initializer:
        tensor.name += suffix
    return renamed


def test_a_model_and_itself():
    found = compare(net(), net())
    assert found.identical and found.nodes.same == 4 and found.nodes.renamed == 0
    assert found.initializers.same == 2 and found.interface.same == 2


def test_other_names_are_no_difference():
    found = compare(net(), rename(net(), "_x"))
    assert found.identical and found.nodes.renamed == 4 and found.initializers.renamed == 2


def test_names_that_changed_places_do_not_mislead():
    """Exporters number nodes; one more node in front shifts every number."""
    moved = net()
    names = [node.name for node in moved.graph.node]
    for node, name in zip(moved.graph.node, names[2:] + names[:2], strict=True):
        node.name = name
    assert compare(net(), moved).identical


def test_an_added_node_is_one_added_and_its_reader_changed():
    longer = net(TEXT.replace("c = MatMul(b, v)", "b2 = Neg(b)\n  c = MatMul(b2, v)"))
    found = compare(net(), rename(longer, "_x"))
    assert [kind for _, kind in found.nodes.added] == ["Neg"] and not found.nodes.removed
    (changed,) = found.nodes.changed
    assert changed.kind == "MatMul" and changed.changes == ("input 0: b ?[...] -> b2_x ?[...]",)
    assert found.nodes.same == 3


def test_a_removed_node():
    shorter = net(TEXT.replace("  b = Relu(a)\n", "").replace("MatMul(b", "MatMul(a"))
    found = compare(net(), shorter)
    assert found.nodes.removed == [("Relu_1", "Relu")] and not found.nodes.added


def test_another_attribute_is_told_with_both_values():
    found = compare(net(), net(TEXT.replace("axis = 1", "axis = 0")))
    (changed,) = found.nodes.changed
    assert changed.name == "Softmax_3" and changed.changes == ("attribute axis: 1 -> 0",)
    assert not (found.nodes.added or found.nodes.removed or found.initializers.changed)


def test_new_weights_change_constants_and_no_nodes():
    other = V.copy()
    other[0, 0] += 0.5
    found = compare(net(), net(v=other))
    assert not found.nodes.differs and found.nodes.same == 4
    (changed,) = found.initializers.changed
    assert changed.name == "v" and changed.changes[0].startswith(
        "1 of 16 values differ, by up to 0.5"
    )


def test_new_weights_under_new_names_still_pair_the_nodes():
    found = compare(net(), rename(net(v=V * 2, w=W * 3), "_x"))
    assert not found.nodes.differs and found.nodes.same == 4
    assert [change.name for change in found.initializers.changed] == ["w", "v"]
    assert not (found.initializers.added or found.initializers.removed)


def test_weights_of_another_type():
    half = net()
    half.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(V.astype(np.float64), "v"))
    found = diff(onnx_io.load(net()), onnx_io.load(_unchecked(half)))
    assert found.initializers.changed[0].changes == ("float32[4, 4] -> float64[4, 4]",)


def _unchecked(proto: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(proto)  # types are not checked without inference
    return proto


def test_nan_and_infinity_in_weights():
    bad = V.copy()
    bad[0] = np.nan
    bad[1] = np.inf
    found = compare(net(), net(v=bad))
    assert found.initializers.changed[0].changes[0].startswith("8 of 16 values differ")
    assert compare(net(v=bad), net(v=bad)).identical


def test_the_interface():
    other = net(TEXT.replace("float[n, 4] x", "float[2, 4] x").replace(" y", " z"))
    found = compare(net(), other)
    assert found.interface.changed[0].changes == ("float32[n, 4] -> float32[2, 4]",)
    assert found.interface.removed == [("y", "output")]
    assert found.interface.added == [("z", "output")]


def test_opsets():
    newer = net()
    newer.opset_import[0].version = 22
    found = compare(net(), newer)
    assert found.opsets == {"ai.onnx": (21, 22)} and not found.identical


IF = """ifs (bool c, float[4] x) => (float[4] y) {
  y = If (c) <then_branch = t () => (float[4] p) { p = Neg(x) },
              else_branch = e () => (float[4] q) { q = Abs(x) }>
}"""


def test_nodes_inside_bodies_are_compared():
    found = compare(model(IF), model(IF.replace("Abs(x)", "Relu(x)")))
    assert [kind for _, kind in found.nodes.removed] == ["Abs"]
    assert [kind for _, kind in found.nodes.added] == ["Relu"]
    assert compare(model(IF), model(IF)).identical


def test_equal_nodes_in_a_row_each_find_their_own():
    text = "net (float[4] x) => (float[4] y) { a = Neg(x)\n b = Neg(x)\n y = Add(a, b) }"
    assert compare(model(text), model(text)).identical
    once = "net (float[4] x) => (float[4] y) { a = Neg(x)\n y = Add(a, a) }"
    found = compare(model(text), model(once))
    assert [kind for _, kind in found.nodes.removed] == ["Neg"] and not found.nodes.added


def test_sparse_constants_count_by_content():
    def sparse(value: float) -> onnx.ModelProto:
        proto = model(
            "net (float[2] x) => (float[2] y) { y = Add(x, s) }", {"s": np.ones(2, np.float32)}
        )
        del proto.graph.initializer[:]
        tensor = onnx.helper.make_sparse_tensor(
            onnx.numpy_helper.from_array(np.array([value], np.float32), "s"),
            onnx.numpy_helper.from_array(np.array([1]), "s_indices"),
            [2],
        )
        proto.graph.sparse_initializer.append(tensor)
        return proto

    assert compare(sparse(1.0), sparse(1.0)).identical
    assert not compare(sparse(1.0), sparse(2.0)).identical


OPS = ("Relu", "Neg", "Abs", "Exp", "Sigmoid", "Tanh")


def chain(ops: list[str]) -> onnx.ModelProto:
    lines = [f"v{i + 1} = {op}(v{i})" for i, op in enumerate(ops)]
    body = "\n".join(lines)
    proto = model(f"net (float[4] v0) => (float[4] v{len(ops)}) {{ {body} }}")
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "out"
    return proto


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(OPS), min_size=1, max_size=8), st.data())
def test_any_renaming_is_no_difference_and_counts_add_up(ops, data):
    proto = chain(ops)
    assert compare(proto, rename(proto, "_r")).identical
    other_ops = data.draw(st.lists(st.sampled_from(OPS), min_size=1, max_size=8))
    found = compare(proto, chain(other_ops))
    in_both = found.nodes.same + len(found.nodes.changed)
    assert in_both + len(found.nodes.removed) == len(ops)
    assert in_both + len(found.nodes.added) == len(other_ops)
    assert found.identical is (ops == other_ops)
    # The other way round the same nodes are paired.
    back = compare(chain(other_ops), proto)
    assert len(back.nodes.added) == len(found.nodes.removed)


def test_the_json_form_is_plain():
    import json

    found = compare(net(), net(TEXT.replace("axis = 1", "axis = 0"))).as_json()
    again = json.loads(json.dumps(found))
    assert again["identical"] is False and again["nodes"]["changed"][0]["name"] == "Softmax_3"


@pytest.mark.parametrize("value", [b"bytes", "text"])
def test_strings(value):
    text = "net (string[1] x) => (bool[1] y) { y = Equal(x, s) }"
    proto = model(text, {"s": np.array([value], object)})
    other = model(text, {"s": np.array(["other"], object)})
    assert compare(proto, proto).identical
    assert compare(proto, other).initializers.changed[0].changes == ("values differ",)
