"""What onnxruntime 1.32 refuses or does: the reasons behind refusals and the table in the docs."""

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from weightforms import matmul, run, simulated, write

from qgraph import onnx_io
from qgraph.encoding import Encoding
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_forms.matmul_nbits import matmul_nbits

pytestmark = pytest.mark.skipif(
    not ort.__version__.startswith("1.32."), reason="facts about onnxruntime 1.32"
)
U8, F32 = np.uint8, np.float32


def one_node(op_type, arrays, feeds, opset=21, **attributes):
    """Run one node, constants first, on the CPU provider without optimisation."""
    standard = op_type in ("Gather", "Reshape")
    node = helper.make_node(
        op_type, [*arrays, *feeds], ["y"], domain="" if standard else "com.microsoft", **attributes
    )
    if not standard:
        # The data comes first, but for a Gather's.
        second = 1 if op_type.startswith("Gather") else 0
        names = list(arrays)
        names.insert(second, next(iter(feeds)))
        node.input[:] = names
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in feeds.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(next(iter(arrays.values())).dtype) if standard else 1
    output = helper.make_tensor_value_info("y", kind, None)
    constants = [numpy_helper.from_array(a, k) for k, a in arrays.items()]
    graph = helper.make_graph([node], "g", inputs, [output], constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def nbits(bits, block, zero=None):
    blocks = -(-512 // block)
    arrays = {
        "w": np.zeros((4, blocks, block * bits // 8), U8),
        "s": np.ones((4, blocks), F32),
    } | ({} if zero is None else {"z": np.zeros((4, blocks), zero)})
    sizes = {"K": 512, "N": 4, "bits": bits, "block_size": block}
    return one_node("MatMulNBits", arrays, {"x": np.ones((1, 512), F32)}, **sizes)


def bnb4(block):
    arrays = {"w": np.zeros(512 * 2, U8), "a": np.ones(-(-512 * 4 // block), F32)}
    sizes = {"K": 512, "N": 4, "block_size": block, "quant_type": 1}
    return one_node("MatMulBnb4", arrays, {"x": np.ones((1, 512), F32)}, **sizes)


def gathered(dtype, block=64, row=1):
    arrays = {"t": np.full((3, 64), 5, dtype), "s": np.ones((3, -(-64 // block)), F32)}
    sizes = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    return one_node("GatherBlockQuantized", arrays, {"i": np.array([row])}, **sizes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nbits(4, 8), "power-of-two block sizes >= 16"),
        (lambda: nbits(8, 24), "power-of-two block sizes >= 16"),
        (lambda: nbits(2, 512), "must not exceed 256"),
        (lambda: nbits(8, 32, F32), "floating-point zero points"),
        (lambda: bnb4(8), "only block size"),
        (lambda: bnb4(512), "only block size"),
        (lambda: gathered(np.int8), "tensor\\(int8\\)"),
        (lambda: gathered(U8, 24), "power of 2"),
        (
            lambda: one_node(
                "Gather", {"t": np.zeros((3, 4), ml_dtypes.uint4)}, {"i": np.array([1])}
            ),
            "tensor\\(uint4\\)",
        ),
        (
            lambda: one_node(
                "Reshape", {"t": np.zeros((3, 4), ml_dtypes.int4)}, {"i": np.array([4, 3])}
            ),
            "Could not find an implementation",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(Exception, match=message):
        call()


def test_gather_block_quantized_counts_from_128_and_gives_zeros_out_of_range():
    assert (gathered(U8) == 5 - 128).all()
    assert (gathered(U8, row=7) == 0).all()


@pytest.mark.parametrize("block", [16, 256])
def test_two_bit_blocks_that_do_not_round_the_data_at_level_4(block):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 0.1, (512 // block, 8)).astype(F32)
    codes = rng.integers(0, 4, (512, 8)).astype(ml_dtypes.uint2)
    encoding = Encoding("uint2", scale, np.full(scale.shape, 1), (block, 1))
    weight = QuantizedWeight(codes, encoding, 0.0)
    out = onnx_io.to_proto(write(matmul_nbits, weight, matmul((512, 8)), accuracy_level=4))
    x = rng.standard_normal((3, 512)).astype(F32)
    want = x.astype(np.float64) @ simulated(weight)
    assert np.abs(run(out, x) - want).max() < 1e-5 * np.abs(want).max()
