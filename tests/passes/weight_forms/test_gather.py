"""Embedding tables in integers, with both kernels, against rows of the simulation."""

import numpy as np
import onnx
import pytest
from harness import interface, model, ops, run_reference

from qgraph import onnx_io
from qgraph.encoding import Encoding, Spec, dequantize, encode_array, quantize
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_forms import put
from qgraph.passes.weight_forms.gather import gather_product, gather_table
from qgraph.pipeline import Reject

DTYPES = [f"{sign}int{bits}" for bits in (2, 3, 4, 8) for sign in ("", "u")]
IDS = np.array([[3, 0], [-1, 5]])


def table_of(dtype="int4", shape=(7, 72), block=32):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + np.float32(0.3)
    spec = Spec(dtype, not dtype.startswith("u"), axis=1, block=block)
    if not block:
        spec = Spec(dtype, not dtype.startswith("u"), axis=0)
    encoding = encode_array(values, spec)
    return QuantizedWeight(quantize(values, encoding), encoding, 0.0)


def net(shape, dtype="float", opset=21, axis=0):
    kind = np.float16 if dtype == "float16" else np.float32
    return model(
        f"g (int64[2, 2] ids) => ({dtype}[P, Q, R] y)"
        f" {{ [table] y = Gather <axis = {axis}> (t, ids) }}",
        {"t": np.zeros(shape, kind)},
        opset=opset,
    )


def written(table, proto, **options):
    graph = onnx_io.load(proto)
    for node in graph.nodes("Gather"):
        value = gather_table(graph, node, table, **options)
        if isinstance(value, Reject):
            return value.reason
        put(graph, node, value)
    graph.drop_unread_initializers()
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out)
    assert interface(out) == interface(proto)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [0, 16, 32, 48, 128])
@pytest.mark.parametrize("kernel", ["block", "plain"])
def test_rows(dtype, block, kernel):
    for width in (64, 71):
        table = table_of(dtype, (7, width), block)
        out = written(table, net((7, width)), kernel=kernel)
        if kernel == "plain" and not dtype.endswith("8"):
            assert out == "onnxruntime has no Gather of 4-bit codes"
            continue
        assert ("GatherBlockQuantized" in ops(out)) == (kernel == "block")
        have = run_reference(out, {"ids": IDS})["y"]
        want = dequantize(table.codes, table.encoding)[IDS]
        np.testing.assert_allclose(have, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("dtype", "kernel"), [("uint4", "block"), ("int8", "block"), ("int8", "plain")]
)
def test_half_precision(dtype, kernel):
    table = table_of(dtype)
    out = written(table, net((7, 72), "float16"), kernel=kernel)
    have = run_reference(out, {"ids": IDS})["y"]
    assert have.dtype == np.float16
    want = dequantize(table.codes, table.encoding)[IDS]
    np.testing.assert_allclose(have, want, rtol=2e-3, atol=0)


def test_gathers_of_one_table_share_it():
    proto = model(
        "g (int64[2, 2] ids) => (float[2, 2, 72] y, float[2, 2, 72] z)"
        " { y = Gather (t, ids) i = Neg (ids) z = Gather (t, i) }",
        {"t": np.zeros((7, 72), np.float32)},
    )
    out = written(table_of("uint8"), proto)
    assert len(out.graph.initializer) == 3


@pytest.mark.parametrize(
    ("table", "proto", "reason"),
    [
        (table_of(block=8), net((7, 72)), "blocks of 8 are no multiple of 16"),
        (table_of("int16"), net((7, 72)), "its codes are int16"),
        (table_of(), net((7, 72), opset=20), "opset 21"),
        (table_of(), net((7, 72), axis=1), "does not gather rows"),
        (table_of(), net((8, 72)), "its table is [8, 72], the result [7, 72]"),
        (
            QuantizedWeight(
                np.zeros((7, 72), np.int8),
                Encoding("int8", np.ones((4, 1), "f"), np.zeros((4, 1), int), (2, 0)),
                0.0,
            ),
            net((7, 72)),
            "do not lie along the rows",
        ),
    ],
)
def test_refusals(table, proto, reason):
    assert reason in written(table, proto)


def product(**attributes):
    """A MatMulNBits by a table [7, 32] of 4 or 8 bits beside a Gather."""
    bits, block = attributes["bits"], attributes["block_size"]
    blocks = -(-attributes["K"] // block)
    rng = np.random.default_rng(0)
    arrays = {
        "codes": rng.integers(0, 256, (7, blocks, block * bits // 8), np.uint8),
        "scale": rng.uniform(0.5, 1.5, (7, blocks)).astype(np.float32),
        "zero": rng.integers(0, 256, (7, -(-blocks * bits // 8)), np.uint8),
        "t": np.zeros((7, attributes["K"]), np.float32),
    }
    settings = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    text = f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (int64[2] ids, float[W, {attributes["K"]}] x) => (float[2, Q] y, float[W, 7] z) {{
        y = Gather (t, ids)
        z = com.microsoft.MatMulNBits <{settings}> (x, codes, scale, zero)
    }}"""
    graph = onnx_io.load(model(text, arrays))
    graph.name_nodes()
    (gather,) = graph.nodes("Gather")
    (by,) = [node for node in graph.nodes() if node.op_type == "MatMulNBits"]
    return graph, gather, by


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32])
def test_rows_of_what_a_product_multiplies_by(bits, block):
    graph, gather, by = product(K=64, N=7, bits=bits, block_size=block)
    put(graph, gather, gather_product(graph, gather, by))
    feeds = {"ids": np.array([4, -1]), "x": np.eye(64, dtype=np.float32)}
    found = run_reference(onnx_io.to_proto(graph), feeds)
    np.testing.assert_allclose(found["y"], found["z"].T[[4, -1]], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"K": 72, "bits": 4, "block_size": 32}, "rows of 72 do not divide into whole blocks"),
        ({"K": 64, "bits": 2, "block_size": 32}, "no Gather of such codes"),
    ],
)
def test_products_whose_codes_are_no_table(attributes, reason):
    graph, gather, by = product(N=7, **attributes)
    value = gather_product(graph, gather, by)
    assert isinstance(value, Reject) and reason in value.reason
    value = gather_product(graph, gather, gather)
    assert isinstance(value, Reject) and "Gather holds no blocks" in value.reason
    assert len(list(graph.nodes())) == 2
