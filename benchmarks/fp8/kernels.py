"""Whether the device's float8 kernels compute what qgraph takes them to."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from benchmarks.cuda_weights.timing import Device, open_session

FLOAT8 = TensorProto.FLOAT8E4M3FN
RESULTS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": 1}
# Share of the largest product: rounding of the result, and of sums in fewer digits than float32 has.
TOLERANCE = {"float16": 4e-3, "bfloat16": 8e-3, "float32": 4e-3}
# Rows, depth, width: rows of any number, depths that show what long sums lose.
SHAPES = ((1, 64, 16), (17, 256, 48), (128, 1024, 1024), (256, 4096, 1024), (33, 14336, 64))


def cases(quick: bool) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield type of the result and shape."""
    for shape in SHAPES[:2] if quick else SHAPES:
        yield "float16", shape
    for dtype in ("bfloat16", "float32"):
        yield dtype, SHAPES[1]


def product_error(device: Device, dtype: str, shape: tuple[int, int, int]) -> float:
    """Return the largest error of x W against float64, relative to the largest product.

    x is cast in the model, W is stored as codes; their scales differ from 1 and from each other.
    """
    rows, depth, width = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, depth)).astype(np.float16)
    codes = (32 * rng.standard_normal((width, depth))).astype(ml_dtypes.float8_e4m3fn)
    scales = {"sa": 0.25, "sb": 2.0**-6}
    session = open_session(
        _product(device, dtype, codes, scales), device, optimise=False, graphs=False, alone=True
    )
    rounded = x.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    want = rounded @ codes.astype(np.float64).T * (scales["sa"] * scales["sb"])
    have = session.run(None, {"x": x})[0].astype(np.float64)
    return float(np.abs(have - want).max() / np.abs(want).max())


def cast_mismatches(device: Device) -> int:
    """Return how many of all finite float16 numbers the Cast rounds otherwise than qgraph does."""
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=FLOAT8),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT16),
    ]
    model = _model(nodes, "M", TensorProto.FLOAT16, ["M"], ["M"], [])
    session = open_session(model, device, optimise=False, graphs=False, alone=True)
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)]
    clipped = np.clip(x.astype(np.float32), -448, 448)
    want = clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float16)
    return int((session.run(None, {"x": x})[0] != want).sum())


def gemm(
    x: str,
    weight: str,
    y: str,
    dtype: int = TensorProto.FLOAT16,
    scales: tuple[str, str] = ("s", "s"),
) -> helper.NodeProto:
    """Return the node that multiplies codes."""
    return helper.make_node(
        "GemmFloat8",
        [x, weight, "", *scales],
        [y],
        domain="com.microsoft",
        transB=1,
        dtype=dtype,
    )


def _product(device: Device, dtype: str, codes: np.ndarray, scales: dict[str, float]) -> bytes:
    kind, width = RESULTS[dtype], codes.shape[0]
    constants = [
        helper.make_tensor("w", FLOAT8, list(codes.shape), codes.tobytes(), raw=True),
        *(helper.make_tensor(name, 1, [1], [value]) for name, value in scales.items()),
        helper.make_tensor("both", 1, [], [scales["sa"] * scales["sb"]]),
    ]
    out = helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT)
    if device.name == "cuda":
        nodes = [
            helper.make_node("Cast", ["x"], ["c"], to=FLOAT8),
            gemm("c", "w", "r", kind, ("sa", "sb")),
            out,
        ]
    else:  # What the kernel is to compute, in operators that the CPU has.
        nodes = [
            helper.make_node("Cast", ["x"], ["c"], to=FLOAT8),
            helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("DequantizeLinear", ["w", "both"], ["d"]),
            helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["f", "t"], ["p"]),
            helper.make_node("Cast", ["p"], ["r"], to=kind),
            out,
        ]
    return _model(nodes, "M", TensorProto.FLOAT, ["M", codes.shape[1]], ["M", width], constants)


def _model(
    nodes: list, rows: str, result: int, inputs: list, outputs: list, constants: list
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "kernels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, inputs)],
        [helper.make_tensor_value_info("y", result, outputs)],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized
