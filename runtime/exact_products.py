"""Integer products that are exact on every CPU.

On x86 without VNNI onnxruntime's kernels for uint8 data and int8 weights add pairs of products in 16 bits, which
overflow. Those for uint8 weights are exact. Its own rewrite from one to the other (`EXACT_PRODUCTS`)
belongs to graph optimizations, which a reference has switched off; here the same is done to a model's protobuf.
"""

import mmap
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Session option; 1: int8 weights become uint8. Only for CPUs that overflow: some with VNNI are rewritten as
# well, for nothing but slower kernels (MobileNetV2 on a Xeon with AVX-512 VNNI without AMX: 2.5 times the time).
# Source: onnxruntime_session_options_config_keys.h.
EXACT_PRODUCTS = "session.x64quantprecision"


class _Weight(NamedTuple):
    """Which of an operator's inputs are the weight and its zero point."""

    weight: int
    zero_point: int


_WEIGHTS = {
    "MatMulInteger": _Weight(1, 3),
    "ConvInteger": _Weight(1, 3),
    "QLinearMatMul": _Weight(3, 5),
    "QLinearConv": _Weight(3, 5),
    "QGemm": _Weight(3, 5),
    "MatMulIntegerToFloat": _Weight(1, 5),
    "DynamicQuantizeMatMul": _Weight(1, 3),
}


@cache
def overflows() -> bool:
    """Whether this CPU's products of uint8 and int8 overflow: tried out, once."""
    import onnxruntime as ort

    weight = np.full((64, 16), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 16])],
        [numpy_helper.from_array(weight, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"a": np.full((1, 64), 255, np.uint8)})
    return bool((found != 64 * 255 * 127).any())


def may_overflow(model: Path | bytes) -> bool:
    """Whether this CPU would compute some of a model's products wrongly; the model is not parsed."""
    if not overflows():
        return False
    names = [name.encode() for name in _WEIGHTS]
    if isinstance(model, bytes):
        return any(name in model for name in names)
    try:
        with model.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # what opens it will say why
        return False
    with content:
        return any(content.find(name) >= 0 for name in names)


def with_exact_products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Turn constant int8 weights of integer products into uint8, in place, and return the model.

    Codes and zero points grow by 128, so all results are the same. Weights in external files and
    in bodies stay.
    """
    graph = proto.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, str] = {}

    def raised(name: str) -> str | None:
        tensor = known.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.INT8:
            return None
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        if name not in made:
            made[name] = f"{name}_uint8"
            codes = (numpy_helper.to_array(tensor).astype(np.int16) + 128).astype(np.uint8)
            graph.initializer.append(numpy_helper.from_array(codes, made[name]))
        return made[name]

    for node in graph.node:
        place = _WEIGHTS.get(node.op_type)
        if place is None or len(node.input) <= place.weight:
            continue
        inputs = [*node.input, *[""] * (place.zero_point + 1 - len(node.input))]
        zero = inputs[place.zero_point]
        weight = raised(inputs[place.weight]) if not zero or raised(zero) else None
        if weight is None:
            continue
        if not zero:
            zero = "zero_int8"
            if zero not in known:
                known[zero] = numpy_helper.from_array(np.array(0, np.int8), zero)
                graph.initializer.append(known[zero])
        inputs[place.weight], inputs[place.zero_point] = weight, raised(zero) or ""
        del node.input[:]
        node.input.extend(inputs)
    return proto
