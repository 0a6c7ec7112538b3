"""Caches are found in the graph, by name only where the graph hides them."""

import numpy as np
import pytest
from harness import model
from llamas import TINY, random_weights
from onnx import TensorProto, helper

from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.graph import Graph
from qgraph.kv_cache import Cache, cache_axes, cache_axes_of, find_caches
from qgraph.runtime.backend import TensorInfo

HEAD = "float[b, 2, p, 4] old, float[b, 2, s, 4] x"


def caches(body, inputs=HEAD, outputs="float[b, 2, t, 4] new", **options):
    return find_caches(onnx_io.load(model(f"g ({inputs}) => ({outputs}) {{ {body} }}", **options)))


@pytest.mark.parametrize(
    "body",
    [
        "new = Concat<axis = 2>(old, x)",
        "new = Concat<axis = -2>(old, x)",
        "a = Identity(old) b_ = Concat<axis = 2>(a, x) new = Identity(b_)",
        "h = Cast<to = 10>(old) y = Cast<to = 10>(x) c = Concat<axis = 2>(h, y) new = Cast<to = 1>(c)",
    ],
)
def test_what_is_put_in_front_and_leaves_is_a_cache(body):
    assert caches(body) == (Cache("old", "new", 2),)


def test_quantizing_on_the_way_does_not_hide_a_cache():
    body = """
        q = QuantizeLinear(old, scale, zero) d = DequantizeLinear(q, scale, zero)
        c = Concat<axis = 2>(d, x)
        q2 = QuantizeLinear(c, scale, zero) new = DequantizeLinear(q2, scale, zero)"""
    numbers = {"scale": np.float32(0.1), "zero": np.uint8(128)}
    assert caches(body, initializers=numbers) == (Cache("old", "new", 2),)


@pytest.mark.parametrize(
    "body",
    [
        "new = Concat<axis = 2>(x, old)",  # grows in front: no cache that can be fed on
        "y = Relu(old) new = Concat<axis = 2>(y, x)",
        "c = Concat<axis = 2>(old, x) new = Relu(c)",
        "y = Concat<axis = 2>(old, x) new = Relu(x)",
    ],
)
def test_what_is_changed_or_stays_inside_is_no_cache(body):
    found = caches(body)
    assert all(cache.input != "old" for cache in found)


def test_an_axis_of_fixed_length_or_the_batch_does_not_grow():
    fixed = "float[b, 2, 3, 4] old, float[b, 2, s, 4] x"
    assert caches("new = Concat<axis = 2>(old, x)", inputs=fixed) == ()
    assert caches("new = Concat<axis = 0>(old, x)") == ()


def test_the_operator_attention_grows_caches():
    text = """g (float[b, 2, s, 8] q, float[b, 2, s, 8] k, float[b, 2, s, 8] v,
                 float[b, 2, p, 8] a, float[b, 2, p, 8] c)
              => (float[b, 2, s, 8] y, float[b, 2, t, 8] a2, float[b, 2, t, 8] c2) {
                y, a2, c2 = Attention(q, k, v, , a, c) }"""
    graph = onnx_io.load(model(text, opset=23, ir_version=11))
    assert find_caches(graph) == (Cache("a", "a2", 2), Cache("c", "c2", 2))


def test_grouped_query_attention_of_onnxruntime_grows_caches():
    inputs = ["q", "k", "v", "pk", "pv", "lengths", "total"]
    node = helper.make_node(
        *("GroupQueryAttention", inputs, ["y", "nk", "nv"]),
        domain="com.microsoft",
        num_heads=2,
        kv_num_heads=2,
    )
    info = helper.make_tensor_value_info
    shapes = {name: ["b", "s", 16] for name in "qkv"}
    shapes |= {name: ["b", 2, "p", 8] for name in ("pk", "pv")}
    graph = helper.make_graph(
        [node],
        "g",
        [info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        + [info("lengths", TensorProto.INT32, ["b"]), info("total", TensorProto.INT32, [1])],
        [info("y", TensorProto.FLOAT, ["b", "s", 16])]
        + [info(name, TensorProto.FLOAT, ["b", 2, "t", 8]) for name in ("nk", "nv")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    assert find_caches(onnx_io.load(proto)) == (Cache("pk", "nk", 2), Cache("pv", "nv", 2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("past_key_values_0_key", "present_0_key"),
        ("past_key", "present_key"),
        ("past_0", "present_0"),
        ("key_cache", "key_cache_out"),
        ("v_cache", "new_v_cache"),
    ],
)
def test_names_pair_what_the_graph_hides(old, new):
    # Gather stands for what reorders beams, or for a subgraph.
    body = f"r = Gather<axis = 0>({old}, beams) {new} = Concat<axis = 2>(r, x)"
    inputs = f"float[b, 2, p, 4] {old}, float[b, 2, s, 4] x, int64[b] beams"
    found = caches(body, inputs=inputs, outputs=f"float[b, 2, t, 4] {new}")
    assert found == (Cache(old, new, 2),)


def test_names_choose_the_axis_that_is_called_a_length():
    body = "r = Relu(past_k) present_k = Concat<axis = 3>(r, x)"
    inputs = "float[b, heads, 4, past_len] past_k, float[b, heads, 4, s] x"
    found = caches(body, inputs=inputs, outputs="float[b, heads, 4, t] present_k")
    assert found == (Cache("past_k", "present_k", 3),)


def test_a_real_decoder(tmp_path):
    path = tmp_path / "m.onnx"
    onnx_io.save(Graph(build(TINY, random_weights(), kv=True)), path)
    wanted = {f"past_key_values.{n}.{part}": 2 for n in (0, 1) for part in ("key", "value")}
    assert cache_axes(onnx_io.load(path)) == wanted
    inputs = onnx_io.load(path).signature()
    assert cache_axes_of(path, inputs) == wanted


def test_models_without_anything_like_a_cache_are_not_read(tmp_path):
    missing = tmp_path / "missing.onnx"
    ids = TensorInfo("ids", "int64", ("b", "s"))
    assert cache_axes_of(missing, [ids]) == {}
    assert cache_axes_of(missing, [TensorInfo("x", "float32", ("n", 3, "h", "w"))]) == {}
    assert cache_axes_of(missing, [ids, TensorInfo("mask", "int64", ("b", "s"))]) == {}
