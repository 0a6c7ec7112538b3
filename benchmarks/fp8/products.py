"""One product x W on the device: fp16, and fp8 with what turns x into codes."""

import numpy as np
from onnx import NodeProto, TensorProto, helper

from benchmarks.cuda_weights.products import halves
from benchmarks.cuda_weights.timing import Device, bind, median_us, open_session, room, runner
from benchmarks.fp8.kernels import FLOAT8, gemm

# fp16 by itself; fp8 behind a Cast (what qgraph writes), behind a QuantizeLinear, and of codes that
# are there already.
WAYS = ("fp16", "cast", "quantize", "codes")
# Products in a run, by different weights, so that none waits in the cache for its next turn.
CYCLE_BYTES, LEAST, MOST = 128 << 20, 4, 64
HALF = TensorProto.FLOAT16


def times(
    device: Device, way: str, depth: int, width: int, all_rows: tuple[int, ...], *, graphs: bool
) -> list[float]:
    """Return microseconds of one product for each number of rows.

    Args:
        device: Where.
        way: One of `WAYS`.
        depth: K.
        width: N.
        all_rows: Numbers of rows.
        graphs: Whether to record CUDA graphs.
    """
    size = depth * width * (2 if way == "fp16" else 1)
    count = min(max(-(-CYCLE_BYTES // size), LEAST), MOST) if device.name == "cuda" else 2
    model = _chain(device, way, depth, width, count)
    session = open_session(model, device, optimise=False, graphs=graphs)
    strip = np.frombuffer(halves(1 << 20, np.random.default_rng(0)), np.float16)
    found = []
    for graph, rows in enumerate(all_rows, start=1):
        feeds = {"x": np.resize(strip, (rows, depth))}
        y = room(device, (rows, width), np.float16)
        binding = bind(session, device, feeds, {f"y{i}": y for i in range(count)})
        run = runner(session, binding, graph=graph if graphs else None)
        found.append(round(median_us(run, device) / count, 3))
    return found


def _chain(device: Device, way: str, depth: int, width: int, count: int) -> bytes:
    rng = np.random.default_rng(0)
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("h", HALF, [], np.float16(1).tobytes(), raw=True),
        helper.make_tensor("z", FLOAT8, [], b"\0", raw=True),
    ]
    nodes: list[NodeProto] = []
    if way == "codes":
        nodes.append(helper.make_node("Cast", ["x"], ["c"], to=FLOAT8))
    raw = halves(depth * width, rng) if way == "fp16" else _codes(depth * width, rng)
    for i in range(count):
        kind, shape = (HALF, [depth, width]) if way == "fp16" else (FLOAT8, [width, depth])
        constants.append(helper.make_tensor(f"w{i}", kind, shape, raw, raw=True))
        nodes += _product(device, way, i)
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", HALF, ["M", depth])],
        [helper.make_tensor_value_info(f"y{i}", HALF, ["M", width]) for i in range(count)],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _product(device: Device, way: str, i: int) -> list[NodeProto]:
    if way == "fp16":
        return [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"])]
    nodes, codes = [], "c"
    if way != "codes":
        codes = f"c{i}"
        make = {
            "cast": helper.make_node("Cast", ["x"], [codes], to=FLOAT8),
            "quantize": helper.make_node("QuantizeLinear", ["x", "h", "z"], [codes]),
        }
        nodes.append(make[way])
    if device.name == "cuda":
        return [*nodes, gemm(codes, f"w{i}", f"y{i}")]
    return [
        *nodes,
        helper.make_node("Cast", [codes], [f"f{i}"], to=HALF),
        helper.make_node("DequantizeLinear", [f"w{i}", "h"], [f"d{i}"]),
        helper.make_node("Transpose", [f"d{i}"], [f"t{i}"], perm=[1, 0]),
        helper.make_node("MatMul", [f"f{i}", f"t{i}"], [f"y{i}"]),
    ]


def _codes(count: int, rng: np.random.Generator) -> bytes:
    """Return numbers from 2^-3 to 2 in float8e4m3fn, of both signs."""
    bits = np.frombuffer(rng.bytes(count), np.uint8)
    return ((bits & 0x9F) | 0x20).astype(np.uint8).tobytes()
