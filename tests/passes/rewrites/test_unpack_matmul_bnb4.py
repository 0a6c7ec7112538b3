"""MatMulBnb4 in plain operators: the same weight, to the bit."""

import numpy as np
import pytest
from harness import apply, check_fires, check_stays, ops
from onnx import helper, numpy_helper
from weightforms import matmul, run, write

from qgraph import onnx_io
from qgraph.passes.rewrites.unpack_matmul_bnb4 import UnpackMatMulBnb4, read
from qgraph.passes.weight_forms.bnb4 import matmul_bnb4
from qgraph.passes.weights.codebooks import table_rounding


def net(table="nf4", shape=(72, 9), block=64, dtype=np.float32, opset=21):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight = table_rounding(values, table=table, block=block)
    return weight, onnx_io.to_proto(write(matmul_bnb4, weight, matmul(shape, dtype, opset)))


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize(("shape", "block"), [((64, 8), 64), ((72, 9), 32), ((7, 3), 16)])
def test_the_weight_stays_and_comes_back(table, shape, block):
    weight, proto = net(table, shape, block)
    out = check_fires(UnpackMatMulBnb4(), proto, changed=1)
    assert "MatMulBnb4" not in ops(out)
    eye = np.eye(shape[0], dtype=np.float32)
    np.testing.assert_array_equal(run(out, eye), run(proto, eye))
    graph = onnx_io.load(proto)
    [node] = list(graph.nodes())
    found = read(graph, node)
    assert not isinstance(found, str)
    again = onnx_io.to_proto(write(matmul_bnb4, found, matmul(shape)))
    assert [t.raw_data for t in again.graph.initializer] == [
        t.raw_data for t in proto.graph.initializer
    ]
    np.testing.assert_array_equal(found.codes, weight.codes)


def test_half_precision():
    _, proto = net(dtype=np.float16)
    check_fires(UnpackMatMulBnb4(), proto, rtol=2e-3)


def attribute(proto, name, value):
    kept = [a for a in proto.graph.node[0].attribute if a.name != name]
    del proto.graph.node[0].attribute[:]
    proto.graph.node[0].attribute.extend([*kept, helper.make_attribute(name, value)])


def constant(proto, index, array):
    del proto.graph.value_info[:]
    tensor = proto.graph.initializer[index]
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: attribute(p, "transB", 0), "transB = 0"),
        (lambda p: attribute(p, "block_size", 24), "is no weight"),
        (lambda p: attribute(p, "quant_type", 7), "is no weight"),
        (lambda p: attribute(p, "K", 2**40), "bytes"),
        (lambda p: constant(p, 0, np.zeros(7, np.uint8)), "7 bytes"),
        (lambda p: constant(p, 1, np.zeros(7, np.float32)), "7 numbers"),
    ],
)
def test_what_is_not_unpacked(change, reason):
    _, proto = net()
    change(proto)
    check_stays(UnpackMatMulBnb4(), proto, reason)


def test_4_bit_types_need_opset_21():
    check_stays(UnpackMatMulBnb4(), net(opset=20)[1], "opset 21")


def test_a_computed_weight_stays():
    _, proto = net()
    packed = proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info(packed.name, 2, list(packed.dims)))
    del proto.graph.initializer[0]
    out, reports, _ = apply(UnpackMatMulBnb4(), proto)
    assert "computed" in reports[-1].refused[0].reason and ops(out) == ["MatMulBnb4"]
