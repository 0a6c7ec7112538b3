"""The rules about Q/DQ groups, held against what onnxruntime itself makes of the same models."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from harness import model

from qgraph import onnx_io
from qgraph.lint import lint
from qgraph.target import target

GROUPS = {"qdq-group", "no-qdq-selector", "no-integer-kernel", "blocked-weight"}
X = "float[1, 4, 6, 6] x"
IN = "xq = QuantizeLinear(x, s, z)\n xd = DequantizeLinear(xq, s, z)\n"
OUT = "yq = QuantizeLinear(r, s, z)\n y = DequantizeLinear(yq, s, z)\n"


def optimized(proto: onnx.ModelProto, tmp_path: Path) -> list[str]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    return [node.op_type for node in made.graph.node]


def constants(dtype=np.uint8, **more):
    return {"s": np.float32(0.05), "z": dtype(3), "s2": np.float32(0.02), **more}


def weight(*shape, dtype=np.int8):
    return np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)


CONV = {"w": weight(3, 4, 3, 3), "ws": np.full(3, 0.01, np.float32), "wz": np.zeros(3, np.int8)}
BIAS = {"b": np.arange(3, dtype=np.int32), "bs": np.full(3, 5e-4, np.float32)}
WD = "wd = DequantizeLinear<axis = 0>(w, ws, wz)\n"
BD = "bd = DequantizeLinear<axis = 0>(b, bs)\n"
MATRIX = {"w": weight(6, 5), "ws": np.full(5, 0.01, np.float32), "wz": np.zeros(5, np.int8)}
MD = "wd = DequantizeLinear<axis = 1>(w, ws, wz)\n"
FLOAT_W = {"w": np.ones((3, 4, 3, 3), np.float32)}

# Name: (nodes, constants, operator in question, whether onnxruntime fuses it). The last column is
# what is written down here; the test asks onnxruntime, too.
CASES = {
    "conv": (IN + WD + "r = Conv(xd, wd)\n" + OUT, constants(**CONV), "Conv", True),
    "conv_bias": (IN + WD + BD + "r = Conv(xd, wd, bd)\n" + OUT, constants(**CONV, **BIAS), "Conv", True),
    "conv_relu": (
        IN + WD + "c = Conv(xd, wd)\n r = Relu(c)\n yq = QuantizeLinear(r, s, z0)\n"
        "y = DequantizeLinear(yq, s, z0)",
        constants(**CONV, z0=np.uint8(0)), "Conv", True,
    ),
    "conv_relu_kept": (
        IN + WD + "c = Conv(xd, wd)\n r = Relu(c)\n yq = QuantizeLinear(r, s, z1)\n"
        "y = DequantizeLinear(yq, s, z1)",
        constants(**CONV, z1=np.uint8(90)), "Conv", False,
    ),
    "conv_float_out": (IN + WD + "y = Conv(xd, wd)", constants(**CONV), "Conv", False),
    "conv_float_in": (WD + "r = Conv(x, wd)\n" + OUT, constants(**CONV), "Conv", None),
    "conv_second_reader": (
        IN + WD + "r = Conv(xd, wd)\n n = Neg(r)\n yq = QuantizeLinear(r, s, z)\n"
        "d = DequantizeLinear(yq, s, z)\n y = Add(d, n)",
        constants(**CONV), "Conv", False,
    ),
    "conv_16_bits": (IN + WD + "r = Conv(xd, wd)\n" + OUT, constants(np.uint16, **CONV), "Conv", False),
    "conv_int16_out": (
        IN + WD + "r = Conv(xd, wd)\n yq = QuantizeLinear(r, s, z16)\n"
        "y = DequantizeLinear(yq, s, z16)",
        constants(**CONV, z16=np.int16(0)), "Conv", False,
    ),
    "add": (IN + "xe = DequantizeLinear(xq, s, z)\n r = Add(xd, xe)\n" + OUT, constants(), "Add", True),
    "add_float_operand": (IN + "n = Neg(x)\n r = Add(xd, n)\n" + OUT, constants(), "Add", False),
    "add_constant": (
        IN + "r = Add(xd, c)\n" + OUT, constants(c=np.ones((4, 1, 1), np.float32)), "Add", False,
    ),
    "mul_float_out": (IN + "y = Mul(xd, xd)", constants(), "Mul", False),
    "sub": (IN + "xe = DequantizeLinear(xq, s, z)\n r = Sub(xd, xe)\n" + OUT, constants(), "Sub", False),
    "sigmoid": (IN + "r = Sigmoid(xd)\n" + OUT, constants(), "Sigmoid", True),
    "tanh": (IN + "r = Tanh(xd)\n" + OUT, constants(), "Tanh", False),
    "softmax": (IN + "r = Softmax(xd)\n" + OUT, constants(), "Softmax", True),
    "leaky": (IN + "r = LeakyRelu(xd)\n" + OUT, constants(), "LeakyRelu", True),
    "average": (IN + "r = AveragePool<kernel_shape = [2, 2]>(xd)\n" + OUT, constants(), "AveragePool", True),
    "global": (IN + "r = GlobalAveragePool(xd)\n" + OUT, constants(), "GlobalAveragePool", True),
    "global_max": (IN + "r = GlobalMaxPool(xd)\n" + OUT, constants(), "GlobalMaxPool", False),
    "convtranspose": (
        IN + "wd = DequantizeLinear<axis = 1>(w, ws, wz)\n r = ConvTranspose(xd, wd)\n" + OUT,
        constants(w=weight(4, 3, 2, 2), ws=CONV["ws"], wz=CONV["wz"]), "ConvTranspose", False,
    ),
    "matmul": (IN + MD + "r = MatMul(xd, wd)\n" + OUT, constants(**MATRIX), "MatMul", True),
    "matmul_float_out": (IN + MD + "y = MatMul(xd, wd)", constants(**MATRIX), "MatMul", True),
    "matmul_float_in": (MD + "y = MatMul(x, wd)", constants(**MATRIX), "MatMul", None),
    "max_pool": (IN + "r = MaxPool<kernel_shape = [2, 2]>(xd)\n" + OUT, constants(), "QuantizeLinear", True),
    "reshape": (IN + "r = Flatten(xd)\n" + OUT, constants(), "QuantizeLinear", True),
    "reshape_other_scale": (
        IN + "r = Flatten(xd)\n yq = QuantizeLinear(r, s2, z)\n y = DequantizeLinear(yq, s2, z)",
        constants(), "Flatten", None,
    ),
    "concat": (IN + "xe = DequantizeLinear(xq, s, z)\n r = Concat<axis = 1>(xd, xe)\n" + OUT, constants(), "Concat", True),
    "concat_float": (IN + "n = Neg(x)\n r = Concat<axis = 1>(xd, n)\n" + OUT, constants(), "Concat", False),
    "where": (
        IN + "xe = DequantizeLinear(xq, s, z)\n r = Where(c, xd, xe)\n" + OUT,
        constants(c=np.array([True, False] * 3)), "Where", True,
    ),
}  # fmt: skip


def build(name: str) -> onnx.ModelProto:
    nodes, inits, _, _ = CASES[name]
    rank = 2 if name.startswith("reshape") else 4
    dims = ", ".join("abcd"[:rank])
    return model(f"net ({X}) => (float[{dims}] y) {{\n{nodes} }}", inits)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[3] is not None])
def test_groups_are_fused_where_the_rules_say_so(name, tmp_path):
    _, _, op, fused = CASES[name]
    made = optimized(build(name), tmp_path)
    left = made.count(op) + made.count(f"Fused{op}")
    # Where the operator itself stays, a Q/DQ pair is what vanishes: one pair of two is left.
    assert (left <= 1 if op == "QuantizeLinear" else left == 0) is fused, "onnxruntime changed"
    found = lint(onnx_io.load(build(name)), target("cpu"), ["onnxruntime-cpu"])
    broken = [each for each in found.findings if each.rule in GROUPS]
    assert (not broken) is fused, broken


@pytest.mark.parametrize("name", ["conv_float_in", "matmul_float_in"])
def test_a_quantized_weight_alone_is_no_group(name):
    found = lint(onnx_io.load(build(name)), target("cpu"), ["onnxruntime-cpu"])
    assert not [each for each in found.findings if each.rule == "qdq-group"]


def test_other_parameters_on_both_sides_of_a_layout_operator():
    found = lint(onnx_io.load(build("reshape_other_scale")), target("cpu"), ["onnxruntime-cpu"])
    assert [(each.rule, each.op) for each in found.findings] == [("qdq-group", "Flatten")]


def blocked(block: int, dtype: str, axis: int = 0, second: str = "") -> onnx.ModelProto:
    kind = {"int4": "int4", "uint8": "uint8"}[dtype]
    shape = (64, 32)
    scale = np.ones([-(-n // block) if i == axis else n for i, n in enumerate(shape)], np.float32)
    text = f"""net (float[3, 64] x) => (float[3, 32] y) {{
      d = DequantizeLinear<axis = {axis}, block_size = {block}>(w, s)
      y0 = MatMul(x, d)
      {second or "y = Identity(y0)"}
    }}"""
    import ml_dtypes

    codes = np.ones(shape, ml_dtypes.int4 if kind == "int4" else np.uint8)
    more = {"t": np.ones((32, 64), np.float32)} if second else {}
    return model(text, {"w": codes, "s": scale, **more})


@pytest.mark.parametrize(
    ("proto", "fused"),
    [
        (blocked(32, "int4"), True),
        (blocked(16, "int4"), True),
        (blocked(8, "int4"), False),
        (blocked(32, "int4", axis=1), False),
        (
            blocked(32, "int4", second="e = MatMul(y0, t)\n f = MatMul(e, d)\n y = Add(y0, f)"),
            False,
        ),
    ],
)
def test_blocked_weights(proto, fused, tmp_path):
    assert ("MatMulNBits" in optimized(proto, tmp_path)) is fused, "onnxruntime changed"
    found = lint(onnx_io.load(proto), target("cpu"), ["onnxruntime-cpu"])
    assert ("blocked-weight" not in {each.rule for each in found.findings}) is fused


@pytest.mark.parametrize(
    ("op", "casts"),
    [
        ("Conv", True),
        ("MatMul", True),
        ("Add", True),
        ("Erf", True),
        ("Transpose", False),
        ("Cast", None),
    ],
)
def test_float16_kernels(op, casts, tmp_path):
    """A Cast to float32 stands in front of a node exactly where the rule says so."""
    body = {
        "Conv": "y = Conv<kernel_shape = [1, 1]>(x, w)",
        "MatMul": "y = MatMul(x, x)",
        "Add": "y = Add(x, x)",
        "Erf": "y = Erf(x)",
        "Transpose": "y = Transpose(x)",
        "Cast": "h = Cast<to = 1>(x)\n y = Cast<to = 10>(h)",
    }[op]
    inits = {"w": np.ones((4, 4, 1, 1), np.float16)} if op == "Conv" else {}
    proto = model(f"net (float16[1, 4, 6, 6] x) => (float16[a, b, c, d] y) {{ {body} }}", inits)
    found = lint(onnx_io.load(proto), target("cpu"), ["onnxruntime-cpu"])
    said = any(each.rule == "float16" for each in found.findings)
    inserted = optimized(proto, tmp_path).count("Cast") > body.count("Cast")
    assert said is inserted
    assert casts is None or casts is inserted


def test_a_type_without_a_kernel_is_refused_by_both():
    proto = model("net (bfloat16[4] x) => (bfloat16[4] y) { y = Sin(x) }", opset=22)
    found = lint(onnx_io.load(proto), target("cpu"), ["onnxruntime-cpu"])
    assert [(each.rule, each.severity) for each in found.findings] == [("no-kernel", "refused")]
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
