"""One product x W on the device: whether MatMulNBits computes it right, and how long it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.cuda_weights.timing import Device, bind, cutlass, median_us, open_session, room
from benchmarks.cuda_weights.timing import runner as run_of
from qgraph import onnx_io
from qgraph.costs.table import Row
from qgraph.encoding import Spec, dequantize
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_forms import put
from qgraph.passes.weight_forms.matmul_nbits import matmul_nbits
from qgraph.passes.weights.rtn import round_to_nearest
from qgraph.pipeline import Reject

# Weights that are multiplied by in turn take at least this much, so that none waits in the cache of
# 50 MB for its next turn; of small ones at most so many, as sessions get slow to open.
CYCLE_BYTES, MOST_COPIES = 128 << 20, 1024
# Enough products in a run for its start not to count.
LEAST_PRODUCTS = 96
# Half precision rounds scales, products and sums.
TOLERANCE = 4e-3


@dataclass(frozen=True)
class Kernel:
    """How a product is computed.

    Attributes:
        name: As cost tables call it.
        bits: Of the weight's codes; 16 for floats.
        block: Rows that share a scale; 0 for none.
        cutlass: Whether onnxruntime may use CUTLASS's kernels for it.
    """

    name: str
    bits: int
    block: int = 0
    cutlass: bool = False

    def bytes(self, depth: int, width: int) -> int:
        """Return what a weight takes."""
        scales = -(-depth // self.block) * width * 2 if self.block else 0
        return depth * width * self.bits // 8 + scales


KERNELS = (
    Kernel("fp16", 16),
    Kernel("int4", 4, 128),
    Kernel("int4", 4, 32),
    Kernel("int8", 8, 128),
)
CUTLASS_KERNELS = (Kernel("int4-cutlass", 4, 64, True), Kernel("int8-cutlass", 8, 64, True))


def error(device: Device, kernel: Kernel) -> float:
    """Return a kernel's largest error against float64, relative to the largest product."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((512, 384)).astype(np.float32)
    spec = Spec(f"uint{kernel.bits}", False, axis=0, block=kernel.block)
    quantized = QuantizedWeight(*round_to_nearest(weight, spec, None))
    model = _written(quantized, weight.shape)
    with cutlass(kernel.cutlass):
        session = open_session(model, device, optimise=False, graphs=False)
    exact = dequantize(quantized.codes, quantized.encoding).astype(np.float64)
    worst = 0.0
    for rows in (1, 3, 16, 80):
        x = rng.standard_normal((rows, 512)).astype(np.float16)
        want = x.astype(np.float64) @ exact
        (have,) = session.run(None, {"x": x})
        worst = max(worst, float(np.abs(have - want).max() / np.abs(want).max()))
    return worst


def times(
    device: Device, kernel: Kernel, depth: int, width: int, all_rows: Sequence[int]
) -> tuple[Row, float]:
    """Time one product with each number of rows; return that, and the MB of weights in turn."""
    copies = min(-(-CYCLE_BYTES // kernel.bytes(depth, width)), MOST_COPIES)
    if device.name == "cpu":
        copies = min(copies, 2)
    count = max(copies, LEAST_PRODUCTS) if device.graphs else copies
    with cutlass(kernel.cutlass):
        session = open_session(_chain(kernel, depth, width, copies, count), device, optimise=False)
    found = []
    rng = np.random.default_rng(0)
    for graph, rows in enumerate(all_rows, start=1):
        x = rng.standard_normal((rows, depth)).astype(np.float16)
        y = room(device, (rows, width), np.float16)
        binding = bind(session, device, {"x": x}, {f"y{i}": y for i in range(count)})
        run = run_of(session, binding, graph=graph if device.graphs else None)
        found.append(round(median_us(run, device) / count, 3))
    row = Row(
        kernel=kernel.name,
        block=kernel.block,
        depth=depth,
        width=width,
        rows=tuple(all_rows),
        us=tuple(found),
    )
    return row, copies * kernel.bytes(depth, width) / 1e6


def _written(weight: QuantizedWeight, shape: Sequence[int]) -> bytes:
    """Return a model of one product in fp16, its weight as qgraph writes it."""
    depth, width = shape
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]>\n'
        f"g (float16[M,{depth}] x) => (float16[M,{width}] y) {{ y = MatMul (x, w) }}"
    )
    zeros = np.zeros((depth, width), np.float16)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(zeros, "w"))
    graph = onnx_io.load(proto)
    [node] = graph.nodes("MatMul")
    value = matmul_nbits(graph, node, weight)
    if isinstance(value, Reject):
        raise RuntimeError(value.reason)  # noqa: TRY004 - it is no wrong type
    put(graph, node, value)
    graph.drop_unread_initializers()
    serialized: bytes = onnx_io.to_proto(graph).SerializeToString()
    return serialized


def _chain(kernel: Kernel, depth: int, width: int, copies: int, count: int) -> bytes:
    """Return a model of `count` products of one x by `copies` weights in turn."""
    rng = np.random.default_rng(0)
    parts = _weight(kernel, depth, width, rng)
    constants, nodes = [], []
    for copy in range(copies):
        constants += [
            helper.make_tensor(f"{name}{copy}", dtype, shape, raw, raw=True)
            for name, (dtype, shape, raw) in parts.items()
        ]
    for index in range(count):
        inputs = ["x", *(f"{name}{index % copies}" for name in parts)]
        if kernel.block:
            attributes = {"K": depth, "N": width, "bits": kernel.bits, "block_size": kernel.block}
            node = helper.make_node(
                "MatMulNBits", inputs, [f"y{index}"], domain="com.microsoft", **attributes
            )
        else:
            node = helper.make_node("MatMul", inputs, [f"y{index}"])
        nodes.append(node)
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", half, ["M", depth])],
        [helper.make_tensor_value_info(f"y{i}", half, ["M", width]) for i in range(count)],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _weight(
    kernel: Kernel, depth: int, width: int, rng: np.random.Generator
) -> dict[str, tuple[int, list[int], bytes]]:
    """Return type, shape and bytes of a random weight's tensors, by name."""
    if not kernel.block:
        return {"w": (TensorProto.FLOAT16, [depth, width], halves(depth * width, rng))}
    blocks, each = -(-depth // kernel.block), kernel.block * kernel.bits // 8
    packed = -(-blocks * kernel.bits // 8)
    return {
        "w": (TensorProto.UINT8, [width, blocks, each], rng.bytes(width * blocks * each)),
        "s": (TensorProto.FLOAT16, [width, blocks], halves(width * blocks, rng)),
        "z": (TensorProto.UINT8, [width, packed], rng.bytes(width * packed)),
    }


def halves(count: int, rng: np.random.Generator) -> bytes:
    """Return numbers from -2^-5 to 2^-5 in float16, at least 2^-6 in magnitude."""
    bits = np.frombuffer(rng.bytes(2 * count), np.uint16)
    return ((bits & 0x83FF) | 0x2400).astype(np.uint16).tobytes()
