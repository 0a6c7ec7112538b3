"""The same models as `cpu` and `tensorrt` want them, as text to check by hand: tests/golden/placement.

A value that is read through QuantizeLinear and DequantizeLinear is written `name:u8` or `name:i8`; the
same scale, the same letter behind it. A weight in integers is `name:i8[axis]`, a bias `name:i32`.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from harness import model, run_reference
from quantsim import assert_simulated, quantize_model, samples

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "placement"
SHORT = {"UINT8": "u8", "INT8": "i8", "INT32": "i32"}
MODELS = (
    "residual_two_convs",
    "residual_identity",
    "concat",
    "attention",
    "depthwise",
    "gemm_head",
)
TARGETS = ("cpu", "tensorrt")


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4


CONSTANTS = {
    **{f"w{i}": rand(16, 16, 1, 1, seed=i) for i in range(1, 5)},
    "b": rand(16),
    "wd": rand(16, 1, 3, 3),
    "wg": rand(20, 16),
    "bg": rand(20),
    "low": np.float32(0),
    "high": np.float32(6),
    **{f"w{name}": rand(32, 32, seed=ord(name)) for name in "qkvo"},
    "scale": np.ones(32, np.float32),
    "bias": np.zeros(32, np.float32),
    "heads": np.array([2, 20, 2, 16]),
    "joined": np.array([2, 20, 32]),
}
OTHERS = {
    "attention": {"b": rand(32)},
    "concat": {"w4": rand(16, 32, 1, 1, seed=4)},
}


def before(name):
    text = (GOLDEN / f"{name}.before.txt").read_text()
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    table = CONSTANTS | OTHERS.get(name, {})
    return model(text, {key: value for key, value in table.items() if key in words})


def notation(proto):
    """One line a node that is neither Q nor DQ."""
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    makers = {out: node for node in proto.graph.node for out in node.output}
    scales, hidden = {}, {}

    def source(name):
        return hidden.get(name, name)

    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        codes = makers.get(node.input[0])
        if codes is None:
            array = arrays[node.input[0]]
            kind = SHORT[array.dtype.name.upper()]
            axis = next((a.i for a in node.attribute if a.name == "axis"), None)
            where = f"[{axis}]" if kind == "i8" else ""
            hidden[node.output[0]] = f"{node.input[0].removesuffix('_codes')}:{kind}{where}"
            continue
        scale, zero = arrays[node.input[1]], arrays[node.input[2]]
        letter = scales.setdefault(float(scale), "abcdefghijklmnopqrstuvwxyz"[len(scales)])
        kind = SHORT[zero.dtype.name.upper()]
        hidden[node.output[0]] = f"{source(codes.input[0])}:{kind}{letter}"
    lines = []
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            inputs = ", ".join(source(name) for name in node.input)
            lines.append(f"{node.output[0]} = {node.op_type}({inputs})")
    lines += [f"output {source(out.name)}" for out in proto.graph.output]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("hardware", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_before_gives_after(name, hardware):
    proto = before(name)
    case = quantize_model(proto, hardware=hardware)
    assert notation(case.after) == (GOLDEN / f"{name}.{hardware}.txt").read_text()


@pytest.mark.parametrize("hardware", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_those_of_the_plan(name, hardware):
    proto = before(name)
    case = quantize_model(proto, hardware=hardware)
    if name != "attention":  # too many values for one without near-ties
        assert_simulated(case, proto, margin=1e-4)
    feeds = samples(proto, 1, seed=7)[0]
    want, got = run_reference(proto, feeds)["y"], run_reference(case.after, feeds)["y"]
    noise = float(np.square(want.astype(np.float64) - got).sum())
    assert noise > 0
    assert 10 * np.log10(float(np.square(want, dtype=np.float64).sum()) / noise) > 25


def test_every_golden_file_is_used():
    found = {tuple(path.name.split(".")[:2]) for path in GOLDEN.iterdir()}
    assert found == {(m, kind) for m in MODELS for kind in ("before", *TARGETS)}
